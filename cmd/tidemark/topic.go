package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/pipeline"
	"tidemark/store"
)

type topicCmd struct {
	List   listTopicsCmd  `cmd:"" help:"How far each partition is read, what holds the watermark back, and what to do about it."`
	Pause  pauseTopicCmd  `cmd:"" help:"Read a topic no further, until resume."`
	Resume resumeTopicCmd `cmd:"" help:"Read a topic again that was paused."`
	Accept acceptTopicCmd `cmd:"" help:"Go on after a gap in a log, knowing that something may be missing."`
	Forget forgetTopicCmd `cmd:"" help:"Go on without a topic or partition that is not there any more."`
}

// Help is shown by --help.
func (*topicCmd) Help() string {
	return `Exports reach as far as everything is read: what may be missing from a topic stops the watermark, and with it every transactionTime,
until it is there or somebody decides.

  tidemark topic list
  tidemark topic pause fhir-changes --because 'the source is being restored'
  tidemark topic resume fhir-changes
  tidemark topic accept fhir-changes/3 --because 'TICKET-12: loaded again by hand'
  tidemark topic forget old-topic --because 'replaced by fhir-changes'

All are on record in the audit trail, hold over restarts, and work beside the running server; all but accept also without it.`
}

// topicFlags name a topic, or one partition of it.
type topicFlags struct {
	Topic string `arg:"" help:"The topic, or one partition of it as TOPIC/NUMBER."`

	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// ask has an operation done.
func (f *topicFlags) ask(ctx context.Context, what, because string, out io.Writer) error {
	topic, number, one := strings.Cut(f.Topic, "/")
	args := url.Values{}
	if topic != "" {
		args.Set("topic", topic)
	}
	if one {
		if _, err := strconv.ParseInt(number, 10, 32); err != nil {
			return misuse{fmt.Errorf("%q is neither a topic nor a partition such as %s/0", f.Topic, topic)}
		}
		args.Set("partition", number)
	}
	if because != "" {
		args.Set("because", because)
	}
	at, err := (&storeFlags{configFlags: f.configFlags, Dir: f.Store}).place()
	if err != nil {
		return err
	}
	return onStore(ctx, at, "topic-"+what, args, out)
}

// whole refuses a partition where only topics can be meant.
func (f *topicFlags) whole() error {
	if strings.Contains(f.Topic, "/") {
		return misuse{fmt.Errorf("%q is one partition: only whole topics are paused", f.Topic)}
	}
	return nil
}

// saysWhy refuses a reason that is none, or that would not stand in a line.
func saysWhy(because string) error {
	switch {
	case strings.TrimSpace(because) == "":
		return misuse{errors.New("--because: say why")}
	case strings.ContainsFunc(because, unicode.IsControl):
		return misuse{errors.New("--because: say why in one line, without control characters")}
	}
	return nil
}

// partitionOf is the partition that args name, nil if they mean all.
func partitionOf(args url.Values) *int32 {
	n, err := strconv.ParseInt(args.Get("partition"), 10, 32)
	if err != nil {
		return nil
	}
	return new(int32(n))
}

type pauseTopicCmd struct {
	topicFlags `embed:""`
	Because    string `placeholder:"TEXT" help:"Why: status and audit trail show it."`
}

// Run pauses a topic.
func (c *pauseTopicCmd) Run(ctx context.Context, out io.Writer) error {
	if err := c.whole(); err != nil {
		return err
	}
	if c.Because != "" {
		if err := saysWhy(c.Because); err != nil {
			return err
		}
	}
	return c.ask(ctx, "pause", c.Because, out)
}

func pauseTopic(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	topic, because := args.Get("topic"), args.Get("because")
	var err error
	if at.intake != nil {
		err = at.intake.Pause(ctx, topic, because)
	} else if err = mayBeRead(at, topic); err == nil {
		err = pipeline.Pause(at.db, topic, because)
	}
	return said(out, err, "topic %s is paused: the watermark waits for it, until tidemark topic resume %s", topic, topic)
}

// mayBeRead refuses a topic that nobody will read, most likely a slip of the pen. Without a
// configuration only what was read is known.
func mayBeRead(at *opened, topic string) error {
	if at.config != nil && !reads(at.config, topic) {
		return fmt.Errorf("topic %s is not configured, so it is not read", topic)
	}
	known := false
	for id := range at.db.Committed() {
		known = known || id.Topic == topic
	}
	if at.config == nil && !known {
		return fmt.Errorf("topic %s was never read; whether it is to be stands in the configuration: give --config FILE", topic)
	}
	return nil
}

// said tells what was done.
func said(out io.Writer, err error, format string, args ...any) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, format+"\n", args...)
	return err
}

type resumeTopicCmd struct {
	topicFlags `embed:""`
}

// Run resumes a topic.
func (c *resumeTopicCmd) Run(ctx context.Context, out io.Writer) error {
	if err := c.whole(); err != nil {
		return err
	}
	return c.ask(ctx, "resume", "", out)
}

func resumeTopic(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	topic := args.Get("topic")
	var err error
	if at.intake != nil {
		err = at.intake.Resume(ctx, topic)
	} else {
		err = pipeline.Resume(at.db, topic)
	}
	if at.intake != nil && err == nil {
		for _, t := range at.intake.Status().Topics {
			if t.Name == topic && t.Held != "" {
				return said(out, nil, "topic %s is not paused any more, but held: %s", topic, t.Held)
			}
		}
	}
	return said(out, err, "topic %s is read again", topic)
}

type acceptTopicCmd struct {
	topicFlags `embed:""`
	Because    string `required:"" placeholder:"TEXT" help:"Why this is right. It is put on record."`
	Yes        bool   `help:"Do it. Without this it is only said how things stand."`
}

// Help is shown by --help.
func (*acceptTopicCmd) Help() string {
	return `A gap is where a log no longer continues what was read of it: offsets have expired, the topic was deleted and created anew, brokers
have lost records, or deletions may have been compacted away unseen. What it lacks nobody can tell, so reading stops there and the
watermark waits. Before you accept it, see that what is missing comes in another way (a new snapshot of the source into the topic),
or that it does not matter.

  tidemark topic accept fhir-changes/3 --because 'TICKET-12: the source writes all of it anew' --yes

Reading then goes on: after expired offsets where the log begins now; of a log that is another one from its beginning. What may be missing
stays known as a dead letter, and exports whose window holds it say so in their error file. Once it is made good: tidemark deadletter drop.`
}

// Run accepts gaps.
func (c *acceptTopicCmd) Run(ctx context.Context, out io.Writer) error {
	if err := saysWhy(c.Because); err != nil {
		return err
	}
	if !c.Yes {
		if err := c.ask(ctx, "list", "", out); err != nil {
			return err
		}
		return errors.New("nothing was accepted: give --yes to go on after the gap")
	}
	return c.ask(ctx, "accept", c.Because, out)
}

func acceptTopic(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	if at.intake == nil {
		return errors.New("where the log goes on only the brokers know: start the server, and ask again beside it")
	}
	topic := args.Get("topic")
	accepted, err := at.intake.Accept(ctx, topic, partitionOf(args))
	for _, a := range accepted {
		fmt.Fprintf(out, "%s/%d is read on from offset %d: %s\n", a.Partition.Topic, a.Partition.ID, a.From, a.Gap)
	}
	if err != nil {
		return fmt.Errorf("topic %s: %w", topic, err)
	}
	_, err = fmt.Fprintln(out, "what may be missing is a dead letter now: once it is made good, tidemark deadletter drop")
	return err
}

type forgetTopicCmd struct {
	topicFlags `embed:""`
	Because    string `required:"" placeholder:"TEXT" help:"Why this is right. It is put on record."`
	Yes        bool   `help:"Do it. Without this it is only said how things stand."`
}

// Help is shown by --help.
func (*forgetTopicCmd) Help() string {
	return `A topic that was read once and is no longer configured, or that the brokers do not have any more, holds the watermark: what it said
last may not have been read. Forgetting it lets the watermark go on. The resources that came of it stay.

  tidemark topic forget old-topic --because 'replaced by fhir-changes' --yes

One that is configured and there is refused: take it out of topics in the configuration and restart first. If it comes back, it is
read from its beginning.`
}

// Run forgets partitions.
func (c *forgetTopicCmd) Run(ctx context.Context, out io.Writer) error {
	if err := saysWhy(c.Because); err != nil {
		return err
	}
	if !c.Yes {
		if err := c.ask(ctx, "list", "", out); err != nil {
			return err
		}
		return errors.New("nothing was forgotten: give --yes to go on without it")
	}
	return c.ask(ctx, "forget", c.Because, out)
}

func forgetTopic(ctx context.Context, at *opened, args url.Values, out io.Writer) error {
	topic := args.Get("topic")
	forgotten, err := forgetPartitions(ctx, at, topic, partitionOf(args))
	for _, id := range forgotten {
		fmt.Fprintf(out, "%s/%d is forgotten: the watermark does not wait for it any more, what came of it stays\n", id.Topic, id.ID)
	}
	if err != nil {
		return fmt.Errorf("topic %s: %w", topic, err)
	}
	return nil
}

func forgetPartitions(ctx context.Context, at *opened, topic string, partition *int32) ([]store.Partition, error) {
	if at.intake != nil {
		return at.intake.Forget(ctx, topic, partition)
	}
	if at.config == nil {
		return nil, errors.New("whether it is configured still stands in the configuration: give --config FILE, or start the server")
	}
	return pipeline.Forget(at.db, topic, partition, func(topic string) bool { return reads(at.config, topic) })
}

func reads(c *config.Config, topic string) bool {
	for i := range c.Topics {
		if c.Topics[i].Reads(topic) {
			return true
		}
	}
	return false
}
