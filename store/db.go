// Package store is the one place that knows what is true: which changes were
// taken in, when they became visible, and which bytes a client will read.
//
// Kafka is its write-ahead log. Changes gather in memory; a commit seals them
// into one segment and makes it true with one synced Pebble batch. The package
// refuses to know Kafka, HTTP and any destination.
//
// Lock order: DB.commitMu (one commit, merge swap or heartbeat at a time), then
// DB.open (the index may not be closed now), then DB.mu (everything in memory).
// No I/O happens under DB.mu.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/semaphore"

	"tidemark/store/compaction"
	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// What callers branch on.
var (
	// ErrClosed: the store was closed, or failed before; nothing more is taken in.
	ErrClosed = errors.New("the store is closed")
	// ErrNotReady: the bootstrap is not over, so nothing can be promised yet.
	ErrNotReady = errors.New("not every configured topic has been read up to where it stood when we first saw it")
	// ErrNotFound: no such snapshot.
	ErrNotFound = errors.New("no such snapshot")
	// ErrRevoked: the snapshot held what was erased since, or its owner has ended it.
	ErrRevoked = errors.New("the snapshot was ended: something that it held was erased")
	// ErrLocked: another process has the directory.
	ErrLocked = errors.New("another process uses this store directory: stop it first, or give this one a store.path of its own")
	// ErrNoRoom: what is asked needs something written, which the disk does not
	// take now. Nothing is lost: it can be asked again.
	ErrNoRoom = errors.New("the disk is full or takes no writes")
	// ErrCorrupt: stored bytes are not what was written.
	ErrCorrupt = segment.ErrCorrupt
	// ErrReindex: the segments are there, but the index is not theirs.
	ErrReindex = errors.New("segments and index do not belong together: run `tidemark reindex`")
)

// Options of a store. The zero value works.
type Options struct {
	// CommitInterval is the greatest age of a change before it is committed
	// (default 500 ms), CommitSize the bytes of bodies that are gathered at most
	// (default 32 MiB; one larger batch passes alone).
	CommitInterval time.Duration
	CommitSize     int64
	// Allowance is how far producers' clocks and the network may put changes out
	// of order before one counts as late (default 1 s). Late changes are never
	// lost, they belong to the next window.
	Allowance time.Duration
	// MaxClockStep is how far the wall clock may lie below the promise at start
	// before the log warns (default 30 s).
	MaxClockStep time.Duration
	// KeepMeta leaves meta.versionId and meta.lastUpdated out where the source
	// left them out.
	KeepMeta bool
	// Cores and WriteRate bound what merges take of the processor (default 0.5,
	// of one core at most) and of the disk (bytes a second, default 50 MiB). They
	// hold for as long as merges keep up.
	Cores     float64
	WriteRate int64
	// SettleAfter is the age at which rows are moved out of the way of intake and
	// sorted by patient (default 1 day).
	SettleAfter time.Duration
	// LastState is how long the last state of a resource is kept after its
	// deletion (default 30 days).
	LastState time.Duration
	// Deleted is how long deletions are told to exports (default 400 days), and
	// DeadLetters how long records that could not be decoded are kept (default 90
	// days).
	Deleted, DeadLetters time.Duration
	// Scrub is the time in which all stored bytes are read and checked once; 0:
	// never.
	Scrub time.Duration
	// Reserve is how many bytes of the disk are held for when it is full; 0: none.
	Reserve int64
	// Spare is how many bytes of the disk must be free for files that jobs write
	// beside what is stored; 0: any. Let it be more than what intake needs: a job can
	// wait, and can be large.
	Spare int64
	// Cache is Pebble's, bytes (default 96 MiB).
	Cache int64
	// MergeOff leaves fresh segments as they are; for tests.
	MergeOff bool

	smallFile int64 // compaction.SmallFile, smaller in tests
	still     bool  // index.Options.Still

	FS vfs.FS // default: the disk
	// Beside are names in the store's directory that are somebody else's: Restore
	// takes no offence at them.
	Beside []string
	Logger *slog.Logger
	Meter  metric.Meter
	Tracer trace.Tracer
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&o.CommitInterval, 500*time.Millisecond)
	set(&o.Allowance, time.Second)
	set(&o.MaxClockStep, 30*time.Second)
	set(&o.SettleAfter, 24*time.Hour)
	set(&o.LastState, 30*24*time.Hour)
	set(&o.Deleted, 400*24*time.Hour)
	set(&o.DeadLetters, 90*24*time.Hour)
	if o.Cores == 0 {
		o.Cores = 0.5
	}
	if o.WriteRate == 0 {
		o.WriteRate = 50 << 20
	}
	if o.CommitSize == 0 {
		o.CommitSize = 32 << 20
	}
	if o.Cache == 0 {
		o.Cache = 96 << 20
	}
	if o.smallFile == 0 {
		o.smallFile = compaction.SmallFile
	}
	if o.FS == nil {
		o.FS = vfs.Default
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
	return o
}

// A DB is an open store. One process has it.
type DB struct {
	dir   string
	o     Options
	fs    vfs.FS
	lock  io.Closer
	kv    *pebble.DB
	clock clock
	m     *instruments

	reserve  reserve
	readOnly readOnly

	commitMu sync.Mutex   // one commit, swap or heartbeat at a time
	erasing  sync.Mutex   // one erasure at a time; taken before merging
	pinning  sync.RWMutex // held for reading while a snapshot is being made durable
	merging  sync.Mutex   // one merge at a time; taken before commitMu
	rolling  sync.Mutex   // one roll at a time is changed
	erased   erasedPointer
	enforced Erased       // what Open found that had come back
	open     sync.RWMutex // held for reading by those who use kv with neither; taken last but for mu
	cutting  *semaphore.Weighted

	mu      sync.Mutex
	meta    index.Meta
	parts   map[Partition]*partition
	numbers map[uint64]Partition
	topics  map[string][]byte

	complete bool         // the broker has every configured topic
	started  bool         // the bootstrap is over
	waits    fhir.Instant // as Wait says
	chunks   *segment.Chunks
	onces    onces
	abouts   bool           // the index leads to Provenance by what it is about
	forgot   fhir.Instant   // that does not hold for snapshots from before
	promised fhir.Instant   // nothing becomes visible at or before it any more
	stored   fhir.Instant   // what of it is durable
	promises []fhir.Instant // promise keys in the index
	ghosts   []segment.ID   // dropped segments in the index whose files are gone

	gather  gathering
	sealing *sealing
	behind  bool      // intake waits for merges
	noRoom  time.Time // set after a commit found the disk full: when it is tried again
	work    work
	full    chan struct{} // signalled when a commit is due for its size
	first   chan struct{} // signalled when a commit's first change arrives
	room    *sync.Cond    // the gathering has room, or the store failed

	view   *view // live segments; replaced, never changed
	segs   map[segment.ID]*seg
	pins   map[string]*pinned
	failed error
	closed bool
}

// A partition is what is known of one partition in this process.
type partition struct {
	durable  index.PartitionState // as of the last commit
	progress *progress
	joinAt   int64 // reaching this offset is joining
	joined   bool
	stored   bool // a batch has stored that it joined
	caught   bool // it was read to its end since the store was restored
	seen     fhir.Instant
	held     string
}

// gathering is what the next commit will hold.
type gathering struct {
	batches []taken
	bytes   int64
	since   time.Time    // when the first came
	least   fhir.Instant // the least time of a change that holds the watermark
	holds   bool
	notes   map[string][]byte // the newest of each name; nil: taken away
}

// sealing is a commit under way.
type sealing struct {
	line  fhir.Instant
	least fhir.Instant
	holds bool
	notes map[string][]byte
}

// taken is a batch and when we had it.
type taken struct {
	Batch
	at      fhir.Instant
	seen    fhir.Instant // as PartitionState.Seen, once this is committed
	bytes   int64
	caught  bool // before it the partition was read to its end, since the store was restored
	erasure bool // deletions of our own
}

// clock is fixed once at start and runs with the monotonic clock from then on.
type clock struct {
	base  fhir.Instant
	start time.Time
}

func (c clock) now() fhir.Instant { return c.base + fhir.Instant(time.Since(c.start).Milliseconds()) }

// Now is the store's clock: the wall clock at start, but never behind what was
// promised or stored, and monotonic from then on.
func (db *DB) Now() fhir.Instant { return db.clock.now() }

// Promised is the latest instant that an answer may have shown, None before the first.
func (db *DB) Promised() fhir.Instant {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.promised
}

// Run commits what gathers and merges fresh segments until ctx ends, then
// commits what is left. It returns the error that made the store stop.
func (db *DB) Run(ctx context.Context) error {
	upkeep, stop := context.WithCancel(ctx)
	var loops sync.WaitGroup
	loops.Go(func() { db.rewriteLoop(upkeep) })
	loops.Go(func() { db.watchDisk(upkeep) })
	loops.Go(func() { db.rollLoop(upkeep) })
	if db.o.Scrub > 0 {
		loops.Go(func() { db.scrubLoop(upkeep) })
		loops.Go(func() { db.scrubBesideLoop(upkeep) })
	}
	defer func() { stop(); loops.Wait() }()
	heartbeat := time.NewTicker(time.Minute)
	defer heartbeat.Stop()
	for {
		due, stopTimer := db.due()
		select {
		case <-ctx.Done():
			stopTimer()
			return db.Flush() //nolint:contextcheck // the end of ctx must not cut the last commit short
		case <-db.full:
			if db.waitsForRoom() { // the timer will tell
				stopTimer()
				continue
			}
		case <-due:
		case <-db.first: // the timer must be set anew
			stopTimer()
			continue
		case <-heartbeat.C:
			stopTimer()
			if err := db.heartbeat(); err != nil {
				return err
			}
			continue
		}
		stopTimer()
		if err := db.Flush(); err != nil { //nolint:contextcheck // nor any other
			return err
		}
	}
}

func (db *DB) waitsForRoom() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.failed == nil && time.Now().Before(db.noRoom)
}

// due returns a channel that fires when the oldest gathered change is
// CommitInterval old; it never does while nothing is gathered.
func (db *DB) due() (<-chan time.Time, func()) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if len(db.gather.batches) == 0 {
		return nil, func() {}
	}
	t := time.NewTimer(time.Until(db.gather.since.Add(db.o.CommitInterval)))
	return t.C, func() { t.Stop() }
}

// fail makes err the end of the store: whatever waits is woken and told.
func (db *DB) fail(err error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.failed == nil {
		db.failed = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	db.room.Broadcast()
	signal(db.full) // Run ends, and with it the process
	return err
}

// whileOpen calls fn while the index cannot be closed; ErrClosed if it is.
func (db *DB) whileOpen(fn func() error) error {
	db.open.RLock()
	defer db.open.RUnlock()
	if db.isClosed() {
		return ErrClosed
	}
	return fn()
}

func (db *DB) isClosed() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.closed
}

// Close gives the directory back. What was gathered but not committed is read
// from Kafka again.
func (db *DB) Close() error {
	if err := db.writable(); err != nil { // writes hang, and what they hold: as after a crash
		_ = db.fail(err)
		return fmt.Errorf("close the store: %w", err)
	}
	db.merging.Lock()
	defer db.merging.Unlock()
	db.commitMu.Lock()
	defer db.commitMu.Unlock()
	db.open.Lock()
	defer db.open.Unlock()
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	if db.failed == nil {
		db.failed = ErrClosed
	}
	db.room.Broadcast()
	db.mu.Unlock()
	return errors.Join(db.kv.Close(), db.lock.Close())
}
