package bulkclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
)

// inProcess answers requests without a network, so that tests can bend time.
type inProcess struct{ http.Handler }

func (h inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code == broken {
		return nil, errors.New("connection reset")
	}
	return w.Result(), nil
}

// broken stands for an answer that never came.
const broken = 599

// server is a script: each path has the answers it gives, the last one for ever.
type server map[string][]answer

type answer struct {
	status int
	header map[string]string
	body   string
}

func (s server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.Method + " " + r.URL.Path
	answers := s[path]
	if len(answers) == 0 {
		http.NotFound(w, r)
		return
	}
	if len(answers) > 1 {
		s[path] = answers[1:]
	}
	for name, value := range answers[0].header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(answers[0].status)
	fmt.Fprint(w, answers[0].body)
}

func client(s server) *Client {
	return &Client{Base: "http://example.org/fhir", HTTP: &http.Client{Transport: inProcess{s}}}
}

var accepted = answer{202, map[string]string{"Content-Location": "http://example.org/fhir/job/1"}, ""}

const manifestText = `{"transactionTime":"2026-01-02T03:04:05.123Z","request":"http://example.org/fhir/$export","requiresAccessToken":false,
	"output":[{"type":"Patient","url":"http://example.org/fhir/job/1/1","count":2}],
	"deleted":[{"type":"Bundle","url":"http://example.org/fhir/job/1/2","count":1}],"error":[]}`

var complete = answer{200, map[string]string{"Content-Type": "application/json"}, manifestText}

// TestPollsNoFasterThanAsked: not ready at kick-off, then not complete for two
// polls, one of which is refused as too many.
func TestPollsNoFasterThanAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		date := time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat)
		c := client(server{
			"GET /fhir/$export": {{503, map[string]string{"Retry-After": "7"}, `{"resourceType":"OperationOutcome"}`}, accepted},
			"GET /fhir/job/1": {
				{202, map[string]string{"Retry-After": "20"}, ""},
				{429, map[string]string{"Retry-After": date}, ""},
				complete,
			},
		})
		begin := time.Now()
		job, err := c.Start(t.Context(), "$export", nil)
		if err != nil {
			t.Fatal(err)
		}
		m, err := job.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// 7 + 20 s, then until the date, 90 s after the beginning.
		if got := time.Since(begin); got != 90*time.Second {
			t.Errorf("took %v, want 90s", got)
		}
		if got := job.Began.Sub(begin); got != 7*time.Second {
			t.Errorf("the accepted request began after %v, want 7s", got)
		}
		if want := time.Date(2026, 1, 2, 3, 4, 5, 123e6, time.UTC); !m.TransactionTime.Equal(want) {
			t.Errorf("transactionTime %v, want %v", m.TransactionTime, want)
		}
		if len(m.Output) != 1 || len(m.Deleted) != 1 || *m.Output[0].Count != 2 {
			t.Errorf("manifest %+v", m)
		}
	})
}

func TestKickOffGivesUpAtOnceWhereWaitingIsNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outcome := `{"resourceType":"OperationOutcome","issue":[{"diagnostics":"_since is not an instant"}]}`
		c := client(server{"GET /fhir/$export": {{400, nil, outcome}}})
		begin := time.Now()
		_, err := c.Start(t.Context(), "$export", url.Values{"_since": {"yesterday"}})
		if err == nil || !strings.Contains(err.Error(), "400") || !strings.Contains(err.Error(), "_since is not an instant") {
			t.Errorf("error: %v", err)
		}
		if time.Since(begin) != 0 {
			t.Error("it was tried again")
		}
	})
}

func TestKickOffGivesUpWhenPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(server{"GET /fhir/$export": {{status: broken}}})
		c.Patience = 10 * time.Second
		begin := time.Now()
		if _, err := c.Start(t.Context(), "$export", nil); err == nil {
			t.Error("no error")
		}
		if took := time.Since(begin); took < 5*time.Second || took > 10*time.Second {
			t.Errorf("gave up after %v", took)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(server{"GET /fhir/$export": {accepted}, "GET /fhir/job/1": {{202, map[string]string{"Retry-After": "60"}, ""}}})
		job, err := c.Start(t.Context(), "$export", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		if _, err := job.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
	})
}

func TestDelete(t *testing.T) {
	c := client(server{"GET /fhir/$export": {accepted}, "DELETE /fhir/job/1": {{202, nil, ""}, {404, nil, "{}"}}})
	job, err := c.Start(t.Context(), "$export", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := job.Delete(t.Context()); err == nil {
		t.Error("a job could be deleted twice")
	}
}

// A server that died before it answered has deleted the job or has not.
func TestDeleteAgainAfterNoAnswer(t *testing.T) {
	c := client(server{"GET /fhir/$export": {accepted}, "DELETE /fhir/job/1": {{503, nil, "{}"}, {404, nil, "{}"}}})
	job, err := c.Start(t.Context(), "$export", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func zip(parts ...string) string {
	var b bytes.Buffer
	for _, part := range parts {
		w := gzip.NewWriter(&b)
		fmt.Fprint(w, part)
		w.Close()
	}
	return b.String()
}

func TestDownload(t *testing.T) {
	ndjson := map[string]string{"Content-Type": "application/fhir+ndjson"}
	zipped := map[string]string{"Content-Type": "application/fhir+ndjson", "Content-Encoding": "gzip"}
	two := "{\"id\":\"a\"}\n{\"id\":\"b\"}\n"
	want := []string{`{"id":"a"}`, `{"id":"b"}`}
	for _, test := range []struct {
		name    string
		answers []answer
		want    string // error, "" for none
	}{
		{"identity", []answer{{200, ndjson, two}}, ""},
		{"no newline at the end", []answer{{200, ndjson, two[:len(two)-1]}}, ""},
		{"gzip", []answer{{200, zipped, zip(two)}}, ""},
		{"broken connection, then busy", []answer{{status: broken}, {503, nil, ""}, {200, zipped, zip(two)}}, ""},
		{"two members", []answer{{200, zipped, zip(two, two)}}, "follow the first gzip member"},
		{"cut short", []answer{{200, zipped, zip(two)[:len(zip(two))-4]}}, "unexpected EOF"},
		{"damaged", []answer{{200, zipped, zip(two)[:len(zip(two))-8] + "12345678"}}, "checksum"},
		{"too few", []answer{{200, ndjson, "{\"id\":\"a\"}\n"}}, "it has 1 lines, the manifest says 2"},
		{"blank line", []answer{{200, ndjson, "{\"id\":\"a\"}\n\n"}}, "line 2: is blank"},
		{"carriage return", []answer{{200, ndjson, "{\"id\":\"a\"}\r\n"}}, "line 1: is not one JSON object"},
		{"another type", []answer{{200, map[string]string{"Content-Type": "application/json"}, two}}, "a file of type"},
		{"another encoding", []answer{{200, map[string]string{"Content-Type": "application/fhir+ndjson", "Content-Encoding": "br"}, two}}, "not asked for"},
		{"gone", []answer{{404, nil, ""}}, "404"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := client(server{"GET /f": test.answers})
				count := int64(2)
				var got []string
				var transfer Transfer
				body, err := c.Fetch(t.Context(), File{Type: "Patient", URL: "http://example.org/f", Count: &count})
				if err == nil {
					transfer, err = body.Lines(func(line []byte) error {
						got = append(got, string(line))
						return nil
					})
				}
				if test.want != "" {
					if err == nil || !strings.Contains(err.Error(), test.want) {
						t.Errorf("error %v, want %q", err, test.want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("lines (-want +got):\n%s", diff)
				}
				if transfer.Lines != 2 || transfer.Bytes != int64(len(two)) {
					t.Errorf("transfer %+v", transfer)
				}
			})
		})
	}
}

func TestDeletions(t *testing.T) {
	for _, test := range []struct {
		line string
		want []string
	}{
		{`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"Patient/1"}}]}`, []string{"Patient/1"}},
		{`{"resourceType":"Bundle","type":"transaction","entry":[]}`, nil},
		{`{"resourceType":"Bundle","type":"history","entry":[{"request":{"method":"DELETE","url":"Patient/1"}}]}`, nil},
		{`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"PUT","url":"Patient/1"}}]}`, nil},
		{`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"http://example.org/fhir/Patient/1"}}]}`, nil},
		{`{"resourceType":"Bundle","type":"transaction","entry":[{"resource":{},"request":{"method":"DELETE","url":"Patient/1"}}]}`, nil},
	} {
		got, err := Deletions([]byte(test.line))
		if (err != nil) != (test.want == nil) {
			t.Errorf("%s: error %v", test.line, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.line, diff)
		}
	}
}

// What the manifest and the header tell of a file is compared with what came.
func TestDownloadIsRecounted(t *testing.T) {
	two := "{\"id\":\"a\"}\n{\"id\":\"b\"}\n"
	right, wrong := crc32.ChecksumIEEE([]byte(two)), uint32(1)
	header := func(more string) map[string]string {
		return map[string]string{"Content-Type": "application/fhir+ndjson", "Content-Encoding": "gzip", "Tidemark-CRC32": more}
	}
	hex := fmt.Sprintf("%08x", right)
	for _, test := range []struct {
		name   string
		file   File
		header map[string]string
		want   string // error, "" for none
	}{
		{"all as it is told", File{Bytes: new(int64(len(two))), CRC: &right}, header(hex), ""},
		{"nothing is told", File{}, header(""), ""},
		{"another length", File{Bytes: new(int64(len(two) + 1))}, header(hex), "it has 22 bytes, the manifest says 23"},
		{"another checksum in the manifest", File{CRC: &wrong}, header(hex), "the manifest says 00000001"},
		{"another checksum in the header", File{}, header("00000001"), "its header Tidemark-CRC32 says 00000001"},
		{"a header that is none", File{}, header("1"), "8 hexadecimal digits"},
	} {
		c := client(server{"GET /f": {{200, test.header, zip(two)}}})
		test.file.URL = "http://example.org/f"
		body, err := c.Fetch(t.Context(), test.file)
		if err == nil {
			_, err = body.Lines(func([]byte) error { return nil })
		}
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
	}
}

func TestChecksum(t *testing.T) {
	told := map[string]string{"Tidemark-CRC32": "0a1b2c3d"}
	for _, test := range []struct {
		name    string
		answers []answer
		want    string // error, "" for none
	}{
		{"told", []answer{{200, told, ""}}, ""},
		{"busy, then told", []answer{{503, nil, ""}, {200, told, ""}}, ""},
		{"not told", []answer{{200, nil, ""}}, ErrNoChecksum.Error()},
		{"nonsense", []answer{{200, map[string]string{"Tidemark-CRC32": "canary"}, ""}}, "8 hexadecimal digits"},
		{"gone", []answer{{404, nil, ""}}, "404"},
	} {
		synctest.Test(t, func(t *testing.T) {
			got, err := client(server{"HEAD /f": test.answers}).Checksum(t.Context(), File{URL: "http://example.org/f"})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error %v, want %q", test.name, err, test.want)
			}
			if err == nil && got != 0x0a1b2c3d {
				t.Errorf("%s: got %08x", test.name, got)
			}
		})
	}
}
