// Package demo tells a newcomer in seconds what Tidemark does, and proves it: a
// simulated hospital writes to an embedded broker, the real server exports, is
// killed and comes back, and in the end the hospital's own log says whether the
// chain of exports delivered every change exactly once.
//
// It knows how to run all of this on one machine, and refuses to know how the
// server works: it sees the command line, the configuration file and HTTP, as
// any user does. Every number that it shows was measured in this very run.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/cmd/tidemark/internal/proof"
)

// Options of a demo.
type Options struct {
	Once    bool   // end after the proof
	Seed    uint64 // of the hospital
	Rate    int    // changes a second that it writes while it is watched
	Keep    string // folder to leave everything in; "": a temporary one, removed in the end
	Listen  string // of the server; another port is taken where this one is not free
	Program string // tidemark itself
	Version string

	// Hospital is for tests that need a smaller one; the zero value is the
	// hospital of 100 patients. Its seed and partitions are the demo's own.
	Hospital hospital.Options

	// Tests are in more of a hurry, and several run at once.
	watch, settling time.Duration
	temp            string   // where the temporary folder is made
	env             []string // more of the server's environment
}

// ErrFailed says that the proof failed: the server did not keep its promise.
var ErrFailed = errors.New("the proof failed")

const (
	allowance = time.Second // watermark.allowance, which the proof relies on

	patience = time.Minute             // for a server that starts; it takes a second or two
	watch    = 2500 * time.Millisecond // how long we look on while the hospital writes
	burst    = 500                     // changes under way when the server is killed
	settling = 20 * time.Second        // for the last change to be exported
	farewell = 5 * time.Second         // for the server to end by itself
)

// Run plays the demo. Unless opts.Once it stays until ctx ends.
func Run(ctx context.Context, out io.Writer, opts Options) (err error) {
	d := &demo{opts: opts, screen: newScreen(out), rng: rand.New(rand.NewPCG(opts.Seed, 1))}
	if err := d.folder(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.tidy()) }()
	err = d.play(ctx)
	if err != nil && ctx.Err() != nil {
		if d.proved {
			return nil // Ctrl-C is how it ends
		}
		return errors.New("interrupted before the proof")
	}
	return err
}

// demo is one run.
type demo struct {
	opts   Options
	screen *screen
	rng    *rand.Rand
	dir    string

	source *source
	server *server
	ledger *proof.Ledger
	us     *receiver
	stop   func() error // pauses the hospital
	proved bool
	number int // of the export
}

func (d *demo) folder() (err error) {
	if d.opts.Keep == "" {
		d.dir, err = os.MkdirTemp(d.opts.temp, "tidemark-demo-")
		return err
	}
	d.dir, err = filepath.Abs(d.opts.Keep)
	if err == nil {
		err = os.MkdirAll(d.dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make the folder to keep: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err == nil && len(entries) > 0 {
		err = errors.New("it is not empty; a store and the topic it was read from belong together, so each demo needs a fresh folder")
	}
	if err != nil {
		return fmt.Errorf("use %s: %w", d.dir, err)
	}
	return nil
}

// tidy ends everything in the order in which it depends on one another.
func (d *demo) tidy() (err error) {
	if d.stop != nil {
		err = d.stop()
	}
	if d.server != nil {
		d.server.stop(farewell)
	}
	if d.source != nil {
		d.source.close()
	}
	if d.opts.Keep == "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

func (d *demo) play(ctx context.Context) error {
	place := "a temporary folder, removed on exit; --keep DIR"
	if d.opts.Keep != "" {
		place = "everything stays in " + d.dir
	}
	d.screen.line("tidemark %s demo   seed %d   (%s)", d.opts.Version, d.opts.Seed, place)
	for _, scene := range []func(context.Context) error{d.open, d.ingest, d.everything, d.increment, d.crash, d.proof} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	d.proved = true
	if d.opts.Once {
		return nil
	}
	return d.stay(ctx)
}

// used is how many bytes a folder's files have.
func used(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // a file may go while we look
		}
		if info, err := entry.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
