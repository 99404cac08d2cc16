package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"tidemark/store"
	"tidemark/store/fhir"
)

type inspectCmd struct {
	Resource string `arg:"" optional:"" help:"One resource, as Type/id: its rows, the oldest first."`
	Body     uint64 `placeholder:"NUMBER" help:"With a resource: print the line of the row with this number. It is patient data."`
	Types    bool   `help:"Windows by resource type."`

	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// Help is shown by --help.
func (*inspectCmd) Help() string {
	return `What a store holds and how it stands: windows of time, live and dead bytes, what merges have to do, what snapshots keep. It works
beside the running server and without it.

  tidemark inspect
  tidemark inspect --types
  tidemark inspect Patient/7f0a
  tidemark inspect Patient/7f0a --body 4711

Next: if much is dead for long, raise compaction.cores and compaction.write_rate. If snapshots keep much, clients do not delete their
jobs: shorten export.expires.`
}

// Run inspects a store.
func (c *inspectCmd) Run(ctx context.Context, out io.Writer) error {
	f := storeFlags{configFlags: c.configFlags, Dir: c.Store}
	at, err := f.place()
	if err != nil {
		return err
	}
	args := url.Values{}
	if c.Resource != "" {
		if _, err := fhir.ParseKey(c.Resource); err != nil {
			return fmt.Errorf("%q is not a resource such as Patient/7f0a", c.Resource)
		}
		args.Set("resource", c.Resource)
	}
	if c.Body != 0 {
		args.Set("body", strconv.FormatUint(c.Body, 10))
	}
	if c.Types {
		args.Set("types", "1")
	}
	return onStore(ctx, at, "inspect", args, out)
}

// inspect is what the command does where the store is open.
func inspect(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	if r := args.Get("resource"); r != "" {
		key, err := fhir.ParseKey(r)
		if err != nil {
			return err
		}
		body, _ := strconv.ParseUint(args.Get("body"), 10, 64)
		return inspectResource(at.db, key, body, out)
	}
	if err := inspectStore(at.db, args.Has("types"), out); err != nil {
		return err
	}
	return errors.Join(tellLag(at.trail, out), at.letters.tell(out))
}

func inspectStore(db *store.DB, types bool, out io.Writer) error {
	l, st := db.Layout(), db.Status()
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "FROM\tTO\tSEGMENTS\tROWS\tDEAD\tNDJSON\tDEAD\tON DISK\t")
	for _, w := range l.Windows {
		var sum store.TypeStat
		for _, t := range w.Types {
			sum.Rows, sum.Dead, sum.Bytes, sum.Gone = sum.Rows+t.Rows, sum.Dead+t.Dead, sum.Bytes+t.Bytes, sum.Gone+t.Gone
		}
		state := "settled"
		if !w.Settled {
			state = "fresh"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t %s\n", w.From, w.To, w.Segments, humanize.Comma(sum.Rows), humanize.Comma(sum.Dead),
			bytesOf(sum.Bytes), share(sum.Gone, sum.Bytes), bytesOf(w.Stored), state)
		for _, t := range w.Types {
			if types {
				fmt.Fprintf(table, "\t%s\t\t%s\t%s\t%s\t%s\t\t\n", t.Section, humanize.Comma(t.Rows), humanize.Comma(t.Dead), bytesOf(t.Bytes), share(t.Gone, t.Bytes))
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	lines := []string{
		fmt.Sprintf("%d segments, %s rows, %s on disk; %.2f bytes lie there for each that is live", st.Segments, humanize.Comma(st.Rows), bytesOf(st.Bytes), l.Space),
		fmt.Sprintf("watermark %s, promised %s, epoch %d, commit %d", instantOf(st.Watermark), instantOf(st.Promised), st.Epoch, st.Commit),
		"work left: " + workLeft(l),
		"since the start: " + since(l),
		"snapshots: " + pins(l),
	}
	if len(l.Damaged) > 0 {
		lines = append(lines, "damaged, restore them from a backup: "+strings.Join(l.Damaged, ", "))
	}
	if l.Forgotten != fhir.None {
		lines = append(lines, "deletions up to "+l.Forgotten.String()+" may no longer be known")
	}
	for _, p := range st.Partitions {
		if p.Held != "" {
			lines = append(lines, fmt.Sprintf("%s/%d holds the watermark, see tidemark topic list: %s", p.Partition.Topic, p.Partition.ID, p.Held))
		}
	}
	_, err := fmt.Fprintln(out, strings.Join(lines, "\n"))
	return err
}

func workLeft(l store.Layout) string {
	if l.Unsettled+l.Droppable == 0 {
		return "nothing"
	}
	s := fmt.Sprintf("%s to settle, %s dead to leave out", bytesOf(l.Unsettled), bytesOf(l.Droppable))
	if l.UntilClean > 0 {
		s += ", about " + l.UntilClean.Round(time.Second).String() + " of work"
	}
	return s
}

func since(l store.Layout) string {
	var kinds []string
	for k, n := range l.Merges {
		if n > 0 {
			kinds = append(kinds, fmt.Sprintf("%s %d", k, n))
		}
	}
	slices.Sort(kinds)
	s := "no merges"
	if len(kinds) > 0 {
		s = "merges: " + strings.Join(kinds, ", ")
	}
	if l.Written > 0 {
		s += fmt.Sprintf("; %.1f bytes written for each that came", l.Written)
	}
	return s
}

func pins(l store.Layout) string {
	if l.Pins == 0 && l.PinnedOnly == 0 {
		return "none"
	}
	s := strconv.Itoa(l.Pins)
	if !l.OldestPin.IsZero() {
		s += ", the oldest of " + l.OldestPin.UTC().Format(time.RFC3339)
	}
	return s + "; only they keep " + bytesOf(l.PinnedOnly)
}

func inspectResource(db *store.DB, key fhir.Key, body uint64, out io.Writer) error {
	list, err := db.History(key)
	if err != nil {
		return err
	}
	if body != 0 {
		for _, v := range list {
			if v.Seq == body {
				line, err := db.Body(v)
				if err != nil {
					return err
				}
				_, err = out.Write(line)
				return err
			}
		}
		return fmt.Errorf("the resource has no row with number %d: without --body they are listed", body)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NUMBER\tKIND\tCHANGED\tUNTIL\tVERSION\tLAST UPDATED\tFROM\tBYTES\tPATIENTS\tSEGMENT, BLOCK")
	for _, v := range list {
		version := "-"
		if v.Version != store.NoVersion {
			version = strconv.FormatInt(v.Version, 10)
		}
		until := "now"
		if v.Death != fhir.None {
			until = v.Death.String()
		} else if v.Section.Kind == store.Internal {
			until = "-"
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s at %d\t%d\t%d\t%s, %d\n", v.Seq, v.Section, v.Instant, until, version, instantOf(v.LastUpdated),
			v.Partition, v.Offset, v.Length, len(v.Patients), v.Segment, v.Block)
	}
	return table.Flush()
}

func bytesOf(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

func share(part, whole int64) string {
	if whole == 0 || part == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

func instantOf(i fhir.Instant) string {
	if i == fhir.None {
		return "none"
	}
	return i.String()
}
