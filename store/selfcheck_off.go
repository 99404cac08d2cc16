//go:build !invariants

package store

const selfChecking = false

// selfCheck proves the store's invariants when built with the tag invariants.
func (db *DB) selfCheck() error { return nil }
