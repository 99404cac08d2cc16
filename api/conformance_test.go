package api_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestConformance: every test that CONFORMANCE.md names is there.
func TestConformance(t *testing.T) {
	there := map[string]bool{}
	scripts, err := os.ReadDir("testdata/scripts")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scripts {
		there[s.Name()] = true
	}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("CONFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) < 3 {
			continue
		}
		for name := range strings.SplitSeq(cells[len(cells)-1], ",") {
			name = strings.TrimSpace(name)
			if slices.Contains([]string{"", "Test", "---"}, name) {
				continue
			}
			if named++; !there[name] {
				t.Errorf("no test %s: %s", name, line)
			}
		}
	}
	if named < 100 {
		t.Errorf("%d tests are named, want more: is the table read?", named)
	}
}
