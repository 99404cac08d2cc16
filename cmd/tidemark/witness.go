package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/api/audit"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
)

// What an operator does is on record before it is done, and how it went afterwards. One
// process writes a trail: where a server has it, the server writes for all commands.

// elsewhere are the commands that work in a process of their own, also beside a server.
var elsewhere = []string{"group-delete", "group-set", "load", "promise-reset", "reconcile", "reindex"}

// A place is a store on this machine, and what is known of its server's configuration.
type place struct {
	dir    string
	config *config.Config // nil: none was given
}

// place is where the command works. A directory that is named needs no configuration,
// one that is given beside it says where the audit trail is.
func (f *storeFlags) place() (place, error) {
	if f.Dir != "" && f.Config == "" && len(f.Set) == 0 {
		return place{dir: f.Dir}, nil
	}
	c, err := f.load()
	if err != nil {
		return place{}, err
	}
	if f.Dir != "" {
		c.Store.Path = f.Dir
	}
	return place{c.Store.Path, &c.Config}, nil
}

// trail opens the trail of a server that does not run; nil if nothing is put on record.
// Without a configuration it is where the last server of the store had it.
func (p place) trail() (*audit.Trail, error) {
	if p.config != nil {
		return openTrail(p.config, nil, coldLog())
	}
	at, err := readWhere(p.dir)
	if err != nil || !at.Enabled {
		return nil, err
	}
	o := audit.Options{Dir: at.Dir, Required: at.Required, Observer: at.Observer, Logger: coldLog()}
	if o.Dir == "" {
		o.Dir = filepath.Join(p.dir, config.AuditName)
	} else if _, err := os.Stat(o.Dir); err != nil { // it is not begun anew where a disk is missing
		return nil, fmt.Errorf("the server of this store has its audit trail elsewhere, and it cannot be written: %w; give --config FILE of that server", err)
	}
	return audit.Open(o)
}

// onRecord does what a command does in its own process.
func (p place) onRecord(ctx context.Context, name string, args url.Values, do func() error) error {
	conn, err := dialControl(ctx, p.dir)
	if err == nil {
		return askWitness(ctx, conn, name, args, do)
	}
	if !nobodyServes(err) {
		return fmt.Errorf("ask the server that has %s open to put this on record: %w", p.dir, err)
	}
	return p.cold(ctx, name, args, do)
}

// cold does it where no server runs. What is no store has no trail: the command says so.
func (p place) cold(ctx context.Context, name string, args url.Values, do func() error) error {
	for _, part := range []string{store.IndexDir(store.Disk, p.dir), store.SegmentsDir(store.Disk, p.dir)} {
		if _, err := os.Stat(part); err == nil {
			return p.alone(ctx, name, args, do)
		}
	}
	return do()
}

// alone does it, and begins a trail if there is none.
func (p place) alone(ctx context.Context, name string, args url.Values, do func() error) error {
	trail, err := p.trail() //nolint:contextcheck // what it logs belongs to no request
	if err != nil {
		return err
	}
	return errors.Join(witnessed(ctx, trail, self(), name, args, do), trail.Close())
}

// witnessed puts on record who an operator is, what he does and how it went. Where a
// record is required and cannot be written it is not done.
func witnessed(ctx context.Context, trail *audit.Trail, who, name string, args url.Values, do func() error) error {
	e := audit.Event{Action: audit.Command, Command: name, User: who}
	if strings.HasPrefix(name, "client-") {
		e.Action, e.Client = audit.Client, args.Get("id")
	}
	for _, key := range slices.Sorted(maps.Keys(args)) {
		for _, value := range args[key] {
			e.Parameters = append(e.Parameters, audit.Parameter{Name: key, Value: value})
		}
	}
	d, err := trail.Begin(ctx, e)
	if err != nil {
		return fmt.Errorf("%s: %w: free the disk, or see audit.required", name, err)
	}
	outcome := audit.Done
	err = do()
	if err != nil {
		outcome = audit.Failed
	}
	d.End(context.WithoutCancel(ctx), 0, outcome)
	return err
}

// Between a command and the server that writes for it: the server says standingBy once
// the beginning is on record, the command in the end how it went. A command that is
// killed says nothing, and has failed.
const (
	standingBy = "on record\n"
	wentWell   = "done\n"
	wentWrong  = "failed\n"
)

// askWitness does something while a running server stands by.
func askWitness(ctx context.Context, conn net.Conn, name string, args url.Values, do func() error) error {
	heard, says := io.Pipe()
	body, tell := io.Pipe()
	asked := make(chan error, 1)
	go func() {
		err := askServer(ctx, conn, name, args, body, says)
		_ = says.Close() // pipes close always
		_ = body.Close()
		asked <- err
	}()
	word, _ := bufio.NewReader(heard).ReadString('\n') // what ended it is in asked
	_ = heard.Close()
	if word != standingBy {
		_ = tell.Close()
		return cmp.Or(<-asked, errors.New("the running server did not put this on record: see its log"))
	}
	err, word := do(), wentWell
	if err != nil {
		word = wentWrong
	}
	_, _ = io.WriteString(tell, word) // likewise
	_ = tell.Close()
	said := <-asked
	if err != nil && ctx.Err() != nil {
		return err // the question was cut short with the command, by us and not by the server
	}
	return errors.Join(err, said)
}

var errGone = errors.New("the command ended without a word")

// standBy puts on record what a command does that asks for it by askWitness.
func standBy(trail *audit.Trail, name string, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", failed)
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/1.1 can
	w.WriteHeader(http.StatusOK)
	err := witnessed(r.Context(), trail, peerOf(r), name, r.URL.Query(), func() error {
		if _, err := io.WriteString(flushing{w}, standingBy); err != nil {
			return err
		}
		if word, _ := bufio.NewReader(r.Body).ReadString('\n'); word != wentWell {
			return errGone
		}
		return nil
	})
	if err != nil && !errors.Is(err, errGone) {
		w.Header().Set(failed, url.QueryEscape(err.Error()))
	}
}

// Where says to commands that are given no configuration where the trail of a store is:
// what its last server had. A file of it lies in the store's directory.
type where struct {
	Enabled  bool   `json:"enabled"`
	Dir      string `json:"dir,omitempty"` // "": in the store
	Required bool   `json:"required"`
	Observer string `json:"observer,omitempty"`
}

const whereName = "audit.json"

// readWhere: a store that was never served has its trail where it is by default.
func readWhere(dir string) (where, error) {
	text, err := os.ReadFile(filepath.Join(dir, whereName))
	if errors.Is(err, os.ErrNotExist) {
		return where{Enabled: true, Required: true}, nil
	}
	var at where
	if err == nil {
		err = json.Unmarshal(text, &at)
	}
	if err != nil {
		return at, fmt.Errorf("find out where the audit trail is: %w; give --config FILE, or start the server once", err)
	}
	return at, nil
}

// writeWhere is done by each server before it begins.
func writeWhere(c *config.Config) error {
	at := where{Enabled: c.Audit.Enabled, Required: c.Audit.Required, Observer: c.HTTP.PublicURL}
	if c.Audit.File != "" {
		var err error
		if at.Dir, err = filepath.Abs(c.Audit.File); err != nil {
			return err
		}
	}
	if was, err := readWhere(c.Store.Path); err == nil && was == at {
		return nil // a disk that takes no writes is no reason not to serve
	}
	text, err := json.Marshal(at)
	if err != nil {
		return err
	}
	path := filepath.Join(c.Store.Path, whereName)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("note where the audit trail is: %w", err)
	}
	return os.Rename(path+".new", path)
}
