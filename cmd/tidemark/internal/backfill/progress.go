package backfill

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/store/disk"
)

// Progress is how far a load is, on the disk: of each file, up to where the brokers have
// it. It names files and nothing that is in them.
type Progress struct {
	path  string
	state state
}

type state struct {
	Topic string `json:"topic"`
	// TopicID is that of the brokers: a topic that was made anew has nothing of before.
	TopicID string                  `json:"topicId"`
	Files   map[string]extract.Mark `json:"files"` // by absolute path
}

// ReadProgress reads what an earlier run has left in a file, if it was of the same topic.
// again: it does not count.
func ReadProgress(path, topic, topicID string, again bool) (*Progress, error) {
	p := &Progress{path: path, state: state{Topic: topic, TopicID: topicID, Files: map[string]extract.Mark{}}}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && again {
		return p, nil
	}
	var s state
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("read how far an earlier run came: %w; remove %s, or give --again, and all is sent once more, which does no harm", err, path)
	}
	if s.Topic == topic && s.TopicID == topicID && s.Files != nil {
		p.state = s
	}
	return p, nil
}

func (p *Progress) save() error {
	text, err := json.MarshalIndent(p.state, "", "  ")
	if err != nil {
		return err
	}
	dir, name := filepath.Split(p.path)
	if err := disk.Replace(vfs.Default, dir, name, append(text, '\n')); err != nil {
		return fmt.Errorf("note how far the load is: %w; --state names another file for it", err)
	}
	return nil
}

// nameOf is by what a file is known from run to run.
func nameOf(f *extract.File) string {
	if path, err := filepath.Abs(f.Path); err == nil {
		return path
	}
	return f.Path
}

// A tracker learns what the brokers have and notes, now and then, up to where they have
// all. Records are acknowledged in any order: lines are taken together, and those together
// count once all of them and all before are acknowledged.
type tracker struct {
	p *Progress // nil: nothing is noted

	mu    sync.Mutex
	open  []*together // in order; the last one still takes lines
	err   error       // the first failure
	saved time.Time
}

// together are lines of one file, one behind the other.
type together struct {
	file string
	mark extract.Mark // behind the last of them
	left int          // records that are not acknowledged
	n    int          // lines
	full bool         // no more come
}

const (
	// linesTogether bounds what one entry of the list stands for: a thousand lines are sent
	// again at most that need not be, beside what was under way.
	linesTogether = 1000
	// savedEvery is how often what is known is noted. It costs a sync.
	savedEvery = time.Second
)

func newTracker(p *Progress) *tracker { return &tracker{p: p, saved: time.Now()} }

// mark is where to go on in a file.
func (t *tracker) mark(f *extract.File) extract.Mark {
	if t.p == nil {
		return extract.Mark{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.p.state.Files[nameOf(f)]
}

func (t *tracker) forget(f *extract.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.p.state.Files, nameOf(f))
}

// step enters a line, and returns what to call for each of its records once that is
// acknowledged, or cannot be.
func (t *tracker) step(f *extract.File, behind extract.Mark, records int) (done func(error)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := nameOf(f)
	if n := len(t.open); n == 0 || t.open[n-1].full || t.open[n-1].file != name {
		if n > 0 {
			t.open[n-1].full = true
		}
		t.open = append(t.open, &together{file: name})
	}
	last := t.open[len(t.open)-1]
	last.mark, last.left, last.n = behind, last.left+records, last.n+1
	last.full = last.n >= linesTogether
	return func(err error) { t.done(last, err) }
}

func (t *tracker) done(of *together, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of.left--; err != nil && t.err == nil {
		t.err = err
	}
	t.advance()
	if time.Since(t.saved) > savedEvery && t.err == nil {
		t.err = t.save()
	}
}

// loose takes what became of a record that is of no line.
func (t *tracker) loose(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = err
	}
}

// advance takes from the list what is acknowledged as a whole.
func (t *tracker) advance() {
	for len(t.open) > 0 && t.open[0].full && t.open[0].left == 0 && t.err == nil {
		t.note(t.open[0])
		t.open = t.open[1:]
	}
}

func (t *tracker) note(of *together) {
	if t.p != nil {
		t.p.state.Files[of.file] = of.mark
	}
}

func (t *tracker) save() error {
	t.saved = time.Now()
	if t.p == nil {
		return nil
	}
	return t.p.save()
}

func (t *tracker) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// finish notes what is acknowledged once no more lines come.
func (t *tracker) finish() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.open); n > 0 {
		t.open[n-1].full = true
	}
	t.advance()
	return t.save()
}
