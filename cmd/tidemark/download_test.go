package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

// quick lets the watermark follow the clock closely; these tests have one
// producer with one clock.
var quick = []string{"--set", "watermark.allowance=100ms"}

// A download that a kill has cut goes on after the restart, by Range and
// If-Range: in both codings, also through blocks that were recompressed because
// rows in them must not be seen.
func TestDownloadGoesOn(t *testing.T) {
	t.Parallel() // it mostly waits
	r := oneTopic(t)
	const n = 240
	var batch []*kgo.Record
	rng := rand.NewChaCha8([32]byte{1})
	for _, kind := range []string{"Media", "DocumentReference"} {
		for i := range n {
			batch = append(batch, r.change(kind, fmt.Sprint(i), noise(rng, 48<<10), time.Now()))
		}
	}
	r.put(batch...)
	r.start()
	r.beyond(time.Now(), nil)
	r.put( // what hides rows in the midst of blocks of DocumentReference
		r.change("DocumentReference", "100", noise(rng, 48<<10), time.Now()),
		&kgo.Record{Topic: r.topic, Key: []byte("DocumentReference/50"), Timestamp: time.Now()},
	)
	_, m := r.beyond(time.Now(), nil)

	var begun []*halved
	for _, f := range m.Output {
		for _, coding := range []string{"gzip", "identity"} {
			begun = append(begun, begin(t, f, coding))
		}
	}
	if len(begun) != 4 {
		t.Fatalf("%d downloads, want 2 files in 2 codings each", len(begun))
	}
	cuts, err := filepath.Glob(filepath.Join(r.store(), "jobs", "*", "*.cut"))
	if err != nil || len(cuts) != 1 {
		t.Fatalf("private files %v (%v), want one: that of DocumentReference", cuts, err)
	}
	r.kill()
	for _, d := range begun {
		d.answer.Body.Close() // whatever lay in the buffers of the connection is lost
	}
	r.start()
	whole := map[string][]byte{}
	for _, d := range begun {
		d.goOn(t)
		whole[d.file.Type+" "+d.coding] = d.got
	}
	for kind, want := range map[string]int{"Media": n, "DocumentReference": n - 1} {
		plain := whole[kind+" identity"]
		if !bytes.Equal(inflate(t, whole[kind+" gzip"]), plain) {
			t.Errorf("%s: the codings hold different bytes", kind)
		}
		if got := bytes.Count(plain, []byte("\n")); got != want {
			t.Errorf("%s: %d lines, want %d", kind, got, want)
		}
	}
	if bytes.Contains(whole["DocumentReference identity"], []byte(`"id":"50"`)) {
		t.Error("a deleted resource is in the export")
	}
}

// oneTopic is a rig on a broker of its own with a topic of one partition.
func oneTopic(t *testing.T, more ...string) *rig {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return newRig(t, cluster.ListenAddrs()[0], "fhir-changes", nil, append(quick, more...)...)
}

// change is a record with a resource that has so many bytes of data.
func (r *rig) change(kind, id string, data []byte, at time.Time) *kgo.Record {
	body := append([]byte(nil), `{"resourceType":"`+kind+`","id":"`+id+`","data":"`...)
	body = append(append(body, data...), `"}`...)
	return &kgo.Record{Topic: r.topic, Key: []byte(kind + "/" + id), Value: body, Timestamp: at}
}

const base64Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// noise is n characters of base64 that do not compress beyond their alphabet.
func noise(rng *rand.ChaCha8, n int) []byte {
	b := make([]byte, n)
	_, _ = rng.Read(b) // never fails
	for i := range b {
		b[i] = base64Alphabet[b[i]&63]
	}
	return b
}

// put writes records and waits until the broker has them.
func (r *rig) put(records ...*kgo.Record) {
	r.t.Helper()
	if err := r.producer.ProduceSync(r.t.Context(), records...).FirstErr(); err != nil {
		r.t.Fatal(err)
	}
}

// ask makes an export that is not part of the chain.
func (r *rig) ask(params url.Values) (*bulkclient.Job, *bulkclient.Manifest) {
	r.t.Helper()
	job, err := r.client.Start(r.t.Context(), "$export", params)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := job.Wait(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return job, m
}

// beyond makes exports until one is cut after an instant, and keeps that alone.
func (r *rig) beyond(at time.Time, params url.Values) (job *bulkclient.Job, m *bulkclient.Manifest) {
	r.t.Helper()
	r.until("the watermark is beyond "+at.String(), func() bool {
		job, m = r.ask(params)
		if m.TransactionTime.After(at) {
			return true
		}
		if err := job.Delete(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		return false
	})
	return job, m
}

// halved is a download that was cut in the middle.
type halved struct {
	file   bulkclient.File
	coding string
	answer *http.Response
	tag    string
	size   int64
	got    []byte
}

// begin fetches half of a file.
func begin(t *testing.T, f bulkclient.File, coding string) *halved {
	t.Helper()
	d := &halved{file: f, coding: coding}
	d.answer = d.get(t, http.Header{}, http.StatusOK)
	d.tag, d.size = d.answer.Header.Get("ETag"), d.answer.ContentLength
	if !strings.HasPrefix(d.tag, `"`) {
		t.Fatalf("ETag %q is not a strong one", d.tag)
	}
	if d.size < 4<<20 {
		t.Fatalf("a file of %d bytes fits into the buffers of a connection", d.size)
	}
	d.got = make([]byte, d.size/2)
	if _, err := io.ReadFull(d.answer.Body, d.got); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *halved) get(t *testing.T, header http.Header, status int) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.file.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	header.Set("Accept-Encoding", d.coding) // by hand, so that nothing is decoded on the way
	req.Header = header
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != status {
		t.Fatalf("%s: %d, want %d", d.coding, answer.StatusCode, status)
	}
	if got := answer.Header.Get("Content-Encoding"); (got == "gzip") != (d.coding == "gzip") {
		t.Fatalf("%s was asked for, Content-Encoding is %q", d.coding, got)
	}
	return answer
}

// goOn fetches the rest, and then the whole to compare.
func (d *halved) goOn(t *testing.T) {
	t.Helper()
	at := int64(len(d.got))
	answer := d.get(t, http.Header{"Range": {fmt.Sprintf("bytes=%d-", at)}, "If-Range": {d.tag}}, http.StatusPartialContent)
	if got, want := answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", at, d.size-1, d.size); got != want {
		t.Errorf("Content-Range %q, want %q", got, want)
	}
	d.got = append(d.got, readAll(t, answer)...)
	answer = d.get(t, http.Header{"If-Match": {d.tag}}, http.StatusOK)
	if !bytes.Equal(d.got, readAll(t, answer)) {
		t.Errorf("%s, %s: two halves are not the whole", d.file.Type, d.coding)
	}
}

func readAll(t *testing.T, answer *http.Response) []byte {
	t.Helper()
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inflate reads the one gzip member that b must be.
func inflate(t *testing.T, b []byte) []byte {
	t.Helper()
	in := bytes.NewReader(b)
	zip, err := gzip.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	zip.Multistream(false)
	plain, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	if in.Len() > 0 {
		t.Errorf("%d bytes follow the first gzip member", in.Len())
	}
	return plain
}

// What was shown is promised: a change that comes after a kill, with a time long
// before the transactionTime of an export that only the killed server knew of,
// is in the next window.
func TestLateAfterKill(t *testing.T) {
	t.Parallel() // it mostly waits
	r := oneTopic(t)
	for round := range 5 {
		began := time.Now()
		r.launch("--set", "commit.interval=10m")
		r.ready()
		r.beyond(began, nil) // as the clock says, not as a former server promised
		pending, late := fmt.Sprintf("pending-%d", round), fmt.Sprintf("late-%d", round)
		r.put(r.change("Basic", pending, nil, time.Now())) // is taken in and not committed
		_, shown := r.ask(nil)
		r.kill()

		before := shown.TransactionTime.Add(-time.Hour)
		body := fmt.Sprintf(`{"resourceType":"Basic","id":"%s","meta":{"versionId":"1","lastUpdated":"%s"}}`, late, instant(before))
		r.put(&kgo.Record{Topic: r.topic, Key: []byte("Basic/" + late), Value: []byte(body), Timestamp: before})
		r.launch("--set", "commit.interval=10ms")
		r.ready()
		r.until("both are committed", func() bool { return r.rows() >= 2 })
		_, m := r.beyond(time.Now(), url.Values{"_since": {instant(shown.TransactionTime)}})
		got := r.ids(m)
		for _, id := range []string{pending, late} {
			if !got[id] {
				t.Errorf("round %d: the window after %s lacks %s: %v", round, instant(shown.TransactionTime), id, got)
			}
		}
		if len(got) != 2 {
			t.Errorf("round %d: the window holds %v", round, got)
		}
		r.kill()
	}
}

var rowsMetric = regexp.MustCompile(`(?m)^tidemark_store_rows_total(?:\{.*\})? (\S+)$`)

// rows is how many rows this server has committed.
func (r *rig) rows() int {
	r.t.Helper()
	found := rowsMetric.FindStringSubmatch(r.get("/metrics"))
	if found == nil {
		return 0
	}
	n, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		r.t.Fatal(err)
	}
	return int(n)
}

var idMember = regexp.MustCompile(`"id":"([^"]*)"`)

// ids are the resources in the output of an export.
func (r *rig) ids(m *bulkclient.Manifest) map[string]bool {
	r.t.Helper()
	ids := map[string]bool{}
	for _, f := range m.Output {
		err := r.lines(r.t.Context(), f, func(line []byte) error {
			ids[string(idMember.FindSubmatch(line)[1])] = true
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return ids
}
