package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"tidemark/api/audit"
)

type auditCmd struct {
	Whose  whoseAuditCmd  `cmd:"" default:"withargs" help:"Who was given data of a patient: tidemark audit --patient ID"`
	Verify verifyAuditCmd `cmd:"" help:"Prove that the audit trail is what was written."`
	List   listAuditCmd   `cmd:"" help:"List what is on record."`
}

// Help is shown by --help.
func (*auditCmd) Help() string {
	return `The audit trail is files of FHIR AuditEvents, a line each, chained by their ids. They are only read here, beside the server too.

  tidemark audit --patient ID
  tidemark audit verify
  tidemark audit list --client research --since 2026-11-01T00:00:00Z
  tidemark audit list --action download --json

The lines hold the values of parameters, and with them perhaps ids of patients.`
}

type auditFlags struct {
	Dir string `type:"path" placeholder:"DIR" help:"The folder of the trail. Default: audit.file of the configuration, or audit in the store's directory."`

	configFlags `embed:""`
}

func (f *auditFlags) dir() (string, error) {
	if f.Dir != "" {
		return f.Dir, nil
	}
	c, err := f.load()
	if err != nil {
		return "", err
	}
	return c.AuditDir(), nil
}

type verifyAuditCmd struct {
	auditFlags `embed:""`
}

// Run proves the chain, and names each place where it is broken.
func (c *verifyAuditCmd) Run(_ context.Context, out io.Writer) error {
	dir, err := c.dir()
	if err != nil {
		return err
	}
	r, err := audit.Walk(audit.Disk, dir, nil)
	if err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintf(out, "note: %v\n", n)
	}
	for _, b := range r.Breaks {
		fmt.Fprintln(out, b)
	}
	fmt.Fprintf(out, "%d lines in %d files\n", r.Lines, r.Files)
	if len(r.Breaks) > 0 {
		return fmt.Errorf("the audit trail is not what was written: %d places", len(r.Breaks))
	}
	return nil
}

type listAuditCmd struct {
	Client string    `help:"Only of this client_id."`
	Action string    `help:"Only these: kickoff, download, read, publish, delete, token, refused, client, command."`
	Since  time.Time `placeholder:"INSTANT" help:"Only from then on, such as 2026-11-01T00:00:00Z."`
	JSON   bool      `name:"json" help:"The AuditEvents as they are, a line each."`

	auditFlags `embed:""`
}

// Run lists events, the oldest first.
func (c *listAuditCmd) Run(_ context.Context, out io.Writer) error {
	dir, err := c.dir()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(table, "TIME\tACTION\tOUTCOME\tWHO\tFROM\tWHAT")
	}
	r, err := audit.Walk(audit.Disk, dir, func(l *audit.Line) error {
		switch {
		case !c.wants(l.Event):
			return nil
		case c.JSON:
			_, err := fmt.Fprintf(out, "%s\n", l.Text)
			return err
		}
		_, err := fmt.Fprintln(table, auditRow(l.Event))
		return err
	})
	if err = errors.Join(err, table.Flush()); err == nil && len(r.Breaks) > 0 {
		err = fmt.Errorf("the audit trail is not what was written: tidemark audit verify tells more")
	}
	return err
}

func (c *listAuditCmd) wants(e *audit.Event) bool {
	return (c.Client == "" || e.Client == c.Client) && (c.Action == "" || string(e.Action) == c.Action) && !e.Time.Before(c.Since)
}

var auditOutcomes = map[audit.Outcome]string{audit.Done: "done", audit.Denied: "refused", audit.Failed: "failed"}

// auditRow is an event in one line, for people.
func auditRow(e *audit.Event) string {
	who := e.User + e.Client
	if who == "" {
		who = "-"
	}
	var what []string
	add := func(name, value string) {
		if value != "" {
			what = append(what, name+" "+value)
		}
	}
	add("", string(e.Phase))
	add("job", e.Job)
	add("level", e.Level)
	add("Group", e.Group)
	add("", e.Resource)
	add("file", e.File)
	add("types", strings.Join(e.Types, ","))
	if e.Bytes > 0 {
		add("bytes", fmt.Sprint(e.Bytes))
	}
	if e.Rows > 0 {
		add("number", fmt.Sprint(e.Rows))
	}
	add("", e.Command)
	for _, p := range e.Parameters {
		value, _ := json.Marshal(p.Value) // a terminal gets no control characters
		add(p.Name, string(value))
	}
	add("", e.Reason)
	return strings.Join([]string{e.Time.Format(time.RFC3339), string(e.Action), auditOutcomes[e.Outcome], who, e.Remote, strings.TrimSpace(strings.Join(what, "; "))}, "\t")
}
