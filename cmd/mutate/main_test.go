package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	list, err := parse(strings.NewReader(`# what must be noticed

sum-off-by-one
# why
file sum.go
-return a + b
+return a - b
test . ./other -run Sum

nothing-left
file sum.go
-	b++
+
test .
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []mutation{
		{name: "sum-off-by-one", line: 3, file: "sum.go", old: "return a + b", new: "return a - b", test: []string{".", "./other", "-run", "Sum"}},
		{name: "nothing-left", line: 10, file: "sum.go", old: "b++", test: []string{"."}},
	}
	if d := cmp.Diff(want, list, cmp.AllowUnexported(mutation{})); d != "" {
		t.Error(d)
	}
}

func TestParseFaults(t *testing.T) {
	_, err := parse(strings.NewReader("a\nfile x\n\nb\nfile x\nfile y\n-a\n+b\ntest .\n\nb\nfile x\n-a\n+a\ntest .\nnonsense\n"))
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"line 1: a needs", `line 6: "file y"`, "line 11: b is there twice", `line 16: "nonsense"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q in it", err, want)
		}
	}
}

func TestApply(t *testing.T) {
	m := mutation{file: "f.go", old: "b()", new: "c()"}
	if got, err := m.apply("a()\n\t\tb()\nb() // other\n"); err != nil || got != "a()\n\t\tc()\nb() // other\n" {
		t.Errorf("got %q, error %v", got, err)
	}
	for _, source := range []string{"", "a()\n", "b()\n\tb()\n"} {
		if _, err := m.apply(source); err == nil {
			t.Errorf("%q: got no error", source)
		}
	}
}

// A little module whose test notices one break and misses another.
func TestRun(t *testing.T) {
	module := t.TempDir()
	t.Chdir(module)
	files := map[string]string{
		"go.mod":           "module example\n\ngo 1.26\n",
		"sum.go":           "package example\n\nfunc sum(a, b int) int {\n\tif a == 1000 {\n\t\treturn 0\n\t}\n\treturn a + b\n}\n",
		"sum_test.go":      "package example\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tif sum(1, 2) != 3 {\n\t\tt.Error(1)\n\t}\n}\n",
		"data/never.go":    "package broken because it is not copied",
		".cache/never.go":  "the same",
		"testdata/any.txt": "copied",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const noticed = "noticed\nfile sum.go\n-return a + b\n+return a * b\ntest .\n\n"
	tests := []struct {
		name, list string
		want       []string
		fails      bool
	}{
		{"noticed", noticed, []string{"noticed by TestSum", "1 breaks, 1 noticed"}, false},
		{"survivor", noticed + "missed\nfile sum.go\n-return 0\n+return 1\ntest .\n", []string{"noticed by TestSum", "SURVIVED", "2 breaks, 1 noticed"}, true},
		{"outgrown", "gone\nfile sum.go\n-return c\n+return d\ntest .\n", []string{"BAD ENTRY", "no line is"}, true},
		{"does not compile", "rubbish\nfile sum.go\n-return a + b\n+return x\ntest .\n", []string{"BAD ENTRY", "does not compile"}, true},
		{"runs no test", "idle\nfile sum.go\n-return a + b\n+return b\ntest . -run Nothing\n", []string{"runs no test"}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			list := filepath.Join(t.TempDir(), "list")
			if err := os.WriteFile(list, []byte(test.list), 0o600); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			err := run(t.Context(), []string{list}, &out)
			got := out.String()
			if err != nil {
				got += err.Error()
			}
			if (err != nil) != test.fails {
				t.Errorf("got error %v, want one: %v", err, test.fails)
			}
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("got %q, want %q in it", got, want)
				}
			}
			if source, err := os.ReadFile("sum.go"); err != nil || string(source) != files["sum.go"] {
				t.Errorf("the tree itself was changed: %s, %v", source, err)
			}
		})
	}
}

// TestTheListIsOfThisCode: every break in the project's list still has its line.
// Whether a test notices it takes hours to find out (make mutate), but a line
// that was rewritten is a break that nobody tries any more.
func TestTheListIsOfThisCode(t *testing.T) {
	text, err := os.Open("../../testdata/mutations.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	list, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		source, err := os.ReadFile(filepath.Join("../..", m.file))
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		if _, err := m.apply(string(source)); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
