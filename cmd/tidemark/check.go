package main

import (
	"fmt"
	"io"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"

	"tidemark/store"
)

// storeFlags tell a command which store is meant.
type storeFlags struct {
	configFlags `embed:""`

	Dir string `arg:"" optional:"" type:"path" help:"The store's directory. Default: store.path of the configuration."`
}

// dir is the directory to work on. A directory that is named needs no
// configuration.
func (f *storeFlags) dir() (string, error) {
	if f.Dir != "" {
		return f.Dir, nil
	}
	c, err := f.load()
	if err != nil {
		return "", err
	}
	return c.Store.Path, nil
}

type checkCmd struct {
	storeFlags `embed:""`
}

// Help is shown by --help.
func (*checkCmd) Help() string {
	return `Reads the index and every segment and proves the numbered invariants of store/FORMAT.md. It changes
nothing. No process may use the store meanwhile: stop the server, or check a copy of the directory.

Ends with 0 if all hold, else with 1 and one line per fault: the invariant, the file and the place.

Next, if the index is at fault: tidemark reindex. If a segment is: restore the directory from a backup, or let Tidemark read
the topics again into a new one.`
}

// Run checks a store.
func (c *checkCmd) Run(out io.Writer) error {
	dir, err := c.dir()
	if err != nil {
		return err
	}
	report, err := store.CheckDir(dir, store.Options{Logger: coldLog()}, progress("checking"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: every invariant holds: %s segments, %s blocks, %s rows of which %s live\n", dir,
		humanize.Comma(int64(report.Segments)), humanize.Comma(int64(report.Blocks)), humanize.Comma(report.Rows), humanize.Comma(report.Live))
	return err
}

// progress shows how far a long reading is, to a person only.
func progress(what string) func(done, total int) {
	if !isTerminal(os.Stderr) {
		return nil
	}
	var bar *progressbar.ProgressBar
	return func(done, total int) {
		if bar == nil {
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(os.Stderr),
				progressbar.OptionSetDescription(what), progressbar.OptionClearOnFinish())
		}
		_ = bar.Set(done) // decoration
	}
}
