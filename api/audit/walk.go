package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Line is an Event on record.
type Line struct {
	File   string
	Number int // in the file, from 1
	Text   []byte
	Event  *Event
}

// A Break is a place where the trail is not what was written.
type Break struct {
	File string
	Line int // 0: the file as a whole
	Text string
}

func (b Break) String() string {
	if b.Line == 0 {
		return b.File + ": " + b.Text
	}
	return fmt.Sprintf("%s:%d: %s", b.File, b.Line, b.Text)
}

// A Report is what a walk has found.
type Report struct {
	Files, Lines int
	Breaks       []Break
	Notes        []Break // what is no fault, but good to know
}

// Walk calls fn for all that is on record in a folder, the oldest first, and proves the
// chain from the oldest file that is kept. It reads beside who writes. fn may be nil, and
// may not keep the text of a line; an error of it ends the walk.
func Walk(fs vfs.FS, dir string, fn func(*Line) error) (Report, error) {
	var r Report
	list, err := files(fs, dir)
	if err != nil {
		return r, err
	}
	h, err := readHead(fs, dir)
	if err != nil {
		r.Breaks = append(r.Breaks, Break{headName, 0, "it cannot be read: whether lines are missing at the end is not known"})
	}
	before, reached := "", h.File == ""
	for i, name := range list {
		f := fileWalk{fs: fs, path: fs.PathJoin(dir, name), name: name, before: before, head: h}
		if i+1 < len(list) {
			f.counts, f.follows = follows(fs, fs.PathJoin(dir, list[i+1]), name)
		}
		if err := f.walk(fn); err != nil {
			return r, fmt.Errorf("read %s: %w", f.path, err)
		}
		r.Files, r.Lines, r.Breaks = r.Files+1, r.Lines+f.lines, append(r.Breaks, f.breaks...)
		if before = f.lastID; i+1 < len(list) {
			r.between(&f, list[i+1])
		} else if f.torn > 0 {
			r.Notes = append(r.Notes, Break{name, f.lines + 1, "it ends in the middle of a line: that is being written, or a crash has torn it, and it is not on record"})
		}
		reached = reached || f.reached
	}
	if !reached {
		r.Breaks = append(r.Breaks, Break{h.File, 0, fmt.Sprintf("lines at its end are missing or were changed: %d bytes of it were on record", h.Size)})
	}
	return r, nil
}

// between says what is wrong at the end of a file that another follows.
func (r *Report) between(f *fileWalk, next string) {
	switch {
	case f.torn > 0 && f.follows && f.end == f.counts:
		r.Notes = append(r.Notes, Break{f.name, f.lines + 1, fmt.Sprintf("%d bytes at its end could not be synced: they are not on record", f.torn)})
	case f.torn > 0:
		r.Breaks = append(r.Breaks, Break{f.name, f.lines + 1, "it ends in the middle of a line"})
	case f.follows && f.end < f.counts:
		r.Breaks = append(r.Breaks, Break{f.name, f.lines, fmt.Sprintf("lines at its end are missing: %s follows %d bytes of it", next, f.counts)})
	}
}

// follows reads in the beginning of a file how much counts of the one before.
func follows(fs vfs.FS, path, before string) (size int64, ok bool) {
	f, err := fs.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadBytes('\n')
	if err != nil {
		return 0, false
	}
	e, err := decode(line)
	if err != nil || e.Action != Begin {
		return 0, false
	}
	size, err = strconv.ParseInt(e.parameter("size"), 10, 64)
	return size, err == nil && e.parameter("follows") == before
}

// parameter is the first value of a name.
func (e *Event) parameter(name string) string {
	for _, p := range e.Parameters {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// A fileWalk goes through a file, and proves its chain.
type fileWalk struct {
	fs         vfs.FS
	path, name string
	before     string // the last id of the file before; "": not known
	head       head
	counts     int64 // how much of it is on record, if the file that follows says so
	follows    bool

	lines   int
	end     int64 // behind the last whole line that counts
	torn    int64 // bytes behind it
	lastID  string
	breaks  []Break
	reached bool // the head
}

func (f *fileWalk) walk(fn func(*Line) error) error {
	file, err := f.fs.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 1<<20)
	for !f.follows || f.end < f.counts {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) || bytes.IndexByte(line, 0) >= 0 { // a hole is what never came to the disk
			f.torn = int64(len(line))
			break
		}
		if err != nil {
			return err
		}
		f.lines++
		f.end += int64(len(line))
		if err := f.take(line, fn); err != nil {
			return err
		}
	}
	rest, err := io.Copy(io.Discard, in)
	f.torn += rest
	return err
}

// take proves that a line follows from the one before, and hands it on.
func (f *fileWalk) take(line []byte, fn func(*Line) error) error {
	id, rest, ok := split(line)
	var e *Event
	if ok {
		var err error
		if e, err = decode(line); err != nil {
			ok = false
		}
	}
	if !ok {
		f.lastID = id // "": what follows from it is not known
		f.fault("it is no line of this trail")
		return nil
	}
	f.prove(id, rest, e)
	f.lastID = id
	f.reached = f.reached || f.name == f.head.File && f.end == f.head.Size && id == f.head.ID
	if fn == nil {
		return nil
	}
	return fn(&Line{File: f.name, Number: f.lines, Text: bytes.TrimSuffix(line, []byte("\n")), Event: e})
}

func (f *fileWalk) prove(id string, rest []byte, e *Event) {
	if f.lines > 1 {
		if f.lastID != "" && link(f.lastID, rest) != id {
			f.fault("it does not follow from the line before: it was changed, or lines were removed, added or moved")
		}
		return
	}
	switch before := e.parameter("id"); {
	case e.Action != Begin:
		f.fault("the beginning of the file is missing")
	case link(before, rest) != id:
		f.fault("it was changed")
	case e.Outcome == Failed: // said by Open
		f.fault(e.Reason)
	case f.before != "" && before != f.before:
		f.fault("it does not follow from the end of the file before: lines there, or files between, were changed or removed")
	}
}

func (f *fileWalk) fault(text string) { f.breaks = append(f.breaks, Break{f.name, f.lines, text}) }

// split takes a line apart: its id, and what that is made of.
func split(line []byte) (id string, rest []byte, ok bool) {
	line, begins := bytes.CutPrefix(line, []byte(beforeID))
	if !begins || len(line) < idLen+len(afterID) {
		return "", nil, false
	}
	rest, ok = bytes.CutPrefix(line[idLen:], []byte(afterID))
	return string(line[:idLen]), bytes.TrimSuffix(rest, []byte("\n")), ok
}
