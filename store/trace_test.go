package store

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestTrace fixes, as golden text, what reaches the disk and in what order:
// moving a sync is a visible decision. A line of several steps says that they
// run side by side, in any order.
func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		fs := vfs.WithLogging(vfs.NewMem(), r.log)
		db := mustOpen(t, "store", Options{FS: fs})
		defer db.Close()
		f := newFeed(t, db)
		n := 0
		commit := func() { // one patient for good, one that the third next commit changes
			f.commit(patientChange(fmt.Sprintf("q%d", n), db.Now(), "x"), patientChange(fmt.Sprintf("p%d", n%3), db.Now(), fmt.Sprint("v", n)))
			n++
		}
		datadriven.RunTest(t, "testdata/trace", func(t *testing.T, d *datadriven.TestData) string {
			r.reset()
			switch d.Cmd {
			case "commit":
				commit()
			case "wait":
				time.Sleep(2 * time.Second)
				f.apply()
				return "ok\n"
			case "kick-off":
				if err := pinNow(t, db, "job").Close(); err != nil {
					t.Fatal(err)
				}
			case "file":
				s, err := db.Snapshot("job")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := content(s); err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			case "commits":
				for range 8 {
					commit()
				}
				return "ok\n"
			case "merge":
				if _, err := db.Merge(context.Background()); err != nil {
					t.Fatal(err)
				}
			case "unpin":
				if err := db.Unpin(context.Background(), "job"); err != nil {
					t.Fatal(err)
				}
			}
			return r.text()
		})
	})
}

// recorder keeps what makes bytes and names durable.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = nil
}

func (r *recorder) log(format string, args ...any) {
	op, rest, _ := strings.Cut(fmt.Sprintf(format, args...), ": ")
	file := strings.TrimPrefix(rest, "store/")
	switch path.Ext(file) {
	case ".log":
		if !strings.HasPrefix(op, "sync") {
			return // Pebble removes old ones when it gets to it
		}
		file = "index, the write-ahead log"
	case ".dir", ".gz":
		file = "segment " + strings.TrimLeft(path.Base(file), "0")
	}
	switch op {
	case "create", "sync", "sync-data", "rename", "remove", "remove-all":
	default:
		return
	}
	if strings.HasPrefix(file, "index/") {
		return // Pebble's own files
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, strings.TrimSuffix(op, "-data")+" "+file)
}

// text joins what happens to the two files of a segment between the first
// block and the folder's sync, which is in no order.
func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for i := 0; i < len(r.lines); {
		j := i
		for j < len(r.lines) && strings.Contains(r.lines[j], "segment ") && !strings.HasPrefix(r.lines[j], "remove") {
			j++
		}
		if j == i {
			out = append(out, r.lines[i])
			i++
			continue
		}
		side := slices.Clone(r.lines[i:j])
		slices.Sort(side)
		out = append(out, strings.Join(side, " | "))
		i = j
	}
	return strings.Join(out, "\n") + "\n"
}
