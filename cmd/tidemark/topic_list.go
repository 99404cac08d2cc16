package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"tidemark/pipeline"
	"tidemark/pipeline/join"
	"tidemark/store"
	"tidemark/store/fhir"
)

type listTopicsCmd struct {
	Topic string `arg:"" optional:"" help:"Only this topic, or one partition of it as TOPIC/NUMBER."`

	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// Run lists topics.
func (c *listTopicsCmd) Run(ctx context.Context, out io.Writer) error {
	f := topicFlags{Topic: c.Topic, configFlags: c.configFlags, Store: c.Store}
	return f.ask(ctx, "list", "", out)
}

// listTopics is what the command does where the store is open.
func listTopics(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	letters := map[string]int{}
	err := eachDeadLetter(at.db, nil, func(d store.DeadLetterRow) error { letters[d.Partition.Topic]++; return nil }) //nolint:contextcheck // a commit is not cut short
	if err != nil {
		return err
	}
	l := topicList{only: args.Get("topic"), partition: partitionOf(args), letters: letters, out: bufio.NewWriter(out)}
	l.found = l.only == "" || l.partition == nil && letters[l.only] > 0
	st := at.db.Status()
	if at.intake != nil {
		l.live(ctx, at, st)
	} else {
		l.cold(at, st)
	}
	if !l.found {
		return fmt.Errorf("nothing is known of %s: tidemark topic list shows all topics that are read, and those that the brokers do not have yet", name(args))
	}
	fmt.Fprintf(l.out, "\nexports reach to %s\n", instantOf(st.Watermark))
	return l.out.Flush()
}

// name is what args name, as it was written.
func name(args url.Values) string {
	if args.Has("partition") {
		return args.Get("topic") + "/" + args.Get("partition")
	}
	return args.Get("topic")
}

// A topicList is written to out.
type topicList struct {
	only      string // topic, "": all
	partition *int32
	letters   map[string]int
	out       *bufio.Writer
	found     bool // something of what is wanted
}

func (l *topicList) wants(id store.Partition) bool {
	return (l.only == "" || l.only == id.Topic) && (l.partition == nil || *l.partition == id.ID)
}

// live shows what the server that reads knows.
func (l *topicList) live(ctx context.Context, at *opened, st store.Status) {
	p := at.intake.Status()
	read := map[store.Partition]pipeline.PartitionStatus{}
	for _, s := range p.Partitions {
		read[s.Partition] = s
	}
	l.partitions(st, func(s store.PartitionStatus) (end, lag, state string) {
		r, ok := read[s.Partition]
		if !ok {
			return "-", "-", "not there"
		}
		return humanize.Comma(r.End), humanize.Comma(max(0, r.End-s.Next)), stateOf(r, s)
	})
	for _, t := range p.Topics {
		if l.only != "" && l.only != t.Name {
			continue
		}
		l.found = l.found || l.partition == nil
		fmt.Fprintf(l.out, "\ntopic %s: format %s, %s", t.Name, t.Format, deadLetterCount(l.letters[t.Name]))
		if t.DeadLetters > 0 {
			fmt.Fprintf(l.out, ", %s since the last good record", humanize.Comma(int64(t.DeadLetters)))
		}
		if t.Held != "" {
			fmt.Fprintf(l.out, "\n  held: %s", t.Held)
		}
	}
	fmt.Fprintln(l.out)
	for _, s := range st.Partitions {
		if l.wants(s.Partition) {
			l.hold(s, read[s.Partition])
		}
	}
	for _, s := range p.Partitions {
		if s.Open > 0 && l.wants(s.Partition) {
			l.transactions(ctx, at, s)
		}
	}
	if l.only == "" {
		l.waiting(p.Waiting)
	}
	if len(p.Missing) > 0 && l.only == "" {
		fmt.Fprintf(l.out, "\nthe brokers do not have yet: %s\n", strings.Join(p.Missing, ", "))
		if st.Watermark == fhir.None {
			fmt.Fprintln(l.out, "  no export can begin until each of them is there and read: create them, or take them out of topics and restart")
		}
	}
	if p.Trouble != "" {
		fmt.Fprintf(l.out, "\nthe brokers cannot be asked: %s\n", p.Trouble)
	}
}

// stateOf is a partition's state in a word or two.
func stateOf(r pipeline.PartitionStatus, s store.PartitionStatus) string {
	switch {
	case r.Gap != "":
		return fmt.Sprintf("gap (%s)", r.Reason)
	case r.Absent:
		return "not there"
	case r.Held != "":
		return "held"
	case r.Waits != "":
		return "waits"
	case r.Trouble != "":
		return "not reached"
	case r.Open > 0:
		return "open transaction"
	case !s.Joined:
		return "catching up"
	}
	return "read"
}

// hold says why a partition holds the watermark, since when, and what to do. What holds a
// whole topic is said of that.
func (l *topicList) hold(s store.PartitionStatus, r pipeline.PartitionStatus) {
	switch {
	case r.Gap != "":
		fmt.Fprintf(l.out, "\n%s\n  found %s\n", r.Gap, r.Since.UTC().Format(time.RFC3339))
	case r.Absent || r.Held == "" && s.Held == "" && r.Trouble != "": // it holds, though it is not said yet
		fmt.Fprintf(l.out, "\n%s/%d: %s\n", s.Partition.Topic, s.Partition.ID, r.Trouble)
	case r.Held == "" && s.Held != "":
		fmt.Fprintf(l.out, "\n%s/%d: %s\n", s.Partition.Topic, s.Partition.ID, s.Held)
	}
}

// waiting says what versions wait for that came without the rows of other tables.
func (l *topicList) waiting(of []join.Wait) {
	for _, w := range of {
		fmt.Fprintf(l.out, "\nthe watermark stays below what waits for rows of other tables, %s since %s:\n  %s\n"+
			"  that lasts until they come, and else until all has been read that was written a minute later: then each is a dead letter\n",
			versions(w.Versions), w.Since.Time().UTC().Format(time.RFC3339), w.For)
	}
}

func versions(n int) string {
	if n == 1 {
		return "1 version"
	}
	return humanize.Comma(int64(n)) + " versions"
}

// transactions says whose transaction hides the end of a log.
func (l *topicList) transactions(ctx context.Context, at *opened, s pipeline.PartitionStatus) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	open, err := at.intake.Transactions(ctx, s.Partition)
	fmt.Fprintf(l.out, "\n%s/%d: an open transaction hides %s\n", s.Partition.Topic, s.Partition.ID, records(int(s.Open)))
	if err != nil {
		fmt.Fprintf(l.out, "  whose it is cannot be asked: %v\n", err)
	}
	for _, t := range open {
		fmt.Fprintf(l.out, "  producer %d, epoch %d, since offset %d, its last record of %s; if it hangs:\n"+
			"  kafka-transactions.sh --bootstrap-server %s abort --topic %s --partition %d --start-offset %d\n",
			t.Producer, t.Epoch, t.Start, t.Last.UTC().Format(time.RFC3339), at.config.Kafka.Brokers[0], s.Partition.Topic, s.Partition.ID, t.Start)
	}
}

// cold shows what the store alone knows.
func (l *topicList) cold(at *opened, st store.Status) {
	l.partitions(st, func(s store.PartitionStatus) (end, lag, state string) {
		state = "not read now"
		if paused, err := pipeline.Paused(at.db, s.Partition.Topic); err == nil && paused != "" {
			state = "paused " + paused
		}
		return "-", "-", state
	})
	for name, n := range l.letters {
		if l.only == "" || l.only == name {
			fmt.Fprintf(l.out, "\ntopic %s: %s", name, deadLetterCount(n))
		}
	}
	fmt.Fprintln(l.out, "\nno server has the store open: what holds a partition is known while one runs")
}

func deadLetterCount(n int) string {
	if n == 1 {
		return "1 dead letter"
	}
	return humanize.Comma(int64(n)) + " dead letters"
}

func (l *topicList) partitions(st store.Status, of func(store.PartitionStatus) (end, lag, state string)) {
	table := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TOPIC\tPARTITION\tNEXT\tEND\tLAG\tREAD UP TO\tSTATE")
	for _, s := range st.Partitions {
		if !l.wants(s.Partition) {
			continue
		}
		l.found = true
		end, lag, state := of(s)
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", s.Partition.Topic, s.Partition.ID, humanize.Comma(s.Next), end, lag, instantOf(s.Watermark), state)
	}
	_ = table.Flush() // out keeps the error
}
