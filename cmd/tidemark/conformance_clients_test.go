//go:build conformance

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"tidemark/cmd/tidemark/internal/hospital"
)

// Clients that others wrote, as their package index has them, against a running
// server: whole exports and increments, of the system, of all Patients and of a
// Group. Every resource that a client holds in the end is compared with what the
// source sent.
func TestConformanceClients(t *testing.T) {
	needs(t, "python3")
	realClients(t, "fetch")
	c := newClinic(t)
	fetch := &fetcher{c: c, dir: t.TempDir()}
	peer := fmt.Sprintf("{base_url: %q}", c.client.Base)

	later := c.begin()
	var full, panel *delivery
	t.Run("smart-fetch, the system", func(t *testing.T) {
		full = fetch.managed(t, "full", time.Time{})
		full.equals(t, "the whole export", theirs(c.now), nil)
	})
	t.Run("smart-fetch, with filters of its own", func(t *testing.T) {
		dir := t.TempDir()
		smartFetch(t, "bulk", dir, "--fhir-url", c.client.Base, "--no-compression")
		held(t, dir, time.Time{}).equals(t, "the whole export", chosen(t, theirs(c.now)), nil)
	})
	t.Run("smart-fetch, a Group", func(t *testing.T) {
		panel = fetch.group(t, time.Time{})
		panel.equals(t, "the whole export", of(t, theirs(c.now), c.members), nil)
	})
	t.Run("sekmet", func(t *testing.T) {
		for _, run := range []struct {
			args []string
			want map[string][]byte
		}{
			{[]string{"--level", "system"}, c.now},
			{[]string{"--level", "patient", "--type", types}, of(t, theirs(c.now), nil)},
			{[]string{"--level", "group", "--group", "panel", "--type", types}, of(t, theirs(c.now), c.members)},
		} {
			if diff := cmp.Diff(counts(run.want), sekmet(t, peer, run.args...)); diff != "" {
				t.Errorf("%v: resources by type (-source +client):\n%s", run.args, diff)
			}
		}
	})
	if t.Failed() {
		t.FailNow() // an increment of what is wrong tells nothing
	}

	changed, gone, joiner := c.change(later)
	t.Run("smart-fetch, the increment of the system", func(t *testing.T) {
		fetch.managed(t, "increment", full.time, "--since", "auto").equals(t, "the increment", theirs(changed), names(theirs(gone)))
	})
	t.Run("smart-fetch, the increment of a Group", func(t *testing.T) {
		want := of(t, theirs(changed), c.members)
		maps.Copy(want, of(t, theirs(c.now), []string{joiner}))
		before := slices.DeleteFunc(slices.Clone(c.members), func(id string) bool { return id == joiner })
		fetch.group(t, panel.time).equals(t, "the increment", want, names(of(t, theirs(gone), before)))
	})
	t.Run("sekmet, the increment", func(t *testing.T) {
		got := sekmet(t, peer, "--level", "system", "--since", full.time.UTC().Format("2006-01-02T15:04:05.000Z"))
		want := counts(changed)
		want["Group"]++ // the panel was written after what changed
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("resources by type (-source +client):\n%s", diff)
		}
	})
	t.Run("smart-fetch, the whole again", func(t *testing.T) {
		// What it had and is no longer there, it notes as deleted by itself.
		fetch.managed(t, "again", time.Time{}).equals(t, "the whole export", theirs(c.now), names(theirs(gone)))
	})
}

// A fetcher is smart-fetch as it is used against a clinic's server.
type fetcher struct {
	c     *clinic
	dir   string   // of the exports that it manages
	proof []string // how it proves itself, if it has to
}

// managed is an export of the system, under a name, in a folder where it finds the ones
// before.
func (f *fetcher) managed(t *testing.T, nickname string, since time.Time, more ...string) *delivery {
	t.Helper()
	smartFetch(t, slices.Concat([]string{
		"export", f.dir, "--fhir-url", f.c.client.Base, "--export-mode", "bulk", "--hydration-tasks", "none",
		"--no-compression", "--no-default-filters", "--nickname", nickname,
	}, f.proof, more)...)
	folders, err := filepath.Glob(filepath.Join(f.dir, "*."+nickname))
	if err != nil || len(folders) != 1 {
		t.Fatalf("smart-fetch has left %d folders %s: %v", len(folders), nickname, err)
	}
	return held(t, folders[0], since)
}

// group is an export of the panel.
func (f *fetcher) group(t *testing.T, since time.Time) *delivery {
	t.Helper()
	args := slices.Concat([]string{"bulk", "--fhir-url", f.c.client.Base, "--no-compression", "--no-default-filters", "--group", "panel"}, f.proof)
	if !since.IsZero() {
		args = append(args, "--since", since.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	dir := t.TempDir()
	smartFetch(t, append(args, dir)...)
	return held(t, dir, time.Time{}) // what a joiner brings along is older than since
}

// needs skips a test where a tool is missing that a machine may lack, and CI may
// not.
func needs(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: .ci/run installs it", tool)
	}
	t.Skipf("%s is missing", tool)
}

// A clinic is a hospital of which we keep every resource that it has sent, and
// a server that has them.
type clinic struct {
	*rig
	in      resources         // the plan
	now     map[string][]byte // what the source has now, by Type/id
	members []string          // of Group/panel
}

// newClinic makes the resources of a small hospital, and those of a file, which
// are of the types and oddities that it lacks.
func newClinic(t *testing.T, more ...string) *clinic {
	t.Helper()
	const topic = "fhir-changes"
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	c := &clinic{rig: newRig(t, cluster.ListenAddrs()[0], topic, nil, more...), in: resources{bodies: map[string][]byte{}}, now: map[string][]byte{}}
	// The same at every run: by place is chosen what changes.
	c.in.generate(hospital.Options{Seed: 5, Patients: 20, Years: 1, End: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
	file, err := os.Open("testdata/resources.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := c.in.read(file); err != nil {
		t.Fatal(err)
	}
	return c
}

// begin sends all but every 20th resource and a Group, and starts a server. It
// returns what it has not sent.
func (c *clinic) begin() (later []string) {
	c.t.Helper()
	var first []string
	for i, key := range c.in.keys {
		if i%20 == 19 {
			later = append(later, key)
		} else {
			first = append(first, key)
			c.now[key] = c.in.bodies[key]
		}
	}
	c.in.keys = first
	c.members = []string{"walrus", "carpenter"}
	c.join(3)
	acked := c.send(slices.Values(c.in.records(c.topic, first)))
	c.start()
	c.covers(acked)
	c.sendPanel()
	return later
}

// join adds n Patients to the panel's members and returns the last one.
func (c *clinic) join(n int) (joiner string) {
	for _, key := range c.in.keys {
		id, ok := strings.CutPrefix(key, "Patient/")
		if ok && n > 0 && c.now[key] != nil && !slices.Contains(c.members, id) {
			c.members, joiner = append(c.members, id), id
			n--
		}
	}
	return joiner
}

// change changes, deletes and creates, and then lets one more Patient into the
// panel, so that what was deleted before is not told of him.
func (c *clinic) change(later []string) (changed, gone map[string][]byte, joiner string) {
	c.t.Helper()
	changed, removed, records := changes(c.topic, c.in)
	gone = map[string][]byte{}
	for key := range removed {
		gone[key] = c.now[key]
		delete(c.now, key)
	}
	for _, key := range later {
		changed[key] = c.in.bodies[key]
	}
	records = append(records, c.in.records(c.topic, later)...)
	maps.Copy(c.now, changed)
	c.covers(c.send(slices.Values(records)))
	joiner = c.join(1)
	c.sendPanel()
	if len(changed) < 100 || len(gone) < 20 || joiner == "" {
		c.t.Fatalf("%d changed, %d deleted, joiner %q: the increments prove little", len(changed), len(gone), joiner)
	}
	return changed, gone, joiner
}

// sendPanel sends the Group with its members of now.
func (c *clinic) sendPanel() {
	c.t.Helper()
	var members []string
	for _, id := range c.members {
		members = append(members, `{"entity":{"reference":"Patient/`+id+`"}}`)
	}
	const key = "Group/panel"
	c.now[key] = fmt.Appendf(nil, `{"resourceType":"Group","id":"panel","type":"person","actual":true,"name":"Panel","member":[%s]}`,
		strings.Join(members, ","))
	c.covers(c.send(slices.Values(resources{bodies: c.now}.records(c.topic, []string{key}))))
}

// covers waits until an export holds all that was acknowledged at a time.
func (c *clinic) covers(acked time.Time) {
	c.t.Helper()
	c.until("an export holds everything that was acknowledged", func() bool {
		job, err := c.client.Start(c.t.Context(), "$export", url.Values{"_type": {"Endpoint"}})
		if err != nil {
			c.t.Fatal(err)
		}
		m, err := job.Wait(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if err := job.Delete(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
		return m.TransactionTime.After(acked)
	})
}

// types are all that smart-fetch knows to ask for.
const types = "AllergyIntolerance,Condition,Device,DiagnosticReport,DocumentReference,Encounter,EpisodeOfCare,Immunization," +
	"MedicationDispense,MedicationRequest,Observation,Patient,Procedure,ServiceRequest,Specimen"

// theirs are the resources of smart-fetch's types.
func theirs(all map[string][]byte) map[string][]byte {
	theirs := map[string][]byte{}
	for key, body := range all {
		if kind, _, _ := strings.Cut(key, "/"); slices.Contains(strings.Split(types, ","), kind) {
			theirs[key] = body
		}
	}
	return theirs
}

// of are the resources, of smart-fetch's types, that are about these Patients,
// or about any: a naive reading of R4's Patient compartment.
func of(t *testing.T, all map[string][]byte, patients []string) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for key, body := range all {
		var about struct {
			Subject, Patient struct{ Reference string }
		}
		if err := json.Unmarshal(body, &about); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		for _, reference := range []string{key, about.Subject.Reference, about.Patient.Reference} {
			id, ok := strings.CutPrefix(reference, "Patient/")
			if ok && (patients == nil || slices.Contains(patients, id)) {
				found[key] = body
			}
		}
	}
	return found
}

// chosen are what smart-fetch's own _typeFilter lets through: all but
// Observations of no category that it knows.
func chosen(t *testing.T, all map[string][]byte) map[string][]byte {
	t.Helper()
	known := strings.Split("social-history,vital-signs,imaging,laboratory,survey,exam,procedure,therapy,activity", ",")
	chosen := maps.Clone(all)
	for key, body := range all {
		var observation struct {
			Category []struct{ Coding []struct{ Code string } }
		}
		if !strings.HasPrefix(key, "Observation/") {
			continue
		}
		if err := json.Unmarshal(body, &observation); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		matches := false
		for _, category := range observation.Category {
			for _, coding := range category.Coding {
				matches = matches || slices.Contains(known, coding.Code)
			}
		}
		if !matches {
			delete(chosen, key)
		}
	}
	if len(chosen) == len(all) {
		t.Fatal("its filters leave out nothing: they prove little")
	}
	return chosen
}

// names are the Type/id of resources.
func names(all map[string][]byte) map[string]bool {
	names := map[string]bool{}
	for key := range all {
		names[key] = true
	}
	return names
}

// counts are the numbers of resources by type.
func counts(all map[string][]byte) map[string]int {
	counts := map[string]int{}
	for key := range all {
		kind, _, _ := strings.Cut(key, "/")
		counts[kind]++
	}
	return counts
}

// clients runs one of the clients and returns what it has printed.
func realClients(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../../deploy/dev/clients/clients", args...)
	cmd.Env = append(os.Environ(), "COLUMNS=200", "NO_COLOR=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// smartFetch runs smart-fetch, which goes on where it only wants to warn.
func smartFetch(t *testing.T, args ...string) {
	t.Helper()
	out := realClients(t, append([]string{"smart-fetch"}, args...)...)
	for _, sign := range []string{"Failed", "Messages from server", "does not support", "doesn't support", "Could not"} {
		if strings.Contains(out, sign) {
			t.Errorf("smart-fetch says %q:\n%s", sign, out)
		}
	}
}

// held is what smart-fetch has in a folder.
func held(t *testing.T, folder string, since time.Time) *delivery {
	t.Helper()
	d := newDelivery(since)
	err := errors.Join(
		eachLine(filepath.Join(folder, "*.ndjson"), func(file string, line []byte) error {
			kind, _, _ := strings.Cut(file, ".")
			if kind == "log" {
				return d.note(line)
			}
			return d.enter(kind, line)
		}),
		eachLine(filepath.Join(folder, "deleted", "*.ndjson"), func(_ string, line []byte) error { return d.remove(line) }),
		eachLine(filepath.Join(folder, "error", "*.ndjson"), func(_ string, line []byte) error {
			d.faults = append(d.faults, fmt.Errorf("the server reports %s", line))
			return nil
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	if d.time.IsZero() {
		t.Fatal("smart-fetch's log tells no transactionTime")
	}
	return d
}

// note takes a line of the log in which clients account for an export.
func (d *delivery) note(line []byte) error {
	var event struct {
		EventID     string
		EventDetail struct{ TransactionTime time.Time }
	}
	if err := json.Unmarshal(line, &event); err != nil {
		return err
	}
	if event.EventID == "status_complete" {
		d.time = event.EventDetail.TransactionTime
	}
	return nil
}

// eachLine reads the lines of all files that match, which may be none.
func eachLine(pattern string, take func(file string, line []byte) error) error {
	paths, err := filepath.Glob(pattern)
	for _, path := range paths {
		err = errors.Join(err, linesOf(path, func(line []byte) error { return take(filepath.Base(path), line) }))
	}
	return err
}

func linesOf(path string, take func([]byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	r := bufio.NewReader(file)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil { // a last line without its end is none
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := take(line[:len(line)-1]); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}

// sekmet runs sekmet with a peer as its settings tell of one, which compares the files with the manifest, looks into
// them and keeps nothing; it returns how many resources of each type it counted.
func sekmet(t *testing.T, peer string, args ...string) map[string]int {
	t.Helper()
	dir := t.TempDir()
	settings := filepath.Join(dir, "settings.yaml")
	text := fmt.Sprintf("db_path: %s\npeers:\n  tidemark: %s\n", filepath.Join(dir, "db"), peer)
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := realClients(t, append([]string{"sekmet", "bulk", "export", "--config", settings, "--peer", "tidemark"}, args...)...)
	if !strings.HasSuffix(strings.TrimSpace(out), "\nVALID") {
		t.Errorf("sekmet %v says:\n%s", args, out)
	}
	counts := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^ +(\w+) +(\d+) lines +declared=(\d+) +invalid=0 `).FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil || m[2] != m[3] {
			t.Errorf("sekmet %v: %s: %v", args, m[0], err)
		}
		counts[m[1]] += n
	}
	return counts
}
