package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/index"
)

// Remember keeps what intake wants to know again, such as the schema of records, under a
// name of its own; nil takes it away. It is durable when Remember returns.
func (db *DB) Remember(name string, what []byte) error {
	if err := db.writable(); err != nil {
		return err
	}
	return db.whileOpen(func() error {
		b := db.kv.NewBatch()
		defer b.Close()
		w := batchWriter{b: b}
		w.note([]Note{{Name: name, Value: what}})
		if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
			return db.fail(fmt.Errorf("remember %s: %w", name, err))
		}
		return nil
	})
}

// Remembered is what Remember, or a batch that is taken in, said last under a name; nil if
// that is nothing.
func (db *DB) Remembered(name string) (what []byte, err error) {
	if what, known := db.noted(name); known {
		return what, nil
	}
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

// noted is what a batch says that is taken in and not yet durable.
func (db *DB) noted(name string) (what []byte, known bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if what, known = db.gather.notes[name]; !known && db.sealing != nil {
		what, known = db.sealing.notes[name]
	}
	return what, known
}

// EachRemembered calls fn for all that is remembered under names that begin so, in no
// order. fn must not keep what it is given.
func (db *DB) EachRemembered(prefix string, fn func(name string, what []byte) error) error {
	db.mu.Lock()
	pending := maps.Clone(db.gather.notes)
	if db.sealing != nil {
		pending = newest(db.sealing.notes, pending)
	}
	db.mu.Unlock()
	for name, what := range pending {
		if what == nil || !strings.HasPrefix(name, prefix) {
			continue
		}
		if err := fn(name, what); err != nil {
			return err
		}
	}
	return db.whileOpen(func() error {
		return index.Scan(db.kv, index.NotesFrom(prefix), func(k, what []byte) error {
			name := index.NoteName(k)
			if _, newer := pending[name]; newer {
				return nil
			}
			return fn(name, what)
		})
	})
}

// note keeps what a batch says until the commit that makes it true.
func (g *gathering) note(notes []Note) {
	if len(notes) > 0 && g.notes == nil {
		g.notes = make(map[string][]byte, len(notes))
	}
	for _, n := range notes {
		g.notes[n.Name] = n.Value
	}
}

// newest is what is said under each name, by the later one if both do.
func newest(earlier, later map[string][]byte) map[string][]byte {
	if len(earlier) == 0 {
		return later
	}
	all := maps.Clone(earlier)
	maps.Copy(all, later)
	return all
}

// noteOverhead is counted for each note beside its bytes, which two maps and a batch hold.
const noteOverhead = 200

func noteWeight(notes []Note) int64 {
	n := int64(len(notes)) * noteOverhead
	for i := range notes {
		n += int64(2*len(notes[i].Name) + len(notes[i].Value))
	}
	return n
}

func (w *batchWriter) note(notes []Note) {
	for _, n := range notes {
		if n.Value == nil {
			w.delete(index.NoteKey(n.Name))
			continue
		}
		w.set(index.NoteKey(n.Name), n.Value)
	}
}
