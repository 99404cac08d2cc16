package publish_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"tidemark/api/apitest"
	"tidemark/api/publish"
	"tidemark/store"
	"tidemark/store/fhir"
)

func typ(t testing.TB, name string) fhir.Type {
	t.Helper()
	typ, ok := fhir.ParseType(name)
	if !ok {
		t.Fatal(name)
	}
	return typ
}

func key(t testing.TB, s string) fhir.Key {
	t.Helper()
	k, err := fhir.ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// put applies a version now.
func put(t testing.TB, db *apitest.Store, ref string) {
	now := fhir.FromTime(time.Now())
	db.Put(key(t, ref), now, apitest.Links{})
	db.SetWatermark(now)
}

// For everybody there is nothing that may be about a patient, whatever let the
// types through.
func TestPublicRefusesPatients(t *testing.T) {
	db := apitest.New(0)
	o := publish.Options{Public: true}
	for _, name := range []string{"Organization", "Patient", "Schedule", "Location", "Bundle"} {
		o.Types = append(o.Types, typ(t, name))
	}
	_, err := publish.New(db, o)
	if err == nil {
		t.Fatal("Patients are published")
	}
	for name, want := range map[string]bool{"Patient": true, "Schedule": true, "Bundle": true, "Organization": false, "Location": false} {
		if got := strings.Contains(err.Error(), name+" can"); got != want {
			t.Errorf("%s: refused %v, want %v: %v", name, got, want, err)
		}
	}
	o.Public = false
	if _, err := publish.New(db, o); err != nil {
		t.Error(err)
	}
}

// TestBinaryIsNotPublished: to nobody, for it may be part of a patient's data. Of
// types with attachments a page says that these are as they came.
func TestBinaryIsNotPublished(t *testing.T) {
	db := apitest.New(0)
	if _, err := publish.New(db, publish.Options{Types: []fhir.Type{fhir.Binary}}); err == nil || !strings.Contains(err.Error(), "Binary is never published") {
		t.Errorf("Binary is published: %v", err)
	}
	for _, refers := range [][]fhir.Key{nil, {key(t, "Binary/b")}} {
		now := fhir.FromTime(time.Now())
		db.Put(key(t, "Practitioner/p"), now, apitest.Links{Refers: refers})
		db.SetWatermark(now)
		p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Practitioner")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Publish(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		m, err := p.Root()
		if err != nil {
			t.Fatal(err)
		}
		if says := len(m.Severities) > 0; says != (refers != nil) {
			t.Errorf("references %v: the page says %v", refers, m.Severities)
		}
	}
}

// chain counts what a consumer finds: files of the root, and the pages behind it.
func chain(t testing.TB, p *publish.Pages) (pages int, end string) {
	t.Helper()
	m, err := p.Root()
	if err != nil {
		t.Fatal(err)
	}
	m, err = p.Stub(m.Next.Page)
	for ; err == nil && !strings.HasPrefix(m.Next.Page, "#"); pages++ {
		m, err = p.Increment(m.Next.Page)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages, m.Next.Page
}

// running runs p until stop is called.
func running(t testing.TB, p *publish.Pages) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestRun: ten days of publishing. The first root comes as soon as the store is
// ready, a page each hour in which something has changed, a root every two days; the rest
// goes in its time, and a restart in between makes nothing.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		db := apitest.New(fhir.FromTime(began))
		put(t, db, "Organization/0")
		db.Fail(store.ErrNotReady)
		var log bytes.Buffer
		reader := sdkmetric.NewManualReader()
		o := publish.Options{
			Types: []fhir.Type{typ(t, "Organization")}, Public: true, Every: time.Hour, SnapshotEvery: 48 * time.Hour, Grace: 12 * time.Hour,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Meter:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("m"),
		}
		p, err := publish.New(db, o)
		if err != nil {
			t.Fatal(err)
		}
		stop := running(t, p)
		time.Sleep(time.Minute)
		if _, err := p.Root(); err == nil {
			t.Error("there is a root before the store is ready")
		}
		db.Fail(nil)
		time.Sleep(2 * time.Second)
		if _, err := p.Root(); err != nil {
			t.Errorf("soon after the store is ready: %v", err)
		}
		var newest, older string
		var since time.Time
		for hour := range 234 {
			if hour%2 == 0 {
				put(t, db, fmt.Sprintf("Organization/%d", hour%10))
			} else {
				put(t, db, "Patient/1") // is not published
			}
			if hour%50 == 0 {
				stop()
				stop = running(t, p)
			}
			time.Sleep(time.Hour)
			root, err := p.Root()
			if err != nil {
				t.Fatal(err)
			}
			if root.Page != newest {
				older, newest, since = newest, root.Page, time.Now()
			}
			if _, err := p.Stub(older); older != "" && time.Since(since) < o.Grace-time.Hour && err != nil {
				t.Errorf("%v after the root: the page behind the one before: %v", time.Since(since), err)
			}
			if n := len(db.Pinned()); n > (48+12)/2+3 {
				t.Fatalf("after %v %d pages are kept", time.Since(began), n)
			}
		}
		stop()
		made := map[string]int{}
		for line := range strings.Lines(log.String()) {
			for _, kind := range []string{"increment", "root"} {
				if strings.Contains(line, "msg=published kind="+kind) {
					made[kind]++
				}
			}
			if strings.Contains(line, "level=WARN") {
				t.Error(line)
			}
		}
		if made["root"] != 5 || made["increment"] < 115 || made["increment"] > 118 {
			t.Errorf("published %v, want 5 roots, an increment in each second of 234 hours", made)
		}
		for _, pin := range db.Pinned() {
			if id := pin.ID[strings.LastIndex(pin.ID, "-")+1:]; strings.Contains(log.String(), id) {
				t.Errorf("the log holds the id of a page, %s", id)
			}
		}
		pages, end := chain(t, p)
		if end != publish.Pending || pages < 20 || pages > 25 {
			t.Errorf("behind the last root, of the ninth day, are %d pages to %s", pages, end)
		}
		measured(t, reader, map[string]int64{"root": int64(made["root"]), "increment": int64(made["increment"]), "kept": int64(len(db.Pinned()))})
	})
}

func measured(t *testing.T, reader sdkmetric.Reader, want map[string]int64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, d := range data.DataPoints {
				kind, _ := d.Attributes.Value(attribute.Key("kind"))
				got[kind.AsString()] = d.Value
			}
		case metricdata.Gauge[int64]:
			got["kept"] = data.DataPoints[0].Value
		}
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("metrics say %d of %s, want %d", got[name], name, n)
		}
	}
}

// After an erasure the next who asks for the root does not wait for long, and
// nobody else waits longer than a minute.
func TestRunBeginsAnewAfterErasure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := apitest.New(fhir.FromTime(time.Now()))
		put(t, db, "Organization/0")
		p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Organization")}})
		if err != nil {
			t.Fatal(err)
		}
		defer running(t, p)()
		for _, asks := range []bool{true, false} {
			time.Sleep(10*time.Minute + 7*time.Second) // not in the instant in which Run looks by itself
			if _, err := p.Root(); err != nil {
				t.Fatal(err)
			}
			db.Erase()
			if asks {
				if _, err := p.Root(); err == nil {
					t.Error("the root that was revoked is shown")
				}
				time.Sleep(time.Second)
			} else {
				time.Sleep(time.Minute + time.Second)
			}
			if _, err := p.Root(); err != nil {
				t.Errorf("asked %v: %v", asks, err)
			}
		}
	})
}

// Pages that a clock has made that was a year ahead keep nothing from being
// published when it is right again.
func TestRunAfterClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := apitest.New(fhir.FromTime(time.Now()))
		put(t, db, "Organization/0")
		p, err := publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Organization")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Publish(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		old, err := p.Root()
		if err != nil {
			t.Fatal(err)
		}
		db.Age(-365 * 24 * time.Hour)
		if p, err = publish.New(db, publish.Options{Types: []fhir.Type{typ(t, "Organization")}}); err != nil {
			t.Fatal(err)
		}
		stop := running(t, p)
		time.Sleep(time.Minute)
		put(t, db, "Organization/1")
		time.Sleep(time.Hour)
		stop()
		if fresh, err := p.Root(); err != nil || fresh.Page == old.Page {
			t.Errorf("%v, the root is fresh: %v", err, fresh.Page != old.Page)
		}
		if pages, end := chain(t, p); pages != 1 || end != publish.Pending {
			t.Errorf("%d pages to %s, want 1 to %s", pages, end, publish.Pending)
		}
	})
}
