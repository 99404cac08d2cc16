package api_test

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/api"
	"tidemark/api/export"
	"tidemark/api/publish"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// machine is a real store under a real server, and a client of it.
type machine struct {
	t        *testing.T
	dir      string
	db       *store.DB
	base     string
	client   *http.Client
	stop     func() error
	offset   int64
	file     int64 // bytes of a file at most, default 1 MiB
	inline   int64 // content of attachments that takes the place of its URL
	withhold withhold.Policy
	publish  publish.Options
	mergeOff bool
	log      lockedBuffer
}

// A lockedBuffer holds a log that is being written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var partition = store.Partition{Topic: "fhir-changes"}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir(), client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	m.open()
	t.Cleanup(func() { m.close() })
	return m
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) open() {
	m.t.Helper()
	log := slog.New(slog.NewTextHandler(&m.log, nil))
	db, err := store.Open(m.dir, store.Options{CommitInterval: time.Millisecond, Allowance: time.Millisecond, MergeOff: m.mergeOff, Logger: log})
	m.must(err)
	m.db = db
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	m.must(db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: partition, End: m.offset}}}))
	base, stop := running(m.t, api.Options{
		Store: export.Of(db), Ready: func() bool { return db.Status().Ready }, FileMaxBytes: cmp.Or(m.file, 1<<20), Checkpoint: -1, Inline: m.inline, Withhold: m.withhold, Publish: m.publish, Logger: log,
	})
	m.base = base
	m.stop = func() error {
		err := stop()
		cancel()
		return joined(err, <-done, db.Close())
	}
}

func joined(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) close() {
	if m.stop != nil {
		if err := m.stop(); err != nil {
			m.t.Error(err)
		}
		m.stop = nil
	}
}

func (m *machine) restart() {
	m.close()
	m.open()
}

// apply takes changes in and waits until the watermark has passed them.
func (m *machine) apply(changes ...store.Change) {
	m.t.Helper()
	asked := m.db.Now()
	for i := range changes {
		changes[i].Offset, changes[i].Timestamp = m.offset, asked
		m.offset++
	}
	m.must(m.db.Apply(m.t.Context(), store.Batch{Partition: partition, Changes: changes, Next: m.offset, LeaderEpoch: -1, Asked: asked, End: m.offset}))
	for m.db.Status().Watermark < asked || m.db.Status().Gathering > 0 {
		// An empty answer moves the watermark, as one from an idle broker does.
		m.must(m.db.Apply(m.t.Context(), store.Batch{Partition: partition, Next: m.offset, LeaderEpoch: -1, Asked: m.db.Now(), End: m.offset}))
		select {
		case <-m.t.Context().Done():
			m.t.Fatal(m.t.Context().Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func resource(t testing.TB, ref string, version int, text string) store.Change {
	k := key(t, ref)
	var s fhir.Scanner
	r, err := s.Scan(fmt.Appendf(nil, `{"resourceType":%q,"id":%q,"meta":{"versionId":"%d"},"text":{"status":"generated","div":%q}}`, k.Type, k.ID, version, text))
	if err != nil {
		t.Fatal(err)
	}
	return store.Change{Key: r.Key, Body: r.Body, Meta: r.Meta, Version: int64(version), LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
}

func deletion(t testing.TB, ref string) store.Change {
	return store.Change{Key: key(t, ref), Delete: true, Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
}

func poison() store.Change {
	return store.Change{
		Version: store.NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None,
		Dead: &store.DeadLetter{Reason: "not JSON", Value: []byte("{"), Length: 1},
	}
}

func (m *machine) get(path string, header ...string) (*http.Response, []byte) {
	m.t.Helper()
	req, err := http.NewRequest(http.MethodGet, m.base+path, nil)
	m.must(err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := m.client.Do(req)
	m.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	m.must(err)
	return resp, body
}

// exported is what a client holds after an export.
type exported struct {
	job     string
	at      string
	ids     []string // of the lines, with their versions; deletions as -Type/id
	errors  int
	files   []string // paths
	outputs int
}

func (m *machine) export(query string) exported {
	m.t.Helper()
	e := exported{job: start(m.t, m.client, m.base, query)}
	_, body := m.get(e.job)
	var doc manifest
	m.must(json.Unmarshal(body, &doc))
	e.at = doc.TransactionTime
	e.outputs = len(doc.Output)
	for _, list := range [][]listed{doc.Output, doc.Deleted, doc.Error} {
		for _, f := range list {
			path := "/fhir" + strings.TrimPrefix(f.URL, public)
			e.files = append(e.files, path)
			lines := m.lines(path, f)
			if f.Type == "OperationOutcome" {
				e.errors += len(lines)
				continue
			}
			e.ids = append(e.ids, lines...)
		}
	}
	slices.Sort(e.ids)
	return e
}

// lines downloads a file in both codings and names its resources.
func (m *machine) lines(path string, f listed) (ids []string) {
	m.t.Helper()
	head, plain := m.get(path)
	f.prove(m.t, plain)
	if is := fmt.Sprintf("%08x", crc32.ChecksumIEEE(plain)); head.Header.Get("Tidemark-CRC32") != is {
		m.t.Errorf("%s has the checksum %s, its header says %q", path, is, head.Header.Get("Tidemark-CRC32"))
	}
	resp, packed := m.get(path, "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Encoding") != "gzip" || resp.ContentLength != int64(len(packed)) {
		m.t.Errorf("%s: %v", path, resp.Header)
	}
	if got := m.gunzip(packed); !bytes.Equal(got, plain) {
		m.t.Errorf("%s: the codings differ: %d bytes and %d", path, len(got), len(plain))
	}
	for line := range bytes.Lines(plain) {
		var r struct {
			ResourceType, ID string
			Meta             struct{ VersionID string }
			Entry            []struct {
				Request struct{ Method, URL string }
			}
		}
		m.must(json.Unmarshal(line, &r))
		id := r.ResourceType + "/" + r.ID + " v" + r.Meta.VersionID
		if r.ResourceType == "Bundle" {
			id = "-" + r.Entry[0].Request.URL
		}
		ids = append(ids, id)
	}
	return ids
}

// gunzip insists on a single member, as curl and browsers read it.
func (m *machine) gunzip(b []byte) []byte {
	m.t.Helper()
	r := bytes.NewReader(b)
	zr, err := gzip.NewReader(r)
	m.must(err)
	zr.Multistream(false)
	plain, err := io.ReadAll(zr)
	m.must(err)
	if r.Len() != 0 {
		m.t.Errorf("%d bytes behind the first gzip member", r.Len())
	}
	return plain
}

// The whole way with the real store: a chain of exports, deletions, dead
// letters, blocks with hidden rows, a restart in the middle of a download.
func TestRealStore(t *testing.T) {
	m := newMachine(t)
	if resp, _ := m.get("/readyz"); resp.StatusCode != http.StatusServiceUnavailable && resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	noise := strings.Repeat("It was the best of times, it was the worst of times. ", 400)
	var first []store.Change
	for i := range 200 {
		first = append(first, resource(t, fmt.Sprintf("Observation/%d", i), 1, fmt.Sprint(i, noise)))
	}
	first = append(first, resource(t, "Patient/1", 1, "one"), resource(t, "Patient/2", 1, "two"), poison())
	m.apply(first...)

	full := m.export("")
	if len(full.ids) != 202 || full.errors != 1 || full.outputs < 4 {
		t.Fatalf("full export: %d resources, %d errors, %d files", len(full.ids), full.errors, full.outputs)
	}

	m.apply(resource(t, "Patient/1", 2, "one again"), deletion(t, "Patient/2"), resource(t, "Observation/7", 2, "short"))
	next := m.export("?_since=" + full.at)
	if want := []string{"-Patient/2", "Observation/7 v2", "Patient/1 v2"}; !slices.Equal(next.ids, want) || next.errors != 0 {
		t.Errorf("increment %v, %d errors, want %v", next.ids, next.errors, want)
	}
	if empty := m.export("?_since=" + next.at); len(empty.files) != 0 {
		t.Errorf("an increment without changes has files %v", empty.files)
	}
	// Blocks with rows that died before the kick-off are cut; the job that was
	// there before still gets them whole.
	second := m.export("?_type=Observation,Patient")
	if len(second.ids) != 201 || !slices.Contains(second.ids, "Observation/7 v2") || slices.Contains(second.ids, "Observation/7 v1") {
		t.Errorf("second full export: %d resources", len(second.ids))
	}

	for _, path := range []string{full.files[0], second.files[0]} {
		m.resume(path)
	}
	req, err := http.NewRequest(http.MethodDelete, m.base+full.job, nil)
	m.must(err)
	resp, err := m.client.Do(req)
	m.must(err)
	resp.Body.Close()
	if gone, _ := m.get(full.files[0]); resp.StatusCode != http.StatusAccepted || gone.StatusCode != http.StatusNotFound {
		t.Errorf("DELETE %s, then %s", resp.Status, gone.Status)
	}
	m.restart()
	if gone, _ := m.get(full.job); gone.StatusCode != http.StatusNotFound {
		t.Errorf("after a restart the deleted job is %s", gone.Status)
	}
}

// resume fetches half a file, restarts the server, and fetches the rest.
func (m *machine) resume(path string) {
	m.t.Helper()
	resp, whole := m.get(path, "Accept-Encoding", "gzip")
	tag := resp.Header.Get("ETag")
	half := len(whole) / 2
	_, got := m.get(path, "Accept-Encoding", "gzip", "Range", fmt.Sprintf("bytes=0-%d", half-1))
	m.restart()
	resp, rest := m.get(path, "Accept-Encoding", "gzip", "Range", fmt.Sprintf("bytes=%d-", half), "If-Range", tag)
	if resp.StatusCode != http.StatusPartialContent {
		m.t.Errorf("the rest came as %s", resp.Status)
	}
	if got = append(got, rest...); !bytes.Equal(got, whole) {
		m.t.Errorf("%s: the halves are not the whole", path)
	}
	m.gunzip(got)
}

// A file that the disk has no room for now is asked for again, one that is
// damaged is the operator's business, and the log says which without the job's
// id: it opens all its files.
func TestPrivateFilesInTheLog(t *testing.T) {
	m := newMachine(t)
	m.apply(resource(t, "Patient/a", 1, "x"), resource(t, "Patient/b", 1, "x"))
	m.apply(resource(t, "Patient/a", 2, "x"))
	job := start(t, m.client, m.base, "")
	id := job[strings.LastIndex(job, "/")+1:]
	cut := filepath.Join(m.dir, "jobs", id, "f1.cut")
	m.must(os.MkdirAll(filepath.Join(cut+".tmp", "x"), 0o700)) // stands in the way, as a full disk does
	resp, body := m.get(job + "/1.ndjson")
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), `"transient"`) {
		t.Errorf("without room: %s %v %s", resp.Status, resp.Header, body)
	}
	m.must(os.RemoveAll(cut + ".tmp"))
	if resp, body := m.get(job + "/1.ndjson"); resp.StatusCode != http.StatusOK {
		t.Errorf("with room: %s %s", resp.Status, body)
	}
	m.must(os.Truncate(cut, 3))
	if resp, body := m.get(job + "/1.ndjson"); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("damaged: %s %s", resp.Status, body)
	}
	m.close()
	for _, want := range []string{"request put off", "f1.cut.tmp", "request failed", "f1.cut is too short"} {
		if !strings.Contains(m.log.String(), want) {
			t.Errorf("the log does not tell %q", want)
		}
	}
	if strings.Contains(m.log.String(), id) {
		t.Errorf("the log holds the id of the job:\n%s", m.log.String())
	}
}
