package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestIntakeWaitsForSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		start := time.Now()
		g := &spaceGuard{minFree: 100, enough: true, log: slog.New(slog.NewTextHandler(&log, nil))}
		g.free = func() (uint64, error) {
			if time.Since(start) < time.Hour {
				return 99, nil
			}
			return 100, nil
		}
		if err := g.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited < time.Hour || waited > time.Hour+spaceWait {
			t.Errorf("waited %v, want an hour", waited)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("got %d log lines, want one for waiting and one for going on:\n%s", n, log.String())
		}
	})
}

func TestWaitingForSpaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		g := &spaceGuard{minFree: 1, enough: true, log: slog.New(slog.DiscardHandler), free: func() (uint64, error) { return 0, nil }}
		if err := g.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v, want the context's", err)
		}
	})
}

func TestSpaceThatIsUnknownStopsNothing(t *testing.T) {
	g := &spaceGuard{minFree: 1, enough: true, log: slog.New(slog.DiscardHandler), free: func() (uint64, error) { return 0, errors.New("unknown") }}
	if err := g.wait(t.Context()); err != nil {
		t.Error(err)
	}
	g = &spaceGuard{free: func() (uint64, error) { t.Error("store.min_free: 0B still asks"); return 0, nil }}
	if err := g.wait(t.Context()); err != nil {
		t.Error(err)
	}
}
