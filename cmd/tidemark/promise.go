package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tidemark/store"
)

type promiseCmd struct {
	Reset resetPromiseCmd `cmd:"" help:"Bring what was promised back to now, after this machine's clock was far ahead."`
}

type resetPromiseCmd struct {
	Yes bool `help:"Do it. Without this nothing is changed."`

	storeFlags `embed:""`
}

// Help is shown by --help.
func (*promiseCmd) Help() string {
	return `What an export has shown as its transactionTime is promised: nothing changes at or before it any more. If this machine's clock was
once years ahead, all transactionTimes are of that future from then on. Nothing is lost by that, and an hour is best waited for.

  tidemark promise reset --yes

lets all that came since have come now. No process may use the store meanwhile; what is replaced is put aside. A new epoch begins
(manifest: extension.tidemark-epoch), export jobs are lost. Clients whose _since is of the future are refused and told to export
without _since; others chain on. It takes as long as reindex, and room for what came since the clock was wrong.

Next: tidemark check, then tidemark serve.`
}

// Run resets the promise.
func (c *resetPromiseCmd) Run(ctx context.Context, out io.Writer) error {
	at, err := c.place()
	if err != nil {
		return err
	}
	if !c.Yes {
		return errors.New("nothing was changed: give --yes to reset what is promised; tidemark promise --help says what that means")
	}
	if err := at.onRecord(ctx, "promise-reset", nil, func() error {
		return store.ResetPromise(ctx, at.dir, store.Options{Logger: coldLog()}, out)
	}); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "clients whose _since lies in the future take a full export; next: tidemark check, then tidemark serve")
	return err
}
