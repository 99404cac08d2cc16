package pipeline

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/pipeline/decode"
	"tidemark/store"
)

// With the store itself behind the pipeline: a topic is read in the wrong
// format, held, and read in the right one after a restart.
func TestThroughTheStore(t *testing.T) {
	r := newRig(t, 2)
	r.opts.NewDecoder = func(format string, o decode.Options) (decode.Decoder, error) {
		if format == "wrong" {
			return refusing{}, nil
		}
		return decode.New(format, o)
	}
	r.opts.Topics[0].Format = "wrong"
	for i := range 5 {
		key := fmt.Sprintf("Patient/p%d", i)
		value := fmt.Sprintf(`{"resourceType":"Patient","id":"p%d","meta":{"versionId":"1","lastUpdated":"2026-01-02T03:04:05Z"}}`, i)
		rec := &kgo.Record{Topic: "t", Key: []byte(key), Value: []byte(value)}
		if err := r.client.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	through(t, r, dir, func(s store.Status) bool {
		return len(s.Partitions) == 2 && strings.Contains(s.Partitions[0].Held, `"wrong"`) && s.Partitions[0].Next == 3
	})
	r.opts.Topics[0].Format = "resource"
	db := through(t, r, dir, func(s store.Status) bool {
		return len(s.Partitions) == 2 && s.Partitions[0].Held == "" && s.Partitions[0].Next == 5 && s.Rows-s.Dead == 5
	})
	if got := string(db.Topic("t")); got != `{"format":"resource","run":0}` {
		t.Errorf("state of the topic is %s", got)
	}
}

// through runs a pipeline into the store in dir until cond is true.
func through(t *testing.T, r *rig, dir string, cond func(store.Status) bool) *store.DB {
	t.Helper()
	db, err := store.Open(dir, store.Options{CommitInterval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	_, stop := r.run(db)
	defer stop()
	for deadline := time.Now().Add(patience); !cond(db.Status()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the store stays at %+v", db.Status())
		}
	}
	return db
}
