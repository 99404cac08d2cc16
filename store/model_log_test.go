package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"tidemark/store/fhir"
)

// database is where tables of resources lie. Whatever is written has a place in its log. A
// connector reads that and tells it in its order, but a table may have two topics (one of
// versions, one of what is now), which are read as it comes. What is true is how the log ends:
// that alone the model goes by, place by place.
type database struct {
	place  uint64    // in the log of now
	behind uint64    // that of the last snapshot: what was under way then stands before it
	told   []telling // since that began
}

// telling is what the connector told of a source.
type telling struct {
	s *source
	x sent
}

// table is what a source's rows say, beside where they stand.
type table struct {
	versions bool // a number
	instants bool // lastUpdated
	numbered bool // deletions are versions, too
	mixed    bool // now and then without a version, or by another way that knows no place
	rises    bool // lastUpdated, with each change, as the database's own clock does
	topics   [2]int
	one      bool // topic
	own      bool // each version has a partition of its own, and its row is written again now and then
	moved    bool // nothing of it was told since the log began anew
}

// newTable is one of the kinds for which the log's end is known: whose changes tell enough.
func (m *model) newTable(s *source) table {
	t := table{topics: [2]int{s.part, m.r.IntN(len(m.logs))}}
	t.one = t.topics[0] == t.topics[1]
	if m.own {
		t.own, t.one, t.instants, t.rises, t.numbered = true, false, true, true, true
		return t
	}
	switch m.r.IntN(5) {
	case 0: // nothing but the body
	case 1:
		t.instants, t.rises = true, m.r.IntN(2) == 0
	case 2:
		t.versions, t.instants = true, m.r.IntN(2) == 0
	case 3:
		t.versions, t.instants, t.numbered = true, m.r.IntN(2) == 0, true
	case 4:
		t.versions, t.instants, t.mixed = true, true, true
		t.topics[1], t.one = t.topics[0], true
	}
	return t
}

// write is one change of a row.
func (m *model) write(s *source) {
	t := &s.table
	if t.moved && !t.one {
		return // which comes first of what lies in two logs and two topics, nothing tells
	}
	if t.own && s.index > 0 && m.r.IntN(3) == 0 {
		m.writeAgain(s)
		return
	}
	x := m.next(s, s.index > 0 && !s.deleted && m.r.IntN(4) == 0)
	m.base.place += 1 + uint64(m.r.IntN(50))
	x.ch.Position = m.base.place
	if t.mixed && !t.moved && m.r.IntN(3) == 0 {
		x.ch.Position, x.ch.Time = 0, fhir.None // it comes by another way
		m.sendTo(s, x, t.topics[0])
		return
	}
	t.moved = false
	m.tell(s, x)
	m.base.told = append(m.base.told, telling{s, s.history[len(s.history)-1]})
}

// writings is how often a version's row may be written.
const writings = 1000

// writeAgain writes a version's row again: it is what it was, of the same instant, with another body.
func (m *model) writeAgain(s *source) {
	x := s.history[m.r.IntN(len(s.history))]
	for _, h := range s.history {
		if h.index/writings == x.index/writings && h.index > x.index {
			x = h
		}
	}
	m.base.place += 1 + uint64(m.r.IntN(50))
	now := fhir.FromTime(time.Now())
	x.ch.Earlier, x.ch.Snapshot, x.ch.Position, x.ch.Time, x.ch.Timestamp = true, false, m.base.place, now, m.recorded(now)
	if !x.ch.Delete { // of which nothing but the body would be another
		x.index++
		var body map[string]any
		if err := json.Unmarshal(x.ch.Body, &body); err != nil {
			m.t.Fatal(err)
		}
		body["writing"] = x.index % writings
		x.ch.Body = mustJSON(body)
		x.body = string(x.ch.Body)
	}
	m.sendTo(s, x, x.part)
	m.base.told = append(m.base.told, telling{s, x})
}

// says gives a row's change what its table has.
func (m *model) says(s *source, ch *Change, now fhir.Instant) {
	t := &s.table
	if last := m.lastUpdated(s); t.rises && last != fhir.None {
		now = max(now, last+1)
	}
	ch.Version, ch.LastUpdated, ch.Time = NoVersion, fhir.None, now
	full := !ch.Delete || t.numbered || t.mixed && m.r.IntN(3) == 0
	if t.versions && full && (!t.mixed || m.r.IntN(3) > 0) {
		ch.Version = s.version
	}
	if t.instants && (full || m.r.IntN(3) == 0) {
		ch.LastUpdated = now
		switch last := m.lastUpdated(s); {
		case t.rises:
		case m.r.IntN(8) == 0:
			ch.LastUpdated -= fhir.Instant(m.r.IntN(3_600_000)) // an hour behind
		case m.r.IntN(30) == 0:
			ch.LastUpdated += fhir.Instant(m.r.IntN(400) * 86_400_000) // a clock that is far ahead
		case last != fhir.None && m.r.IntN(3) == 0:
			ch.LastUpdated = last // one millisecond
		}
		if last := m.lastUpdated(s); last != fhir.None {
			switch { // it falls, as when it is taken before one waits for another
			case t.mixed: // what comes by another way has no place: nothing else tells what is newer
				ch.LastUpdated = max(ch.LastUpdated, last+1)
			case t.versions: // that begin anew are told from old ones by nothing else
				ch.LastUpdated = max(ch.LastUpdated, last)
			}
		}
	}
	// Deletions that come without a place are told from each other by their records' times:
	// those are odd, and each is another.
	ch.Timestamp = m.recorded(now)
	if ch.Delete && t.mixed {
		for ch.Timestamp++; slices.ContainsFunc(s.history, func(h sent) bool { return h.ch.Delete && h.ch.Timestamp == ch.Timestamp }); {
			ch.Timestamp += 2
		}
	}
}

// recorded is the time of a record: many have the same, and they run back, but not by a minute.
func (m *model) recorded(now fhir.Instant) fhir.Instant {
	at := now - fhir.Instant(m.r.IntN(25_000))*fhir.Instant(m.r.IntN(2))
	return at - at%[]fhir.Instant{2, 10_000}[m.r.IntN(2)]
}

// tell writes a record into one of the table's topics, or into both.
func (m *model) tell(s *source, x sent) {
	t := &s.table
	n := m.r.IntN(3)
	if t.one {
		n = 0
	}
	if t.own {
		x.index *= writings
		m.sendTo(s, x, m.r.IntN(len(m.logs)))
		return
	}
	if n != 1 {
		m.sendTo(s, x, t.topics[0])
	}
	if n != 0 {
		m.sendTo(s, x, t.topics[1])
	}
}

func (m *model) sendTo(s *source, x sent, p int) {
	x.part = p
	s.history = append(s.history, x)
	m.logs[p] = append(m.logs[p], x)
}

// connect lets the connector be killed and go on from what it had written down of where it was:
// it tells again what it had told, in records of now. It may be killed again meanwhile.
func (m *model) connect() {
	for told := m.base.told; len(told) > 0; {
		again := told[max(0, len(told)-1-m.r.IntN(40)):]
		end := len(again)
		if m.r.IntN(3) == 0 {
			end = m.r.IntN(end)
		}
		for _, r := range again[:end] {
			r.x.ch.Timestamp = m.recorded(fhir.FromTime(time.Now()))
			m.sendTo(r.s, r.x, r.x.part)
		}
		if end == len(again) {
			return
		}
	}
}

// again repeats a change that came by another way, as its producer does.
func (m *model) again(s *source) {
	if x := s.history[m.r.IntN(len(s.history))]; x.ch.Position == 0 && (s.table.one || !s.table.moved) {
		m.sendTo(s, x, x.part)
	}
}

// snapshot lets the connector read the tables anew: what is there now, at the place at which
// the log is, and of a table of versions all that it still has.
func (m *model) snapshot() {
	now := fhir.FromTime(time.Now())
	m.base.behind = max(m.base.behind, m.base.place) + uint64(m.r.IntN(100))
	for _, s := range m.sources {
		t := &s.table
		if s.kind != rows || t.moved && !t.one || m.r.IntN(2) == 0 {
			continue
		}
		if t.own {
			m.versionsNow(s, now)
			continue
		}
		if t.one && t.versions && m.r.IntN(2) == 0 {
			for _, x := range slices.Clone(s.history) {
				if x.ch.Delete || x.ch.Version == NoVersion || m.r.IntN(4) == 0 {
					continue
				}
				x.ch.Snapshot, x.ch.Earlier, x.ch.Position, x.ch.Time, x.ch.Timestamp = true, true, m.base.behind, now, m.recorded(now)
				m.sendTo(s, x, x.part)
			}
		}
		if last := s.newest(); last.body != "" && m.base.place > 0 {
			last.ch.Position, last.ch.Time, last.ch.Timestamp = m.base.place, now, m.recorded(now)
			last.ch.Snapshot = t.numbered || t.rises || !t.instants // a clock of one's own is not to be compared with that of commits
			if t.one && (t.numbered || t.rises) {                   // else nothing tells what came after, or only later
				last.ch.Position = m.base.behind
			}
			m.tell(s, last)
		}
	}
}

// versionsNow tells of each version how its row was written last.
func (m *model) versionsNow(s *source, now fhir.Instant) {
	last := map[int]sent{}
	for _, x := range s.history {
		if at := x.index / writings; x.index >= last[at].index {
			last[at] = x
		}
	}
	for _, at := range slices.Sorted(maps.Keys(last)) {
		x := last[at]
		x.ch.Snapshot, x.ch.Earlier, x.ch.Position, x.ch.Time, x.ch.Timestamp = true, true, m.base.behind, now, m.recorded(now)
		m.sendTo(s, x, x.part)
	}
}

// newest is what the source has.
func (s *source) newest() sent {
	return slices.MaxFunc(s.history, func(a, b sent) int { return a.index - b.index })
}

// move has the database begin its log anew, as one does that is moved: after a while, in which
// the connector has told all that there was and all of that was read.
func (m *model) move() {
	for p := range m.logs {
		for m.fetched[p] < int64(len(m.logs[p])) {
			m.fetch()
		}
	}
	m.commit()
	time.Sleep(3 * time.Minute)
	m.base = database{place: uint64(m.r.IntN(100))}
	for _, s := range m.sources {
		s.table.moved = true
	}
	m.steps = append(m.steps, fmt.Sprint("place", m.base.place))
}
