// Package source reads the partitions of Kafka topics from the offsets that
// the store gives, and reports what each fetch answer said.
//
// It knows brokers, leaders, record batches and transactions. It knows nothing
// of what the records mean, keeps nothing on disk, belongs to no consumer
// group, and never decides how to go on after a gap in the log: it stops
// reading that partition and says so.
//
// Per leader one goroutine fetches, per partition one goroutine hands answers
// to the Handler, in order; one more asks for metadata. Fetching waits once
// Config.Ahead bytes are fetched but not handled. Source.mu is the only lock;
// it is never held while the Handler, the Log or a broker is called.
package source

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/sasl"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Topics says which topics are meant: one by its name or all whose names match
// a pattern. Kafka's internal topics never match.
type Topics struct {
	Name    string
	Pattern *regexp.Regexp
	// Compacted is what is warned of if one of them is compacted; "": nothing.
	Compacted string
}

// Match says whether the topic called name is meant.
func (t Topics) Match(name string) bool {
	return t.Pattern == nil && t.Name == name || t.Pattern != nil && t.Pattern.MatchString(name)
}

// String is the name or the pattern, without what has it match whole names.
func (t Topics) String() string {
	if t.Pattern != nil {
		return strings.TrimSuffix(strings.TrimPrefix(t.Pattern.String(), `\A(?:`), `)\z`)
	}
	return t.Name
}

// Config says what to read and how. Brokers and Topics must be set, all else
// has defaults.
type Config struct {
	Brokers  []string
	TLS      *tls.Config
	SASL     sasl.Mechanism
	ClientID string
	Topics   []Topics

	// MaxWait is how long a broker keeps a fetch that has nothing to answer,
	// and so how old the ends of idle partitions may get; default 150 ms.
	MaxWait time.Duration
	// PartitionMaxBytes and MaxBytes bound a fetch answer, as stored by the
	// broker; a larger batch still comes whole. Defaults 1 MiB (more is
	// slower: processors' caches) and 8 MiB.
	PartitionMaxBytes, MaxBytes int
	// Ahead bounds what is fetched but not handled, in bytes as inflated;
	// default 16 MiB. What is being fetched counts half.
	Ahead int
	// MaxRecord is the size above which a record is only surfaced cut;
	// default 128 MiB.
	MaxRecord int

	// Refresh is how often leaders, partitions and topics are asked for,
	// besides after errors; default 3 s.
	Refresh time.Duration
	// RequestTimeout ends a request that a broker does not answer; default 30 s.
	RequestTimeout time.Duration
	// RetryMin and RetryMax bound the pause after an error; defaults 100 ms
	// and 10 s.
	RetryMin, RetryMax time.Duration
	// Grace is how long a partition may fail before it is reported as held;
	// default 10 s, longer than a broker's restart or a change of leader.
	Grace time.Duration

	Logger *slog.Logger
	Meter  metric.Meter
}

func (c Config) withDefaults() Config {
	c.ClientID = cmp.Or(c.ClientID, "tidemark")
	c.MaxWait = cmp.Or(c.MaxWait, 150*time.Millisecond)
	c.PartitionMaxBytes = cmp.Or(c.PartitionMaxBytes, 1<<20)
	c.MaxBytes = cmp.Or(c.MaxBytes, 8<<20)
	c.Ahead = cmp.Or(c.Ahead, 16<<20)
	c.MaxRecord = cmp.Or(c.MaxRecord, 128<<20)
	c.Refresh = cmp.Or(c.Refresh, 3*time.Second)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, 30*time.Second)
	c.RetryMin = cmp.Or(c.RetryMin, 100*time.Millisecond)
	c.RetryMax = cmp.Or(c.RetryMax, 10*time.Second)
	c.Grace = cmp.Or(c.Grace, 10*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	if len(c.Brokers) == 0 {
		faults = append(faults, errors.New("no kafka brokers are given"))
	}
	if len(c.Topics) == 0 {
		faults = append(faults, errors.New("no topics are given"))
	}
	for _, t := range c.Topics {
		if (t.Name == "") == (t.Pattern == nil) {
			faults = append(faults, errors.New("a topic needs either a name or a pattern"))
		}
	}
	return errors.Join(faults...)
}

// A Log is what the source asks of the store.
type Log interface {
	Now() fhir.Instant
	Partition(store.Partition) (store.PartitionState, bool)
}

// A Handler takes what the source learns. Handle is called by one goroutine
// per partition, the other methods by any.
type Handler interface {
	// Discover tells what the broker has, before any of it is fetched and
	// whenever there is more of it. An error ends Run.
	Discover(context.Context, store.Discovery) error
	// Handle takes the next answer of a partition; while it does not return,
	// little more of that partition is fetched. ErrStop ends the reading of
	// the partition, any other error ends Run.
	Handle(context.Context, *Answer) error
	// Hold says why a partition makes no progress: a gap, or errors for
	// longer than a while. Release takes that back.
	Hold(store.Partition, string)
	Release(store.Partition)
}

// ErrStop is returned by a Handler that wants no more of a partition.
var ErrStop = errors.New("stop reading the partition")

// An Answer is what one fetch answer said about one partition.
type Answer struct {
	Partition   store.Partition
	Records     []Record
	Next        int64        // behind the last record batch, whatever it held
	LeaderEpoch int32        // of the newest record batch read, -1 if unknown
	Asked       fhir.Instant // the store's time before the request was sent
	End         int64        // last stable offset
	Size        int          // bytes that the records keep alive
}

// A Source reads partitions. New makes one, Run makes it work.
type Source struct {
	cfg     Config
	log     Log
	wire    *wire
	metrics metrics
	kicked  chan struct{} // asks for a refresh of the metadata

	group   *errgroup.Group // of Run
	handler Handler
	told    *bool           // what the handler was last told of completeness; watch's
	warned  map[string]bool // topics that are compacted and should not be; watch's

	mu         sync.Mutex
	partitions map[store.Partition]*partition
	leaders    map[int32]*leader
	trouble    string   // why the cluster cannot be asked, "" if it can
	missing    []string // topics and patterns that the broker does not have
}

// New returns a source that has not yet connected to anything.
func New(cfg Config, log Log) (*Source, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	metrics, err := newMetrics(cfg.Meter)
	if err != nil {
		return nil, err
	}
	return &Source{
		cfg: cfg, log: log, wire: newWire(cfg), metrics: metrics,
		kicked:     make(chan struct{}, 1),
		partitions: map[store.Partition]*partition{},
		leaders:    map[int32]*leader{},
		warned:     map[string]bool{},
	}, nil
}

// Run reads until ctx ends, which is no error, or the handler reports one.
// It may be called once.
func (s *Source) Run(ctx context.Context, h Handler) error {
	defer s.wire.close()
	s.handler = h
	group, work := errgroup.WithContext(ctx)
	s.group = group
	group.Go(func() error { return s.watch(work) })
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// Status is what the source knows of its partitions.
type Status struct {
	Trouble    string   // why the cluster cannot be asked, "" if it can
	Missing    []string // configured topics and patterns that the broker does not have
	Partitions []PartitionStatus
}

// PartitionStatus is where the reading of a partition stands.
type PartitionStatus struct {
	Partition store.Partition
	Leader    int32
	Next      int64     // to be fetched next
	End       int64     // last stable offset
	High      int64     // high watermark; behind End while a transaction is open
	Gap       *Gap      // set: no longer read
	Since     time.Time // of the gap
	Busy      bool      // what was fetched is not handled yet
	Stopped   bool      // the handler wanted no more
	Trouble   string    // the error that is being retried, "" if none
	Absent    bool      // the brokers do not have it any more
}

// Lag is how many offsets lie between what was fetched and the end.
func (p PartitionStatus) Lag() int64 { return max(0, p.End-p.Next) }

// Status tells where the reading stands.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Trouble: s.trouble, Missing: slices.Clone(s.missing)}
	for _, p := range s.partitions {
		out.Partitions = append(out.Partitions, p.status())
	}
	slices.SortFunc(out.Partitions, func(a, b PartitionStatus) int {
		return comparePartitions(a.Partition, b.Partition)
	})
	return out
}

func comparePartitions(a, b store.Partition) int {
	return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.ID, b.ID))
}
