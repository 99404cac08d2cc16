package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"tidemark/store"
	"tidemark/store/fhir"
)

type deadletterCmd struct {
	List listDeadlettersCmd `cmd:"" help:"One line per record that could not be decoded: number, when, where from, why."`
	Show showDeadletterCmd  `cmd:"" help:"One record whole. It is patient data."`
}

// Help is shown by --help.
func (*deadletterCmd) Help() string {
	return `A record that cannot be decoded is kept whole as a dead letter, and the stream goes on. Until it is resolved, exports whose window
holds it say so in their error file.

  tidemark deadletter list
  tidemark deadletter list --topic fhir-changes
  tidemark deadletter show 4711
  tidemark deadletter show 4711 --value > record.json

Both read the segments alone, and may be used while the server runs.

Next: if the source wrote something wrong, have it write the resource again. If the topic's format is wrong here, mend topics in
the configuration and start again: what then decodes disappears from the list by itself.`
}

type listDeadlettersCmd struct {
	storeFlags `embed:""`

	Topic string `placeholder:"NAME" help:"Only those of this topic."`
}

// Run lists dead letters, the newest last.
func (c *listDeadlettersCmd) Run(ctx context.Context, out io.Writer) error {
	at, err := c.place()
	if err != nil {
		return err
	}
	args := url.Values{}
	if c.Topic != "" {
		args.Set("topic", c.Topic)
	}
	return at.onRecord(ctx, "deadletter-list", args, func() error { return c.list(at.dir, out) })
}

func (c *listDeadlettersCmd) list(dir string, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	n := 0
	err := store.ReadDeadLetters(dir, store.Options{Logger: coldLog()}, c.Topic, func(d store.DeadLetterRow) error {
		if n == 0 {
			fmt.Fprintln(table, "NUMBER\tTAKEN IN\tTOPIC\tPARTITION\tOFFSET\tSIZE\tREASON")
		}
		n++
		_, err := fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%d\t%s\t%s\n", d.Seq, d.Instant, d.Partition.Topic, d.Partition.ID, d.Offset,
			humanize.IBytes(uint64(size(d))), printable([]byte(d.Reason)))
		return err
	})
	if err := errors.Join(err, table.Flush()); err != nil {
		return err
	}
	if n == 0 {
		_, err = fmt.Fprintln(out, "no dead letters")
	}
	return err
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

// errFound ends the search.
var errFound = errors.New("found")

// Run shows one dead letter.
func (c *showDeadletterCmd) Run(ctx context.Context, out io.Writer) error {
	at, err := c.place()
	if err != nil {
		return err
	}
	args := url.Values{"number": {strconv.FormatUint(c.Number, 10)}}
	return at.onRecord(ctx, "deadletter-show", args, func() error { return c.show(at.dir, out) })
}

func (c *showDeadletterCmd) show(dir string, out io.Writer) error {
	err := store.ReadDeadLetters(dir, store.Options{Logger: coldLog()}, "", func(d store.DeadLetterRow) error {
		if d.Seq != c.Number {
			return nil
		}
		if err := c.write(out, d); err != nil {
			return err
		}
		return errFound
	})
	switch {
	case errors.Is(err, errFound):
		return nil
	case err == nil:
		return fmt.Errorf("there is no dead letter %d in %s (any more): tidemark deadletter list shows those there are", c.Number, dir)
	}
	return err
}

func (c *showDeadletterCmd) write(out io.Writer, d store.DeadLetterRow) error {
	if c.Value {
		_, err := out.Write(d.Value)
		return err
	}
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
