//go:build chain

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// versionsChain is a chain from tables of versions that have no numbers, in topics of three
// partitions, which are keyed by the versions' rows: what one resource was is read in any
// order. Version rows are written again, while Connect and the servers are killed and
// snapshots are taken in the midst.
type versionsChain struct {
	*chain
}

// practitioners and conditions are how many resources of each table random changes meet.
const practitioners, conditions = 60, 60

func TestVersionsChain(t *testing.T) {
	c := &versionsChain{chain: newChain(t, "newest_versions")}
	c.beat = c.beatOfEach
	for _, name := range []string{"versions", "versions_and_now"} {
		c.newLine(name, "testdata/chain/versions.yaml")
	}
	c.load()
	calm := c.meanwhile(true)
	c.putAll()
	c.through(calm, c.kills, c.snapshots, c.lost, c.lostBehind)
}

func (c *versionsChain) load() {
	c.t.Helper()
	c.sql(`
		drop schema public cascade;
		create schema public;
		\i ` + chainDir + `/tables.sql
		\i testdata/chain/truth.sql
		\i testdata/chain/versions.sql`)
	if _, err := c.run(versionChanges(rand.New(rand.NewPCG(rand.Uint64(), 1)), 200, true)); err != nil {
		c.t.Fatal(err)
	}
}

// putAll configures the connectors as one that writes JSON is, but for the tables, the
// partitions and what tells of transactions.
func (c *versionsChain) putAll() {
	c.t.Helper()
	for _, l := range c.lines {
		config := map[string]string{}
		if err := json.Unmarshal(c.file(chainDir+"/connectors/json.json", ""), &config); err != nil {
			c.t.Fatal(err)
		}
		delete(config, "provide.transaction.metadata")
		tables := "public.debezium_signal,public.versions,public.Practitioner_History"
		if l.connector == "versions_and_now" {
			tables += ",public.Practitioner"
		}
		maps.Copy(config, map[string]string{
			"topic.prefix": l.prefix, "slot.name": "chain_" + l.prefix, "publication.name": "chain_" + l.prefix,
			"table.include.list": tables, "topic.creation.default.partitions": "3", "incremental.snapshot.chunk.size": "64",
		})
		text, err := json.Marshal(config)
		if err != nil {
			c.t.Fatal(err)
		}
		c.put(l.connector, text)
	}
}

// beatOfEach writes so many that each of three partitions has one.
func (c *versionsChain) beatOfEach() map[string]string {
	c.t.Helper()
	n := fmt.Sprint(time.Now().UnixMicro())
	c.sql(fmt.Sprintf(`select practitioner_put('beat' || n, '%s'), version_put('beat' || n, '%[1]s') from generate_series(1, 30) n;`, n))
	return c.beats(n, 60)
}

// versionChanges is a script of random transactions about one resource each. Where no log
// tells it, what the newest version is must not be edited: nothing could tell it.
func versionChanges(rng *rand.Rand, transactions int, logged bool) string {
	var script strings.Builder
	fmt.Fprintln(&script, "\\set ON_ERROR_STOP off")
	for range transactions {
		fmt.Fprintln(&script, "begin;")
		table, id := "practitioner", rng.IntN(practitioners)
		if rng.IntN(2) == 0 {
			table, id = "version", rng.IntN(conditions)
		}
		for range 1 + rng.IntN(3) {
			mark := fmt.Sprintf("v%x", rng.Uint64())
			switch k := rng.IntN(20); {
			case k < 9:
				fmt.Fprintf(&script, "select %s_put('%d', '%s');\n", table, id, mark)
			case k < 11:
				fmt.Fprintf(&script, "select %s_delete('%d');\n", table, id)
			default:
				back, other := rng.IntN(6), k < 16
				if k < 13 {
					back = 0
				}
				if back == 0 && other && !logged {
					back = 2
				}
				more := ""
				if table == "practitioner" {
					more = fmt.Sprintf(", %v", rng.IntN(2) == 0)
				}
				fmt.Fprintf(&script, "select %s_edit('%d', %d, %v%s);\n", table, id, back, other, more)
			}
		}
		fmt.Fprintln(&script, []string{"commit;", "commit;", "commit;", "commit;", "rollback;"}[rng.IntN(5)])
	}
	return script.String()
}

// meanwhile writes random transactions until it is told to stop.
func (c *versionsChain) meanwhile(logged bool) (stop func()) {
	return c.writing(2, func(rng *rand.Rand) string { return versionChanges(rng, 8, logged) })
}

// restart kills the servers, as the power does.
func (c *versionsChain) restart() {
	for _, l := range c.lines {
		l.kill()
		l.launch()
	}
	for _, l := range c.lines {
		l.ready()
	}
}

func (c *versionsChain) kills() {
	calm := c.meanwhile(true)
	pause(c.t.Context(), 2*time.Second)
	c.do("kill", "connect")
	c.restart()
	c.do("start", "connect")
	c.putAll()
	pause(c.t.Context(), 2*time.Second)
	calm()
	c.compare("versions, and kills")
}

// snapshots are incremental ones, the second through kills.
func (c *versionsChain) snapshots() {
	calm := c.meanwhile(true)
	for range 2 {
		c.sql(`insert into debezium_signal values (gen_random_uuid()::text, 'execute-snapshot',
			'{"type": "incremental", "data-collections": ["public.Practitioner_History", "public.versions", "public.Practitioner"]}');`)
		pause(c.t.Context(), 1500*time.Millisecond)
	}
	c.do("kill", "connect")
	c.restart()
	c.do("start", "connect")
	c.putAll()
	calm()
	c.settle()
	c.compare("incremental snapshots")
}

// lost has the connectors begin anew while writing goes on.
func (c *versionsChain) lost() {
	var calm func()
	c.lose(func() {
		calm = c.meanwhile(false)
		pause(c.t.Context(), time.Second)
	})
	calm()
	c.settle()
	c.compare("a log that was lost")
}

// lostBehind has the servers read what the log told, and the snapshot behind it, at once.
func (c *versionsChain) lostBehind() {
	for _, l := range c.lines {
		l.kill()
	}
	if _, err := c.run(versionChanges(rand.New(rand.NewPCG(rand.Uint64(), 1)), 200, true)); err != nil {
		c.t.Fatal(err)
	}
	c.settle()
	c.lose(func() {
		c.sql(`
			select practitioner_put(n::text, 'lost'), version_put(n::text, 'lost') from generate_series(0, 19) n;
			select practitioner_delete(n::text), version_delete(n::text) from generate_series(20, 29) n;
			select practitioner_edit(n::text, 2, true, true), version_edit(n::text, 2, true) from generate_series(0, 29) n;`)
	})
	c.settle()
	for _, l := range c.lines {
		l.launch()
	}
	for _, l := range c.lines {
		l.ready()
	}
	c.compare("a log that was lost, behind one that was not read")
}

// settle waits until the connectors have nothing more to tell: what a snapshot tells is in no
// order with what is written behind it.
func (c *versionsChain) settle() {
	c.t.Helper()
	had, since := int64(-1), time.Now()
	c.until("the connectors have told all", func() bool {
		var has int64
		for _, l := range c.lines {
			for _, table := range []string{"versions", "Practitioner_History"} {
				has += recordsIn(c.t, os.Getenv("KAFKA_BROKERS"), l.prefix+".public."+table)
			}
		}
		if has != had {
			had, since = has, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}
