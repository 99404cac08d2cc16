package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// recorder notes the order in which stages end.
type recorder struct {
	mu    sync.Mutex
	ended []string
}

func (r *recorder) stage(name string, takes time.Duration, err error) stage {
	return stage{name: name, grace: 5 * time.Second, run: func(ctx context.Context) error {
		<-ctx.Done()
		<-time.After(takes)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, name)
		return err
	}}
}

func TestStagesStopInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		r := &recorder{}
		err := runStages(ctx, slog.New(slog.DiscardHandler),
			r.stage("intake", 2*time.Second, context.Canceled), r.stage("store", time.Second, nil), r.stage("http", 0, nil))
		if want := []string{"intake", "store", "http"}; err != nil || !slices.Equal(r.ended, want) {
			t.Errorf("got %v, error %v; want %v", r.ended, err, want)
		}
	})
}

func TestOneStageEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		broken := stage{name: "store", grace: time.Second, run: func(context.Context) error {
			<-time.After(time.Hour)
			return errors.New("disk gone")
		}}
		err := runStages(t.Context(), slog.New(slog.DiscardHandler), r.stage("intake", 0, nil), broken, r.stage("http", 0, nil))
		if err == nil || err.Error() != "store: disk gone" {
			t.Errorf("got error %v, want the store's", err)
		}
		if want := []string{"intake", "http"}; !slices.Equal(r.ended, want) {
			t.Errorf("got %v, want %v", r.ended, want)
		}
	})
}

// A stage that hangs holds nobody else up beyond its grace, and is waited for
// at the end.
func TestSlowStageDoesNotHoldTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var log strings.Builder
		r := &recorder{}
		err := runStages(ctx, slog.New(slog.NewTextHandler(&log, nil)), r.stage("intake", time.Minute, nil), r.stage("store", 0, nil))
		if want := []string{"store", "intake"}; err != nil || !slices.Equal(r.ended, want) {
			t.Errorf("got %v, error %v; want %v", r.ended, err, want)
		}
		if !strings.Contains(log.String(), "still stopping") {
			t.Errorf("the log says nothing of the slow stage: %s", log.String())
		}
	})
}
