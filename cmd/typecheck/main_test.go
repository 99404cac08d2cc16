package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// module writes a module into a folder of its own.
func module(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module example.org/app\n\ngo 1.26\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFaults: what is wrong on one system is found there, and nowhere else.
func TestFaults(t *testing.T) {
	const program = "package main\n\nimport \"example.org/app/disk\"\n\nfunc main() { var n uint64 = disk.Free(); println(n) }\n"
	const unix = "package disk\n\nimport \"syscall\"\n\nfunc Free() uint64 {\n\tvar s syscall.Statfs_t\n\t_ = syscall.Statfs(\".\", &s)\n\treturn s.Bavail\n}\n"
	for _, c := range []struct {
		name   string
		files  map[string]string
		system string
		want   string // "": all is right
	}{
		{"right", map[string]string{"main.go": program, "disk/disk_linux.go": unix}, "linux/arm64", ""},
		{"no files", map[string]string{"main.go": program, "disk/disk_linux.go": unix}, "darwin/arm64", "build constraints exclude all Go files"},
		{"not there", map[string]string{"main.go": program, "disk/disk.go": unix}, "windows/amd64", "undefined: syscall.Statfs_t"},
		{"another signature", map[string]string{
			"main.go": program, "disk/disk_linux.go": unix, "disk/disk_windows.go": "package disk\n\nfunc Free() (uint64, error) { return 0, nil }\n",
		}, "windows/amd64", "main.go:5"},
		{"an import too many", map[string]string{
			"main.go": program, "disk/disk_windows.go": "package disk\n\nimport \"os\"\n\nfunc Free() uint64 { return 0 }\n",
		}, "windows/amd64", `"os" imported and not used`},
		{"no Go", map[string]string{"main.go": program, "disk/disk.go": "package disk\n\nfunc Free() {\n"}, "linux/arm64", "expected '}'"},
		{"another size", map[string]string{"main.go": "package main\n\nimport \"unsafe\"\n\nvar _ [8]byte = [unsafe.Sizeof(0)]byte{}\n\nfunc main() {}\n"}, "linux/arm", "cannot use"},
		{"nobody's", map[string]string{"main.go": program}, "linux", "is no system"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			err := run(t.Context(), module(t, c.files), []string{c.system}, &out)
			switch {
			case c.want == "" && (err != nil || !strings.Contains(out.String(), "packages are right")):
				t.Errorf("%v, %q", err, &out)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}
