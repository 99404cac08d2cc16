package extract

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"tidemark/cmd/tidemark/internal/bulkclient"
	"tidemark/cmd/tidemark/internal/manifest"
	"tidemark/store/fhir"
)

// A File is a file with lines.
type File struct {
	Name string // for people
	Path string
	Size int64 // on disk, bytes

	below string         // its path in the folder that was given
	lists *manifest.File // what the manifest says of it, nil if nothing
	gone  bool           // the manifest says that it tells deletions
	alike *alike         // those of its type that the manifest lists and does not name, nil if it is none
	ended bool           // it was read to its end,
	full  int64          // and has so many lines that are not blank
}

// alike are files that are known by their type alone: which of the manifest's they are nobody
// can tell, how many lines they have together the manifest says.
type alike struct {
	files   []*File
	count   int64
	unknown bool // the manifest does not say how many
}

// short tells, once all were read, whether they have another number of lines.
func (a *alike) short() bool {
	sum := int64(0)
	for _, f := range a.files {
		if !f.ended {
			return false
		}
		sum += f.full
	}
	return !a.unknown && sum != a.count
}

// Deletions tells whether a file is to hold Bundles of deletions: the manifest lists it as
// such, it lies in a folder "deleted", as clients make it, or is called so.
func (f *File) Deletions() bool {
	name := f.below
	if name == "" {
		name = filepath.Base(f.Path)
	}
	return f.gone || f.within("deleted") || strings.Contains(strings.ToLower(path.Base(filepath.ToSlash(name))), "deleted")
}

// A Mark is a place in a file, between two lines.
type Mark struct {
	Lines int64 `json:"lines"` // before it
	// Digest is that of all before it, uncompressed. What has changed there is noticed,
	// what comes behind may be mended.
	Digest uint64 `json:"digest"`
}

// An Item is what a line says.
type Item struct {
	Line int64 // its number, from 1
	// Fault says why it says nothing, in words of our own; "": it does.
	Fault    string
	Resource fhir.Resource
	Deleted  []fhir.Key // a Bundle of deletions; there is no Resource then
	Behind   Mark       // the place behind it
}

// ErrChanged says that what lies before a mark is no longer what it was.
var ErrChanged = errors.New("has changed before the place that was reached in it")

// ErrShort says that a file has not the lines that the manifest lists.
var ErrShort = errors.New("has not as many lines as the manifest says: download it again")

// errShortTogether says it of files that are known by their type alone.
var errShortTogether = errors.New("and what else is called by this type has not as many lines as the manifest says: download all of it again, and see that nothing of another export lies there")

// MaxLine bounds memory against files that are no NDJSON, bytes.
const MaxLine = 256 << 20

// reasons of faults that are not the scanner's.
const (
	faultPart    = "resource is only a part (tag SUBSETTED) and must not replace the whole"
	faultLong    = "longer than 256 MiB"
	faultDeleted = "is no transaction Bundle of nothing but deletions, as this file is to hold"
)

// Each calls fn for each line behind a mark that is not blank, in order. An item is valid
// until the next. read is told how many bytes of the file were read on; nil: nobody is.
func (f *File) Each(ctx context.Context, after Mark, read func(n int), fn func(*Item) error) error {
	disk, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer disk.Close()
	text, done, err := inflate(&metered{ctx, disk, read})
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, unreadable(err))
	}
	defer done()
	r := reader{file: f, lines: bufio.NewReaderSize(text, 256<<10), digest: xxhash.New()}
	switch err := r.each(after, fn); {
	case errors.Is(err, errLine):
		return errors.Unwrap(err)
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrChanged), errors.Is(err, ErrShort), errors.Is(err, errShortTogether):
		return fmt.Errorf("%s %w", f.Name, err)
	case err != nil:
		return fmt.Errorf("%s, behind line %d: %w", f.Name, r.at.Lines, unreadable(err))
	}
	return nil
}

// errLine wraps what fn returned, so that it is told from what the file returns.
var errLine = errors.New("fn")

type lineError struct{ error }

func (lineError) Is(target error) bool { return target == errLine }
func (e lineError) Unwrap() error      { return e.error }

type reader struct {
	file    *File
	lines   *bufio.Reader
	long    []byte
	digest  *xxhash.Digest
	scanner fhir.Scanner
	at      Mark
	full    int64 // lines that are not blank
}

func (r *reader) each(after Mark, fn func(*Item) error) error {
	for {
		line, err := r.next()
		if err != nil && !errors.Is(err, io.EOF) { // what came of the line is none of its faults
			return err
		}
		if len(line) > 0 {
			switch {
			case r.at.Lines > after.Lines:
				if fnErr := r.line(line, fn); fnErr != nil {
					return lineError{fnErr}
				}
			case r.at == after:
			case r.at.Lines == after.Lines:
				return ErrChanged
			}
		}
		if errors.Is(err, io.EOF) {
			return r.ends(after)
		}
	}
}

// ends looks whether the file was as long as it should be.
func (r *reader) ends(after Mark) error {
	if r.at.Lines < after.Lines {
		return ErrChanged
	}
	if l := r.file.lists; l != nil && l.Count != nil && *l.Count != r.full {
		return ErrShort
	}
	r.file.ended, r.file.full = true, r.full
	if r.file.alike != nil && r.file.alike.short() {
		return errShortTogether
	}
	return nil
}

// next reads a line with its newline. One that is too long is passed over; what is
// returned of it is its beginning.
func (r *reader) next() ([]byte, error) {
	line, err := r.lines.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.nextLong(line)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	r.digest.Write(line)
	if len(line) > 0 {
		r.at.Lines++
		r.at.Digest = r.digest.Sum64()
	}
	if len(bytes.TrimSpace(line)) > 0 {
		r.full++
	}
	return line, err
}

func (r *reader) nextLong(line []byte) ([]byte, error) {
	r.long = append(r.long[:0], line...)
	err := bufio.ErrBufferFull
	for errors.Is(err, bufio.ErrBufferFull) {
		var more []byte
		more, err = r.lines.ReadSlice('\n')
		if len(r.long) <= MaxLine {
			r.long = append(r.long, more...)
		}
	}
	return r.long, err
}

var bom = []byte("\ufeff")

func (r *reader) line(line []byte, fn func(*Item) error) error {
	if r.at.Lines == 1 {
		line = bytes.TrimPrefix(line, bom)
	}
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return nil
	}
	item := Item{Line: r.at.Lines, Behind: r.at}
	r.understand(line, &item)
	return fn(&item)
}

func (r *reader) understand(line []byte, item *Item) {
	if len(line) > MaxLine {
		item.Fault = faultLong
		return
	}
	if r.file.Deletions() { // elsewhere a Bundle is a resource, whatever it would do
		if item.Deleted = deletions(line); item.Deleted == nil {
			item.Fault = faultDeleted
		}
		return
	}
	res, err := r.scanner.Scan(line)
	switch {
	case err != nil:
		item.Fault = err.Error() // the scanner's errors are ours and hold nothing of the line
	case res.Subsetted:
		item.Fault = faultPart
	default:
		item.Resource = res
	}
}

// deletions are whose deletions a line tells, nil if it is something else.
func deletions(line []byte) (keys []fhir.Key) {
	names, err := bulkclient.Deletions(line)
	if err != nil {
		return nil
	}
	for _, name := range names {
		key, err := fhir.ParseKey(name)
		if err != nil {
			return nil
		}
		keys = append(keys, key)
	}
	return keys
}

// inflate reads through compression if there is any, whatever the file is called.
func inflate(r io.Reader) (text io.Reader, done func(), err error) {
	disk := bufio.NewReaderSize(r, 256<<10)
	magic, _ := disk.Peek(4) // an error comes again
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		zip, err := gzip.NewReader(disk)
		return zip, func() {}, err
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// Windows of more than 128 MiB are for those who ask for them (zstd --long=31).
		zip, err := zstd.NewReader(disk, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return zip, zip.Close, nil
	}
	return disk, func() {}, nil
}

// unreadable says what it means that a file cannot be read.
func unreadable(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		err = at.Err // its name is told anyway
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("its compressed data end too early: it was cut short, copy it again")
	}
	return fmt.Errorf("it cannot be read: %w", err)
}

// metered is a reader that tells how far it is, and ends with its context.
type metered struct {
	ctx  context.Context
	r    io.Reader
	tell func(int)
}

func (r *metered) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	if r.tell != nil {
		r.tell(n)
	}
	return n, err
}
