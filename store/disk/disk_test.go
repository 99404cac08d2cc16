package disk

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"
)

// TestTrace fixes the order of what reaches the disk.
func TestTrace(t *testing.T) {
	var got []string
	fs := vfs.WithLogging(vfs.NewMem(), func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		for _, op := range []string{"create", "sync", "close", "rename", "mkdir-all", "open-dir"} {
			if strings.HasPrefix(line, op) {
				got = append(got, line)
			}
		}
	})
	if err := errors.Join(MakeDir(fs, "a/b"), Replace(fs, "a/b", "file", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"mkdir-all: a 0700", "open-dir: .", "sync: .", "close: .",
		"mkdir-all: a/b 0700", "open-dir: a", "sync: a", "close: a",
		"create: a/b/file.new", "sync: a/b/file.new", "close: a/b/file.new", "rename: a/b/file.new -> a/b/file",
		"open-dir: a/b", "sync: a/b", "close: a/b",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestCrash: at whatever write the machine stops, a file is the one before or the one
// that was being written, as a whole, and that one for good once Replace has returned.
func TestCrash(t *testing.T) {
	texts := []string{"", strings.Repeat("first ", 1000), "second", strings.Repeat("third ", 2000)}
	for _, percent := range []int{0, 50, 100} {
		mem := vfs.NewCrashableMem()
		type moment struct {
			fs   *vfs.MemFS
			done int // texts that were written
		}
		var moments []moment
		done := 0
		crash := func() {
			rng := rand.New(rand.NewPCG(1, uint64(len(moments))))
			moments = append(moments, moment{mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), done})
		}
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				crash()
			}
			return nil
		}))
		for _, text := range texts[1:] {
			if err := errors.Join(MakeDir(fs, "a/b"), Replace(fs, "a/b", "file", []byte(text))); err != nil {
				t.Fatal(err)
			}
			done++
			crash()
		}
		for i, m := range moments {
			if err := Tidy(m.fs, "a/b"); err != nil {
				t.Fatal(err)
			}
			names, _ := m.fs.List("a/b") // there may be none yet
			got, err := Read(m.fs, "a/b/file")
			if err != nil && (m.done > 0 || !errors.Is(err, os.ErrNotExist)) {
				t.Errorf("%d %%, write %d, after %d files: %v", percent, i, m.done, err)
			} else if string(got) != texts[m.done] && string(got) != texts[min(m.done+1, done)] {
				t.Errorf("%d %%, write %d, after %d files: %d bytes", percent, i, m.done, len(got))
			}
			if slices.ContainsFunc(names, func(n string) bool { return n != "file" }) {
				t.Errorf("%d %%, write %d: %q are left", percent, i, names)
			}
		}
	}
}

// TestFaults: whatever fails before the file has its name, the one before stays and
// nothing is left beside it.
func TestFaults(t *testing.T) {
	full := errors.New("full")
	for _, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpRename} {
		mem := vfs.NewMem()
		if err := Replace(mem, "", "file", []byte("before")); err != nil {
			t.Fatal(err)
		}
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == kind {
				return full
			}
			return nil
		}))
		if err := Replace(fs, "", "file", []byte("after")); !errors.Is(err, full) {
			t.Errorf("%v: %v", kind, err)
		}
		names, err := mem.List("")
		text, err2 := Read(mem, "file")
		if err := errors.Join(err, err2); err != nil || string(text) != "before" || !slices.Equal(names, []string{"file"}) {
			t.Errorf("%v: %q in %q, %v", kind, text, names, err)
		}
	}
	fs, stop := vfs.NewMem(), errors.New("stop")
	if err := ReplaceBy(fs, "", "file", func(w io.Writer) error { _, _ = w.Write([]byte("half")); return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	if names, _ := fs.List(""); len(names) > 0 {
		t.Errorf("%q are left of what could not be written", names)
	}
}

// TestPrivate: only the owner may read what is written, although somebody left a draft
// or a file that all may read.
func TestPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := MakeDir(vfs.Default, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "file.new"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	perm := func(path string) os.FileMode {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode().Perm()
	}
	err := ReplaceBy(vfs.Default, dir, "file", func(w io.Writer) error {
		if p := perm(filepath.Join(dir, "file.new")); p != 0o600 {
			t.Errorf("it is written into a file of mode %o", p)
		}
		_, err := w.Write([]byte("x"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{filepath.Dir(dir): 0o700, dir: 0o700, filepath.Join(dir, "file"): 0o600} {
		if p := perm(path); p != want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(path), p, want)
		}
	}
}

// TestTidy removes drafts and nothing else, and wants no directory.
func TestTidy(t *testing.T) {
	fs := vfs.NewMem()
	made := errors.Join(MakeDir(fs, "dir.new"), Replace(fs, "", "news", nil), Replace(fs, "", "file.new", nil))
	if err := errors.Join(made, Tidy(fs, "none"), Tidy(fs, "")); err != nil {
		t.Fatal(err)
	}
	names, err := fs.List("")
	if slices.Sort(names); err != nil || !slices.Equal(names, []string{"dir.new", "news"}) {
		t.Errorf("%q, %v", names, err)
	}
}
