// Package publish is what $bulk-publish shows (Bulk Data 4.0, "Bulk Publish"):
// some resource types, whole, as a chain of pages that never change. A page is a
// snapshot of the store that is kept, read in one or two ways: as an increment,
// what has changed since the page before, and as a root, everything.
//
//	root ──▶ stub ──▶ increment ──▶ increment ──▶ increment ──▶ stub ──▶ #pending
//	                                root ──▶ stub ──▲          root ──▲
//
// All roots of a chain lead into the one line of increments, so nobody who
// follows it has to begin again when there is a fresher root. The stub of one for
// which nothing had changed stands in the line itself: who waits before it must be
// led on before his page is taken away. A new chain begins,
// and the old one ends with #closed, when the line cannot be continued: the
// configured types are others, another policy withholds, something in a page was erased or
// cannot be read, the store was restored or has forgotten deletions. Then consumers begin at
// the new root.
//
// The store's pins are the only truth. A page is there as soon as its pin is (under a
// policy: as soon as its pin says so, for its files must be made first), and
// every link follows from which pages are there: no crash finds one without the
// other, and nothing is written twice. The name of a pin says where its page
// stands, for of a revoked one nothing else is left.
//
// Segments hold what came in together, and pages stay for weeks: an increment of a
// few resources would keep all changes of its hour on the disk. So its files are
// copied, byte for byte, and its snapshot lets go of the segments; a page that is
// most of what it keeps stays as it is.
//
// The package refuses to know HTTP. Pages.making is taken before Pages.turning, and that
// before the store's locks; Pages.mu is held while nothing is called.
package publish

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
)

// Sentinels. A consumer who meets one of the last two begins again at the root.
var (
	// ErrNoRoot says that there is no root yet, or none any more: one is being made.
	ErrNoRoot = errors.New("nothing is published yet")
	// ErrNotFound says that there is no such page or file, or none any more.
	ErrNotFound = errors.New("no such published page or file")
	// ErrWithdrawn says that a page was taken back before its time.
	ErrWithdrawn = errors.New("the published page was withdrawn")
)

// Options of what is published. Without Types nothing is, the rest has defaults.
type Options struct {
	Types []fhir.Type // publish.types
	// Public says that the pages are for everybody (publish.public): New refuses
	// every type that can be about a Patient then.
	Public        bool
	Every         time.Duration // between increments (publish.every; default 1 h)
	SnapshotEvery time.Duration // between roots (publish.snapshot_every; default 7 days)
	// Grace is how long whatever stands before a newer root stays
	// (publish.grace; default 7 days).
	Grace  time.Duration
	Limits export.Limits // when a file is full
	// Withhold is what no page holds (withhold). Pages that hold more end when New is called.
	Withhold withhold.Policy
	Bases    []string // of absolute references to resources here, for its searches
	Logger   *slog.Logger
	Meter    metric.Meter
}

const day = 24 * time.Hour

func (o Options) withDefaults() Options {
	o.Every = cmp.Or(o.Every, time.Hour)
	o.SnapshotEvery = cmp.Or(o.SnapshotEvery, 7*day)
	o.Grace = cmp.Or(o.Grace, 7*day)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Meter == nil {
		o.Meter = noop.Meter{}
	}
	return o
}

// validate refuses to show everybody what may be about somebody (decisions.md 5).
func (o Options) validate() error {
	var faults []error
	for _, t := range o.Types {
		switch {
		case t == fhir.Binary: // a page does not know whose it is
			faults = append(faults, errors.New("publish.types: Binary is never published: it may belong to a patient's data, whoever may read the pages"))
		case o.Public && fhir.MayNamePatient(t):
			faults = append(faults, fmt.Errorf("publish.types: %s can be about a patient, so it is never public: take it out, or set publish.public: false", t))
		case len(o.Withhold.Groups) > 0 && fhir.MayNamePatient(t):
			faults = append(faults, fmt.Errorf("publish.types: %s can be about a patient, and pages do not know who has opted out (withhold.groups): take it out", t))
		}
	}
	return errors.Join(faults...)
}

// Pages are what is published of one store.
type Pages struct {
	db    export.Store
	o     Options
	types []string // names, sorted
	made  metric.Int64Counter
	wake  chan struct{} // there is something to do before its time

	making sync.Mutex      // one page at a time
	looked time.Time       // when there was last nothing to publish; of Run alone
	heavy  bool            // a page may keep more than it needs; under making
	light  map[string]bool // pins of those that do not, which stays so; under making

	turning    sync.RWMutex    // held while pins are listed
	unfinished map[string]bool // pins of what is no page yet

	mu    sync.Mutex
	known map[string]*page // by the names of their pins; replaced, never changed
}

// New finds the pages that are there, and ends those that hold what is withheld now. It
// starts nothing, and refuses to publish for everybody what may be about a Patient, or for
// anybody where some of them have opted out.
func New(db export.Store, o Options) (*Pages, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.Withhold.Groups = nil // people are in no page, so it does not matter to any who opts out
	p := &Pages{db: db, o: o, wake: make(chan struct{}, 1), heavy: true, unfinished: map[string]bool{}}
	for _, t := range o.Types {
		p.types = append(p.types, t.String())
	}
	slices.Sort(p.types)
	p.types = slices.Compact(p.types)
	p.findUnfinished()
	p.endWeaker()
	return p, p.instruments()
}

func (p *Pages) instruments() (err error) {
	if p.made, err = p.o.Meter.Int64Counter("api.publish.pages", metric.WithUnit("{page}"),
		metric.WithDescription("Pages published, by what they hold")); err != nil {
		return fmt.Errorf("make the instruments of published pages: %w", err)
	}
	_, err = p.o.Meter.Int64ObservableGauge("api.publish.kept", metric.WithUnit("{page}"),
		metric.WithDescription("Published pages whose files are kept"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(len(p.table().pages)))
			return nil
		}))
	if err != nil {
		return fmt.Errorf("make the instruments of published pages: %w", err)
	}
	return nil
}

// On says whether anything is to be published.
func (p *Pages) On() bool { return len(p.types) > 0 }

// Public says whether pages are for everybody.
func (p *Pages) Public() bool { return p.o.Public }

// Every is how often consumers may expect another page.
func (p *Pages) Every() time.Duration { return p.o.Every }

// A Manifest is one page as its consumers see it.
type Manifest struct {
	TransactionTime fhir.Instant
	Page            string              // the id under which its files are
	Before          int                 // files of the page that come before: the first is number Before+1
	Files           []export.OutputFile // none: a stub
	Severities      []outcome.Tally     // of the issues in the list of errors
	Next            Next
}

// A Next is where a page leads: to an increment, or to the stub of a root.
type Next struct {
	Page string // the id of a page, or Pending or Closed
	Stub bool
}

// What stands in place of a next page (Bulk Data, "Incremental Updates").
const (
	Pending = "#pending" // there will be one
	Closed  = "#closed"  // there will never be one: begin again at the root
)

// Root is where consumers begin: all there is. ErrNoRoot if there is none now.
func (p *Pages) Root() (Manifest, error) {
	t := p.table()
	i := t.root()
	if i < 0 {
		p.signal()
		return Manifest{}, ErrNoRoot
	}
	at := t.pages[i]
	return Manifest{
		TransactionTime: at.upto(), Page: at.id, Before: at.increments(), Files: at.Snapshot.Files(),
		Severities: at.Snapshot.Severities(), Next: Next{Page: at.id, Stub: true},
	}, nil
}

// Stub is the page behind a root. It holds nothing, and waits for the increment
// that follows the root.
func (p *Pages) Stub(id string) (Manifest, error) {
	t := p.table()
	i, err := t.find(id)
	if err != nil {
		return Manifest{}, err
	}
	if t.pages[i].Snapshot == nil {
		return Manifest{}, ErrNotFound
	}
	return Manifest{TransactionTime: t.pages[i].upto(), Page: id, Next: t.next(i)}, nil
}

// Increment is a page of what has changed since the one before.
func (p *Pages) Increment(id string) (Manifest, error) {
	t := p.table()
	i, err := t.find(id)
	if err != nil {
		return Manifest{}, err
	}
	at := t.pages[i]
	if at.Increment == nil {
		return Manifest{}, ErrNotFound
	}
	return Manifest{
		TransactionTime: at.upto(), Page: id, Files: at.Increment.Files(),
		Severities: at.Increment.Severities(), Next: t.next(i),
	}, nil
}

// Open opens file n of a page, counted from 1: those of the increment first. It
// may have to wait until the store has taken hidden rows out of the file's blocks.
func (p *Pages) Open(ctx context.Context, id string, n int) (*export.Download, error) {
	t := p.table()
	i, err := t.find(id)
	if err != nil {
		return nil, err
	}
	s, err := p.db.Snapshot(t.pages[i].pin())
	if err != nil {
		return nil, opening(err)
	}
	d, err := open(ctx, s, n)
	if err != nil {
		_ = s.Close() // was opened for reading only
		return nil, opening(err)
	}
	return d, nil
}

// open goes by the record that the snapshot was opened with: where its files are
// may have changed since the table was made.
func open(ctx context.Context, s export.Snapshot, n int) (*export.Download, error) {
	r, ok := decode(s.Rule())
	if !ok {
		return nil, ErrNotFound
	}
	whole, nth := r.Increment, n
	if before := r.increments(); n > before {
		whole, nth = r.Snapshot, n-before
	}
	if whole == nil {
		return nil, ErrNotFound
	}
	return whole.Open(ctx, s, nth, n)
}

// opening says in this package's words why a file cannot be opened.
func opening(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, ErrNotFound), errors.Is(err, export.ErrNotFound):
		return ErrNotFound
	case errors.Is(err, store.ErrRevoked):
		return ErrWithdrawn
	}
	return fmt.Errorf("open a file of a published page: %w", err)
}

// signal has Run look at once whether there is something to do.
func (p *Pages) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// names says which types are published.
func (p *Pages) names() string { return strings.Join(p.types, ", ") }
