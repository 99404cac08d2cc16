package main

import (
	"context"
	"io"

	"tidemark/store"
)

type reindexCmd struct {
	storeFlags `embed:""`
}

// Help is shown by --help.
func (*reindexCmd) Help() string {
	return `Segments describe themselves: from them alone the index is made anew. They are only read; the old index is kept beside the
new one. No process may use the store meanwhile.

What the index alone knew is lost, and said: export jobs, for example, whose clients start again. Everything visible stays
promised, so a chain of exports goes on: what was read again may come twice, nothing is missed.

Next: tidemark check, then tidemark serve.`
}

// Run rebuilds the index.
func (c *reindexCmd) Run(ctx context.Context, out io.Writer) error {
	at, err := c.place()
	if err != nil {
		return err
	}
	return at.onRecord(ctx, "reindex", nil, func() error {
		return store.Reindex(ctx, at.dir, store.Options{Logger: coldLog()}, out)
	})
}
