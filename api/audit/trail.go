package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// Options of a Trail.
type Options struct {
	// Dir is the folder of its files; it is made if there is none.
	Dir string
	// Required: Record fails when the line could not be written. Else the event is
	// lost, which the log, a metric and the next line say.
	Required bool
	// Keep is how long lines are kept at least; 0: for ever.
	Keep time.Duration
	// MaxSize is when a file is full, bytes (default 64 MiB). Each day begins another.
	MaxSize int64
	// Observer is what AuditEvent.source says of this server.
	Observer string
	// Publisher gets each line as well, from Run; nil: nobody does.
	Publisher Publisher

	FS     vfs.FS // default: Disk
	Logger *slog.Logger
	Meter  metric.Meter
}

func (o *Options) fill() {
	o.MaxSize = cmp.Or(o.MaxSize, 64<<20)
	o.Observer = cmp.Or(o.Observer, "tidemark")
	if o.FS == nil {
		o.FS = Disk
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Meter == nil {
		o.Meter = noop.Meter{}
	}
}

// A Trail is what is on record. One process writes it. A nil Trail records nothing, and
// says of all that it is on record: for tests.
type Trail struct {
	o    Options
	lost metric.Int64Counter

	disk   sync.Mutex // held by who writes
	out    chain
	warned time.Time // when the log was told last that nothing can be written

	mu      sync.Mutex
	gather  *batch // what the next write takes
	missing int64  // events that are lost and not yet said to be
	closed  bool
	// unpublished is why the Publisher has failed, if it did.
	unpublished error
	follow      chan struct{} // has a token when there is something new for the Publisher
}

// A batch is lines that are written and synced together.
type batch struct {
	lines [][]byte
	size  int
	done  bool // under Trail.disk
	err   error
}

// maxBatch bounds what is written at once, bytes: what a crash tears is not on record,
// and more than this cannot be torn.
const maxBatch = 1 << 20

// Open opens the trail in a folder, or begins one. What a crash has torn is cut off. A
// chain that is broken is said in the log, and goes on: Verify tells where.
func Open(o Options) (*Trail, error) {
	o.fill()
	t := &Trail{o: o, follow: make(chan struct{}, 1), gather: &batch{}, out: chain{o: &o}}
	var err error
	t.lost, err = o.Meter.Int64Counter("audit.lost", metric.WithUnit("{event}"),
		metric.WithDescription("Events that are not on record because the audit trail could not be written."))
	if err != nil {
		return nil, fmt.Errorf("make the instruments of the audit trail: %w", err)
	}
	if o.Publisher != nil {
		if err := t.measure(); err != nil {
			return nil, err
		}
	}
	switch err := t.out.open(time.Now()); {
	case err == nil:
	case o.Required || errors.Is(err, ErrLocked):
		return nil, fmt.Errorf("open the audit trail in %s: %w", o.Dir, err)
	default:
		t.warn(context.Background(), err)
	}
	return t, nil
}

// Record puts an event on record: it is synced when Record returns nil. Events that come
// at the same time share one sync. That whoever asked has gone is no reason not to: ctx
// goes to the log only.
//
// An error is one of ErrUnwritable, and only if that is Required; later events are
// tried again.
func (t *Trail) Record(ctx context.Context, e Event) error {
	if t == nil {
		return nil
	}
	err := t.write(e)
	if err == nil {
		return nil
	}
	t.warn(ctx, err)
	if !t.o.Required {
		t.lose(ctx)
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnwritable, err)
}

var errClosed = errors.New("it is closed")

// write waits for its turn at the disk. Who comes first writes for all who have come
// meanwhile.
func (t *Trail) write(e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	line := e.encode(t.o.Observer)
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return errClosed
	}
	b := t.gather
	if b.size > 0 && b.size+len(line) > maxBatch {
		b = &batch{} // who waits with the full one writes it
		t.gather = b
	}
	b.lines = append(b.lines, line)
	b.size += len(line)
	t.mu.Unlock()

	t.disk.Lock()
	defer t.disk.Unlock()
	if !b.done {
		t.put(b)
	}
	return b.err
}

// put writes a batch: it has all that came while the disk was busy. Of what was lost
// before, it says how much.
func (t *Trail) put(b *batch) {
	t.mu.Lock()
	if t.gather == b {
		t.gather = &batch{}
	}
	missing := t.missing
	t.mu.Unlock()
	lines := b.lines
	if missing > 0 {
		e := Event{Time: time.Now(), Action: Lost, Outcome: Failed, Rows: missing, Reason: "the trail could not be written"}
		lines = append([][]byte{e.encode(t.o.Observer)}, lines...)
	}
	b.done, b.err = true, t.out.append(time.Now(), lines)
	if b.err != nil {
		return
	}
	t.mu.Lock()
	t.missing -= missing
	t.mu.Unlock()
	select {
	case t.follow <- struct{}{}:
	default:
	}
}

// lose counts an event that is not on record.
func (t *Trail) lose(ctx context.Context) {
	t.lost.Add(ctx, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missing++
}

// warn tells the log, once a minute.
func (t *Trail) warn(ctx context.Context, err error) {
	t.disk.Lock()
	defer t.disk.Unlock()
	if now := time.Now(); now.Sub(t.warned) >= time.Minute {
		t.warned = now
		t.o.Logger.WarnContext(ctx, "the audit trail cannot be written: make room, or see what the error says", "error", err, "required", t.o.Required)
	}
}

// Close ends the trail. Whoever records from then on is told that it cannot be written.
func (t *Trail) Close() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.disk.Lock()
	defer t.disk.Unlock()
	return t.out.close()
}

// A Disclosure is data that is being sent, or an act that takes its time: one line says
// that it begins, another how it ended.
type Disclosure struct {
	t *Trail
	// Event is what End will write: who finds out more meanwhile may say so.
	Event Event
}

// Begin puts on record that something begins. Nothing may be sent before it returns,
// and nothing if it returns an error, which is as Record's.
func (t *Trail) Begin(ctx context.Context, e Event) (*Disclosure, error) {
	e.Pair, e.Phase = rand.Text(), Begun
	if err := t.Record(ctx, e); err != nil {
		return nil, err
	}
	return &Disclosure{t, e}, nil
}

// End puts on record how many bytes were sent, and how it went. They are sent: an End
// that cannot be written is counted as lost.
func (d *Disclosure) End(ctx context.Context, bytes int64, o Outcome) {
	if d == nil || d.t == nil {
		return
	}
	d.Event.Time, d.Event.Phase, d.Event.Bytes, d.Event.Outcome = time.Time{}, Ended, bytes, o
	if err := d.t.write(d.Event); err != nil {
		d.t.warn(ctx, err)
		d.t.lose(ctx)
	}
}
