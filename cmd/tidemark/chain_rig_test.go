//go:build chain

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

// A line is one way of data from the tables: a connector, a server that reads
// its topics, and a client that follows the server.
type line struct {
	*rig
	connector string // of deploy/dev/chain/connectors
	prefix    string // of its topics

	// calm is the transactionTime of the newest of the exports that are made when
	// nothing is written; the merger makes its own all the time.
	calm   time.Time
	merger *merger
}

// A chain is a database with several lines from it.
type chain struct {
	t     *testing.T
	lines []*line
	view  string // what the tables say that there is
	truth rows   // at the last comparison

	// beat writes resources behind all that was written, in each partition of each topic: a
	// line that has them has what was written before.
	beat func() map[string]string
}

// long bounds waits: a dozen programs start and stop on what may be a small machine.
const long = 5 * patience

const chainDir = "../../deploy/dev/chain"

// newChain needs the parts that make chain starts.
func newChain(t *testing.T, view string) *chain {
	t.Helper()
	if os.Getenv("KAFKA_BROKERS") == "" {
		t.Fatal("KAFKA_BROKERS is not set: run make chain")
	}
	return &chain{t: t, view: view, truth: rows{}}
}

// newLine adds a line with a server of this configuration.
func (c *chain) newLine(connector, config string) *line {
	c.t.Helper()
	dir, address := c.t.TempDir(), freePort(c.t)
	l := &line{
		rig: &rig{
			t: c.t, client: &bulkclient.Client{Base: "http://" + address + "/fhir", Patience: long}, log: filepath.Join(dir, "log"),
			args: []string{
				"serve", "--set", "store.path=" + filepath.Join(dir, "store"), "--config", filepath.Join(dir, "tidemark.yaml"),
				"--set", "store.min_free=0B", "--set", "store.reserve=1MiB", "--set", "kafka.brokers=" + os.Getenv("KAFKA_BROKERS"),
				"--set", "kafka.group=" + connector, "--set", "http.listen=" + address,
				"--set", "compaction.settle_after=1s", "--set", "compaction.cores=1",
			},
		},
		connector: connector, prefix: strings.ReplaceAll(connector, "-", "_"),
	}
	l.merger = &merger{client: l.client, has: map[string]string{}}
	if err := os.WriteFile(filepath.Join(dir, "tidemark.yaml"), c.file(config, l.prefix), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.t.Failed() && l.server != nil {
			c.t.Logf("the line %s stands at:\n%s", connector, l.standing())
		}
		l.kill()
		if c.t.Failed() {
			c.t.Logf("what the servers of the line %s said, but for requests:\n%s", connector, l.said())
		}
	})
	c.lines = append(c.lines, l)
	return l
}

// standing is where a line's client and its server are.
func (l *line) standing() string {
	l.merger.mu.Lock()
	defer l.merger.mu.Unlock()
	text := fmt.Sprintf("now %v, %d windows up to %v\n", time.Now().UTC(), l.merger.windows, l.merger.since)
	for metric := range strings.Lines(l.get("/metrics")) {
		if strings.HasPrefix(metric, "tidemark_pipeline_") || strings.HasPrefix(metric, "tidemark_store_watermark") {
			text += metric
		}
	}
	return text
}

// file is a file with its variables filled in.
func (c *chain) file(path, prefix string) []byte {
	c.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	return []byte(os.Expand(string(text), func(v string) string {
		switch v {
		case "PREFIX":
			return prefix
		case "CHAIN_PG_PORT":
			return cmp.Or(os.Getenv(v), "15432")
		case "CHAIN_REGISTRY_PORT":
			return cmp.Or(os.Getenv(v), "18081")
		}
		return "$" + v // the end of a pattern
	}))
}

// until waits for a condition.
func (c *chain) until(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(long); !ok(); <-tick.C {
		if time.Now().After(end) {
			c.t.Fatalf("waited %v until %s", long, what)
		}
	}
}

// do has the script do something to the parts of the chain.
func (c *chain) do(args ...string) {
	c.t.Helper()
	if output, err := exec.Command(filepath.Join(chainDir, "chain"), args...).CombinedOutput(); err != nil {
		c.t.Fatalf("chain %s: %v\n%s", strings.Join(args, " "), err, output)
	}
}

// sql runs statements, each in a transaction of its own unless they say
// otherwise, and returns what they print.
func (c *chain) sql(statements string) string {
	c.t.Helper()
	output, err := c.run(statements)
	if err != nil {
		c.t.Fatal(err)
	}
	return output
}

func (c *chain) run(statements string) (string, error) {
	var output, faults bytes.Buffer
	cmd := psql()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(statements), &output, &faults
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("psql: %w\n%s", err, faults.Bytes())
	}
	return output.String(), nil
}

func psql() *exec.Cmd {
	return exec.Command(filepath.Join(chainDir, "chain"), "psql", "-q", "-At", "-F", "\t", "-v", "ON_ERROR_STOP=1")
}

// A session is one that stays open between statements, for transactions that
// overlap.
type session struct {
	c   *chain
	in  io.WriteCloser
	out *bufio.Scanner
	cmd *exec.Cmd
}

func (c *chain) session() *session {
	c.t.Helper()
	s := &session{c: c, cmd: psql()}
	in, err1 := s.cmd.StdinPipe()
	out, err2 := s.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, s.cmd.Start()); err != nil {
		c.t.Fatal(err)
	}
	s.in, s.out = in, bufio.NewScanner(out)
	return s
}

// do returns when the statements are done.
func (s *session) do(statements string) {
	s.c.t.Helper()
	fmt.Fprintf(s.in, "%s\n\\echo done\n", statements)
	for s.out.Scan() {
		if s.out.Text() == "done" {
			return
		}
	}
	s.c.t.Fatalf("a session ended in %.40q", statements)
}

func (s *session) close() {
	s.c.t.Helper()
	if err := errors.Join(s.in.Close(), s.cmd.Wait()); err != nil {
		s.c.t.Fatal(err)
	}
}

// connect asks Connect, and again while it is away or rebalances.
func (c *chain) connect(method, path string, body []byte) string {
	c.t.Helper()
	var said string
	c.until(method+" "+path+" is taken", func() bool {
		req, err := http.NewRequestWithContext(c.t.Context(), method, "http://127.0.0.1:"+cmp.Or(os.Getenv("CHAIN_CONNECT_PORT"), "18083")+path, bytes.NewReader(body))
		if err != nil {
			c.t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode == http.StatusConflict || answer.StatusCode == http.StatusNotFound {
			return false
		}
		if said = string(text); answer.StatusCode >= 400 {
			c.t.Fatalf("%s %s: %d %s", method, path, answer.StatusCode, said)
		}
		return true
	})
	return said
}

// put gives a connector its configuration and waits until it runs.
func (c *chain) put(connector string, config []byte) {
	c.t.Helper()
	c.connect(http.MethodPut, "/connectors/"+connector+"/config", config)
	c.runs(connector)
}

// runs waits until a connector does.
func (c *chain) runs(connector string) {
	c.t.Helper()
	c.until("connector "+connector+" runs", func() bool {
		said := c.connect(http.MethodGet, "/connectors/"+connector+"/status", nil)
		if strings.Contains(said, "FAILED") {
			c.t.Fatalf("connector %s: %s", connector, said)
		}
		return strings.Contains(said, `"id":0,"state":"RUNNING"`)
	})
}

// lose takes from the connectors where they were, and from the database its log of what is
// done now: only a snapshot tells that.
func (c *chain) lose(now func()) {
	c.t.Helper()
	for _, l := range c.lines {
		c.connect(http.MethodPut, "/connectors/"+l.connector+"/stop", nil)
	}
	for _, l := range c.lines {
		c.until(l.connector+" has stopped", func() bool {
			said := c.connect(http.MethodGet, "/connectors/"+l.connector+"/status", nil)
			return strings.Contains(said, `"STOPPED"`) && strings.Contains(said, `"tasks":[]`)
		})
		c.connect(http.MethodDelete, "/connectors/"+l.connector+"/offsets", nil)
		c.sql(fmt.Sprintf("select pg_drop_replication_slot('chain_%s');", l.prefix))
	}
	now()
	for _, l := range c.lines {
		c.connect(http.MethodPut, "/connectors/"+l.connector+"/resume", nil)
		c.runs(l.connector)
	}
}

// through starts the servers and the clients that follow them, ends what is written meanwhile, and
// goes through the phases, with a comparison before them.
func (c *chain) through(calm func(), phases ...func()) {
	c.t.Helper()
	following, stop := context.WithCancel(c.t.Context())
	var mergers sync.WaitGroup
	defer mergers.Wait()
	defer stop()
	for _, l := range c.lines {
		l.launch()
	}
	for _, l := range c.lines {
		l.ready()
		mergers.Go(func() { l.merger.follow(following) })
	}
	calm()
	c.compare("what was there before, and what was written meanwhile")
	for _, phase := range phases {
		begin := time.Now()
		phase()
		c.t.Logf("that took %v", time.Since(begin).Round(100*time.Millisecond))
	}
	stop()
	mergers.Wait()
	c.end()
}

// writing has some sessions write scripts until it is told to stop.
func (c *chain) writing(sessions int, script func(rng *rand.Rand) string) (stop func()) {
	seed := rand.Uint64()
	c.t.Logf("meanwhile random transactions of seed %d", seed)
	writing, end := context.WithCancel(c.t.Context())
	var writers sync.WaitGroup
	faults := make([]error, sessions)
	for i := range faults {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for writing.Err() == nil && faults[i] == nil {
				_, faults[i] = c.run(script(rng))
				pause(writing, 20*time.Millisecond)
			}
		})
	}
	return func() {
		end()
		writers.Wait()
		if err := errors.Join(faults...); err != nil {
			c.t.Fatal(err)
		}
	}
}

// end stops the servers, and has Connect forget the connectors.
func (c *chain) end() {
	c.t.Helper()
	for _, l := range c.lines {
		c.t.Logf("%s: %d windows", l.connector, l.merger.windows)
		if err := l.stop(); err != nil {
			c.t.Errorf("%s: SIGTERM: the server ended with %v", l.connector, err)
		}
		if got, code := ends(c.t, "check", l.store()); code != 0 {
			c.t.Errorf("%s: check: exit %d: %s", l.connector, code, got)
		}
		c.connect(http.MethodDelete, "/connectors/"+l.connector, nil)
	}
}

// rows are resources by Type/id.
type rows map[string]row

// A row is a resource as the tables have it.
type row struct {
	mark     string // differs with each change
	resource string // canonical; "" if it is deleted
}

// read asks the tables what there is.
func (c *chain) read() rows {
	c.t.Helper()
	all := rows{}
	for text := range strings.Lines(c.sql("select key, mark, resource from " + c.view)) {
		part := strings.SplitN(strings.TrimSuffix(text, "\n"), "\t", 3)
		r := row{mark: part[1]}
		if part[2] != "" {
			r.resource = c.canonical([]byte(part[2]))
		}
		if _, twice := all[part[0]]; twice {
			c.t.Fatalf("the tables have %s twice", part[0])
		}
		all[part[0]] = r
	}
	return all
}

// live are the resources that are not deleted.
func (rs rows) live() map[string]string {
	live := map[string]string{}
	for key, r := range rs {
		if r.resource != "" {
			live[key] = r.resource
		}
	}
	return live
}

// An increment is what an export with _since must hold.
type increment struct {
	changed map[string]string
	gone    map[string]bool       // which must be told
	dead    func(key string) bool // which lived in between, if at all: a client that is told deletes nothing
}

// since is what is otherwise than it was before.
func (rs rows) since(before rows) increment {
	i := increment{changed: map[string]string{}, gone: map[string]bool{}}
	i.dead = func(key string) bool { return rs[key].resource == "" && before[key].resource == "" }
	for key, r := range rs {
		switch was := before[key]; {
		case r == was:
		case r.resource != "":
			i.changed[key] = r.resource
		case was.resource != "":
			i.gone[key] = true
		}
	}
	for key, was := range before {
		if _, is := rs[key]; !is && was.resource != "" {
			i.gone[key] = true
		}
	}
	return i
}

func (c *chain) canonical(body []byte) string {
	c.t.Helper()
	text, err := canonical(body)
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

// canonical is JSON with its members in order and its numbers as they are written.
func canonical(body []byte) (string, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	text, err := json.Marshal(v)
	return string(text), err
}

// A window is what an export says.
type window struct {
	time    time.Time
	changed map[string]string
	gone    map[string]bool
}

// take makes an export of what has changed since; of everything, if that is zero.
func take(ctx context.Context, client *bulkclient.Client, since time.Time) (*window, error) {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	params := url.Values{}
	if !since.IsZero() {
		params.Set("_since", instant(since))
	}
	job, err := client.Start(ctx, "$export", params)
	if err != nil {
		return nil, err
	}
	m, err := job.Wait(ctx)
	if err != nil {
		return nil, err
	}
	w := &window{time: m.TransactionTime, changed: map[string]string{}, gone: map[string]bool{}}
	each := func(files []bulkclient.File, line func(f bulkclient.File, text []byte) error) {
		for _, f := range files {
			body, fault := client.Fetch(ctx, f)
			if fault == nil {
				_, fault = body.Lines(func(text []byte) error { return line(f, text) })
			}
			err = errors.Join(err, fault)
		}
	}
	each(m.Output, func(f bulkclient.File, text []byte) error { return w.enter(f.Type, text) })
	each(m.Deleted, func(_ bulkclient.File, text []byte) error {
		keys, err := bulkclient.Deletions(text)
		for _, key := range keys {
			if w.gone[key] {
				err = errors.Join(err, fmt.Errorf("the deletion of %s stands twice in a window", key))
			}
			w.gone[key] = true
		}
		return err
	})
	each(m.Error, func(_ bulkclient.File, text []byte) error { return fmt.Errorf("dead letters: %s", text) })
	return w, errors.Join(err, job.Delete(ctx))
}

func (w *window) enter(kind string, text []byte) error {
	key, err := keyOf(text)
	switch _, twice := w.changed[key]; {
	case err != nil:
		return err
	case twice:
		return fmt.Errorf("%s stands twice in a window", key)
	case !strings.HasPrefix(key, kind+"/"):
		return fmt.Errorf("%s is in a file of %s", key, kind)
	}
	w.changed[key], err = canonical(text)
	return err
}

// A merger is a client that makes one increment after the other and merges
// them, as the guide has it: what is in output replaces, what is in deleted goes.
type merger struct {
	client *bulkclient.Client

	mu      sync.Mutex
	has     map[string]string
	since   time.Time
	windows int
	err     error
}

// follow goes on until ctx ends. A window that has begun is finished.
func (m *merger) follow(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := take(context.WithoutCancel(ctx), m.client, m.since)
		m.mu.Lock()
		if err == nil {
			err = m.merge(w)
		}
		m.err = err
		m.mu.Unlock()
		if err != nil {
			return
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// merge is called with mu held. What comes again as it was is a fault, but where labels are
// put on and taken off without a new version. What a snapshot brings has its labels at once.
func (m *merger) merge(w *window) error {
	var again []string
	for key, text := range w.changed {
		if m.has[key] == text && !strings.HasPrefix(key, "Patient/random-") {
			again = append(again, key+": "+text)
		}
		if strings.HasPrefix(key, "Patient/labelled-") && strings.Count(text, "urn:labelled") != 3 {
			return fmt.Errorf("%s comes before all of its labels have: %s", key, text)
		}
		m.has[key] = text
	}
	if len(again) > 0 {
		return fmt.Errorf("%d of %d come again in the window that ends at %v and began at %v, as they were: %s", len(again), len(w.changed), w.time, m.since, strings.Join(again, ", "))
	}
	for key := range w.gone {
		delete(m.has, key)
	}
	m.since = w.time
	m.windows++
	return nil
}

// lacks is the first of some resources that the merger has not; "" if it has all.
func (m *merger) lacks(want map[string]string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, text := range want {
		if m.has[key] != text {
			return fmt.Sprintf("%s is\n%s and not yet\n%s", key, m.has[key], text), m.err
		}
	}
	return "", m.err
}

// behind is where the merger's newest window ends, if that is not after at.
func (m *merger) behind(at time.Time) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since.After(at) {
		return "", m.err
	}
	return m.since.String(), m.err
}
