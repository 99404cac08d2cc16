//go:build invariants

package store

import (
	"math/rand/v2"

	"tidemark/store/check"
)

// selfChecking: this build proves what it does as it goes, at a multiple of the cost.
const selfChecking = true

// selfCheck proves the store's invariants after each commit and swap, or after one of
// selfCheckEach by chance. Called with commitMu held.
func (db *DB) selfCheck() error {
	if rand.N(selfCheckEach) > 0 {
		return nil
	}
	s := check.Store{FS: db.fs, Index: db.kv, Segments: db.segmentsDir()}
	_, err := s.Run()
	return err
}
