// Package pipeline carries records from Kafka into the store: it reads what
// pipeline/source fetches, turns it into changes with pipeline/decode and
// applies them.
//
// It knows dead letters, and when so many of them in a row mean that a topic
// is not what its configuration says. It does not know what a change does to
// the store, and it keeps nothing itself: offsets, dead letters and the state
// of each topic lie in the store's commits.
//
// Each partition has a goroutine of its own, which decodes and applies its
// answers in order: order is promised per partition and nowhere else, so this
// is as parallel as it can be, and with a few partitions all cores decode.
//
// Lock order: joined.mu, then topic.order, then topic.mu, then Pipeline.mu. The store is asked to
// apply with topic.order held when a topic's state changes, never with topic.mu:
// it may wait for room without bound.
package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/join"
	"tidemark/pipeline/source"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Store is where changes go: what the pipeline needs of *store.DB.
type Store interface {
	Now() fhir.Instant
	Discover(store.Discovery) error
	Apply(context.Context, store.Batch) error
	Flush() error
	Partition(store.Partition) (store.PartitionState, bool)
	Topic(name string) []byte
	Hold(p store.Partition, reason string)
	Release(store.Partition)
	Committed() map[store.Partition]int64
	DeadLetters(topic string, fn func(store.DeadLetterRow) error) error
	// What topics whose records are joined want.
	join.Notes
	Remember(name string, what []byte) error
	Rewind(p store.Partition, offset int64) error
	// What somebody decides.
	Decide(context.Context, store.Decision) error
	Forget(store.Partition) error
	Reached() fhir.Instant
	ReachedBeside(topic string) fhir.Instant
	Wait(least fhir.Instant)
}

var _ Store = (*store.DB)(nil)

// A Topic is a topic, or all topics that match a pattern, and what their
// records are. The first one that matches a topic holds for it.
type Topic struct {
	Name    string
	Pattern *regexp.Regexp
	// Format names what the records are, see decode.Formats.
	Format string
	// Reading says what else decides what a record is understood as, in any words; dead
	// letters are decoded again when it or the format changes.
	Reading string
	// StopAfter is how many dead letters without a good record in between
	// hold the topic, for then its format is probably wrong. 0 is
	// DefaultStopAfter, a negative number never.
	StopAfter int
	// Decode are the format's options; a MaxRecord of 0 is that of Options.
	Decode decode.Options
}

// DefaultStopAfter is Topic.StopAfter if nothing else is said.
const DefaultStopAfter = 100

// reading names the way in which records are understood.
func (t Topic) reading() string {
	if t.Reading == "" {
		return t.Format
	}
	return t.Format + " " + t.Reading
}

func (t Topic) selector() source.Topics {
	of := source.Topics{Name: t.Name, Pattern: t.Pattern}
	if t.Format == formatOfRows {
		of.Compacted = losesDeletions
	}
	return of
}

const (
	// formatOfRows is the format in which a deletion is followed by a null of the same key, which
	// says nothing and alone outlives compaction.
	formatOfRows   = "debezium"
	losesDeletions = "deletions that were not read before are lost, for the tombstones behind them say nothing: " +
		"have it keep everything (cleanup.policy=delete, retention.ms=-1), or the connector write no tombstones (tombstones.on.delete=false)"
)

// Options say what to read. Source.Brokers and Topics must be set; Topics,
// MaxRecord, Logger and Meter of Source are set from here.
type Options struct {
	Source source.Config
	Topics []Topic
	// MaxRecord is the size in bytes above which a record becomes a dead
	// letter of which only length, hash and start are kept; default
	// decode.DefaultMaxRecord.
	MaxRecord int64
	// Group is a consumer group under which our offsets are mirrored for lag
	// tools; "" is off. It is never read and never joined.
	Group string
	// MirrorEvery is how often; default 5 s.
	MirrorEvery time.Duration
	// NewDecoder makes the decoder of a format; default decode.New.
	NewDecoder func(format string, o decode.Options) (decode.Decoder, error)
	// Likely names the format that records look like, "" if they look like none. It is asked
	// about a topic that is held because its own format understands none of them.
	Likely func(o decode.Options, records []decode.Record) string

	Logger *slog.Logger
	Meter  metric.Meter
	Tracer trace.Tracer
}

func (o Options) withDefaults() Options {
	o.MaxRecord = cmp.Or(o.MaxRecord, decode.DefaultMaxRecord)
	o.MirrorEvery = cmp.Or(o.MirrorEvery, 5*time.Second)
	if o.NewDecoder == nil {
		o.NewDecoder = decode.New
	}
	if o.Likely == nil {
		o.Likely = func(decode.Options, []decode.Record) string { return "" }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Meter == nil {
		o.Meter = noop.Meter{}
	}
	if o.Tracer == nil {
		o.Tracer = tracenoop.Tracer{}
	}
	o.Source.Logger, o.Source.Meter, o.Source.MaxRecord = o.Logger, o.Meter, int(o.MaxRecord)
	o.Topics = slices.Clone(o.Topics)
	o.Source.Topics = nil
	for i := range o.Topics {
		t := &o.Topics[i]
		t.StopAfter = cmp.Or(t.StopAfter, DefaultStopAfter)
		t.Decode.MaxRecord = cmp.Or(t.Decode.MaxRecord, o.MaxRecord)
		o.Source.Topics = append(o.Source.Topics, t.selector())
	}
	return o
}

// A Pipeline is made by New and works in Run.
type Pipeline struct {
	o        Options
	store    Store
	source   *source.Source
	decoders []decode.Decoder // one per configured topic, for all partitions
	metrics  *metrics
	joined   joined

	mu         sync.Mutex
	topics     map[string]*topic
	partitions map[store.Partition]bool   // discovered
	absent     map[store.Partition]bool   // in the store, but not discovered
	waits      map[store.Partition]string // why a record cannot be decoded yet
	waiting    []join.Wait                // what has come waits for, of topics that are joined
	mirror     string                     // why offsets are not mirrored, "" if they are
}

// New returns a pipeline into the store that has not yet read anything.
func New(o Options, s Store) (*Pipeline, error) {
	o = o.withDefaults()
	p := &Pipeline{
		o: o, store: s, topics: map[string]*topic{},
		partitions: map[store.Partition]bool{}, absent: map[store.Partition]bool{}, waits: map[store.Partition]string{},
	}
	var faults []error
	for _, t := range o.Topics {
		d, err := o.NewDecoder(t.Format, t.Decode)
		if err != nil {
			faults = append(faults, fmt.Errorf("topic %s: %w", t.selector(), err))
		}
		p.decoders = append(p.decoders, d)
	}
	faults = append(faults, p.joinTopics())
	var err error
	p.source, err = source.New(o.Source, s)
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, fmt.Errorf("set up the pipeline: %w", err)
	}
	if p.metrics, err = newMetrics(o.Meter, p); err != nil {
		return nil, fmt.Errorf("set up the pipeline: %w", err)
	}
	return p, nil
}

// Run reads and applies until ctx ends, which is no error, or the store
// refuses. Brokers that are away or come back are waited for. It may be
// called once.
func (p *Pipeline) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer p.metrics.close()
		return p.source.Run(ctx, intake{p})
	})
	if p.o.Group != "" {
		group.Go(func() error { return p.mirrorOffsets(ctx) })
	}
	return group.Wait()
}

// Status is how the reading stands.
type Status struct {
	Trouble    string   // why the cluster cannot be asked, "" if it can
	Missing    []string // configured topics and patterns that it does not have
	Mirror     string   // why offsets are not mirrored, "" if they are
	Partitions []PartitionStatus
	Topics     []TopicStatus
	Waiting    []join.Wait // why the watermark stays below what has come of several tables
}

// PartitionStatus is how the reading of one partition stands.
type PartitionStatus struct {
	Partition store.Partition
	Leader    int32         // -1 if there is none
	Next, End int64         // fetched so far, last stable offset
	Lag       int64         // offsets between them
	Open      int64         // offsets behind End, hidden by an open transaction
	Gap       string        // what may be lost, "" if nothing; no longer read
	Reason    source.Reason // of the gap
	Since     time.Time     // when this process found the gap
	Held      string        // why its topic is held, "" if it is not; no longer read
	Paused    bool          // its topic is
	Waits     string        // what a record waits for before it can be decoded, "" for nothing
	Trouble   string        // the error that is being retried, "" if none
	Absent    bool          // the brokers do not have it any more
}

// TopicStatus is what became of a topic's records lately.
type TopicStatus struct {
	Name        string
	Format      string
	DeadLetters int    // since the last good record
	Held        string // why it is held, "" if it is not
	Paused      bool   // somebody wants it held
}

// Status tells how the reading stands.
func (p *Pipeline) Status() Status {
	from := p.source.Status()
	out := Status{Trouble: from.Trouble, Missing: from.Missing}
	held := map[string]TopicStatus{}
	for _, t := range p.knownTopics() {
		s := t.status()
		held[s.Name] = s
		out.Topics = append(out.Topics, s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range from.Partitions {
		s := PartitionStatus{
			Partition: f.Partition, Leader: f.Leader, Next: f.Next, End: f.End, Lag: f.Lag(),
			Open: max(0, f.High-f.End), Held: held[f.Partition.Topic].Held, Paused: held[f.Partition.Topic].Paused, Waits: p.waits[f.Partition],
			Trouble: f.Trouble, Absent: f.Absent,
		}
		if f.Gap != nil {
			s.Gap, s.Reason, s.Since = f.Gap.Error(), f.Gap.Reason, f.Since
		}
		out.Partitions = append(out.Partitions, s)
	}
	out.Mirror, out.Waiting = p.mirror, p.waiting
	return out
}

// knownTopics lists the topics discovered so far, by name.
func (p *Pipeline) knownTopics() []*topic {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*topic
	for _, t := range p.topics {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *topic) int { return cmp.Compare(a.name, b.name) })
	return out
}
