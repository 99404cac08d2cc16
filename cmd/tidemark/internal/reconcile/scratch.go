package reconcile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
)

// A Scratch sorts on the disk what does not fit into memory: it is a database that is
// never synced and goes when it is closed. It holds ids, so nobody else may look.
type Scratch struct {
	dir   string
	kv    *pebble.DB
	batch *pebble.Batch
	cache *pebble.Cache
}

// The spaces of keys.
const (
	spaceExport  = 'e' // RowKey, file, line → the rest of an Entry
	spaceContent = 'c' // RowKey → number of the row, hash of what the export says, Entry
	spaceRepair  = 'r' // file, line → nothing: a line to be sent
	spaceExtra   = 'x' // RowKey → instant: a resource to be deleted, and as of when
)

// batchBytes is how much is handed to the database at once.
const batchBytes = 4 << 20

// NewScratch makes one in a new folder below dir.
func NewScratch(dir string) (*Scratch, error) {
	folder, err := os.MkdirTemp(dir, "tidemark-reconcile-") // 0700
	if err != nil {
		return nil, fmt.Errorf("%w; --temp names a folder with room", err)
	}
	s := &Scratch{dir: folder, cache: pebble.NewCache(16 << 20)}
	s.kv, err = pebble.Open(folder, &pebble.Options{
		Cache: s.cache, DisableWAL: true, MemTableSize: 32 << 20, MemTableStopWritesThreshold: 3, L0CompactionThreshold: 4, Logger: silent{},
	})
	if err != nil {
		s.cache.Unref()
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	s.batch = s.kv.NewBatch()
	return s, nil
}

// silent drops what Pebble says: errors come back from its calls.
type silent struct{}

func (silent) Infof(string, ...any)  {}
func (silent) Errorf(string, ...any) {}
func (silent) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// Close removes all of it.
func (s *Scratch) Close() error {
	err := errors.Join(s.batch.Close(), s.kv.Close())
	s.cache.Unref()
	return errors.Join(err, os.RemoveAll(s.dir))
}

func (s *Scratch) set(k, v []byte) error {
	if err := s.batch.Set(k, v, nil); err != nil {
		return err
	}
	if s.batch.Len() < batchBytes {
		return nil
	}
	return s.flush()
}

// flush makes all that was set visible.
func (s *Scratch) flush() error {
	err := errors.Join(s.batch.Commit(pebble.NoSync), s.batch.Close())
	s.batch = s.kv.NewBatch()
	return err
}

// Add enters what the export says of a resource.
func (s *Scratch) Add(e *Entry) error {
	k := index.RowKey([]byte{spaceExport}, e.Key)
	return s.set(appendPlace(k, e), appendEntry(nil, e))
}

// placeLen is how long the place of a line is in a key.
const placeLen = 12

func appendPlace(k []byte, e *Entry) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(k, e.File), e.Line)
}

func appendEntry(b []byte, e *Entry) []byte {
	for _, v := range []uint64{uint64(e.Version), uint64(e.Updated), e.Hash, e.Canonical, uint64(flag(e.Gone) | flag(e.Refused)<<1)} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

const entryLen = 40

func readEntry(row, place, v []byte) (e Entry, err error) {
	if len(v) != entryLen || len(place) != placeLen {
		return e, errors.New("the sorted export is damaged: try again")
	}
	e.Key, err = index.ParseRowKey(row)
	e.File, e.Line = binary.BigEndian.Uint32(place), binary.BigEndian.Uint64(place[4:])
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(v[8*i:]) }
	e.Version, e.Updated, e.Hash, e.Canonical = int64(at(0)), fhir.Instant(at(1)), at(2), at(3)
	e.Gone, e.Refused = at(4)&1 != 0, at(4)&2 != 0
	return e, err
}

// space bounds the keys that begin with a byte.
func space(b byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{b}, UpperBound: []byte{b + 1}}
}

// An exported walks through what was added, resource by resource, sorted.
type exported struct {
	it    *pebble.Iterator
	ok    bool
	twice int64 // entries of resources that the export has more than once
}

func (s *Scratch) exported() (*exported, error) {
	if err := s.flush(); err != nil {
		return nil, err
	}
	it, err := s.kv.NewIter(space(spaceExport))
	if err != nil {
		return nil, err
	}
	return &exported{it: it, ok: it.First()}, nil
}

// row is the key of the next resource, as the store's index has it; nil: there is none.
func (x *exported) row() []byte {
	if !x.ok {
		return nil
	}
	k := x.it.Key()
	return k[1 : len(k)-placeLen]
}

// next takes the next resource. The entries of one stand together, for what follows a
// RowKey is of one length.
func (x *exported) next() (*Entry, error) {
	row := append([]byte(nil), x.row()...)
	var list []Entry
	for x.ok && string(x.row()) == string(row) {
		k := x.it.Key()
		e, err := readEntry(row, k[len(k)-placeLen:], x.it.Value())
		if err != nil {
			return nil, err
		}
		if list = append(list, e); len(list) > 1 {
			list = []Entry{*newest(list)}
			x.twice++
		}
		x.ok = x.it.Next()
	}
	return &list[0], x.it.Error()
}
