package store

import (
	"tidemark/store/compact"
	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// twin tells whether ch, a version's row that was written again, is of another version than the
// newest row, of the same instant: where bodies say which version they are. When it was written
// again tells nothing then, and the newest row came behind it in the log, or was told first.
func (c *commit) twin(ch *Change, hash uint64) (bool, error) {
	r := c.touched[ch.Key]
	if !ch.Earlier || ch.Snapshot || ch.Delete || ch.Version != NoVersion || ch.LastUpdated == fhir.None {
		return false, nil
	}
	if cur := r.cur; cur == nil || cur.Kind != segment.Live || cur.Clock.LastUpdated != ch.LastUpdated || cur.Hash == hash {
		return false, nil
	}
	id := versionID(ch.Body)
	if id == "" {
		return false, nil
	}
	line, err := c.lineOf(ch.Key, r)
	return err == nil && versionID(line) != id, err
}

// versionID is meta.versionId of a resource, as it is written; "" if it has none.
func versionID(line []byte) (id string) {
	member := func(at int, name string, fn func(value []byte, at int)) {
		compact.Members(line, at, func(m compact.Member) bool {
			if string(line[m.Name:m.Colon]) != name {
				return true
			}
			fn(line[m.Colon+1:m.End], m.Colon+1)
			return false
		})
	}
	member(0, `"meta"`, func(meta []byte, at int) {
		if meta[0] == '{' {
			member(at, `"versionId"`, func(value []byte, _ int) { id = string(value) })
		}
	})
	return id
}
