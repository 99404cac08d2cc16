package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"

	"tidemark/store"
)

// How often free space is asked for: within a second two full commits can be
// written, far less than any sensible store.min_free; a waiting intake looks
// less often.
const (
	spaceFresh = time.Second
	spaceWait  = 5 * time.Second
)

// A spaceGuard makes intake wait while the store's disk is nearly full. Records
// stay in Kafka meanwhile, the watermark stops, downloads go on.
type spaceGuard struct {
	*store.DB
	minFree uint64
	free    func() (uint64, error)
	log     *slog.Logger

	mu     sync.Mutex
	looked time.Time
	enough bool
}

func newSpaceGuard(db *store.DB, dir string, minFree int64, log *slog.Logger) *spaceGuard {
	return &spaceGuard{
		DB: db, minFree: uint64(minFree), log: log, enough: true,
		free: func() (uint64, error) {
			usage, err := vfs.Default.GetDiskUsage(dir)
			return usage.AvailBytes, err
		},
	}
}

// Apply hands the batch to the store as soon as there is room for it.
func (g *spaceGuard) Apply(ctx context.Context, b store.Batch) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.DB.Apply(ctx, b)
}

func (g *spaceGuard) wait(ctx context.Context) error {
	for !g.hasRoom() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(spaceWait):
		}
	}
	return nil
}

// hasRoom asks the disk at most once a second and logs each turn once. A disk
// that cannot tell does not stop intake.
func (g *spaceGuard) hasRoom() bool {
	if g.minFree == 0 {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.looked) < spaceFresh {
		return g.enough
	}
	g.looked = time.Now()
	free, err := g.free()
	enough := err != nil || free >= g.minFree
	switch {
	case !enough && g.enough:
		g.log.Error("intake waits: little free space on the store's disk",
			"free", humanize.IBytes(free), "min_free", humanize.IBytes(g.minFree))
	case enough && !g.enough:
		g.log.Info("intake goes on: there is free space again", "free", humanize.IBytes(free))
	}
	g.enough = enough
	return enough
}
