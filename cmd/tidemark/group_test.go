package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store/fhir"
)

// A groupRig is a server with a topic for Groups and some patients, p1 to p4,
// each with an Observation and an identifier.
type groupRig struct {
	*rig
	cluster *kfake.Cluster
	flags   []string // of the commands
	roster  string
}

func newGroupRig(t *testing.T) *groupRig {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.ListenAddrs()[0]
	makeTopic(t, brokers, "groups", 4, map[string]string{"cleanup.policy": "compact"})
	more := []string{
		"--set", "topics=[{name: fhir-changes, format: resource}, {name: groups, format: resource}, {pattern: other.*, format: resource}]",
		"--set", "groups.topic=groups", "--set", "watermark.allowance=100ms", "--set", "presets.people=Patient,Group",
	}
	r := &groupRig{rig: newRig(t, brokers, "fhir-changes", nil, more...), cluster: cluster, roster: filepath.Join(t.TempDir(), "roster.csv")}
	r.flags = append([]string{"--set", "store.path=" + r.store(), "--set", "kafka.brokers=" + brokers}, more...)
	makeTopic(t, brokers, "other", 1, nil)
	for n := range 4 {
		r.send("fhir-changes", fmt.Sprintf(`{"resourceType":"Patient","id":"p%d","identifier":[{"system":"http://a.example/mrn","value":"%d"}]}`, n+1, n+1))
		r.send("fhir-changes", fmt.Sprintf(`{"resourceType":"Observation","id":"o%d","status":"final","subject":{"reference":"Patient/p%d"}}`, n+1, n+1))
	}
	return r
}

// makeTopic creates a topic and waits until it can be written.
func makeTopic(t *testing.T, brokers, name string, partitions int, of map[string]string) {
	t.Helper()
	c := kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: 1}
	for k, v := range of {
		c.ConfigEntries = append(c.ConfigEntries, kafka.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(brokers), Transport: transport}
	answer, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{c}})
	if err := errors.Join(err, answer.Errors[name]); err != nil {
		t.Fatal(err)
	}
}

func (r *groupRig) send(topic, body string) {
	r.t.Helper()
	if err := r.producer.ProduceSync(r.t.Context(), &kgo.Record{Topic: topic, Value: []byte(body)}).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// group runs a command; a roster is given as a text.
func (r *groupRig) group(want int, args ...string) string {
	r.t.Helper()
	got, code := ends(r.t, slices.Concat([]string{"group", args[0]}, r.flags, args[1:])...)
	if code != want {
		r.t.Fatalf("group %v: exit %d, want %d: %s", args, code, want, got)
	}
	return got
}

func (r *groupRig) set(want int, id, csv string, more ...string) string {
	r.t.Helper()
	if err := os.WriteFile(r.roster, []byte(csv), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return r.group(want, slices.Concat([]string{"set", id, r.roster}, more)...)
}

// records is how many records the topic of Groups has.
func (r *groupRig) records() (n int64) {
	for p := range int32(4) {
		n += r.cluster.PartitionInfo("groups", p).HighWatermark
	}
	return n
}

// window exports the Group once the watermark has passed what was committed
// when it is called, and returns what came, sorted.
func (r *groupRig) window(id string, since *time.Time) []string {
	r.t.Helper()
	now := time.Now()
	var m *bulkclient.Manifest
	r.until("the watermark is later than now", func() bool {
		params := url.Values{}
		if !since.IsZero() {
			params.Set("_since", since.UTC().Format("2006-01-02T15:04:05.000Z"))
		}
		job, err := r.client.Start(r.t.Context(), "Group/"+id+"/$export", params)
		if err != nil {
			return false // the Group is not visible yet
		}
		if m, err = job.Wait(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		return m.TransactionTime.After(now)
	})
	*since = m.TransactionTime
	var got []string
	for id := range r.ids(m) {
		got = append(got, id)
	}
	slices.Sort(got)
	return got
}

func contains(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("no %q in:\n%s", w, got)
		}
	}
}

// A roster becomes a Group, the Group an export of exactly its patients.
func TestGroupCommand(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newGroupRig(t)
	r.start()
	var since time.Time

	got := r.set(0, "cohort", "\ufeffpatient\r\np1\r\nhttp://a.example/mrn|2\r\np1\r\n", "--name", "Cohort <1>", "--identifier", "http://a.example/rosters|c1")
	contains(t, got, "1 lines say again", "2 entries, 2 joined, 0 left", "written to the topic groups, partition ", "the server has it")
	if d := cmp.Diff([]string{"cohort", "o1", "o2", "p1", "p2"}, r.window("cohort", &since)); d != "" {
		t.Errorf("the first export: %s", d)
	}
	records := r.records()
	got = r.set(0, "cohort", "http://a.example/mrn|2\nPatient/p1\n", "--name", "Cohort <1>", "--identifier", "http://a.example/rosters|c1")
	contains(t, got, "0 joined, 0 left", "no change: nothing was written")
	if r.records() != records {
		t.Error("the same roster was written again")
	}
	if got := r.window("cohort", &since); len(got) != 0 {
		t.Errorf("nothing has changed, and the export has %v", got)
	}

	got = r.set(0, "cohort", "p1\nhttp://a.example/mrn|2\n", "--dry-run", "--name", "Cohort <1>", "--identifier", "http://a.example/rosters|c1")
	contains(t, got, "no change: nothing would be written")
	got = r.set(0, "cohort", "patient\np3\nhttp://a.example/mrn|2\n", "--dry-run")
	contains(t, got, "{\n  \"resourceType\": \"Group\",\n  \"id\": \"cohort\"", "\n1 joined, 1 left, 0 with another period\n+ Patient/p3\n- Patient/p1\n")
	if r.records() != records {
		t.Error("--dry-run writes")
	}
	got = r.set(0, "cohort", "patient\np3\nhttp://a.example/mrn|2\n", "--name", "Cohort <1>")
	contains(t, got, "1 joined, 1 left", "the server has it")
	if d := cmp.Diff([]string{"cohort", "o3", "p3"}, r.window("cohort", &since)); d != "" {
		t.Errorf("the export after one joined and one left: %s", d)
	}
	shown(t, r)
	contains(t, r.get("/fhir/metadata"), "_people (Group, Patient)")

	// What was said later wins, whatever the clock says of this machine.
	r.send("groups", `{"resourceType":"Group","id":"ahead","meta":{"lastUpdated":"2999-01-01T00:00:00.000Z"},"type":"person","actual":true,"member":[{"entity":{"reference":"Patient/p1"}}]}`)
	contains(t, r.set(0, "ahead", "p4\n"), "1 joined, 1 left", "the server has it")
	contains(t, r.group(0, "delete", "ahead"), "the server has it")

	// A Group of another source is not taken over by mistake.
	r.send("other", `{"resourceType":"Group","id":"foreign","type":"person","actual":true}`)
	r.until("the Group of another source is there", func() bool { return strings.HasPrefix(r.get("/fhir/Group/foreign"), "200") })
	contains(t, r.set(exitFailed, "foreign", "p1\n"), "comes from the topic other", "--replace")
	contains(t, r.group(exitFailed, "delete", "foreign"), "comes from the topic other")
	contains(t, r.set(0, "foreign", "p1\n", "--replace"), "the server has it")

	lagging(t, r)

	contains(t, r.group(0, "delete", "cohort"), "written to the topic groups", "the server has it")
	contains(t, r.group(exitFailed, "delete", "cohort"), "there is no Group/cohort: nothing was written")
	r.until("the Group is gone", func() bool { return strings.HasPrefix(r.get("/fhir/Group/cohort"), "404") })
	contains(t, r.group(exitFailed, "show", "cohort"), "there is no Group/cohort as of 20")
	contains(t, r.set(0, "cohort", "p1\n"), "1 joined", "the server has it")

	if got := r.window("cohort", &since); !slices.Contains(got, "o1") {
		t.Errorf("p1 is a member again, and the export has %v", got)
	}

	// Without a server it is written, and taken when there is one.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	contains(t, r.set(0, "cohort", "p2\n"), "not compared: no server", "written to the topic groups")
	contains(t, r.group(0, "show", "cohort", "--members"), "Patient/p1 ") // as of the last export
	r.start()
	r.until("the Group is read", func() bool { return strings.Contains(r.get("/fhir/Group/cohort"), "Patient/p2") })
	contains(t, r.set(0, "cohort", "p2\n"), "no change")
	log, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "Patient/p") || strings.Contains(string(log), "mrn") {
		t.Error("the log names patients")
	}
	said := commandsIn(t, filepath.Join(r.store(), config.AuditName))
	if !slices.Contains(said, "group-set ended done entries id") || slices.ContainsFunc(said, func(line string) bool { return strings.HasPrefix(line, askedState) }) {
		t.Errorf("on record is %q", said)
	}
}

// lagging writes while the server cannot have read what the topic holds: what it
// has is no reason to write nothing.
func lagging(t *testing.T, r *groupRig) {
	open, err := kgo.NewClient(kgo.SeedBrokers(r.cluster.ListenAddrs()[0]), kgo.TransactionalID("open"), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := open.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	hidden := &kgo.Record{Topic: "groups", Key: []byte("Group/cohort"), Value: []byte(`{"resourceType":"Group","id":"cohort"}`)}
	if err := open.ProduceSync(t.Context(), hidden).FirstErr(); err != nil {
		t.Fatal(err)
	}
	const same, name = "patient\np3\nhttp://a.example/mrn|2\n", "Cohort <1>"
	contains(t, r.set(0, "cohort", same, "--name", name, "--wait", "200ms"),
		"not compared: the server has read", "0 joined, 0 left", "written to the topic groups", "not taken yet: the server has read")
	if err := open.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	contains(t, r.set(0, "cohort", same, "--name", name), "no change")
}

// shown looks at what is told of the Group.
func shown(t *testing.T, r *groupRig) {
	contains(t, r.group(0, "show", "cohort"), "Group/cohort\n", "Cohort <1>\n", "members  2; 2 entries\n")
	got := r.group(0, "show", "cohort", "--members")
	contains(t, got, "Patient/p3 ", "http://a.example/mrn|2 ")
	if strings.Contains(got, "p1") || strings.Contains(got, fhir.IdentifierPrefix) {
		t.Errorf("members: %s", got)
	}
	contains(t, r.group(0, "show", "cohort", "--json"), "\"name\": \"Cohort <1>\"")
	contains(t, r.group(exitFailed, "show", "a_b"), "is no id")
}

// What is wrong is said before anything is sent.
func TestGroupCommandFaults(t *testing.T) {
	r := newGroupRig(t)
	brokers := r.cluster.ListenAddrs()[0]
	makeTopic(t, brokers, "other.small", 1, map[string]string{"max.message.bytes": "20000"})
	contains(t, r.set(exitUsage, "c", "patient\np1\np_2\nObservation/o\n"), "the roster has 2 faults, nothing was written:", "line 3: ", "line 4: ")
	contains(t, r.set(exitFailed, "c_1", "p1\n"), `"c_1" is no id`)
	contains(t, r.set(exitFailed, "c", "p1\n", "--identifier", "x"), "write system|value")
	contains(t, r.group(exitFailed, "set", "c", filepath.Join(t.TempDir(), "none.csv")), "none.csv", "no such file")
	contains(t, r.set(exitUsage, "c", "p1\n", "--topic", "unread"), "groups.topic: no entry of topics reads unread")
	contains(t, r.set(exitFailed, "c", "p1\n", "--set", "groups.topic=other.none"), "there is no topic other.none: create it")
	contains(t, r.set(exitFailed, "c", "p1\n", "--set", "groups.topic="), "set groups.topic")
	contains(t, r.set(0, "c", "p1\n", "--dry-run"), `"reference": "Patient/p1"`, "not compared: no server")
	contains(t, r.set(0, "c", "p1\n", "--topic", "other"), "warning: the topic other deletes what is older", "written to the topic other")

	// So many members take more than the topic, however well they compress.
	var large strings.Builder
	seed := rand.NewChaCha8([32]byte{1})
	for range 2000 {
		fmt.Fprintf(&large, "p%016x\n", seed.Uint64())
	}
	before := r.cluster.PartitionInfo("other.small", 0).HighWatermark
	got := r.set(exitFailed, "c", large.String(), "--topic", "other.small")
	contains(t, got, "the topic other.small takes 20,000", "kafka-configs.sh --bootstrap-server "+brokers, "--entity-name other.small")
	contains(t, r.set(exitFailed, "c", large.String(), "--set", "kafka.max_record=64KiB"), "raise kafka.max_record")
	if r.cluster.PartitionInfo("other.small", 0).HighWatermark != before || r.records() != 0 {
		t.Error("something was written")
	}
	// It is the limit as brokers measure it: what is said to fit does.
	_, rest, _ := strings.Cut(got, "max.message.bytes=")
	makeTopic(t, brokers, "other.large", 1, map[string]string{"max.message.bytes": strings.TrimSpace(rest)})
	contains(t, r.set(0, "c", large.String(), "--topic", "other.large"), "written to the topic other.large")
}

func TestGroupFromStandardInput(t *testing.T) {
	var out bytes.Buffer
	cmd := program(t, "group", "set", "c", "-", "--dry-run", "--set", "store.path="+t.TempDir())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("p1\n"), &out, &out
	if err := cmd.Run(); err != nil {
		if _, exited := errors.AsType[*exec.ExitError](err); !exited {
			t.Fatal(err)
		}
		t.Errorf("%v: %s", err, &out)
	}
	contains(t, out.String(), `"reference": "Patient/p1"`)
}

// The size that we compute is that at which a broker draws the line.
func TestRecordSize(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	recordSizes(t, cluster.ListenAddrs()[0])
}

func recordSizes(t *testing.T, brokers string) {
	t.Helper()
	run := time.Now().UnixNano() // a broker may have the topics of other runs
	body := payload{value: []byte(strings.Repeat("0123456789", 1000)), headers: []kafka.Header{{Key: "a", Value: []byte("b")}}}
	for _, codec := range []string{"producer", "uncompressed"} {
		var size int64
		for i, more := range []int64{0, 0, -1} { // the first learns the size, the others try it
			name := fmt.Sprintf("other-%d-%s-%d", run, codec, i)
			limits := map[string]string{"compression.type": codec}
			if i > 0 {
				limits["max.message.bytes"] = fmt.Sprint(size + more)
			}
			makeTopic(t, brokers, name, 1, limits)
			w := openWriter(t, brokers, name, "Group/g")
			var err error
			if size, err = w.size(body); err != nil {
				t.Fatal(err)
			}
			if got := w.fits(body); (got == nil) != (more == 0) {
				t.Errorf("%s: %d bytes more than the record has: %v", codec, more, got)
			}
			w.limits.bytes = 0 // as if it could not be learned
			if _, got := w.write(t.Context(), body); (got == nil) != (more == 0) || more < 0 && !strings.Contains(got.Error(), "raise its max.message.bytes") {
				t.Errorf("%s: the broker takes %d bytes more than the record has: %v", codec, more, got)
			}
		}
	}
}

func openWriter(t *testing.T, brokers, topic, key string) *writer {
	t.Helper()
	w, err := newWriter(t.Context(), config.Kafka{Brokers: []string{brokers}}, topic, key)
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); { // a real broker learns of a new topic a moment later
		w, err = newWriter(t.Context(), config.Kafka{Brokers: []string{brokers}}, topic, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// A key lies where Java's producers put it, and in the order it was written.
func TestRecordPartition(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(11, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	brokers := cluster.ListenAddrs()[0]
	java, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer java.Close()
	for n := range 20 {
		key := fmt.Sprintf("Group/%d", n)
		sent, err := java.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Key: []byte(key), Value: []byte("x")}).First()
		if err != nil {
			t.Fatal(err)
		}
		w := openWriter(t, brokers, "t", key)
		offset, err := w.write(t.Context(), payload{})
		if err != nil || int32(w.partition) != sent.Partition || offset != sent.Offset+1 {
			t.Errorf("%s: %d at %d, want %d at %d: %v", key, w.partition, offset, sent.Partition, sent.Offset+1, err)
		}
	}
}

// A record waits for all replicas, and for a broker that knows that it leads.
func TestRecordIsAcknowledged(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	var tried atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		p := req.(*kmsg.ProduceRequest)
		if p.Acks != -1 {
			t.Errorf("acks %d, want -1", p.Acks)
		}
		if tried.Add(1) > 1 {
			return nil, nil, false
		}
		refused := kmsg.NewProduceResponseTopicPartition()
		refused.ErrorCode = int16(kafka.NotLeaderForPartition)
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.Partitions = "t", append(topic.Partitions, refused)
		answer := req.ResponseKind().(*kmsg.ProduceResponse)
		answer.Topics = append(answer.Topics, topic)
		return answer, nil, true
	})
	w := openWriter(t, cluster.ListenAddrs()[0], "t", "Group/g")
	if offset, err := w.write(t.Context(), payload{value: []byte("{}")}); err != nil || offset != 0 || tried.Load() != 2 {
		t.Errorf("offset %d after %d requests: %v", offset, tried.Load(), err)
	}
}

func TestNobodyToWriteTo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := newWriter(ctx, config.Kafka{Brokers: []string{freePort(t)}}, "groups", "Group/g")
	if err == nil || !strings.Contains(err.Error(), "kafka.brokers") {
		t.Errorf("got %v", err)
	}
}

// A Group that says by searches whom it has is not shown as one of nobody.
func TestShowModified(t *testing.T) {
	for body, want := range map[string]string{
		`{"resourceType":"Group","id":"g","modifierExtension":[{"url":"http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter","valueExpression":{"expression":"Patient?_id=CANARY"}}]}`: "by 1 extensions",
		`{"resourceType":"Group","id":"g","modifierExtension":5}`: "0 entries",
	} {
		var out bytes.Buffer
		if err := describeGroup([]byte(body), 0, 0, &out); err != nil || !strings.Contains(out.String(), want) || strings.Contains(out.String(), "CANARY") || strings.Contains(out.String(), "modified") != strings.HasPrefix(want, "by") {
			t.Errorf("%s: %v\n%s", body, err, &out)
		}
	}
}
