package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
)

// A stage is one part of the running server.
type stage struct {
	name  string
	run   func(context.Context) error
	grace time.Duration // how long it may take to stop; then the next is stopped all the same
}

// runStages runs all stages side by side until ctx ends or one of them does,
// then stops them one after the other in the order given, each when the one
// before has ended: what feeds goes before what is fed, so that nothing that
// was taken in is left lying. It returns when all have ended, with the error of
// the first that failed.
func runStages(ctx context.Context, log *slog.Logger, stages ...stage) error {
	group, one := errgroup.WithContext(ctx) // one ends with the first failure, too
	stops := make([]context.CancelFunc, len(stages))
	dones := make([]chan struct{}, len(stages))
	for i, s := range stages {
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		stops[i], dones[i] = stop, done
		group.Go(func() error {
			defer close(done)
			return s.outcome(own, s.run(own))
		})
	}
	<-one.Done()
	if ctx.Err() != nil {
		log.Info("stopping", "reason", "signal")
	} else {
		log.Error("stopping", "reason", "a part of the server failed")
	}
	for i, s := range stages {
		stops[i]()
		if !waitFor(dones[i], s.grace) {
			log.Warn("still stopping", "stage", s.name, "after", s.grace)
		}
	}
	return group.Wait()
}

// outcome tells failing from having been stopped.
func (s stage) outcome(own context.Context, err error) error {
	switch {
	case err == nil && own.Err() == nil:
		return fmt.Errorf("%s: ended without being asked", s.name)
	case err == nil, own.Err() != nil && errors.Is(err, context.Canceled):
		return nil
	}
	return fmt.Errorf("%s: %w", s.name, err)
}

func waitFor(done <-chan struct{}, grace time.Duration) bool {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
