package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
)

// A Publisher carries the trail elsewhere, such as to a topic.
type Publisher interface {
	// Publish delivers lines. They come in their order, and again after an error or a
	// crash.
	Publish(ctx context.Context, lines []Published) error
}

// Published is a line on its way.
type Published struct {
	ID   string // of the AuditEvent
	Text []byte // the AuditEvent
}

// A cursor is where publishing goes on.
type cursor struct {
	File string `json:"file"`
	Size int64  `json:"size"` // what was published of it
}

const (
	cursorName = "published"
	maxPublish = 512 << 10 // bytes at once: half of what topics take if nobody has changed that
	longestGap = time.Minute
)

func readCursor(fs vfs.FS, dir string) (at cursor, err error) {
	text, err := disk.Read(fs, fs.PathJoin(dir, cursorName))
	if errors.Is(err, os.ErrNotExist) {
		return at, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &at)
	}
	return at, err
}

// Run hands what is on record to the Publisher until ctx ends, at its own pace: who
// records never waits for it. Where it stopped is kept, so that nothing is left out.
func (t *Trail) Run(ctx context.Context) error {
	if t == nil || t.o.Publisher == nil {
		<-ctx.Done()
		return nil
	}
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = longestGap
	var warned time.Time
	for ctx.Err() == nil {
		more, err := t.publish(ctx)
		t.mu.Lock()
		t.unpublished = err
		t.mu.Unlock()
		if more {
			pause.Reset()
			continue
		}
		news, wait := t.follow, (<-chan time.Time)(nil)
		if err != nil && ctx.Err() == nil {
			news, wait = nil, time.After(pause.NextBackOff()) // what is new does not make it go sooner
			if now := time.Now(); now.Sub(warned) >= time.Minute {
				warned = now
				t.o.Logger.Warn("the audit trail is not published: the files have it, and it is tried again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-news:
		case <-wait:
		}
	}
	return nil
}

// Flush hands over what is left once Run has ended. What cannot be delivered now is at
// the next start.
func (t *Trail) Flush(ctx context.Context) error {
	if t == nil || t.o.Publisher == nil {
		return nil
	}
	for {
		if more, err := t.publish(ctx); err != nil || !more {
			return err
		}
	}
}

// publish delivers some lines, and tells whether there were any.
func (t *Trail) publish(ctx context.Context) (more bool, err error) {
	at, err := readCursor(t.o.FS, t.o.Dir)
	if err != nil {
		return false, err
	}
	lines, next, err := t.since(at)
	if err != nil {
		return false, err
	}
	if len(lines) > 0 {
		if err := t.o.Publisher.Publish(ctx, lines); err != nil {
			return false, err
		}
	}
	if next == at {
		return false, nil
	}
	text, _ := json.Marshal(next) // it always can be
	return true, disk.Replace(t.o.FS, t.o.Dir, cursorName, text)
}

// since reads what is on record behind a cursor, some of it.
func (t *Trail) since(at cursor) (lines []Published, next cursor, err error) {
	t.disk.Lock()
	last, end := t.out.name, t.out.end
	t.disk.Unlock()
	list, err := files(t.o.FS, t.o.Dir)
	if err != nil || len(list) == 0 {
		return nil, at, err
	}
	i := slices.Index(list, at.File)
	if i < 0 { // none was published yet, or somebody has removed it
		i, at = 0, cursor{File: list[0]}
	}
	if at.File != last {
		end = 1 << 62
		if i+1 < len(list) {
			if size, ok := follows(t.o.FS, t.o.FS.PathJoin(t.o.Dir, list[i+1]), at.File); ok {
				end = size
			}
		}
	}
	lines, at.Size, err = t.read(at, end)
	if err == nil && len(lines) == 0 && at.File != last && i+1 < len(list) {
		at = cursor{File: list[i+1]}
	}
	return lines, at, err
}

// read reads lines of a file up to a size.
func (t *Trail) read(at cursor, end int64) (lines []Published, size int64, err error) {
	file, err := t.o.FS.Open(t.out.path(at.File))
	if err != nil {
		return nil, at.Size, err
	}
	defer file.Close()
	in := bufio.NewReaderSize(io.NewSectionReader(file, at.Size, end-at.Size), 1<<16)
	size = at.Size
	for bytes := 0; bytes < maxPublish; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break // half a line is not on record
		}
		if err != nil {
			return nil, at.Size, err
		}
		size += int64(len(line))
		bytes += len(line)
		if id, _, ok := split(line); ok {
			lines = append(lines, Published{id, line[:len(line)-1]})
		}
	}
	return lines, size, nil
}
