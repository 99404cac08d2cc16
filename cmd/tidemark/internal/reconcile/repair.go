package reconcile

import (
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
)

// Repairs walks through the lines that are to be sent, in the order of the files.
type Repairs struct {
	it *pebble.Iterator
	ok bool
}

// Repairs begins to walk.
func (s *Scratch) Repairs() (*Repairs, error) {
	it, err := s.kv.NewIter(space(spaceRepair))
	if err != nil {
		return nil, err
	}
	return &Repairs{it, it.First()}, nil
}

// Wants tells whether a line is to be sent. Lines are asked about in order, and of each
// file those of the one before were asked about.
func (r *Repairs) Wants(file uint32, line uint64) bool {
	for r.ok {
		f, l := r.place()
		if f == file && l == line {
			return true
		}
		if f > file || f == file && l > line {
			return false
		}
		r.ok = r.it.Next()
	}
	return false
}

// Has tells whether a file has lines to be sent that were not asked about.
func (r *Repairs) Has(file uint32) bool {
	for r.ok {
		f, _ := r.place()
		if f >= file {
			return f == file
		}
		r.ok = r.it.Next()
	}
	return false
}

func (r *Repairs) place() (file uint32, line uint64) {
	k := r.it.Key()[1:]
	return binary.BigEndian.Uint32(k), binary.BigEndian.Uint64(k[4:])
}

// Close ends the walk.
func (r *Repairs) Close() error { return errors.Join(r.it.Error(), r.it.Close()) }

// EachExtra calls fn for each resource that is to be deleted as of an instant.
func (s *Scratch) EachExtra(fn func(fhir.Key, fhir.Instant) error) error {
	return s.each(spaceExtra, func(k, at []byte) error {
		key, err := index.ParseRowKey(k)
		if err != nil {
			return err
		}
		return fn(key, fhir.Instant(binary.LittleEndian.Uint64(at)))
	})
}
