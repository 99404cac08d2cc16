package verify

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"tidemark/cmd/tidemark/internal/manifest"
)

// maxLine bounds memory against files that are no NDJSON. Kafka's records, and
// so Tidemark's lines, are some megabytes at most.
const maxLine = 256 << 20

// A file is what one pass over a downloaded file has found.
type file struct {
	name string // in the folder, for people
	base string // the last part of that, without what compression adds
	path string
	disk int64 // bytes on disk
	max  int   // the longest line that is read

	asIs manifest.Tally // as it lies there, uncompressed
	tidy manifest.Tally // as it would be in good form: no BOM, no \r, no blank lines, a newline at the end

	kind      string            // what most lines are
	kinds     map[string]*int64 // lines by resource type; "": none
	deletions int64             // lines that are Bundles of deletions
	lines     int64             // also blank ones

	bom      bool
	returns  int64 // lines that end with \r\n
	open     bool  // the last line has no newline
	blank    places
	broken   places // lines that are not one JSON object
	binary   places // those of them that are not UTF-8
	nameless int64  // resources without id

	told map[int64]bool // lines that were told to stand twice
	err  error          // why it could not be read to its end
	keys keys
	gone keys // hashes of the resources that deletions name
}

// places are lines by their numbers, of which the first few are kept.
type places struct {
	n     int64
	first []int64
}

func (p *places) add(line int64) {
	if p.n++; len(p.first) < 5 {
		p.first = append(p.first, line)
	}
}

// mostly is what most lines are.
func (f *file) mostly() string {
	if f.deletions > 0 && 2*f.deletions >= f.asIs.Lines {
		return deletion
	}
	kind, most := "", int64(0)
	for k, n := range f.kinds {
		if *n > most || *n == most && k < kind {
			kind, most = k, *n
		}
	}
	return kind
}

// deletion is the kind of files that list deletions.
const deletion = "deletion"

// read reads all files of a folder that may belong to an export, several at a
// time. Memory is bounded by the longest line, and grows by the lines' keys.
func read(ctx context.Context, entries []*entry, opts Options) ([]*file, error) {
	files, total, err := find(entries, opts)
	if err != nil {
		return nil, err
	}
	// The largest first: the last one to end should be a small one.
	queue := slices.Clone(files)
	slices.SortStableFunc(queue, func(a, b *file) int { return cmp.Compare(b.disk, a.disk) })
	m := &meter{total: total, tell: opts.Progress}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(runtime.GOMAXPROCS(0))
	seed := maphash.MakeSeed()
	for _, f := range queue {
		work.Go(func() error {
			c := counter{file: f, reader: newReader(), seed: seed, keep: !opts.FilesOnly}
			err := f.each(ctx, m, c.line)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f.err, f.kind = err, f.mostly()
			return nil
		})
	}
	return files, work.Wait()
}

// find finds the files, and how many bytes they have: NDJSON by its name, and
// whatever is called as a URL ends.
func find(entries []*entry, opts Options) (files []*file, total int64, err error) {
	called := map[string]bool{}
	for _, e := range entries {
		called[e.name] = true
	}
	root, err := filepath.EvalSymlinks(opts.Dir)
	if err != nil {
		return nil, 0, fmt.Errorf("look for files: %w", err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("look for files: %w", err)
		}
		base := plainName(path)
		if !called[base] && !strings.HasSuffix(strings.ToLower(base), ".ndjson") {
			return nil
		}
		info, err := os.Stat(path) // of what a link leads to
		if err != nil {
			return fmt.Errorf("look for files: %w", err)
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		files = append(files, &file{
			name: quoted(filepath.ToSlash(name)), base: base, path: path,
			disk: info.Size(), max: cmp.Or(opts.maxLine, maxLine), kinds: map[string]*int64{},
		})
		total += info.Size()
		return nil
	})
	return files, total, err
}

// plainName is a file's name without what compression adds to it.
func plainName(path string) string {
	base := filepath.Base(path)
	if strings.EqualFold(filepath.Ext(base), ".gz") {
		return base[:len(base)-len(".gz")]
	}
	return base
}

// each calls fn for each line, with its newline if it has one. A line is valid
// until the next one.
func (f *file) each(ctx context.Context, m *meter, fn func([]byte) error) (err error) {
	disk, err := os.Open(f.path)
	if err != nil {
		return unreadable(err)
	}
	defer disk.Close()
	text, err := inflate(&metered{ctx: ctx, r: disk, m: m})
	if err != nil {
		return err
	}
	lines := bufio.NewReaderSize(text, 256<<10)
	var long []byte
	for n := int64(1); ; n++ {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			long, err = readLong(lines, append(long[:0], line...), f.max)
			line = long
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("line %d is longer than %d MiB: it was not read any further", n, f.max>>20)
		}
		if len(line) > 0 {
			if err := fn(line); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unreadable(err)
		}
	}
}

// readLong reads on in a line of which the buffer holds no more than it has
// given, up to a limit.
func readLong(lines *bufio.Reader, line []byte, limit int) ([]byte, error) {
	err := bufio.ErrBufferFull
	for errors.Is(err, bufio.ErrBufferFull) && len(line) < limit {
		var more []byte
		more, err = lines.ReadSlice('\n')
		line = append(line, more...)
	}
	return line, err
}

// inflate reads through compression if there is any, whatever the file is
// called. Several gzip members count as one.
func inflate(r io.Reader) (io.Reader, error) {
	disk := bufio.NewReaderSize(r, 256<<10)
	if magic, err := disk.Peek(2); err != nil || !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return disk, nil // whatever the error is, it comes again
	}
	zip, err := gzip.NewReader(disk)
	if errors.Is(err, gzip.ErrHeader) {
		return nil, errors.New("its gzip data are damaged")
	}
	if err != nil {
		return nil, unreadable(err)
	}
	return zip, nil
}

// unreadable says what it means that a file cannot be read.
func unreadable(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("its gzip data end too early: it was cut short")
	case errors.Is(err, gzip.ErrChecksum):
		return errors.New("its gzip data are damaged: their own checksum does not hold")
	case errors.Is(err, gzip.ErrHeader):
		return errors.New("what follows its gzip data is no gzip")
	}
	if _, ok := errors.AsType[flate.CorruptInputError](err); ok {
		return errors.New("its gzip data are damaged")
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err // its name is told anyway
	}
	return fmt.Errorf("it cannot be read: %w", err)
}

// A meter adds up what was read, for all files together.
type meter struct {
	mu    sync.Mutex
	done  int64
	told  int64
	total int64
	tell  func(done, total int)
}

func (m *meter) add(n int) {
	if m == nil || m.tell == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done += int64(n); m.done-m.told >= 8<<20 || m.done == m.total {
		m.told = m.done
		m.tell(int(m.done), int(m.total))
	}
}

// metered is a reader that tells a meter, and ends with its context.
type metered struct {
	ctx context.Context
	r   io.Reader
	m   *meter
}

func (r *metered) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.m.add(n)
	return n, err
}
