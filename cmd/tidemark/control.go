package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"tidemark/api/audit"
	"tidemark/api/clients"
	"tidemark/api/smart"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/pipeline"
	"tidemark/store"
)

// Commands that act on a store do so through the process that has it open, if
// there is one: over a unix socket in the store's directory that only its owner
// can use (decisions.md 6). Else they open the store themselves. What they do is
// the same function either way, and there is no administrative HTTP API.

// controlSocket is the socket's name in the store's directory.
const controlSocket = "control.sock"

// opened is what the process has that has a store open.
type opened struct {
	db *store.DB
	// config and clients are nil where an operation was asked for that needs none.
	config  *config.Config
	clients *clients.Registry
	trail   *audit.Trail // nil: nothing is put on record
	// sign has a server use other secrets; nil if none runs.
	sign func([]smart.Secret)
	// intake is what reads Kafka; nil if nothing does.
	intake *pipeline.Pipeline
	// letters carries dead letters to a topic; nil if none is configured.
	letters *letterTopic
}

// An operation acts on an open store and says on out what it did.
type operation func(ctx context.Context, at *opened, args url.Values, out io.Writer) error

// onData is an operation that needs the data alone.
func onData(do func(ctx context.Context, db *store.DB, args url.Values, out io.Writer) error) operation {
	return func(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
		return do(ctx, at.db, args, out)
	}
}

// askedState is asked again and again by commands that are on record themselves.
const askedState = "group-state"

// unrecorded are operations that are part of a command which is on record itself.
var unrecorded = []string{askedState, askedStanding, askedRows, askedContent}

// operations are what a running server can be asked for.
var operations = map[string]operation{
	"backup": onData(backup),
	"check":  onData(checkOpen),
	"erase":  onData(erase),
	"group":  onData(showGroup),

	"deadletter-drop":   dropDeadLetters,
	"deadletter-export": onData(exportDeadLetters),
	"deadletter-list":   onData(listDeadLetters),
	"deadletter-replay": replayDeadLetters,
	"deadletter-show":   onData(showDeadLetter),

	askedState: onData(groupStateOf),
	"inspect":  inspect,

	askedStanding: onData(standingOf),
	askedRows:     onData(rowsOf),
	askedContent:  onData(contentOf),

	"topic-accept": acceptTopic,
	"topic-forget": forgetTopic,
	"topic-list":   listTopics,
	"topic-pause":  pauseTopic,
	"topic-resume": resumeTopic,

	"audit-patient": whoseAudit,

	"client-add":           addClient,
	"client-change":        changeClient,
	"client-disable":       disableClient,
	"client-enable":        enableClient,
	"client-list":          listClients,
	"client-remove":        removeClient,
	"client-rotate":        rotateClient,
	"client-rotate-tokens": rotateTokens,
	"client-show":          showClient,
}

// onStore carries an operation out on a store, wherever it is open. A server has a
// configuration of its own.
func onStore(ctx context.Context, at place, name string, args url.Values, out io.Writer) error {
	conn, err := dialControl(ctx, at.dir)
	if err == nil {
		return askServer(ctx, conn, name, args, nil, out)
	}
	if !nobodyServes(err) {
		return fmt.Errorf("ask the server that has %s open: %w", at.dir, err)
	}
	if _, err := os.Stat(store.IndexDir(store.Disk, at.dir)); err != nil {
		return fmt.Errorf("%s is no store: %w; tidemark serve makes one, --config or the command's argument says where it is", at.dir, err) // opening it would begin one
	}
	db, err := store.Open(at.dir, store.Options{Logger: coldLog(), MergeOff: true})
	if errors.Is(err, store.ErrLocked) {
		return fmt.Errorf("%w; a server that is starting or stopping does not answer commands: run this again in a moment", err)
	}
	if err != nil {
		return err
	}
	return errors.Join(onCold(ctx, &opened{db: db, config: at.config}, at, name, args, out), db.Close())
}

// nobodyServes tells of an error of dialControl that there is no server.
func nobodyServes(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func onCold(ctx context.Context, open *opened, at place, name string, args url.Values, out io.Writer) (err error) {
	if strings.HasPrefix(name, "client-") {
		if open.clients, err = openClients(open.config); err != nil {
			return err
		}
	}
	if slices.Contains(unrecorded, name) {
		return carryOut(ctx, open, self(), name, args, out)
	}
	if open.trail, err = at.trail(); err != nil { //nolint:contextcheck // what it logs belongs to no request
		return err
	}
	defer func() { err = errors.Join(err, open.trail.Close()) }()
	return carryOut(ctx, open, self(), name, args, out)
}

// carryOut does what an operator asked for, on record.
func carryOut(ctx context.Context, at *opened, who, name string, args url.Values, out io.Writer) error {
	do := func() error { return operations[name](ctx, at, args, out) }
	if slices.Contains(unrecorded, name) {
		return do()
	}
	return witnessed(ctx, at.trail, who, name, args, do)
}

// self is who runs this process.
func self() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username + " (" + u.Uid + ")"
}

func dialControl(ctx context.Context, dir string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, controlSocket))
	return conn, denied(err)
}

// denied says what to do where the socket, or its directory, is not ours.
func denied(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: only the user that the server runs as may ask it, so run this as that user", err)
	}
	return err
}

// failed is the trailer that tells an operation's error: its output is already
// under way then.
const failed = "Tidemark-Error"

// askServer sends a request, with a body if there is one, and copies what is answered.
func askServer(ctx context.Context, conn net.Conn, name string, args url.Values, body io.Reader, out io.Writer) error {
	once := make(chan net.Conn, 1)
	once <- conn
	client := http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return <-once, nil }, DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://store/"+name+"?"+args.Encode(), body)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the running server: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the running server does not know how to %s: is it of another version?", name)
	}
	if _, err := io.Copy(out, res.Body); err != nil {
		return fmt.Errorf("the running server ended while it was asked: %w", err)
	}
	text, err := url.QueryUnescape(res.Trailer.Get(failed))
	if err == nil && text != "" {
		err = errors.New(text)
	}
	return err
}

// controlHandler answers the commands' requests.
func controlHandler(at *opened) http.Handler {
	mux := http.NewServeMux()
	for name := range operations {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", failed)
			w.WriteHeader(http.StatusOK)
			if err := carryOut(r.Context(), at, peerOf(r), name, r.URL.Query(), flushing{w}); err != nil {
				w.Header().Set(failed, url.QueryEscape(err.Error())) // it may have many lines
			}
		})
	}
	for _, name := range elsewhere {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) { standBy(at.trail, name, w, r) })
	}
	return mux
}

// peerKey is where a request has who sent it.
type peerKey struct{}

func peerOf(r *http.Request) string {
	who, _ := r.Context().Value(peerKey{}).(string)
	return who
}

// flushing sends each piece of output at once: people watch it.
type flushing struct{ w http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	return n, errors.Join(err, http.NewResponseController(f.w).Flush())
}

// listenControl opens the socket. A store whose path is too long for one works
// without; its commands then need the server stopped.
func listenControl(ctx context.Context, dir string, log *slog.Logger) net.Listener {
	path := filepath.Join(dir, controlSocket)
	err := os.Remove(path) // of a process that was killed: we have the store's lock
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("commands cannot reach this server", "error", err)
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600) // the directory is ours alone, too
	}
	if err != nil {
		log.Warn("commands cannot reach this server: inspect, check and others need it stopped", "error", err)
		return nil
	}
	return l
}

// runControl serves the socket until ctx ends.
func runControl(ctx context.Context, listener net.Listener, at *opened) error {
	server := &http.Server{
		Handler: controlHandler(at), ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peer(c))
		},
	}
	done := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer done()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the control socket: %w", err)
	}
	return nil
}
