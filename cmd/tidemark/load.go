package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"

	"tidemark/cmd/tidemark/internal/backfill"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/store"
	"tidemark/store/fhir"
)

// extractFlags is what commands have in common that read an export of the source and may
// write to load.topic.
type extractFlags struct {
	Paths []string `arg:"" name:"path" type:"path" help:"NDJSON files, plain, .gz or .zst; folders of them; or the manifest of a finished bulk export, with its files beside it or in folders that are named, too."`
	At    string   `placeholder:"INSTANT" help:"As of when the files are, such as 2026-01-02T03:04:05Z: the beginning of the export. Default: transactionTime of the manifest or of the log (log.ndjson) in the folder."`
	Topic string   `placeholder:"NAME" help:"Write to this topic. Default: load.topic of the configuration."`

	configFlags `embed:""`
}

// find finds the files, and as of when they are.
func (f *extractFlags) find() (*extract.Extract, error) {
	e, err := extract.Find(f.Paths)
	if err != nil {
		return nil, misuse{err}
	}
	if f.At != "" {
		if e.At, _, err = fhir.ParseInstant(f.At); err != nil {
			return nil, misuse{fmt.Errorf("--at: %q is no instant such as 2026-01-02T03:04:05Z", f.At)}
		}
	}
	if now := fhir.FromTime(time.Now()); e.At > now {
		return nil, misuse{fmt.Errorf("the export is as of %s, which is yet to come: what is newer could not be told", e.At)}
	}
	return e, nil
}

// read is the configuration. A topic that is given is like one that is configured.
func (f *extractFlags) read() (*config.Loaded, error) {
	if f.Topic != "" {
		f.Set = append(f.Set, "load.topic="+f.Topic)
	}
	return f.load()
}

type loadCmd struct {
	extractFlags `embed:""`

	DryRun    bool   `help:"Send nothing: read all files, tell what they hold and what is wrong."`
	KeepGoing bool   `help:"Pass over lines that cannot be loaded. Without this it ends at the first, and goes on there next time."`
	Faults    string `type:"path" placeholder:"FILE" help:"Write file, line and reason of each such line here, as NDJSON. It is --keep-going."`
	State     string `type:"path" placeholder:"FILE" help:"Where it is noted how far the load is. Default: load.json in store.path."`
	Again     bool   `help:"Send all, also what was sent before."`
}

// Help is shown by --help.
func (*loadCmd) Help() string {
	return `Has a store begin with what the source has already: an export of it, as any FHIR server or bulk client makes one, goes to the topic
load.topic (format resource), and from there into the store like everything else. The resources keep their own versionId and lastUpdated.

  kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --create --topic fhir-load --partitions 4 --config cleanup.policy=compact
  tidemark load --dry-run export/            # topics: [{name: fhir-changes, …}, {name: fhir-load, format: resource}], load: {topic: fhir-load}
  tidemark load export/
  tidemark load manifest.json downloads/
  tidemark load Patient.ndjson.gz Observation.ndjson.zst

Before the first tidemark serve is best: what is loaded then has its own instants, so _since=2024-01-01 means what it says. Into a store that
has answered exports already it comes as changes of now.

Begin to write changes to Kafka before the export is made: what changes meanwhile is then in both, and the newer version wins, in
whatever order they come. It can be stopped at any time and run again: it goes on where the brokers had all. What is sent twice does no harm.

A line that is no resource with type and id, or only a part of one (SUBSETTED), ends it with file and line; mend it and run it again, or give
--keep-going. Nothing that stands in the files is ever shown.

Next: tidemark serve; tidemark reconcile export/ tells whether all has come.`
}

// Run loads.
func (c *loadCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.read()
	if err != nil {
		return err
	}
	if cfg.Load.Topic == "" && !c.DryRun {
		return misuse{errors.New("no topic to write to: set load.topic in the configuration, or give --topic")}
	}
	e, err := c.find()
	if err != nil {
		return err
	}
	args := url.Values{"topic": {cfg.Load.Topic}, "files": {strconv.Itoa(len(e.Files))}}
	if c.DryRun {
		return c.look(ctx, cfg, e, out)
	}
	at := place{cfg.Store.Path, &cfg.Config}
	return at.onRecord(ctx, "load", args, func() error { return c.send(ctx, cfg, e, out) })
}

// options are those of both, the look and the load.
func (c *loadCmd) options(cfg *config.Loaded, e *extract.Extract) backfill.Options {
	return backfill.Options{At: e.At, KeepGoing: c.KeepGoing || c.Faults != "", Drop: droppedIn(&cfg.Config, cfg.Load.Topic), MaxRecord: int64(cfg.Kafka.MaxRecord)}
}

// droppedIn are the types that are passed over in a topic.
func droppedIn(c *config.Config, topic string) map[fhir.Type]bool {
	drop := map[fhir.Type]bool{}
	i := slices.IndexFunc(c.Topics, func(t config.Topic) bool { return t.Reads(topic) })
	if i < 0 {
		return drop
	}
	for _, name := range c.Topics[i].DropTypes {
		if t, ok := fhir.ParseType(name); ok {
			drop[t] = true
		}
	}
	return drop
}

// look sends nothing.
func (c *loadCmd) look(ctx context.Context, cfg *config.Loaded, e *extract.Extract, out io.Writer) error {
	faults, err := c.faults(out)
	if err != nil {
		return err
	}
	o := c.options(cfg, e)
	o.KeepGoing, o.Fault = true, faults.add
	bar := newFileMeter("reading", e.Size(), out)
	o.Read = bar.add
	tally, err := backfill.Run(ctx, e.Files, nil, nil, o)
	if err := errors.Join(err, bar.end(), faults.close()); err != nil {
		return err
	}
	if err := tellTally(tally, e, out); err != nil {
		return err
	}
	if tally.Faults > 0 {
		return fmt.Errorf("%s lines cannot be loaded", humanize.Comma(tally.Faults))
	}
	_, err = fmt.Fprintln(out, "nothing is wrong, and nothing was sent: run it without --dry-run")
	return err
}

func (c *loadCmd) send(ctx context.Context, cfg *config.Loaded, e *extract.Extract, out io.Writer) error {
	w, limits, err := loadWriter(ctx, cfg)
	if err != nil {
		return err
	}
	defer w.Close()
	warnOfRetention(limits, cfg.Load.Topic, out)
	if err := warnOfStore(ctx, cfg, out); err != nil {
		return err
	}
	id, err := w.TopicID(ctx)
	if err != nil {
		return err
	}
	p, err := c.progress(cfg, id)
	if err != nil {
		return err
	}
	faults, err := c.faults(out)
	if err != nil {
		return err
	}
	o := c.options(cfg, e)
	o.Ages, o.Fault = limits.keeps, faults.add
	bar := newFileMeter("loading", e.Size(), out)
	o.Read = bar.add
	begun := time.Now()
	tally, err := backfill.Run(ctx, e.Files, w, p, o)
	took := time.Since(begun)
	if err := errors.Join(err, bar.end(), faults.close()); err != nil {
		return stopped(err)
	}
	if err := tellTally(tally, e, out); err != nil {
		return err
	}
	return c.tellNext(cfg, e, tally, took, out)
}

// stopped says what to do about what ended a load.
func stopped(err error) error {
	if _, is := errors.AsType[backfill.Fault](err); is {
		return fmt.Errorf("%w\nmend that line and run this again, and it goes on there; or give --keep-going, and it is passed over", err)
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("stopped: run it again, and it goes on")
	}
	return err
}

// warnOfRetention says so if a topic does not keep what is written to it.
func warnOfRetention(limits topicLimits, topic string, out io.Writer) {
	if limits.forgets {
		fmt.Fprintf(out, "warning: the topic %s deletes what is older than its retention.ms: a store that begins anew later would not have what is written now\n", topic)
	}
}

// progress is how far an earlier run came.
func (c *loadCmd) progress(cfg *config.Loaded, topicID string) (*backfill.Progress, error) {
	path := c.State
	if path == "" {
		path = filepath.Join(cfg.Store.Path, "load.json")
		if err := os.MkdirAll(cfg.Store.Path, 0o700); err != nil {
			return nil, fmt.Errorf("note how far the load is: %w; --state names a file for it", err)
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return backfill.ReadProgress(path, cfg.Load.Topic, topicID, c.Again)
}

// loadWriter reaches load.topic, which must exist.
func loadWriter(ctx context.Context, cfg *config.Loaded) (*backfill.Writer, topicLimits, error) {
	about, err := newWriter(ctx, cfg.Kafka, cfg.Load.Topic, "")
	if err != nil {
		return nil, topicLimits{}, err
	}
	about.close()
	reach, err := kafkaReach(cfg.Kafka)
	if err != nil {
		return nil, topicLimits{}, err
	}
	w, err := backfill.NewWriter(cfg.Load.Topic, about.limits.bytes, reach...)
	return w, about.limits, err
}

// faultList is where the lines go that cannot be loaded: to people the first, to a file all.
type faultList struct {
	out  io.Writer
	file *os.File
	all  func(backfill.Fault) error
	n    int
}

// fewFaults are shown.
const fewFaults = 10

func (c *loadCmd) faults(out io.Writer) (*faultList, error) {
	l := &faultList{out: out}
	if c.Faults == "" {
		return l, nil
	}
	var err error
	if l.file, err = os.OpenFile(c.Faults, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	l.all = backfill.Faults(l.file)
	return l, nil
}

func (l *faultList) add(f backfill.Fault) error {
	if l.n++; l.n <= fewFaults {
		fmt.Fprintln(l.out, f.Error())
	}
	if l.n == fewFaults+1 {
		fmt.Fprintln(l.out, "… and more: --faults FILE lists all")
	}
	if l.all == nil {
		return nil
	}
	return l.all(f)
}

func (l *faultList) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

func tellTally(t *backfill.Tally, e *extract.Extract, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	types := slices.SortedFunc(maps.Keys(t.Sent), func(a, b fhir.Type) int { return cmp.Compare(a.String(), b.String()) })
	for _, typ := range types {
		fmt.Fprintf(table, "%s\t%s\t\n", typ, humanize.Comma(t.Sent[typ]))
	}
	for _, more := range []struct {
		what string
		n    int64
	}{
		{"deletions", t.Deleted},
		{"passed over (drop_types)", t.Dropped},
		{"lines that cannot be loaded", t.Faults},
		{"lines done by an earlier run", t.Before},
		{"files left aside", int64(e.Aside)},
	} {
		if more.n > 0 {
			fmt.Fprintf(table, "%s\t%s\t\n", more.what, humanize.Comma(more.n))
		}
	}
	if err := table.Flush(); err != nil || t.Undated == 0 {
		return err
	}
	_, err := fmt.Fprintf(out, "warning: %s of them say neither version nor lastUpdated, and nothing says as of when the files are: they count as of now, and so win over what "+
		"the source has written since they were made. Give --at with the instant at which the export began\n", humanize.Comma(t.Undated))
	return err
}

func (c *loadCmd) tellNext(cfg *config.Loaded, e *extract.Extract, t *backfill.Tally, took time.Duration, out io.Writer) error {
	n := t.Resources() + t.Deleted
	if n == 0 && t.Before > 0 {
		_, err := fmt.Fprintf(out, "an earlier run has sent to %s all of it that can be loaded: --again sends it once more\n", cfg.Load.Topic)
		return err
	}
	seconds := max(took.Seconds(), 0.001)
	fmt.Fprintf(out, "%s records, %s, sent to %s in %s: %s a second, %s/s\n", humanize.Comma(n), bytesOf(t.Bytes), cfg.Load.Topic,
		took.Round(time.Millisecond), humanize.Comma(int64(float64(n)/seconds)), bytesOf(int64(float64(t.Bytes)/seconds)))
	at := ""
	if e.At == fhir.None {
		at = "--at INSTANT "
	}
	_, err := fmt.Fprintf(out, "next: tidemark serve, if it does not run; once it has read them, tidemark reconcile %s%s finds nothing missing\n", at, strings.Join(c.Paths, " "))
	return err
}

// askedStanding is asked by commands that are on record themselves.
const askedStanding = "standing"

// standing is how a store stands.
type standing struct {
	Watermark fhir.Instant `json:"watermark"` // what it has promised; None before the bootstrap is over
	Topics    []string     `json:"topics"`    // that were ever read into it
}

// standingOf answers it where the store is open.
func standingOf(_ context.Context, db *store.DB, _ url.Values, out io.Writer) error {
	st := db.Status()
	s := standing{Watermark: max(st.Watermark, st.Promised), Topics: []string{}}
	for _, p := range st.Partitions {
		s.Topics = append(s.Topics, p.Partition.Topic)
	}
	return json.NewEncoder(out).Encode(s)
}

// warnOfStore says so if the store is at hand and what comes now comes late.
func warnOfStore(ctx context.Context, cfg *config.Loaded, out io.Writer) error {
	if _, err := os.Stat(store.IndexDir(store.Disk, cfg.Store.Path)); err != nil {
		return nil //nolint:nilerr // it begins later
	}
	var answer bytes.Buffer
	if err := onStore(ctx, place{cfg.Store.Path, &cfg.Config}, askedStanding, nil, &answer); err != nil {
		_, err = fmt.Fprintf(out, "how the store stands cannot be told: %v\n", err)
		return err
	}
	var s standing
	if err := json.Unmarshal(answer.Bytes(), &s); err != nil {
		return fmt.Errorf("understand the running server: %w", err)
	}
	if s.Watermark == fhir.None {
		return nil
	}
	_, err := fmt.Fprintf(out, "the store's bootstrap is over, it has promised up to %s: what is new to it comes as changes of now, not of its lastUpdated\n", s.Watermark)
	return err
}

// A fileMeter shows how far files are read: a bar to a person, else a line now and then.
type fileMeter struct {
	mu    sync.Mutex
	what  string
	bar   *progressbar.ProgressBar
	out   io.Writer
	total int64
	done  int64
	begun time.Time
	told  time.Time
}

// toldEvery is how often a line is written where nobody sees a bar.
const toldEvery = 30 * time.Second

func newFileMeter(what string, total int64, out io.Writer) *fileMeter {
	r := &fileMeter{what: what, out: out, total: total, begun: time.Now(), told: time.Now()}
	if isTerminal(os.Stderr) {
		r.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return r
}

func (r *fileMeter) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += int64(n)
	if r.bar != nil {
		_ = r.bar.Add(n) // decoration
		return
	}
	if time.Since(r.told) < toldEvery {
		return
	}
	r.told = time.Now()
	fmt.Fprintf(r.out, "%s: %s of %s, %s/s\n", r.what, bytesOf(r.done), bytesOf(r.total), bytesOf(int64(float64(r.done)/time.Since(r.begun).Seconds())))
}

func (r *fileMeter) end() error {
	if r.bar == nil {
		return nil
	}
	return r.bar.Finish()
}
