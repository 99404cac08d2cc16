package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/cespare/xxhash/v2"
	"github.com/dustin/go-humanize"
	"golang.org/x/term"

	"tidemark/cmd/tidemark/internal/backfill"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/extract"
	"tidemark/cmd/tidemark/internal/reconcile"
	"tidemark/store"
	"tidemark/store/fhir"
)

type reconcileCmd struct {
	extractFlags `embed:""`

	Types   []string `placeholder:"TYPE,…" help:"Compare only these types, and take it that the export has all of them. Default: those that it has, or that were asked for."`
	From    []string `placeholder:"TOPIC,…" help:"Of what the export lacks only what came from these topics is extra. Give it where several sources feed the store. Default: all topics but groups.topic."`
	Content bool     `help:"Look also whether the same version says the same. It reads all bodies where bytes differ."`
	List    bool     `help:"Name the resources. Ids are patient data."`
	Output  string   `type:"path" placeholder:"FILE" help:"Write what was found here, as NDJSON: what, type, id, versions. Ids are patient data."`

	Repair    bool `help:"Write to load.topic what is missing or stale, as it is in the export, and deletions of what is extra."`
	Yes       bool `help:"With --repair: do not ask."`
	MaxDelete int  `default:"10" placeholder:"PERCENT" help:"With --repair: delete no more of a type than this, beyond 100 of them. More is mostly an export that is not whole."`

	Store string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
	Temp  string `type:"path" placeholder:"DIR" help:"Where to sort: about 100 bytes for each resource of the export. Default: the system's folder for temporary files."`
}

// Help is shown by --help.
func (*reconcileCmd) Help() string {
	return `Compares the store with an export of the source, made with any bulk client, and finds what was lost on the way: sources that write to Kafka as
best they can lose events when they crash. It works beside the running server and without it, and changes nothing unless told.

  tidemark reconcile export/
  tidemark reconcile --content --output found.ndjson manifest.json downloads/
  tidemark reconcile --repair export/

What it finds, by type:
  missing    the export has it, the store has not
  stale      the export has a newer version
  extra      the store has it, the export has not, though it is no newer than that: its deletion was lost
  reborn     the export has a lower version of a later time: it was deleted for good and made again, which was lost
  behind     the export has what was before, and nothing has changed here since: the source has gone back, to a backup perhaps
  different  the same version says something else (--content)
  deleted    it was deleted here, and the export has it as it was before that
No faults are
  newer      changed since the export
  erased     erased here for ever
  unjudged   the export does not tell whether the source has it: it is not one of all resources of the type

--repair writes missing, stale and reborn as they are in the export, and deletions of extra as of the time of the export: what has changed at the
source since then wins, in whatever order it comes. Behind, different and deleted cannot be repaired from here, for the store takes no version for
newer than itself: have the source write these anew, behind until their versions have passed those that are here.

Ends with 0 if nothing is wrong or all of it was repaired, else with 1.

Next: once the server has read what was repaired, clients have it with their next _since; run it again, and nothing is found.`
}

// Validate is called by kong.
func (c *reconcileCmd) Validate() error {
	if c.Yes && !c.Repair {
		return errors.New("--yes is for --repair")
	}
	for _, name := range c.Types {
		if _, ok := fhir.ParseType(name); !ok {
			return fmt.Errorf("--types: %q is not a resource type of FHIR R4", name)
		}
	}
	return nil
}

// Run compares, and repairs if it is told to.
func (c *reconcileCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.read()
	if err != nil {
		return err
	}
	if c.Store != "" {
		cfg.Store.Path = c.Store
	}
	if c.Repair && cfg.Load.Topic == "" {
		return misuse{errors.New("no topic to write to: set load.topic in the configuration, or give --topic")}
	}
	e, err := c.find()
	if err != nil {
		return err
	}
	if e.At == fhir.None {
		return misuse{errors.New("nothing says as of when the export is: give its manifest, or --at with the instant at which it began")}
	}
	args := url.Values{"files": {strconv.Itoa(len(e.Files))}, "at": {e.At.String()}}
	if c.Repair {
		args.Set("repair", cfg.Load.Topic)
	}
	at := place{cfg.Store.Path, &cfg.Config}
	return at.onRecord(ctx, "reconcile", args, func() error {
		r := reconciliation{cmd: c, cfg: cfg, at: at, export: e, out: out, types: parsedTypes(c.Types)}
		return r.run(ctx)
	})
}

func parsedTypes(names []string) (types []fhir.Type) {
	for _, name := range names {
		if t, ok := fhir.ParseType(name); ok {
			types = append(types, t)
		}
	}
	return types
}

// A reconciliation is one run.
type reconciliation struct {
	cmd     *reconcileCmd
	cfg     *config.Loaded
	at      place
	export  *extract.Extract
	out     io.Writer
	types   []fhir.Type // nil: all
	scratch *reconcile.Scratch
	seen    map[fhir.Type]bool // in the export
	drop    map[fhir.Type]bool // what topics pass over, which is not missed
	report  *reconcile.Report
}

func (r *reconciliation) run(ctx context.Context) (err error) {
	if r.scratch, err = reconcile.NewScratch(r.cmd.Temp); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.scratch.Close()) }()
	if err := r.sort(ctx); err != nil {
		return err
	}
	if err := r.lag(ctx); err != nil {
		return err
	}
	if err := r.compare(ctx); err != nil {
		return err
	}
	if err := r.tell(); err != nil {
		return err
	}
	sum := r.report.Sum()
	wrong, beyond := sum.Wrong(), sum.By[reconcile.Behind]+sum.By[reconcile.Different]+sum.By[reconcile.Deleted]
	switch {
	case wrong == 0:
		return nil
	case !r.cmd.Repair && wrong == beyond:
		return fmt.Errorf("%s resources are not as the source has them, and --repair cannot help those that are behind, different or deleted: have the source write them anew", humanize.Comma(wrong))
	case !r.cmd.Repair:
		return fmt.Errorf("%s resources are not as the source has them: --repair writes what is missing or stale to load.topic, and deletions of what is extra", humanize.Comma(wrong))
	}
	if err := r.repair(ctx); err != nil {
		return err
	}
	if beyond > 0 {
		return fmt.Errorf("%s resources are left that are behind, different or deleted: have the source write them anew", humanize.Comma(beyond))
	}
	return nil
}

// sort enters all that the export says.
func (r *reconciliation) sort(ctx context.Context) error {
	refused, err := store.ReadRefused(r.at.dir)
	if err != nil {
		return err
	}
	r.seen, r.drop = map[fhir.Type]bool{}, droppedEverywhere(&r.cfg.Config)
	meter := newFileMeter("reading", r.export.Size(), r.out)
	for i, f := range r.export.Files {
		err := f.Each(ctx, extract.Mark{}, meter.add, func(item *extract.Item) error {
			if item.Fault != "" {
				return backfill.Fault{File: f.Name, Line: item.Line, Reason: item.Fault}
			}
			return r.enter(uint32(i), item, refused)
		})
		if err != nil {
			return errors.Join(err, meter.end())
		}
	}
	return meter.end()
}

func (r *reconciliation) enter(file uint32, item *extract.Item, refused func(fhir.Key, []string) bool) error {
	for _, key := range item.Deleted {
		e := reconcile.Entry{Key: key, File: file, Line: uint64(item.Line), Version: store.NoVersion, Updated: fhir.None, Gone: true}
		if err := r.add(&e); err != nil {
			return err
		}
	}
	if item.Deleted != nil {
		return nil
	}
	res := &item.Resource
	if r.drop[res.Key.Type] {
		return nil
	}
	e := reconcile.Entry{
		Key: res.Key, File: file, Line: uint64(item.Line), Version: decimal(res.Version), Updated: res.LastUpdated,
		Hash: xxhash.Sum64(res.Body), Refused: refused(res.Key, res.Patients),
	}
	if r.cmd.Content {
		e.Canonical = reconcile.Canonical(res.Body)
	}
	r.seen[res.Key.Type] = true
	return r.add(&e)
}

// droppedEverywhere are the types that no topic brings.
func droppedEverywhere(c *config.Config) map[fhir.Type]bool {
	drop := map[fhir.Type]bool{}
	for _, t := range fhir.AllTypes() {
		drop[t] = !slices.ContainsFunc(c.Topics, func(topic config.Topic) bool { return !slices.Contains(topic.DropTypes, t.String()) })
	}
	return drop
}

// decimal is a versionId that orders; others are none, as in what is taken in.
func decimal(s string) int64 {
	v, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return store.NoVersion
	}
	return int64(v)
}

func (r *reconciliation) add(e *reconcile.Entry) error {
	if r.types != nil && !slices.Contains(r.types, e.Key.Type) {
		return nil
	}
	return r.scratch.Add(e)
}

// lag says so if the store has not come as far as the export. A topic that it does not know is a
// mistake, behind which every deletion that was lost would pass for none.
func (r *reconciliation) lag(ctx context.Context) error {
	var answer bytes.Buffer
	if err := onStore(ctx, r.at, askedStanding, nil, &answer); err != nil {
		return err
	}
	var s standing
	if err := json.Unmarshal(answer.Bytes(), &s); err != nil {
		return fmt.Errorf("understand the running server: %w", err)
	}
	for _, topic := range r.cmd.From {
		if s.Topics != nil && !slices.Contains(s.Topics, topic) && !slices.ContainsFunc(r.cfg.Topics, func(t config.Topic) bool { return t.Reads(topic) }) {
			return misuse{fmt.Errorf("--from: no entry of topics reads %s, and nothing in the store came from it: nothing would be extra", topic)}
		}
	}
	if s.Watermark >= r.export.At {
		return nil
	}
	_, err := fmt.Fprintf(r.out, "warning: the store stands at %s and the export is as of %s: what is still on its way counts as missing or stale\n", instantOf(s.Watermark), r.export.At)
	return err
}

// Operations of a reconciliation, which is on record itself.
const (
	askedRows    = "reconcile-rows"
	askedContent = "reconcile-content"
)

func rowsOf(ctx context.Context, db *store.DB, args url.Values, out io.Writer) error {
	return reconcile.WriteRows(ctx, db, parsedTypes(args["type"]), out)
}

func contentOf(ctx context.Context, db *store.DB, args url.Values, out io.Writer) error {
	return reconcile.WriteContent(ctx, db, parsedTypes(args["type"]), out)
}

// ask has what the store says read while it is said.
func (r *reconciliation) ask(ctx context.Context, name string, read func(io.Reader) error) error {
	args := url.Values{}
	for _, t := range r.types {
		args.Add("type", t.String())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, says := io.Pipe()
	asked := make(chan error, 1)
	go func() {
		err := onStore(ctx, r.at, name, args, says)
		_ = says.CloseWithError(err) // nil is the end; pipes close always
		asked <- err
	}()
	err := read(in)
	_ = in.CloseWithError(err)
	if said := <-asked; said != nil && err == nil || errors.Is(err, said) {
		return said
	}
	return err
}

func (r *reconciliation) compare(ctx context.Context) error {
	rules := &reconcile.Rules{At: r.export.At, Whole: r.whole(), From: r.from(), Content: r.cmd.Content}
	found, done, err := r.findings()
	if err != nil {
		return err
	}
	err = r.ask(ctx, askedRows, func(in io.Reader) (err error) {
		r.report, err = r.scratch.Compare(in, rules, found)
		return err
	})
	if err == nil && r.cmd.Content {
		err = r.compareContent(ctx, found)
	}
	return errors.Join(err, done())
}

func (r *reconciliation) compareContent(ctx context.Context, found func(*reconcile.Finding) error) error {
	unlike, err := r.scratch.Unlike()
	if err != nil || !unlike {
		return err
	}
	return r.ask(ctx, askedContent, func(in io.Reader) error { return r.scratch.CompareContent(in, r.report, found) })
}

// whole is of which types the export has all.
func (r *reconciliation) whole() map[fhir.Type]bool {
	whole := map[fhir.Type]bool{}
	switch {
	case r.types != nil:
		for _, t := range r.types {
			whole[t] = true
		}
	case r.export.Part == "":
		maps.Copy(whole, r.seen)
		for _, t := range r.export.Asked {
			whole[t] = true
		}
	}
	return whole
}

// from tells what came from the source by its topic.
func (r *reconciliation) from() func(string) bool {
	groups, load := r.cfg.Groups.Topic, r.cfg.Load.Topic
	if len(r.cmd.From) > 0 {
		return func(topic string) bool { return slices.Contains(r.cmd.From, topic) }
	}
	return func(topic string) bool { return groups == "" || topic != groups || topic == load }
}

// findings tells people, and a file, of what is found.
func (r *reconciliation) findings() (found func(*reconcile.Finding) error, done func() error, err error) {
	var file *os.File
	w := bufio.NewWriter(io.Discard)
	if r.cmd.Output != "" {
		if file, err = os.OpenFile(r.cmd.Output, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600); err != nil {
			return nil, nil, err
		}
		w.Reset(file)
	}
	found = func(f *reconcile.Finding) error {
		if r.cmd.List && f.What != reconcile.Newer {
			fmt.Fprintf(r.out, "%s %s\n", f.What, f.Key)
		}
		return writeFinding(w, f)
	}
	done = func() error {
		err := w.Flush()
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return err
	}
	return found, done, nil
}

// side is what one side has of a resource.
type side struct {
	Version     *int64 `json:"version,omitempty"`
	LastUpdated string `json:"lastUpdated,omitempty"`
	Deleted     bool   `json:"deleted,omitempty"`
}

func sideOf(version int64, updated fhir.Instant, deleted bool) *side {
	s := &side{Deleted: deleted}
	if version != store.NoVersion {
		s.Version = &version
	}
	if updated != fhir.None {
		s.LastUpdated = updated.String()
	}
	return s
}

func writeFinding(w io.Writer, f *reconcile.Finding) error {
	line := struct {
		What   string `json:"what"`
		Type   string `json:"type"`
		ID     string `json:"id"`
		Here   *side  `json:"here,omitempty"`
		Source *side  `json:"source,omitempty"`
	}{What: f.What.String(), Type: f.Key.Type.String(), ID: f.Key.ID}
	if n := f.Here; n != nil {
		line.Here = sideOf(n.Clock.Version, n.Clock.LastUpdated, n.Kind != store.Live)
	}
	if e := f.There; e != nil {
		line.Source = sideOf(e.Version, e.Updated, e.Gone)
	}
	return json.NewEncoder(w).Encode(line)
}

// told are the columns of the report.
var told = []reconcile.What{
	reconcile.Missing, reconcile.Stale, reconcile.Extra, reconcile.Reborn, reconcile.Behind, reconcile.Different, reconcile.Deleted, reconcile.Newer, reconcile.Erased, reconcile.Unjudged,
}

func (r *reconciliation) tell() error {
	table := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "TYPE\tEXPORT\tHERE\t")
	for _, w := range told {
		fmt.Fprintf(table, "%s\t", strings.ToUpper(w.String()))
	}
	fmt.Fprintln(table)
	row := func(name string, t *reconcile.Tally) {
		fmt.Fprintf(table, "%s\t%s\t%s\t", name, humanize.Comma(t.Exported), humanize.Comma(t.Here))
		for _, w := range told {
			fmt.Fprintf(table, "%s\t", humanize.Comma(t.By[w]))
		}
		fmt.Fprintln(table)
	}
	for _, typ := range slices.SortedFunc(maps.Keys(r.report.Types), func(a, b fhir.Type) int { return cmp.Compare(a.String(), b.String()) }) {
		row(typ.String(), r.report.Types[typ])
	}
	sum := r.report.Sum()
	row("all", &sum)
	if err := table.Flush(); err != nil {
		return err
	}
	if r.report.Twice > 0 {
		fmt.Fprintf(r.out, "%s lines of the export are of resources that it has in a newer line\n", humanize.Comma(r.report.Twice))
	}
	if r.export.Part != "" && r.types == nil {
		fmt.Fprintf(r.out, "what the export lacks was not looked for, for %s: --types names types of which it has all\n", r.export.Part)
	}
	if sum.Wrong() == 0 {
		_, err := fmt.Fprintf(r.out, "nothing is wrong as of %s\n", r.export.At)
		return err
	}
	return nil
}

// repair writes what is missing or stale, and deletions of what is extra.
func (r *reconciliation) repair(ctx context.Context) error {
	sum := r.report.Sum()
	reborn := sum.By[reconcile.Reborn]
	send, remove := sum.By[reconcile.Missing]+sum.By[reconcile.Stale]+reborn, sum.By[reconcile.Extra]+reborn
	if send+remove == 0 {
		return nil
	}
	if err := r.tooMany(); err != nil {
		return err
	}
	if err := r.confirm(send, remove); err != nil {
		return err
	}
	w, limits, err := loadWriter(ctx, r.cfg)
	if err != nil {
		return err
	}
	defer w.Close()
	warnOfRetention(limits, r.cfg.Load.Topic, r.out)
	fix := backfill.Options{At: r.export.At, Ages: limits.keeps, MaxRecord: int64(r.cfg.Kafka.MaxRecord), Drop: droppedIn(&r.cfg.Config, r.cfg.Load.Topic)}
	tally, err := r.send(ctx, w, fix)
	if err != nil {
		return fmt.Errorf("%w\nrun it again: what was written by now is found no more once the server has read it", err)
	}
	_, err = fmt.Fprintf(r.out, "%s resources and %s deletions were written to %s\n", humanize.Comma(tally.Resources()), humanize.Comma(tally.Deleted), r.cfg.Load.Topic)
	return err
}

// send reads again the files that have something to be sent.
func (r *reconciliation) send(ctx context.Context, w *backfill.Writer, o backfill.Options) (tally *backfill.Tally, err error) {
	wanted, err := r.scratch.Repairs()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, wanted.Close()) }()
	number := map[*extract.File]uint32{}
	for i, f := range r.export.Files {
		number[f] = uint32(i)
	}
	o.Skip = func(f *extract.File) bool { return !wanted.Has(number[f]) }
	o.Wants = func(f *extract.File, item *extract.Item) bool { return wanted.Wants(number[f], uint64(item.Line)) }
	o.First = func(del func(fhir.Key, fhir.Instant)) error {
		return r.scratch.EachExtra(func(key fhir.Key, at fhir.Instant) error { del(key, at); return nil })
	}
	return backfill.Run(ctx, r.export.Files, w, nil, o)
}

// fewEnough is how many of a type may be deleted whatever their share.
const fewEnough = 100

// tooMany refuses what an export does that was cut short, or is of another system.
func (r *reconciliation) tooMany() error {
	for typ, t := range r.report.Types {
		if extra := t.By[reconcile.Extra]; extra > fewEnough && extra*100 > t.Here*int64(r.cmd.MaxDelete) {
			return fmt.Errorf("%s of %s %s would be deleted: nothing was written; if the export is whole, give --max-delete 100", humanize.Comma(extra), humanize.Comma(t.Here), typ)
		}
	}
	return nil
}

func (r *reconciliation) confirm(send, remove int64) error {
	if r.cmd.Yes {
		return nil
	}
	what := fmt.Sprintf("%s resources and %s deletions", humanize.Comma(send), humanize.Comma(remove))
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return fmt.Errorf("nothing was written: give --yes to write %s to %s", what, r.cfg.Load.Topic)
	}
	fmt.Fprintf(r.out, "write %s to %s? [y/N] ", what, r.cfg.Load.Topic)
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n') // the end of input is no yes
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was written")
	}
	return nil
}
