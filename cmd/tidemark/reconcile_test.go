package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/config"
)

// write has the source write resources as it has them, or their deletions; lost are those
// events that never reach Kafka.
func (r *sourceRig) write(keys ...string) {
	r.t.Helper()
	for _, key := range keys {
		rec := &kgo.Record{Topic: "fhir-changes", Key: []byte(key)}
		if body, lives := r.has[key]; lives {
			rec.Value = []byte(body)
		}
		r.producer.Produce(r.t.Context(), rec, func(_ *kgo.Record, err error) {
			if err != nil {
				r.t.Error(err)
			}
		})
	}
	if err := r.producer.Flush(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// change gives a resource of the source another version.
func (r *sourceRig) change(key string, version int, at time.Time, what string) {
	typ, id, _ := strings.Cut(key, "/")
	r.has[key] = fmt.Sprintf(`{"resourceType":%q,"id":%q,"meta":{"versionId":"%d","lastUpdated":%q},"language":%q}`, typ, id, version, at.UTC().Format("2006-01-02T15:04:05.000Z"), what)
}

// found is what a reconciliation wrote, by what is wrong: sorted keys.
func found(t *testing.T, path string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		var f struct{ What, Type, ID string }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		all[f.What] = append(all[f.What], f.Type+"/"+f.ID)
	}
	for _, keys := range all {
		slices.Sort(keys)
	}
	return all
}

// The sharp case: a source that writes to Kafka as best it can, and is snapshotted anew. What
// did not change is in no increment; what was lost, deletions too, comes once.
func TestReconcile(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newSourceRig(t, 10, nil)
	all := slices.Sorted(maps.Keys(r.has))
	r.write(all...)
	r.start()
	_, _, since := r.window(time.Time{})

	// Everything again, as after a restart of the connector: nothing has changed.
	r.write(all...)
	if changed, deleted, _ := r.window(since); len(changed)+len(deleted) > 0 {
		t.Fatalf("a snapshot of the same is an increment of %d changes and %d deletions", len(changed), len(deleted))
	}

	// What the source does and Kafka never hears: a change, a creation, deletions.
	now := time.Now()
	lost := map[string][]string{}
	for i, key := range all {
		switch {
		case i%97 == 1:
			delete(r.has, key)
			lost["extra"] = append(lost["extra"], key)
		case i%89 == 2:
			r.change(key, 900, now, "de")
			lost["stale"] = append(lost["stale"], key)
		}
	}
	for i := range 5 {
		key := fmt.Sprintf("Patient/made-%d", i)
		r.change(key, 1, now, "en")
		lost["missing"] = append(lost["missing"], key)
	}
	// One was deleted for good and made again: its versions begin anew.
	const reborn = "Patient/reborn"
	r.change(reborn, 7, now.Add(-time.Minute), "en")
	r.write(reborn)
	r.change(reborn, 1, now, "de")
	lost["reborn"] = []string{reborn}
	r.taken()
	dump := r.dump(time.Now(), nil)

	// And what it does after the export, of which Kafka hears: it wins, whatever is repaired.
	again, gone, late := lost["extra"][0], lost["stale"][0], lost["stale"][1]
	r.change(again, 901, time.Now().Add(time.Millisecond), "fr")
	r.change(late, 902, time.Now().Add(time.Millisecond), "it")
	delete(r.has, gone)
	r.change("Patient/new", 1, time.Now().Add(time.Millisecond), "es")
	r.write(again, late, gone, "Patient/new")
	r.taken()
	want := map[string][]string{
		"missing": lost["missing"], "extra": lost["extra"][1:], "stale": lost["stale"][2:], "reborn": lost["reborn"],
		"newer": {again, gone, late, "Patient/new"},
	}
	slices.Sort(want["newer"])

	output := filepath.Join(t.TempDir(), "found")
	got := r.run(exitFailed, "reconcile", "--output", output, dump)
	if d := cmp.Diff(want, found(t, output)); d != "" {
		t.Fatalf("found: %s\n%s", d, got)
	}
	contains(t, got, "resources are not as the source has them: --repair")
	contains(t, r.run(exitFailed, "reconcile", "--repair", dump), "nothing was written: give --yes to write")
	if r.loaded() != 0 {
		t.Error("it was written without a yes")
	}
	changed, deleted, since := r.window(since) // what came after the export, and no more
	if d := cmp.Diff([]string{gone}, deleted); d != "" || len(changed) != 4 {
		t.Errorf("before the repair: %d changed, deleted: %s", len(changed), d)
	}

	got = r.run(0, "reconcile", "--repair", "--yes", dump)
	contains(t, got, "deletions were written to fhir-load")
	changed, deleted, next := r.window(since)
	if d := cmp.Diff(want["extra"], deleted); d != "" {
		t.Errorf("deleted by the repair: %s", d)
	}
	repaired := map[string]string{}
	for _, key := range slices.Concat(want["missing"], want["stale"], want["reborn"]) {
		repaired[key] = r.has[key]
	}
	if d := cmp.Diff(repaired, changed); d != "" {
		t.Errorf("changed by the repair: %s", d)
	}
	contains(t, r.run(0, "reconcile", dump), "nothing is wrong as of ")
	r.run(0, "reconcile", "--repair", "--yes", dump)
	if changed, deleted, _ := r.window(next); len(changed)+len(deleted) > 0 {
		t.Errorf("after the repair: %d changed, %d deleted", len(changed), len(deleted))
	}
	if whole, _, _ := r.window(time.Time{}); cmp.Diff(r.has, whole) != "" {
		t.Errorf("in the end the source has %d, the store %d", len(r.has), len(whole))
	}

	// The store that nobody serves says the same.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	contains(t, r.run(0, "reconcile", "--content", dump), "nothing is wrong as of ")
	said := strings.Join(commandsIn(t, filepath.Join(r.store(), config.AuditName)), "\n")
	contains(t, said, "reconcile begun done at files repair\nreconcile ended done at files repair", "reconcile ended failed at files")
	if strings.Contains(said, "standing") || strings.Contains(said, "rows") {
		t.Errorf("on record is more than was done: %s", said)
	}
	if got, code := ends(t, "check", r.store()); code != 0 {
		t.Errorf("check: exit %d: %s", code, got)
	}
}

// What an export that is not whole lacks is not deleted, and what is of others neither.
func TestReconcileIsCareful(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newSourceRig(t, 10, nil)
	r.write(slices.Collect(maps.Keys(r.has))...)
	r.start()
	whole := r.dump(time.Now(), nil)
	contains(t, r.run(0, "reconcile", whole), "nothing is wrong")

	// Most of it is gone: somebody has cut it short.
	half := r.dump(time.Now(), func(key string) bool { return strings.Contains("01234567", key[len(key)-1:]) })
	contains(t, r.run(exitFailed, "reconcile", "--repair", "--yes", half), "would be deleted: nothing was written", "--max-delete 100")
	// A file has fewer lines than the manifest says.
	short := r.dump(time.Now(), nil)
	manifest := filepath.Join(short, "manifest.json")
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	r.put(manifest, []byte(strings.Replace(string(text), `"count":`, `"count":1`, 1)))
	contains(t, r.run(exitFailed, "reconcile", "--repair", "--yes", short), "has not as many lines as the manifest says")
	// It is only what has changed.
	r.put(filepath.Join(half, "manifest.json"), []byte(strings.Replace(textOf(t, filepath.Join(half, "manifest.json")), "$export", "$export?_since=2020-01-01T00:00:00Z", 1)))
	contains(t, r.run(0, "reconcile", half), "it has only what changed since another one (_since): --types names", "nothing is wrong")
	// It is one of some types.
	some := r.dump(time.Now(), func(key string) bool { return typeOf(key) != "Observation" })
	contains(t, r.run(0, "reconcile", some), "nothing is wrong")
	contains(t, r.run(exitFailed, "reconcile", "--types", "Observation", some), "resources are not as the source has them")
	// They came from another topic.
	contains(t, r.run(0, "reconcile", "--from", "fhir-load", "--types", "Observation", some), "nothing is wrong")
	contains(t, r.run(exitUsage, "reconcile", "--from", "fhir-lead", "--types", "Observation", some), "no entry of topics reads fhir-lead")
	if r.loaded() != 0 {
		t.Errorf("%d records were written", r.loaded())
	}
	// A type that no topic brings is not missed.
	r.has["Binary/b"] = `{"resourceType":"Binary","id":"b"}`
	binary := r.dump(time.Now(), nil)
	contains(t, r.run(exitFailed, "reconcile", binary), "1 resources are not")
	contains(t, r.run(0, "reconcile", "--set", "topics=[{name: fhir-changes, format: resource, drop_types: [Binary]}, {name: fhir-load, format: resource, drop_types: [Binary]}]", binary), "nothing is wrong")
	// It does not say as of when it is.
	if err := os.Remove(filepath.Join(whole, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	contains(t, r.run(exitUsage, "reconcile", whole), "nothing says as of when the export is")
	contains(t, r.run(exitUsage, "reconcile", "--at", "2999-01-01T00:00:00Z", whole), "which is yet to come")
}

// Where brokers delete what is old a repair is warned of that, and what it writes is not old.
func TestReconcileWhereRecordsAreDeleted(t *testing.T) {
	for policy, deletes := range map[string]bool{"compact": false, "compact,delete": true} {
		r := newSourceRig(t, 1, map[string]string{"cleanup.policy": policy, "retention.ms": "604800000"})
		r.start()
		r.send("gone", `{"resourceType":"Patient","id":"gone","meta":{"versionId":"1","lastUpdated":"2024-01-01T00:00:00Z"}}`)
		r.send("here", `{"resourceType":"Patient","id":"here","meta":{"versionId":"1","lastUpdated":"2024-01-01T00:00:00Z"}}`)
		r.taken()
		dir := t.TempDir()
		r.put(filepath.Join(dir, "Patient.ndjson"), []byte(`{"resourceType":"Patient","id":"here","meta":{"versionId":"1","lastUpdated":"2024-01-01T00:00:00Z"}}`+"\n"))
		got := r.run(0, "reconcile", "--repair", "--yes", "--at", "2025-01-01T00:00:00Z", dir)
		contains(t, got, "0 resources and 1 deletions were written")
		if warned := strings.Contains(got, "warning: the topic fhir-load deletes what is older than its retention.ms"); warned != deletes {
			t.Errorf("%s: warned %v: %s", policy, warned, got)
		}
		newest := int64(0)
		for p := range int32(4) {
			newest = max(newest, r.cluster.PartitionInfo("fhir-load", p).MaxTimestamp)
		}
		if old := time.Since(time.UnixMilli(newest)) > 24*time.Hour; old == deletes {
			t.Errorf("%s: the deletion's record is of %v", policy, time.UnixMilli(newest))
		}
	}
}

func textOf(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The same version with another content is found by its content alone, however it is written.
func TestReconcileContent(t *testing.T) {
	r := newSourceRig(t, 1, nil)
	clear(r.has)
	body := func(id, rest string) string {
		return fmt.Sprintf(`{"resourceType":"Patient","id":%q,"meta":{"versionId":"1","lastUpdated":"2026-01-01T00:00:00Z"%s}`, id, rest)
	}
	for id, rest := range map[string]string{"order": `},"active":true,"gender":"male"`, "text": `},"language":"de"`, "tag": `,"tag":[{"code":"a"}]}`, "number": `},"extension":[{"url":"u","valueDecimal":1.0}]`} {
		r.has["Patient/"+id] = body(id, rest)
	}
	r.has["Patient/bare"] = `{"resourceType":"Patient","id":"bare","gender":"female"}`
	r.write(slices.Collect(maps.Keys(r.has))...)
	r.start()
	at := time.Now()
	r.has["Patient/order"] = `{"id":"order","gender":"m\u0061le", "active":true,"meta":{"lastUpdated":"2026-01-01T00:00:00.000Z","versionId":"1"},"resourceType":"Patient"}`
	r.has["Patient/bare"] = `{"id":"bare","gender":"female","resourceType":"Patient"}` // here it has got a meta
	r.has["Patient/tag"] = strings.Replace(r.has["Patient/tag"], `"a"`, `"b"`, 1)
	r.has["Patient/number"] = strings.Replace(r.has["Patient/number"], "1.0", "1.00", 1)
	dump := r.dump(at, nil)
	r.taken()
	contains(t, r.run(0, "reconcile", dump), "nothing is wrong")
	output := filepath.Join(t.TempDir(), "found")
	got := r.run(exitFailed, "reconcile", "--content", "--list", "--output", output, dump)
	if d := cmp.Diff(map[string][]string{"different": {"Patient/number", "Patient/tag"}}, found(t, output)); d != "" {
		t.Error(d)
	}
	contains(t, got, "different Patient/tag", "2 resources are not as the source has them, and --repair cannot help those")
	contains(t, r.run(exitFailed, "reconcile", "--content", "--repair", "--yes", dump), "2 resources are left that are behind, different or deleted")
}

// A repair that comes late does not undo what the source has done since the export, though
// nobody knew of it when that was compared.
func TestReconcileRaces(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newSourceRig(t, 1, nil)
	clear(r.has)
	at := time.Now().Add(-time.Hour)
	keys := []string{"Patient/lost", "Patient/back", "Patient/bare"}
	for _, key := range keys {
		r.change(key, 1, at.Add(-time.Hour), "en")
	}
	r.change("Patient/other", 1, at.Add(-time.Hour), "en")
	r.write("Patient/lost", "Patient/back", "Patient/other")
	bare := &kgo.Record{Topic: "fhir-changes", Key: []byte("Patient/bare"), Value: []byte(`{"resourceType":"Patient","id":"bare"}`), Timestamp: at.Add(-time.Hour)}
	if err := r.producer.ProduceSync(t.Context(), bare).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r.start()
	_, _, since := r.window(time.Time{})
	for _, key := range keys {
		delete(r.has, key)
	}
	dump := r.dump(at, nil)
	if err := r.stop(); err != nil { // it hears nothing while it is compared
		t.Fatal(err)
	}
	r.change("Patient/back", 2, at.Add(time.Minute), "de")
	r.has["Patient/bare"] = `{"resourceType":"Patient","id":"bare","language":"fr"}`
	r.write("Patient/back", "Patient/bare")
	contains(t, r.run(0, "reconcile", "--repair", "--yes", dump), "0 resources and 3 deletions were written")
	r.start()
	r.taken()
	_, deleted, _ := r.window(since)
	all, _, _ := r.window(time.Time{})
	if d := cmp.Diff([]string{"Patient/lost"}, deleted); d != "" || all["Patient/back"] == "" || all["Patient/other"] == "" {
		t.Errorf("deleted: %s, in the end %d", d, len(all))
	}
}

// What was erased is not brought back, and is no fault.
func TestReconcileErased(t *testing.T) {
	r := newSourceRig(t, 1, nil)
	clear(r.has)
	for _, id := range []string{"p1", "p2"} {
		r.change("Patient/"+id, 1, time.Now().Add(-time.Hour), "en")
	}
	r.write("Patient/p1", "Patient/p2")
	r.start()
	dump := r.dump(time.Now(), nil)
	r.taken()
	r.run(0, "erase", "Patient/p1", "--yes")
	output := filepath.Join(t.TempDir(), "found")
	contains(t, r.run(0, "reconcile", "--output", output, dump), "nothing is wrong")
	if d := cmp.Diff(map[string][]string{"erased": {"Patient/p1"}}, found(t, output)); d != "" {
		t.Error(d)
	}
}
