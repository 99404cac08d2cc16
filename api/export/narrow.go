package export

import (
	"context"
	"fmt"

	"tidemark/api/outcome"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Narrow makes files of what o.Withhold lets out of w, which was planned over s for the
// same types: copies, which need nothing of the snapshot once Detach has let go of it.
// They are numbered from before+1 on. All bodies of the window are read. What cannot be
// read may be withheld or not, and whoever follows would never get it: that is
// store.ErrCorrupt.
func (w Whole) Narrow(ctx context.Context, s Snapshot, types []fhir.Type, o Options, before int) (Whole, error) {
	r := w.rule
	r.Files, r.Errors, r.Access = nil, "", &Access{Rights: everything, Withhold: o.Withhold}
	q := Request{Level: System, Types: types, Access: r.Access}
	policy, err := o.policy(&q, r.Upto)
	if err != nil {
		return Whole{}, err
	}
	filters, err := o.sieves(&q, r.Upto, policy)
	if err != nil {
		return Whole{}, err
	}
	g := gathering{s: s, r: &r, of: r.Level.of, filters: filters, withhold: policy, before: before, published: true, progress: func(Progress) {}}
	if err := g.narrow(ctx, types, o.Limits); err != nil {
		return Whole{}, err
	}
	return Whole{r}, nil
}

// Withholds is the policy under which the files were made.
func (w Whole) Withholds() withhold.Policy { return w.rule.Access.of().Withhold }

func (g *gathering) narrow(ctx context.Context, types []fhir.Type, l Limits) error {
	for _, sec := range g.r.sections(g.s, store.Live, types) {
		if err := g.letOut(ctx, sec, l); err != nil {
			return err
		}
	}
	if g.r.Since != fhir.None {
		if err := g.add(ctx, Deleted, store.Deleted, types, l); err != nil {
			return err
		}
	}
	if g.lost > 0 {
		return fmt.Errorf("%w: %d resources cannot be read, so it is not known whether they are withheld; run `tidemark check`", store.ErrCorrupt, g.lost)
	}
	if err := g.detach(ctx); err != nil {
		return err
	}
	notes := g.notes
	if g.r.Since == fhir.None || len(g.r.Files) > 0 { // where nothing is told, this is not, either
		notes = append([]outcome.Issue{withheldPublished}, notes...)
	}
	return g.r.addErrors(g.s, notes)
}

// letOut adds the files of a section, of lines that are let out.
func (g *gathering) letOut(ctx context.Context, sec store.Section, l Limits) error {
	extents, err := g.r.extents(g.s, sec)
	if err != nil {
		return err
	}
	if g.withhold.Whole() {
		if extents, err = g.filtered(ctx, g.s, sec, extents, g.r.Since, g.filters[sec.Type].lets()); err != nil {
			return err
		}
	}
	if len(extents) > 0 && g.s.Attached(extents) {
		g.notes = append(g.notes, asTheyCame(sec.Type))
	}
	if len(extents) == 0 || !g.withhold.Cuts() {
		g.split(Output, sec, extents, l)
		return nil
	}
	if err := g.s.KeepKeys(g.fileName(len(g.r.Files)+1), g.r.Since, g.r.Upto, extents); err != nil {
		return err
	}
	return g.make(ctx, g.s, sec, extents, position{}, g.r.Since, nil, false, l)
}

// detach makes copies of the files whose lines are as they are stored.
func (g *gathering) detach(ctx context.Context) error {
	for i := range g.r.Files {
		f := &g.r.Files[i]
		if f.Made {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name := g.fileName(i + 1)
		if err := g.s.Copy(ctx, name, f.section(), g.r.Since, g.r.Upto, g.files[i]); err != nil {
			return err
		}
		f.Made = true
		file, err := made(g.s, name, *f)
		if err != nil {
			return err
		}
		f.CRC = new(file.CRC32())
		if err := file.Close(); err != nil {
			return err
		}
	}
	return nil
}

// withheldPublished is all that consumers learn of a policy.
var withheldPublished = outcome.Issue{
	Severity: outcome.Information, Code: outcome.Suppressed,
	Text: "policy of this server's operator withholds data: what is published may lack resources and elements, and does not tell which",
}

// untoldPublished warns that deletions are not listed on a page.
func untoldPublished(since, upto fhir.Instant) outcome.Issue {
	return outcome.Issue{
		Severity: outcome.Warning, Code: outcome.Incomplete,
		Text: fmt.Sprintf("policy withholds data, and of something that was deleted between %v and %v it is no longer known here whether that was withheld: it is not listed in deleted. "+
			"To be rid of it, begin again at $bulk-publish", since, upto),
	}
}
