package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/segment"
	"tidemark/store/storetest"
)

var (
	modelRuns  = flag.Int("model.runs", storetest.Rounds(30), "random histories of the model test")
	modelSteps = flag.Int("model.steps", 400, "steps of each history")
	modelSeed  = flag.Uint64("model.seed", 0, "run only the history with this seed")
)

// A kind of source decides what its records say, and so how the truth about
// "newer" can be known without looking at the store: the source's own order.
type sourceKind int

const (
	versioned sourceKind = iota // versionId and lastUpdated, versionless tombstones, in one partition
	bare                        // no meta at all, in one partition
	explicit                    // versions on tombstones too; any order after the first record
	moving                      // versions only, no deletion, any partition, any order
	rows                        // what a connector tells of tables, with places in the database's log: see database
	kinds     = rows + 2        // rows are twice as likely
)

// sent is a record that the source has produced.
type sent struct {
	ch    Change
	index int // its place in the source's own order; re-sent records keep it
	body  string
	part  int
}

// source is one resource at its source.
type source struct {
	kind    sourceKind
	key     fhir.Key
	version int64
	index   int
	deleted bool
	part    int
	history []sent
	unsent  []sent // produced out of order later
	erased  bool
	table   table // of rows
}

// model is a broker, a hospital, a store and a client that chains exports.
type model struct {
	t      *testing.T
	r      *rand.Rand
	fs     *vfs.MemFS
	db     *DB
	o      Options
	oracle storetest.Oracle

	logs    [][]sent // the partitions
	fetched []int64  // next offset to fetch of each
	caught  []bool   // whether that was once its end, since the store was opened
	order   []pendingBatch
	newest  map[string]int // greatest accepted source index

	sources []*source
	base    database
	own     bool // all tables are of versions
	since   fhir.Instant
	copy    map[string]string // what the client has
	seen    map[string]bool   // bodies delivered
	exports int
	windows []window // earlier exports that are still pinned
	merges  [compaction.Widen + 1]int
	steps   []string

	pointed int // how often what a Provenance is about led to it

	backup   *backedUp // the last, nil if there is none that may be restored
	restores int
	restored fhir.Instant // what was promised when the store was last restored or reindexed
}

// backedUp is a backup, and what was true when it was made.
type backedUp struct {
	path   string
	oracle storetest.Oracle
	newest map[string]int
}

type pendingBatch struct {
	list   []sent
	now    fhir.Instant
	caught bool // the partition, before it
}

type window struct {
	id      string
	since   fhir.Instant
	live    map[string]string
	deleted map[string]bool
}

const modelTopic = "fhir"

// modelSeeds are histories in which something was wrong once, beyond those that are run
// anyhow: 61 and 65 had last states in fresh segments of which a part had settled,
// and a reindex. 31 tells a deletion again behind a row that knows no place, 59 a deletion of
// something deleted before the life between them.
var modelSeeds = []uint64{31, 59, 61, 65}

func TestModel(t *testing.T) {
	windows, restores, led, merges := 0, 0, 0, [compaction.Widen + 1]int{}
	for i := range *modelRuns + len(modelSeeds) {
		seed := uint64(i + 1)
		if i >= *modelRuns {
			seed = modelSeeds[i-*modelRuns]
		}
		if *modelSeed != 0 {
			seed = *modelSeed
		}
		synctest.Test(t, func(t *testing.T) {
			m := runModel(t, seed, false)
			windows, restores, led = windows+m.exports, restores+m.restores, led+m.pointed
			for k, n := range m.merges {
				merges[k] += n
			}
		})
		if t.Failed() || *modelSeed != 0 {
			t.Logf("again with: -run TestModel -model.seed=%d -model.steps=%d", seed, *modelSteps)
			break
		}
	}
	t.Logf("%d windows, %d restores; merges:", windows, restores)
	for k, n := range merges {
		t.Logf("%s %d", compaction.Kind(k), n)
		if n == 0 && *modelSeed == 0 {
			t.Errorf("nothing was done of the kind %s", compaction.Kind(k))
		}
	}
	if restores == 0 && *modelSeed == 0 {
		t.Error("no backup was restored")
	}
	if led < 100*(*modelRuns) && *modelSeed == 0 {
		t.Errorf("only %d times something led to a Provenance", led)
	}
	if windows < *modelRuns && *modelSeed == 0 {
		t.Errorf("only %d windows were exported", windows)
	}
}

// TestModelOfVersions: as TestModel, of tables of versions without numbers, each version in a
// partition of its own.
func TestModelOfVersions(t *testing.T) {
	for i := range *modelRuns / 3 {
		seed := max(*modelSeed, uint64(i+1))
		synctest.Test(t, func(t *testing.T) { runModel(t, seed, true) })
		if t.Failed() || *modelSeed != 0 {
			t.Logf("again with: -run TestModelOfVersions -model.seed=%d -model.steps=%d", seed, *modelSteps)
			break
		}
	}
}

func runModel(t *testing.T, seed uint64, own bool) *model {
	m := &model{
		t: t, r: rand.New(rand.NewPCG(seed, 7)), fs: vfs.NewCrashableMem(), since: fhir.None, restored: fhir.None,
		own: own, newest: map[string]int{}, copy: map[string]string{}, seen: map[string]bool{},
	}
	n := 1 + m.r.IntN(3)
	m.logs, m.fetched = make([][]sent, n), make([]int64, n)
	m.o = Options{
		FS: m.fs, CommitInterval: 100 * time.Millisecond, MergeOff: true, still: true, Cache: 1 << 20,
		Allowance:   []time.Duration{time.Millisecond, time.Second, time.Minute}[m.r.IntN(3)],
		SettleAfter: []time.Duration{time.Millisecond, 5 * time.Second, time.Hour}[m.r.IntN(3)],
		smallFile:   []int64{1, 0}[m.r.IntN(2)],
		LastState:   []time.Duration{time.Millisecond, time.Minute}[m.r.IntN(2)],
	}
	m.open()
	defer func() {
		if err := m.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for range *modelSteps {
		m.step()
		if t.Failed() {
			t.Logf("seed %d, the last steps: %s", seed, strings.Join(m.steps[max(0, len(m.steps)-40):], " "))
			break
		}
	}
	if !t.Failed() {
		m.drain()
	}
	if !t.Failed() {
		m.age()
	}
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
	return m
}

func (m *model) open() {
	db, err := Open("store", m.o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.db = db
	m.order, m.caught = nil, make([]bool, len(m.logs))
	m.discover()
	for p := range m.fetched {
		m.fetched[p] = m.state(p).Next
	}
}

func (m *model) part(p int) Partition { return Partition{Topic: modelTopic, ID: int32(p)} }

func (m *model) state(p int) PartitionState {
	s, _ := m.db.Partition(m.part(p))
	return s
}

func (m *model) discover() {
	d := Discovery{Complete: true}
	for p := range m.logs {
		d.Partitions = append(d.Partitions, Discovered{Partition: m.part(p), End: int64(len(m.logs[p]))})
	}
	if err := m.db.Discover(d); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) step() {
	ops := []struct {
		weight int
		name   string
		do     func()
	}{
		{30, "produce", m.produce},
		{25, "fetch", m.fetch},
		{12, "commit", m.commit},
		{12, "wait", func() { time.Sleep(time.Duration(m.r.IntN(3000)) * time.Millisecond) }},
		{1, "rest", func() { time.Sleep(time.Duration(m.r.IntN(20)) * time.Minute) }},
		{10, "export", m.export},
		{3, "merge", m.merge},
		{2, "reread", m.reread},
		{1, "restart", m.restart},
		{1, "crash", m.crash},
		{1, "partition", m.addPartition},
		{1, "reindex", m.reindex},
		{1, "erase", m.erase},
		{2, "backup", m.backUp},
		{1, "restore", m.restore},
		{2, "connect", m.connect},
		{1, "snapshot", m.snapshot},
		{1, "move", m.move},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	n := m.r.IntN(total)
	for _, o := range ops {
		if n -= o.weight; n < 0 {
			m.steps = append(m.steps, o.name)
			o.do()
			m.check(o.name)
			return
		}
	}
}

// check proves the store's invariants after what changed it.
func (m *model) check(step string) {
	switch step {
	case "commit", "merge", "restart", "crash", "reindex", "erase", "restore":
		if _, err := m.db.Check(len(m.steps)%4 == 0); err != nil {
			m.t.Errorf("after %s: %v", step, err)
		}
		if len(m.steps)%4 == 1 {
			now := m.db.snapshotNow()
			defer now.Close()
			m.pointed += pointed(m.t, now)
		}
	}
}

// produce lets the hospital write one to four records.
func (m *model) produce() {
	for range 1 + m.r.IntN(4) {
		switch {
		case len(m.sources) == 0 || m.r.IntN(4) == 0 && len(m.sources) < 60:
			m.create()
		case m.r.IntN(5) == 0:
			m.resend(m.sources[m.r.IntN(len(m.sources))])
		default:
			m.change(m.sources[m.r.IntN(len(m.sources))])
		}
	}
}

func (m *model) create() {
	types := []string{"Patient", "Observation", "Encounter"}
	typ, _ := fhir.ParseType(types[m.r.IntN(len(types))])
	if len(m.sources)%4 == 3 {
		typ = provenanceType
	}
	s := &source{kind: min(rows, sourceKind(m.r.IntN(int(kinds)))), key: fhir.Key{Type: typ, ID: fmt.Sprintf("r%d", len(m.sources))}, part: m.r.IntN(len(m.logs))}
	m.sources = append(m.sources, s)
	if s.kind == rows {
		s.table = m.newTable(s)
		m.write(s)
		return
	}
	m.send(s, m.next(s, false))
}

// next is the source's next record.
func (m *model) next(s *source, remove bool) sent {
	s.index++
	now := fhir.FromTime(time.Now())
	t := now
	switch m.r.IntN(8) {
	case 0:
		t -= fhir.Instant(m.r.IntN(3_600_000)) // late
	case 1:
		t += fhir.Instant(m.r.IntN(400) * 86_400_000) // a clock that is far ahead
	case 2:
		t -= fhir.Instant(m.r.IntN(1500))
	}
	ch := Change{Key: s.key, Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: t}
	if m.r.IntN(20) == 0 {
		ch.Timestamp = fhir.None
	}
	s.version++
	if s.kind == rows {
		ch.Delete = remove
		m.says(s, &ch, now)
	}
	if remove {
		ch.Delete = true
		if s.kind == explicit {
			ch.Version = s.version
		}
		if s.kind != explicit && s.kind != rows {
			// Two versionless deletions with one timestamp are one and its replay.
			ch.Timestamp = t
			for slices.ContainsFunc(s.history, func(h sent) bool { return h.ch.Delete && h.ch.Timestamp == ch.Timestamp }) {
				ch.Timestamp--
			}
		}
		s.deleted = true
		return sent{ch: ch, index: s.index}
	}
	s.deleted = false
	body := map[string]any{"resourceType": s.key.Type.String(), "id": s.key.ID, "n": s.index}
	switch s.kind {
	case versioned, moving, explicit:
		ch.Version = s.version
		body["v"] = s.version
		if s.kind == versioned {
			// A source's own clock may stand still, but it does not run back.
			ch.LastUpdated = t
			if n := m.lastUpdated(s); n != fhir.None {
				ch.LastUpdated = max(n, t)
			}
		}
	}
	ch.Body = mustJSON(body)
	if s.index%3 == 0 { // for the index to lead back to it, whatever happens
		ch.References = []fhir.Key{binaryKey(fmt.Sprintf("b%d", s.index%5))}
	}
	m.relate(&ch, s)
	return sent{ch: ch, index: s.index, body: string(ch.Body)}
}

// relate puts a resource into compartments, which it changes now and then, or makes
// it a Provenance that is about some others, which may not have come.
func (m *model) relate(ch *Change, s *source) {
	if s.key.Type == provenanceType {
		for k := range 3 {
			n := s.index*7 + k*11
			key := fhir.Key{Type: groupType, ID: "g"}
			if i := n % (len(m.sources) + 3); i < len(m.sources) {
				key = m.sources[i].key
			} else if k > 0 {
				key = fhir.Key{Type: observationType, ID: fmt.Sprintf("r%d", i)}
			}
			ch.References = append(ch.References, key)
		}
		slices.SortFunc(ch.References, fhir.Key.Compare)
		ch.References = slices.Compact(ch.References)
		return
	}
	switch n := (s.index + len(s.key.ID)) / 2; {
	case n%5 == 0:
	case n%7 == 0:
		ch.Patients = []string{"p0", "p1"}
	default:
		ch.Patients = []string{fmt.Sprintf("p%d", n%3)}
	}
}

func (m *model) lastUpdated(s *source) fhir.Instant {
	last := fhir.None
	for _, h := range s.history {
		last = max(last, h.ch.LastUpdated)
	}
	return last
}

func (m *model) change(s *source) {
	if s.kind == rows {
		m.write(s)
		return
	}
	if (s.kind == explicit || s.kind == moving) && m.r.IntN(3) == 0 && len(s.unsent) > 0 {
		i := m.r.IntN(len(s.unsent)) // what was held back comes now
		x := s.unsent[i]
		s.unsent = slices.Delete(s.unsent, i, i+1)
		m.send(s, x)
		return
	}
	remove := s.kind != moving && !s.deleted && m.r.IntN(5) == 0
	x := m.next(s, remove)
	if (s.kind == explicit || s.kind == moving) && m.r.IntN(3) == 0 {
		s.unsent = append(s.unsent, x)
		return
	}
	m.send(s, x)
}

// resend repeats an old record, as producers that retry or replay do.
func (m *model) resend(s *source) {
	if s.kind == rows {
		m.again(s)
		return
	}
	if s.kind == bare {
		// Without any meta only the newest state can be sent again unnoticed, and
		// a deletion by its own timestamp.
		x := s.history[len(s.history)-1]
		m.send(s, x)
		return
	}
	m.send(s, s.history[m.r.IntN(len(s.history))])
}

func (m *model) send(s *source, x sent) {
	p := s.part
	if s.kind == moving {
		p = m.r.IntN(len(m.logs))
	}
	x.part = p
	s.history = append(s.history, x)
	m.logs[p] = append(m.logs[p], x)
}

// fetch takes the next records of one partition in.
func (m *model) fetch() {
	p := m.r.IntN(len(m.logs))
	from := m.fetched[p]
	to := min(from+int64(m.r.IntN(12)), int64(len(m.logs[p])))
	asked := m.db.Now()
	if m.r.IntN(3) == 0 {
		time.Sleep(time.Duration(m.r.IntN(300)) * time.Millisecond) // a long poll
	}
	b := Batch{Partition: m.part(p), Next: to, LeaderEpoch: -1, Asked: asked, End: int64(len(m.logs[p]))}
	list := m.logs[p][from:to]
	for i, x := range list {
		ch := x.ch
		ch.Offset = from + int64(i)
		ch.Body = bytes.Clone(ch.Body)
		b.Changes = append(b.Changes, ch)
	}
	if err := m.db.Apply(context.Background(), b); err != nil {
		m.t.Fatal(err)
	}
	m.fetched[p] = to
	m.order = append(m.order, pendingBatch{list, m.db.Now(), m.caught[p]})
	m.caught[p] = m.caught[p] || asked > m.restored && to == b.End
}

// commit makes what was taken in durable, and tells the oracle in the same order.
func (m *model) commit() {
	m.db.mu.Lock()
	line := m.db.watermark()
	m.db.mu.Unlock()
	if err := m.db.Flush(); err != nil {
		m.t.Fatal(err)
	}
	for _, b := range m.order {
		for _, x := range b.list {
			m.accept(x, line, b)
		}
	}
	m.order = nil
}

// accept knows what is newer from the source's own order alone.
func (m *model) accept(x sent, line fhir.Instant, b pendingBatch) {
	now := b.now
	key := x.ch.Key.String()
	cur := m.oracle.Newest(key)
	t := x.ch.LastUpdated
	if t == fhir.None {
		t = x.ch.Time
	}
	if t == fhir.None {
		t = x.ch.Timestamp
	}
	if t > now {
		t = fhir.None
	}
	doubtful := m.restored != fhir.None && (t <= m.restored || !b.caught)
	if slices.ContainsFunc(m.sources, func(s *source) bool { return s.key == x.ch.Key && s.erased }) {
		if cur == nil && doubtful { // the client may have what the lost store told
			m.oracle.Apply(key, "", t, line, now)
			m.oracle.Newest(key).Reported = true
		}
		return
	}
	if cur != nil && x.index <= m.newest[key] {
		if placed := x.ch.Position != 0 || m.own; placed && doubtful && !x.ch.Delete && cur.Body == "" && !cur.Reported {
			m.oracle.Apply(key, "", t, line, now) // it lived before what was deleted came first
			m.oracle.Newest(key).Reported = true
		}
		return
	}
	m.newest[key] = x.index
	if placed := x.ch.Position != 0; placed && m.restored != fhir.None && cur != nil && cur.Reported && cur.C <= m.restored {
		doubtful = true // it must have lived before it was deleted again
	}
	if x.ch.Delete && cur != nil && cur.Body == "" && !doubtful {
		return
	}
	m.oracle.Apply(key, x.body, t, line, now)
	if x.ch.Delete && doubtful {
		m.oracle.Newest(key).Reported = true
	}
}

// export is one window of the chain.
func (m *model) export() {
	id := fmt.Sprintf("job-%d", m.exports)
	s, err := m.db.Pin(context.Background(), id, time.Now().Add(time.Hour), func(*Snapshot) ([]byte, error) { return []byte(id), nil })
	if errors.Is(err, ErrNotReady) {
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	w := s.Watermark()
	if w < m.since {
		m.t.Errorf("the watermark fell from %v to %v", m.since, w)
	}
	m.exports++
	win := window{id: id, since: m.since}
	win.live, win.deleted = m.read(s, m.since, w)
	wantLive, wantDeleted := m.oracle.Export(m.since, w, w)
	if d := cmp.Diff(wantLive, win.live); d != "" {
		m.t.Errorf("window (%v, %v]: resources (-oracle +export):\n%s", m.since, w, d)
	}
	if d := cmp.Diff(wantDeleted, win.deleted); d != "" {
		m.t.Errorf("window (%v, %v]: deletions (-oracle +export):\n%s", m.since, w, d)
	}
	m.deliver(win)
	m.pointed += pointed(m.t, s)
	if err := s.Close(); err != nil {
		m.t.Error(err)
	}
	m.since = w
	if m.windows = append(m.windows, win); len(m.windows) > 3 {
		if err := m.db.Unpin(context.Background(), m.windows[0].id); err != nil {
			m.t.Error(err)
		}
		m.windows = m.windows[1:]
	}
}

// deliver is the client: it upserts, then deletes, and notices what comes twice.
func (m *model) deliver(w window) {
	for key, body := range w.live {
		if w.deleted[key] {
			m.t.Errorf("%s is in output and in deleted", key)
		}
		if m.seen[body] && m.copy[key] == body {
			m.t.Errorf("%s came twice: %s", key, body)
		}
		m.seen[body] = true
		m.copy[key] = body
	}
	for key := range w.deleted {
		delete(m.copy, key)
	}
}

// read downloads a window in both encodings.
func (m *model) read(s *Snapshot, since, upto fhir.Instant) (live map[string]string, deleted map[string]bool) {
	live, deleted = map[string]string{}, map[string]bool{}
	for _, kind := range []segment.Kind{segment.Live, segment.Deleted} {
		for _, sec := range s.Sections(kind) {
			for _, line := range m.lines(s, sec, since, upto) {
				if kind == segment.Deleted {
					deleted[deletedKey(m.t, line)] = true
					continue
				}
				var r struct{ ResourceType, ID string }
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					m.t.Fatal(err)
				}
				if _, twice := live[r.ResourceType+"/"+r.ID]; twice {
					m.t.Errorf("%s/%s stands twice in one export", r.ResourceType, r.ID)
				}
				live[r.ResourceType+"/"+r.ID] = line
			}
		}
	}
	return live, deleted
}

func deletedKey(t *testing.T, line string) string {
	var b struct {
		Entry []struct{ Request struct{ Method, URL string } }
	}
	if err := json.Unmarshal([]byte(line), &b); err != nil || len(b.Entry) != 1 || b.Entry[0].Request.Method != "DELETE" {
		t.Fatalf("not a DELETE bundle: %s (%v)", line, err)
	}
	return b.Entry[0].Request.URL
}

func (m *model) lines(s *Snapshot, sec segment.Section, since, upto fhir.Instant) []string {
	ext, err := s.Extents(sec, since, upto)
	if err != nil {
		m.t.Fatal(err)
	}
	f, err := s.File(context.Background(), strings.ToLower(strings.ReplaceAll(sec.String(), "/", "-")), sec, since, upto, ext)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	rows, size := 0, int64(0)
	for _, e := range ext {
		rows, size = rows+e.Rows, size+e.Bytes
	}
	var plain, packed bytes.Buffer
	if err := f.WriteIdentity(&plain, 0, f.Size()); err != nil {
		m.t.Fatal(err)
	}
	if err := f.WriteGzip(&packed, 0, f.GzipSize()); err != nil {
		m.t.Fatal(err)
	}
	if int64(packed.Len()) != f.GzipSize() || int64(plain.Len()) != f.Size() || size != f.Size() {
		m.t.Errorf("lengths: gzip %d of %d, NDJSON %d of %d, extents say %d", packed.Len(), f.GzipSize(), plain.Len(), f.Size(), size)
	}
	whole := !slices.ContainsFunc(ext, func(x Extent) bool { return !x.Whole })
	is := crc32.ChecksumIEEE(plain.Bytes())
	if crc, known := s.Sum(ext); known != whole || known && crc != is || f.CRC32() != is {
		m.t.Errorf("CRC-32 of the NDJSON %08x, of the file %08x, of the extents %08x (known %v, all whole %v)", is, f.CRC32(), crc, known, whole)
	}
	if got := gunzip(m.t, packed.Bytes()); !bytes.Equal(got, plain.Bytes()) {
		m.t.Errorf("the gzip member does not hold the NDJSON")
	}
	lines := strings.Split(strings.TrimSuffix(plain.String(), "\n"), "\n")
	if plain.Len() == 0 {
		lines = nil
	}
	if len(lines) != rows {
		m.t.Errorf("%v: %d lines, extents count %d", sec, len(lines), rows)
	}
	return lines
}

// gunzip reads one member and refuses more.
func gunzip(t *testing.T, b []byte) []byte {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false)
	got, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// reread asks that an export that is pinned still gives the same.
func (m *model) reread() {
	if len(m.windows) == 0 {
		return
	}
	w := m.windows[m.r.IntN(len(m.windows))]
	s, err := m.db.Snapshot(w.id)
	if err != nil {
		m.t.Fatal(err)
	}
	defer s.Close()
	live, deleted := m.read(s, w.since, s.Watermark())
	if !maps.Equal(live, w.live) || !maps.Equal(deleted, w.deleted) {
		m.t.Errorf("export %s gives something else than before", w.id)
	}
}

func (m *model) merge() {
	for range 1 + m.r.IntN(4) {
		m.rewrite()
	}
}

func (m *model) rewrite() compaction.Kind {
	r, err := m.db.rewrite(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	m.steps = append(m.steps, r.job.Kind.String())
	m.merges[r.job.Kind]++
	return r.job.Kind
}

// age lets the store grow old: everything settles and windows are widened. Then
// exports that were pinned long ago and a full one must be what they were.
func (m *model) age() {
	for range 4 {
		for m.rewrite() != compaction.Nothing {
		}
		m.check("merge")
		time.Sleep(time.Hour)
	}
	m.reread()
	m.since, m.copy, m.seen = fhir.None, map[string]string{}, map[string]bool{}
	m.export()
	m.complete()
}

func (m *model) restart() {
	if err := m.db.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
}

// crash loses some of what was not synced; what was committed must be there.
func (m *model) crash() {
	clone := m.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[m.r.IntN(3)], RNG: m.r})
	if err := m.db.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.fs, m.o.FS = clone, clone
	m.open()
}

// reindex throws the index away and makes it anew; jobs are lost, data is not.
func (m *model) reindex() {
	if m.db.Status().Segments == 0 {
		return
	}
	if err := m.db.Close(); err != nil {
		m.t.Fatal(err)
	}
	if err := m.fs.RemoveAll("store/index"); err != nil {
		m.t.Fatal(err)
	}
	// What was promised last may be the millisecond after the clock's, and is lost with the
	// index; nobody loses that and has the store made anew within it.
	time.Sleep(2 * time.Millisecond)
	if err := Reindex(context.Background(), "store", m.o, io.Discard); err != nil {
		m.t.Fatal(err)
	}
	m.windows = nil
	m.open()
	m.restored = m.db.Promised()
}

// backUp copies the store while it runs: all that is committed.
func (m *model) backUp() {
	b, err := m.db.Backup(context.Background(), "backups", m.r.IntN(2) == 0)
	if errors.Is(err, os.ErrExist) {
		return // no millisecond has passed since the last one
	}
	if err != nil {
		m.t.Fatal(err)
	}
	kept := &backedUp{path: b.Path, oracle: storetest.Oracle{Rows: map[string][]storetest.Version{}}, newest: maps.Clone(m.newest)}
	for key, list := range m.oracle.Rows {
		kept.oracle.Rows[key] = slices.Clone(list)
	}
	m.backup = kept
}

// restore loses the store and makes it anew from a backup. The client chains on:
// what came since then is read again and may come to it once more.
func (m *model) restore() {
	b := m.backup
	if b == nil {
		return
	}
	if err := errors.Join(m.db.Close(), m.fs.RemoveAll("store")); err != nil {
		m.t.Fatal(err)
	}
	if err := Restore(context.Background(), b.path, "store", "", m.o, io.Discard); err != nil {
		m.t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // each reindex sets the clock a little ahead of time, and a backup does not know
	m.oracle, m.newest, m.seen, m.windows, m.backup = b.oracle, b.newest, map[string]bool{}, nil, nil
	m.restores++
	m.open()
	m.restored = m.db.Promised()
}

// erase takes a resource out of all history, or a Patient with its compartment,
// which in this hospital is the Patient alone. Whatever is sent of it later, or
// again, is refused.
func (m *model) erase() {
	if len(m.sources) == 0 {
		return
	}
	s := m.sources[m.r.IntN(len(m.sources))]
	m.commit()
	m.db.mu.Lock()
	line := m.db.watermark()
	m.db.mu.Unlock()
	done, err := m.db.Erase(context.Background(), Erasure{Key: s.key, Compartment: s.key.Type == patientType && m.r.IntN(2) == 0})
	if err != nil {
		m.t.Fatal(err)
	}
	s.erased, m.backup = true, nil // TestBackup… restores from before an erasure
	if cur := m.oracle.Newest(s.key.String()); cur != nil && cur.Body != "" {
		m.oracle.Apply(s.key.String(), "", fhir.None, line, m.db.Now())
		if done.Resources != 1 {
			m.t.Errorf("%s lived, but %d resources were erased", s.key, done.Resources)
		}
	}
	if cur := m.oracle.Newest(s.key.String()); m.restored != fhir.None && (cur == nil || cur.Body == "" && cur.C <= m.restored) {
		m.oracle.Apply(s.key.String(), "", fhir.None, line, m.db.Now())
		m.oracle.Newest(s.key.String()).Reported = true // the client may have what the lost store told
	}
	m.oracle.Erase(s.key.String())
	m.windows = slices.DeleteFunc(m.windows, func(w window) bool { return slices.Contains(done.Jobs, w.id) })
	for _, body := range []string{`"id":"` + s.key.ID + `"`} {
		if strings.Contains(bodies(m.t, m.db), body) {
			m.t.Errorf("%s was erased, but %s still lies in a segment", s.key, body)
		}
	}
}

func (m *model) addPartition() {
	if len(m.logs) < 5 {
		m.logs, m.fetched, m.caught = append(m.logs, nil), append(m.fetched, 0), append(m.caught, false)
		m.discover()
	}
}

// drain lets everything in, waits until the watermark has passed it, and asks
// that the client then has exactly what the sources have.
func (m *model) drain() {
	for _, s := range m.sources {
		for _, x := range s.unsent {
			m.send(s, x)
		}
	}
	for range 3 {
		for p := range m.logs {
			for m.fetched[p] < int64(len(m.logs[p])) {
				m.fetch()
			}
		}
		m.commit()
		time.Sleep(2 * time.Minute)
		for p := range m.logs { // an idle answer moves the watermark
			b := Batch{Partition: m.part(p), Next: m.fetched[p], LeaderEpoch: -1, Asked: m.db.Now(), End: int64(len(m.logs[p]))}
			if err := m.db.Apply(context.Background(), b); err != nil {
				m.t.Fatal(err)
			}
			m.caught[p] = m.caught[p] || b.Asked > m.restored
		}
		m.export()
	}
	m.complete()
}

// complete asks that the client has exactly what the sources have.
func (m *model) complete() {
	want := map[string]string{}
	for _, s := range m.sources {
		last := s.history[0]
		for _, h := range s.history {
			if h.index > last.index {
				last = h
			}
		}
		if last.body != "" && !s.erased {
			want[s.key.String()] = last.body
		}
	}
	if d := cmp.Diff(want, m.copy); d != "" {
		m.t.Errorf("after the chain (-sources +client):\n%s", d)
	}
}
