package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"

	"tidemark/store"
	"tidemark/store/check"
)

// storeFlags tell a command which store is meant.
type storeFlags struct {
	configFlags `embed:""`

	Dir string `arg:"" optional:"" type:"path" help:"The store's directory. Default: store.path of the configuration."`
}

type checkCmd struct {
	storeFlags `embed:""`
}

// Help is shown by --help.
func (*checkCmd) Help() string {
	return `Reads the index, every segment, and the files of export jobs and published pages, and proves the numbered
invariants of store/FORMAT.md. It changes nothing. A running server checks its own store, between two commits: intake waits meanwhile, downloads go on.

Ends with 0 if all hold, else with 1 and one line per fault: the invariant, the file and the place.

Next, if the index is at fault: tidemark reindex. If a segment is: restore the directory from a backup, or let Tidemark read
the topics again into a new one. If a file of a job or page is (J2), nothing that is stored is lost: those who read it start anew.`
}

// Run checks a store.
func (c *checkCmd) Run(ctx context.Context, out io.Writer) error {
	at, err := c.place()
	if err != nil {
		return err
	}
	if conn, err := dialControl(ctx, at.dir); err == nil {
		return askServer(ctx, conn, "check", nil, nil, out)
	}
	return at.cold(ctx, "check", nil, func() error {
		report, err := store.CheckDir(at.dir, store.Options{Logger: coldLog()}, progress("checking"))
		if err != nil {
			return err
		}
		return tellCheck(report, out)
	})
}

// checkOpen is what the command does where the store is open.
func checkOpen(_ context.Context, db *store.DB, _ url.Values, out io.Writer) error {
	report, err := db.Check(true)
	if err != nil {
		return err
	}
	return tellCheck(report, out)
}

func tellCheck(r check.Report, out io.Writer) error {
	_, err := fmt.Fprintf(out, "every invariant holds: %s segments, %s blocks, %s rows of which %s live\n",
		humanize.Comma(int64(r.Segments)), humanize.Comma(int64(r.Blocks)), humanize.Comma(r.Rows), humanize.Comma(r.Live))
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
