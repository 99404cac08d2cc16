package demo

import (
	"compress/gzip"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.yaml.in/yaml/v4"
)

// The stand-in is a server small enough to be read at one sitting, and able to
// cheat: it shows that the demo accepts one that keeps the promise, and no
// other. It keeps everything in one file, written anew at each commit.
type standIn struct {
	client *kgo.Client
	file   string
	fault  string
	base   string

	mu     sync.Mutex
	state  standInState
	joined bool
	asked  []progress
}

// progress is what the broker had at a time.
type progress struct {
	at   int64
	ends [partitions]int64
}

type standInState struct {
	Rows     map[string][]standInRow
	Offsets  [partitions]int64
	Promised int64
	Jobs     [][2]int64 // since, until
}

type standInRow struct {
	C    int64
	Body []byte // nil: deleted
}

// faultVariable tells the stand-in how to cheat.
const faultVariable = "STANDIN_FAULT"

func runStandIn(config string) error {
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var c struct {
		Store struct{ Path string }
		HTTP  struct {
			Listen    string
			PublicURL string `yaml:"public_url"`
		}
		Kafka struct{ Brokers []string }
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return err
	}
	s := &standIn{file: filepath.Join(c.Store.Path, "state"), fault: os.Getenv(faultVariable), base: c.HTTP.PublicURL}
	if s.fault == "die" {
		return errors.New("I cannot go on")
	}
	if err := s.open(c.Store.Path, c.Kafka.Brokers); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.HTTP.Listen)
	if err != nil {
		return err
	}
	go func() {
		if err := s.intake(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	return http.Serve(listener, s.routes())
}

func (s *standIn) open(dir string, brokers []string) error {
	s.state.Rows = map[string][]standInRow{}
	if f, err := os.Open(s.file); err == nil {
		defer f.Close()
		if err := gob.NewDecoder(f).Decode(&s.state); err != nil {
			return err
		}
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	from := map[int32]kgo.Offset{}
	for p, next := range s.state.Offsets {
		from[int32(p)] = kgo.NewOffset().At(next)
		if s.fault == "lose" && next > 0 {
			from[int32(p)] = kgo.NewOffset().AtEnd() // forgets what was not committed
		}
	}
	var err error
	s.client, err = kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	return err
}

// intake commits what it reads, ten times a second.
func (s *standIn) intake(ctx context.Context) error {
	for {
		p := progress{at: time.Now().UnixMilli()}
		var err error
		if p.ends, err = s.ends(ctx); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		fetches := s.client.PollFetches(short)
		cancel()
		if err := s.commit(fetches, p); err != nil {
			return err
		}
	}
}

func (s *standIn) ends(ctx context.Context) (ends [partitions]int64, err error) {
	of := kmsg.NewListOffsetsRequestTopic()
	of.Topic = topic
	for p := range int32(partitions) {
		one := kmsg.NewListOffsetsRequestTopicPartition()
		one.Partition, one.Timestamp = p, -1
		of.Partitions = append(of.Partitions, one)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.Topics = append(req.Topics, of)
	answer, err := req.RequestWith(ctx, s.client)
	if err != nil {
		return ends, err
	}
	for _, p := range answer.Topics[0].Partitions {
		ends[p.Partition] = p.Offset
	}
	return ends, nil
}

func (s *standIn) commit(fetches kgo.Fetches, p progress) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fetches.EachRecord(func(r *kgo.Record) {
		s.apply(r)
		s.state.Offsets[r.Partition] = r.Offset + 1
	})
	s.asked = append(s.asked, p)
	for len(s.asked) > 0 && s.reached(s.asked[0].ends) {
		s.joined = true
		s.state.Promised = max(s.state.Promised, s.asked[0].at-allowance.Milliseconds())
		s.asked = s.asked[1:]
	}
	return s.save()
}

func (s *standIn) reached(ends [partitions]int64) bool {
	for p, end := range ends {
		if s.state.Offsets[p] < end {
			return false
		}
	}
	return true
}

func (s *standIn) save() error {
	f, err := os.Create(s.file + ".new")
	if err != nil {
		return err
	}
	if err := gob.NewEncoder(f).Encode(&s.state); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(s.file+".new", s.file)
}

var (
	metaOf    = regexp.MustCompile(`"versionId":"(\d+)","lastUpdated":"([^"]+)"`)
	wholeMeta = regexp.MustCompile(`,?"meta":\{[^}]*\}`)
)

// apply is the order of changes as far as the hospital tries it out.
func (s *standIn) apply(r *kgo.Record) {
	key := string(r.Key)
	rows := s.state.Rows[key]
	var newest standInRow
	if len(rows) > 0 {
		newest = rows[len(rows)-1]
	}
	t := r.Timestamp.UnixMilli()
	switch {
	case r.Value == nil && newest.Body == nil:
		return
	case r.Value == nil:
		if slices.ContainsFunc(rows, func(row standInRow) bool { return row.Body == nil && row.C == t }) {
			return
		}
	case !newer(rows, r.Value):
		return
	}
	body := r.Value
	if m := metaOf.FindSubmatch(body); m != nil {
		at, _ := time.Parse(time.RFC3339, string(m[2]))
		t = at.UnixMilli()
	}
	c := max(t, newest.C)
	if s.state.Promised > 0 {
		c = max(c, s.state.Promised+1)
	}
	if body != nil && metaOf.Find(body) == nil {
		body = withMeta(body, len(rows)+1, c)
	}
	s.state.Rows[key] = append(rows, standInRow{c, body})
}

// newer compares versions; what has none is newer unless it is the same.
func newer(rows []standInRow, body []byte) bool {
	m := metaOf.FindSubmatch(body)
	for _, row := range rows {
		if m == nil && row.Body != nil && string(withoutMeta(row.Body)) == string(withoutMeta(body)) {
			return false
		}
		if old := metaOf.FindSubmatch(row.Body); m != nil && old != nil {
			a, _ := strconv.Atoi(string(m[1]))
			b, _ := strconv.Atoi(string(old[1]))
			if a <= b {
				return false
			}
		}
	}
	return true
}

func withMeta(body []byte, version int, c int64) []byte {
	two := fmt.Sprintf(`"versionId":"%d","lastUpdated":"%s"`, version, instant(time.UnixMilli(c)))
	text := string(body)
	if strings.Contains(text, `"meta":{`) {
		return []byte(strings.Replace(text, `"meta":{`, `"meta":{`+two+`,`, 1))
	}
	return []byte(strings.Replace(text, `,"extension"`, `,"meta":{`+two+`},"extension"`, 1))
}

func withoutMeta(body []byte) []byte {
	return wholeMeta.ReplaceAll(body, nil)
}

func (s *standIn) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.joined {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /fhir/$export", s.kickOff)
	mux.HandleFunc("GET /fhir/job/{job}", s.manifest)
	mux.HandleFunc("DELETE /fhir/job/{job}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	mux.HandleFunc("GET /fhir/job/{job}/{type}", s.serve)
	return mux
}

func (s *standIn) kickOff(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := int64(0)
	if value := r.URL.Query().Get("_since"); value != "" {
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		since = at.UnixMilli()
		if s.fault == "double" {
			since -= 3000
		}
	}
	s.state.Jobs = append(s.state.Jobs, [2]int64{since, s.state.Promised})
	w.Header().Set("Content-Location", fmt.Sprintf("%s/job/%d", s.base, len(s.state.Jobs)-1))
	w.WriteHeader(http.StatusAccepted)
}

// find returns the lines of a job by type; those of Bundle are deletions.
func (s *standIn) find(job string) (lines map[string][]string, until int64) {
	n, _ := strconv.Atoi(job)
	since, until := s.state.Jobs[n][0], s.state.Jobs[n][1]
	lines = map[string][]string{}
	for _, key := range slices.Sorted(maps.Keys(s.state.Rows)) {
		var row *standInRow
		for i := range s.state.Rows[key] {
			if s.state.Rows[key][i].C <= until {
				row = &s.state.Rows[key][i]
			}
		}
		kind, _, _ := strings.Cut(key, "/")
		switch {
		case row == nil || row.C <= since:
		case row.Body != nil:
			lines[kind] = append(lines[kind], string(row.Body))
		case since > 0:
			lines["Bundle"] = append(lines["Bundle"], fmt.Sprintf(
				`{"resourceType":"Bundle","type":"transaction","entry":[{"request":{"method":"DELETE","url":"%s"}}]}`, key))
		}
	}
	return lines, until
}

func (s *standIn) manifest(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, until := s.find(r.PathValue("job"))
	m := map[string]any{"transactionTime": instant(time.UnixMilli(until)), "request": s.base, "requiresAccessToken": false, "error": []any{}}
	files := map[string][]any{"output": {}, "deleted": {}}
	for _, kind := range slices.Sorted(maps.Keys(lines)) {
		list := "output"
		if kind == "Bundle" {
			list = "deleted"
		}
		url := fmt.Sprintf("%s/job/%s/%s", s.base, r.PathValue("job"), kind)
		files[list] = append(files[list], map[string]any{"type": kind, "url": url, "count": len(lines[kind])})
	}
	m["output"], m["deleted"] = files["output"], files["deleted"]
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(m)
}

func (s *standIn) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	lines, _ := s.find(r.PathValue("job"))
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/fhir+ndjson")
	w.Header().Set("Content-Encoding", "gzip")
	zip := gzip.NewWriter(w)
	defer zip.Close()
	for _, line := range lines[r.PathValue("type")] {
		fmt.Fprintln(zip, line)
	}
}
