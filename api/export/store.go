package export

import (
	"context"
	"io"
	"time"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A Store is what jobs need of the store. Of makes one of a store.DB.
type Store interface {
	// Now is the store's clock.
	Now() fhir.Instant
	// Pin takes a snapshot, has its rule made and keeps both in one synced batch.
	Pin(ctx context.Context, id string, expires time.Time, rule func(Snapshot) ([]byte, error)) (Snapshot, error)
	// Present is a snapshot that is not durable, to be read at once and closed.
	Present() (Snapshot, error)
	// Snapshot finds what was pinned, also after a restart; it must be closed.
	Snapshot(id string) (Snapshot, error)
	// Pinned lists what is pinned.
	Pinned() []store.Pinned
	// Amend replaces the rule that is kept with a snapshot, and when that expires,
	// unless it is the zero time.
	Amend(id string, rule []byte, expires time.Time) error
	// Detach is Amend for a snapshot of which Copy has made all files: it keeps no
	// more of the store than these.
	Detach(id string, rule []byte) error
	// Revoke ends a snapshot at once, whoever reads from it; rule is what is kept of it.
	Revoke(id string, rule []byte) error
	// Unpin forgets a snapshot. Whoever reads from it may finish.
	Unpin(ctx context.Context, id string) error
}

// A Snapshot is the store at one watermark.
type Snapshot interface {
	Watermark() fhir.Instant
	Epoch() uint64
	// ProvenanceOf lists the Provenance that may be about what lies in the compartments
	// of some sets of Patients (Place.Patients), or about Groups (segment.GroupHash).
	ProvenanceOf(ctx context.Context, compartments map[uint32]bool) (list []fhir.Key, ok bool, err error)
	// Forgotten is up to where deletions may not be known any more; while a rule is made.
	Forgotten() fhir.Instant
	// Cut is where in Kafka the snapshot was taken; while a rule is made.
	Cut() store.Cut
	Rule() []byte
	Expires() time.Time
	Sections(kind store.Kind) []store.Section
	// Choosing is the snapshot for the rows of a choice only; it is closed with it.
	Choosing(c store.Choice) Snapshot
	// Renewing is the snapshot where rows of the choice count from the beginning
	// that refer to a Binary which is renewed; it is closed with it.
	Renewing(renewed func(fhir.Key) bool) Snapshot
	// Veiled is the snapshot without what a veil hides; it is closed with it.
	Veiled(v *store.Veil) Snapshot
	Extents(sec store.Section, since, upto fhir.Instant) ([]store.Extent, error)
	// Attached tells whether rows in the blocks of extents may refer to a Binary, or
	// an attachment lead elsewhere; AnyAttached, whether any of a section does.
	Attached(ext []store.Extent) bool
	AnyAttached(sec store.Section) bool
	// Sum is the CRC-32 of the NDJSON of extents, unless rows must be taken out of
	// them first.
	Sum(ext []store.Extent) (crc uint32, known bool)
	// References calls fn for what the rows that Extents lists refer to of what
	// lies in nobody's compartment.
	References(ctx context.Context, sec store.Section, since, upto fhir.Instant, fn func(fhir.Key)) error
	// Rows calls fn for the rows that Extents lists; it may not keep them.
	Rows(ctx context.Context, sec store.Section, since, upto fhir.Instant, fn func(*store.Row) error) error
	// Filter keeps of extents of the same window the rows whose lines match, and
	// counts those that cannot be read.
	Filter(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, match func(line []byte) bool, step func()) (kept []store.Extent, lost int, err error)
	// Lines calls fn for the lines of the rows that extents list, and counts those
	// that cannot be read.
	Lines(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, fn func(line []byte) error, step func()) (lost int, err error)
	// LastStates calls fn for the lines of resources that were deleted since an
	// instant, as they were then, as long as they are kept.
	LastStates(ctx context.Context, t fhir.Type, since fhir.Instant, fn func(line []byte) error) error
	// Compartments is Lines with the Patients in whose compartments each row lies.
	Compartments(ctx context.Context, since, upto fhir.Instant, ext []store.Extent, fn func(line []byte, patients []string) error, step func()) (lost int, err error)
	// Scratch begins a file that a job removes itself.
	Scratch(name string) (Scratch, error)
	// FindScratch finds one that was kept, if it has as many bytes.
	FindScratch(name string, size int64) (Scratch, error)
	// SweepScratch removes all of them but those of some names.
	SweepScratch(but ...string) error
	// Draft begins a file of lines that are not as they are stored, Made opens it.
	Draft(name string) (Draft, error)
	Made(name string) (File, error)
	// Only lets go of all that extents do not need; while a rule is made.
	Only(ext []store.Extent) error
	// Holds is how many stored bytes the snapshot keeps on the disk.
	Holds() int64
	// Copy makes an output file one that Made opens, with the same bytes.
	Copy(ctx context.Context, name string, sec store.Section, since, upto fhir.Instant, ext []store.Extent) error
	// KeepKeys keeps which resources extents hold, as Copy does, for who makes files of
	// them that are to outlive the segments.
	KeepKeys(name string, since, upto fhir.Instant, ext []store.Extent) error
	// Clear removes all files and what Keep stored.
	Clear() error
	// Blocks is how much there is of a section.
	Blocks(sec store.Section) int
	// Rosters tells who was a member of which Group since an instant.
	Rosters(since fhir.Instant) (Rosters, error)
	// Roll is whom earlier exports of a Group found in it that ended at an instant.
	Roll(group string, upto fhir.Instant) (store.Roll, error)
	// CallRoll keeps whom this one found; several lists if that is not certain.
	CallRoll(group string, upto fhir.Instant, found ...[]string) error
	// Resource is the body of one; ErrUnknown if there is none.
	Resource(key fhir.Key) ([]byte, error)
	// Referrers calls fn for the row of each resource that refers to a Binary, until
	// fn returns an error; of a snapshot that is new.
	Referrers(ctx context.Context, binary fhir.Key, fn func(*store.Row) error) error
	// Known tells whether there is such a resource, or was and is deleted.
	Known(key fhir.Key) (bool, error)
	// Keep stores data beside a durable snapshot, Kept returns it.
	Keep(name string, data []byte) (sum uint32, err error)
	Kept(name string, sum uint32) ([]byte, error)
	File(ctx context.Context, name string, sec store.Section, since, upto fhir.Instant, ext []store.Extent) (File, error)
	Close() error
}

// Rosters are those of all Groups.
type Rosters interface {
	Of(id string) (store.Roster, error)
}

// A File is an output file whose bytes can no longer change.
type File interface {
	Size() int64     // of the NDJSON
	GzipSize() int64 // of the gzip member
	CRC32() uint32   // of the NDJSON
	// WriteGzip and WriteIdentity write bytes [off, off+n) of either form.
	WriteGzip(w io.Writer, off, n int64) error
	WriteIdentity(w io.Writer, off, n int64) error
	Close() error
}

// A Draft is an output file in the making.
type Draft interface {
	Add(line []byte) error
	Keep() error    // durably
	CRC32() uint32  // of the NDJSON, after Keep
	Discard() error // and remove what was written
}

// A Scratch is written, then read as often as need be.
type Scratch interface {
	io.Writer
	Open() (io.ReadCloser, error)
	Size() int64
	Keep() error // durably: the next process finds it
	Remove() error
}

// Of lets jobs work on a store.
func Of(db *store.DB) Store { return stored{db} }

type stored struct{ *store.DB }

func (s stored) Pin(ctx context.Context, id string, expires time.Time, rule func(Snapshot) ([]byte, error)) (Snapshot, error) {
	snap, err := s.DB.Pin(ctx, id, expires, func(s *store.Snapshot) ([]byte, error) { return rule(snapshot{s}) })
	if err != nil {
		return nil, err
	}
	return snapshot{snap}, nil
}

func (s stored) Present() (Snapshot, error) {
	snap, err := s.DB.Present()
	if err != nil {
		return nil, err
	}
	return snapshot{snap}, nil
}

func (s stored) Snapshot(id string) (Snapshot, error) {
	snap, err := s.DB.Snapshot(id)
	if err != nil {
		return nil, err
	}
	return snapshot{snap}, nil
}

type snapshot struct{ *store.Snapshot }

func (s snapshot) Choosing(c store.Choice) Snapshot { return snapshot{s.Snapshot.Choosing(c)} }

func (s snapshot) Renewing(renewed func(fhir.Key) bool) Snapshot {
	return snapshot{s.Snapshot.Renewing(renewed)}
}

func (s snapshot) Veiled(v *store.Veil) Snapshot { return snapshot{s.Snapshot.Veiled(v)} }

func (s snapshot) Rosters(since fhir.Instant) (Rosters, error) { return s.Snapshot.Rosters(since) }

func (s snapshot) Draft(name string) (Draft, error) {
	d, err := s.Snapshot.Draft(name)
	if err != nil {
		return nil, err // not a nil *store.Draft
	}
	return d, nil
}

func (s snapshot) Scratch(name string) (Scratch, error) {
	f, err := s.Snapshot.Scratch(name)
	if err != nil {
		return nil, err // not a nil *store.Scratch
	}
	return f, nil
}

func (s snapshot) FindScratch(name string, size int64) (Scratch, error) {
	f, err := s.Snapshot.FindScratch(name, size)
	if err != nil {
		return nil, err // not a nil *store.Scratch
	}
	return f, nil
}

func (s snapshot) Made(name string) (File, error) {
	f, err := s.Snapshot.Made(name)
	if err != nil {
		return nil, err // not a nil *store.File
	}
	return f, nil
}

func (s snapshot) File(ctx context.Context, name string, sec store.Section, since, upto fhir.Instant, ext []store.Extent) (File, error) {
	f, err := s.Snapshot.File(ctx, name, sec, since, upto, ext)
	if err != nil {
		return nil, err
	}
	return f, nil
}
