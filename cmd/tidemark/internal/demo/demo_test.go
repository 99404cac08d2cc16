package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidemark/cmd/tidemark/internal/hospital"
)

// TestMain: the demo starts this very program as its server.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		if err := runStandIn(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func options(t *testing.T) Options {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Once: true, Seed: 7, Rate: 200, Listen: "127.0.0.1:0", Program: program, Version: "0.0.0",
		Hospital: hospital.Options{Patients: 2, Years: 1}, watch: 1200 * time.Millisecond, temp: t.TempDir(),
	}
}

func TestOnce(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	opts := options(t)
	if err := Run(t.Context(), &out, opts); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{
		`(?m)^tidemark 0\.0\.0 demo   seed 7 `,
		`(?m)^ +\d+\.\ds  kafka     embedded broker 127\.0\.0\.1:\d+, topic fhir-changes, 4 partitions$`,
		`(?m)^ +\d+\.\ds  hospital  2 patients, 1 year of history, still writing$`,
		`(?m)^ +\d+\.\ds  ingest    █+ [\d,]+ changes  .* → .* on disk$`,
		`(?m)^ EXPORT 1  GET /fhir/\$export +everything$`,
		`(?m)^ EXPORT 2  GET /fhir/\$export\?_since=…\d\d\.\d{3}Z +only what changed$`,
		`(?m)^ CRASH     kill -9 while 500 changes were under way … back in \d+\.\d s$`,
		`(?m)^ EXPORT 3 .* the chain goes on$`,
		`(?m)^ PROOF     [\d,]+ changes written = \d+ windows, each exactly once: missed 0, doubled 0   OK$`,
		`(?m)a second client's full export: [\d,]+ resources, missed 0, doubled 0$`,
	} {
		if !regexp.MustCompile(want).Match(out.Bytes()) {
			t.Errorf("no line like %s", want)
		}
	}
	if i := bytes.IndexAny(out.Bytes(), "\x1b\r\a\b"); i >= 0 {
		t.Errorf("a control character in what is no terminal: %q", out.Bytes()[i:min(i+20, out.Len())])
	}
	left, err := os.ReadDir(opts.temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if t.Failed() {
		t.Log("\n" + out.String())
	}
}

// TestCheatingServerIsFound: what the proof says becomes the demo's exit code.
func TestCheatingServerIsFound(t *testing.T) {
	for _, fault := range []string{"lose", "double"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			opts := options(t)
			opts.env = []string{faultVariable + "=" + fault}
			opts.settling = time.Second
			if err := Run(t.Context(), &out, opts); !errors.Is(err, ErrFailed) {
				t.Errorf("error %v\n%s", err, &out)
			}
			if !strings.Contains(out.String(), "FAILED") {
				t.Errorf("nothing of it on the screen:\n%s", &out)
			}
		})
	}
}

// TestServerThatEnds: the demo says what the server said last.
func TestServerThatEnds(t *testing.T) {
	t.Parallel()
	opts := options(t)
	opts.env = []string{faultVariable + "=die"}
	err := Run(t.Context(), io.Discard, opts)
	if err == nil || !strings.Contains(err.Error(), "the server ended") || !strings.Contains(err.Error(), "I cannot go on") {
		t.Errorf("error %v", err)
	}
}

// TestKeep: everything stays, and is not used a second time.
func TestKeep(t *testing.T) {
	t.Parallel()
	opts := options(t)
	opts.Keep = filepath.Join(t.TempDir(), "new")
	opts.env = []string{faultVariable + "=die"}
	if err := Run(t.Context(), io.Discard, opts); err == nil {
		t.Error("no error from a server that ended")
	}
	for _, name := range []string{"kafka", "tidemark.yaml", "server.log"} {
		if _, err := os.Stat(filepath.Join(opts.Keep, name)); err != nil {
			t.Error(err)
		}
	}
	if err := Run(t.Context(), io.Discard, opts); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a folder that was used before: %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	opts := options(t)
	err := Run(ctx, writer(func(line []byte) {
		if bytes.Contains(line, []byte("EXPORT 1")) {
			cancel()
		}
	}), opts)
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(opts.temp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

type writer func(line []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// TestEnvironment: variables meant for another server would be faults, or worse.
func TestEnvironment(t *testing.T) {
	t.Setenv("TIDEMARK_HTTP_LISTEN", "127.0.0.1:1")
	for _, v := range environment() {
		if strings.HasPrefix(v, "TIDEMARK_") {
			t.Errorf("the server is given %s", v)
		}
	}
}

func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address, taken, err := freeAddress(t.Context(), l.Addr().String())
	if err != nil || !taken || address == l.Addr().String() {
		t.Errorf("got %s, taken %v, error %v", address, taken, err)
	}
}
