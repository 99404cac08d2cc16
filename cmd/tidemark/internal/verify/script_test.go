package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/klauspost/compress/gzip"

	"tidemark/cmd/tidemark/internal/manifest"
)

// canary is in every id and body of the scripts' exports.
const canary = "canary"

// TestScripts plays what happens to downloads, and what is said of them.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		f := &folder{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "export" {
				*f = folder{dir: t.TempDir()}
			}
			f.t, f.args = t, d
			do := commands[d.Cmd]
			if do == nil {
				d.Fatalf(t, "no such command: %s", d.Cmd)
			}
			return do(f)
		})
	})
}

// A folder is a download that a script damages.
type folder struct {
	t     *testing.T
	args  *datadriven.TestData
	dir   string
	pages []*manifest.Manifest
}

var commands = map[string]func(*folder) string{
	// export downloads a new export; what its manifest tells besides is given by
	// v4, counts (no bytes and checksums), sizes (no checksums), types (nothing).
	"export": func(f *folder) string {
		f.pages = f.read(example().json(f.has))
		for name, text := range example().files() {
			f.write(name, text)
		}
		return ""
	},
	// manifest gives another one, page by page.
	"manifest": func(f *folder) string {
		f.pages = nil
		for line := range strings.Lines(f.args.Input) {
			f.pages = append(f.pages, f.read(line)...)
		}
		return ""
	},
	"write":  func(f *folder) string { f.write(f.arg("file"), f.args.Input+"\n"); return "" },
	"remove": func(f *folder) string { f.check(os.Remove(f.path(f.arg("file")))); return "" },
	"rename": func(f *folder) string {
		text := f.text(f.arg("file"))
		f.check(os.Remove(f.path(f.arg("file"))))
		f.write(f.arg("to"), text)
		return ""
	},
	"copy": func(f *folder) string { f.write(f.arg("to"), f.text(f.arg("file"))); return "" },
	// append joins files.
	"append": func(f *folder) string {
		f.write(f.arg("file"), f.text(f.arg("file"))+f.text(f.arg("from")))
		return ""
	},
	// gzip compresses a file, each so many lines to a member of their own.
	"gzip": func(f *folder) string {
		name, n := f.arg("file"), 1<<30
		if f.has("lines") {
			f.args.ScanArgs(f.t, "lines", &n)
		}
		text := f.text(name)
		f.check(os.Remove(f.path(name)))
		f.write(name+".gz", zip(text, n))
		return ""
	},
	"flip": func(f *folder) string {
		var at, bit int
		f.args.ScanArgs(f.t, "byte", &at)
		f.args.ScanArgs(f.t, "bit", &bit)
		b := []byte(f.text(f.arg("file")))
		b[at-1] ^= 1 << bit
		f.write(f.arg("file"), string(b))
		return ""
	},
	"cut": func(f *folder) string {
		var n int
		f.args.ScanArgs(f.t, "bytes", &n)
		text := f.text(f.arg("file"))
		f.write(f.arg("file"), text[:len(text)-n])
		return ""
	},
	"drop": func(f *folder) string {
		return f.lines(func(lines []string, n int) []string { return append(lines[:n-1:n-1], lines[n:]...) })
	},
	"double": func(f *folder) string {
		return f.lines(func(lines []string, n int) []string {
			to := n + 1
			if f.has("to") {
				f.args.ScanArgs(f.t, "to", &to)
			}
			return append(lines[:to-1:to-1], append([]string{lines[n-1]}, lines[to-1:]...)...)
		})
	},
	"replace": func(f *folder) string {
		old, text := f.arg("old"), f.text(f.arg("file"))
		if !strings.Contains(text, old) {
			f.t.Fatalf("there is no %q", old)
		}
		f.write(f.arg("file"), strings.Replace(text, old, f.arg("new"), 1))
		return ""
	},
	// form changes nothing but the form.
	"form": func(f *folder) string {
		text := f.text(f.arg("file"))
		if f.has("blank") {
			text = strings.Replace(text, "\n", "\n \n", 1)
		}
		if f.has("crlf") {
			text = strings.ReplaceAll(text, "\n", "\r\n")
		}
		if f.has("open") {
			text = strings.TrimRight(text, "\r\n")
		}
		if f.has("bom") {
			text = "\ufeff" + text
		}
		f.write(f.arg("file"), text)
		return ""
	},
	"verify": func(f *folder) string {
		said := report(f.t, f.pages, Options{Dir: f.dir, Show: f.has("show"), FilesOnly: f.has("files-only")})
		if strings.Contains(said, canary) && !f.has("show") {
			f.t.Errorf("what must not be shown is shown:\n%s", said)
		}
		return said
	},
}

func report(t *testing.T, pages []*manifest.Manifest, opts Options) string {
	t.Helper()
	r, err := Run(t.Context(), pages, opts)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if _, err := r.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "%s\n", plural(int64(r.Faults()), "fault"))
	return out.String()
}

func (f *folder) has(key string) bool { return f.args.HasArg(key) }

func (f *folder) arg(key string) (value string) {
	f.args.ScanArgs(f.t, key, &value)
	return value
}

func (f *folder) check(err error) {
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, filepath.FromSlash(name)) }

func (f *folder) text(name string) string {
	b, err := os.ReadFile(f.path(name))
	f.check(err)
	return string(b)
}

func (f *folder) write(name, text string) {
	f.check(os.MkdirAll(filepath.Dir(f.path(name)), 0o700))
	f.check(os.WriteFile(f.path(name), []byte(text), 0o600))
}

func (f *folder) lines(change func([]string, int) []string) string {
	var n int
	f.args.ScanArgs(f.t, "line", &n)
	lines := strings.SplitAfter(f.text(f.arg("file")), "\n")
	f.write(f.arg("file"), strings.Join(change(lines[:len(lines)-1], n), ""))
	return ""
}

func (f *folder) read(text string) []*manifest.Manifest {
	m, err := manifest.Read([]byte(text))
	f.check(err)
	return []*manifest.Manifest{m}
}

// zip compresses, each so many lines to a member of their own.
func zip(text string, lines int) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	n := 0
	for line := range strings.Lines(text) {
		if n++; n > lines {
			w.Close()
			w.Reset(&b)
			n = 1
		}
		io.WriteString(w, line)
	}
	w.Close()
	return b.String()
}

// An export is what a server would give.
type export []exported

type exported struct {
	list, kind, name string
	lines            []string
}

func example() export {
	line := func(kind, id string) string {
		return fmt.Sprintf(`{"resourceType":%q,"id":"%s-%s","note":[{"text":"canary %s"}]}`, kind, canary, id, strings.Repeat(id, 7))
	}
	gone := func(key string) string {
		return fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":%q}}]}`, key)
	}
	return export{
		{output, "Patient", "1.ndjson", []string{line("Patient", "p1"), line("Patient", "p2"), line("Patient", "p3")}},
		{output, "Observation", "2.ndjson", []string{line("Observation", "o1"), line("Observation", "o2"), line("Observation", "o3"), line("Observation", "o4")}},
		{output, "Observation", "3.ndjson", []string{line("Observation", "o5"), line("Observation", "o60"), line("Observation", "o7")}},
		{deleted, "Bundle", "4.ndjson", []string{gone("Observation/canary-o8"), gone("Patient/canary-p4")}},
		{outcomes, "OperationOutcome", "5.ndjson", []string{`{"resourceType":"OperationOutcome","issue":[{"diagnostics":"canary"}]}`}},
	}
}

func (e exported) text() string { return strings.Join(e.lines, "\n") + "\n" }

func (x export) files() map[string]string {
	files := map[string]string{}
	for _, e := range x {
		files[e.name] = e.text()
	}
	return files
}

// json is the manifest, with what it is asked for.
func (x export) json(has func(string) bool) string {
	lists := map[string][]any{}
	for _, e := range x {
		text := e.text()
		f := map[string]any{"url": "https://example.org/fhir/export/secret/" + e.name + "?sig=secret", "type": e.kind, "count": len(e.lines)}
		crc := fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(text)))
		known := map[string]any{"tidemark-bytes": len(text), "tidemark-crc32": crc}
		switch {
		case has("types"):
			delete(f, "count")
			known = nil
		case has("counts"):
			known = nil
		case has("sizes"):
			delete(known, "tidemark-crc32")
		case has("v4"):
			f["fileSize"] = len(text)
			f["extension"] = []any{map[string]any{"url": "https://example.org/StructureDefinition/tidemark-crc32", "valueString": crc}}
			if e.list != output {
				delete(f, "type")
			}
		}
		if known != nil && !has("v4") {
			f["extension"] = known
		}
		name := map[string]string{output: "output", deleted: "deleted", outcomes: "error"}[e.list]
		if has("v4") && e.list == outcomes {
			name = "outcome"
		}
		lists[name] = append(lists[name], f)
	}
	m := map[string]any{"transactionTime": "2026-01-03T08:15:03.412Z", "requiresAccessToken": false}
	for name, list := range lists {
		m[name] = list
	}
	if !has("v4") {
		m["request"] = path.Join("https://example.org/fhir/$export")
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}
