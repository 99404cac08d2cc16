package registry

import (
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"tidemark/pipeline/decode"
)

// A memory is a Keeper.
type memory map[string]string

func (m memory) Remember(name string, what []byte) error { m[name] = string(what); return nil }

func (m memory) Remembered(name string) ([]byte, error) {
	if what, known := m[name]; known {
		return []byte(what), nil
	}
	return nil, nil
}

const schema = `{"type":"string"}`

// asked counts the requests that reach a registry.
func asked(r *srfake.Registry) *atomic.Int64 {
	var n atomic.Int64
	r.Intercept(func(http.ResponseWriter, *http.Request) bool { n.Add(1); return false })
	return &n
}

// TestSchema: a registry is asked once for each schema, ever: what it told is kept, and
// flows while it is away.
func TestSchema(t *testing.T) {
	fake := srfake.New(srfake.WithAuth("Basic dXNlcjpzZWNyZXQ="))
	fake.SeedSchema("patients-value", 1, 7, sr.Schema{Schema: schema, Type: sr.TypeAvro})
	fake.SeedSchema("notes-value", 1, 8, sr.Schema{Schema: `{}`, Type: sr.TypeJSON})
	requests := asked(fake)
	kept := memory{}
	open := func() *Registry {
		t.Helper()
		r, err := New(Config{URL: fake.URL() + "/", Username: "user", Password: "secret", Keeper: kept})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := func(r *Registry, id uint32, kind, text string) {
		t.Helper()
		gotKind, gotText, err := r.Schema(id)
		if err != nil || gotKind != kind || gotText != text {
			t.Errorf("schema %d: %q %q %v", id, gotKind, gotText, err)
		}
	}
	r := open()
	want(r, 7, "AVRO", schema)
	want(r, 7, "AVRO", schema)
	want(r, 8, "JSON", `{}`)
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests for two schemas", n)
	}
	fake.Close()
	r = open()
	want(r, 7, "AVRO", schema)
	if _, _, err := r.Schema(9); err == nil || errors.Is(err, decode.ErrNoSchema) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a registry that is away has told that there is no schema, or the error tells its password: %v", err)
	}
	elsewhere, err := New(Config{URL: "http://127.0.0.1:1", Keeper: maps.Clone(kept)})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := elsewhere.Schema(7); err == nil {
		t.Error("a schema of one registry counts for another")
	}
}

// TestMissing: that there is no such schema is asked once a minute; that the URL leads
// nowhere is no such answer.
func TestMissing(t *testing.T) {
	fake := srfake.New()
	defer fake.Close()
	requests := asked(fake)
	r, err := New(Config{URL: fake.URL(), Keeper: memory{}, AskAgain: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := r.Schema(7); !errors.Is(err, decode.ErrNoSchema) {
			t.Errorf("there is no schema: %v", err)
		}
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests for a schema that is not there", n)
	}
	fake.SeedSchema("patients-value", 1, 7, sr.Schema{Schema: schema})
	r.c.AskAgain = 0
	if _, _, err := r.Schema(7); err != nil {
		t.Errorf("a schema that is there by now: %v", err)
	}
	wrong, err := New(Config{URL: fake.URL() + "/no/such/api", Keeper: memory{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := wrong.Schema(7); err == nil || errors.Is(err, decode.ErrNoSchema) {
		t.Errorf("a URL that leads nowhere: %v", err)
	}
}

// TestReferences: a schema that refers to others is none that can be read.
func TestReferences(t *testing.T) {
	fake := srfake.New()
	defer fake.Close()
	fake.SeedSchema("name", 1, 1, sr.Schema{Schema: `{"type":"record","name":"N","fields":[]}`})
	fake.SeedSchema("patient", 1, 2, sr.Schema{Schema: `{"type":"record","name":"P","fields":[{"name":"n","type":"N"}]}`, References: []sr.SchemaReference{{Name: "N", Subject: "name", Version: 1}}})
	r, err := New(Config{URL: fake.URL(), Keeper: memory{}})
	if err != nil {
		t.Fatal(err)
	}
	if kind, _, err := r.Schema(2); err != nil || kind == "AVRO" {
		t.Errorf("%q %v", kind, err)
	}
}
