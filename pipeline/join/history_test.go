package join

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// A server writes rows as HAPI does: in a transaction, in the order of the log, with the
// numbers that its tables have.
type server struct {
	r         *rand.Rand
	topics    map[string][]decode.Record
	log       []logged // the same in the order of the log
	lsn, tx   int
	pid       int64
	counts    map[string]int // of the transaction
	resources []*stored
	defined   map[int64]bool
	ends      bool // messages tell where transactions end
	toast     bool // a column that has not changed is left out
}

// logged is what a connector told.
type logged struct {
	topic string
	rec   decode.Record
}

// stored is a resource as the server has it.
type stored struct {
	id      int64
	key     string
	version int64
	body    string // "" if it is deleted
	pid     int64  // of the newest version
	source  string
	tags    map[int64]int64 // tag_id by pid
	purged  bool
	each    []string // what it was at the end of each transaction, as exports have it
	at      int64    // when the newest version was written, if it says that
}

func (s *server) emit(table, op string, key, row map[string]any) {
	s.lsn += 10
	value := map[string]any{
		"op": op, "before": nil, "after": row,
		"source":      map[string]any{"table": table, "lsn": s.lsn},
		"transaction": map[string]any{"id": fmt.Sprintf("%d:%d", s.tx, s.lsn), "total_order": s.order()},
	}
	if op == "d" {
		value["before"], value["after"] = key, nil
	}
	s.counts["public."+table]++
	s.send("hapi.public."+table, key, value)
	if op == "d" {
		s.add("hapi.public."+table, record("hapi.public."+table, mustJSON(key), nil))
	}
}

// order is the place of the next row in its transaction.
func (s *server) order() (n int) {
	for _, of := range s.counts {
		n += of
	}
	return n + 1
}

func (s *server) send(topic string, key, value map[string]any) {
	s.add(topic, record(topic, mustJSON(key), mustJSON(value)))
}

func (s *server) add(topic string, rec decode.Record) {
	s.topics[topic] = append(s.topics[topic], rec)
	s.log = append(s.log, logged{topic, rec})
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *server) transaction(do func()) {
	s.tx++
	s.counts = map[string]int{}
	boundary := func(value map[string]any, before int) {
		s.lsn += 10
		value["id"], value["ts_ms"] = fmt.Sprintf("%d:%d", s.tx, max(1, s.lsn-before)), s.lsn
		s.send("hapi.transaction", map[string]any{"id": value["id"]}, value)
	}
	if s.ends {
		// The one before may have ended meanwhile: transactions are told in the order of their ends.
		boundary(map[string]any{"status": "BEGIN"}, 15*s.r.IntN(2))
	}
	do()
	if s.ends {
		var list []any
		for _, name := range slices.Sorted(maps.Keys(s.counts)) {
			list = append(list, map[string]any{"data_collection": name, "event_count": s.counts[name]})
		}
		boundary(map[string]any{"status": "END", "event_count": len(list), "data_collections": list}, 0)
	}
}

func (s *server) resourceRow(o *stored, op string) {
	s.emit("hfj_resource", op, map[string]any{"res_id": o.id}, map[string]any{
		"res_id": o.id, "res_type": "Patient", "fhir_id": strings.TrimPrefix(o.key, "Patient/"), "res_ver": o.version, "res_updated": s.updated(o),
	})
}

// updated is when a version was written, in microseconds.
func (s *server) updated(o *stored) int64 { return (1_700_000_000_000 + o.version) * 1000 }

func (s *server) versionRow(o *stored, op string) {
	encoding, body := "JSON", any(o.body)
	switch {
	case o.body == "":
		encoding, body = "DEL", nil
	case op == "u" && s.toast:
		body = "__debezium_unavailable_value"
	}
	s.emit("hfj_res_ver", op, map[string]any{"pid": o.pid}, map[string]any{
		"pid": o.pid, "res_id": o.id, "res_type": "Patient", "res_ver": o.version, "res_encoding": encoding, "res_text_vc": body,
		"res_updated": s.updated(o), "has_tags": len(o.tags) > 0, "source_uri": o.source,
	})
}

func (s *server) addTag(o *stored, tag int64) {
	if !s.defined[tag] {
		s.defined[tag] = true
		s.emit("hfj_tag_def", "c", map[string]any{"tag_id": tag}, map[string]any{
			"tag_id": tag, "tag_type": tag % 3, "tag_system": "urn:s", "tag_code": fmt.Sprintf("c%d", tag),
		})
	}
	s.pid++
	o.tags[s.pid] = tag
	s.emit("hfj_res_tag", "c", map[string]any{"pid": s.pid}, map[string]any{"pid": s.pid, "res_id": o.id, "tag_id": tag})
}

func (s *server) version(o *stored, body string) {
	s.pid++
	o.version, o.body, o.pid, o.source = o.version+1, body, s.pid, ""
	s.versionRow(o, "c")
	if s.r.IntN(2) == 0 { // the request's id is written late
		o.source = fmt.Sprintf("urn:%d", s.r.IntN(9))
		s.versionRow(o, "u")
	}
}

func (s *server) create() { s.createAs(fmt.Sprintf("Patient/p%d", len(s.resources))) }

func (s *server) createAs(key string) {
	o := &stored{id: int64(len(s.resources) + 100), key: key, tags: map[int64]int64{}}
	s.resources = append(s.resources, o)
	s.resourceRow(o, "c")
	for range s.r.IntN(3) {
		s.addTag(o, 1+s.r.Int64N(6))
	}
	s.version(o, fmt.Sprintf(`{"resourceType":"Patient","n":%d}`, s.r.IntN(100)))
}

// change does something to a resource.
func (s *server) change(o *stored) {
	switch s.r.IntN(5) {
	case 0, 1:
		if s.r.IntN(3) == 0 {
			s.addTag(o, 1+s.r.Int64N(6))
		}
		s.version(o, fmt.Sprintf(`{"resourceType":"Patient","n":%d}`, s.r.IntN(100)))
		s.resourceRow(o, "u")
	case 2:
		if o.body == "" {
			return
		}
		s.version(o, "")
		s.resourceRow(o, "u")
	case 3: // $meta-add; the version's row is written only when it had none before
		had := len(o.tags)
		s.addTag(o, 1+s.r.Int64N(6))
		if had == 0 {
			s.versionRow(o, "u")
		}
	case 4: // $meta-delete
		for _, pid := range slices.Sorted(maps.Keys(o.tags)) {
			delete(o.tags, pid)
			s.emit("hfj_res_tag", "d", map[string]any{"pid": pid}, nil)
			if s.r.IntN(2) == 0 {
				break
			}
		}
	}
}

func (s *server) purge(o *stored) {
	for _, pid := range slices.Sorted(maps.Keys(o.tags)) {
		s.emit("hfj_res_tag", "d", map[string]any{"pid": pid}, nil)
	}
	s.emit("hfj_res_ver", "d", map[string]any{"pid": o.pid}, nil)
	s.emit("hfj_resource", "d", map[string]any{"res_id": o.id}, nil)
	o.body, o.purged, o.tags = "", true, map[int64]int64{}
}

// TestRepeatedRows: a connector that was killed writes again what it wrote since its offsets
// were kept. None of it is a change.
func TestRepeatedRows(t *testing.T) {
	for seed := range uint64(storetest.Rounds(80)) {
		r := rand.New(rand.NewPCG(seed, 5))
		s := &server{r: r, topics: map[string][]decode.Record{}, defined: map[int64]bool{}, ends: r.IntN(2) == 0, toast: r.IntN(2) == 0}
		from := map[string]int{} // where it begins anew
		for n := range 12 {
			if n == 6 {
				for topic, all := range s.topics {
					from[topic] = len(all)
				}
			}
			s.transaction(func() {
				if n < 3 {
					s.create()
				} else {
					s.change(s.resources[r.IntN(3)])
				}
			})
		}
		k := newKept(t)
		if s.ends {
			k.notes[toldEnds] = []byte("{}")
		}
		run(t, k, s.topics, r)
		want, told := k.shown(), len(k.history)
		again := map[string][]decode.Record{}
		for topic, all := range s.topics {
			again[topic] = slices.Concat(all, all[from[topic]:])
		}
		runFrom(t, k, again, s.topics, r)
		if len(k.history) != told {
			t.Fatalf("seed %d, ends %v, toast %v: told again: %s", seed, s.ends, s.toast, k.history[told].Body)
		}
		if diff := gocmp.Diff(want, k.shown()); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

// killed is what topics hold of a connector that is killed once in a while: of each topic what
// it had sent, or some less, and then all since the offset that it had kept, which may lie in
// the midst of a transaction; of that it tells only what is left, and counts only that. partial
// tells whether it began again with one whose end it had not told.
func (s *server) killed(r *rand.Rand) (topics map[string][]decode.Record, partial bool) {
	topics = map[string][]decode.Record{}
	from, ended := 0, -1
	for kills := 1 + r.IntN(3); from < len(s.log); kills-- {
		upto := len(s.log)
		if kills > 0 {
			upto = from + r.IntN(len(s.log)-from+1)
		}
		lost := map[string]int{} // from which place on, by topic
		kept := upto
		if upto < len(s.log) {
			for _, topic := range slices.Sorted(maps.Keys(s.topics)) {
				if r.IntN(3) == 0 {
					lost[topic] = from + r.IntN(upto-from+1)
					kept = min(kept, lost[topic])
				}
			}
			kept = from + r.IntN(kept-from+1)
		}
		for i, l := range s.pass(from) {
			at := from + i
			if l.topic == "" { // its transaction begins again
				topics["hapi.transaction"] = append(topics["hapi.transaction"], l.rec)
				continue
			}
			at-- // pass begins with one more
			if before, is := lost[l.topic]; at >= upto || is && at >= before {
				continue
			}
			topics[l.topic] = append(topics[l.topic], l.rec)
			if l.topic == "hapi.transaction" && strings.Contains(string(l.rec.Value), `"END"`) {
				ended = max(ended, at)
			}
		}
		from = kept
		if from < len(s.log) && upto < len(s.log) && s.endOf(from) > ended {
			partial = true
		}
		if upto == len(s.log) {
			break
		}
	}
	return topics, partial
}

// inside tells whether a place of the log lies behind the beginning of a transaction.
func (s *server) inside(at int) bool {
	return s.log[at].topic != "hapi.transaction" || strings.Contains(string(s.log[at].rec.Value), `"END"`)
}

func (s *server) endOf(at int) int {
	for !strings.Contains(string(s.log[at].rec.Value), `"END"`) {
		at++
	}
	return at
}

// pass is what a connector tells from a place of the log on: a first message that the
// transaction begins there, without a topic where it need not be said, and the rest.
func (s *server) pass(from int) []logged {
	all := slices.Clone(s.log[from:])
	if from == 0 || !s.inside(from) {
		return append([]logged{{topic: "none"}}, all...)
	}
	end := s.endOf(from) - from
	counts := map[string]int{}
	for i := range all[:end] {
		var value map[string]any
		if json.Unmarshal(all[i].rec.Value, &value) != nil || value == nil { // a tombstone
			continue
		}
		counts[strings.TrimPrefix(all[i].topic, "hapi.")]++
		n := 0
		for _, c := range counts {
			n += c
		}
		value["transaction"].(map[string]any)["total_order"] = n
		all[i].rec.Value = mustJSON(value)
	}
	var value map[string]any
	if err := json.Unmarshal(all[end].rec.Value, &value); err != nil {
		panic(err)
	}
	var list []any
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, map[string]any{"data_collection": name, "event_count": counts[name]})
	}
	value["data_collections"] = list
	all[end].rec.Value = mustJSON(value)
	began := map[string]any{"status": "BEGIN", "ts_ms": value["ts_ms"]}
	for i := from; ; i-- { // as it was told, or where it goes on: no place behind it counts
		if !s.inside(i) {
			var first map[string]any
			if err := json.Unmarshal(s.log[i].rec.Value, &first); err != nil {
				panic(err)
			}
			began["id"] = first["id"]
			break
		}
	}
	return append([]logged{{rec: record("hapi.transaction", nil, mustJSON(began))}}, all...)
}

// TestKilledConnectors: a connector that is killed in the midst of transactions has nothing
// wait for rows that do not come, and nothing shown without its labels.
func TestKilledConnectors(t *testing.T) {
	whole := 0
	for seed := range uint64(storetest.Rounds(400)) {
		r := rand.New(rand.NewPCG(seed, 11))
		s := random(r, true)
		topics, partial := s.killed(r)
		k := newKept(t)
		k.notes[toldEnds] = []byte("{}")
		run(t, k, topics, r)
		if partial { // nobody knows how many rows it had: a look at what waits
			k.now += late + 1
			j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
			all, err := j.Overdue(store.Partition{Topic: "hapi.transaction"}, k.now, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, taken := range all {
				k.apply(taken)
			}
		} else {
			whole++
		}
		if diff := gocmp.Diff(s.want(), k.shown()); diff != "" {
			t.Fatalf("seed %d, partial %v, toast %v: %s\n%v", seed, partial, s.toast, diff, slices.Sorted(maps.Keys(k.notes)))
		}
		for _, ch := range k.history {
			if !ch.Delete && !s.labelled(ch.Key.String(), ch.Version, string(ch.Body)) {
				t.Fatalf("seed %d: %s version %d without labels that it had all along: %s", seed, ch.Key, ch.Version, ch.Body)
			}
		}
	}
	if whole == 0 {
		t.Error("every connector was killed in the midst of its first transaction")
	}
}

// TestPurgedRowsCount: rows that go are among those of their transaction, so what is written
// after it need not wait until it is given up; and rows of a resource that is purged wait for
// nothing, though they are read after its last.
func TestPurgedRowsCount(t *testing.T) {
	s := &server{r: rand.New(rand.NewPCG(1, 1)), topics: map[string][]decode.Record{}, defined: map[int64]bool{}, ends: true}
	s.transaction(func() { s.create(); s.create() })
	s.transaction(func() { s.addTag(s.resources[0], 2) })
	s.transaction(func() { s.purge(s.resources[0]) })
	s.transaction(func() {
		s.addTag(s.resources[1], 1)
		s.version(s.resources[1], `{"resourceType":"Patient","n":7}`)
	})
	want := map[string]string{"Patient/p1": s.shown(s.resources[1])}
	for seed := range uint64(storetest.Rounds(100)) {
		k := newKept(t)
		run(t, k, s.topics, rand.New(rand.NewPCG(seed, 2)))
		got := k.shown()
		if strings.HasPrefix(got["Patient/p0"], "deleted") { // else it was purged before it was known
			delete(got, "Patient/p0")
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		for name := range k.notes {
			if strings.HasPrefix(name, ofEnd) || strings.HasPrefix(name, waiting) || strings.HasPrefix(name, ofTag) && string(k.notes[name]) == "100" {
				t.Fatalf("seed %d: %s is noted still", seed, name)
			}
		}
	}
}

// shown is a resource as exports have it.
func (s *server) shown(o *stored) string {
	if o.body == "" {
		return "deleted"
	}
	kinds := [3]string{}
	for _, pid := range slices.Sorted(maps.Keys(o.tags)) {
		tag := o.tags[pid]
		text := fmt.Sprintf(`{"system":"urn:s","code":"c%d"}`, tag)
		if tag%3 == 1 {
			text = fmt.Sprintf(`"c%d"`, tag)
		}
		if kinds[tag%3] != "" {
			text = "," + text
		}
		kinds[tag%3] += text
	}
	meta := fmt.Sprintf(`"versionId":"%d","lastUpdated":"%s"`, o.version, fhir.Instant(s.updated(o)/1000))
	if o.source != "" {
		meta += fmt.Sprintf(`,"source":"%s"`, o.source)
	}
	for kind, name := range map[int]string{1: "profile"} {
		if kinds[kind] != "" {
			meta += fmt.Sprintf(`,"%s":[%s]`, name, kinds[kind])
		}
	}
	if kinds[2] != "" {
		meta += `,"security":[` + kinds[2] + `]`
	}
	if kinds[0] != "" {
		meta += `,"tag":[` + kinds[0] + `]`
	}
	return fmt.Sprintf(`{"resourceType":"Patient","id":"%s","meta":{%s},%s`, strings.TrimPrefix(o.key, "Patient/"), meta, strings.TrimPrefix(o.body, `{"resourceType":"Patient",`))
}

// random is a server that has written some transactions.
func random(r *rand.Rand, ends bool) *server {
	s := &server{r: r, topics: map[string][]decode.Record{}, defined: map[int64]bool{}, ends: ends, toast: r.IntN(2) == 0}
	for range 5 + r.IntN(20) {
		s.transaction(func() {
			before := len(s.resources)
			var changed *stored // a request does no more than one thing to a resource
			for range 1 + r.IntN(2) {
				if before == 0 || r.IntN(4) == 0 {
					s.create()
					continue
				}
				if o := s.resources[r.IntN(before)]; !o.purged && o != changed {
					s.change(o)
					changed = o
				}
			}
		})
		for _, o := range s.resources {
			o.each = append(o.each, s.shown(o))
		}
	}
	return s
}

// want is what exports have in the end.
func (s *server) want() map[string]string {
	want := map[string]string{}
	for _, o := range s.resources {
		if want[o.key] = s.shown(o); o.body == "" {
			want[o.key] = fmt.Sprintf("deleted %d", o.version)
		}
	}
	return want
}

// spread is what topics hold that were given a second partition in the midst of it: from there
// on a key decides where a record goes.
func spread(topics map[string][]decode.Record, r *rand.Rand) map[string][]decode.Record {
	out := map[string][]decode.Record{}
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		all := topics[topic]
		upto := r.IntN(len(all) + 1)
		if topic == "hapi.transaction" {
			upto = len(all)
		}
		out[topic] = slices.Clone(all[:upto])
		for _, rec := range all[upto:] {
			to := topic
			if hash := fnv.New32a(); rec.Key != nil {
				_, _ = hash.Write(rec.Key)
				if hash.Sum32()%2 == 1 {
					to, rec.Partition = topic+"/1", 1
				}
			}
			out[to] = append(out[to], rec)
		}
	}
	return out
}

// TestPartitionsAdded: what was deleted stays so for who reads the deletion first, in the
// partition that the topic was given later.
func TestPartitionsAdded(t *testing.T) {
	for seed := range uint64(storetest.Rounds(200)) {
		r := rand.New(rand.NewPCG(seed, 13))
		s := random(r, r.IntN(2) == 0)
		if s.toast { // a body that is left out is in the row before
			continue
		}
		again := map[string]bool{}
		for i, o := range s.resources[:len(s.resources)/3] {
			s.transaction(func() { s.purge(o) })
			if i%2 == 0 {
				s.transaction(func() { s.createAs(o.key) })
				again[o.key] = true
			}
		}
		k := newKept(t)
		if s.ends {
			k.notes[toldEnds] = []byte("{}")
		}
		run(t, k, spread(s.topics, r), r)
		got := k.shown()
		for _, o := range s.resources {
			if text := got[o.key]; o.purged && !again[o.key] && !strings.HasPrefix(text, "deleted") && text != "" {
				t.Errorf("seed %d: %s was purged, and is %s", seed, o.key, text)
			} else if !o.purged && o.body != "" && text != s.shown(o) {
				t.Errorf("seed %d: %s is\n%s and not\n%s", seed, o.key, text, s.shown(o))
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// TestSnapshotOfTheReborn: a snapshot tells what was made again, and what it was before has
// ended, though that is told behind it, or never.
func TestSnapshotOfTheReborn(t *testing.T) {
	for _, streamed := range []bool{true, false} {
		k := newKept(t)
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		take := func(op, table, row string, lsn int) {
			t.Helper()
			after := "{" + row + "}"
			if op == "d" {
				after = "null"
			}
			taken, err := j.Take(record("hapi.public."+table, []byte("{"+row+"}"), fmt.Appendf(nil,
				`{"op":%q,"before":null,"after":%s,"source":{"table":%q,"lsn":%d,"ts_ms":%d}}`, op, after, table, lsn, lsn)))
			if err != nil {
				t.Fatal(err)
			}
			k.apply(taken)
			j.Applied()
		}
		version := func(op string, n, number, lsn int) {
			take(op, "hfj_res_ver", fmt.Sprintf(`"pid":%d,"res_id":%d,"res_ver":%d,"res_type":"Patient","has_tags":false,"res_encoding":"JSON","res_text_vc":"{\"n\":%d}"`, 10*n+number, n, number, n), lsn)
		}
		resource := func(op string, n, lsn int) {
			take(op, "hfj_resource", fmt.Sprintf(`"res_id":%d,"res_type":"Patient","fhir_id":"anna","res_published":%d`, n, 1_700_000_000_000_000+n*1_000_000), lsn)
		}
		resource("c", 1, 10)
		version("c", 1, 3, 11)
		version("r", 2, 1, 100)
		resource("r", 2, 100)
		if streamed {
			version("c", 1, 4, 40)
			take("d", "hfj_resource", `"res_id":1`, 50)
			resource("c", 2, 60)
			version("c", 2, 1, 61)
		}
		got := k.shown()["Patient/anna"]
		if !strings.Contains(got, `"n":2`) {
			t.Errorf("streamed %t: %s", streamed, got)
		}
		var ended fhir.Instant
		for _, ch := range k.history {
			if ch.Delete {
				ended = ch.LastUpdated
				if !ch.Snapshot || !ch.Earlier || ch.Position != 100 {
					t.Errorf("streamed %t: nothing says that the first life ended before the snapshot: %+v", streamed, ch)
				}
			}
		}
		if ended != 1_700_000_002_000-1 {
			t.Errorf("streamed %t: the first life ended at %v", streamed, ended)
		}
	}
}

// TestNumbersAgain: a database that went back to an earlier state gives out numbers again that
// it gave out before; a row with the number of one that is gone is a new one.
func TestNumbersAgain(t *testing.T) {
	for name, c := range map[string]struct {
		lsn, ts int
		tagged  bool
	}{
		"the row is repeated":             {lsn: 20, ts: 1000, tagged: false},
		"it stands behind its deletion":   {lsn: 40, ts: 2000, tagged: true},
		"the log has begun anew":          {lsn: 5, ts: 1_000_000, tagged: true},
		"in another log, and when it was": {lsn: 5, ts: 1000, tagged: false},
	} {
		k := newKept(t)
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		take := func(table, op, row string, lsn, ts int) {
			t.Helper()
			after := "{" + row + "}"
			if op == "d" {
				after = "null"
			}
			taken, err := j.Take(record("hapi.public."+table, []byte("{"+row+"}"), fmt.Appendf(nil,
				`{"op":%q,"before":null,"after":%s,"source":{"table":%q,"lsn":%d,"ts_ms":%d}}`, op, after, table, lsn, ts)))
			if err != nil {
				t.Fatal(err)
			}
			k.apply(taken)
			j.Applied()
		}
		take("hfj_tag_def", "c", `"tag_id":2,"tag_type":2,"tag_system":"urn:s","tag_code":"R"`, 10, 1000)
		take("hfj_resource", "c", `"res_id":1,"res_type":"Patient","fhir_id":"anna"`, 10, 1000)
		take("hfj_res_tag", "c", `"pid":7,"res_id":1,"tag_id":2`, 20, 1000)
		take("hfj_res_tag", "d", `"pid":7`, 30, 1000)
		take("hfj_res_tag", "c", `"pid":7,"res_id":1,"tag_id":2`, c.lsn, c.ts)
		take("hfj_res_ver", "c", `"pid":9,"res_id":1,"res_ver":2,"res_type":"Patient","has_tags":true,"res_encoding":"JSON","res_text_vc":"{}"`, 50, 1000)
		if got := k.shown()["Patient/anna"]; strings.Contains(got, `"R"`) != c.tagged {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestHistories: what is made of random histories, whatever order the topics are read in, is
// what the server has. Where it is told where transactions end, nothing is ever shown with
// fewer tags than it had at the end of one.
func TestHistories(t *testing.T) {
	for seed := range uint64(storetest.Rounds(400)) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := random(r, r.IntN(2) == 0)
		k := newKept(t)
		if s.ends {
			k.notes[toldEnds] = []byte("{}")
		}
		run(t, k, s.topics, r)
		if diff := gocmp.Diff(s.want(), k.shown()); diff != "" {
			t.Fatalf("seed %d, ends %v, toast %v: %s\n%v", seed, s.ends, s.toast, diff, slices.Sorted(maps.Keys(k.notes)))
		}
		for _, ch := range k.history {
			if s.ends && !ch.Delete && !s.labelled(ch.Key.String(), ch.Version, string(ch.Body)) {
				t.Fatalf("seed %d: %s version %d without labels that it had all along: %s", seed, ch.Key, ch.Version, ch.Body)
			}
		}
	}
}

// labelled tells whether a version as it is shown has as many security labels as it had at
// least while it was the newest.
func (s *server) labelled(key string, version int64, body string) bool {
	least := -1
	for _, o := range s.resources {
		for _, text := range o.each {
			if o.key == key && strings.Contains(text, fmt.Sprintf(`"versionId":"%d"`, version)) {
				if n := labels(text); least < 0 || n < least {
					least = n
				}
			}
		}
	}
	return labels(body) >= least
}

func labels(text string) int {
	_, rest, has := strings.Cut(text, `"security":[`)
	if !has {
		return 0
	}
	list, _, _ := strings.Cut(rest, "]")
	return strings.Count(list, `"code"`)
}
