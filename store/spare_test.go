package store

import (
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
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
