package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/segmentio/kafka-go"

	"tidemark/cmd/tidemark/internal/roster"
	"tidemark/store"
	"tidemark/store/fhir"
)

type groupCmd struct {
	Set    setGroupCmd    `cmd:"" help:"Write a Group of the patients in a CSV file."`
	Show   showGroupCmd   `cmd:"" help:"Show a Group and who is in it."`
	Delete deleteGroupCmd `cmd:"" help:"Delete a Group. The patients' data stay."`
}

// Help is shown by --help.
func (*groupCmd) Help() string {
	return `For sources that have no Groups. A roster is a CSV file with a patient to a line: an id, Patient/id, or system|value of an
identifier. A first line may name the columns: patient (or id, identifier), or system and value; start, end; inactive.

  tidemark group set diabetics roster.csv --dry-run
  tidemark group set diabetics roster.csv --name "Diabetics 2026"
  tidemark group show diabetics --members
  tidemark group delete diabetics

The Group goes to the topic groups.topic, and from there into the store like everything else. A roster is the whole Group: who is not in
it leaves, who is new in it comes whole with the next export of the Group. Values with spaces or commas go in quotes.

Next: curl … 'http://127.0.0.1:8080/fhir/Group/diabetics/$export'`
}

// groupFlags is what the commands that write have in common.
type groupFlags struct {
	Topic   string        `placeholder:"NAME" help:"Write to this topic. Default: groups.topic of the configuration."`
	Replace bool          `help:"Also if the Group came from another topic, whose source may write it again."`
	Wait    time.Duration `default:"15s" help:"How long to wait for the server to have read the topic, before we compare and after we have written."`

	configFlags `embed:""`
}

type setGroupCmd struct {
	ID     string `arg:"" help:"The Group's id."`
	Roster string `arg:"" type:"path" help:"The CSV file; - is standard input."`

	Name       string   `help:"What the Group is called. What is not given is not kept: give the same each time."`
	Identifier []string `sep:"none" placeholder:"SYSTEM|VALUE" help:"An identifier of the Group, by which clients find it. May be repeated."`
	NoHeading  bool     `help:"The first line is a patient, though it looks like a heading."`
	DryRun     bool     `help:"Write nothing: print the Group, and who joins (+), leaves (-) or has another period (~)."`
	groupFlags `embed:""`
}

// Run writes a Group, or says what it would write.
func (c *setGroupCmd) Run(ctx context.Context, out io.Writer) error {
	g, repeats, err := c.group()
	if err != nil {
		return err
	}
	args := url.Values{"id": {g.ID}, "entries": {strconv.Itoa(len(g.Member))}}
	if c.DryRun {
		args.Set("dry-run", "1")
	}
	return c.onRecord(ctx, "group-set", args, func() error { return c.set(ctx, g, repeats, out) })
}

func (c *setGroupCmd) set(ctx context.Context, g *roster.Group, repeats int, out io.Writer) error {
	if repeats > 0 {
		fmt.Fprintf(out, "%d lines say again what another line says\n", repeats)
	}
	if c.DryRun {
		return c.preview(ctx, g, out)
	}
	w, err := c.open(ctx, g.ID)
	if err != nil {
		return err
	}
	defer w.close()
	known, err := w.known(ctx, out)
	if err != nil {
		return err
	}
	body, err := w.body(g, known)
	if err != nil {
		return err
	}
	if err := w.takes(body); err != nil {
		return err
	}
	fmt.Fprintf(out, "Group/%s: %s entries", g.ID, humanize.Comma(int64(len(g.Member))))
	if known != nil {
		fmt.Fprintf(out, ", %s", roster.Compare(known.Body, body))
	}
	fmt.Fprintln(out)
	if known.whole() && roster.Same(known.Body, body) {
		_, err := fmt.Fprintln(out, "no change: nothing was written")
		return err
	}
	return w.put(ctx, payload{value: body}, out)
}

// group makes a Group of the roster and the flags.
func (c *setGroupCmd) group() (g *roster.Group, repeats int, err error) {
	var identifiers []roster.Identifier
	for _, s := range c.Identifier {
		i, err := roster.ParseIdentifier(s)
		if err != nil {
			return nil, 0, fmt.Errorf("--identifier %q %w", s, err)
		}
		identifiers = append(identifiers, i)
	}
	list, err := c.read()
	if err != nil {
		return nil, 0, err
	}
	g, err = roster.New(c.ID, c.Name, identifiers, list.Members, fhir.FromTime(time.Now()))
	return g, list.Repeats, err
}

func (c *setGroupCmd) read() (roster.List, error) {
	o := roster.Options{NoHeading: c.NoHeading}
	if c.Roster == "-" {
		return roster.Read(os.Stdin, o)
	}
	f, err := os.Open(c.Roster)
	if err != nil {
		return roster.List{}, fmt.Errorf("open the roster: %w", err)
	}
	defer f.Close()
	return roster.Read(f, o)
}

// preview needs no Kafka.
func (c *setGroupCmd) preview(ctx context.Context, g *roster.Group, out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	pretty, err := g.Pretty()
	if err != nil {
		return err
	}
	if _, err := out.Write(pretty); err != nil {
		return err
	}
	known, err := askGroup(ctx, cfg.Store.Path, g.ID, "", 0)
	if err != nil {
		_, err = fmt.Fprintf(out, "\nnot compared: %v\n", err)
		return err
	}
	difference := roster.Compare(known.Body, pretty)
	if _, err := fmt.Fprintf(out, "\n%s\n", difference); err != nil {
		return err
	}
	if roster.Same(known.Body, pretty) {
		_, err = fmt.Fprintln(out, "no change: nothing would be written")
		return err
	}
	return difference.Print(out)
}

type deleteGroupCmd struct {
	ID string `arg:"" help:"The Group's id."`

	groupFlags `embed:""`
}

// Run writes the deletion of a Group.
func (c *deleteGroupCmd) Run(ctx context.Context, out io.Writer) error {
	if !fhir.ValidID(c.ID) {
		return fmt.Errorf("%q is no id of a Group: write 1 to 64 of A-Z, a-z, 0-9, . and -", c.ID)
	}
	return c.onRecord(ctx, "group-delete", url.Values{"id": {c.ID}}, func() error { return c.remove(ctx, out) })
}

func (c *deleteGroupCmd) remove(ctx context.Context, out io.Writer) error {
	w, err := c.open(ctx, c.ID)
	if err != nil {
		return err
	}
	defer w.close()
	known, err := w.known(ctx, out)
	if err != nil {
		return err
	}
	if known.whole() && known.Body == nil {
		return fmt.Errorf("there is no Group/%s: nothing was written", c.ID)
	}
	at := []byte(w.now(known).String())
	return w.put(ctx, payload{headers: []kafka.Header{{Key: "fhir-last-updated", Value: at}}}, out)
}

// A groupWriter writes one Group and looks what the server makes of it.
type groupWriter struct {
	*writer
	id        string
	replace   bool
	wait      time.Duration
	store     string // of the server that reads the topic
	maxRecord int64
}

// onRecord does what goes to a topic. Where there is no store there is no trail.
func (f *groupFlags) onRecord(ctx context.Context, name string, args url.Values, do func() error) error {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	if f.Topic != "" {
		args.Set("topic", f.Topic)
	}
	return place{cfg.Store.Path, &cfg.Config}.onRecord(ctx, name, args, do)
}

// open finds the topic. A topic that is given is like one that is configured.
func (f *groupFlags) open(ctx context.Context, id string) (*groupWriter, error) {
	if f.Topic != "" {
		f.Set = append(f.Set, "groups.topic="+f.Topic)
	}
	cfg, err := f.load()
	if err != nil {
		return nil, err
	}
	if cfg.Groups.Topic == "" {
		return nil, errors.New("no topic to write to: set groups.topic in the configuration, or give --topic")
	}
	w, err := newWriter(ctx, cfg.Kafka, cfg.Groups.Topic, "Group/"+id)
	if err != nil {
		return nil, err
	}
	return &groupWriter{w, id, f.Replace, f.Wait, cfg.Store.Path, int64(cfg.Kafka.MaxRecord)}, nil
}

// known is what the server has of the Group, nil if none can be asked. If it has
// not read all that the topic holds, what it will have is not known: the Group is
// written then even if it should be the same.
func (w *groupWriter) known(ctx context.Context, out io.Writer) (*groupState, error) {
	if w.limits.forgets {
		fmt.Fprintf(out, "warning: the topic %s deletes what is older than its retention.ms, this Group too: a store that begins anew would not have it\n", w.topic)
	}
	end, err := w.end(ctx)
	if err != nil {
		return nil, err
	}
	known, err := w.await(ctx, end)
	if err != nil {
		fmt.Fprintf(out, "not compared: %v\n", err)
	}
	if known == nil {
		return nil, nil
	}
	if known.Body != nil && known.Topic != w.topic && !w.replace {
		return nil, fmt.Errorf("the Group %s comes from the topic %s, whose source may write it again at any time: choose another id, or give --replace", w.id, known.Topic)
	}
	return known, nil
}

// await asks the server until it has committed the partition up to an offset,
// which takes it commit.interval. If that takes too long, what it has is returned with the error.
func (w *groupWriter) await(ctx context.Context, offset int64) (*groupState, error) {
	patience, cancel := context.WithTimeout(ctx, w.wait)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		known, err := askGroup(ctx, w.store, w.id, w.topic, w.partition)
		if err != nil {
			return nil, err
		}
		if known.Next >= offset {
			return known, nil
		}
		select {
		case <-patience.Done():
			known.behind = true
			return known, fmt.Errorf("the server has read partition %d of the topic %s up to offset %d, and it holds records up to %d", w.partition, w.topic, known.Next, offset)
		case <-tick.C:
		}
	}
}

// now is later than what the server has, whatever the clock says that wrote it:
// else it would stay.
func (w *groupWriter) now(known *groupState) fhir.Instant {
	now := fhir.FromTime(time.Now())
	if known != nil && known.Updated >= now {
		now = known.Updated + 1
	}
	return now
}

func (w *groupWriter) body(g *roster.Group, known *groupState) ([]byte, error) {
	g.Meta.LastUpdated = w.now(known).String()
	return g.Body()
}

// takes refuses what topic or server would refuse.
func (w *groupWriter) takes(body []byte) error {
	if size := int64(len(body) + len(w.key)); size > w.maxRecord {
		return fmt.Errorf("the Group has %s bytes and the server takes records of %s: raise kafka.max_record, or make several Groups of the roster",
			humanize.Comma(size), humanize.Comma(w.maxRecord))
	}
	return w.fits(payload{value: body})
}

// put writes, and says whether the server has taken it.
func (w *groupWriter) put(ctx context.Context, r payload, out io.Writer) error {
	offset, err := w.write(ctx, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Group/%s: written to the topic %s, partition %d, offset %d\n", w.id, w.topic, w.partition, offset)
	known, err := w.await(ctx, offset+1)
	switch {
	case errors.Is(err, errNoServer):
		return nil // which was said
	case err != nil:
		_, err = fmt.Fprintf(out, "not taken yet: %v\n", err)
		return err
	case r.value == nil && known.Body != nil, r.value != nil && !roster.Same(known.Body, r.value):
		return fmt.Errorf("the server has read it and holds another Group/%s: it was erased, or somebody else writes it, too; tidemark inspect Group/%s and tidemark deadletter list tell more", w.id, w.id)
	}
	_, err = fmt.Fprintln(out, "the server has it")
	return err
}

// groupState is what a server has committed of a Group.
type groupState struct {
	Body    json.RawMessage `json:"body,omitempty"`  // nil if there is none, or no more
	Topic   string          `json:"topic,omitempty"` // where its newest version came from
	Updated fhir.Instant    `json:"updated"`         // what that said, None if nothing
	Next    int64           `json:"next"`            // up to which offset the partition asked for is committed

	behind bool // more is known to be in the topic
}

// whole: the server will have nothing else of what is written by now.
func (s *groupState) whole() bool { return s != nil && !s.behind }

var errNoServer = errors.New("no server has this store open on this machine (store.path)")

// askGroup asks the running server; a store that nobody serves is left alone.
func askGroup(ctx context.Context, dir, id, topic string, partition int) (*groupState, error) {
	conn, err := dialControl(ctx, dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errNoServer
	}
	if err != nil {
		return nil, fmt.Errorf("ask the server that has %s open: %w; its user may", dir, err)
	}
	var answer bytes.Buffer
	args := url.Values{"id": {id}, "topic": {topic}, "partition": {strconv.Itoa(partition)}}
	if err := askServer(ctx, conn, askedState, args, nil, &answer); err != nil {
		return nil, err
	}
	var s groupState
	if err := json.Unmarshal(answer.Bytes(), &s); err != nil {
		return nil, fmt.Errorf("understand the running server: %w", err)
	}
	return &s, nil
}

// groupStateOf answers askGroup where the store is open.
func groupStateOf(_ context.Context, db *store.DB, args url.Values, out io.Writer) error {
	partition, err := strconv.ParseInt(args.Get("partition"), 10, 32)
	if err != nil {
		return err
	}
	// The offset first: what is read of the Group after it is no older.
	s := groupState{Updated: fhir.None, Next: db.Committed()[store.Partition{Topic: args.Get("topic"), ID: int32(partition)}]}
	for range 3 {
		if err = s.read(db, args.Get("id")); !errors.Is(err, errRewritten) {
			break
		}
	}
	if err != nil && !errors.Is(err, store.ErrUnknown) {
		return err
	}
	return json.NewEncoder(out).Encode(s)
}

var errRewritten = errors.New("the store was rewritten meanwhile: ask again")

// read finds what is committed, whatever the watermark.
func (s *groupState) read(db *store.DB, id string) error {
	key, err := fhir.ParseKey("Group/" + id)
	if err != nil {
		return err
	}
	versions, err := db.History(key)
	if err != nil {
		return err
	}
	for _, v := range versions {
		if v.Section.Kind == store.Internal {
			continue
		}
		s.Updated = max(s.Updated, v.LastUpdated)
		if v.Section.Kind == store.Live && v.Death == fhir.None {
			s.Topic = v.Partition.Topic
			if s.Body, err = db.Body(v); errors.Is(err, store.ErrUnknown) {
				return errRewritten
			}
		}
	}
	return err
}
