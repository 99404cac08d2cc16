//go:build chain

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// random has several sessions write at once, in transactions of some changes each, of
// which some are taken back, whole or to a savepoint, and some fail, for what they change
// is not there.
func (c *chain) random() {
	seed := rand.Uint64()
	c.t.Logf("random transactions of seed %d", seed)
	var writers sync.WaitGroup
	scripts := make([]string, 4)
	faults := make([]error, len(scripts))
	for i := range scripts {
		scripts[i] = history(rand.New(rand.NewPCG(seed, uint64(i))), 60)
		writers.Go(func() { _, faults[i] = c.run(scripts[i]) })
	}
	writers.Wait()
	if err := errors.Join(faults...); err != nil {
		c.t.Fatal(err)
	}
	c.compare("random transactions")
}

// meanwhile writes random transactions until it is told to stop.
func (c *chain) meanwhile() (stop func()) {
	return c.writing(3, func(rng *rand.Rand) string { return history(rng, 4) })
}

// history is a script of random transactions. Those of several sessions meet at the same
// resources, in one order everywhere, so that they wait for each other and never for good.
func history(rng *rand.Rand, transactions int) string {
	var script strings.Builder
	fmt.Fprintln(&script, "\\set ON_ERROR_STOP off")
	for n := range transactions {
		var changes []randomCall
		for range 1 + rng.IntN(5) {
			changes = append(changes, randomChange(rng, n))
		}
		slices.SortStableFunc(changes, func(a, b randomCall) int { return cmp.Compare(a.of, b.of) })
		fmt.Fprintln(&script, "begin;")
		for i, change := range changes {
			fmt.Fprintf(&script, "select %s;\n", change.call)
			switch rng.IntN(10) {
			case 0:
				fmt.Fprintf(&script, "savepoint s%d;\n", i)
			case 1:
				fmt.Fprintf(&script, "rollback to s%d;\n", max(0, i-1)) // fails if there is none, and so does all
			}
		}
		fmt.Fprintln(&script, []string{"commit;", "commit;", "commit;", "rollback;"}[rng.IntN(4)])
	}
	return script.String()
}

// randomCall is one that changes a resource.
type randomCall struct{ of, call string }

func randomChange(rng *rand.Rand, n int) randomCall {
	id, mark := rng.IntN(8), fmt.Sprintf("r%d-%d", n, rng.IntN(1000))
	hapi := func(what string) randomCall {
		return randomCall{fmt.Sprint("hapi", id), fmt.Sprintf(`hapi('Patient', 'random-%d', %s)`, id, what)}
	}
	medplum := func(what, more string) randomCall {
		return randomCall{fmt.Sprint("medplum", id), fmt.Sprintf(`medplum_%s('Patient', md5('random%d')::uuid%s)`, what, id, more)}
	}
	document := func(what, more string) randomCall {
		return randomCall{fmt.Sprint("document", id), fmt.Sprintf(`document_%s('Condition', 'random-%d'%s)`, what, id, more)}
	}
	switch rng.IntN(10) {
	case 0, 1:
		return hapi(fmt.Sprintf(`'put', '{"resourceType": "Patient", "language": "%s"}', '{0|urn:random|%d|,2|urn:labels|V|}'`, mark, rng.IntN(3)))
	case 2:
		return hapi(fmt.Sprintf(`'put', '{"resourceType": "Patient", "language": "%s"}', '{}'`, mark))
	case 3:
		return hapi(`'delete'`)
	case 4:
		return hapi(`'expunge'`)
	case 5:
		return hapi([]string{`'label'`, `'unlabel'`}[rng.IntN(2)])
	case 6:
		return medplum("put", fmt.Sprintf(`, '{"language": "%s"}'`, mark))
	case 7:
		return medplum("delete", "")
	case 8:
		return document("put", fmt.Sprintf(`, '{"language": "%s"}'`, mark))
	}
	return document("delete", "")
}

// again has the connectors take their snapshots anew, after a time of which no log is
// left: what did not change comes to nobody, what did comes once, and what was deleted for
// good meanwhile does when reconcile has written it.
func (c *chain) again() {
	c.lose(func() {
		c.sql(`
			select hapi_put('Patient', 'hapi-' || n, '{"resourceType": "Patient", "language": "away"}', '{0|urn:away|a|}') from generate_series(4, 6) n;
			select hapi_put('Patient', 'away-' || n, '{"resourceType": "Patient"}') from generate_series(1, 2) n;
			select hapi_put('Patient', 'labelled-' || n, '{"resourceType": "Patient"}', '{2|urn:labelled|a|,2|urn:labelled|b|,2|urn:labelled|c|}') from generate_series(1, 3000) n;
			select hapi_delete('Patient', 'hapi-' || n) from generate_series(7, 8) n;
			select hapi_expunge('Patient', 'hapi-' || n) from generate_series(12, 14) n;
			select hapi_expunge('Observation', 'hapi-12');
			select medplum_put('Patient', md5('p' || n)::uuid, '{"language": "away"}') from generate_series(30, 32) n;
			select medplum_delete('Patient', md5('p33')::uuid);
			select medplum_expunge('Patient', md5('p' || n)::uuid) from generate_series(34, 35) n;
			select medplum_expunge('Observation', md5('o30')::uuid);
			select document_put('Condition', 'doc-' || n, '{"language": "away"}') from generate_series(50, 52) n;
			select document_delete('Condition', 'doc-53');
			delete from fhir_documents where resource_id in ('doc-54', 'doc-55', 'doc-56');
			select hapi_expunge('Patient', 'hapi-' || n) from generate_series(15, 16) n;
			select hapi_put('Patient', 'hapi-' || n, '{"resourceType": "Patient", "language": "reborn"}') from generate_series(15, 16) n;
			select medplum_expunge('Patient', md5('p36')::uuid);
			select medplum_put('Patient', md5('p36')::uuid, '{"language": "reborn"}');
			select document_put('Condition', 'doc-56', '{"language": "reborn"}');`)
	})
	c.come("snapshots taken again")
	dump := c.dump()
	for _, l := range c.lines {
		l.reconcile(dump, "0 resources and 9 deletions")
	}
	c.compare("snapshots taken again")
	dump = c.dump()
	for _, l := range c.lines {
		l.reconcile(dump, "nothing is wrong")
	}
}

// dump is an export of the source as of now.
func (c *chain) dump() (args []string) {
	c.t.Helper()
	dir, at, files := c.t.TempDir(), time.Now(), map[string]*bytes.Buffer{}
	live := c.read().live()
	for _, key := range slices.Sorted(maps.Keys(live)) {
		kind := typeOf(key)
		if files[kind] == nil {
			files[kind] = &bytes.Buffer{}
		}
		fmt.Fprintln(files[kind], live[key])
	}
	for kind, text := range files {
		if err := os.WriteFile(filepath.Join(dir, kind+".ndjson"), text.Bytes(), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	return []string{"--at", at.UTC().Format(time.RFC3339Nano), dir}
}

// reconcile repairs what a line lacks, beside its server.
func (l *line) reconcile(dump []string, want string) {
	l.t.Helper()
	args := slices.Concat([]string{"reconcile", "--list", "--repair", "--yes"}, l.args[1:], dump)
	got, code := ends(l.t, args...)
	if code != 0 || !strings.Contains(got, want) {
		l.t.Fatalf("%s: reconcile: exit %d, and not %q: %s", l.connector, code, want, got)
	}
}

// registry kills the registry and the servers that need it: what is written with schemas
// that they have seen flows on, what is written with another waits for it and is no dead
// letter.
func (c *chain) registry() {
	lines := slices.DeleteFunc(slices.Clone(c.lines), func(l *line) bool { return !strings.HasPrefix(l.connector, "avro") })
	restart := func() {
		for _, l := range lines {
			l.kill()
			l.launch()
		}
	}
	c.do("kill", "registry")
	restart()
	for _, l := range lines {
		l.ready()
	}
	c.sql(`select document_put('Condition', 'doc-' || n, '{"language": "without"}') from generate_series(60, 62) n;`)
	c.compare("without the registry")

	c.do("start", "registry")
	for _, l := range lines {
		l.kill()
	}
	documents := func(l *line) int64 {
		return recordsIn(c.t, os.Getenv("KAFKA_BROKERS"), l.prefix+".public.fhir_documents")
	}
	had := map[*line]int64{}
	for _, l := range lines {
		had[l] = documents(l)
	}
	c.sql(`
		alter table fhir_documents add column edition text;
		select document_put('Condition', 'doc-' || n, '{"language": "edition"}') from generate_series(62, 64) n;`)
	for _, l := range lines {
		c.until(l.connector+" has written", func() bool { return documents(l) >= had[l]+3 })
	}
	c.do("kill", "registry")
	restart()
	for _, l := range lines {
		waits := fmt.Sprintf("tidemark_pipeline_held_ratio{partition=\"0\",topic=\"%s.public.fhir_documents\",why=\"decoding\"} 1", l.prefix)
		c.until(l.connector+" waits for the registry", func() bool {
			answer, err := http.Get(strings.TrimSuffix(l.client.Base, "/fhir") + "/metrics")
			if err != nil {
				return false
			}
			defer answer.Body.Close()
			var page bytes.Buffer
			_, err = page.ReadFrom(answer.Body)
			return err == nil && strings.Contains(page.String(), waits)
		})
	}
	c.do("start", "registry")
	for _, l := range lines {
		l.ready()
	}
	c.compare("the registry is back")
}
