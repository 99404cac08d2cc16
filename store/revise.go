package store

import (
	"bytes"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// revisable tells whether there is something that ch can be made of.
func (c *commit) revisable(ch *Change) bool {
	if ch.Revise == nil {
		return false
	}
	r := c.touched[ch.Key]
	return r.cur != nil && r.cur.Kind == segment.Live
}

// outlived tells whether ch, which could only be made of what lives, is of a life that has
// ended: told again, most likely. Nobody misses its body.
func (c *commit) outlived(ch *Change) bool {
	r := c.touched[ch.Key]
	if ch.Revise == nil || r.cur == nil || r.cur.Kind == segment.Live {
		return false
	}
	return belowFloor(&r.cur.Life, &r.cur.Clock, ch) || beforeDeletion(r.cur, ch)
}

// revise is the change that ch makes of the newest version, nil if that is none.
func (c *commit) revise(ch *Change) (*Change, error) {
	if !c.revisable(ch) {
		return nil, nil
	}
	r := c.touched[ch.Key]
	line, err := c.lineOf(ch.Key, r)
	if err != nil {
		return nil, err
	}
	revised, changed := ch.Revise(line)
	if !changed {
		return nil, nil
	}
	revised.Key, revised.Delete, revised.Revise, revised.Dead = ch.Key, false, nil, nil
	revised.Version, revised.LastUpdated = r.cur.Clock.Version, r.cur.Clock.LastUpdated
	revised.Time, revised.Timestamp, revised.Position, revised.Offset = ch.Time, ch.Timestamp, ch.Position, ch.Offset
	revised.Snapshot, revised.Earlier = ch.Snapshot, ch.Earlier
	return &revised, nil
}

// lineOf is the newest version of a resource that lives, as exports have it.
func (c *commit) lineOf(key fhir.Key, r *resource) ([]byte, error) {
	if r.at >= 0 {
		n := &c.rows[r.at]
		return n.inject.Inject(nil, n.body, n.version(), n.updated()), nil
	}
	return c.db.lineAt(r.cur.Section(key.Type), r.cur.Place())
}

// lineAt reads one row's line from its segment.
func (db *DB) lineAt(sec segment.Section, p segment.Place) (line []byte, err error) {
	s, err := db.holder(sec, p.Bound)
	if err != nil {
		return nil, err
	}
	b := s.r.Find(sec, p)
	if b < 0 {
		return nil, noRow(s, p)
	}
	line, err = s.line(b, p.Seq)
	return bytes.TrimSuffix(line, []byte{'\n'}), err
}
