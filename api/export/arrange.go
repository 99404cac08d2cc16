package export

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/search"
)

// An export can be in blocks, each of one resource of a type and of what belongs to
// it (Bulk Data, "organizeOutputBy"; decisions.md 5). To a Patient belongs what lies
// in his compartment, to another resource what refers to it; besides what those
// refer to, unless that lies in other Patients' compartments, and what resources
// refer to in turn that have no block of their own. A Provenance that has none goes
// with what it is about. Such edges are those of all resources at the watermark: a
// Practitioner who has changed goes to each Patient whose data refers to him,
// however old they are.
//
// What Groups list draws nothing in, nor what a Provenance is about, and a Group
// stands in no Patient's block: either would bring everybody's data together.
//
// Nobody knows before all is read where a resource belongs, and nothing of that
// fits into memory: edges and lines go through external sorts. Bodies are read once
// for the lines, and once for the edges if directories do not hold them: they hold
// the Patients, and references to what lies in nobody's compartment.

// Ranks of the lines of a block.
const (
	focalRank   byte = iota // the resource itself
	contextRank             // likewise, where the window does not hold it: goes with what it holds
	otherRank
)

// An arranging makes blocks.
type arranging struct {
	*sorter
	g       *gathering
	by      fhir.Type
	scanner fhir.Scanner
	number  uint64 // of the next line
	ids     []string
	self    []byte
	to      []byte

	blocks *sorting // of each block (id, rank, number) the line
	loose  *sorting // of what may go for what refers to it: a candidate
	edges  *sorting // (resource, block): something in the block refers to it
	onward *sorting // (resource, resource): the first has no block of its own, and refers to the second
	about  *sorting // (resource, Provenance), the latter without a block of its own
	owned  *sorting // (resource, block) of what Provenance may be about

	attached bool                   // Provenance goes with what is sent: only its edges count
	wanted   *filter                // keys of what edges may lead to; nil: of all
	aimed    *filter                // keys of what edges lead to
	targets  *filter                // keys of what Provenance is about that has no block of its own
	known    map[string]bool        // blocks; nil: too many
	place    place                  // up to which files are written
	allowed  map[fhir.Type][]uint64 // of constrained types, once somebody asks
	work     int                    // of writing the files, in blocks
	left     map[fhir.Type]int64    // rows that belong to no block
}

// maxKnown is how many blocks are looked for one by one. As many resources the
// store looks for in its index.
const maxKnown = 20_000

func (g *gathering) arrange(by fhir.Type, o Options) *arranging {
	a := &arranging{g: g, by: by, left: map[fhir.Type]int64{}, allowed: map[fhir.Type][]uint64{}}
	if g.r.Since != fhir.None { // else nothing is looked for
		a.known = map[string]bool{}
	}
	a.scanner = fhir.Scanner{OwnBases: o.Bases, AllReferences: true}
	a.sorter = &sorter{limit: o.Memory, fanIn: maxRuns, pad: g.pad}
	for _, s := range []**sorting{&a.blocks, &a.loose, &a.edges, &a.onward, &a.about, &a.owned} {
		*s = a.sorting()
	}
	if !a.byPatient() {
		a.aimed = newFilter()
	}
	if a.attached = g.sent != nil; !a.attached { // else it is not known before the end what leads where
		a.targets = newFilter()
		if a.byPatient() {
			a.wanted = newFilter()
		}
	}
	return a
}

func (a *arranging) byPatient() bool { return a.by == patientType }

// appendKey writes a key so that it can be told from what follows behind a zero.
func appendKey(dst []byte, k fhir.Key) []byte { return append(append(dst, byte(k.Type)), k.ID...) }

var zero = []byte{0}

// take takes a line that is sent.
func (a *arranging) take(t fhir.Type, line []byte, patients []string) error {
	a.number++
	text, err := a.shape(line, t)
	if err != nil {
		return err
	}
	if a.byPatient() {
		return a.takeByPatient(t, line, text, patients)
	}
	res, err := a.scanner.Scan(line)
	if err != nil {
		return fmt.Errorf("a stored %s is no resource: %w", t, store.ErrCorrupt)
	}
	owners := a.owners(res.Key, res.References)
	if err := a.put(text, res.Key, owners); err != nil {
		return err
	}
	if t == provenanceType && a.attached {
		if err := a.link(res.Key, owners, res.References); err != nil {
			return err
		}
	}
	a.self = appendKey(a.self[:0], res.Key)
	if a.aimed.has(a.self) || len(owners) == 0 && t == provenanceType {
		return a.candidate(a.self, text, len(owners) > 0)
	}
	if len(owners) == 0 {
		a.left[t]++
	}
	return nil
}

// shape is a line as it is sent.
func (a *arranging) shape(line []byte, t fhir.Type) (text []byte, err error) {
	rewrite := a.g.following != nil && t != fhir.Binary
	text, err = a.g.shape(line, t, rewrite)
	if err == nil && rewrite {
		a.g.following.followed()
	}
	return text, err
}

func (a *arranging) takeByPatient(t fhir.Type, line, text []byte, patients []string) error {
	if t == groupType {
		a.left[t]++
		return nil
	}
	key := fhir.Key{Type: t}
	if t == patientType {
		key.ID = search.ID(line)
		return a.put(text, key, []string{key.ID})
	}
	owners := a.members(patients)
	if t == provenanceType && a.attached {
		res, err := a.scanner.Scan(line)
		if err != nil {
			return fmt.Errorf("a stored %s is no resource: %w", t, store.ErrCorrupt)
		}
		if err := a.link(res.Key, owners, res.References); err != nil {
			return err
		}
	}
	if len(owners) > 0 {
		return a.put(text, key, owners)
	}
	key.ID = search.ID(line)
	a.self = appendKey(a.self[:0], key)
	a.wanted.add(a.self)
	return a.candidate(a.self, text, false)
}

// members are those Patients that the export is about.
func (a *arranging) members(patients []string) []string {
	if a.g.c == nil && a.g.veil == nil {
		return patients
	}
	a.ids = a.ids[:0]
	for _, id := range patients {
		if a.g.isMember(id) {
			a.ids = append(a.ids, id)
		}
	}
	return a.ids
}

// owners are the blocks to which a resource belongs by itself.
func (a *arranging) owners(key fhir.Key, refs []fhir.Key) []string {
	a.ids = a.ids[:0]
	if key.Type == a.by {
		a.ids = append(a.ids, key.ID)
	}
	for _, ref := range refs {
		if ref.Type == a.by && ref != key {
			a.ids = append(a.ids, ref.ID)
		}
	}
	return a.ids
}

// put puts a line into blocks.
func (a *arranging) put(text []byte, key fhir.Key, blocks []string) error {
	for _, id := range blocks {
		rank := otherRank
		if key.Type == a.by && key.ID == id {
			rank = focalRank
		}
		if err := a.putInto([]byte(id), rank, a.number, text); err != nil {
			return err
		}
	}
	return nil
}

func (a *arranging) putInto(block []byte, rank byte, number uint64, text []byte) error {
	if a.known != nil && !a.known[string(block)] {
		if a.known[string(block)] = true; len(a.known) > maxKnown {
			a.known = nil
		}
	}
	var tail [10]byte
	tail[1] = rank
	binary.BigEndian.PutUint64(tail[2:], number)
	return a.blocks.add(text, block, tail[:])
}

// candidate keeps a line for the blocks of what refers to it. The value begins with
// its number and whether it has a block of its own.
func (a *arranging) candidate(key, text []byte, placed bool) error {
	a.to = binary.BigEndian.AppendUint64(a.to[:0], a.number)
	if placed {
		a.to = append(a.to, 1)
	} else {
		a.to = append(a.to, 0)
	}
	a.to = append(a.to, text...)
	return a.loose.add(a.to, key)
}

// gather takes the lines of extents that match.
func (a *arranging) gather(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, at position, since fhir.Instant, match func(line []byte) bool) error {
	if a.g.following != nil {
		a.g.following.begin(at.Strays)
		defer func() { a.g.noteStrays(sec.Type, a.g.following.strays) }()
	}
	lost, err := a.read(ctx, s, sec, extents, at, since, func(line []byte, patients []string) error {
		if match != nil && !match(line) {
			return nil
		}
		return a.take(sec.Type, line, patients)
	})
	if err != nil {
		return fmt.Errorf("gather %s for its blocks: %w", sec.Type, err)
	}
	a.g.did(bodyCost * (a.g.s.Blocks(sec) - len(extents) + at.Extent))
	a.g.noteLost(sec, lost)
	return nil
}

// read hands over the lines of extents from a place on. What is done is saved
// between two of them.
func (a *arranging) read(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, at position, since fhir.Instant, fn func(line []byte, patients []string) error) (lost int, err error) {
	var fault error
	_, err = s.Compartments(ctx, since, a.g.r.Upto, extents[at.Extent:], func(line []byte, patients []string) error {
		if fault != nil {
			return fault
		}
		at.Line++
		return fn(line, patients)
	}, func() {
		at = position{Extent: at.Extent + 1, Lost: at.Lost + extents[at.Extent].Rows - at.Line}
		if a.g.following != nil {
			at.Strays = a.g.following.strays.clone()
		}
		if a.g.did(bodyCost); fault == nil {
			fault = a.g.reached(sec.Type, new(at))
		}
	})
	return at.Lost, errors.Join(err, fault)
}

// measure adds what there is to do beside reading the lines that are sent.
func (a *arranging) measure(types []fhir.Type) {
	for _, sec := range a.sections() {
		blocks := a.g.s.Blocks(sec)
		if a.g.asks(types, sec.Type) {
			a.work += bodyCost * blocks
		}
		if a.byPatient() {
			a.g.blocks += blocks
		} else {
			a.g.blocks += bodyCost * blocks
		}
	}
	a.g.blocks += a.work
}

// prepare finds the edges that only bodies tell.
func (a *arranging) prepare(ctx context.Context) error {
	if a.byPatient() {
		return nil // later: then it is known of what
	}
	sections := a.sections()
	done, at := a.g.rest(sections)
	for i, sec := range sections {
		if i < done {
			a.g.did(bodyCost * a.g.s.Blocks(sec))
			continue
		}
		if i > done {
			at = position{}
		}
		s := a.whole(sec.Type)
		if sec.Type == provenanceType && a.attached {
			s = a.g.s
		}
		extents, err := s.Extents(sec, fhir.None, a.g.r.Upto)
		if err != nil {
			return fmt.Errorf("find the extents of %s: %w", sec.Type, err)
		}
		lets := a.g.filters[sec.Type].lets()
		lost, err := a.read(ctx, s, sec, extents, at, fhir.None, func(line []byte, _ []string) error {
			if !lets(line) {
				return nil
			}
			res, err := a.scanner.Scan(line)
			if err != nil {
				return fmt.Errorf("a stored %s is no resource: %w", sec.Type, store.ErrCorrupt)
			}
			if sec.Type == provenanceType && a.attached { // which of it is sent shows later
				for _, ref := range res.References {
					a.to = appendKey(a.to[:0], ref)
					a.aimed.add(a.to)
				}
				return nil
			}
			return a.link(res.Key, a.owners(res.Key, res.References), res.References)
		})
		if err != nil {
			return fmt.Errorf("follow the references of %s: %w", sec.Type, err)
		}
		if lost > 0 {
			a.g.notes = append(a.g.notes, lostEdges(sec.Type, a.by, lost))
		}
		if err := a.g.reached(sec.Type, nil); err != nil {
			return err
		}
	}
	return nil
}

// finish makes the files of what was gathered.
func (a *arranging) finish(ctx context.Context, types []fhir.Type, l Limits) error {
	for _, step := range []struct {
		stage stage
		do    func() error
	}{
		{stageFollow, func() error { return a.follow(ctx) }},
		{stageSpread, func() error { return a.spread(ctx) }},
		{stageFocus, func() error {
			if err := a.addFocal(ctx, types); err != nil {
				return err
			}
			a.noteLeft()
			return nil
		}},
		{stageBind, func() error { return a.bind(ctx, l) }},
	} {
		if a.g.passed(step.stage) {
			continue
		}
		if err := a.g.enter(step.stage); err != nil {
			return err
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	return nil
}

// addFocal adds the resources of the blocks that the window does not hold.
func (a *arranging) addFocal(ctx context.Context, types []fhir.Type) error {
	g, sec := a.g, store.Section{Kind: store.Live, Type: a.by}
	if g.r.Since == fhir.None || !g.asks(types, a.by) || a.blocks.count == 0 || g.s.Blocks(sec) == 0 {
		return nil
	}
	s := a.whole(a.by)
	if a.byPatient() && a.known != nil {
		keys := make(map[fhir.Key]fhir.Instant, len(a.known))
		for id := range a.known {
			keys[fhir.Key{Type: a.by, ID: id}] = fhir.None
		}
		s = g.s.Choosing(store.Choice{Keys: keys})
	}
	extents, err := s.Extents(sec, fhir.None, g.r.Upto)
	if err != nil {
		return fmt.Errorf("find the extents of %s: %w", sec.Type, err)
	}
	match := g.matcher(a.by)
	lost, err := s.Lines(ctx, fhir.None, g.r.Upto, extents, func(line []byte) error {
		id := search.ID(line)
		if match != nil && !match(line) || a.known != nil && !a.known[id] {
			return nil
		}
		text, err := a.shape(line, a.by)
		if err != nil {
			return err
		}
		return a.putInto([]byte(id), contextRank, 0, text)
	}, func() {})
	if err != nil {
		return fmt.Errorf("gather %s for its blocks: %w", sec.Type, err)
	}
	g.noteLost(sec, lost)
	return nil
}

// noteLeft says what belongs to no block.
func (a *arranging) noteLeft() {
	if len(a.left) == 0 {
		return
	}
	var counts []string
	for t, n := range a.left {
		counts = append(counts, fmt.Sprintf("%s %d", t, n))
	}
	slices.Sort(counts)
	why := fmt.Sprintf("they refer to no %s, and nothing does that refers to one", a.by)
	if a.byPatient() {
		why = "they lie in no Patient's compartment, and nothing refers to them that does"
		if a.left[groupType] > 0 {
			why += "; a Group names all its members, so it goes to none of them"
		}
	}
	a.g.notes = append(a.g.notes, outcome.Issue{
		Severity: outcome.Information, Code: outcome.Incomplete,
		Text: fmt.Sprintf("organizeOutputBy=%s: resources that belong to no block were left out, for %s: %s", a.by, why, strings.Join(counts, ", ")),
	})
}

// bound is what of the work it is to write some of the lines.
func (a *arranging) bound(lines int64) int {
	return int(int64(a.work) * lines / max(a.blocks.count, 1))
}
