package access

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/clients"
)

// TestQuota: a day's jobs and bytes are bounded for each client, over restarts, and who
// waits as long as he is told comes in.
func TestQuota(t *testing.T) {
	now := time.Date(2026, 1, 2, 23, 59, 0, 0, time.UTC)
	q := &Quota{Jobs: 2, Bytes: 100, Now: func() time.Time { return now }}
	start := func(o Owner) time.Duration {
		err := q.Start(o, clients.Limits{})
		if e, ok := errors.AsType[*QuotaError](err); ok {
			return e.After
		}
		return 0
	}
	first, second := start("a"), start("a")
	if first != 0 || second != 0 || start("a") != time.Minute || start("b") != 0 {
		t.Error("two jobs a day, for each client")
	}
	q.Undo("a")
	if start("a") != 0 || start("a") == 0 {
		t.Error("a job that could not be started counts")
	}
	if q.Send("a", clients.Limits{}) != nil {
		t.Error("nothing was sent yet")
	}
	q.Sent("a", clients.Limits{}, 99)
	if q.Send("a", clients.Limits{}) != nil {
		t.Error("a byte is left")
	}
	q.Sent("a", clients.Limits{}, 1)
	if q.Send("a", clients.Limits{}) == nil || q.Send("b", clients.Limits{}) != nil {
		t.Error("a hundred bytes a day, for each client")
	}
	kept, err := q.Store()
	if err != nil || kept == nil {
		t.Fatal(err)
	}
	if again, err := q.Store(); again != nil || err != nil {
		t.Errorf("no news: %s, %v", again, err)
	}
	q = &Quota{Jobs: 2, Bytes: 100, Now: func() time.Time { return now }}
	if err := q.Load(kept); err != nil || q.Send("a", clients.Limits{}) == nil || start("a") == 0 {
		t.Errorf("a restart forgets: %v", err)
	}
	now = now.Add(time.Minute)
	if q.Send("a", clients.Limits{}) != nil || start("a") != 0 {
		t.Error("who came when he was told to was refused")
	}
	if (&Quota{}).Load([]byte("x")) == nil {
		t.Error("nonsense is loaded")
	}
	if free := (&Quota{}); free.Start("a", clients.Limits{}) != nil || free.Send("a", clients.Limits{}) != nil {
		t.Error("no limit is a limit")
	}
}

// TestQuotaOfOne: limits of a client's own go before those of all, also where these have
// none.
func TestQuotaOfOne(t *testing.T) {
	more, less := clients.Limits{JobsPerDay: 3, BytesPerDay: 30}, clients.Limits{JobsPerDay: 1, BytesPerDay: 1}
	for all, q := range map[string]*Quota{"limits of all": {Jobs: 2, Bytes: 20}, "none": {}} {
		for range 3 {
			if err := q.Start("more", more); err != nil {
				t.Errorf("%s: %v", all, err)
			}
		}
		if q.Start("more", more) == nil || q.Start("less", less) != nil || q.Start("less", less) == nil {
			t.Errorf("%s: jobs are not those of the client's own limits", all)
		}
		q.Sent("more", more, 29)
		q.Sent("less", less, 1)
		if q.Send("more", more) != nil || q.Send("less", less) == nil {
			t.Errorf("%s: bytes are not those of the client's own limits", all)
		}
		q.Sent("more", more, 1)
		if err, is := errors.AsType[*QuotaError](q.Send("more", more)); !is || err.Value != 30 {
			t.Errorf("%s: %v", all, err)
		}
	}
}

// TestQuotaKept: what a client had outlives a stop; a damaged file keeps nobody out.
func TestQuotaKept(t *testing.T) {
	fs := vfs.NewMem()
	q := &Quota{Bytes: 10}
	if err := q.Keep(fs, "access"); err != nil {
		t.Fatal(err)
	}
	q.Sent("a", clients.Limits{}, 10)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := q.Run(ctx); err != nil {
		t.Fatal(err)
	}
	next := &Quota{Bytes: 10}
	if err := next.Keep(fs, "access"); err != nil || next.Send("a", clients.Limits{}) == nil {
		t.Errorf("it is forgotten: %v", err)
	}
	f, err := fs.Create("access/"+usageFile, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := &Quota{Bytes: 10}
	if err := damaged.Keep(fs, "access"); err == nil || damaged.Send("a", clients.Limits{}) != nil {
		t.Errorf("%v, %v", err, damaged.Send("a", clients.Limits{}))
	}
}
