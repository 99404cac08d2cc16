package proof

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"tidemark/cmd/tidemark/internal/hospital"
)

// server is design.md 2 in small, for one partition, with a clock that the test
// moves: what an honest server sends, so that the proof can be shown to accept
// it, and to notice when something is changed.
type server struct {
	rows      map[string][]row
	log       []hospital.Record // appended, in order
	fetched   int               // records of it
	committed int
	promised  int64
	seq       int
}

type row struct {
	c       int64
	deleted bool
	body    []byte
}

const (
	allowance = int64(1000)
	minusInf  = math.MinInt64
)

func newServer() *server { return &server{rows: map[string][]row{}, promised: minusInf} }

// fetch reads to the end of the log at now; what is on time holds the watermark.
func (s *server) fetch() { s.fetched = len(s.log) }

// crash forgets what was fetched and not committed.
func (s *server) crash() { s.fetched = s.committed }

// commit gives instants to everything that was fetched.
func (s *server) commit(now int64) {
	line := max(s.promised, s.watermark(now))
	for ; s.committed < s.fetched; s.committed++ {
		rec := s.log[s.committed]
		if !rec.Op.Changes() {
			continue
		}
		s.seq++
		rows := s.rows[string(rec.Key)]
		c := instantOf(rec)
		if line != minusInf {
			c = max(c, line+1)
		}
		if len(rows) > 0 {
			c = max(c, rows[len(rows)-1].c)
		}
		s.rows[string(rec.Key)] = append(rows, row{c, rec.Value == nil, inject(rec.Value, s.seq, c)})
	}
}

// watermark: the log was read to its end at now, or nothing has been read yet.
func (s *server) watermark(now int64) int64 {
	if s.fetched == 0 {
		return minusInf
	}
	w := now - allowance
	for _, rec := range s.log[s.committed:s.fetched] {
		onTime := instantOf(rec) > max(s.promised, rec.Timestamp.UnixMilli()-allowance)
		if onTime {
			w = min(w, instantOf(rec)-1)
		}
	}
	return max(w, s.promised)
}

func instantOf(rec hospital.Record) int64 {
	if rec.Value != nil {
		if f, _ := read(rec.Value); f.updated != unknown {
			return f.updated
		}
	}
	return rec.Timestamp.UnixMilli()
}

// inject completes meta, as the store does, wherever it likes.
func inject(body []byte, version int, c int64) []byte {
	if body == nil || bytes.Contains(body, []byte(`"versionId"`)) {
		return body
	}
	two := fmt.Sprintf(`"versionId":"%d","lastUpdated":"%s"`, version, time.UnixMilli(c).UTC().Format("2006-01-02T15:04:05.000Z"))
	if bytes.Contains(body, []byte(`"meta":{`)) {
		return bytes.Replace(body, []byte(`"meta":{`), []byte(`"meta":{`+two+`,`), 1)
	}
	return bytes.Replace(body, []byte(`,"extension"`), []byte(`,"meta":{`+two+`},"extension"`), 1)
}

// export is what a client gets.
type export struct {
	since, until int64
	output       []line
	deleted      []string
}

type line struct {
	key  string
	body []byte
}

func (s *server) export(now, since int64) export {
	s.promised = max(s.promised, s.watermark(now))
	e := export{since: since, until: s.promised}
	for _, key := range slices.Sorted(maps.Keys(s.rows)) {
		rows := s.rows[key]
		i := len(rows) - 1
		for i >= 0 && rows[i].c > e.until {
			i--
		}
		if i < 0 || rows[i].c <= since {
			continue
		}
		switch {
		case !rows[i].deleted:
			e.output = append(e.output, line{key, rows[i].body})
		case since != minusInf:
			e.deleted = append(e.deleted, key)
		}
	}
	return e
}

// run is a chain of exports while a hospital writes, with a server that is away
// for a while, and ends when all has been written.
type run struct {
	ledger  *Ledger
	log     []hospital.Record
	exports []export
	full    export // in the end, of another client
}

// clone keeps the honest run as it is.
func (r *run) clone() *run {
	c := *r
	c.exports = slices.Clone(r.exports)
	for i, e := range c.exports {
		c.exports[i].output, c.exports[i].deleted = slices.Clone(e.output), slices.Clone(e.deleted)
	}
	return &c
}

func newRun(t *testing.T, seed uint64) *run {
	t.Helper()
	opened := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h := hospital.New(hospital.Options{Seed: seed, Patients: 6, Years: 1, End: opened, Bare: 0.15})
	r := &run{ledger: NewLedger(Options{Allowance: time.Second})}
	s := newServer()
	now := opened
	write := func(rec hospital.Record) bool {
		receipt, err := r.ledger.Sent(rec)
		if err != nil {
			t.Fatal(err)
		}
		s.log = append(s.log, rec)
		r.ledger.Acked(receipt, now.Add(3*time.Millisecond))
		return true
	}
	h.History(write)
	now = now.Add(time.Second)
	r.ledger.Start(now)
	since := int64(minusInf)
	for tick := range 400 {
		now = now.Add(50 * time.Millisecond)
		at := now.UnixMilli()
		h.Live(now, 6, write)
		switch away := tick > 200 && tick < 260; {
		case tick == 200:
			s.crash()
		case away:
		default:
			s.fetch()
			if tick%10 == 3 {
				s.commit(at)
			}
			if tick%61 == 40 {
				e := s.export(at, since)
				r.exports, since = append(r.exports, e), e.until
			}
		}
	}
	s.fetch()
	s.commit(now.UnixMilli())
	last := s.export(now.UnixMilli()+3*allowance, since)
	r.log, r.exports = s.log, append(r.exports, last)
	r.full = s.export(now.UnixMilli()+3*allowance, minusInf)
	return r
}

// judge lets a client receive the exports.
func (r *run) judge(t *testing.T) *Verdict {
	t.Helper()
	c := r.ledger.Chain()
	for _, e := range r.exports {
		since := time.Time{}
		if e.since != minusInf {
			since = time.UnixMilli(e.since)
		}
		if err := c.Window(since, time.UnixMilli(e.until)); err != nil {
			t.Fatal(err)
		}
		for _, l := range e.output {
			if err := c.Output(kindOf(l.key), l.body); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range e.deleted {
			c.Deleted(key)
		}
	}
	return c.Judge()
}
