package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api"
	"tidemark/api/audit"
	"tidemark/api/withhold"
	"tidemark/store"
)

// lines are what a trail says, in short.
func lines(t *testing.T, fs vfs.FS) (said []string) {
	t.Helper()
	report, err := audit.Walk(fs, "audit", func(l *audit.Line) error {
		e := l.Event
		if e.Action == audit.Begin {
			return nil
		}
		text := string(e.Action) + " " + string(e.Phase) + " " + e.Client
		for _, more := range []string{e.Level, e.Group, e.Resource, e.File, e.Kind, e.Range, e.Reason} {
			if more != "" {
				text += " " + more
			}
		}
		for _, p := range e.Parameters {
			text += " " + p.Name + "=" + p.Value
		}
		if e.Rows > 0 {
			text += fmt.Sprintf(" %d", e.Rows)
		}
		if e.Bytes > 0 {
			text += fmt.Sprintf(" %d B", e.Bytes)
		}
		said = append(said, strings.Join(strings.Fields(text), " "))
		return nil
	})
	if err != nil || len(report.Breaks) > 0 {
		t.Fatalf("%v %v", report.Breaks, err)
	}
	return said
}

func trail(t *testing.T, fs vfs.FS) *audit.Trail {
	t.Helper()
	tr, err := audit.Open(audit.Options{Dir: "audit", FS: fs, Required: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// TestRecord: what is given out and what is refused is on record, each once, with whom
// and what it was about; polls and documents are not.
func TestRecord(t *testing.T) {
	fs := vfs.NewMem()
	o := newOffice(t, api.Options{Audit: trail(t, fs)})
	whole, confined := o.token("whole", ""), o.token("confined", "")
	job := o.start("/fhir/Group/g/$export?_type=Patient,Observation", whole)
	for _, ask := range []struct{ method, path, token string }{
		{http.MethodGet, job + "/1.ndjson", whole},
		{http.MethodHead, job + "/1.ndjson", whole},
		{http.MethodGet, "/fhir/metadata", ""},
		{http.MethodGet, "/fhir/Patient/a", confined},
		{http.MethodGet, "/fhir/Patient/b", confined},
		{http.MethodGet, "/fhir/Group?name=x", whole},
		{http.MethodGet, "/fhir/Binary/x", whole},
		{http.MethodGet, "/fhir/$export", confined},
		{http.MethodGet, "/fhir/$export", ""},
		{http.MethodGet, job, confined},
		{http.MethodGet, "/fhir/Patient/$export?_since=never", whole},
		{http.MethodDelete, job, whole},
	} {
		o.ask(ask.method, ask.path, ask.token)
	}
	want := []string{
		"kickoff whole group g _type=Patient,Observation",
		"download begun whole 1 output", "download ended whole 1 output # B",
		"read confined Patient/a",
		"read confined Patient/b not-found",
		"read whole name=x",
		"download begun whole Binary/x", "download ended whole Binary/x # B",
		"refused confined system forbidden",
		"refused login",
		"refused confined not-found",
		"kickoff whole patient value _since=never",
		"delete begun whole", "delete ended whole",
	}
	got := lines(t, fs)
	for i := range got {
		if at := strings.LastIndex(got[i], " "); strings.HasSuffix(got[i], " B") {
			at = strings.LastIndex(got[i][:at], " ")
			got[i] = got[i][:at] + " # B"
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestRecordRequired: what cannot be put on record is not given out, and no job is left
// of which nobody hears.
func TestRecordRequired(t *testing.T) {
	broken := false
	full := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errors.New("no space")
		}
		return nil
	})
	o := newOffice(t, api.Options{Audit: trail(t, errorfs.Wrap(vfs.NewMem(), full))})
	token := o.token("whole", "")
	job := o.start("/fhir/Patient/$export", token)
	broken = true
	for _, path := range []string{job + "/1.ndjson", "/fhir/Patient/a", "/fhir/Group", "/fhir/Binary/x", "/fhir/Patient/$export"} {
		resp, body := o.ask(http.MethodGet, path, token)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "on record") || strings.Contains(body, `"Patient"`) {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
		if resp.Header.Get("Content-Location") != "" || resp.Header.Get("ETag") != "" {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	if n := len(o.db.Pinned()); n != 1 {
		t.Errorf("%d jobs are there", n)
	}
	if resp, _ := o.ask(http.MethodGet, job, token); resp.StatusCode != http.StatusOK {
		t.Errorf("a status request: %s", resp.Status)
	}
	if resp, body := o.ask(http.MethodDelete, job, token); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "on record") {
		t.Errorf("DELETE: %s %s", resp.Status, body)
	}
	if resp, _ := o.ask(http.MethodGet, job, token); resp.StatusCode != http.StatusOK {
		t.Errorf("a status request after DELETE: %s", resp.Status)
	}
	broken = false
	if resp, body := o.ask(http.MethodGet, "/fhir/Patient/a", token); resp.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s %s", resp.Status, body)
	}
}

// TestRecordWithheld: the line of a kick-off says that a policy may have left something out,
// be it the client's or everybody's.
func TestRecordWithheld(t *testing.T) {
	for _, policy := range []withhold.Policy{{}, {Security: []string{"R"}}, {Elements: []string{"Claim.total"}}} {
		fs := vfs.NewMem()
		o := newOffice(t, api.Options{Audit: trail(t, fs), Withhold: policy})
		o.start("/fhir/Patient/$export", o.token("whole", ""))
		said := 0
		_, err := audit.Walk(fs, "audit", func(l *audit.Line) error {
			if l.Event.Action != audit.KickOff {
				return nil
			}
			if said++; l.Event.Withheld == policy.Empty() {
				t.Errorf("with %v withheld the line says %v", policy, l.Event.Withheld)
			}
			return nil
		})
		if err != nil || said != 1 {
			t.Errorf("%d lines of kick-offs: %v", said, err)
		}
	}
}

// TestRecordBrief: what is refused fills no disk, however much was said, and the trail has
// of it what was tried; what is given out stands there to its last word.
func TestRecordBrief(t *testing.T) {
	fs := vfs.NewMem()
	o := newOffice(t, api.Options{Audit: trail(t, fs)})
	token, long := o.token("whole", ""), strings.Repeat("z", 30_000)
	refused := []string{"/fhir/$export?_type=" + long, "/fhir/$export?" + strings.Repeat("a&", 999), "/fhir/Group?" + strings.Repeat("name=y&", 900) + "_count=-1"}
	for _, path := range refused {
		if resp, body := o.ask(http.MethodGet, path, token); resp.StatusCode != http.StatusBadRequest {
			t.Fatalf("%.40s: %s %.200s", path, resp.Status, body)
		}
	}
	said := lines(t, fs)
	for i, line := range said {
		if len(line) > 5<<10 || !strings.HasSuffix(line, "…") {
			t.Errorf("%.40s: a line of %d bytes: %.80s", refused[i], len(line), line)
		}
	}
	if len(said) != len(refused) || !strings.Contains(said[0], "_type=zzz") {
		t.Errorf("%d lines: %.200s", len(said), said)
	}
	if resp, body := o.ask(http.MethodGet, "/fhir/Group?name="+long, token); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if said := lines(t, fs); !strings.Contains(said[len(said)-1], "name="+long) {
		t.Error("what was given out is on record in part")
	}
}

// TestRecordStrangers: who is not known cannot fill the trail, and is counted there.
func TestRecordStrangers(t *testing.T) {
	const asked = 500
	fs := vfs.NewMem()
	o := newOffice(t, api.Options{Audit: trail(t, fs)})
	ctx, stop := context.WithCancel(t.Context())
	told := make(chan error, 1)
	go func() { told <- o.self.TellStrangers(ctx) }()
	defer func() { stop(); <-told }()
	for range asked {
		o.ask(http.MethodGet, "/fhir/$export", "")
	}
	o.ask(http.MethodGet, "/fhir/$export", o.token("confined", ""))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := lines(t, fs)
		n, own := 0, 0
		for _, line := range got {
			if number, is := strings.CutPrefix(line, "refused so many more of whom nobody knows who they are: no line of each "); is {
				more, _ := strconv.Atoi(number)
				n += more
			} else if line == "refused login" {
				own++
			}
		}
		if own > 300 || own+n > asked || !slices.Contains(got, "refused confined system forbidden") {
			t.Fatalf("%d lines of strangers, %d others: %q", own, n, got)
		}
		if own+n == asked {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d lines of strangers, %d others, %d have asked", own, n, asked)
		}
	}
}

// TestRecordDelete: a deletion is on record as it began and as it ended, also if it went
// wrong.
func TestRecordDelete(t *testing.T) {
	fs := vfs.NewMem()
	o := newOffice(t, api.Options{Audit: trail(t, fs)})
	token := o.token("whole", "")
	job := o.start("/fhir/Patient/$export", token)
	o.ask(http.MethodDelete, job, o.token("other", ""))
	o.db.Fail(store.ErrReadOnly)
	if resp, body := o.ask(http.MethodDelete, job, token); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("on a disk that takes no writes: %s %s", resp.Status, body)
	}
	o.db.Fail(nil)
	o.ask(http.MethodDelete, job, token)
	o.ask(http.MethodDelete, job, token)
	want := []string{
		"kickoff whole patient", "refused other not-found", "delete begun whole", "delete ended whole transient",
		"delete begun whole", "delete ended whole", "delete whole not-found",
	}
	if d := cmp.Diff(want, lines(t, fs)); d != "" {
		t.Error(d)
	}
}
