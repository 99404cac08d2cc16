package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/store/fhir"
)

// groups measures exports of Groups of a few and of many of the Patients, once
// all rows have settled, as those that are older than a day have.
func (s *scale) groups() {
	s.t.Helper()
	s.stop()
	s.settings = append(s.settings, "compaction.settle_after=1s")
	s.launch()
	time.Sleep(2 * time.Second)
	s.clean()
	var patients []int
	for i := range s.size {
		if strings.HasPrefix(s.corpus[i%len(s.corpus)].key, "Patient/") && !s.removed[i] {
			patients = append(patients, i)
		}
	}
	if len(patients) == 0 {
		return // the corpus ends with them
	}
	s.chosen.head("members", "resources", "MB as gzip", "planned after", "downloaded after", "read/sent")
	for _, share := range []struct {
		name string
		n    int
	}{{"1 of", 1}, {"3 of", 3}, {"1 % of", len(patients) / 100}, {"10 % of", len(patients) / 10}, {"half of", len(patients) / 2}} {
		members := make([]int, max(1, share.n))
		for k := range members {
			members[k] = patients[k*len(patients)/len(members)]
		}
		ratio := s.group(share.name+" "+count(len(patients)), members)
		if share.n == 3 && s.n > small && ratio > 50 {
			s.t.Errorf("an export of 3 Patients read %.0f times what it sent, want at most 50", ratio)
		}
	}
}

// group writes a Group of these Patients, and measures its export.
func (s *scale) group(name string, members []int) (ratio float64) {
	s.t.Helper()
	id := fmt.Sprintf("scale-%d", len(members))
	var body strings.Builder
	fmt.Fprintf(&body, `{"resourceType":"Group","id":%q,"type":"person","actual":true,"member":[`, id)
	want := map[string]bool{}
	for k, i := range members {
		key := s.resource(i).key
		want[strings.TrimPrefix(key, "Patient/")] = true
		if k > 0 {
			body.WriteByte(',')
		}
		fmt.Fprintf(&body, `{"entity":{"reference":%q}}`, key)
	}
	body.WriteString("]}")
	producer, err := kgo.NewClient(kgo.SeedBrokers(s.broker), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(largestGroup))
	if err != nil {
		s.t.Fatal(err)
	}
	defer producer.Close()
	record := &kgo.Record{Topic: s.topic, Key: []byte("Group/" + id), Value: []byte(body.String()), Timestamp: time.Now()}
	if err := producer.ProduceSync(s.t.Context(), record).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
	s.committed(2) // and how its membership has changed
	path := s.p.base + "/Group/" + id + "/$export"
	s.until("the Group can be exported", func() bool {
		_, job, err := kickOffAt(path, nil)
		if err == nil {
			endJob(s.t, job)
		}
		return err == nil
	})
	s.clean() // what is read is counted of the whole process, and the Group has to settle
	before, began := s.bytesRead(), time.Now()
	m, job, err := kickOffAt(path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	planned := time.Since(began)
	v := s.download(m)
	took := time.Since(began)
	ratio = float64(s.bytesRead()-before) / float64(max(v.sent, 1))
	endJob(s.t, job)
	s.chosen.row(name, count(int(v.count)), fmt.Sprintf("%.1f", float64(v.sent)/1e6), short(planned), short(took), fmt.Sprintf("%.1f", ratio))
	if s.n <= small {
		s.verifyGroup(m, want)
	}
	return ratio
}

// verifyGroup counts, by reading every resource, what lies in the members'
// compartments. Of Provenance there is more: what is about any of that.
func (s *scale) verifyGroup(m *bulkclient.Manifest, members map[string]bool) {
	s.t.Helper()
	var scanner fhir.Scanner
	want := map[string]int64{}
	for i := range s.size {
		if s.removed[i] {
			continue
		}
		r, err := scanner.Scan(s.resource(i).body)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, p := range r.Patients {
			if name := r.Key.Type.String(); members[p] && !fhir.Referred(r.Key.Type) && name != "Provenance" {
				want[name]++
				break
			}
		}
	}
	got := map[string]int64{}
	for _, f := range m.Output {
		if t, _ := fhir.ParseType(f.Type); !fhir.Referred(t) && f.Type != "Group" && f.Type != "Provenance" {
			got[f.Type] += manifestCount(s.t, []bulkclient.File{f})
		}
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if string(a) != string(b) {
		s.t.Errorf("an export of a Group holds %s, want %s", b, a)
	}
	if status, _, err := ask(http.MethodGet, s.p.base+"/Group/nobody/$export", http.Header{"Accept": {"*/*"}, "Prefer": {"respond-async"}}); err != nil || status != http.StatusNotFound {
		s.t.Errorf("an unknown Group: %d, %v", status, err)
	}
}
