package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/attachment"
	"tidemark/store/fhir"
)

// Attachments lead to where a client of this server can get them with what it has:
// the URL of a Binary that is here becomes absolute under the server's base, or the
// content takes its place. What leads elsewhere stays and is named in the list of
// errors (Bulk Data, "Attachments"; decisions.md 5). Nothing is fetched.
//
// Whether a Binary is here is known at the watermark only: it may come before or
// after what refers to it. A resource goes again when a Binary to which it refers
// has come, changed or gone: what it says has changed with it.
//
// Directories tell which rows refer to a Binary, and tables of blocks whether any
// does: of what has no attachments nothing more is read than without them.

// A following knows where attachments lead.
type following struct {
	g        *gathering
	base     string                 // of the URLs of Binaries here
	inline   int64                  // content up to so many bytes takes the place of its URL
	lets     func(body []byte) bool // content of a Binary may go
	here     []uint64
	fresh    []uint64                  // those that came, changed or went in the window
	open     map[fhir.Key]fhir.Instant // Binaries that are no Patient's, each with the instant behind which it counts
	rewriter attachment.Rewriter
	strays   strays     // of the section at hand
	met      []fhir.Key // strays of the line at hand
	lost     int        // of the line at hand: content that cannot be read
	text     []byte
	err      error
}

// strays are what leads to no Binary here.
type strays struct {
	Missing int            `json:"missing,omitempty"` // resources that refer to Binaries that are not here
	Named   []string       `json:"named,omitempty"`   // the first of these Binaries
	Origins map[string]int `json:"origins,omitempty"` // of URLs that lead elsewhere: so many resources have one
	Lost    int            `json:"lost,omitempty"`    // resources whose content cannot be read
}

// maxNamed bounds how many are named one by one.
const maxNamed = 20

// refersToBinaries tells whether a kick-off must leave the planning to those who
// read bodies. For the sake of stores without attachments it looks at tables of
// blocks first.
func (r *rule) refersToBinaries(s Snapshot, types []fhir.Type) (bool, error) {
	binaries, err := r.extents(s, store.Section{Kind: store.Live, Type: fhir.Binary})
	if err != nil {
		return false, err
	}
	if len(types) > 0 && slices.Contains(types, fhir.Binary) {
		types = nil // whether one is a Patient's depends on all that may refer to it
	}
	if len(types) == 0 && r.Level.Holds(fhir.Binary) && len(binaries) > 0 {
		return true, nil
	}
	gone, err := r.extents(s, store.Section{Kind: store.Deleted, Type: fhir.Binary})
	if err != nil {
		return false, err
	}
	for _, sec := range r.sections(s, store.Live, types) {
		switch {
		case !s.AnyAttached(sec):
			continue
		case len(binaries)+len(gone) > 0:
			return true, nil
		}
		if attached, err := r.attached(s, sec); err != nil || attached {
			return true, err
		}
	}
	return false, nil
}

// attached tells whether rows of the window may refer to Binaries, or attachments of
// theirs lead elsewhere.
func (r *rule) attached(s Snapshot, sec store.Section) (bool, error) {
	if !s.AnyAttached(sec) {
		return false, nil
	}
	ext, err := r.extents(s, sec)
	return s.Attached(ext), err
}

// follow finds out which Binaries are here, if anything may refer to one.
func (g *gathering) follow(ctx context.Context, q *Request, o Options) error {
	sec := store.Section{Kind: store.Live, Type: fhir.Binary}
	asked := g.r.Level.Holds(fhir.Binary) && g.asks(q.Types, fhir.Binary)
	attached := slices.ContainsFunc(g.r.sections(g.s, store.Live, q.Types), g.s.AnyAttached)
	if !attached && !asked {
		return nil
	}
	f := &following{g: g, base: o.Base, inline: o.Inline, lets: g.filters[fhir.Binary].lets(), open: map[fhir.Key]fhir.Instant{}}
	f.rewriter = attachment.Rewriter{Bases: o.Bases, Follow: f.lead}
	err := g.s.Rows(ctx, sec, fhir.None, g.s.Watermark(), func(row *store.Row) error {
		h := hashKey(row.Key)
		f.here = append(f.here, h)
		if row.Instant > g.r.Since && row.Instant <= g.r.Upto {
			f.fresh = append(f.fresh, h)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("find the Binaries: %w", err)
	}
	gone := func(row *store.Row) error {
		f.fresh = append(f.fresh, hashKey(row.Key)) // its URL leads nowhere any more
		return nil
	}
	if err := g.s.Rows(ctx, store.Section{Kind: store.Deleted, Type: fhir.Binary}, g.r.Since, g.r.Upto, gone); err != nil {
		return fmt.Errorf("find the Binaries: %w", err)
	}
	slices.Sort(f.here)
	slices.Sort(f.fresh)
	g.following = f
	if asked && len(f.here) > 0 {
		return f.findOpen(ctx)
	}
	return nil
}

// findOpen finds the Binaries that are files of their own: those to which something
// refers that is no Patient's, and nothing that is. One to which nothing refers may
// be anybody's. One that has been open only since the window began comes whole.
func (f *following) findOpen(ctx context.Context) error {
	g := f.g
	var bound []uint64
	for _, sec := range g.r.everyones(g.s, store.Live, nil) {
		if !g.s.AnyAttached(sec) {
			continue
		}
		// Whose a Binary is does not depend on who takes part.
		about := fhir.MayNamePatient(sec.Type) && !fhir.InPatientCompartment(sec.Type) // whose it is, nobody knows
		err := g.bare.Rows(ctx, sec, fhir.None, g.s.Watermark(), func(row *store.Row) error {
			for _, key := range row.References {
				switch {
				case key.Type != fhir.Binary || !f.isHere(key):
				case about || len(row.Patients) > 0:
					bound = append(bound, hashKey(key))
				default:
					f.addOpen(key, row)
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("find what refers to Binaries: %w", err)
		}
	}
	slices.Sort(bound)
	maps.DeleteFunc(f.open, func(key fhir.Key, _ fhir.Instant) bool {
		_, is := slices.BinarySearch(bound, hashKey(key))
		return is
	})
	return nil
}

func (f *following) addOpen(key fhir.Key, row *store.Row) {
	after := f.g.r.Since
	if row.Instant > after { // before, it may have referred to another
		after = fhir.None
	}
	if have, known := f.open[key]; known {
		after = max(after, have) // the one that has referred longest
	}
	f.open[key] = after
}

func (f *following) isHere(key fhir.Key) bool {
	_, is := slices.BinarySearch(f.here, hashKey(key))
	return is
}

func (f *following) isFresh(key fhir.Key) bool {
	_, is := slices.BinarySearch(f.fresh, hashKey(key))
	return is
}

// held is what of the store the files of a list hold of a type.
func (g *gathering) held(list List, t fhir.Type) Snapshot {
	f := g.following
	switch {
	case list != Output || f == nil:
		return g.of(g.s, list, t)
	case t == fhir.Binary:
		return g.s.Choosing(store.Choice{Keys: f.open, Outside: true})
	case len(f.fresh) > 0 && g.r.Since != fhir.None:
		return g.of(g.s, list, t).Renewing(f.isFresh)
	}
	return g.of(g.s, list, t)
}

// leads tells whether attachments of rows of extents lead to Binaries here, so that
// they must be rewritten. If none does, it notes where they lead: unless that is to
// be counted line by line, because not every one is sent.
func (g *gathering) leads(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, since fhir.Instant, some bool) (here bool, err error) {
	f := g.following
	if f == nil || sec.Type == fhir.Binary || !s.Attached(extents) {
		return false, nil
	}
	if some {
		return true, nil
	}
	var away strays
	err = s.Rows(ctx, sec, since, g.r.Upto, func(row *store.Row) error {
		for _, key := range row.References {
			switch {
			case key.Type != fhir.Binary:
			case f.isHere(key):
				here = true
			default:
				away.add(key)
			}
		}
		return nil
	})
	if err == nil && !here {
		g.noteStrays(sec.Type, away)
	}
	return here, err
}

// rewrite is a line with its attachments changed, until the next call.
func (f *following) rewrite(line []byte) ([]byte, error) {
	f.met, f.lost = f.met[:0], 0
	f.text = f.rewriter.Append(f.text[:0], line)
	return f.text, f.err
}

// shape is a line as it is sent, until the next call: without elements that are
// withheld, cut to what was asked for, and,
// if rewrite, with its attachments changed. following.followed is to be called once
// it is sent.
func (g *gathering) shape(line []byte, t fhir.Type, rewrite bool) ([]byte, error) {
	if g.withhold.Cuts() {
		g.left = g.withhold.Cut(g.left[:0], line, t)
		line = g.left
	}
	if g.projection != nil {
		g.text = g.projection.Append(g.text[:0], line, t)
		line = g.text
	}
	if !rewrite {
		return line, nil
	}
	return g.following.rewrite(line)
}

// followed counts where the line at hand led, once it is sent.
func (f *following) followed() {
	for _, key := range f.met {
		f.strays.add(key)
	}
	f.strays.Lost += f.lost
}

// begin begins a section, in which an earlier process may have met strays.
func (f *following) begin(so *strays) {
	f.strays = strays{}
	if so != nil {
		f.strays = *so.clone()
	}
}

// lead is where an attachment is to lead.
func (f *following) lead(key fhir.Key) attachment.Lead {
	if !f.isHere(key) {
		if !slices.Contains(f.met, key) {
			f.met = append(f.met, key)
		}
		return attachment.Lead{}
	}
	l := attachment.Lead{URL: f.base + "/" + key.String()}
	if f.inline <= 0 {
		return l
	}
	body, err := f.g.s.Resource(key)
	switch {
	case errors.Is(err, store.ErrCorrupt):
		f.lost++
	case err != nil:
		f.err = errors.Join(f.err, fmt.Errorf("read the content of an attachment: %w", err))
	default:
		if !f.lets(body) { // its URL leads nowhere for this client
			return l
		}
		body = f.g.withhold.Cut(nil, body, fhir.Binary)
		if l.ContentType, l.Data = attachment.Content(body); decoded(l.Data) > f.inline {
			l.Data = nil
		}
	}
	return l
}

// decoded is how many bytes a JSON string of base64 stands for.
func decoded(data []byte) int64 {
	return int64(len(bytes.Trim(data, `"=`))) * 3 / 4
}

func (s *strays) add(key fhir.Key) {
	if !key.Elsewhere() {
		s.Missing++
		if len(s.Named) < maxNamed && !slices.Contains(s.Named, key.ID) {
			s.Named = append(s.Named, key.ID)
		}
		return
	}
	if s.Origins == nil {
		s.Origins = map[string]int{}
	}
	id := key.ID
	if _, known := s.Origins[id]; !known && len(s.Origins) >= maxNamed {
		id = "further places"
	}
	s.Origins[id]++
}

// clone is s as it is now: a checkpoint keeps it while counting goes on.
func (s strays) clone() *strays {
	if s.Missing == 0 && len(s.Origins) == 0 && s.Lost == 0 {
		return nil
	}
	s.Named, s.Origins = slices.Clone(s.Named), maps.Clone(s.Origins)
	return &s
}

// noteStrays says which URLs are as they came.
func (g *gathering) noteStrays(t fhir.Type, s strays) {
	note := func(severity outcome.Severity, format string, args ...any) {
		g.notes = append(g.notes, outcome.Issue{Severity: severity, Code: outcome.Incomplete, Text: fmt.Sprintf(format, args...)})
	}
	if s.Missing > 0 {
		note(outcome.Warning, "%s: %d resources refer to Binaries that this server does not have, among them Binary/%s: their URLs are as they came",
			t, s.Missing, strings.Join(s.Named, ", Binary/"))
	}
	for _, origin := range slices.Sorted(maps.Keys(s.Origins)) {
		where := origin
		if origin == fhir.Relative {
			where = "no resource of this server by a relative URL"
		}
		note(outcome.Warning, "%s: attachments of %d resources lead to %s: their URLs are as they came, and this server's tokens may not do there", t, s.Origins[origin], where)
	}
	if s.Lost > 0 {
		note(outcome.Error, "%s: the content of %d attachments is damaged on the server's disk and could not be put in; its operator learns more with: tidemark check", t, s.Lost)
	}
}
