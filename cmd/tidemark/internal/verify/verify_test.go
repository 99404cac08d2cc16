package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"tidemark/cmd/tidemark/internal/manifest"
)

// TestDamagesAreFound: of random exports under random names, each damage is a
// fault, and nothing but a damage is.
func TestDamagesAreFound(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 8))
		x := randomExport(rng)
		dir := t.TempDir()
		face := []string{"v3", "v4"}[rng.IntN(2)]
		pages := pagesOf(t, x, face)
		texts := map[string]string{}
		for _, e := range x {
			texts[e.name] = e.text()
		}
		download(t, rng, dir, texts)
		if got := report(t, pages, Options{Dir: dir}); !strings.HasSuffix(got, "\n0 faults\n") {
			t.Fatalf("seed %d: nothing is wrong, but it says\n%s", seed, got)
		}
		what := damage(rng, texts)
		dir = t.TempDir()
		download(t, rng, dir, texts)
		if got := report(t, pages, Options{Dir: dir, FilesOnly: rng.IntN(2) == 0}); strings.HasSuffix(got, "\n0 faults\n") || strings.Contains(got, canary) {
			t.Fatalf("seed %d, %s: it says\n%s", seed, what, got)
		}
	}
}

func pagesOf(t *testing.T, x export, face string) []*manifest.Manifest {
	t.Helper()
	m, err := manifest.Read([]byte(x.json(func(key string) bool { return key == face })))
	if err != nil {
		t.Fatal(err)
	}
	return []*manifest.Manifest{m}
}

func randomExport(rng *rand.Rand) (x export) {
	id := 0
	for i := range 1 + rng.IntN(6) {
		e := exported{list: output, kind: []string{"Patient", "Observation", "Bundle"}[rng.IntN(3)], name: fmt.Sprintf("%d.ndjson", i+1)}
		for range 1 + rng.IntN(30) {
			id++
			e.lines = append(e.lines, fmt.Sprintf(`{"resourceType":%q,"id":"%s-%d","x":%q}`, e.kind, canary, id, strings.Repeat("ä", rng.IntN(40))))
		}
		x = append(x, e)
	}
	e := exported{list: deleted, kind: "Bundle", name: "90.ndjson"}
	for range 1 + rng.IntN(10) {
		id++
		e.lines = append(e.lines, fmt.Sprintf(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/%s-%d"}}]}`, canary, id))
	}
	return append(x, e)
}

// download writes files as some client might.
func download(t *testing.T, rng *rand.Rand, dir string, texts map[string]string) {
	t.Helper()
	for i, name := range rng.Perm(len(texts)) {
		key := sorted(texts)[name]
		text := texts[key]
		path := []string{key, fmt.Sprintf("file.%03d.ndjson", i), filepath.Join(fmt.Sprint("sub", i%2), fmt.Sprintf("%d.Resource.ndjson", i))}[rng.IntN(3)]
		if rng.IntN(2) == 0 {
			path, text = path+".gz", zip(text, 1+rng.IntN(10))
		}
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func sorted(texts map[string]string) (names []string) {
	for name := range texts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// damage changes one file and says how.
func damage(rng *rand.Rand, texts map[string]string) string {
	name := sorted(texts)[rng.IntN(len(texts))]
	lines := strings.SplitAfter(texts[name], "\n")
	lines = lines[:len(lines)-1]
	n := rng.IntN(len(lines))
	switch rng.IntN(6) {
	case 0:
		b := []byte(texts[name])
		b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
		texts[name] = string(b)
		return "a byte"
	case 1:
		texts[name] = strings.Join(slices.Delete(lines, n, n+1), "")
		return "a missing line"
	case 2:
		texts[name] = strings.Join(slices.Insert(lines, rng.IntN(len(lines)+1), lines[n]), "")
		return "a doubled line"
	case 3:
		texts[name] = texts[name][:rng.IntN(len(texts[name])-1)] // all but a newline: then nothing is lost
		return "cut short"
	case 4:
		delete(texts, name)
		return "a missing file"
	}
	lines[n] = strings.Replace(lines[n], "canary-", "canary-0", 1)
	texts[name] = strings.Join(lines, "")
	return "another id"
}

// Files that a client has joined are known by what they were joined of, in the
// manifest's order or in that of names.
func TestJoined(t *testing.T) {
	var x export
	for i := range 12 {
		e := exported{list: output, kind: "Observation", name: fmt.Sprintf("%d.ndjson", i+1)}
		for n := range 1 + i%3 {
			e.lines = append(e.lines, fmt.Sprintf(`{"resourceType":"Observation","id":"%s-%d-%d"}`, canary, i, n))
		}
		x = append(x, e)
	}
	byName := slices.Clone(x)
	slices.SortFunc(byName, func(a, b exported) int { return strings.Compare(a.name, b.name) })
	for _, order := range []export{x, byName} {
		for _, face := range []string{"v3", "v4", "sizes", "counts"} {
			dir := t.TempDir()
			write := func(name string, parts export) {
				text := ""
				for _, e := range parts {
					text += e.text()
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("Observation.ndjson", order[:8])
			write("rest.ndjson", order[8:])
			got := report(t, pagesOf(t, x, face), Options{Dir: dir})
			if !strings.HasSuffix(got, "\n0 faults\n") || !strings.Contains(got, "12 files in the manifest; ") || !strings.Contains(got, "\n12 files ") {
				t.Errorf("%s: it says\n%s", face, got)
			}
			write("rest.ndjson", append(order[8:11:11], exported{lines: order[11].lines[1:]}))
			if got := report(t, pagesOf(t, x, face), Options{Dir: dir}); strings.HasSuffix(got, "\n0 faults\n") {
				t.Errorf("%s: it says\n%s", face, got)
			}
		}
	}
}

func TestAfter(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 8))
	for range 200 {
		b := make([]byte, rng.IntN(5000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		cut := rng.IntN(len(b) + 1)
		var first, second, whole manifest.Tally
		first.Add(b[:cut])
		second.Add(b[cut:])
		whole.Add(b)
		if got := after(first.CRC, second.CRC, second.Bytes); got != whole.CRC {
			t.Fatalf("%d bytes after %d: got %08x, want %08x", len(b)-cut, cut, got, whole.CRC)
		}
	}
}

func TestOneByte(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 8))
	named := 0
	for i := range 400 {
		b := make([]byte, 1+rng.IntN(1<<20))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		right := crc32.ChecksumIEEE(b)
		at, flip := rng.IntN(len(b)), byte(1)<<(i/2%8)
		if i%2 == 0 {
			flip = byte(1 + rng.IntN(255))
		}
		b[at] ^= flip
		got, changed, ok := oneByte(crc32.ChecksumIEEE(b)^right, int64(len(b)))
		if ok {
			named++
		}
		if right := got == int64(at) && changed == onesOf(flip); ok && !right || !ok && i%2 == 1 {
			t.Errorf("%d of %d bytes ^ %x: got byte %d with %d bits, %v", at, len(b), flip, got, changed, ok)
		}
	}
	// Where another byte would do as well, none is named: so it is of some.
	if named < 380 || named == 400 {
		t.Errorf("of 400 changed bytes %d are named", named)
	}
	for name, n := range map[string]int64{"too large": 1 << 30, "no difference": 100} {
		diff := uint32(1)
		if n == 100 {
			diff = 0
		}
		if _, _, ok := oneByte(diff, n); ok {
			t.Errorf("%s: a byte is named", name)
		}
	}
	// In many bytes chance would find a byte nearly always, a bit hardly.
	if _, bits, ok := oneByte(0x12345678, 8<<20); ok && bits != 1 {
		t.Errorf("in 8 MiB a byte with %d bits is named", bits)
	}
}

func onesOf(b byte) (n int) {
	for ; b > 0; b >>= 1 {
		n += int(b & 1)
	}
	return n
}

// Many resources that stand twice are counted, and a few of them named.
func TestManyDoubles(t *testing.T) {
	var lines []string
	for i := range 3000 {
		lines = append(lines, fmt.Sprintf(`{"resourceType":"Patient","id":"%s-%d"}`, canary, i))
	}
	x := export{{output, "Patient", "1.ndjson", lines}, {output, "Patient", "2.ndjson", append(lines[:2500:2500], lines[:10]...)}}
	dir := t.TempDir()
	for _, e := range x {
		if err := os.WriteFile(filepath.Join(dir, e.name), []byte(e.text()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := report(t, pagesOf(t, x, "v3"), Options{Dir: dir})
	for _, want := range []string{"FAULT 2,500 resources are in output more than once\n", "Patient: 1.ndjson line ", ", 2.ndjson line ", " (the same)\n", "and 2,490 more\n", "\n1 fault\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
}

// A line longer than a buffer is read whole; one that is longer than memory
// should have to hold ends its file.
func TestLongLines(t *testing.T) {
	dir := t.TempDir()
	line := fmt.Sprintf(`{"resourceType":"Binary","id":"%s","data":%q}`, canary, strings.Repeat("a", 1<<20))
	opts := Options{Dir: dir, maxLine: 2 << 20}
	x := export{{output, "Binary", "1.ndjson", []string{line, strings.Replace(line, canary, canary+"2", 1)}}}
	path := filepath.Join(dir, "1.ndjson")
	if err := os.WriteFile(path, []byte(x[0].text()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := report(t, pagesOf(t, x, "v3"), opts); !strings.HasSuffix(got, "\n0 faults\n") {
		t.Errorf("it says\n%s", got)
	}
	if err := os.WriteFile(path, []byte(line+"\n"+strings.Repeat("a", 3<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := report(t, pagesOf(t, x, "v3"), opts); !strings.Contains(got, "line 2 is longer than 2 MiB") {
		t.Errorf("it says\n%s", got)
	}
}

// Names that clients or servers have chosen cannot act on a terminal.
func TestNamesAreQuoted(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a\x1b[2J.ndjson"), []byte("{}\n"), 0o600); err != nil {
		t.Skip(err) // not every file system takes it
	}
	m, err := manifest.Read([]byte(`{"transactionTime":"2026-01-03T08:15:03Z","output":[{"type":"\u001b[2J","url":"https://example.org/%1b%5b2J","count":3}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := report(t, []*manifest.Manifest{m}, Options{Dir: dir}); strings.Contains(got, "\x1b") || !strings.Contains(got, `\x1b`) {
		t.Errorf("it says\n%q", got)
	}
}

// What cannot be read is a fault of its own.
func TestUnreadable(t *testing.T) {
	x := example()
	if _, err := Run(t.Context(), pagesOf(t, x, "v3"), Options{Dir: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a folder that does not exist is none")
	}
	dir := t.TempDir()
	damaged := []byte(zip(x[0].text(), 10))
	copy(damaged[20:], "no deflate")
	if err := os.WriteFile(filepath.Join(dir, "1.ndjson.gz"), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := []byte(zip(x[1].text(), 10))
	sum[len(sum)-8] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "2.ndjson.gz"), sum, 0o600); err != nil {
		t.Fatal(err)
	}
	got := report(t, pagesOf(t, x[:2], "v3"), Options{Dir: dir})
	for _, want := range []string{"its gzip data are damaged\n", "their own checksum does not hold\n", "\n2 faults\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
}

// What a line is does not depend on who reads it.
func FuzzLine(f *testing.F) {
	for _, line := range []string{
		`{"resourceType":"Patient","id":"a"}`, ` { "id" : "\u0061" , "resourceType" : "Bundle","type":"transaction"} `, `[]`, `{}{}`, `{"a":"\ud800"}`, `{"id":1}`, "{\"a\":\"\xff\"}",
		`{"id":"a","id":"b"}`, `{"a":[{"id":"c"}]}`, `{"a":1`, ``, `nul`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		got, err := newReader().read(line)
		shape := bytes.TrimLeft(line, " \t\r\n")
		want := utf8.Valid(line) && json.Valid(line) && shape[0] == '{'
		if (err == nil) != want {
			t.Fatalf("%q: error %v, want a right line: %v", line, err, want)
		}
		if err != nil {
			return
		}
		var other map[string]json.RawMessage
		if err := json.Unmarshal(line, &other); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{"resourceType": got.kind, "id": got.id} {
			var said string
			if json.Unmarshal(other[name], &said) == nil && said != string(text) && !strings.Contains(said, "\ufffd") {
				t.Errorf("%q: %s is %q, want %q", line, name, text, said)
			}
		}
	})
}
