package store

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"tidemark/store/index"
	"tidemark/store/segment"
)

func (db *DB) load() error {
	if err := db.loadMeta(); err != nil {
		return err
	}
	steps := []func() error{db.loadPromise, db.loadPartitions, db.loadTopics, db.loadSegments, db.loadDeaths, db.loadPins, db.loadOnces, db.loadErased, db.tidy}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	db.setClock()
	return nil
}

func (db *DB) loadMeta() error {
	v, closer, err := db.kv.Get(index.MetaKey())
	if err != nil {
		return fmt.Errorf("read the store's state: %w", err)
	}
	db.meta, err = index.DecodeMeta(v)
	if err := errors.Join(err, closer.Close()); err != nil {
		return err
	}
	db.forgot = db.meta.Newest // an earlier process may have
	db.abouts, err = index.Has(db.kv, index.AboutsKey())
	if err == nil && !db.abouts {
		db.o.Logger.Warn("the index does not tell what Provenance is about: exports of some Patients look through all of it until `tidemark reindex` has been run")
	}
	return err
}

func (db *DB) loadPromise() error {
	return index.Scan(db.kv, index.Promises(), func(k, _ []byte) (err error) {
		db.promised, err = index.ParsePromiseKey(k)
		db.stored = db.promised
		db.promises = append(db.promises, db.promised)
		db.started = true
		return err
	})
}

func (db *DB) loadPartitions() error {
	err := index.Scan(db.kv, index.Partitions(), func(k, v []byte) error {
		name, err := index.ParsePartitionKey(k)
		if err != nil {
			return err
		}
		return db.loadPartition(name, v)
	})
	if err != nil {
		return err
	}
	return index.Scan(db.kv, index.Joined(), func(k, v []byte) error {
		name, err := index.ParsePartitionKey(k)
		if err != nil {
			return err
		}
		if db.parts[name] == nil { // it joined empty, and no commit has come since
			if err := db.loadPartition(name, v); err != nil {
				return err
			}
		}
		st, err := index.DecodePartition(v)
		p := db.parts[name]
		p.joined = !p.durable.Forgotten && p.durable.Anew == st.Anew // else an earlier log of its name had
		p.stored = p.joined
		return err
	})
}

func (db *DB) loadPartition(name Partition, v []byte) error {
	st, err := index.DecodePartition(v)
	if err != nil {
		return err
	}
	db.parts[name] = &partition{durable: st, seen: st.Seen}
	db.numbers[st.Number] = name
	return nil
}

func (db *DB) loadTopics() error {
	return index.Scan(db.kv, index.Topics(), func(k, v []byte) error {
		db.topics[string(k[1:])] = slices.Clone(v)
		return nil
	})
}

func (db *DB) loadSegments() error {
	var live []*seg
	err := index.Scan(db.kv, index.Segments(), func(k, v []byte) error {
		id, err := index.ParseSegmentKey(k)
		if err != nil {
			return err
		}
		r, err := segment.Open(db.fs, db.segmentsDir(), id)
		if err != nil {
			if len(v) > 0 && v[0] == index.SegmentDropped && errors.Is(err, os.ErrNotExist) {
				db.ghosts = append(db.ghosts, id)
				return nil // unlinked, but the crash came before the index heard of it
			}
			return fmt.Errorf("the index lists segment %s: %w; restore the file from a backup, or run `tidemark reindex` to go on without it", id.DirectoryName(), err)
		}
		if r.Footer().Store != db.meta.Store {
			return fmt.Errorf("%w: %s belongs to another store", ErrReindex, id.DirectoryName())
		}
		s := newSeg(r)
		s.dropped = v[0] == index.SegmentDropped
		db.segs[id] = s
		if !s.dropped {
			live = append(live, s)
		}
		return nil
	})
	db.view = newView(live, db.meta.Closed)
	return err
}

func (db *DB) loadDeaths() error {
	return index.Scan(db.kv, index.Deaths(), func(k, v []byte) error {
		id, err := index.ParseDeathsKey(k)
		if err != nil {
			return err
		}
		list, err := index.DecodeDeaths(nil, v)
		if s := db.segs[id]; s != nil && err == nil {
			s.bury(list)
		}
		return err
	})
}

func (db *DB) loadErased() error {
	list, err := readErased(db.fs, db.fs.PathJoin(db.dir, erasedFile))
	db.erased.Store(list)
	return err
}

func (db *DB) loadPins() error {
	return index.Scan(db.kv, index.Pins(), func(k, v []byte) error {
		p, err := index.DecodePin(v)
		if err != nil {
			return err
		}
		q := &pinned{id: string(k[1:]), pin: p}
		q.revoked.Store(p.Revoked)
		for _, id := range p.Segments {
			s := db.segs[id]
			if s == nil {
				return fmt.Errorf("%w: a pin holds segment %d, which is gone", ErrReindex, id)
			}
			s.refs++
			q.segs = append(q.segs, s)
		}
		db.pins[q.id] = q
		return nil
	})
}
