package main

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/store/fhir"
)

// canary stands in for what must not leave the data: it is in a record that
// cannot be decoded.
const canary = "canary-b7c1"

// Broker to bulk client: a chain of exports through a kill, a clean stop and
// two restarts delivers every change exactly once.
func TestEndToEnd(t *testing.T) {
	t.Parallel() // it mostly waits
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "fhir-changes"), kfake.SeedTopics(1, "trail"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	r := newRig(t, cluster.ListenAddrs()[0], "fhir-changes", nil,
		"--set", "publish.types=Observation,Encounter,Patient", "--set", "publish.every=1s", "--set", "audit.topic=trail")

	r.write(r.hospital.History)
	r.ledger.Start(time.Now())
	r.start()
	if full := r.export(); len(full.Output) == 0 || len(full.Deleted) != 0 {
		t.Errorf("the full export has %d output and %d deleted files", len(full.Output), len(full.Deleted))
	}
	r.catchUp()
	t.Run("metrics are on http.listen", func(t *testing.T) {
		got := r.get("/metrics")
		for _, want := range []string{"200 ", "tidemark_store_rows_total", "tidemark_store_watermark_lag_seconds"} {
			if !strings.Contains(got, want) {
				t.Errorf("/metrics lacks %q:\n%.2000s", want, got)
			}
		}
	})
	t.Run("a second process is refused", func(t *testing.T) {
		args := append(r.args, "--set", "http.listen="+freePort(t))
		if got, code := ends(t, args...); code != exitFailed || !strings.Contains(got, "another process uses this store directory") {
			t.Errorf("exit %d: %s", code, got)
		}
		other := append(r.args, "--set", "store.path="+t.TempDir())
		if got, code := ends(t, other...); code != exitFailed || !strings.Contains(got, "http.listen") {
			t.Errorf("a port that is taken: exit %d: %s", code, got)
		}
	})

	r.live(300)
	r.kill() // in the midst of intake
	r.live(100)
	r.start()
	r.live(100)
	r.catchUp()

	t.Run("commands reach the running server", func(t *testing.T) { hotCommands(t, r) })
	r.live(200)
	bad := &kgo.Record{Topic: "fhir-changes", Key: []byte("Patient/" + canary), Value: []byte(`{"resourceType":"Patient",` + canary), Partition: 0}
	if err := r.producer.ProduceSync(t.Context(), bad).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r.catchUp()
	metrics := r.get("/metrics")
	manualKnows(t, metrics)
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM: the server ended with %v", err)
	}
	list := coldCommands(t, r)
	r.start()
	r.live(50)
	r.catchUp()
	r.prove()
	t.Run("Patient level", func(t *testing.T) { patientLevel(t, r) })
	t.Run("Group level", func(t *testing.T) { groupLevel(t, r) })
	t.Run("verify", func(t *testing.T) { verifyDownload(t, r) })
	t.Run("published", func(t *testing.T) { publishedIs(t, r, "Observation", "Encounter", "Patient") })
	log, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"the log": string(log), "/metrics": metrics, "deadletter list": list} {
		if strings.Contains(text, canary) {
			t.Errorf("%s holds what a record held", name)
		}
	}
}

// patientLevel compares an export of all Patients with what of the whole system
// lies in their compartments or is referred to there.
func patientLevel(t *testing.T, r *rig) {
	for _, body := range []string{
		`{"resourceType":"ValueSet","id":"outside","status":"draft"}`,
		`{"resourceType":"Observation","id":"outside","status":"final","subject":{"reference":"Location/well"}}`,
	} {
		if err := r.producer.ProduceSync(t.Context(), &kgo.Record{Topic: "fhir-changes", Value: []byte(body), Partition: 0}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	outside := func(lines map[string]bool) (n int) {
		for line := range lines {
			if strings.Contains(line, `"id":"outside"`) {
				n++
			}
		}
		return n
	}
	all := r.linesOf(t, "$export")
	for deadline := time.Now().Add(patience); outside(all) < 2; all = r.linesOf(t, "$export") {
		if time.Now().After(deadline) {
			t.Fatal("what was sent last does not arrive")
		}
	}
	left := map[string]bool{}
	provenance, _ := fhir.ParseType("Provenance")
	var scan fhir.Scanner
	for line := range all {
		res, err := scan.Scan([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Patients) > 0 || fhir.Referred(res.Key.Type) || res.Key.Type == provenance {
			left[line] = true
		}
	}
	got := r.linesOf(t, "Patient/$export")
	for line := range left {
		if !got[line] {
			t.Errorf("missing: %.100s", line)
		}
	}
	for line := range got {
		if !left[line] {
			t.Errorf("it does not belong there: %.100s", line)
		}
	}
	if len(got) == 0 || outside(got) > 0 {
		t.Errorf("%d of %d resources, %d of which lie outside", len(got), len(all), outside(got))
	}
}

// groupLevel compares the export of a Group with what of the whole system lies
// in its members' compartments, and looks that all else is referred to.
func groupLevel(t *testing.T, r *rig) {
	var scan fhir.Scanner
	var group fhir.Resource
	scanned := map[string]fhir.Resource{}
	for line := range r.linesOf(t, "$export") {
		res, err := scan.Scan([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		scanned[line] = res
		if res.Key.Type.String() == "Group" && len(res.Members) > len(group.Members) {
			group = res
		}
	}
	members := map[string]bool{}
	for _, m := range group.Members {
		over := m.End != fhir.None && m.End < fhir.FromTime(time.Now())
		if id, ok := strings.CutPrefix(m.Ref, "Patient/"); ok && !m.Inactive && !over {
			members[id] = true
		}
	}
	got := r.linesOf(t, group.Key.String()+"/$export")
	refers := map[fhir.Key]bool{}
	for line := range got {
		for _, k := range scanned[line].References {
			refers[k] = true
		}
	}
	of := 0
	for line, res := range scanned {
		theirs := slices.ContainsFunc(res.Patients, func(id string) bool { return members[id] })
		switch {
		case res.Key.Type.String() == "Group":
			theirs = res.Key == group.Key
		case fhir.Referred(res.Key.Type):
			theirs = theirs || refers[res.Key]
		case res.Key.Type.String() == "Provenance" && !theirs:
			theirs = got[line] // by its targets, which others look into
		}
		if theirs != got[line] {
			t.Errorf("in the export of %s: %t, want %t: %.100s", group.Key, got[line], theirs, line)
		}
		if theirs {
			of++
		}
	}
	if len(members) == 0 || of != len(got) || of == len(scanned) {
		t.Errorf("%d members, %d resources, %d of which are known, of %d", len(members), len(got), of, len(scanned))
	}
}

// linesOf are the resources of an export.
func (r *rig) linesOf(t *testing.T, path string) map[string]bool {
	t.Helper()
	job, err := r.client.Start(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := job.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for _, f := range m.Output {
		if err := r.lines(t.Context(), f, func(line []byte) error { lines[string(line)] = true; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := job.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	return lines
}

// manualKnows: every metric that the manual names exists.
func manualKnows(t *testing.T, metrics string) {
	t.Helper()
	manual, err := os.ReadFile("../../deploy/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`((?:tidemark|process)_[a-z_]+)`").FindAllStringSubmatch(string(manual), -1)
	if len(names) < 5 {
		t.Errorf("the manual names %d metrics", len(names))
	}
	for _, n := range names {
		if !strings.Contains(metrics, "# TYPE "+n[1]+" ") {
			t.Errorf("the manual names %s, /metrics does not", n[1])
		}
	}
}

// hotCommands tries the commands on the store of the running server.
func hotCommands(t *testing.T, r *rig) {
	if got, code := ends(t, "check", r.store()); code != 0 || !strings.Contains(got, "every invariant holds") {
		t.Errorf("check: exit %d: %s", code, got)
	}
	deadline := time.Now().Add(patience)
	for {
		got, code := ends(t, "inspect", "--types", "--store", r.store())
		if code != 0 || !strings.Contains(got, "live/Patient") || !strings.Contains(got, "watermark 20") {
			t.Fatalf("inspect: exit %d: %s", code, got)
		}
		if strings.Contains(got, "settled") && strings.Contains(got, "merges: ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing has settled:\n%s", got)
		}
		time.Sleep(100 * time.Millisecond)
	}
	patient := r.patient()
	got, code := ends(t, "inspect", "--store", r.store(), patient)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if code != 0 || len(lines) < 2 || !strings.Contains(lines[len(lines)-1], " now ") {
		t.Fatalf("inspect %s: exit %d: %s", patient, code, got)
	}
	number := strings.Fields(lines[len(lines)-1])[0]
	if got, code := ends(t, "inspect", "--store", r.store(), patient, "--body", number); code != 0 || !strings.Contains(got, strings.TrimPrefix(patient, "Patient/")) {
		t.Errorf("inspect %s --body %s: exit %d: %s", patient, number, code, got)
	}
	root := t.TempDir()
	if got, code := ends(t, "backup", root, "--store", r.store()); code != 0 || !strings.Contains(got, "linked") {
		t.Errorf("backup: exit %d: %s", code, got)
	}
	backups, err := filepath.Glob(filepath.Join(root, "tidemark-*"))
	if err != nil || len(backups) != 1 {
		t.Fatalf("backups: %v, %v", backups, err)
	}
	restored := filepath.Join(t.TempDir(), "restored")
	if got, code := ends(t, "restore", backups[0], restored); code != 0 || !strings.Contains(got, "epoch 2") {
		t.Errorf("restore: exit %d: %s", code, got)
	}
	if got, code := ends(t, "check", restored); code != 0 {
		t.Errorf("check of what was restored: exit %d: %s", code, got)
	}
	// The restored store, not the one that the proof is about.
	if got, code := ends(t, "erase", patient, "--compartment", "--store", restored); code == 0 || !strings.Contains(got, "nothing was erased") {
		t.Errorf("erase without --yes: exit %d: %s", code, got)
	}
	if got, code := ends(t, "erase", patient, "--compartment", "--yes", "--store", restored); code != 0 || !strings.Contains(got, "erased: ") || strings.Contains(got, "erased: 0 ") {
		t.Errorf("erase: exit %d: %s", code, got)
	}
	if got, code := ends(t, "inspect", patient, "--store", restored); code != 0 || strings.Contains(got, "live/") || !strings.Contains(got, "deleted/Patient") {
		t.Errorf("inspect of what was erased: exit %d: %s", code, got)
	}
	for _, c := range []struct{ resource, want string }{{"Patient/nobody", "no such resource"}, {"nobody", "is not a resource"}} {
		if got, code := ends(t, "inspect", "--store", r.store(), c.resource); code == 0 || !strings.Contains(got, c.want) {
			t.Errorf("inspect %s: exit %d: %s", c.resource, code, got)
		}
	}
}

// coldCommands tries the commands on a stopped store and returns the list of
// dead letters.
func coldCommands(t *testing.T, r *rig) string {
	t.Helper()
	if got, code := ends(t, "check", r.store()); code != 0 || !strings.Contains(got, "every invariant holds") {
		t.Errorf("check: exit %d: %s", code, got)
	}
	if got, code := ends(t, "inspect", "--store", r.store()); code != 0 || !strings.Contains(got, "segments, ") {
		t.Errorf("inspect: exit %d: %s", code, got)
	}
	if got, code := ends(t, "inspect", "--store", t.TempDir()); code != exitFailed || !strings.Contains(got, "is no store") {
		t.Errorf("inspect of an empty folder: exit %d: %s", code, got)
	}
	list, code := ends(t, "deadletter", "list", r.store())
	lines := strings.Split(strings.TrimSpace(list), "\n")
	if code != 0 || len(lines) != 2 {
		t.Fatalf("deadletter list: exit %d, want a heading and one line: %s", code, list)
	}
	number := strings.Fields(lines[1])[0]
	if got, code := ends(t, "deadletter", "show", number, r.store()); code != 0 || !strings.Contains(got, "Patient/"+canary) {
		t.Errorf("deadletter show: exit %d: %s", code, got)
	}
	if got, code := ends(t, "deadletter", "show", "1", r.store()); code != exitFailed || !strings.Contains(got, "no dead letter 1") {
		t.Errorf("deadletter show 1: exit %d: %s", code, got)
	}
	return list
}

// patient is one that the server has.
func (r *rig) patient() string {
	r.t.Helper()
	job, err := r.client.Start(r.t.Context(), "$export", url.Values{"_type": {"Patient"}})
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := job.Wait(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var first struct{ ID string }
	err = r.lines(r.t.Context(), m.Output[0], func(line []byte) error {
		if first.ID != "" {
			return nil
		}
		return json.Unmarshal(line, &first)
	})
	if err := errors.Join(err, job.Delete(r.t.Context())); err != nil {
		r.t.Fatal(err)
	}
	return "Patient/" + first.ID
}
