//go:build chain

package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// From tables of PostgreSQL through Debezium, Connect and Kafka to exports, in
// each of the ways that Debezium writes: what the tables hold is what exports
// hold, what was deleted is what they say was, and each change comes once.
func TestChain(t *testing.T) {
	c := newChain(t, "truth")
	c.beat = c.beatOfAll
	for _, name := range []string{"json", "schema", "flat", "avro", "avro-flat"} {
		l := c.newLine(name, chainDir+"/tidemark.yaml")
		makeTopic(t, os.Getenv("KAFKA_BROKERS"), l.prefix+".load", 1, map[string]string{"cleanup.policy": "compact"})
	}
	c.load()
	calm := c.meanwhile() // some of it is under way when the connectors take their snapshots
	c.putAll()
	c.through(calm, c.changes, c.overlap, c.random, c.toast, c.kills, c.again, c.registry)
	c.connect(http.MethodDelete, "/connectors/outbox", nil)
}

// load makes the tables, with what a connector finds when it comes.
func (c *chain) load() {
	c.t.Helper()
	c.sql(`
		\i ` + chainDir + `/tables.sql
		\i testdata/chain/truth.sql
		select hapi_put('Patient', 'hapi-' || n, jsonb_build_object('resourceType', 'Patient', 'active', true, 'multipleBirthInteger', n),
			case when n % 3 = 0 then array['0|urn:ward|' || n % 7 || '|Ward', '1||http://example.org/patient', '2|urn:labels|R|'] else '{}' end)
		from generate_series(1, 100) n;
		select hapi_put('Observation', 'hapi-' || n, jsonb_build_object('resourceType', 'Observation', 'status', 'final',
			'subject', jsonb_build_object('reference', 'Patient/hapi-' || n), 'valueQuantity', jsonb_build_object('value', n + 0.10)))
		from generate_series(1, 100) n;
		select hapi_put('Patient', 'hapi-' || n, jsonb_build_object('resourceType', 'Patient', 'active', false)) from generate_series(10, 20) n;
		select hapi_delete('Patient', 'hapi-' || n) from generate_series(18, 24) n;
		select hapi_put('Patient', 'hapi-24', '{"resourceType": "Patient", "active": true}');
		select medplum_put('Patient', md5('p' || n)::uuid, jsonb_build_object('gender', 'female', 'multipleBirthInteger', n)) from generate_series(1, 100) n;
		select medplum_put('Observation', md5('o' || n)::uuid, jsonb_build_object('status', 'final')) from generate_series(1, 50) n;
		select medplum_delete('Patient', md5('p' || n)::uuid) from generate_series(1, 5) n;
		select document_put('Condition', 'doc-' || n, jsonb_build_object('subject', jsonb_build_object('reference', 'Patient/hapi-' || n))) from generate_series(1, 100) n;
		select document_delete('Condition', 'doc-7');
		select outbox_put('Device', 'box-' || n, '{"status": "active"}') from generate_series(1, 20) n;
		select outbox_delete('Device', 'box-3');`)
}

// putAll gives all connectors their configuration.
func (c *chain) putAll() {
	c.t.Helper()
	for _, l := range c.lines {
		c.put(l.connector, c.file(chainDir+"/connectors/"+l.connector+".json", ""))
	}
	c.put("outbox", c.file(chainDir+"/connectors/outbox.json", ""))
}

func (c *chain) beatOfAll() map[string]string {
	c.t.Helper()
	n := fmt.Sprint(time.Now().UnixMicro())
	c.sql(strings.ReplaceAll(`
		select hapi_put('Basic', 'beat', '{"resourceType": "Basic", "code": {"text": "%"}}', '{0|urn:beat|%|}');
		select medplum_put('Patient', md5('beat')::uuid, '{"language": "%"}');
		select medplum_put('Observation', md5('beat')::uuid, '{"status": "final", "language": "%"}');
		select document_put('Basic', 'beat-of-documents', '{"code": {"text": "%"}}');
		select outbox_put('Device', 'beat', '{"status": "active", "lotNumber": "%"}');`, "%", n))
	return c.beats(n, 5)
}

// beats are the resources that say n somewhere.
func (c *chain) beats(n string, want int) map[string]string {
	c.t.Helper()
	beats := c.read().live()
	maps.DeleteFunc(beats, func(_, text string) bool { return !strings.Contains(text, `"`+n+`"`) })
	if len(beats) != want {
		c.t.Fatalf("%d of %d beats", len(beats), want)
	}
	return beats
}

// compare waits until everything that was written has come through, and compares
// what has come with what the tables hold.
func (c *chain) compare(what string) {
	c.t.Helper()
	c.come(what)
	read := time.Now() // all of it lies before
	truth := c.read()
	want := truth.since(c.truth)
	for _, l := range c.lines {
		c.await(l, what+": a window ends behind it", func() (string, error) { return l.merger.behind(read) })
		l.is(what+": the increment", l.calm, want)
		l.calm = l.is(what+": a full export", time.Time{}, increment{changed: truth.live()})
		l.merger.mu.Lock()
		if diff := cmp.Diff(truth.live(), l.merger.has); diff != "" {
			c.t.Errorf("%s: %s: what was merged of increments (-tables +merged):\n%.4000s", l.connector, what, diff)
		}
		l.merger.mu.Unlock()
	}
	c.truth = truth
	if c.t.Failed() {
		c.t.FailNow()
	}
	c.t.Logf("%s: %d resources, %d changed, %d gone", what, len(truth.live()), len(want.changed), len(want.gone))
}

// come waits until everything that was written has come through.
func (c *chain) come(what string) {
	c.t.Helper()
	beats := c.beat()
	for _, l := range c.lines {
		c.await(l, what+": what was written last has come", func() (string, error) { return l.merger.lacks(beats) })
	}
}

// await waits until a line lacks nothing any more.
func (c *chain) await(l *line, what string, lacks func() (string, error)) {
	c.t.Helper()
	var last string
	defer func() {
		if last != "" {
			c.t.Logf("%s: %s: %.2000s", l.connector, what, last)
		}
	}()
	c.until(l.connector+": "+what, func() (is bool) {
		var err error
		if last, err = lacks(); err != nil {
			c.t.Fatalf("%s: %s: %v", l.connector, what, err)
		}
		return last == ""
	})
}

// is compares an export with what must be in it.
func (l *line) is(what string, since time.Time, want increment) time.Time {
	l.t.Helper()
	w, err := take(l.t.Context(), l.client, since)
	if err != nil {
		l.t.Fatalf("%s: %s: %v", l.connector, what, err)
	}
	if diff := cmp.Diff(want.changed, w.changed); diff != "" {
		l.t.Errorf("%s: %s (-tables +export):\n%.4000s", l.connector, what, diff)
	}
	maps.DeleteFunc(w.gone, func(key string, _ bool) bool { return want.dead != nil && want.dead(key) })
	if diff := cmp.Diff(want.gone, w.gone, cmpopts.EquateEmpty()); diff != "" {
		l.t.Errorf("%s: %s: deletions (-tables +export):\n%.4000s", l.connector, what, diff)
	}
	return w.time
}

func (c *chain) changes() {
	c.sql(`
		select hapi_put('Patient', 'hapi-' || n, jsonb_build_object('resourceType', 'Patient', 'active', false, 'multipleBirthInteger', n)) from generate_series(30, 40) n;
		select hapi_put('Patient', 'hapi-' || n, '{"resourceType": "Patient", "gender": "other"}', '{2|urn:labels|V|}') from generate_series(101, 110) n;
		select hapi_delete('Patient', 'hapi-' || n) from generate_series(38, 45) n;
		select hapi_put('Patient', 'hapi-44', '{"resourceType": "Patient", "gender": "unknown"}');
		select hapi_put('Patient', 'hapi-18', '{"resourceType": "Patient", "gender": "male"}');
		select hapi_delete('Patient', 'hapi-18');
		select hapi_meta('Patient', 'hapi-' || n, '0|urn:new|x|New', true) from generate_series(50, 60) n;
		select hapi_meta('Patient', 'hapi-60', '2|urn:labels|R|', false);
		select hapi_expunge('Patient', 'hapi-70');
		select hapi_expunge('Observation', 'hapi-70');
		select medplum_put('Patient', md5('p' || n)::uuid, '{"gender": "male"}') from generate_series(4, 12) n;
		select medplum_delete('Patient', md5('p' || n)::uuid) from generate_series(10, 15) n;
		select medplum_delete('Observation', md5('o' || n)::uuid) from generate_series(10, 15) n;
		select medplum_put('Observation', md5('o15')::uuid, '{"status": "amended"}');
		select medplum_put('Patient', md5('p70')::uuid, '{"language": "one"}', at), medplum_delete('Patient', md5('p70')::uuid, at),
			medplum_put('Patient', md5('p70')::uuid, '{"language": "two"}', at),
			medplum_put('Patient', md5('p71')::uuid, '{"language": "one"}', at), medplum_put('Patient', md5('p71')::uuid, '{"language": "two"}', at),
			medplum_put('Patient', md5('p72')::uuid, '{"language": "one"}', at), medplum_delete('Patient', md5('p72')::uuid, at)
		from date_trunc('milliseconds', clock_timestamp()) at;
		select medplum_put('Observation', md5('o40')::uuid, '{"status": "final", "language": "one"}', at), medplum_put('Observation', md5('o40')::uuid, '{"status": "final", "language": "two"}', before),
			medplum_put('Observation', md5('o41')::uuid, '{"status": "final", "language": "one"}', at), medplum_delete('Observation', md5('o41')::uuid, before),
			medplum_put('Observation', md5('o42')::uuid, '{"status": "final", "language": "one"}', at), medplum_delete('Observation', md5('o42')::uuid, at),
			medplum_put('Observation', md5('o42')::uuid, '{"status": "final", "language": "two"}', before)
		from date_trunc('milliseconds', clock_timestamp()) at, lateral (select at - interval '10 s' before) b; -- whose transaction began before another
		update "Patient_History" set content = content where id in (md5('p8')::uuid, md5('p10')::uuid, md5('p70')::uuid); -- which says nothing
		select medplum_expunge('Patient', md5('p20')::uuid);
		select medplum_expunge('Observation', md5('o20')::uuid);
		select document_put('Condition', 'doc-' || n, jsonb_build_object('note', jsonb_build_array(jsonb_build_object('text', 'é "quoted" \ ' || n)))) from generate_series(10, 20) n;
		select document_delete('Condition', 'doc-' || n) from generate_series(19, 22) n;
		select document_put('Condition', 'doc-7', '{"recordedDate": "2026"}');
		delete from fhir_documents where resource_id in ('doc-30', 'doc-31');
		select outbox_put('Device', 'box-' || n, '{"status": "inactive"}') from generate_series(3, 6) n;
		select outbox_delete('Device', 'box-' || n) from generate_series(6, 7) n;`)
	c.compare("changes of all kinds")
}

// overlap has transactions end in another order than they began, one of them not
// at all, and what one writes wait for another.
func (c *chain) overlap() {
	long, short, lost := c.session(), c.session(), c.session()
	long.do(`begin; select hapi_put('Patient', 'hapi-' || n, '{"resourceType": "Patient", "language": "long"}', '{0|urn:long|l|}') from generate_series(60, 64) n;
		select document_put('Condition', 'doc-' || n, '{"language": "long"}') from generate_series(60, 64) n;`)
	lost.do(`begin; select hapi_delete('Patient', 'hapi-' || n) from generate_series(80, 90) n; select document_delete('Condition', 'doc-80');
		select medplum_put('Patient', md5('never')::uuid, '{}'); select hapi_put('Patient', 'never', '{"resourceType": "Patient"}', '{0|urn:never|n|}');`)
	short.do(`select hapi_put('Patient', 'hapi-' || n, '{"resourceType": "Patient", "language": "short"}', '{0|urn:short|s|}') from generate_series(65, 69) n;
		select medplum_put('Patient', md5('p' || n)::uuid, '{"language": "short"}') from generate_series(60, 64) n;`)
	long.do(`select hapi_delete('Patient', 'hapi-64'); select hapi_put('Patient', 'hapi-65', '{"resourceType": "Patient", "language": "late"}'); commit;`)
	lost.do(`rollback;`)
	short.do(`select hapi_put('Patient', 'hapi-64', '{"resourceType": "Patient", "language": "again"}');`)
	for _, s := range []*session{long, short, lost} {
		s.close()
	}
	c.compare("transactions that overlap")
}

// toast has large bodies, which PostgreSQL keeps beside the row, and updates that
// leave them as they were.
func (c *chain) toast() {
	c.sql(`
		create function large(n int) returns jsonb language sql as $$
			select jsonb_build_object('text', jsonb_build_object('div', (select string_agg(md5(i || '/' || n), '') from generate_series(1, 400) i)));
		$$;
		select hapi_put('Patient', 'hapi-' || n, '{"resourceType": "Patient"}' || large(n)) from generate_series(1, 3) n;
		select hapi_put('Patient', 'large-' || n, '{"resourceType": "Patient"}' || large(n), '{0|urn:large|l|}') from generate_series(1, 3) n;
		select medplum_put(typ, md5('large')::uuid, large(1)) from unnest('{Patient,Observation}'::text[]) typ;
		select document_put('Condition', 'large-' || n, large(n)) from generate_series(1, 3) n;`)
	c.compare("large bodies")
	c.sql(`
		update fhir_documents set note = 'looked at' where resource_id like 'large-%';
		update "Patient" set birthdate = '2000-01-01' where id = md5('large')::uuid;
		update "Observation" set compartments = '{}' where id = md5('large')::uuid;
		select hapi_meta('Patient', 'large-1', '2|urn:labels|V|', true);
		select hapi_meta('Patient', 'large-2', '0|urn:large|l|', false);
		update hfj_res_ver set request_id = 'again' where res_id in (select res_id from hfj_resource where fhir_id = 'large-3');
		select document_delete('Condition', 'large-2');`)
	c.compare("large bodies that rows leave out")
}

// kills end Connect and the servers as the power does, while transactions go on.
func (c *chain) kills() {
	writing, stop := context.WithCancel(c.t.Context())
	var writer sync.WaitGroup
	var failed error
	written := make(chan int, 1000)
	writer.Go(func() {
		for n := 0; writing.Err() == nil && failed == nil; n++ {
			_, failed = c.run(strings.ReplaceAll(`
				begin;
				select hapi_put('Patient', 'many-' || i, '{"resourceType": "Patient", "multipleBirthInteger": $n}', '{0|urn:many|$n|}') from generate_series(1, 15) i;
				select hapi_put('Patient', 'stream-' || $n % 40, '{"resourceType": "Patient", "multipleBirthInteger": $n}', '{0|urn:stream|$n|}');
				select medplum_put('Patient', md5('stream' || $n % 40)::uuid, '{"multipleBirthInteger": $n}');
				select document_put('Condition', 'stream-' || $n % 40, '{"language": "s$n"}');
				select outbox_put('Device', 'stream-' || $n % 40, '{"lotNumber": "$n"}');
				select hapi_delete('Patient', 'stream-' || $n % 40) where $n % 7 = 3;
				select document_delete('Condition', 'stream-' || $n % 40) where $n % 7 = 4;
				select medplum_delete('Patient', md5('stream' || $n % 40)::uuid) where $n % 7 = 5;
				commit;`, "$n", fmt.Sprint(n)))
			select {
			case written <- n:
			default:
			}
		}
	})
	more := func() {
		for range 10 {
			select {
			case <-written:
			case <-time.After(long):
				c.t.Fatal("nothing is written any more")
			}
		}
	}
	more()
	c.do("kill", "connect")
	more()
	for _, l := range c.lines {
		l.kill()
		l.launch()
	}
	c.do("start", "connect")
	c.putAll()
	more()
	stop()
	writer.Wait()
	if failed != nil {
		c.t.Fatal(failed)
	}
	for _, l := range c.lines {
		l.ready()
	}
	c.compare("kills")
}
