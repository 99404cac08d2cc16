package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A membership is who a Group lists and has not said to be inactive, as of the
// internal row with the sequence number Seq.
type membership struct {
	Seq     uint64            `json:"seq"`
	Members map[string]member `json:"members,omitempty"`
}

// A member is listed since the change instant of the version that first does so
// after an absence (decisions: joining).
type member struct {
	Since fhir.Instant `json:"since"`
	period
}

// period is when a member is one; zero: open.
type period struct {
	Start fhir.Instant `json:"start,omitempty"`
	End   fhir.Instant `json:"end,omitempty"`
}

// A regrouped is the line of an internal row that says how a version of a Group
// changed its membership.
type regrouped struct {
	Group   string            `json:"group"`
	Joined  []string          `json:"joined,omitempty"`
	Left    []string          `json:"left,omitempty"`
	Periods map[string]period `json:"periods,omitempty"` // of members that have one now, or had another
	Was     map[string]member `json:"was,omitempty"`     // before, where it changed
}

// apply does to m what the row says.
func (m *membership) apply(r *regrouping) {
	m.Seq = r.seq
	for _, ref := range r.line.Left {
		delete(m.Members, ref)
	}
	for _, ref := range r.line.Joined {
		m.Members[ref] = member{Since: r.at}
	}
	for ref, p := range r.line.Periods {
		if n, ok := m.Members[ref]; ok {
			n.period = p
			m.Members[ref] = n
		}
	}
}

// undo takes back what the row says.
func (m *membership) undo(r *regrouping) {
	for _, ref := range r.line.Joined {
		delete(m.Members, ref)
	}
	maps.Copy(m.Members, r.line.Was)
}

// over tells whether the period has ended.
func (p period) over(at fhir.Instant) bool { return p.End != 0 && p.End < at }

// ahead tells whether the period has not begun.
func (p period) ahead(at fhir.Instant) bool { return p.Start > at }

func (m membership) encode() []byte { return mustJSON(m) }

// regroup stores how a version of a Group changed its membership.
func (c *commit) regroup(ch *Change, r *segment.Row) error {
	old, err := c.group(ch.Key.ID)
	if err != nil {
		return err
	}
	next := membership{Seq: old.Seq, Members: members(ch, r.Instant)}
	line := regrouped{Group: r.Key.String(), Periods: map[string]period{}, Was: map[string]member{}}
	for ref, n := range next.Members {
		was, listed := old.Members[ref]
		switch {
		case !listed:
			line.Joined = append(line.Joined, ref)
		case was.over(r.Instant), was.Start != n.Start && was.ahead(r.Instant): // it was none till now
			line.Joined = append(line.Joined, ref)
		case was.Start != n.Start && n.ahead(r.Instant): // it is none any more till then
			line.Joined, line.Left = append(line.Joined, ref), append(line.Left, ref)
		default:
			n.Since = was.Since
			next.Members[ref] = n
		}
		if n.period != was.period || n.Since != was.Since && n.period != (period{}) {
			line.Periods[ref] = n.period
		}
		if listed && n != was {
			line.Was[ref] = was
		}
	}
	for ref, was := range old.Members {
		if _, still := next.Members[ref]; !still {
			line.Left = append(line.Left, ref)
			line.Was[ref] = was
		}
	}
	if len(line.Joined)+len(line.Left)+len(line.Periods) > 0 {
		slices.Sort(line.Joined)
		slices.Sort(line.Left)
		next.Seq = c.internal(segment.Memberships, r, nil, line)
	}
	c.groups[ch.Key.ID] = next
	return nil
}

// members is who a version of a Group lists.
func members(ch *Change, at fhir.Instant) map[string]member {
	list := map[string]member{}
	if ch.Delete {
		return list
	}
	for _, m := range ch.Members {
		p := period{orZero(m.Start), orZero(m.End)}
		if m.Ref == "" || m.Inactive || p.over(at) {
			continue // named by an identifier only, or no member any more
		}
		if twice, ok := list[m.Ref]; ok {
			p = twice.with(p)
		}
		list[m.Ref] = member{at, p}
	}
	return list
}

// with is the period of somebody who is listed twice: from the first start to
// the last end.
func (p period) with(q period) period {
	p.Start = min(p.Start, q.Start)
	if p.End != 0 && (q.End == 0 || q.End > p.End) {
		p.End = q.End
	}
	return p
}

func orZero(i fhir.Instant) fhir.Instant {
	if i == fhir.None {
		return 0
	}
	return i
}

// group is a Group's membership before the version being applied.
func (c *commit) group(id string) (membership, error) {
	if m, ok := c.groups[id]; ok {
		return m, nil
	}
	return readMembership(c.db.kv, id)
}

// A Roster is who is, or was since some instant, a member of a Group.
type Roster struct {
	Body    []byte            // the Group itself
	Members map[string]Member // by reference: Patient/…, Group/… and others
}

// A Member of a Roster.
type Member struct {
	Joined fhir.Instant // a change instant, or the start of the period if that is later
	Left   fhir.Instant // None while it is a member at the watermark
}

// Roster is a Group at the snapshot's watermark, with those who have left since.
// ErrUnknown if there is no such Group.
func (s *Snapshot) Roster(id string, since fhir.Instant) (Roster, error) {
	body, err := s.Resource(fhir.Key{Type: groupType, ID: id})
	if err != nil {
		return Roster{}, err
	}
	m, changes, err := s.membership(id, since)
	if err != nil {
		return Roster{}, err
	}
	r, w := Roster{Body: body, Members: map[string]Member{}}, s.pin.Watermark
	for ref, n := range m.Members {
		one := Member{max(n.Since, n.Start), fhir.None}
		if n.over(w) {
			one.Left = n.End + 1
		}
		if one.Joined <= w && (one.Left == fhir.None || one.Left > since) {
			r.Members[ref] = one
		}
	}
	for _, x := range changes {
		for _, ref := range x.line.Left {
			if _, is := r.Members[ref]; !is {
				r.Members[ref] = Member{fhir.None, x.at}
			}
		}
	}
	return r, nil
}

// membership is a Group's at the snapshot's watermark, and how it changed
// since. What is committed may be ahead of the watermark: that is taken back.
func (s *Snapshot) membership(id string, since fhir.Instant) (m membership, until []regrouping, err error) {
	if m, err = s.db.membership(id); err != nil {
		return m, nil, err
	}
	now := s.db.snapshotNow() // not older than m, and so with all that m has applied
	defer func() { err = errors.Join(err, now.Close()) }()
	changes, err := now.regroupings(id, min(since, s.pin.Watermark))
	if err != nil {
		return m, nil, err
	}
	slices.SortFunc(changes, func(a, b regrouping) int { return cmp.Compare(a.seq, b.seq) })
	for i := len(changes) - 1; i >= 0; i-- {
		switch x := &changes[i]; {
		case x.at <= s.pin.Watermark:
			until = append(until, *x)
		case x.seq <= m.Seq:
			m.undo(x)
		}
	}
	return m, until, nil
}

// membership is what the index has of a Group's.
func (db *DB) membership(id string) (m membership, err error) {
	err = db.whileOpen(func() error {
		m, err = readMembership(db.kv, id)
		return err
	})
	return m, err
}

func readMembership(r pebble.Reader, id string) (membership, error) {
	m := membership{Members: map[string]member{}}
	v, closer, err := r.Get(index.GroupKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("read the index: %w", err)
	}
	if err := errors.Join(json.Unmarshal(v, &m), closer.Close()); err != nil {
		return m, fmt.Errorf("%w: membership of a Group: %w", index.ErrCorrupt, err)
	}
	return m, nil
}

// regroupings are the changes of a Group's membership since an instant.
func (s *Snapshot) regroupings(id string, since fhir.Instant) (list []regrouping, err error) {
	sec := segment.Section{Kind: segment.Internal, Type: segment.Memberships}
	ext, err := s.Extents(sec, since, s.pin.Watermark)
	if err != nil {
		return nil, err
	}
	for _, e := range ext {
		of, err := regroupings(s.seg(segment.ID(e.Segment)), e.Block, s.pin.Closed)
		if err != nil {
			return nil, err
		}
		for _, x := range of {
			if x.id == id && x.at > since {
				list = append(list, x)
			}
		}
	}
	return list, nil
}

// Resource is the body of a resource as it is at the snapshot's watermark.
// ErrUnknown if there is none.
func (s *Snapshot) Resource(key fhir.Key) ([]byte, error) {
	of := s.Choosing(Choice{Keys: map[fhir.Key]fhir.Instant{key: fhir.None}})
	sec := segment.Section{Kind: segment.Live, Type: key.Type}
	ext, err := of.Extents(sec, fhir.None, s.pin.Watermark)
	if err != nil || len(ext) == 0 {
		return nil, errors.Join(err, fmt.Errorf("%s: %w", key.Type, ErrUnknown))
	}
	b, err := of.visible(ext[0], of.span(fhir.None, s.pin.Watermark))
	if err != nil {
		return nil, err
	}
	line, err := segment.Inflate(nil, b)
	return bytes.TrimSuffix(line, newline), err
}

// regrouping is a row that says how a Group's membership changed.
type regrouping struct {
	seq  uint64
	id   string
	at   fhir.Instant
	line regrouped
}

func regroupings(g *seg, b int, closed segment.Bound) (list []regrouping, err error) {
	rows, err := g.r.Rows(b)
	if err != nil {
		return nil, err
	}
	body, err := g.r.OpenBody()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := g.r.Lines(nil, body, b)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		row := &rows[i]
		if g.window() != nil || row.Bound().Compare(closed) > 0 {
			x := regrouping{seq: row.Seq, id: row.Key.ID, at: row.Instant}
			if err := json.Unmarshal(text[:row.Length], &x.line); err != nil {
				return nil, fmt.Errorf("%w: a change of membership", ErrCorrupt)
			}
			list = append(list, x)
		}
		text = text[row.Length:]
	}
	return list, nil
}

// replay applies a change of membership to what the index has.
func (x *regrouping) replay(w *batchWriter) error {
	m, err := readMembership(w.b, x.id)
	if err != nil {
		return err
	}
	m.apply(x)
	w.set(index.GroupKey(x.id), m.encode())
	return nil
}
