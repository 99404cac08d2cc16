package access

import (
	"errors"
	"testing"
	"time"
)

// TestQuota: a day's jobs and bytes are bounded for each client, over restarts, and who
// waits as long as he is told comes in.
func TestQuota(t *testing.T) {
	now := time.Date(2026, 1, 2, 23, 59, 0, 0, time.UTC)
	q := &Quota{Jobs: 2, Bytes: 100, Now: func() time.Time { return now }}
	start := func(o Owner) time.Duration {
		err := q.Start(o)
		if e, ok := errors.AsType[*QuotaError](err); ok {
			return e.After
		}
		return 0
	}
	if start("a") != 0 || start("a") != 0 || start("a") != time.Minute || start("b") != 0 {
		t.Error("two jobs a day, for each client")
	}
	q.Undo("a")
	if start("a") != 0 || start("a") == 0 {
		t.Error("a job that could not be started counts")
	}
	if q.Send("a") != nil {
		t.Error("nothing was sent yet")
	}
	q.Sent("a", 99)
	if q.Send("a") != nil {
		t.Error("a byte is left")
	}
	q.Sent("a", 1)
	if q.Send("a") == nil || q.Send("b") != nil {
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
	if err := q.Load(kept); err != nil || q.Send("a") == nil || start("a") == 0 {
		t.Errorf("a restart forgets: %v", err)
	}
	now = now.Add(time.Minute)
	if q.Send("a") != nil || start("a") != 0 {
		t.Error("who came when he was told to was refused")
	}
	if (&Quota{}).Load([]byte("x")) == nil {
		t.Error("nonsense is loaded")
	}
	if free := (&Quota{}); free.Start("a") != nil || free.Send("a") != nil {
		t.Error("no limit is a limit")
	}
}
