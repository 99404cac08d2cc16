package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tidemark/api/audit"
	"tidemark/api/export"
	"tidemark/store"
	"tidemark/store/fhir"
)

// whoseAuditCmd answers who was given a patient's data.
type whoseAuditCmd struct {
	Patient string `required:"" placeholder:"ID" help:"Who was given data of this Patient?"`

	auditFlags `embed:""`
}

// Run asks the running server, or the store itself.
func (c *whoseAuditCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	if _, err := fhir.ParseKey("Patient/" + c.Patient); err != nil {
		return errors.New("--patient: this is not a FHIR id")
	}
	return onStore(ctx, place{cfg.Store.Path, &cfg.Config}, "audit-patient", url.Values{"patient": {c.Patient}, "dir": {dir}}, out)
}

// A verdict is what is known of whether somebody was given a patient's data.
type verdict int

// The verdicts, the surer the greater.
const (
	not verdict = iota
	perhaps
	surely
)

func (v verdict) String() string { return []string{"not", "may have received", "received"}[v] }

// whoseAudit lists who was given data of a patient, as far as the trail and the store
// know. The trail says what was sent, the store what that held: of a version that is
// forgotten, or a Group whose members are found by identifiers or searches, it can only
// be said that it may have been in it.
func whoseAudit(ctx context.Context, at *opened, args url.Values, out io.Writer) (err error) {
	s, err := export.Of(at.db).Present()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	w := whose{s: s, patient: args.Get("patient"), jobs: map[string]*audit.Event{}, begun: map[string]*audit.Event{}, members: map[belonging]answer{}, with: map[fhir.Key]map[string]bool{}}
	if err := w.know(ctx); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tWHO\tVERDICT\tWHAT\tWHY")
	lines := 0
	tell := func(e *audit.Event, v verdict, why string) error {
		if v == not {
			return nil
		}
		lines++
		_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.Time.UTC().Format(time.RFC3339), orDash(e.Client), v, whatOf(e), why)
		return err
	}
	r, err := audit.Walk(audit.Disk, args.Get("dir"), func(l *audit.Line) error {
		v, why := w.judge(l.Event)
		return tell(l.Event, v, why)
	})
	for _, e := range w.unended() {
		v, why := w.downloaded(e)
		if v == surely {
			v, why = perhaps, "it began, and how much was sent is not on record"
		}
		err = errors.Join(err, tell(e, v, why))
	}
	if err := errors.Join(err, table.Flush()); err != nil {
		return err
	}
	if lines == 0 {
		_, err = fmt.Fprintln(out, "nobody, as far as the trail goes back")
	}
	if err == nil {
		_, err = fmt.Fprintln(out, untold)
	}
	if len(r.Breaks) > 0 {
		err = errors.Join(err, errors.New("the audit trail is not what was written: tidemark audit verify tells more"))
	}
	return err
}

// untold is what nothing that is kept can tell.
const untold = "note: a resource of several patients that was deleted, and came back as others', is not known to have been his: of jobs about the others only, what they had of it is not told"

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func whatOf(e *audit.Event) string {
	if e.Resource != "" {
		return e.Resource
	}
	return fmt.Sprintf("job %s, file %s, %s", e.Job, e.File, strings.Join(e.Types, ","))
}

// whose judges the lines of a trail for one patient.
type whose struct {
	s       export.Snapshot
	patient string
	jobs    map[string]*audit.Event      // their kick-offs
	begun   map[string]*audit.Event      // downloads of which the end has not come, by pair
	rows    []store.Row                  // what lies in his compartment now, or is deleted
	with    map[fhir.Key]map[string]bool // who has or had what is or was his
	known   bool                         // he is or was here
	members map[belonging]answer         // that were found
}

type answer struct {
	verdict
	why string
}

// know finds what the store has of the patient.
func (w *whose) know(ctx context.Context) (err error) {
	if w.known, err = w.s.Known(fhir.Key{Type: patientType, ID: w.patient}); err != nil {
		return err
	}
	his := w.s.Choosing(store.Choice{Patients: map[string]fhir.Instant{w.patient: fhir.None}})
	for _, kind := range []store.Kind{store.Live, store.Deleted} {
		for _, sec := range w.s.Sections(kind) {
			if err := his.Rows(ctx, sec, fhir.None, w.s.Watermark(), func(row *store.Row) error {
				w.rows = append(w.rows, store.Row{Section: row.Section, Key: row.Key, Instant: row.Instant})
				w.share(row)
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return w.leavings(ctx, his)
}

// share notes who else has a resource, or had it.
func (w *whose) share(row *store.Row) {
	of := w.with[row.Key]
	if of == nil {
		of = map[string]bool{}
		w.with[row.Key] = of
	}
	for _, p := range row.Patients {
		of[p] = true
	}
}

// leavings finds what was his once, and of all such things who else had them: each
// version that took somebody out of a resource has left a mark (store/FORMAT.md).
func (w *whose) leavings(ctx context.Context, his export.Snapshot) error {
	marks := store.Section{Kind: store.Internal, Type: store.Departures}
	if err := his.Rows(ctx, marks, fhir.None, w.s.Watermark(), func(row *store.Row) error { w.share(row); return nil }); err != nil {
		return err
	}
	if len(w.with) == 0 {
		return nil
	}
	keys := store.Choice{Keys: map[fhir.Key]fhir.Instant{}}
	for k := range w.with {
		keys.Keys[k] = fhir.None
	}
	theirs := w.s.Choosing(keys)
	sections := append(slices.Concat(w.s.Sections(store.Live), w.s.Sections(store.Deleted)), marks)
	for _, sec := range sections {
		if err := theirs.Rows(ctx, sec, fhir.None, w.s.Watermark(), func(row *store.Row) error {
			if w.with[row.Key] != nil {
				w.share(row)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

var patientType, _ = fhir.ParseType("Patient")

// judge tells what a line says of whether the patient's data was given to somebody.
func (w *whose) judge(e *audit.Event) (verdict, string) {
	switch {
	case e.Action == audit.KickOff && e.Job != "" && e.Outcome == audit.Done:
		w.jobs[e.Job] = e
	case e.Action == audit.Read && e.Outcome == audit.Done:
		return w.read(e)
	case e.Action == audit.Download && e.Phase == audit.Begun:
		w.begun[e.Pair] = e
	case e.Action == audit.Download && e.Phase == audit.Ended:
		if delete(w.begun, e.Pair); e.Bytes > 0 {
			return w.downloaded(e)
		}
	}
	return not, ""
}

// unended are downloads whose end is not on record: they are under way, or the server was
// killed. The oldest comes first.
func (w *whose) unended() []*audit.Event {
	return slices.SortedFunc(maps.Values(w.begun), func(a, b *audit.Event) int { return a.Time.Compare(b.Time) })
}

func (w *whose) read(e *audit.Event) (verdict, string) {
	id, group := strings.CutPrefix(e.Resource, "Group/")
	switch {
	case e.Resource == "":
		return perhaps, "a search for Groups, which name their members"
	case e.Resource == "Patient/"+w.patient:
		return surely, "read by its id"
	case group:
		at := fhir.FromTime(e.Time)
		v, why := w.listed(id, at-1, at)
		return min(v, perhaps), why // which version that was is not on record
	case slices.ContainsFunc(w.rows, func(r store.Row) bool { return r.Key.String() == e.Resource }):
		return surely, "it lies in his compartment"
	}
	return not, ""
}

// downloaded judges a file by its job: whom that was about, and what the store has of him.
func (w *whose) downloaded(e *audit.Event) (verdict, string) {
	switch {
	case e.Kind == "error":
		return not, ""
	case e.Resource != "":
		return perhaps, "which Binary belongs to whom is not kept"
	}
	job := w.jobs[e.Job]
	if job == nil && e.Level == "publish" {
		job = &audit.Event{Level: "system", W: e.Time, Since: e.Time} // what such a page held is not on record
	}
	if job == nil {
		return perhaps, "the trail does not go back to the kick-off"
	}
	about, why := w.about(job, w.patient)
	if about == not {
		about, why = w.shared(e, job)
	}
	if about == not {
		return not, ""
	}
	held, because := w.held(e, job)
	if about < held {
		return about, why
	}
	return held, because
}

// shared: what lies in his compartment and in that of another whom the job was about, or
// once did, goes out by the right of the other (decisions.md 3).
func (w *whose) shared(e, job *audit.Event) (verdict, string) {
	others := map[string]bool{}
	for key, of := range w.with {
		if len(e.Types) == 0 || slices.Contains(e.Types, key.Type.String()) {
			maps.Copy(others, of)
		}
	}
	delete(others, w.patient)
	for other := range others {
		if v, _ := w.about(job, other); v != not {
			return perhaps, "what is or was also another's, whom the job was about"
		}
	}
	return not, ""
}

// about tells whether a job was about a patient.
func (w *whose) about(job *audit.Event, patient string) (verdict, string) {
	named, some := false, false
	for _, p := range job.Parameters {
		if p.Name == "patient" {
			some = true
			named = named || strings.TrimSuffix(p.Value, "/") == "Patient/"+patient || strings.HasSuffix(p.Value, "/Patient/"+patient)
		}
	}
	switch {
	case some && !named:
		return not, ""
	case some, job.Level != "group":
		return surely, ""
	}
	if job.W.IsZero() {
		return perhaps, "of when it was is not on record"
	}
	upto, since := fhir.FromTime(job.W), fhir.FromTime(job.W)-1
	if !job.Since.IsZero() {
		since = min(since, fhir.FromTime(job.Since))
	}
	return w.member(job.Group, patient, since, upto)
}

// listed tells whether a Group named him.
func (w *whose) listed(group string, since, at fhir.Instant) (verdict, string) {
	v, why := w.member(group, w.patient, since, at)
	if v == surely {
		why = "the Group named him"
	}
	return v, why
}

// A belonging is what is asked of a Group, and of its history, once.
type belonging struct {
	group, patient string
	since, at      fhir.Instant
}

// member tells whether somebody was in a Group at an instant, or after another.
func (w *whose) member(group, patient string, since, at fhir.Instant) (v verdict, why string) {
	asked := belonging{group, patient, since, at}
	if known, is := w.members[asked]; is {
		return known.verdict, known.why
	}
	v, why = w.look(group, patient, since, at)
	w.members[asked] = answer{v, why}
	return v, why
}

func (w *whose) look(group, patient string, since, at fhir.Instant) (verdict, string) {
	rosters, err := w.s.Rosters(since)
	if err != nil {
		return perhaps, "the Group's history cannot be read"
	}
	roster, err := rosters.Of(group)
	if err != nil {
		return perhaps, "the Group's history cannot be read"
	}
	was := false
	for _, stay := range roster.Members["Patient/"+patient] {
		if stay.Joined > at {
			continue
		}
		if was = true; stay.Left == fhir.None || stay.Left > at {
			return surely, "a member at that time"
		}
	}
	if was {
		return perhaps, "he had been a member since _since: what was deleted or has left was told"
	}
	for ref := range roster.Members {
		if !strings.HasPrefix(ref, "Patient/") {
			return perhaps, "the Group has members by identifiers, or other Groups in it"
		}
	}
	if roster.Body == nil || strings.Contains(string(roster.Body), "modifierExtension") {
		return perhaps, "the Group is gone, or says by searches whom it has"
	}
	if bytes.Contains(roster.Body, []byte("Patient/"+patient+`"`)) {
		return perhaps, "the Group names him, though not as a member at that time"
	}
	return not, ""
}

// held tells whether a file held a row of his, by the versions that the store has still.
// Of what it has not any more, or is somebody else's now, nothing can be said for sure:
// so it never says not.
func (w *whose) held(e, job *audit.Event) (verdict, string) {
	upto, since := fhir.Instant(job.W.UnixMilli()), fhir.None
	if !job.Since.IsZero() {
		since = fhir.Instant(job.Since.UnixMilli())
	}
	why := "nothing of that type is his now; what was his then is not known"
	if !w.known {
		why = "he is not known here, or was erased"
	}
	for _, row := range w.rows {
		switch {
		case (row.Section.Kind == store.Deleted) != (e.Kind == "deleted") && row.Instant <= upto: // it is in another list
		case len(e.Types) > 0 && !slices.Contains(e.Types, row.Key.Type.String()):
		case row.Instant > upto:
			why = "what there is now came later: an earlier version may have been sent"
		case row.Instant <= since:
			why = "what there is now is older than _since: it went to who had joined meanwhile"
		case narrowed(e, job):
			return perhaps, "a policy, filters, scopes or a part of the file may have left it out"
		default:
			return surely, row.Key.Type.String() + " as it is here still"
		}
	}
	return perhaps, why
}

// narrowed tells whether a file need not have brought all that its job was about.
func narrowed(e, job *audit.Event) bool {
	return e.Range != "" || e.Outcome != audit.Done || e.Parts > 1 || job.Withheld || strings.Contains(job.Scopes, "?") ||
		slices.ContainsFunc(job.Parameters, func(p audit.Parameter) bool {
			return slices.Contains([]string{"_typeFilter", "_until", "organizeOutputBy", "_organizeOutputBy"}, p.Name)
		})
}
