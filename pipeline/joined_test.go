package pipeline

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/pipeline/decode"
	"tidemark/store"
	"tidemark/store/fhir"
)

// joinedRig reads HAPI's tables.
func joinedRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, 1)
	r.opts.Topics = []Topic{{Pattern: regexp.MustCompile(`^hapi\..*`), Format: "debezium", Decode: decode.Options{Preset: "hapi"}}}
	r.opts.NewDecoder = decode.New
	return r
}

func (r *rig) row(table string, lsn int, row string) store.Partition {
	r.t.Helper()
	topic := "hapi.public." + table
	create := kmsg.NewPtrCreateTopicsRequest()
	create.Topics = append(create.Topics, kmsg.CreateTopicsRequestTopic{Topic: topic, NumPartitions: 1, ReplicationFactor: 1})
	if _, err := create.RequestWith(r.t.Context(), r.client); err != nil { // that it is there is in the answer
		r.t.Fatal(err)
	}
	value := fmt.Sprintf(`{"op":"c","after":%s,"source":{"table":%q,"lsn":%d}}`, row, table, lsn)
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := r.client.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
	return at(topic, 0)
}

func (r *rig) version(n, lsn int) store.Partition {
	return r.row("hfj_res_ver", lsn, fmt.Sprintf(`{"pid":%d,"res_id":1,"res_ver":%d,"res_type":"Patient","res_encoding":"JSON","has_tags":false,
		"res_text_vc":"{\"resourceType\":\"Patient\"}","res_updated":1767323045123456}`, n, n))
}

func (r *rig) resource(lsn int) store.Partition {
	return r.row("hfj_resource", lsn, `{"res_id":1,"res_type":"Patient","fhir_id":"anna","res_ver":1,"res_updated":1767323045123456}`)
}

// TestJoinsOverRestarts: half of a resource is read before the pipeline stops, the other
// half after it has begun again.
func TestJoinsOverRestarts(t *testing.T) {
	r := joinedRig(t)
	versions := r.version(1, 20)
	m := newMemory(t)
	_, stop := r.run(m)
	m.waitNext(versions, 1)
	stop()
	if ids := m.ids(versions); ids != nil {
		t.Errorf("%v was applied without an id", ids)
	}
	waits := m.waits // when it came, for it claims to be written later
	if waits < 1000 || waits > m.now {
		t.Errorf("the watermark waits for %v", waits)
	}
	m = m.reopen()
	_, stop = r.run(m)
	m.wait("what waited before", func() bool { return m.waits == waits })
	stop()
	numbers := r.resource(10)
	m = m.reopen()
	_, stop = r.run(m)
	m.waitNext(numbers, 1)
	m.wait("nothing to wait for", func() bool { return m.waits == fhir.None })
	wantIDs(t, m, numbers, "anna")
	next := r.version(2, 30)
	m.waitNext(next, 2)
	wantIDs(t, m, versions, "anna")
	stop()
}

// A lazyStore lists the dead letters that were there at the last Flush, as one does that
// commits now and then.
type lazyStore struct {
	*memory
	mu    sync.Mutex
	lists []store.DeadLetterRow
}

func (l *lazyStore) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lists = nil
	return l.memory.DeadLetters("", func(r store.DeadLetterRow) error { l.lists = append(l.lists, r); return nil })
}

func (l *lazyStore) DeadLetters(topic string, fn func(store.DeadLetterRow) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.lists {
		if topic != "" && topic != r.Partition.Topic {
			continue
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// TestJoinsTellWhatIsMissing: what waits though all that was written since has been read is
// a dead letter, which is none any more once the rest comes. It holds no topic.
func TestJoinsTellWhatIsMissing(t *testing.T) {
	r := joinedRig(t)
	r.opts.Topics[0].StopAfter = 1
	versions := r.version(1, 20)
	m := newMemory(t)
	p, stop := r.run(&lazyStore{memory: m}) // what it has not committed yet is answered, too
	m.waitNext(versions, 1)
	m.mu.Lock()
	m.now += 3 * 60_000
	m.watermark = 1000 // nobody knows whether the rest has been written
	m.mu.Unlock()
	m.waitAnswers(versions, 3)
	if ids := m.ids(versions); ids != nil {
		t.Errorf("told too early: %v", ids)
	}
	m.mu.Lock()
	m.now += 3 * 60_000
	m.watermark = m.now
	m.mu.Unlock()
	m.wait("a dead letter", func() bool { return len(m.letters) == 1 })
	m.waitAnswers(versions, 3)
	m.mu.Lock()
	if l := m.letters[0]; !strings.Contains(l.Reason, "hfj_resource") || l.Partition != versions || l.Offset != 0 || !strings.Contains(string(l.Value), "res_text_vc") {
		t.Errorf("dead letter %+v", l)
	}
	m.mu.Unlock()
	if s := p.Status().Topics[0]; s.Held != "" || s.DeadLetters != 0 {
		t.Errorf("topic status %+v", s)
	}
	numbers := r.resource(10)
	m.waitNext(numbers, 1)
	wantIDs(t, m, numbers, "anna")
	m.mu.Lock()
	if len(m.letters) != 0 {
		t.Errorf("still dead: %+v", m.letters)
	}
	m.mu.Unlock()
	stop()
}

// waitAnswers waits until so many more answers of a partition were applied.
func (m *memory) waitAnswers(id store.Partition, n int) {
	m.t.Helper()
	count := func() (n int) {
		for _, b := range m.batches {
			if b.Partition == id {
				n++
			}
		}
		return n
	}
	m.mu.Lock()
	from := count()
	m.mu.Unlock()
	m.wait("answers", func() bool { return count() >= from+n })
}

// TestJoinsReadAgain: what was read before its rows were noted, or whose notes are lost, is
// read from the first record on.
func TestJoinsReadAgain(t *testing.T) {
	r := joinedRig(t)
	numbers, versions := r.resource(10), r.version(1, 20)
	m := newMemory(t)
	for _, id := range []store.Partition{numbers, versions} {
		m.states[id] = store.PartitionState{Next: 1, LeaderEpoch: -1, Seen: fhir.None, Joined: true}
	}
	_, stop := r.run(m)
	m.wait("the resource", func() bool {
		return len(m.notes) > 0 && len(m.batches) > 2 && m.states[numbers].Next == 1 && m.states[versions].Next == 1
	})
	stop()
	if ids := append(m.ids(numbers), m.ids(versions)...); len(ids) != 1 || ids[0] != "anna" {
		t.Errorf("applied %v", ids)
	}
	m = m.reopen()
	_, stop = r.run(m)
	m.waitAnswers(versions, 2)
	stop()
	if ids := append(m.ids(numbers), m.ids(versions)...); ids != nil {
		t.Errorf("read once more: %v", ids)
	}
	r.opts.Topics[0].Decode.Preset = "medplum" // and back
	m = m.reopen()
	_, stop = r.run(m)
	m.waitAnswers(versions, 1)
	stop()
	r.opts.Topics[0].Decode.Preset = "hapi"
	m = m.reopen()
	_, stop = r.run(m)
	m.wait("the resource again", func() bool { return len(m.batches) > 2 && m.states[numbers].Next == 1 && m.states[versions].Next == 1 })
	stop()
	if len(append(m.ids(numbers), m.ids(versions)...)) == 0 {
		t.Error("not read again after another format in between")
	}
}

// TestJoinsOfOneSource: topics that are joined must be read in one way.
func TestJoinsOfOneSource(t *testing.T) {
	r := joinedRig(t)
	other := r.opts.Topics[0]
	other.Pattern, other.Name, other.Decode.DropTypes = nil, "x", []string{"Binary"}
	r.opts.Topics = append(r.opts.Topics, other)
	if _, err := New(r.opts, newMemory(t)); err == nil || !strings.Contains(err.Error(), "give them the same options") {
		t.Errorf("the error is %v", err)
	}
}
