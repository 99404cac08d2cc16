package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"tidemark/pipeline"
)

type replayDeadlettersCmd struct {
	storeFlags  `embed:""`
	selectFlags `embed:""`
}

// Help is shown by --help.
func (*replayDeadlettersCmd) Help() string {
	return `Decodes dead letters with the configuration of now: that of the running server, else the one given here. What can be decoded is taken
in as what it is, an old record: if something newer of the resource is there, that stands. What cannot stays a dead letter.

  tidemark deadletter replay --topic fhir-changes
  tidemark deadletter replay --reason '*schema 17*' --config tidemark.yaml

Next: tidemark deadletter list --summary shows what is left. What nobody will mend: tidemark deadletter drop.`
}

// Run decodes dead letters again.
func (c *replayDeadlettersCmd) Run(ctx context.Context, out io.Writer) error {
	return onDeadLetters(ctx, "replay", &c.storeFlags, &c.selectFlags, out, func(url.Values) {})
}

// replayDeadLetters is what the command does where the store is open.
func replayDeadLetters(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	sel, err := selection(args)
	if err != nil {
		return err
	}
	intake := at.intake
	if intake == nil {
		if intake, err = idleIntake(at); err != nil {
			return err
		}
	}
	done, err := intake.Replay(ctx, sel)
	fmt.Fprintf(out, "%s decoded, with %s changes\n", records(done.Resolved), humanize.Comma(int64(done.Changes)))
	for _, reason := range slices.SortedFunc(maps.Keys(done.Still), func(a, b string) int {
		return cmp.Or(cmp.Compare(done.Still[b], done.Still[a]), strings.Compare(a, b))
	}) {
		fmt.Fprintf(out, "%s not: %s\n", records(done.Still[reason]), printable([]byte(reason)))
	}
	return err
}

// idleIntake is a pipeline that reads nothing.
func idleIntake(at *opened) (*pipeline.Pipeline, error) {
	if at.config == nil {
		return nil, errors.New("how records are decoded stands in the configuration: give --config FILE, or start the server")
	}
	o, err := intakeOptions(at.config, at.db, coldLog())
	if err != nil {
		return nil, err
	}
	return pipeline.New(o, at.db)
}

func records(n int) string {
	if n == 1 {
		return "1 record"
	}
	return humanize.Comma(int64(n)) + " records"
}

type dropDeadlettersCmd struct {
	storeFlags  `embed:""`
	selectFlags `embed:""`

	Because string `required:"" placeholder:"TEXT" help:"Why. It is put on record, so do not name patients."`
	All     bool   `help:"All there are, where nothing else chooses some."`
	Yes     bool   `help:"Do it. Without this it is only said what would be dropped."`
}

// Help is shown by --help.
func (*dropDeadlettersCmd) Help() string {
	return `Takes dead letters away for good: exports after this say nothing of them. Do that once what they told has come in another way, or was
never meant for this store. The audit trail keeps who did it, which were meant, and why.

  tidemark deadletter drop --topic fhir-changes --reason 'no resourceType*' --because 'heartbeats, TICKET-12'
  tidemark deadletter drop --number 4711 --because 'written anew by the source' --yes

This cannot be undone, unless you keep what this writes: tidemark deadletter export`
}

// Run drops dead letters.
func (c *dropDeadlettersCmd) Run(ctx context.Context, out io.Writer) error {
	args, err := c.args()
	switch {
	case err != nil:
		return err
	case len(args) == 0 && !c.All:
		return misuse{errors.New("nothing was dropped: say which (--number, --reason, --topic, --partition, --since, --until), or --all")}
	}
	if err := saysWhy(c.Because); err != nil {
		return err
	}
	if !c.Yes {
		err := onDeadLetters(ctx, "list", &c.storeFlags, &c.selectFlags, out, func(args url.Values) { args.Set("summary", "1") })
		return cmp.Or(err, errors.New("nothing was dropped: give --yes to drop these"))
	}
	return onDeadLetters(ctx, "drop", &c.storeFlags, &c.selectFlags, out, func(args url.Values) { args.Set("because", c.Because) })
}

// dropDeadLetters is what the command does where the store is open.
func dropDeadLetters(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	sel, err := selection(args)
	if err != nil {
		return err
	}
	drop := func() (int, error) { return pipeline.Drop(ctx, at.db, sel) }
	if at.intake != nil {
		drop = func() (int, error) { return at.intake.Drop(ctx, sel) }
	}
	n, err := drop()
	fmt.Fprintf(out, "%s dropped\n", records(n))
	return err
}
