package export

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A making writes the files of a section whose lines are changed. They are cut at
// the sizes that they really have.
type making struct {
	g      *gathering
	limits Limits
	file   OutputFile // the one being written
	draft  Draft      // nil: none
	text   []byte
	at     position // in the extents
}

// fileName is what file n of a job is called beside its snapshot, counted from 1.
func fileName(n int) string { return "f" + strconv.Itoa(n) }

// draft makes files of a list and a type of what fill adds. at is where it begins in
// the extents that it goes through.
func (g *gathering) draft(list List, t fhir.Type, at position, l Limits, fill func(*making) error) (err error) {
	m := making{g: g, limits: l, file: OutputFile{List: list, Type: t, Made: true}, at: at}
	defer func() { // also after a panic, which ends this job alone
		if m.draft != nil {
			err = errors.Join(err, m.draft.Discard())
		}
	}()
	if err := fill(&m); err != nil {
		return err
	}
	return m.flush()
}

// make reads the rows of extents once, and writes of each that matches what was
// asked for.
func (g *gathering) make(ctx context.Context, s Snapshot, sec store.Section, extents []store.Extent, at position, since fhir.Instant, match func(line []byte) bool, l Limits) error {
	return g.draft(Output, sec.Type, at, l, func(m *making) error {
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
		m.text = g.projection.Append(m.text[:0], line, sec.Type)
		return m.add(m.text)
	}, func() {
		m.at = position{m.at.Extent + 1, 0, m.at.Lost + extents[m.at.Extent].Rows - m.at.Line}
		g.did(bodyCost)
	})
	if err != nil {
		return fmt.Errorf("write the files of %s: %w", sec.Type, err)
	}
	g.did(bodyCost * (g.s.Blocks(sec) - len(extents) + at.Extent))
	g.noteLost(sec, m.at.Lost)
	return nil
}

func (m *making) add(line []byte) (err error) {
	size := int64(len(line))
	if m.file.Rows > 0 && (m.file.Bytes+size > noLimit(m.limits.Bytes) || m.file.Rows+1 > noLimit(m.limits.Resources)) {
		if err := m.flush(); err != nil {
			return err
		}
		if err := m.reached(); err != nil {
			return err
		}
	}
	if m.draft == nil {
		if m.draft, err = m.g.s.Draft(fileName(len(m.g.r.Files) + 1)); err != nil {
			return err
		}
	}
	m.file.Rows++
	m.file.Bytes += size
	return m.draft.Add(line)
}

// reached says that a file is whole. The lists behind the output are made anew by
// whoever goes on.
func (m *making) reached() error {
	if m.file.List != Output {
		return nil
	}
	before := m.at
	before.Line-- // the line at hand is the first of the next file
	return m.g.reached(store.Section{Kind: store.Live, Type: m.file.Type}, &before)
}

// flush ends a file, if one was begun.
func (m *making) flush() error {
	if m.draft == nil {
		return nil
	}
	d := m.draft
	m.draft = nil
	if err := d.Keep(); err != nil {
		return err
	}
	m.file.CRC = new(d.CRC32())
	m.g.r.Files = append(m.g.r.Files, m.file)
	m.g.files = append(m.g.files, nil)
	m.file.Rows, m.file.Bytes = 0, 0
	return nil
}
