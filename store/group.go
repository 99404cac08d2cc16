package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
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
// after an absence (decisions: joining), and is one in its periods only.
type member struct {
	Since   fhir.Instant `json:"since"`
	Periods []period     `json:"periods,omitempty"` // none: always
}

// A period is the first and the last instant of a time in which somebody is a
// member; None and forever where it is open.
type period [2]fhir.Instant

const forever fhir.Instant = math.MaxInt64

func (p period) holds(at fhir.Instant) bool { return p[0] <= at && at <= p[1] }

func periodOf(m fhir.Member) period {
	p := period{m.Start, m.End}
	if m.End == fhir.None {
		p[1] = forever
	}
	return p
}

// A regrouped is the line of an internal row that says how a version of a Group
// changed its membership.
type regrouped struct {
	Group   string              `json:"group"`
	Joined  []string            `json:"joined,omitempty"`
	Left    []string            `json:"left,omitempty"`
	Periods map[string][]period `json:"periods,omitempty"` // of members that have some now, or had others
	Was     map[string]member   `json:"was,omitempty"`     // before, where it changed
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
			m.Members[ref] = member{n.since(r.at), p}
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

// active tells whether n is a member at an instant.
func (n member) active(at fhir.Instant) bool {
	return len(n.Periods) == 0 || slices.ContainsFunc(n.Periods, func(p period) bool { return p.holds(at) })
}

// since is when the stay began in which n is at an instant.
func (n member) since(at fhir.Instant) fhir.Instant {
	for _, p := range n.Periods {
		if p.holds(at) {
			return max(n.Since, p[0])
		}
	}
	return n.Since
}

// ahead is what the periods say of an instant and all later ones: that a stay
// goes on says nothing of when it began.
func (n member) ahead(at fhir.Instant) (list []period) {
	for _, p := range n.Periods {
		if p[1] < at {
			continue
		}
		if p[0] <= at {
			p[0] = fhir.None
		}
		list = append(list, p)
	}
	if len(n.Periods) > 0 && list == nil {
		return []period{{forever, fhir.None}} // never again, and not always
	}
	if slices.Equal(list, []period{{fhir.None, forever}}) {
		return nil
	}
	return list
}

// stays are the times in which n was a member up to an instant, exclusive; the
// last is open if it was one then.
func (n member) stays(until fhir.Instant) (list []Stay) {
	periods := n.Periods
	if len(periods) == 0 {
		periods = []period{{fhir.None, forever}}
	}
	for _, p := range periods {
		t := Stay{max(n.Since, p[0]), fhir.None}
		if p[1] < until-1 {
			t.Left = p[1] + 1
		}
		if t.Joined < until && (t.Left == fhir.None || t.Joined < t.Left) {
			list = append(list, t)
		}
	}
	return list
}

func (m membership) encode() []byte { return mustJSON(m) }

// regroup stores how a version of a Group changed its membership.
func (c *commit) regroup(ch *Change, r *segment.Row) error {
	old, err := c.group(ch.Key.ID)
	if err != nil {
		return err
	}
	next := membership{Seq: old.Seq, Members: members(ch, r.Instant)}
	line := regrouped{Group: r.Key.String(), Periods: map[string][]period{}, Was: map[string]member{}}
	for ref, n := range next.Members {
		was, listed := old.Members[ref]
		switch ahead := n.ahead(r.Instant); {
		case listed && slices.Equal(ahead, was.ahead(r.Instant)):
			next.Members[ref] = was
			continue
		case listed && was.active(r.Instant) && n.active(r.Instant):
			n = member{was.since(r.Instant), ahead}
			next.Members[ref] = n
		default: // what it was, if anything, ends here
			line.Joined = append(line.Joined, ref)
		}
		if len(n.Periods) > 0 || !slices.Equal(n.Periods, was.Periods) {
			line.Periods[ref] = n.Periods
		}
		if listed {
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

// members is who a version of a Group lists. Who is listed more than once is a
// member in each of the periods.
func members(ch *Change, at fhir.Instant) map[string]member {
	list := map[string]member{}
	if ch.Delete {
		return list
	}
	always := map[string]bool{}
	for _, m := range ch.Members {
		p := periodOf(m)
		switch {
		case m.Ref == "" || m.Inactive || p[1] < at:
			continue // named by an identifier only, or no member any more
		case p == period{fhir.None, forever}:
			always[m.Ref] = true
		}
		n := list[m.Ref]
		list[m.Ref] = member{at, append(n.Periods, p)}
	}
	for ref, n := range list {
		if n.Periods = merged(n.Periods); always[ref] {
			n.Periods = nil
		}
		list[ref] = n
	}
	return list
}

// merged sorts periods and joins those that touch.
func merged(list []period) []period {
	slices.SortFunc(list, func(a, b period) int { return cmp.Compare(a[0], b[0]) })
	out := list[:0]
	for _, p := range list {
		if n := len(out); n > 0 && (out[n-1][1] == forever || p[0] <= out[n-1][1]+1) {
			out[n-1][1] = max(out[n-1][1], p[1])
			continue
		}
		out = append(out, p)
	}
	return out
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
	Body    []byte            // the Group itself; nil if there is none any more
	Members map[string][]Stay // by reference: Patient/…, Group/… and others
}

// A Stay is a time in which somebody is a member: from a change instant, or the
// start of a period if that is later, up to but without the other.
type Stay struct {
	Joined fhir.Instant
	Left   fhir.Instant // None while it lasts
}

// Rosters tells who was a member of which Group, from an instant up to a
// snapshot's watermark.
type Rosters struct {
	s       *Snapshot
	since   fhir.Instant
	changes map[string][]regrouping // since then, also behind the watermark, by Group
	next    uint64                  // the sequence number behind them
}

// Rosters reads how all Groups have changed since an instant; None asks for
// members at the watermark only.
func (s *Snapshot) Rosters(since fhir.Instant) (*Rosters, error) {
	r := &Rosters{s: s, since: since}
	if since == fhir.None || since > s.pin.Watermark {
		r.since = s.pin.Watermark
	}
	return r, r.read()
}

func (r *Rosters) read() error {
	r.s.db.mu.Lock()
	now := r.s.db.snapshot(always)
	r.next = r.s.db.meta.NextSeq
	r.s.db.mu.Unlock()
	r.changes = map[string][]regrouping{}
	err := now.regroupings(r.since, func(x regrouping) { r.changes[x.id] = append(r.changes[x.id], x) })
	for _, list := range r.changes {
		slices.SortFunc(list, func(a, b regrouping) int { return cmp.Compare(a.seq, b.seq) })
	}
	return errors.Join(err, now.Close())
}

// Of is the Roster of a Group. What is committed may be ahead of the watermark,
// so its membership is followed back to the beginning, and forward from there.
func (r *Rosters) Of(id string) (Roster, error) {
	out := Roster{Members: map[string][]Stay{}}
	body, err := r.s.Resource(fhir.Key{Type: groupType, ID: id})
	if err != nil && !errors.Is(err, ErrUnknown) {
		return out, err
	}
	out.Body = body
	m, err := r.s.db.membership(id)
	if err != nil {
		return out, err
	}
	if m.Seq >= r.next { // it has changed since we read
		if err := r.read(); err != nil {
			return out, err
		}
	}
	changes := slices.DeleteFunc(slices.Clone(r.changes[id]), func(x regrouping) bool { return x.seq > m.Seq })
	for _, x := range slices.Backward(changes) {
		m.undo(&x)
	}
	take := func(ref string, t Stay) {
		if t.Left == fhir.None || t.Left > r.since {
			out.Members[ref] = append(out.Members[ref], t)
		}
	}
	for i := range changes {
		x := &changes[i]
		if x.at > r.s.pin.Watermark {
			break
		}
		gone := x.ends()
		for ref, was := range x.line.Was {
			for _, t := range was.stays(x.at) {
				if t.Left == fhir.None && !gone[ref] {
					continue // it goes on
				}
				if t.Left == fhir.None {
					t.Left = x.at
				}
				take(ref, t)
			}
		}
		m.apply(x)
	}
	for ref, n := range m.Members {
		for _, t := range n.stays(r.s.pin.Watermark + 1) {
			take(ref, t)
		}
	}
	return out, nil
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

// regroupings calls fn for the changes of Groups' memberships since an instant.
func (s *Snapshot) regroupings(since fhir.Instant, fn func(regrouping)) error {
	sec := segment.Section{Kind: segment.Internal, Type: segment.Memberships}
	ext, err := s.Extents(sec, since, s.pin.Watermark)
	if err != nil {
		return err
	}
	for _, e := range ext {
		of, err := regroupings(s.seg(segment.ID(e.Segment)), e.Block, s.pin.Closed)
		if err != nil {
			return err
		}
		for _, x := range of {
			if x.at > since {
				fn(x)
			}
		}
	}
	return nil
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
	var r reading
	defer r.close()
	text, counts, err := r.block(of, ext[0], of.span(fhir.None, s.pin.Watermark))
	if err != nil {
		return nil, err
	}
	i := 0
	for line := range bytes.Lines(text) {
		switch line = bytes.TrimSuffix(line, newline); {
		case !counts[i]:
			i++
		case len(line) > len(text)/2: // a large one is not held twice
			return line, nil
		default:
			return bytes.Clone(line), nil
		}
	}
	return nil, fmt.Errorf("%w: a row that counts is not in its block", ErrCorrupt)
}

// regrouping is a row that says how a Group's membership changed.
type regrouping struct {
	seq  uint64
	id   string
	at   fhir.Instant
	line regrouped
}

// ends tells whose membership the row ends, be it for another.
func (x *regrouping) ends() map[string]bool {
	gone := make(map[string]bool, len(x.line.Left)+len(x.line.Joined))
	for _, ref := range slices.Concat(x.line.Left, x.line.Joined) {
		gone[ref] = true
	}
	return gone
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
