// Package backfill writes what a source has exported into a topic, as records of the format
// "resource" (pipeline/EVENTS.md), and knows how far it has come.
//
// What is sent is on the brokers, in all replicas that are in sync, before it counts as
// sent; a run that ends early is gone on with where it counted. What is sent twice is
// harmless: the same version with the same body changes nothing. The package refuses to
// know the store, or how records are read.
package backfill

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/store/fhir"
)

// Options of a load.
type Options struct {
	// KeepGoing passes over lines that say nothing, and tells Fault of each.
	KeepGoing bool
	Fault     func(Fault) error
	// Drop are types that the topic's readers pass over.
	Drop map[fhir.Type]bool
	// At is when the source was as the files say: the time of what says none itself. None:
	// not known; then that is now, and deletions are refused.
	At fhir.Instant
	// Ages is whether old timestamps are safe in the topic: brokers count retention from them.
	Ages bool
	// MaxRecord is the largest record that is read, bytes.
	MaxRecord int64
	// Skip and Wants, if set, choose what is sent: whole files are passed over, and lines.
	Skip  func(*extract.File) bool
	Wants func(*extract.File, *extract.Item) bool
	// First, if set, is called before all files, and has resources deleted as of an instant.
	First func(del func(fhir.Key, fhir.Instant)) error
	// Patience is how long brokers may be silent; 0: two minutes.
	Patience time.Duration
	// Read is told of bytes that were read from the files' disk; nil: nobody is.
	Read func(n int)
}

// A Fault is a line that cannot be loaded. It holds nothing of it.
type Fault struct {
	File   string `json:"file"`
	Line   int64  `json:"line"`
	Reason string `json:"reason"`
}

// Error names the place and what is wrong there.
func (f Fault) Error() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Reason) }

// A Tally is what was done with the lines of a load.
type Tally struct {
	Sent    map[fhir.Type]int64 // resources, by type
	Deleted int64               // deletions that were sent
	Bytes   int64               // of what was sent: keys and values
	Faults  int64
	Dropped int64 // of types that are passed over
	Before  int64 // lines that were sent before, in an earlier run
	Undated int64 // of Sent: nothing says as of when they are
}

// Resources is how many resources were sent.
func (t *Tally) Resources() (n int64) {
	for v := range maps.Values(t.Sent) {
		n += v
	}
	return n
}

const (
	faultLarge   = "larger than the server reads (kafka.max_record): raise that"
	faultUndated = "a deletion, and nothing says when that was: give --at"
)

// A Sink takes records; a nil one only looks at what would be sent. Done is called, in
// any order, once the brokers have a record.
type Sink interface {
	Put(ctx context.Context, rec *kgo.Record, done func(error))
	Flush(ctx context.Context) error
}

// Run sends all that some files say, from where the progress says; nil: from the beginning,
// and nothing is noted. After an error, too, what the brokers have is noted; the tally then
// counts what was handed to them.
func Run(ctx context.Context, files []*extract.File, sink Sink, p *Progress, o Options) (*Tally, error) {
	// What was begun is ended, also once the reading is to stop: it would only be sent again.
	sending, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	o.Patience = cmp.Or(o.Patience, patience)
	l := &loader{sink: sink, o: o, now: time.Now(), tally: &Tally{Sent: map[fhir.Type]int64{}}, sending: sending}
	l.silence = time.AfterFunc(o.Patience, func() { giveUp(errSilent) })
	defer l.silence.Stop()
	l.track = newTracker(p)
	var err error
	if o.First != nil {
		err = l.deletions(ctx)
	}
	if err == nil {
		err = l.files(ctx, files)
	}
	if sink != nil {
		hurry := context.AfterFunc(ctx, func() { l.silence.Reset(lastWords) })
		if flushErr := sink.Flush(sending); err == nil {
			err = flushErr
		}
		hurry()
	}
	switch failed := l.track.failed(); {
	case context.Cause(sending) != nil:
		err = fmt.Errorf("%w for %v: run this again when they are there, and it goes on", errSilent, o.Patience)
	case failed != nil && (err == nil || errors.Is(err, failed)):
		err = failed
	}
	return l.tally, errors.Join(err, l.track.finish())
}

var errSilent = errors.New("the brokers have acknowledged nothing")

const (
	// patience bounds how long brokers that are away are waited for. kgo has a bound of its
	// own, but counts it from the records' timestamps, which are years ago here.
	patience = 2 * time.Minute
	// lastWords is the same for what is under way when it is to stop.
	lastWords = 10 * time.Second
)

type loader struct {
	sink  Sink
	o     Options
	now   time.Time
	track *tracker
	tally *Tally
	// sending ends once silence has lasted too long.
	sending context.Context
	silence *time.Timer
}

func (l *loader) files(ctx context.Context, files []*extract.File) error {
	for _, f := range files {
		if l.o.Skip != nil && l.o.Skip(f) {
			continue
		}
		err := l.file(ctx, f, l.track.mark(f))
		if errors.Is(err, extract.ErrChanged) { // it is another file now, from its beginning on
			l.track.forget(f)
			err = l.file(ctx, f, extract.Mark{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) file(ctx context.Context, f *extract.File, after extract.Mark) error {
	begun := false
	err := f.Each(ctx, after, l.read, func(i *extract.Item) error {
		if !begun {
			begun = true
			l.tally.Before += after.Lines
		}
		return l.line(f, i)
	})
	if err == nil && !begun {
		l.tally.Before += after.Lines
	}
	return err
}

// read is told what was read. Brokers can be silent while nothing is sent.
func (l *loader) read(n int) {
	l.silence.Reset(l.o.Patience)
	if l.o.Read != nil {
		l.o.Read(n)
	}
}

func (l *loader) line(f *extract.File, i *extract.Item) error {
	if l.o.Wants != nil && !l.o.Wants(f, i) {
		return nil
	}
	recs, reason := l.records(i)
	if reason != "" {
		fault := Fault{f.Name, i.Line, reason}
		if !l.o.KeepGoing {
			return fault
		}
		l.tally.Faults++
		if err := l.o.Fault(fault); err != nil {
			return err
		}
	}
	l.put(recs, l.track.step(f, i.Behind, len(recs)))
	return l.track.failed()
}

// deletions sends those that are no lines.
func (l *loader) deletions(ctx context.Context) error {
	return l.o.First(func(key fhir.Key, at fhir.Instant) {
		if l.o.Drop[key.Type] || ctx.Err() != nil || l.track.failed() != nil {
			return
		}
		l.tally.Deleted++
		l.put([]*kgo.Record{l.deletion(key, at)}, l.track.loose)
	})
}

// put sends records, and has step called for each.
func (l *loader) put(recs []*kgo.Record, step func(error)) {
	l.silence.Reset(l.o.Patience)
	for _, rec := range recs {
		l.tally.Bytes += int64(len(rec.Key) + len(rec.Value))
		if l.sink == nil {
			step(nil)
			continue
		}
		l.sink.Put(l.sending, rec, func(err error) {
			l.silence.Reset(l.o.Patience)
			step(err)
		})
	}
}

// records is what a line says, as records. reason says why it is none.
func (l *loader) records(i *extract.Item) (recs []*kgo.Record, reason string) {
	key := i.Resource.Key
	switch {
	case i.Fault != "":
		return nil, i.Fault
	case i.Deleted != nil && l.o.At == fhir.None:
		return nil, faultUndated
	case i.Deleted != nil:
		for _, key := range i.Deleted {
			if l.o.Drop[key.Type] {
				l.tally.Dropped++
				continue
			}
			l.tally.Deleted++
			recs = append(recs, l.deletion(key, l.o.At))
		}
		return recs, ""
	case l.o.Drop[key.Type]:
		l.tally.Dropped++
		return nil, ""
	case l.o.MaxRecord > 0 && int64(len(i.Resource.Body)+len(key.ID)+64) > l.o.MaxRecord:
		return nil, faultLarge
	}
	if l.tally.Sent[key.Type]++; i.Resource.Version == "" && i.Resource.LastUpdated == fhir.None && l.o.At == fhir.None {
		l.tally.Undated++
	}
	return []*kgo.Record{l.resource(&i.Resource)}, ""
}

// resource is a resource's record. It has the time that the resource says, or as of when
// it was so; never one to come, which brokers refuse (message.timestamp.after.max.ms).
func (l *loader) resource(r *fhir.Resource) *kgo.Record {
	at := l.now
	switch {
	case r.LastUpdated == fhir.None && l.o.At != fhir.None:
		at = l.o.At.Time()
	case r.LastUpdated != fhir.None && l.o.Ages:
		at = r.LastUpdated.Time()
	}
	if at.After(l.now) {
		at = l.now
	}
	// The producer keeps the bytes; the line they lie in is read over.
	return &kgo.Record{Key: []byte(r.Key.String()), Value: append([]byte(nil), r.Body...), Timestamp: at}
}

// deletion is the record that a resource was gone at an instant. It says that as its own
// (fhir-last-updated), so that whatever the source wrote later wins, however late this comes;
// so the record's time may be another, where old ones are not safe.
func (l *loader) deletion(key fhir.Key, at fhir.Instant) *kgo.Record {
	sent := at.Time()
	if !l.o.Ages {
		sent = l.now
	}
	return &kgo.Record{
		Key: []byte(key.String()), Timestamp: sent,
		Headers: []kgo.RecordHeader{{Key: "fhir-op", Value: []byte("delete")}, {Key: "fhir-last-updated", Value: []byte(at.String())}},
	}
}

// Faults writes faults as NDJSON.
func Faults(w io.Writer) func(Fault) error {
	lines := json.NewEncoder(w)
	lines.SetEscapeHTML(false)
	return func(f Fault) error { return lines.Encode(f) }
}
