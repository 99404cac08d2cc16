package store

import (
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// A scarce disk says that so many bytes of it are free.
type scarce struct {
	vfs.FS
	free atomic.Uint64
}

func (s *scarce) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: s.free.Load()}, nil
}

// TestSpare: files that jobs write stop before intake has to, amid a file, too; what
// is stored goes on.
func TestSpare(t *testing.T) {
	disk := &scarce{FS: vfs.NewMem()}
	disk.free.Store(math.MaxInt64)
	db := mustOpen(t, "store", Options{FS: disk, Spare: 1000})
	defer db.Close()
	newFeed(t, db).commit(patientChange("a", fhir.None, "x"))
	s, err := db.Pin(t.Context(), "job", time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write := func() error {
		d, err := s.Draft("f1")
		if err != nil {
			return err
		}
		err = d.Add([]byte("{}\n"))
		disk.free.Add(^uint64(0)) // one byte less
		return errors.Join(err, d.Keep())
	}
	sort := func() error {
		f, err := s.Scratch("s1")
		if err != nil {
			return err
		}
		_, err = f.Write([]byte("x"))
		return errors.Join(err, f.Remove())
	}
	disk.free.Store(1001)
	for name, do := range map[string]func() error{"a file": write, "what is sorted": sort} {
		if err := do(); err != nil {
			t.Errorf("%s while there is room: %v", name, err)
		}
	}
	disk.free.Store(1000)
	if err := write(); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a file in which the room ends: %v", err)
	}
	disk.free.Store(999)
	for name, do := range map[string]func() error{"a file": write, "what is sorted": sort} {
		if err := do(); !errors.Is(err, ErrNoRoom) {
			t.Errorf("%s without room: %v", name, err)
		}
	}
	if err := db.roomToCut(); err != nil {
		t.Errorf("a cut, which is small: %v", err)
	}
}

// TestCopyLeavesRoom: copies of what snapshots hold leave intake its room, too. One for
// which there is none is not begun, one in which the room ends leaves nothing, and one
// that is there is not made again.
func TestCopyLeavesRoom(t *testing.T) { synctest.Test(t, copyLeavesRoom) }

func copyLeavesRoom(t *testing.T) {
	made := 0
	disk := &scarce{}
	disk.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.Contains(op.Path, ".made") && op.Kind == errorfs.OpCreate {
			made++
			disk.free.Add(^uint64(0)) // one byte less
		}
		return nil
	}))
	disk.free.Store(math.MaxInt64)
	db := mustOpen(t, "store", Options{FS: disk, Spare: 1000})
	defer db.Close()
	feed := newFeed(t, db)
	feed.commit(patientChange("a", fhir.None, "x"))
	feed.advance(time.Minute)
	sec := segment.Section{Kind: segment.Live, Type: patientType}
	s := pinOnly(t, db, "page", patientType)
	defer s.Close()
	ext, err := s.Extents(sec, fhir.None, s.Watermark())
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.File(t.Context(), "f1", sec, fhir.None, s.Watermark(), ext)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		free   int64
		ok     bool
		begins int // in all
	}{
		{1000 + f.GzipSize() - 1, false, 0},
		{1000 + f.blocks[0].stored, false, 0}, // header and trailer count
		{1000 + f.GzipSize(), true, 1},
		{0, true, 1},
	} {
		disk.free.Store(uint64(c.free))
		err := s.Copy(t.Context(), "f1", sec, fhir.None, s.Watermark(), ext)
		if ok := err == nil; ok != c.ok || !ok && !errors.Is(err, ErrNoRoom) || made != c.begins {
			t.Errorf("%d bytes are free: %v, %d copies were begun", c.free, err, made)
		}
	}
	disk.free.Store(1000 + uint64(f.blocks[0].stored))
	p, err := s.newPrivate("f2.made") // takes the byte
	if err != nil {
		t.Fatal(err)
	}
	if err := f.copyTo(p); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a copy in which the room ends: %v", err)
	}
	if err := p.discard(); err != nil {
		t.Error(err)
	}
}
