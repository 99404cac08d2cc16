package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sync/semaphore"

	"tidemark/store/fhir"
)

// secret stands for the id of a job, which opens its files.
const secret = "5ec4e7"

// A job is a durable snapshot with more blocks to cut than are cut at a time.
type job struct {
	t    *testing.T
	db   *DB
	mem  *vfs.MemFS
	fail atomic.Pointer[errorfs.OpKind] // such operations on its private files fail
	each func(errorfs.OpKind)           // is told of the operations on them
	s    *Snapshot
	ext  []Extent
}

func newJob(t *testing.T) *job {
	j := &job{t: t, mem: vfs.NewMem()}
	j.open()
	t.Cleanup(func() { _ = j.db.Close() })
	f := newFeed(t, j.db)
	for i := range 4*runtime.GOMAXPROCS(0) + 2 {
		f.commit(patientChange("changing", fhir.None, fmt.Sprint(i)), patientChange(fmt.Sprint(i), fhir.None, "x"))
	}
	for j.db.watermarkNow() < f.lastInstant() {
		time.Sleep(time.Millisecond)
		f.apply()
	}
	j.s = pinNow(t, j.db, secret)
	var err error
	if j.ext, err = j.s.Extents(patients, fhir.None, j.s.Watermark()); err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *job) open() {
	disk := errorfs.Wrap(j.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !strings.Contains(op.Path, secret) {
			return nil
		}
		if j.each != nil {
			j.each(op.Kind)
		}
		if k := j.fail.Load(); k != nil && op.Kind == *k {
			return &fs.PathError{Op: "test", Path: op.Path, Err: syscall.ENOSPC}
		}
		return nil
	}))
	j.db = mustOpen(j.t, "store", Options{FS: disk, Allowance: time.Millisecond})
}

func (j *job) file(ctx context.Context) (*File, error) {
	return j.s.File(ctx, "f", patients, fhir.None, j.s.Watermark(), j.ext)
}

// failing lets do fail and looks for the secret in what it says.
func (j *job) failing(what string, kind errorfs.OpKind, do func() error) error {
	j.t.Helper()
	j.fail.Store(&kind)
	defer j.fail.Store(nil)
	err := do()
	if err == nil || strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
		j.t.Errorf("%s: %v", what, err)
	}
	return err
}

// TestErrorsHoldNoIDs: whatever is wrong with the private files of a snapshot is
// told without its id; what cannot be written now is asked for again.
func TestErrorsHoldNoIDs(t *testing.T) {
	j := newJob(t)
	for _, kind := range []errorfs.OpKind{errorfs.OpMkdirAll, errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpRename} {
		if err := j.failing("cut", kind, func() error { _, err := j.file(t.Context()); return err }); !errors.Is(err, ErrNoRoom) {
			t.Errorf("operation %d: %v", kind, err)
		}
	}
	file, err := j.file(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write := map[string]func() error{
		"gzip":     func() error { return file.WriteGzip(io.Discard, 0, file.GzipSize()) },
		"identity": func() error { return file.WriteIdentity(io.Discard, 0, file.Size()) },
	}
	for what, do := range write {
		_ = file.Close() // forgets what is open
		_ = j.failing(what, errorfs.OpOpen, do)
		_ = j.failing(what, errorfs.OpFileReadAt, do)
		if err := do(); err != nil {
			t.Errorf("%s, with nothing wrong: %v", what, err)
		}
	}
	_ = file.Close()

	path := j.mem.PathJoin(j.db.privateDir(secret), "f.cut")
	damage(t, j.mem, path)
	write["damaged"] = func() error { _, err := j.file(t.Context()); return err }
	for what, do := range write {
		_ = j.failing(what, errorfs.OpLock, do) // is never done to them: the damage is enough
	}
	if err := errors.Join(file.Close(), j.s.Close()); err != nil {
		t.Error(err)
	}
	_ = j.failing("revoke", errorfs.OpRemoveAll, func() error { _, err := j.db.revoke(j.db.pins[secret].segs); return err })
	if err := j.db.Close(); err != nil {
		t.Fatal(err)
	}
	_ = j.failing("open", errorfs.OpRemoveAll, func() error { _, err := Open("store", Options{FS: j.db.o.FS, still: true}); return err })
	j.open()
	_ = j.failing("unpin", errorfs.OpRemoveAll, func() error { return j.db.Unpin(t.Context(), secret) })
}

// TestCutsOfClientsThatHaveGone: who waits for a private file, or for memory to
// make it, stops when its client goes, and leaves nothing behind.
func TestCutsOfClientsThatHaveGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJob(t)
		cutting := j.db.cutLock(j.s.of, "f")
		for what, busy := range map[string]struct {
			with *semaphore.Weighted
			all  int64
		}{"another request makes it": {cutting, 1}, "others fill the memory": {j.db.cutting, maxCutting}} {
			if err := busy.with.Acquire(t.Context(), busy.all); err != nil {
				t.Fatal(err)
			}
			ctx, leave := context.WithTimeout(t.Context(), time.Second)
			waited := make(chan error, 1)
			go func() { _, err := j.file(ctx); waited <- err }()
			time.Sleep(time.Minute)
			select {
			case err := <-waited:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v", what, err)
				}
			default:
				t.Errorf("%s: a client that has gone waits", what)
			}
			busy.with.Release(busy.all)
			synctest.Wait()
			leave()
			if left, _ := j.mem.List(j.db.privateDir(secret)); len(left) > 0 {
				t.Errorf("%s: %v is left", what, left)
			}
		}
		j.mustServe()
	})
}

// TestCutsAreEnded: once it is being made, a private file is ended without the
// client, whose next request needs it.
func TestCutsAreEnded(t *testing.T) {
	j := newJob(t)
	ctx, leave := context.WithCancel(t.Context())
	j.each = func(k errorfs.OpKind) {
		if k == errorfs.OpFileWrite {
			leave()
		}
	}
	if _, err := j.file(ctx); err != nil {
		t.Error(err)
	}
	if ctx.Err() == nil {
		t.Fatal("the client did not leave")
	}
}

// TestNoCutWithoutRoom: a private file takes nothing of what the reserve has
// given up, nor does it try a disk that takes no writes; one that is there is
// served.
func TestNoCutWithoutRoom(t *testing.T) {
	j := newJob(t)
	for what, none := range map[string]func(bool){
		"reserve": func(none bool) {
			j.db.reserve.mu.Lock()
			defer j.db.reserve.mu.Unlock()
			j.db.reserve.size, j.db.reserve.held = 1, !none
		},
		"read-only": func(none bool) { j.db.readOnly.Store(none) },
	} {
		none(true)
		if _, err := j.file(t.Context()); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%s: %v", what, err)
		}
		if left, _ := j.mem.List(j.db.privateDir(secret)); len(left) > 0 {
			t.Errorf("%s: %v was begun", what, left)
		}
		none(false)
	}
	j.mustServe()
	j.db.reserve.size, j.db.reserve.held = 1, false
	j.mustServe()
}

func (j *job) mustServe() {
	j.t.Helper()
	f, err := j.file(j.t.Context())
	if err != nil {
		j.t.Fatal(err)
	}
	if err := errors.Join(f.WriteIdentity(io.Discard, 0, f.Size()), f.Close()); err != nil {
		j.t.Error(err)
	}
}

// damage leaves of a file its first bytes, and those wrong.
func damage(t *testing.T, disk vfs.FS, path string) {
	t.Helper()
	f, err := disk.Create(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write([]byte("damaged"))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
