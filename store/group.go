package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// A membership is who a Group lists and has not said to be inactive, and since
// when: the change instant of the version that first does so after an absence
// (decisions: joining).
type membership map[string]member

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
}

// apply does to m what the row says that came at an instant.
func (m membership) apply(r *regrouped, at fhir.Instant) {
	for _, ref := range r.Left {
		delete(m, ref)
	}
	for _, ref := range r.Joined {
		m[ref] = member{Since: at}
	}
	for ref, p := range r.Periods {
		if n, ok := m[ref]; ok {
			n.period = p
			m[ref] = n
		}
	}
}

// over tells whether the period has ended.
func (p period) over(at fhir.Instant) bool { return p.End != 0 && p.End < at }

func (m membership) encode() []byte { return mustJSON(m) }

// regroup stores how a version of a Group changed its membership.
func (c *commit) regroup(ch *Change, r *segment.Row) error {
	old, err := c.group(ch.Key.ID)
	if err != nil {
		return err
	}
	next := membership{}
	if !ch.Delete {
		for _, m := range ch.Members {
			p := period{orZero(m.Start), orZero(m.End)}
			if m.Ref == "" || m.Inactive || p.over(r.Instant) {
				continue // named by an identifier only, or no member any more
			}
			n := member{r.Instant, p}
			if twice, ok := next[m.Ref]; ok {
				n.period = twice.with(p)
			}
			if was, ok := old[m.Ref]; ok && !was.over(r.Instant) {
				n.Since = was.Since
			}
			next[m.Ref] = n
		}
	}
	c.groups[ch.Key.ID] = next
	line := regrouped{Group: r.Key.String()}
	for ref, n := range next {
		was, ok := old[ref]
		again := !ok || was.over(r.Instant)
		if again {
			line.Joined = append(line.Joined, ref)
			was = member{}
		}
		if n.period != was.period {
			if line.Periods == nil {
				line.Periods = map[string]period{}
			}
			line.Periods[ref] = n.period
		}
	}
	for ref := range old {
		if _, ok := next[ref]; !ok {
			line.Left = append(line.Left, ref)
		}
	}
	if len(line.Joined)+len(line.Left)+len(line.Periods) == 0 {
		return nil
	}
	slices.Sort(line.Joined)
	slices.Sort(line.Left)
	c.internal(segment.Memberships, r, nil, line)
	return nil
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
//
// Membership is read as it was committed last; who joined after the watermark is
// left out, who left after it is, too.
func (s *Snapshot) Roster(id string, since fhir.Instant) (Roster, error) {
	body, err := s.resource(fhir.Key{Type: groupType, ID: id})
	if err != nil {
		return Roster{}, err
	}
	m, err := s.db.membership(id)
	if err != nil {
		return Roster{}, err
	}
	r, w := Roster{Body: body, Members: map[string]Member{}}, s.pin.Watermark
	for ref, n := range m {
		one := Member{max(n.Since, n.Start), fhir.None}
		if n.over(w) {
			one.Left = n.End
		}
		if one.Joined <= w && (one.Left == fhir.None || one.Left > since) {
			r.Members[ref] = one
		}
	}
	err = s.regroupings(id, since, func(line *regrouped, at fhir.Instant) {
		for _, ref := range line.Left {
			if _, is := r.Members[ref]; !is {
				r.Members[ref] = Member{fhir.None, at}
			}
		}
	})
	return r, err
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
	m := membership{}
	v, closer, err := r.Get(index.GroupKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	if err := errors.Join(json.Unmarshal(v, &m), closer.Close()); err != nil {
		return nil, fmt.Errorf("%w: membership of a Group: %w", index.ErrCorrupt, err)
	}
	return m, nil
}

// regroupings calls fn for the changes of a Group's membership in (since, W].
func (s *Snapshot) regroupings(id string, since fhir.Instant, fn func(*regrouped, fhir.Instant)) error {
	sec := segment.Section{Kind: segment.Internal, Type: segment.Memberships}
	ext, err := s.Extents(sec, since, s.pin.Watermark)
	if err != nil {
		return err
	}
	for _, e := range ext {
		list, err := regroupings(s.seg(segment.ID(e.Segment)), e.Block, s.pin.Closed)
		if err != nil {
			return err
		}
		for _, x := range list {
			if x.id != id || x.at <= since || x.at > s.pin.Watermark {
				continue
			}
			var line regrouped
			if err := json.Unmarshal(x.line, &line); err != nil {
				return fmt.Errorf("%w: a change of membership", ErrCorrupt)
			}
			fn(&line, x.at)
		}
	}
	return nil
}

// resource is the body of a resource as it is at the snapshot's watermark.
// ErrUnknown if there is none.
func (s *Snapshot) resource(key fhir.Key) ([]byte, error) {
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
	line []byte
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
			list = append(list, regrouping{row.Seq, row.Key.ID, row.Instant, bytes.TrimSuffix(text[:row.Length], newline)})
		}
		text = text[row.Length:]
	}
	return list, nil
}

func regroupFrom(w *batchWriter, line []byte, id string, at fhir.Instant) error {
	var change regrouped
	if err := json.Unmarshal(line, &change); err != nil {
		return fmt.Errorf("%w: a change of membership", ErrCorrupt)
	}
	m, err := readMembership(w.b, id)
	if err != nil {
		return err
	}
	m.apply(&change, at)
	w.set(index.GroupKey(id), m.encode())
	return nil
}
