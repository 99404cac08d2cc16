package extract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	patient  = `{"resourceType":"Patient","id":"p1"}` + "\n"
	patient2 = `{"resourceType":"Patient","id":"p2"}` + "\n"
	device   = `{"resourceType":"Device","id":"d1"}` + "\n"
	deletion = `{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/p9"}}]}` + "\n"
)

// folder writes files into a new folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// said is what the lines of an extract say, one after the other.
func said(t *testing.T, e *Extract, dir string) (lines []string) {
	t.Helper()
	for _, f := range e.Files {
		name, _ := filepath.Rel(dir, f.Path)
		err := f.Each(t.Context(), Mark{}, nil, func(i *Item) error {
			what := i.Fault
			switch {
			case i.Deleted != nil:
				what = fmt.Sprintf("deleted %v", i.Deleted)
			case what == "":
				what = i.Resource.Key.String()
			}
			lines = append(lines, fmt.Sprintf("%s:%d %s", filepath.ToSlash(name), i.Line, what))
			return nil
		})
		if err != nil {
			lines = append(lines, strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), ""))
		}
	}
	return lines
}

func zip(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

func zst(text string) string {
	w, _ := zstd.NewWriter(nil)
	return string(w.EncodeAll([]byte(text), nil))
}

// A folder is what lies in it, however it is compressed and whatever that is called.
func TestFolder(t *testing.T) {
	dir := folder(t, map[string]string{
		"Device.000.ndjson":          zip(device), // has lost its .gz
		"Patient.000.ndjson.gz":      zip(patient) + zip(patient2),
		"Patient.001.ndjson.zst":     zst("\ufeff" + strings.ReplaceAll(patient, "\n", "\r\n\n")),
		"deleted/Patient.ndjson":     deletion,
		"error/Out.ndjson":           `{"resourceType":"OperationOutcome"}` + "\n",
		"log.ndjson":                 `{"eventId":"kickoff","eventDetail":{"exportUrl":"http://x/fhir/$export?_type=Patient,Device"}}` + "\n" + `{"eventId":"status_complete","eventDetail":{"transactionTime":"2026-01-03T08:15:03.412+01:00"}}` + "\n",
		"notes.txt":                  "x",
		".hidden/Patient.ndjson":     patient,
		"more/Patient.jsonl":         patient2,
		"Patient.json":               `{"resourceType":"Patient","id":"no-manifest"}`,
		"more/MedicationRequest.txt": "x",
	})
	e, err := Find([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Device.000.ndjson:1 Device/d1", "Patient.000.ndjson.gz:1 Patient/p1", "Patient.000.ndjson.gz:2 Patient/p2", "Patient.001.ndjson.zst:1 Patient/p1",
		"more/Patient.jsonl:1 Patient/p2", "deleted/Patient.ndjson:1 deleted [Patient/p9]",
	}
	if d := cmp.Diff(want, said(t, e, dir)); d != "" {
		t.Error(d)
	}
	if got := e.At.String(); got != "2026-01-03T07:15:03.412Z" {
		t.Errorf("as of %s", got)
	}
	if e.Part != partDeleted || fmt.Sprint(e.Asked) != "[Patient Device]" {
		t.Errorf("%q, asked for %v", e.Part, e.Asked)
	}
}

func manifestOf(request, rest string) string {
	return `{"transactionTime":"2026-01-03T08:15:03.412Z","request":"` + request + `","requiresAccessToken":true,` + rest + `,"error":[]}`
}

// A manifest says which files they are, whatever else lies beside them.
func TestManifest(t *testing.T) {
	tests := []struct {
		name     string
		manifest string
		files    map[string]string
		want     []string
	}{
		{
			"names of URLs, deletions last",
			manifestOf("http://x/fhir/$export?_since=2025-01-01T00:00:00Z", `"deleted":[{"type":"Bundle","url":"http://x/f/3?token=s"}],"output":[{"type":"Patient","url":"http://x/f/1.ndjson","count":1},{"type":"Device","url":"http://x/f/2"}]`),
			map[string]string{"1.ndjson.gz": zip(patient), "2.ndjson": device, "3.ndjson": deletion, "4.ndjson": patient2},
			[]string{"1.ndjson.gz:1 Patient/p1", "2.ndjson:1 Device/d1", "3.ndjson:1 deleted [Patient/p9]"},
		},
		{
			"names by types",
			manifestOf("http://x/fhir/$export", `"deleted":[],"output":[{"type":"Patient","url":"http://x/f/a"},{"type":"Patient","url":"http://x/f/b"},{"type":"Device","url":"http://x/f/c"}]`),
			map[string]string{"Patient.000.ndjson": patient, "Patient.001.ndjson": patient2, "Device.ndjson": device, "DeviceMetric.ndjson": device},
			[]string{"Patient.000.ndjson:1 Patient/p1", "Patient.001.ndjson:1 Patient/p2", "Device.ndjson:1 Device/d1"},
		},
		{
			"a file that was not downloaded",
			manifestOf("http://x/fhir/$export", `"deleted":[],"output":[{"type":"Patient","url":"http://x/f/a"},{"type":"Device","url":"http://x/f/b"}]`),
			map[string]string{"a.ndjson": patient},
			[]string{`output 2 of the manifest, "b" of type "Device", is not there: download it; look in `},
		},
		{
			"names by types, and one of two files of a type",
			manifestOf("http://x/fhir/$export", `"deleted":[],"output":[{"type":"Patient","url":"http://x/f/a","count":1},{"type":"Patient","url":"http://x/f/b","count":1}]`),
			map[string]string{"Patient.000.ndjson": patient},
			[]string{"Patient.000.ndjson:1 Patient/p1", "Patient.000.ndjson " + errShortTogether.Error()},
		},
		{
			"names by types, with all lines, and with as many as are not told",
			manifestOf("http://x/fhir/$export", `"deleted":[],"output":[{"type":"Patient","url":"http://x/f/a","count":1},{"type":"Device","url":"http://x/f/c"},{"type":"Patient","url":"http://x/f/b","count":1}]`),
			map[string]string{"Patient.000.ndjson": patient, "Patient.001.ndjson": patient2, "Device.ndjson": device + device},
			[]string{"Patient.000.ndjson:1 Patient/p1", "Patient.001.ndjson:1 Patient/p2", "Device.ndjson:1 Device/d1", "Device.ndjson:2 Device/d1"},
		},
		{
			"an export of nothing",
			manifestOf("http://x/fhir/$export", `"deleted":[],"output":[]`),
			map[string]string{"Patient.ndjson": patient},
			[]string{"the manifest lists no file: it is of an export of nothing, with which nothing can be done"},
		},
		{
			"a manifest that was cut",
			`{"transactionTime":"2026-01-03T08:15:03.412Z","outp`,
			map[string]string{"Patient.ndjson": patient},
			[]string{"/manifest.json cannot be used: read the manifest: it is not valid JSON at byte 51; download it again, or move it away"},
		},
		{
			"a file that was cut between two lines",
			manifestOf("http://x/fhir/$export", `"deleted":[],"output":[{"type":"Patient","url":"http://x/f/a","count":2}]`),
			map[string]string{"a.ndjson": patient},
			[]string{"a.ndjson:1 Patient/p1", "a.ndjson " + ErrShort.Error()},
		},
		{
			"a file of deletions that holds something else, in a folder of its own",
			manifestOf("http://x/fhir/$export", `"deleted":[{"type":"Bundle","url":"http://x/f/1.ndjson"}],"output":[{"type":"Patient","url":"http://x/o/1.ndjson"}]`),
			map[string]string{"output/1.ndjson": patient, "deleted/1.ndjson": patient + deletion},
			[]string{"output/1.ndjson:1 Patient/p1", "deleted/1.ndjson:1 " + faultDeleted, "deleted/1.ndjson:2 deleted [Patient/p9]"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.files["manifest.json"] = test.manifest
			dir := folder(t, test.files)
			for _, paths := range [][]string{{dir}, {filepath.Join(dir, "manifest.json")}, {filepath.Join(dir, "manifest.json"), dir}} {
				e, err := Find(paths)
				if err != nil {
					if got := strings.ReplaceAll(err.Error(), dir, ""); got != test.want[0] {
						t.Errorf("got %s", got)
					}
					continue
				}
				if d := cmp.Diff(test.want, said(t, e, dir)); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

// What is not all of the source is not taken for it: what is missing in it may be there.
func TestPart(t *testing.T) {
	whole := `"output":[{"type":"Patient","url":"http://x/f/1.ndjson"}],"deleted":[]`
	tests := []struct{ request, rest, want string }{
		{"http://x/fhir/$export?_type=Patient", whole, ""},
		{"http://x/fhir/$export?_since=2025-01-01T00:00:00Z", whole, partSince},
		{"http://x/fhir/Patient/$export", whole, partLevel},
		{"http://x/fhir/Group/g1/$export", whole, partLevel},
		{"http://x/fhir/$export?_typeFilter=Patient%3Factive%3Dtrue", whole, partFilter},
		{"http://x/fhir/$export", strings.Replace(whole, "[]", `[{"type":"Bundle","url":"http://x/f/2.ndjson"}]`, 1), partDeleted},
		{"http://x/fhir/$export", whole + `,"outcome":[{"type":"OperationOutcome","url":"http://x/f/3.ndjson"}]`, partErrors},
		{"http://x/fhir/$export", whole + `,"link":[{"relation":"next","url":"http://x/2"}]`, partPages},
	}
	for _, test := range tests {
		dir := folder(t, map[string]string{"1.ndjson": patient, "2.ndjson": deletion, "m.json": manifestOf(test.request, test.rest)})
		e, err := Find([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		if e.Part != test.want {
			t.Errorf("%s: got %q, want %q", test.request, e.Part, test.want)
		}
	}
}

// A Bundle of deletions deletes only where deletions are told: elsewhere it is a resource.
func TestBundleIsAResource(t *testing.T) {
	stored := strings.Replace(deletion, `"Bundle",`, `"Bundle","id":"b",`, 1)
	dir := folder(t, map[string]string{"Bundle.ndjson": stored + deletion, "deleted.ndjson": stored})
	e, err := Find([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"Bundle.ndjson:1 Bundle/b", "Bundle.ndjson:2 at byte 0: id is missing", "deleted.ndjson:1 deleted [Patient/p9]"}
	if d := cmp.Diff(want, said(t, e, dir)); d != "" {
		t.Error(d)
	}
}

// Faults name the line and what is wrong there, and repeat nothing of it.
func TestFaults(t *testing.T) {
	dir := folder(t, map[string]string{"a.ndjson": strings.Join([]string{
		`{"resourceType":"Patient","name":"canary"}`,
		`{"resourceType":"Canary","id":"canary"}`,
		`{"id":"canary"}`,
		`canary`,
		``,
		`{"resourceType":"Patient","id":"canary","meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}}`,
		`{"resourceType":"Patient","id":"canary"} {}`,
		`{"resourceType":"Patient","id":"p1"}`,
	}, "\n")})
	e, err := Find([]string{filepath.Join(dir, "a.ndjson")})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"a.ndjson:1 at byte 0: id is missing", "a.ndjson:2 at byte 16: resourceType is not a resource type of FHIR R4",
		"a.ndjson:3 at byte 0: resourceType is missing", "a.ndjson:4 at byte 0: not a JSON object",
		"a.ndjson:6 " + faultPart, "a.ndjson:7 at byte 41: something follows the document", "a.ndjson:8 Patient/p1",
	}
	if d := cmp.Diff(want, said(t, e, dir)); d != "" {
		t.Error(d)
	}
}

// Reading goes on at a mark, unless what lies before it is another; what lies behind it may be.
func TestMark(t *testing.T) {
	dir := folder(t, map[string]string{"a.ndjson": patient + "\n" + patient2 + device})
	f := &File{Name: "a.ndjson", Path: filepath.Join(dir, "a.ndjson")}
	after := func(m Mark) (got []string, marks []Mark) {
		err := f.Each(t.Context(), m, nil, func(i *Item) error {
			got, marks = append(got, i.Resource.Key.String()), append(marks, i.Behind)
			return nil
		})
		if err != nil {
			got = append(got, err.Error())
		}
		return got, marks
	}
	all, marks := after(Mark{})
	if d := cmp.Diff([]string{"Patient/p1", "Patient/p2", "Device/d1"}, all); d != "" {
		t.Fatal(d)
	}
	for i, m := range marks {
		if got, _ := after(m); cmp.Diff(all[i+1:], got) != "" && len(got)+i+1 != len(all) {
			t.Errorf("after %v: %q", m, got)
		}
	}
	for name, text := range map[string]string{"mended": patient + "\n" + patient2 + `{"resourceType":"Device","id":"d2"}`, "cut": patient, "other": patient2 + "\n" + patient + device} {
		if err := os.WriteFile(f.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		want := []string{"a.ndjson " + ErrChanged.Error()}
		if name == "mended" {
			want = []string{"Device/d2"}
		}
		if got, _ := after(marks[1]); cmp.Diff(want, got) != "" {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

// Data that end too early are an error, not an end.
func TestCutShort(t *testing.T) {
	var text strings.Builder
	for i := range uint32(20_000) {
		fmt.Fprintf(&text, `{"resourceType":"Patient","id":"%x"}`+"\n", i*2654435761)
	}
	for i, whole := range []string{zip(text.String()), zst(text.String()), zip(text.String()), zst(text.String())} {
		cut := len(whole) - 5
		if i > 1 { // in the midst of a line, too
			cut = len(whole) / 2
		}
		f := &File{Name: "a", Path: filepath.Join(folder(t, map[string]string{"a": whole[:cut]}), "a")}
		n := int64(0)
		err := f.Each(t.Context(), Mark{}, nil, func(i *Item) error {
			if n = i.Line; i.Fault != "" {
				t.Errorf("line %d, which the file has not as a whole: %s", n, i.Fault)
			}
			return nil
		})
		if want := fmt.Sprintf("a, behind line %d: its compressed data end too early: it was cut short, copy it again", n); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	f := &File{Name: "a", Path: filepath.Join(folder(t, map[string]string{"a": patient}), "a")}
	if _, err := Find([]string{os.DevNull}); err == nil || !strings.Contains(err.Error(), "neither a file nor a folder") {
		t.Errorf("got %v of what is no file", err)
	}
	stop := errors.New("stop")
	if err := f.Each(t.Context(), Mark{}, nil, func(*Item) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want what the caller said", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Each(ctx, Mark{}, nil, func(*Item) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
