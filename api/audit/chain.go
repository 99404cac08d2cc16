package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
)

// Each line has an id: SHA-256, in hexadecimal, of the id of the line before and of the
// line itself without its id. So a line that is changed, taken out or moved does not
// follow from the one before. The first line of a file (Begin) says which file it
// follows, how much of that counts, and the last id there; before the first of all there
// are zeros. Who may write the files can make a new chain of them: against that there is
// the copy in Kafka.
const (
	beforeID = `{"resourceType":"AuditEvent","id":"`
	afterID  = `",`
	idLen    = 2 * sha256.Size
)

var noID = strings.Repeat("0", idLen)

// link is the id of a line that follows another.
func link(before string, rest []byte) string {
	h := sha256.New()
	_, _ = io.WriteString(h, before) // a hash takes everything
	h.Write(rest)
	return hex.EncodeToString(h.Sum(nil))
}

// Files are called audit-DAY-NUMBER.ndjson; the numbers go up by one.
const (
	filePrefix = "audit-"
	fileSuffix = ".ndjson"
	dayFormat  = "20060102"
)

func fileName(day time.Time, number uint64) string {
	return fmt.Sprintf("%s%s-%06d%s", filePrefix, day.UTC().Format(dayFormat), number, fileSuffix)
}

func parseName(name string) (day time.Time, number uint64, ok bool) {
	middle, is := strings.CutPrefix(name, filePrefix)
	middle, ends := strings.CutSuffix(middle, fileSuffix)
	date, digits, parts := strings.Cut(middle, "-")
	day, err1 := time.Parse(dayFormat, date)
	number, err2 := strconv.ParseUint(digits, 10, 64)
	return day, number, is && ends && parts && err1 == nil && err2 == nil
}

// files lists the trail's, the oldest first.
func files(fs vfs.FS, dir string) ([]string, error) {
	all, err := fs.List(dir)
	list := slices.DeleteFunc(all, func(name string) bool { _, _, ok := parseName(name); return !ok })
	slices.SortFunc(list, func(a, b string) int {
		_, m, _ := parseName(a)
		_, n, _ := parseName(b)
		return int(int64(m) - int64(n))
	})
	return list, err
}

// A chain writes the files. Everything up to end is on record; behind it there may lie
// what could not be synced: the next line then begins another file, which says so. Until
// then a line may be read of what was refused since it could not be put on record; never
// is one missing of what was done.
type chain struct {
	o      *Options
	lock   io.Closer // nil: not opened
	file   vfs.File  // nil: another begins
	name   string    // "": there is none yet
	end    int64
	lastID string

	next   string // the file that begins, if its beginning could not be written
	amiss  string // what is wrong with the file before, for the one that follows to say
	headed time.Time
}

const lockName = "LOCK"

// open finds out where the chain ends.
func (c *chain) open(now time.Time) error {
	fs := c.o.FS
	if err := disk.MakeDir(fs, c.o.Dir); err != nil {
		return err
	}
	lock, err := fs.Lock(fs.PathJoin(c.o.Dir, lockName))
	if err != nil {
		return fmt.Errorf("%w, or it cannot be written: %w", ErrLocked, err)
	}
	if err := c.find(now); err != nil {
		return errors.Join(err, lock.Close())
	}
	c.lock = lock
	return nil
}

func (c *chain) find(now time.Time) error {
	fs := c.o.FS
	if err := disk.Tidy(fs, c.o.Dir); err != nil {
		return err
	}
	list, err := files(fs, c.o.Dir)
	if err != nil {
		return err
	}
	c.name, c.end, c.lastID = "", 0, noID
	for _, name := range slices.Backward(list) {
		whole, err := c.tail(name)
		if err != nil {
			return err
		}
		if c.end == 0 { // a crash has left it before its first line was there
			if err := fs.Remove(c.path(name)); err != nil {
				return err
			}
			continue
		}
		if c.name = name; !whole {
			break // the next line begins another
		}
		if c.file, err = fs.OpenReadWrite(c.path(name), vfs.WriteCategoryUnspecified); err != nil {
			return err
		}
		break
	}
	if err := c.compareHead(); err != nil {
		return err
	}
	c.expire(now)
	return disk.SyncDir(fs, c.o.Dir)
}

// tail reads a file to its end, and cuts off what a crash has torn. Of one that is not
// whole the chain is broken: it is left as it is, for Verify to tell.
func (c *chain) tail(name string) (whole bool, err error) {
	f := fileWalk{fs: c.o.FS, path: c.path(name), name: name}
	if err := f.walk(nil); err != nil {
		return false, err
	}
	c.end, c.lastID = f.end, f.lastID
	for _, b := range f.breaks {
		c.o.Logger.Warn("the audit trail was changed: tidemark audit verify tells more", "file", b.File, "line", b.Line, "what", b.Text)
	}
	if f.torn == 0 {
		return len(f.breaks) == 0, nil
	}
	c.o.Logger.Warn("what a crash has torn is cut off the audit trail: it was not on record", "file", name, "bytes", f.torn)
	if f.end == 0 {
		return false, nil // all of it
	}
	return len(f.breaks) == 0, c.cut(name, f.end)
}

// cut leaves the first bytes of a file.
func (c *chain) cut(name string, size int64) error {
	from, err := c.o.FS.Open(c.path(name))
	if err != nil {
		return err
	}
	defer from.Close()
	return disk.ReplaceBy(c.o.FS, c.o.Dir, name, func(to io.Writer) error {
		_, err := io.CopyN(to, from, size)
		return err
	})
}

func (c *chain) path(name string) string { return c.o.FS.PathJoin(c.o.Dir, name) }

// append puts lines on record, in one write and one sync.
func (c *chain) append(now time.Time, lines [][]byte) error {
	if c.lock == nil {
		if err := c.open(now); err != nil {
			return err
		}
	}
	if c.file != nil && c.full(now) {
		c.head(now)
		if err := c.abandon(); err != nil {
			return err
		}
	}
	if c.file == nil {
		return c.begin(now, lines)
	}
	buf, id := c.encode(nil, c.lastID, lines)
	_, err := c.file.WriteAt(buf, c.end)
	if err = errors.Join(err, c.file.Sync()); err != nil {
		return errors.Join(err, c.abandon())
	}
	c.end, c.lastID = c.end+int64(len(buf)), id
	if now.Sub(c.headed) >= headEvery {
		c.head(now)
	}
	return nil
}

// abandon lets go of a file. All of it that counts is synced.
func (c *chain) abandon() error {
	file := c.file
	c.file = nil
	return file.Close()
}

func (c *chain) full(now time.Time) bool {
	day, _, _ := parseName(c.name)
	return c.end >= c.o.MaxSize || day.Format(dayFormat) != now.UTC().Format(dayFormat)
}

// begin writes the first lines of another file. If that fails, the next attempt begins
// the same file again.
func (c *chain) begin(now time.Time, lines [][]byte) error {
	if c.next == "" {
		_, number, _ := parseName(c.name)
		c.next = fileName(now, number+1)
	}
	first := Event{Time: now, Action: Begin, Parameters: []Parameter{
		{"follows", c.name}, {"size", strconv.FormatInt(c.end, 10)}, {"id", c.lastID},
	}}
	if c.amiss != "" {
		first.Outcome, first.Reason = Failed, c.amiss
	}
	buf, id := c.encode(nil, c.lastID, append([][]byte{first.encode(c.o.Observer)}, lines...))
	size, fs := int64(len(buf)), c.o.FS
	file, err := create(fs, c.path(c.next), buf)
	if err == nil {
		err = disk.SyncDir(fs, c.o.Dir)
	}
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		_ = fs.Remove(c.path(c.next)) // else the next attempt replaces it, or find does
		return err
	}
	c.file, c.name, c.next, c.amiss, c.end, c.lastID = file, c.next, "", "", size, id
	c.head(now)
	c.expire(now)
	return nil
}

// create makes a file that can be written on, with its first bytes.
func create(fs vfs.FS, path string, first []byte) (vfs.File, error) {
	empty, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	if err := empty.Close(); err != nil {
		return nil, err
	}
	file, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	_, err = file.WriteAt(first, 0)
	return file, errors.Join(err, file.Sync())
}

// encode chains lines to an id.
func (c *chain) encode(dst []byte, id string, lines [][]byte) ([]byte, string) {
	for _, rest := range lines {
		id = link(id, rest)
		dst = append(append(append(dst, beforeID...), id...), afterID...)
		dst = append(append(dst, rest...), '\n')
	}
	return dst, id
}

func (c *chain) close() error {
	if c.lock == nil {
		return nil
	}
	var err error
	if c.file != nil {
		c.head(time.Now())
		err = c.abandon()
	}
	lock := c.lock
	c.lock = nil
	return errors.Join(err, lock.Close())
}

// A head is how far the chain once was on record: that lines at its end are missing
// shows by it alone. It is exact after Close, and else a minute old.
type head struct {
	File string `json:"file"`
	Size int64  `json:"size"`
	ID   string `json:"id"`
}

const (
	headName  = "head"
	headEvery = time.Minute
)

// head writes it down. The lines are on record with it or without.
func (c *chain) head(now time.Time) {
	c.headed = now
	text, _ := json.Marshal(head{c.name, c.end, c.lastID}) // it always can be
	if err := disk.Replace(c.o.FS, c.o.Dir, headName, text); err != nil {
		c.o.Logger.Warn("the end of the audit trail was not noted", "error", err)
	}
}

func readHead(fs vfs.FS, dir string) (h head, err error) {
	text, err := disk.Read(fs, fs.PathJoin(dir, headName))
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	return h, err
}

// compareHead looks whether all is there that was once on record. If not, another file
// begins by saying so: the head, which tells it, does not last.
func (c *chain) compareHead() error {
	h, err := readHead(c.o.FS, c.o.Dir)
	_, of, _ := parseName(h.File)
	_, last, _ := parseName(c.name)
	switch {
	case err != nil:
		c.amiss = "the file head could not be read: whether lines are missing at the end is not known"
	case of > last:
		c.amiss = "the file " + h.File + " is missing"
	case of == last && h.Size > c.end:
		c.amiss = fmt.Sprintf("lines at the end of %s are missing: %d bytes of it were on record, there are %d", c.name, h.Size, c.end)
	default:
		return nil
	}
	c.o.Logger.Warn("the audit trail was changed: tidemark audit verify tells more", "file", c.name, "what", c.amiss)
	if c.file == nil {
		return nil
	}
	return c.abandon()
}

// expire removes files whose last line is older than what is kept, and which the
// Publisher has had.
func (c *chain) expire(now time.Time) {
	list, err := files(c.o.FS, c.o.Dir)
	if err != nil || c.o.Keep == 0 {
		return // the next time
	}
	published := uint64(1) << 63
	if c.o.Publisher != nil {
		at, err := readCursor(c.o.FS, c.o.Dir)
		if err != nil {
			return
		}
		_, published, _ = parseName(at.File)
	}
	for i := 0; i+1 < len(list); i++ {
		_, number, _ := parseName(list[i])
		until, _, _ := parseName(list[i+1]) // its last line is of that day at the latest
		if now.Sub(until.AddDate(0, 0, 1)) < c.o.Keep || number >= published {
			return
		}
		if err := c.o.FS.Remove(c.path(list[i])); err != nil {
			c.o.Logger.Warn("an audit file that is too old could not be removed", "file", list[i], "error", err)
			return
		}
	}
}
