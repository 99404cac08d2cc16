package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/store/storetest"
)

// A sourceRig is a server that reads what a source writes, the topic that is loaded into,
// and the source itself, which can be exported.
type sourceRig struct {
	*rig
	cluster *kfake.Cluster
	flags   []string          // of the commands
	has     map[string]string // by Type/id
}

// newSourceRig makes one of a source with what a hospital has.
func newSourceRig(t *testing.T, patients int, of map[string]string) *sourceRig {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	brokers := cluster.ListenAddrs()[0]
	policy := map[string]string{"cleanup.policy": "compact"}
	maps.Copy(policy, of)
	makeTopic(t, brokers, "fhir-load", 4, policy)
	more := []string{
		"--set", "topics=[{name: fhir-changes, format: resource}, {name: fhir-load, format: resource}]", "--set", "load.topic=fhir-load",
		"--set", "watermark.allowance=100ms",
	}
	r := &sourceRig{rig: newRig(t, brokers, "fhir-changes", nil, more...), cluster: cluster, has: map[string]string{}}
	r.flags = append([]string{"--set", "store.path=" + r.store(), "--set", "kafka.brokers=" + brokers}, more...)
	h := hospital.New(hospital.Options{Seed: 11, Patients: patients, Bare: -1, Past: &hospital.Habits{}})
	for rec := range h.History {
		if r.has[string(rec.Key)] = string(rec.Value); rec.Value == nil {
			delete(r.has, string(rec.Key))
		}
	}
	return r
}

// typeOf is the type of a key.
func typeOf(key string) string { return key[:strings.IndexByte(key, '/')] }

// dump is a folder with an export of the source, as a bulk client leaves it: some files are
// compressed, some not. keep, if there is one, leaves out what is not to be in it.
func (r *sourceRig) dump(at time.Time, keep func(key string) bool) string {
	r.t.Helper()
	files := map[string]*bytes.Buffer{}
	counts := map[string]int{}
	for _, key := range slices.Sorted(maps.Keys(r.has)) {
		if keep != nil && !keep(key) {
			continue
		}
		kind := typeOf(key)
		if files[kind] == nil {
			files[kind] = &bytes.Buffer{}
		}
		counts[kind]++
		fmt.Fprintln(files[kind], r.has[key])
	}
	dir := r.t.TempDir()
	var output []string
	for i, kind := range slices.Sorted(maps.Keys(files)) {
		name, text := kind+".ndjson", files[kind].Bytes()
		output = append(output, fmt.Sprintf(`{"type":%q,"url":"http://source.example/files/%s","count":%d}`, kind, name, counts[kind]))
		switch i % 3 {
		case 0:
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write(text) // into memory
			_ = w.Close()
			name, text = name+".gz", b.Bytes()
		case 1:
			w, _ := zstd.NewWriter(nil)
			name, text = name+".zst", w.EncodeAll(text, nil)
		}
		r.put(filepath.Join(dir, name), text)
	}
	r.put(filepath.Join(dir, "manifest.json"), fmt.Appendf(nil, `{"transactionTime":%q,"request":"http://source.example/fhir/$export","requiresAccessToken":false,"output":[%s],"error":[]}`,
		at.UTC().Format("2006-01-02T15:04:05.000Z"), strings.Join(output, ",")))
	return dir
}

func (r *sourceRig) put(path string, text []byte) {
	r.t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// run runs a command that is to end with a code.
func (r *sourceRig) run(want int, name string, args ...string) string {
	r.t.Helper()
	got, code := ends(r.t, slices.Concat([]string{name}, r.flags, args)...)
	if code != want {
		r.t.Fatalf("%s %v: exit %d, want %d: %s", name, args, code, want, got)
	}
	return got
}

// send has the source write a Patient.
func (r *sourceRig) send(id, body string) {
	r.t.Helper()
	key := "Patient/" + id
	if err := r.producer.ProduceSync(r.t.Context(), &kgo.Record{Topic: "fhir-changes", Key: []byte(key), Value: []byte(body)}).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// loaded is how many records the topic has that is loaded into.
func (r *sourceRig) loaded() (n int64) {
	for p := range int32(4) {
		n += r.cluster.PartitionInfo("fhir-load", p).HighWatermark
	}
	return n
}

// taken waits until the server has committed all that the topics hold: what comes late is
// shown only then.
func (r *sourceRig) taken() {
	r.t.Helper()
	for _, topic := range []string{"fhir-changes", "fhir-load"} {
		for p := range 4 {
			end := r.cluster.PartitionInfo(topic, int32(p)).HighWatermark
			r.until("the server has committed what the topics hold", func() bool {
				s, err := askGroup(r.t.Context(), r.store(), "none", topic, p)
				return err == nil && s.Next >= end
			})
		}
	}
}

// window exports what has changed since a time, once the server has all and the watermark
// has passed what was there when it is called.
func (r *sourceRig) window(since time.Time) (output map[string]string, deleted []string, at time.Time) {
	r.t.Helper()
	params := url.Values{}
	if !since.IsZero() {
		params.Set("_since", since.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	var m *bulkclient.Manifest
	r.taken()
	now := time.Now()
	r.until("the watermark is later than now", func() bool {
		job, err := r.client.Start(r.t.Context(), "$export", params)
		if err != nil {
			r.t.Fatal(err)
		}
		if m, err = job.Wait(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		return m.TransactionTime.After(now)
	})
	output = map[string]string{}
	for _, f := range m.Output {
		err := r.lines(r.t.Context(), f, func(line []byte) error {
			var name struct{ ID string }
			err := json.Unmarshal(line, &name)
			output[f.Type+"/"+name.ID] = string(bytes.TrimSpace(line))
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	for _, f := range m.Deleted {
		err := r.lines(r.t.Context(), f, func(line []byte) error {
			keys, err := bulkclient.Deletions(line)
			deleted = append(deleted, keys...)
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	slices.Sort(deleted)
	return output, deleted, m.TransactionTime
}

var saidUpdated = regexp.MustCompile(`"lastUpdated":"([^"]+)"`)

// changedAfter is what the source has changed after a time.
func (r *sourceRig) changedAfter(at time.Time) map[string]string {
	list := maps.Clone(r.has)
	maps.DeleteFunc(list, func(_, body string) bool {
		updated, err := time.Parse(time.RFC3339Nano, saidUpdated.FindStringSubmatch(body)[1])
		return err != nil || !updated.After(at)
	})
	return list
}

// What a source has becomes an export of the same, byte for byte, with its own instants;
// loaded again it is nothing new.
func TestLoad(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newSourceRig(t, 20, nil)
	dump := r.dump(time.Now(), nil)
	got := r.run(0, "load", "--dry-run", dump)
	contains(t, got, "nothing is wrong, and nothing was sent")
	if r.loaded() != 0 {
		t.Error("--dry-run sends")
	}
	got = r.run(0, "load", dump)
	contains(t, got, "records", " a second", "next: tidemark serve")
	n := r.loaded()
	if want := int64(len(r.has)); n != want {
		t.Errorf("%d records, want %d:\n%s", n, want, got)
	}
	contains(t, r.run(0, "load", dump), "an earlier run has sent to fhir-load all of it that can be loaded")
	if r.loaded() != n {
		t.Error("what was sent before was sent again")
	}

	r.start()
	all, _, at := r.window(time.Time{})
	if d := gocmp.Diff(r.has, all); d != "" {
		t.Errorf("the export is not what the source has: %.2000s", d)
	}
	middle := at.AddDate(0, -6, 0)
	want := r.changedAfter(middle)
	if got, _, _ := r.window(middle); len(want) == 0 || len(want) == len(r.has) || gocmp.Diff(want, got) != "" {
		t.Errorf("since the middle of history: %d, want %d of %d", len(got), len(want), len(r.has))
	}

	got = r.run(0, "load", "--again", dump)
	contains(t, got, "the store's bootstrap is over")
	if got := r.loaded(); got != 2*n {
		t.Errorf("%d records, want %d", got, 2*n)
	}
	if changed, deleted, _ := r.window(at); len(changed)+len(deleted) > 0 {
		t.Errorf("loaded once more, %d are changed and %d deleted", len(changed), len(deleted))
	}
	if got, code := ends(t, "check", r.store()); code != 0 {
		t.Errorf("check: exit %d: %s", code, got)
	}
	if got := strings.Join(commandsIn(t, filepath.Join(r.store(), config.AuditName)), "\n"); !strings.Contains(got, "load begun done files topic\nload ended done files topic") {
		t.Errorf("on record: %s", got)
	}
}

// A load that is killed goes on where the brokers had all, and nothing is missing in the end.
func TestLoadKilled(t *testing.T) {
	t.Parallel() // it mostly waits

	r := newSourceRig(t, storetest.Rounds(100), map[string]string{"max.message.bytes": "20000"}) // so it takes many requests
	var slow atomic.Bool
	slow.Store(true)
	r.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.cluster.KeepControl()
		if slow.Load() {
			r.cluster.SleepControl(func() { time.Sleep(20 * time.Millisecond) })
		}
		return nil, nil, false
	})
	dump := r.dump(time.Now(), nil)
	load := program(t, slices.Concat([]string{"load"}, r.flags, []string{dump})...)
	var out bytes.Buffer
	load.Stdout, load.Stderr = &out, &out
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	r.until("it is noted how far the load is", func() bool {
		text, err := os.ReadFile(filepath.Join(r.store(), "load.json"))
		return err == nil && strings.Contains(string(text), `"lines"`)
	})
	if err := load.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := load.Wait(); err == nil {
		t.Fatalf("it had ended before it was killed: %s", out.String())
	}
	slow.Store(false)
	sent := r.loaded()
	got := r.run(0, "load", dump)
	contains(t, got, "lines done by an earlier run")
	n, want := r.loaded(), int64(len(r.has))
	t.Logf("%d resources, %d were sent when it was killed, %d records in the end", want, sent, n)
	if n >= sent+want {
		t.Errorf("%d records in the end: it has begun anew", n)
	}
	r.start()
	if all, _, _ := r.window(time.Time{}); gocmp.Diff(r.has, all) != "" {
		t.Errorf("the export has %d resources, the source %d", len(all), len(r.has))
	}
}

// A line that is wrong ends the load, which goes on once it is mended; or it is listed.
func TestLoadFaults(t *testing.T) {
	r := newSourceRig(t, 1, nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "Patient.ndjson")
	lines := []string{`{"resourceType":"Patient","id":"p1"}`, `{"resourceType":"Patient","name":[{"family":"canary"}]}`, `{"resourceType":"Patient","id":"p3"}`}
	r.put(file, []byte(strings.Join(lines, "\n")))
	got := r.run(exitFailed, "load", file)
	contains(t, got, file+":2: at byte 0: id is missing", "mend that line and run this again")
	if r.loaded() != 1 {
		t.Errorf("%d records, want that of the first line", r.loaded())
	}
	list := filepath.Join(dir, "faults")
	got += r.run(0, "load", "--again", "--faults", list, file)
	contains(t, got, "lines that cannot be loaded  1")
	if r.loaded() != 3 {
		t.Errorf("%d records, want two more", r.loaded())
	}
	text, err := os.ReadFile(list)
	if want := fmt.Sprintf("{\"file\":%q,\"line\":2,\"reason\":\"at byte 0: id is missing\"}\n", file); err != nil || string(text) != want {
		t.Errorf("got %s, want %s (%v)", text, want, err)
	}
	got += r.run(exitFailed, "load", "--dry-run", file)
	contains(t, got, "1 lines cannot be loaded")
	lines[1] = `{"resourceType":"Patient","id":"p2"}`
	r.put(file, []byte(strings.Join(lines, "\n")))
	r.run(0, "load", file)
	if strings.Contains(got+string(text), "canary") {
		t.Errorf("it says what stands in the file: %s", got)
	}

	// What is mended behind the place that was reached is not sent twice before it.
	other := filepath.Join(dir, "Device.ndjson")
	r.put(other, []byte(`{"resourceType":"Device","id":"d1"}`+"\n"+`{"resourceType":"Device"}`+"\n"))
	r.run(exitFailed, "load", other)
	n := r.loaded()
	r.put(other, []byte(`{"resourceType":"Device","id":"d1"}`+"\n"+`{"resourceType":"Device","id":"d2"}`+"\n"))
	contains(t, r.run(0, "load", "--dry-run", other), "warning: 2 of them say neither version nor lastUpdated", "--at")
	if got := r.run(0, "load", "--dry-run", "--at", "2026-01-02T03:04:05Z", other); strings.Contains(got, "warning") {
		t.Errorf("it is said as of when they are: %s", got)
	}
	contains(t, r.run(0, "load", other), "lines done by an earlier run  1")
	if r.loaded() != n+1 {
		t.Errorf("%d records, want one more than %d", r.loaded(), n)
	}
}

// What is larger than a batch goes alone; what is larger than the topic takes says what to raise.
func TestLoadLarge(t *testing.T) {
	r := newSourceRig(t, 1, map[string]string{"max.message.bytes": "100000"})
	dir := t.TempDir()
	large := func(name, data string) string {
		path := filepath.Join(dir, name)
		r.put(path, fmt.Appendf(nil, "{\"resourceType\":\"Binary\",\"id\":%q,\"contentType\":\"text/plain\",\"data\":%q}\n", name, data))
		return path
	}
	squeezed := large("squeezed", strings.Repeat("aGVsbG8g", 100_000))
	contains(t, r.run(0, "load", squeezed), "1 records")
	if r.loaded() != 1 {
		t.Errorf("%d records", r.loaded())
	}
	noise := make([]byte, 400_000)
	x := uint32(1)
	for i := range noise {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		noise[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[x>>8&63]
	}
	got := r.run(exitFailed, "load", large("noise", string(noise)))
	contains(t, got, "more than the topic fhir-load takes (100,000, compressed): raise its max.message.bytes to ")
}

// Deletions are dated by the export that tells them: what was written later lives.
func TestLoadDeletions(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newSourceRig(t, 1, nil)
	r.start()
	at := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	before, after := at.Add(-time.Minute).Format(time.RFC3339), at.Add(time.Minute).Format(time.RFC3339)
	patient := func(id, updated string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"meta":{"versionId":"1","lastUpdated":%q}}`, id, updated)
	}
	r.send("gone", patient("gone", before))
	r.send("back", patient("back", after))
	_, _, since := r.window(time.Time{})
	dir := t.TempDir()
	r.put(filepath.Join(dir, "deleted.ndjson"), []byte(`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/gone"}},{"request":{"method":"DELETE","url":"Patient/back"}}]}`+"\n"))
	contains(t, r.run(exitFailed, "load", dir), "a deletion, and nothing says when that was: give --at")
	contains(t, r.run(0, "load", "--at", at.Format(time.RFC3339), dir), "deletions  2")
	changed, deleted, _ := r.window(since)
	if len(changed) > 0 || cmp.Or(strings.Join(deleted, " "), "nothing") != "Patient/gone" {
		t.Errorf("changed %v, deleted %v", changed, deleted)
	}
}
