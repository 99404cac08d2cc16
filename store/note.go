package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/index"
)

// Remember keeps what intake wants to know again, such as the schema of records, under a
// name of its own. It is durable when Remember returns.
func (db *DB) Remember(name string, what []byte) error {
	if err := db.writable(); err != nil {
		return err
	}
	return db.whileOpen(func() error {
		if err := db.kv.Set(index.NoteKey(name), what, pebble.Sync); err != nil {
			return db.fail(fmt.Errorf("remember %s: %w", name, err))
		}
		return nil
	})
}

// Remembered is what Remember kept last under a name, nil if that is nothing.
func (db *DB) Remembered(name string) (what []byte, err error) {
	err = db.whileOpen(func() error {
		v, closer, err := db.kv.Get(index.NoteKey(name))
		switch {
		case errors.Is(err, pebble.ErrNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("look for %s: %w", name, err)
		}
		what = bytes.Clone(v)
		return closer.Close()
	})
	return what, err
}
