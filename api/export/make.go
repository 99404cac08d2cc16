package export

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A writing writes files of a job one after the other. Who says where one ends is
// whoever has it.
type writing struct {
	g      *gathering
	limits Limits
	file   OutputFile // the one being written
	draft  Draft      // nil: none
}

// full tells whether the file has no room for some lines, bytes together.
func (w *writing) full(bytes, lines int64) bool {
	return w.file.Bytes+bytes > noLimit(w.limits.Bytes) || w.file.Rows+lines > noLimit(w.limits.Resources)
}

// put adds a line, to a new file if none was begun.
func (w *writing) put(line []byte) (err error) {
	if w.draft == nil {
		if w.draft, err = w.g.s.Draft(w.g.fileName(len(w.g.r.Files) + 1)); err != nil {
			return err
		}
	}
	w.file.Rows++
	w.file.Bytes += int64(len(line))
	return w.draft.Add(line)
}

// flush ends a file, if one was begun.
func (w *writing) flush() error {
	if w.draft == nil {
		return nil
	}
	d := w.draft
	w.draft = nil
	if err := d.Keep(); err != nil {
		return err
	}
	w.file.CRC = new(d.CRC32())
	w.g.r.Files, w.g.files = append(w.g.r.Files, w.file), append(w.g.files, nil)
	w.file = OutputFile{List: w.file.List, Type: w.file.Type, Made: true}
	return nil
}

// discard removes a file that was not ended.
func (w *writing) discard() error {
	if w.draft == nil {
		return nil
	}
	return w.draft.Discard()
}

// A making writes the files of a section whose lines are changed. They are cut at
// the sizes that they really have.
type making struct {
	writing

	text  []byte
	at    position // in the extents
	leads bool     // attachments lead to where they are changed
}

// fileName is what file n of a job is called beside its snapshot, counted from 1.
func fileName(n int) string { return "f" + strconv.Itoa(n) }

func (g *gathering) fileName(n int) string { return fileName(g.before + n) }

// draft makes files of a list and a type of what fill adds. at is where it begins in
// the extents that it goes through.
func (g *gathering) draft(list List, t fhir.Type, at position, l Limits, fill func(*making) error) (err error) {
	m := making{writing: writing{g: g, limits: l, file: OutputFile{List: list, Type: t, Made: true}}, at: at}
	defer func() { err = errors.Join(err, m.discard()) }() // also after a panic, which ends this job alone
	if err := fill(&m); err != nil {
		return err
	}
	return m.flush()
}

// make reads the rows of extents once, and writes of each that matches what was
// asked for.
func (g *gathering) make(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, at position, since fhir.Instant, match func(line []byte) bool, leads bool, l Limits) error {
	return g.draft(Output, sec.Type, at, l, func(m *making) error {
		if m.leads = leads; leads {
			g.following.begin(at.Strays)
		}
		return g.project(ctx, s, sec, extents, since, match, m)
	})
}

func (g *gathering) project(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, since fhir.Instant, match func(line []byte) bool, m *making) error {
	at := m.at
	skip := at.Line // what an earlier process has done of the first extent
	m.at.Line = 0
	_, err := s.Lines(ctx, since, g.r.Upto, extents[at.Extent:], func(line []byte) error {
		if m.at.Line++; m.at.Extent == at.Extent && m.at.Line <= skip {
			return nil
		}
		if match != nil && !match(line) {
			return nil
		}
		return m.shape(line, sec.Type)
	}, func() {
		m.at = position{Extent: m.at.Extent + 1, Lost: m.at.Lost + extents[m.at.Extent].Rows - m.at.Line}
		g.did(bodyCost)
	})
	if err != nil {
		return fmt.Errorf("write the files of %s: %w", sec.Type, err)
	}
	g.did(bodyCost * (g.s.Blocks(sec) - len(extents) + at.Extent))
	g.noteLost(sec, m.at.Lost)
	if m.leads {
		g.noteStrays(sec.Type, g.following.strays)
	}
	return nil
}

// shape adds a line as it is sent.
func (m *making) shape(line []byte, t fhir.Type) (err error) {
	if line, err = m.g.shape(line, t, m.leads); err != nil {
		return err
	}
	if err := m.add(line); err != nil {
		return err
	}
	if m.leads {
		m.g.following.followed()
	}
	return nil
}

func (m *making) add(line []byte) error {
	if m.file.Rows > 0 && m.full(int64(len(line)), 1) {
		if err := m.flush(); err != nil {
			return err
		}
		if err := m.reached(); err != nil {
			return err
		}
	}
	return m.put(line)
}

// reached says that a file is whole. The lists behind the output are made anew by
// whoever goes on.
func (m *making) reached() error {
	if m.file.List != Output {
		return nil
	}
	before := m.at
	before.Line-- // the line at hand is the first of the next file
	if m.leads {
		before.Strays = m.g.following.strays.clone()
	}
	return m.g.reached(m.file.Type, &before)
}
