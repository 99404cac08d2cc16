package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/index"
)

// onces remember what counts once, such as the proof by which a client got a token.
type onces struct {
	mu    sync.Mutex // held while one is made durable: none is answered before
	until map[string]time.Time
	swept time.Time
}

// sweepOnces is how often what nobody can use any more is forgotten.
const sweepOnces = time.Minute

// Once tells whether nobody has said this before. It is durable when it returns, and
// remembered up to an instant at least, whatever happens to the process. ErrReadOnly
// while the disk takes no writes: what cannot be remembered must not count.
func (db *DB) Once(said []byte, until time.Time) (first bool, err error) {
	o := &db.onces
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.until[string(said)]; known {
		return false, nil
	}
	if err := db.writable(); err != nil {
		return false, err
	}
	err = db.whileOpen(func() error {
		b := db.kv.NewBatch()
		defer b.Close()
		w := batchWriter{b: b}
		o.sweep(&w, time.Now())
		w.set(index.OnceKey(said), binary.BigEndian.AppendUint64(nil, uint64(until.UnixMilli())))
		if err := errors.Join(w.err, b.Commit(pebble.Sync)); err != nil {
			return db.fail(fmt.Errorf("remember what counts once: %w", err))
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	o.until[string(said)] = until
	return true, nil
}

// sweep forgets what is over.
func (o *onces) sweep(w *batchWriter, now time.Time) {
	if now.Sub(o.swept) < sweepOnces {
		return
	}
	o.swept = now
	for said, until := range o.until {
		if now.After(until) {
			w.delete(index.OnceKey([]byte(said)))
			delete(o.until, said)
		}
	}
}

func (db *DB) loadOnces() error {
	db.onces.until = map[string]time.Time{}
	return index.Scan(db.kv, index.Onces(), func(k, v []byte) error {
		if len(v) != 8 {
			return fmt.Errorf("%w: what counts once", index.ErrCorrupt)
		}
		db.onces.until[string(k[1:])] = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
		return nil
	})
}
