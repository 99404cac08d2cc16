package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	w := whose{s: s, patient: args.Get("patient"), jobs: map[string]*audit.Event{}}
	if err := w.know(ctx); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tWHO\tVERDICT\tWHAT\tWHY")
	lines := 0
	r, err := audit.Walk(audit.Disk, args.Get("dir"), func(l *audit.Line) error {
		v, why := w.judge(l.Event)
		if v == not {
			return nil
		}
		lines++
		e := l.Event
		_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.Time.UTC().Format(time.RFC3339), orDash(e.Client), v, whatOf(e), why)
		return err
	})
	if err := errors.Join(err, table.Flush()); err != nil {
		return err
	}
	if lines == 0 {
		_, err = fmt.Fprintln(out, "nobody, as far as the trail goes back")
	}
	if len(r.Breaks) > 0 {
		err = errors.Join(err, errors.New("the audit trail is not what was written: tidemark audit verify tells more"))
	}
	return err
}

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
	jobs    map[string]*audit.Event // their kick-offs
	rows    []store.Row             // what lies in his compartment now, or is deleted
	known   bool                    // he is or was here
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
				return nil
			}); err != nil {
				return err
			}
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
	case e.Action == audit.Download && e.Phase == audit.Ended && e.Bytes > 0 && e.Resource != "":
		return perhaps, "which Binary belongs to whom is not kept"
	case e.Action == audit.Download && e.Phase == audit.Ended && e.Bytes > 0 && e.Kind != "error":
		return w.download(e)
	}
	return not, ""
}

func (w *whose) read(e *audit.Event) (verdict, string) {
	if e.Resource == "" {
		return perhaps, "a search for Groups, which name their members"
	}
	if e.Resource == "Patient/"+w.patient {
		return surely, "read by its id"
	}
	if slices.ContainsFunc(w.rows, func(r store.Row) bool { return r.Key.String() == e.Resource }) {
		return surely, "it lies in his compartment"
	}
	return not, ""
}

// download judges a file by its job: whom that was about, and what the store has of him.
func (w *whose) download(e *audit.Event) (verdict, string) {
	job := w.jobs[e.Job]
	if job == nil {
		return perhaps, "the trail does not go back to the kick-off"
	}
	about, why := w.about(job)
	if about == not {
		return not, ""
	}
	held, because := w.held(e, job)
	if about < held {
		return about, why
	}
	return held, because
}

// about tells whether a job was about the patient.
func (w *whose) about(job *audit.Event) (verdict, string) {
	named, some := false, false
	for _, p := range job.Parameters {
		if p.Name == "patient" {
			some = true
			named = named || strings.TrimSuffix(p.Value, "/") == "Patient/"+w.patient || strings.HasSuffix(p.Value, "/Patient/"+w.patient)
		}
	}
	switch {
	case some && !named:
		return not, ""
	case some, job.Level != "group":
		return surely, ""
	}
	return w.member(job)
}

// member tells whether he was in the job's Group at its transactionTime.
func (w *whose) member(job *audit.Event) (verdict, string) {
	at := fhir.Instant(job.W.UnixMilli())
	rosters, err := w.s.Rosters(at - 1)
	if err != nil {
		return perhaps, "the Group's history cannot be read"
	}
	roster, err := rosters.Of(job.Group)
	if err != nil {
		return perhaps, "the Group's history cannot be read"
	}
	for _, stay := range roster.Members["Patient/"+w.patient] {
		if stay.Joined <= at && (stay.Left == fhir.None || stay.Left > at) {
			return surely, "a member at that time"
		}
	}
	for ref := range roster.Members {
		if !strings.HasPrefix(ref, "Patient/") {
			return perhaps, "the Group has members by identifiers, or other Groups in it"
		}
	}
	if roster.Body == nil || strings.Contains(string(roster.Body), "modifierExtension") {
		return perhaps, "the Group is gone, or says by searches whom it has"
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
		case len(e.Types) > 0 && !slices.Contains(e.Types, row.Key.Type.String()):
		case row.Instant > upto:
			why = "what there is now came later: an earlier version may have been sent"
		case row.Instant <= since:
			why = "what there is now is older than _since: it went to who had joined meanwhile"
		case narrowed(e, job):
			return perhaps, "filters, scopes or a part of the file may have left it out"
		default:
			return surely, row.Key.Type.String() + " as it is here still"
		}
	}
	return perhaps, why
}

// narrowed tells whether a file need not have brought all that its job was about.
func narrowed(e, job *audit.Event) bool {
	return e.Range != "" || e.Outcome != audit.Done || strings.Contains(job.Scopes, "?") ||
		slices.ContainsFunc(job.Parameters, func(p audit.Parameter) bool { return p.Name == "_typeFilter" })
}
