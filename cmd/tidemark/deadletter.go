package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"tidemark/pipeline"
	"tidemark/store"
	"tidemark/store/fhir"
)

type deadletterCmd struct {
	List   listDeadlettersCmd   `cmd:"" help:"One line per record that could not be decoded: number, when, where from, why."`
	Show   showDeadletterCmd    `cmd:"" help:"One record whole. It is patient data."`
	Export exportDeadlettersCmd `cmd:"" help:"Records whole, a JSON object a line. It is patient data."`
	Replay replayDeadlettersCmd `cmd:"" help:"Decode records again with the present configuration."`
	Drop   dropDeadlettersCmd   `cmd:"" help:"Take records away for good that nobody wants decoded."`
}

// Help is shown by --help.
func (*deadletterCmd) Help() string {
	return `A record that cannot be decoded is kept whole as a dead letter, and the stream goes on. Until it is resolved, exports whose window
holds it say so in their error file.

  tidemark deadletter list --summary
  tidemark deadletter list --topic fhir-changes --reason 'no resourceType*'
  tidemark deadletter show 4711
  tidemark deadletter show 4711 --value > record.json
  tidemark deadletter export --out records.ndjson
  tidemark deadletter replay --topic fhir-changes
  tidemark deadletter drop --number 4711 --because 'a test message' --yes

All work beside the running server and without it.

Next: if the source wrote something wrong, have it write the resource again, then drop. If the topic's format is wrong here, mend
topics in the configuration and start again: what then decodes since the last good record disappears by itself, replay finds
what is older.`
}

// selectFlags say which dead letters are meant.
type selectFlags struct {
	Number    []uint64 `placeholder:"N,..." help:"Only these: the numbers that list shows."`
	Reason    string   `placeholder:"TEXT" help:"Only those whose reason holds this text; with * and ? it is a pattern of the whole reason."`
	Topic     string   `placeholder:"NAME" help:"Only those of this topic."`
	Partition *int32   `placeholder:"N" help:"Only those of this partition of each topic."`
	Since     string   `placeholder:"WHEN" help:"Only those taken in then or later: a FHIR date or instant, or so long ago (90m, 48h)."`
	Until     string   `placeholder:"WHEN" help:"Only those taken in before."`
}

// args are the flags as an operation gets them. Times that are counted from now are told as instants.
func (f *selectFlags) args() (url.Values, error) {
	args := url.Values{}
	for _, n := range f.Number {
		args.Add("number", strconv.FormatUint(n, 10))
	}
	if f.Partition != nil {
		args.Set("partition", strconv.FormatInt(int64(*f.Partition), 10))
	}
	for name, text := range map[string]string{"reason": f.Reason, "topic": f.Topic} {
		if text != "" {
			args.Set(name, text)
		}
	}
	for name, text := range map[string]string{"since": f.Since, "until": f.Until} {
		at, err := parseWhen(text, time.Now())
		if err != nil {
			return nil, misuse{fmt.Errorf("--%s: %w", name, err)}
		}
		if at != fhir.None {
			args.Set(name, at.String())
		}
	}
	return args, nil
}

// parseWhen reads a date, an instant, or how long ago; "" is none.
func parseWhen(text string, now time.Time) (fhir.Instant, error) {
	if text == "" {
		return fhir.None, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return fhir.FromTime(now.Add(-ago)), nil
	}
	first, _, ok := fhir.ParseSpan(text)
	if !ok {
		return fhir.None, fmt.Errorf("%q is neither a date, nor an instant such as 2026-01-02T03:04:05Z, nor how long ago, such as 48h", text)
	}
	return first, nil
}

// selection is what args say.
func selection(args url.Values) (pipeline.Selection, error) {
	sel := pipeline.All()
	sel.Reason, sel.Topic = args.Get("reason"), args.Get("topic")
	for _, text := range args["number"] {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return sel, err
		}
		sel.Numbers = append(sel.Numbers, n)
	}
	if text := args.Get("partition"); text != "" {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return sel, err
		}
		sel.Partition = new(int32(n))
	}
	for name, at := range map[string]*fhir.Instant{"since": &sel.Since, "until": &sel.Until} {
		var err error
		if *at, err = parseWhen(args.Get(name), time.Time{}); err != nil {
			return sel, err
		}
	}
	return sel, nil
}

// eachDeadLetter calls fn for the dead letters that are meant, those of a segment in the
// order in which they were taken in.
func eachDeadLetter(db *store.DB, args url.Values, fn func(store.DeadLetterRow) error) error {
	sel, err := selection(args)
	if err != nil {
		return err
	}
	if err := db.Flush(); err != nil { // what is not committed is not there
		return err
	}
	match := sel.Match()
	return db.DeadLetters(sel.Topic, func(r store.DeadLetterRow) error {
		if !match(r) {
			return nil
		}
		return fn(r)
	})
}

// noDeadLetters is what is said where there are none, or none of those that were asked for.
func noDeadLetters(args url.Values) string {
	if slices.ContainsFunc([]string{"number", "reason", "topic", "partition", "since", "until"}, args.Has) {
		return "no dead letters that these flags choose: without them all are listed"
	}
	return "no dead letters"
}

type listDeadlettersCmd struct {
	storeFlags  `embed:""`
	selectFlags `embed:""`

	Summary bool `help:"One line per topic and reason, with how many there are."`
}

// Run lists dead letters, the newest last.
func (c *listDeadlettersCmd) Run(ctx context.Context, out io.Writer) error {
	return onDeadLetters(ctx, "list", &c.storeFlags, &c.selectFlags, out, func(args url.Values) {
		if c.Summary {
			args.Set("summary", "1")
		}
	})
}

// onDeadLetters asks for an operation on the dead letters that flags choose.
func onDeadLetters(ctx context.Context, what string, at *storeFlags, chosen *selectFlags, out io.Writer, more func(url.Values)) error {
	args, err := chosen.args()
	if err != nil {
		return err
	}
	p, err := at.place()
	if err != nil {
		return err
	}
	more(args)
	return onStore(ctx, p, "deadletter-"+what, args, out)
}

// listDeadLetters is what the command does where the store is open.
func listDeadLetters(_ context.Context, db *store.DB, args url.Values, out io.Writer) error {
	if args.Has("summary") {
		return sumDeadLetters(db, args, out) //nolint:contextcheck // a commit is not cut short
	}
	w := bufio.NewWriter(out)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	n := 0
	err := eachDeadLetter(db, args, func(d store.DeadLetterRow) error { //nolint:contextcheck // a commit is not cut short
		if n == 0 {
			fmt.Fprintln(table, "NUMBER\tTAKEN IN\tTOPIC\tPARTITION\tOFFSET\tSIZE\tREASON")
		}
		n++
		_, err := fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%d\t%s\t%s\n", d.Seq, d.Instant, d.Partition.Topic, d.Partition.ID, d.Offset,
			humanize.IBytes(uint64(size(d))), printable([]byte(d.Reason)))
		return err
	})
	if n == 0 && err == nil {
		fmt.Fprintln(w, noDeadLetters(args))
	}
	return errors.Join(err, table.Flush(), w.Flush())
}

// sumDeadLetters shows how many there are of which kind, the most first.
func sumDeadLetters(db *store.DB, args url.Values, out io.Writer) error {
	type kind struct{ topic, reason string }
	type sum struct {
		kind
		count       int
		first, last fhir.Instant
	}
	sums := map[kind]*sum{}
	err := eachDeadLetter(db, args, func(d store.DeadLetterRow) error {
		k := kind{d.Partition.Topic, d.Reason}
		s := sums[k]
		if s == nil {
			s = &sum{kind: k, first: d.Instant, last: d.Instant}
			sums[k] = s
		}
		s.count, s.first, s.last = s.count+1, min(s.first, d.Instant), max(s.last, d.Instant)
		return nil
	})
	if err != nil {
		return err
	}
	if len(sums) == 0 {
		_, err := fmt.Fprintln(out, noDeadLetters(args))
		return err
	}
	w := bufio.NewWriter(out)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "COUNT\tTOPIC\tFIRST\tLAST\tREASON")
	list := slices.SortedFunc(maps.Values(sums), func(a, b *sum) int {
		return cmp.Or(cmp.Compare(b.count, a.count), strings.Compare(a.topic, b.topic), strings.Compare(a.reason, b.reason))
	})
	for _, s := range list {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", humanize.Comma(int64(s.count)), s.topic, s.first, s.last, printable([]byte(s.reason)))
	}
	return errors.Join(table.Flush(), w.Flush())
}

// size is that of the whole value, of which less may be kept.
func size(d store.DeadLetterRow) int64 {
	if d.Truncated {
		return d.Length
	}
	return int64(len(d.Value))
}

type showDeadletterCmd struct {
	Number uint64 `arg:"" help:"The number that list shows."`

	storeFlags `embed:""`

	Value bool `help:"Only the value, byte for byte."`
}

// Run shows one dead letter.
func (c *showDeadletterCmd) Run(ctx context.Context, out io.Writer) error {
	chosen := selectFlags{Number: []uint64{c.Number}}
	return onDeadLetters(ctx, "show", &c.storeFlags, &chosen, out, func(args url.Values) {
		if c.Value {
			args.Set("value", "1")
		}
	})
}

// errFound ends the search.
var errFound = errors.New("found")

// showDeadLetter is what the command does where the store is open.
func showDeadLetter(_ context.Context, db *store.DB, args url.Values, out io.Writer) error {
	err := eachDeadLetter(db, args, func(d store.DeadLetterRow) error { //nolint:contextcheck // a commit is not cut short
		if args.Has("value") {
			_, err := out.Write(d.Value)
			return cmp.Or(err, errFound)
		}
		return cmp.Or(writeDeadLetter(out, d), errFound)
	})
	switch {
	case errors.Is(err, errFound):
		return nil
	case err == nil:
		return fmt.Errorf("there is no dead letter %s (any more): tidemark deadletter list shows those there are", args.Get("number"))
	}
	return err
}

func writeDeadLetter(out io.Writer, d store.DeadLetterRow) error {
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, "number     %d\nreason     %s\ntaken in   %s\nfrom       %s, partition %d, offset %d\n",
		d.Seq, printable([]byte(d.Reason)), d.Instant, d.Partition.Topic, d.Partition.ID, d.Offset)
	if d.Timestamp != fhir.None {
		fmt.Fprintf(w, "timestamp  %s\n", d.Timestamp)
	}
	for _, h := range d.Headers {
		fmt.Fprintf(w, "header     %s: %s\n", printable([]byte(h.Key)), orNull(h.Value))
	}
	fmt.Fprintf(w, "key        %s\n", orNull(d.Key))
	if d.Truncated {
		fmt.Fprintf(w, "size       %d bytes, SHA-256 %s; larger than kafka.max_record, only the beginning is kept\n", d.Length, d.SHA256)
	}
	fmt.Fprintf(w, "value      %s\n", orNull(d.Value))
	return w.Flush()
}

func orNull(b []byte) string {
	if b == nil {
		return "null"
	}
	return printable(b)
}

// printable keeps what a terminal may show and quotes the rest: a record could
// otherwise hold escape sequences.
func printable(b []byte) string {
	s := string(b)
	if utf8.ValidString(s) {
		plain := true
		for _, r := range s {
			plain = plain && (unicode.IsPrint(r) || r == '\n' || r == '\t')
		}
		if plain {
			return s
		}
	}
	return strconv.Quote(s)
}
