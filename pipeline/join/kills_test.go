package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	gocmp "github.com/google/go-cmp/cmp"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

var (
	killsRuns = flag.Int("kills.runs", storetest.Rounds(40), "random histories of TestKills")
	killsSeed = flag.Uint64("kills.seed", 0, "run only the history with this seed")
)

// kills is a database whose rows a connector tells, flattened and without transactions; a
// server that joins them in a store; and a client that makes one increment after the other.
// Connector and server are killed once in a while, and the connector may lose its offsets then.
type kills struct {
	t   *testing.T
	r   *rand.Rand
	lsn int

	loses bool       // a connector that is killed may lose its offsets
	other *rand.Rand // of that

	pid int64

	resources []*stored
	tags      map[string]int64 // tag_id by code
	codes     map[int64]string

	log     []logged         // all that was ever written
	read    int              // how far the connector has read it
	told    map[string][]int // read, and not yet written to a topic: places in the log
	kept    int              // where the connector begins again
	ends    []ended          // transactions
	topics  map[string][]decode.Record
	fetched map[string]int64

	fs *vfs.MemFS
	o  store.Options
	db *store.DB
	j  *Join

	slow map[string]int // of what is told of a topic, or read of it: one in so many times
	many int            // resources
	back int            // how far a connector may go back

	since fhir.Instant
	has   map[string]string
	jobs  int
	steps []string
}

// An ended is where a transaction ends: as a number in the log, and as a place.
type ended struct{ at, lsn int }

var killsTables = []string{"hfj_resource", "hfj_res_ver", "hfj_res_tag", "hfj_tag_def"}

func killsTopic(table string) string { return "hapi.public." + table }

func (k *kills) now() int64 { return time.Now().UnixMilli() }

// row is one more of the log. All rows of a transaction are of the instant of its end, which
// for what there is no sleep in is now.
func (k *kills) row(table, op string, row map[string]any) {
	if op != "r" { // all that a snapshot has is at one place
		k.lsn += 1 + k.r.IntN(200)
	}
	key := map[string]any{"pid": row["pid"]}
	switch table {
	case "hfj_resource":
		key = map[string]any{"res_id": row["res_id"]}
	case "hfj_tag_def":
		key = map[string]any{"tag_id": row["tag_id"]}
	}
	row["__op"], row["__table"], row["__lsn"], row["__source_ts_ms"], row["__deleted"] = op, table, k.lsn, k.now(), fmt.Sprint(op == "d")
	k.log = append(k.log, logged{killsTopic(table), record(killsTopic(table), mustJSON(key), mustJSON(row))})
}

func (k *kills) resourceRow(o *stored, op string) {
	k.row("hfj_resource", op, map[string]any{"res_id": o.id, "res_type": "Patient", "fhir_id": strings.TrimPrefix(o.key, "Patient/"), "res_ver": o.version})
}

func (k *kills) tag(o *stored, code string) {
	id, known := k.tags[code]
	if !known {
		k.pid++
		id = k.pid
		k.tags[code], k.codes[id] = id, code
		k.row("hfj_tag_def", "c", map[string]any{"tag_id": id, "tag_type": 0, "tag_system": "urn:s", "tag_code": code, "tag_user_selected": false})
	}
	for _, of := range o.tags {
		if of == id {
			return
		}
	}
	k.pid++
	o.tags[k.pid] = id
	k.row("hfj_res_tag", "c", map[string]any{"pid": k.pid, "res_id": o.id, "tag_id": id})
}

func (k *kills) version(o *stored, body string) {
	k.pid++
	o.version, o.body, o.pid, o.source = o.version+1, body, k.pid, ""
	o.at = k.now()
	k.versionRow(o, "c")
	o.source = fmt.Sprintf("http://hapi.example/a#%d", o.pid)
	k.versionRow(o, "u")
}

func (k *kills) versionRow(o *stored, op string) { k.row("hfj_res_ver", op, k.versionOf(o)) }

func (k *kills) versionOf(o *stored) map[string]any {
	row := map[string]any{"pid": o.pid, "res_id": o.id, "res_type": "Patient", "res_ver": o.version, "res_encoding": "JSON", "res_text_vc": o.body, "res_updated": o.at * 1000, "has_tags": len(o.tags) > 0, "source_uri": o.source}
	if o.body == "" {
		row["res_encoding"], row["res_text_vc"] = "DEL", nil
	}
	return row
}

func (k *kills) put(o *stored, n int, tags ...string) {
	fresh := o.version == 0
	if fresh {
		k.pid++
		o.id = k.pid
		k.resourceRow(o, "c")
	}
	for _, code := range tags {
		k.tag(o, code)
	}
	k.version(o, fmt.Sprintf(`{"resourceType":"Patient","n":%d}`, n))
	if !fresh {
		k.resourceRow(o, "u")
	}
}

func (k *kills) remove(o *stored) {
	k.version(o, "")
	k.resourceRow(o, "u")
}

// write is a transaction.
func (k *kills) write(n int) {
	for len(k.resources) < k.many+n/4 {
		k.resources = append(k.resources, &stored{key: fmt.Sprintf("Patient/p%d", len(k.resources)), tags: map[int64]int64{}})
	}
	pause := func() {
		if k.r.IntN(3) == 0 {
			time.Sleep(time.Duration(k.r.IntN(3)) * time.Millisecond)
		}
	}
	for _, i := range k.r.Perm(k.many)[:1+k.r.IntN(min(2, k.many))] {
		o := k.resources[i+n/4]
		tags := [][]string{{fmt.Sprint(n)}, {"a"}, {}, {"a", fmt.Sprint(n)}}[k.r.IntN(4)]
		if o.version == 0 && k.r.IntN(4) > 0 {
			tags = nil
		}
		if k.r.IntN(8) > 0 || o.body == "" {
			k.put(o, n, tags...)
			pause()
		}
		if k.r.IntN(3) == 0 {
			k.remove(o)
			pause()
			if k.r.IntN(4) == 0 {
				k.put(o, n, tags...)
			}
		}
	}
}

// connect has the connector read, and write some of what it has read, to any topic.
func (k *kills) connect() {
	for range k.r.IntN(40) {
		if k.read < len(k.log) {
			topic := k.log[k.read].topic
			k.told[topic] = append(k.told[topic], k.read)
			k.read++
		}
	}
	for _, table := range killsTables {
		if k.r.IntN(k.slow[table]) == 0 {
			k.send(killsTopic(table), k.r.IntN(len(k.told[killsTopic(table)])+1))
		}
	}
	if k.r.IntN(4) == 0 {
		k.kept = k.unsent()
	}
}

func (k *kills) send(topic string, n int) {
	for _, at := range k.told[topic][:n] {
		rec := k.log[at].rec
		rec.Timestamp, rec.Offset = fhir.Instant(k.now()), int64(len(k.topics[topic]))
		k.topics[topic] = append(k.topics[topic], rec)
	}
	k.told[topic] = k.told[topic][n:]
}

// unsent is the first place of the log that has not come to its topic.
func (k *kills) unsent() int {
	first := k.read
	for _, left := range k.told {
		if len(left) > 0 {
			first = min(first, left[0])
		}
	}
	return first
}

func (k *kills) killConnector() {
	if k.r.IntN(3) == 0 {
		k.kept = max(k.kept, k.unsent()-k.r.IntN(k.back))
	}
	k.read, k.told = k.kept, map[string][]int{}
}

// loseOffsets has the connector take a snapshot, beside the slot that it has: of what there is now, and
// as of a place in the log before which some of it stands, and some not. It goes on from there.
func (k *kills) loseOffsets() {
	if len(k.ends) == 0 {
		return
	}
	of := k.ends[len(k.ends)-1-k.other.IntN(min(4, len(k.ends)))]
	k.kept, k.read, k.told = of.at, of.at, map[string][]int{}
	end, lsn := len(k.log), k.lsn
	k.lsn = of.lsn
	row := func(table string, row map[string]any) {
		k.row(table, "r", row)
		last := &k.log[len(k.log)-1]
		rec := last.rec
		rec.Timestamp, rec.Offset = fhir.Instant(k.now()), int64(len(k.topics[last.topic]))
		k.topics[last.topic] = append(k.topics[last.topic], rec)
	}
	for _, code := range slices.Sorted(maps.Keys(k.tags)) {
		row("hfj_tag_def", map[string]any{"tag_id": k.tags[code], "tag_type": 0, "tag_system": "urn:s", "tag_code": code, "tag_user_selected": false})
	}
	for _, o := range k.resources {
		for _, pid := range slices.Sorted(maps.Keys(o.tags)) {
			row("hfj_res_tag", map[string]any{"pid": pid, "res_id": o.id, "tag_id": o.tags[pid]})
		}
	}
	for _, o := range k.resources {
		if o.version > 0 {
			row("hfj_resource", map[string]any{"res_id": o.id, "res_type": "Patient", "fhir_id": strings.TrimPrefix(o.key, "Patient/"), "res_ver": o.version})
			row("hfj_res_ver", k.versionOf(o))
		}
	}
	k.log, k.lsn = k.log[:end], lsn
}

func (k *kills) open() {
	db, err := store.Open("store", k.o)
	if err != nil {
		k.t.Fatal(err)
	}
	k.db = db
	k.j = New(decoder(k.t, decode.Options{}), db, db.Now, db.ReachedBeside)
	if err := k.j.Load(); err != nil {
		k.t.Fatal(err)
	}
	k.db.Wait(k.j.Waits())
	d := store.Discovery{Complete: true}
	for _, table := range killsTables {
		p := store.Partition{Topic: killsTopic(table)}
		d.Partitions = append(d.Partitions, store.Discovered{Partition: p, End: int64(len(k.topics[p.Topic]))})
	}
	if err := db.Discover(d); err != nil {
		k.t.Fatal(err)
	}
	for _, f := range d.Partitions {
		st, _ := db.Partition(f.Partition)
		k.fetched[f.Partition.Topic] = st.Next
	}
}

// fetch is one answer.
func (k *kills) fetch(topic string, most int) {
	asked, end := k.db.Now(), int64(len(k.topics[topic]))
	if k.r.IntN(3) == 0 {
		time.Sleep(time.Duration(k.r.IntN(100)) * time.Millisecond)
	}
	id := store.Partition{Topic: topic}
	from := k.fetched[topic]
	to := min(end, from+int64(k.r.IntN(most+1)))
	defer func() { k.j.Applied(); k.db.Wait(k.j.Waits()) }()
	late, err := k.j.Overdue(id, k.db.Reached(), func(rec decode.Record, reason string) store.Change {
		return decode.DeadLetter(rec, reason)
	})
	if err != nil {
		k.t.Fatal(err)
	}
	again := store.Batch{Partition: id, Asked: fhir.None, Resolved: []store.Bound{}}
	for _, l := range late {
		again.Changes, again.Notes = append(again.Changes, l.Changes...), append(again.Notes, l.Notes...)
	}
	if len(again.Changes)+len(again.Notes) > 0 {
		k.apply(again)
	}
	b := store.Batch{Partition: id, Next: to, LeaderEpoch: -1, Asked: asked, End: end}
	for _, rec := range k.topics[topic][from:to] {
		taken, err := k.j.Take(rec)
		if err != nil {
			k.t.Fatal(err)
		}
		b.Changes, b.Notes = append(b.Changes, taken.Changes...), append(b.Notes, taken.Notes...)
	}
	k.apply(b)
	k.fetched[topic] = to
}

func (k *kills) apply(b store.Batch) {
	if err := k.db.Apply(context.Background(), b); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kills) crash() {
	lost := rand.New(rand.NewPCG(k.r.Uint64(), 1)) // how often it is asked is not the history's
	clone := k.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[k.r.IntN(3)], RNG: lost})
	if err := k.db.Close(); err != nil {
		k.t.Fatal(err)
	}
	k.fs, k.o.FS = clone, clone
	k.open()
}

// export is an increment.
func (k *kills) export() {
	k.jobs++
	id := fmt.Sprintf("job-%d", k.jobs)
	s, err := k.db.Pin(context.Background(), id, time.Now().Add(time.Hour), func(*store.Snapshot) ([]byte, error) { return nil, nil })
	if errors.Is(err, store.ErrNotReady) {
		return
	}
	if err != nil {
		k.t.Fatal(err)
	}
	upto := s.Watermark()
	gone, came := map[string]bool{}, map[string]bool{}
	for _, kind := range []store.Kind{store.Live, store.Deleted} {
		for _, sec := range s.Sections(kind) {
			ext, err := s.Extents(sec, k.since, upto)
			if err != nil {
				k.t.Fatal(err)
			}
			_, err = s.Lines(context.Background(), k.since, upto, ext, func(line []byte) error {
				text := string(bytes.TrimSpace(line))
				if kind == store.Deleted {
					_, key, _ := strings.Cut(text, `"url":"`)
					key, _, _ = strings.Cut(key, `"`)
					gone[key] = true
					return nil
				}
				var of struct{ ID string }
				if err := json.Unmarshal(line, &of); err != nil {
					return err
				}
				key := "Patient/" + of.ID
				if k.has[key] == text {
					k.t.Errorf("%s comes again in the window (%v, %v] as it was: %s", key, k.since, upto, text)
				}
				if came[key] {
					k.t.Errorf("%s stands twice in the window (%v, %v]", key, k.since, upto)
				}
				k.has[key], came[key] = text, true
				return nil
			}, func() {})
			if err != nil {
				k.t.Fatal(err)
			}
		}
	}
	for key := range gone {
		if came[key] {
			k.t.Errorf("%s is gone and is not", key)
		}
		delete(k.has, key)
	}
	k.since = upto
	if err := errors.Join(s.Close(), k.db.Unpin(context.Background(), id)); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kills) note(format string, args ...any) {
	k.steps = append(k.steps, fmt.Sprintf(format, args...))
}

func (k *kills) run() {
	writes := 0
	calm := k.r.IntN(2) == 0
	for range 250 {
		switch n := k.r.IntN(100); {
		case n < 15:
			if writes++; writes < 60 {
				k.write(writes)
				k.ends = append(k.ends, ended{len(k.log), k.lsn})
			}
		case n < 40:
			k.connect()
		case n < 68:
			table := killsTables[k.r.IntN(4)]
			if k.r.IntN(k.slow[table+" is read"]) > 0 {
				continue
			}
			from := k.fetched[killsTopic(table)]
			k.fetch(killsTopic(table), []int{2, 6, 30, 500}[k.r.IntN(4)])
			k.note("%s %d-%d", table, from, k.fetched[killsTopic(table)])
		case n < 78:
			k.note("flush")
			if err := k.db.Flush(); err != nil {
				k.t.Fatal(err)
			}
		case n < 90:
			k.note("export")
			k.export()
		case n < 92:
			if !calm || k.r.IntN(3) == 0 {
				if k.r.IntN(2) == 0 {
					k.catchUp()
				}
				if k.loses && k.other.IntN(4) == 0 {
					k.note("lose offsets")
					k.loseOffsets()
					continue
				}
				k.note("kill connector")
				k.killConnector()
			}
		case n < 93:
			if !calm || k.r.IntN(3) == 0 {
				k.note("crash")
				k.crash()
			}
		case n < 95:
			if _, err := k.db.Merge(context.Background()); err != nil {
				k.t.Fatal(err)
			}
		case n < 97:
			k.catchUp()
		case n < 98:
			time.Sleep(time.Duration(k.r.IntN(20)) * time.Second)
		}
		time.Sleep(time.Duration(k.r.IntN(40)) * time.Millisecond)
		if k.t.Failed() {
			return
		}
	}
	k.end()
}

// catchUp has the server read all that the topics hold, and the client have it.
func (k *kills) catchUp() {
	k.note("catch up")
	for _, i := range k.r.Perm(len(killsTables)) {
		for topic := killsTopic(killsTables[i]); k.fetched[topic] < int64(len(k.topics[topic])); {
			k.fetch(topic, 500)
		}
	}
	if err := k.db.Flush(); err != nil {
		k.t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	for _, table := range killsTables {
		k.fetch(killsTopic(table), 0)
	}
	k.export()
}

// end has all come through.
func (k *kills) end() {
	for k.read < len(k.log) {
		k.connect()
	}
	for _, table := range killsTables {
		k.send(killsTopic(table), len(k.told[killsTopic(table)]))
	}
	for range 3 {
		for _, i := range k.r.Perm(len(killsTables)) {
			topic := killsTopic(killsTables[i])
			for {
				k.fetch(topic, 50)
				if k.fetched[topic] == int64(len(k.topics[topic])) {
					break
				}
			}
		}
		if err := k.db.Flush(); err != nil {
			k.t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		for _, table := range killsTables {
			k.fetch(killsTopic(table), 0)
		}
		k.export()
	}
	want := map[string]string{}
	for _, o := range k.resources {
		if o.body != "" {
			want[o.key] = k.shown(o)
		}
	}
	if diff := gocmp.Diff(want, k.has); diff != "" {
		k.t.Errorf("in the end (-tables +client):\n%s", diff)
	}
}

func (k *kills) shown(o *stored) string {
	meta := fmt.Sprintf(`"versionId":"%d","lastUpdated":"%s","source":"%s"`, o.version, fhir.Instant(o.at), o.source)
	var tags []string
	for _, pid := range slices.Sorted(maps.Keys(o.tags)) {
		tags = append(tags, fmt.Sprintf(`{"system":"urn:s","code":"%s","userSelected":false}`, k.codes[o.tags[pid]]))
	}
	if len(tags) > 0 {
		meta += `,"tag":[` + strings.Join(tags, ",") + `]`
	}
	return fmt.Sprintf(`{"resourceType":"Patient","id":"%s","meta":{%s},%s`, strings.TrimPrefix(o.key, "Patient/"), meta, strings.TrimPrefix(o.body, `{"resourceType":"Patient",`))
}

// killsSeeds are histories in which something was wrong once: in 391, where no offsets are lost, a
// version without tags that a connector told again was a change, for there was a later tag; in 200
// one came again that a snapshot had, and the log told behind that.
var killsSeeds = []uint64{391, 200}

// TestKills: what comes through kills of a connector and of a server is what the tables hold, and
// nothing that a client has comes again as it was.
func TestKills(t *testing.T) {
	for i := range *killsRuns + len(killsSeeds) {
		seed := uint64(i + 1)
		if i >= *killsRuns {
			seed = killsSeeds[i-*killsRuns]
		}
		if *killsSeed != 0 {
			seed = *killsSeed
		}
		synctest.Test(t, func(t *testing.T) {
			k := &kills{
				t: t, r: rand.New(rand.NewPCG(seed, 17)), other: rand.New(rand.NewPCG(seed, 18)), loses: seed != killsSeeds[0], tags: map[string]int64{}, codes: map[int64]string{}, told: map[string][]int{},
				topics: map[string][]decode.Record{}, fetched: map[string]int64{}, fs: vfs.NewCrashableMem(), since: fhir.None, has: map[string]string{}, slow: map[string]int{},
			}
			k.o = store.Options{FS: k.fs, MergeOff: true, Cache: 1 << 20, Allowance: []time.Duration{time.Millisecond, 200 * time.Millisecond, time.Second}[k.r.IntN(3)], SettleAfter: time.Second}
			k.many, k.back = 1+k.r.IntN(5), []int{1, 30, 200}[k.r.IntN(3)]
			for _, table := range killsTables {
				k.slow[table], k.slow[table+" is read"] = 1+k.r.IntN(8), 1+k.r.IntN(4)
			}
			k.open()
			defer func() {
				if err := k.db.Close(); err != nil {
					t.Error(err)
				}
			}()
			k.run()
			if t.Failed() {
				t.Logf("seed %d, %d windows: %s", seed, k.jobs, strings.Join(k.steps[max(0, len(k.steps)-60):], "; "))
			}
		})
		if t.Failed() || *killsSeed != 0 {
			t.Logf("again with: -run TestKills -kills.seed=%d", seed)
			return
		}
	}
}
