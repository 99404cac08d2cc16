package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/disk"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// Keep stores data beside a durable snapshot, under a name of the owner's, for
// as long as the snapshot is there. It is durable when Keep returns. The checksum
// belongs into the rule: Kept wants it back.
func (s *Snapshot) Keep(name string, data []byte) (sum uint32, err error) {
	if err := s.db.roomToCut(); err != nil {
		return 0, err
	}
	sum = crc32.ChecksumIEEE(data) // before it is written: a vfs.File may change what it is given
	if err := s.db.writePrivate(s.db.privateDir(s.of.id), name, data); err != nil {
		if s.of.revoked.Load() { // an erasure has taken the directory away
			return 0, ErrRevoked
		}
		return 0, hide(s.db.unwritten(err), s.of.id)
	}
	if s.of.revoked.Load() { // meanwhile: whoever removed the others may have been before us
		return 0, errors.Join(ErrRevoked, s.db.removePrivate(s.of.id))
	}
	return sum, nil
}

func (db *DB) writePrivate(dir, name string, data []byte) error {
	if err := db.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(disk.Replace(db.fs, dir, name, data), disk.SyncDir(db.fs, db.jobsDir()))
}

// Kept is what Keep stored.
func (s *Snapshot) Kept(name string, sum uint32) ([]byte, error) {
	if s.of.revoked.Load() {
		return nil, ErrRevoked
	}
	data, err := disk.Read(s.db.fs, s.db.fs.PathJoin(s.db.privateDir(s.of.id), name))
	switch missing := errors.Is(err, os.ErrNotExist); {
	case missing && s.of.revoked.Load():
		return nil, ErrRevoked
	case missing:
		return nil, fmt.Errorf("%w: a snapshot's %s is gone", ErrCorrupt, name)
	case err != nil:
		return nil, hide(err, s.of.id)
	}
	if crc32.ChecksumIEEE(data) != sum {
		return nil, fmt.Errorf("%w: a snapshot's %s: CRC-32", ErrCorrupt, name)
	}
	return data, nil
}

// Known tells whether there is such a resource, or was and its deletion is still
// known.
func (s *Snapshot) Known(key fhir.Key) (known bool, err error) {
	err = s.db.whileOpen(func() error {
		st, err := readState(s.db.kv, key, s.db.origins())
		known = st != nil && st.Kind != segment.Internal
		return err
	})
	return known, err
}

// readState is what the index has of a resource, nil if nothing.
func readState(r pebble.Reader, key fhir.Key, origin func(uint64) (Partition, bool)) (*index.State, error) {
	v, closer, err := r.Get(index.RowKey(nil, key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	st, err := index.DecodeState(v, origin)
	if err := errors.Join(err, closer.Close()); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	return &st, nil
}
