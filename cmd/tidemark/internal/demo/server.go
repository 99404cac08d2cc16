package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A server is tidemark serve as a child process: the real one, that can be
// killed. It never outlives the demo, if the system knows a way (see isolate).
type server struct {
	program string
	config  string // file
	log     string // file
	listen  string
	env     []string // besides ours

	cmd  *exec.Cmd
	died chan error // closed behind the process's end
}

// base is the FHIR base of the server.
func (s *server) base() string { return "http://" + s.listen + "/fhir" }

// configure writes the configuration: what a first one would hold, with another
// place for everything.
func (s *server) configure(store, broker string) error {
	text := fmt.Sprintf(`# Written by tidemark demo. tidemark serve --print-config shows all other keys.
store:
  path: %q
  min_free: 0B
  reserve: 0B
http:
  listen: %s
  public_url: %s
kafka:
  brokers: [%q]
topics:
  - name: %s
    format: resource
watermark:
  allowance: %s
`, store, s.listen, s.base(), broker, topic, allowance)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// start begins the process. The thread that did so stays with it: on Linux the
// child is told of the parent's death by the end of that thread.
func (s *server) start() error {
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}
	cmd, died, started := exec.Command(s.program, "serve", "--config", s.config), make(chan error, 1), make(chan error)
	cmd.Env = append(environment(), s.env...)
	cmd.Stdout, cmd.Stderr = log, log
	isolate(cmd)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			died <- cmd.Wait()
		}
		close(died)
	}()
	s.cmd, s.died = cmd, died
	if err := <-started; err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	return nil
}

// environment is ours without what is meant for another server.
func environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TIDEMARK_") {
			env = append(env, v)
		}
	}
	return env
}

// ready waits until the server can serve; meanwhile is called now and then.
func (s *server) ready(ctx context.Context, patience time.Duration, meanwhile func()) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the server was not ready within %v", patience))
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !s.answersReady(ctx) {
		meanwhile()
		select {
		case err := <-s.died:
			return fmt.Errorf("the server ended (%s)%s", ending(err), s.lastWords())
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%w%s", context.Cause(ctx), s.lastWords())
			}
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

func (s *server) answersReady(ctx context.Context) bool {
	answer, err := s.get(ctx, "/readyz")
	if err != nil {
		return false
	}
	answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// taken is how many records the server has taken in, by its metrics.
func (s *server) taken(ctx context.Context) (sum int64, ok bool) {
	answer, err := s.get(ctx, "/metrics")
	if err != nil {
		return 0, false
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "} ")
		if !strings.HasPrefix(name, "tidemark_pipeline_records_total{") {
			continue
		}
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			sum, ok = sum+int64(n), true
		}
	}
	return sum, ok
}

func (s *server) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.listen+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

// kill is kill -9: the process gets no chance to tidy up.
func (s *server) kill() error {
	if err := s.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill the server: %w", err)
	}
	<-s.ended()
	return nil
}

// ended is closed when the process is gone; how it went is no news then.
func (s *server) ended() <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for range s.died {
		}
	}()
	return gone
}

// ending is how a process ended.
func ending(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// stop asks the server to end, and insists after a while.
func (s *server) stop(patience time.Duration) {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	if s.cmd.Process.Signal(os.Interrupt) != nil { // Windows knows no such signal
		s.cmd.Process.Kill()
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.ended():
	case <-timer.C:
		s.cmd.Process.Kill()
		<-s.ended()
	}
}

// lastWords are the end of the server's log.
func (s *server) lastWords() string {
	text, err := os.ReadFile(s.log)
	text = bytes.TrimSpace(text)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := bytes.Split(text, []byte("\n"))
	lines = lines[max(0, len(lines)-8):]
	return "; its last words:\n" + string(bytes.Join(lines, []byte("\n")))
}

// freeAddress returns the address asked for, or another on loopback if that is
// taken.
func freeAddress(ctx context.Context, wish string) (address string, taken bool, err error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", wish)
	if err != nil {
		taken = true
		l, err = config.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err != nil {
		return "", taken, fmt.Errorf("look for a free port: %w", err)
	}
	return l.Addr().String(), taken, l.Close()
}
