package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"tidemark/cmd/tidemark/internal/roster"
	"tidemark/store"
	"tidemark/store/fhir"
)

type showGroupCmd struct {
	ID      string `arg:"" help:"The Group's id."`
	Members bool   `xor:"what" help:"Who is a member, and since when. It is patient data."`
	JSON    bool   `xor:"what" name:"json" help:"The Group itself. It is patient data."`

	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// Help is shown by --help.
func (*showGroupCmd) Help() string {
	return `Shows whom a Group lists as an export would take it now: as of the watermark, a second or two behind the clock. Members of Groups in
it, and whom its searches match (member-filter), only an export finds. It works beside the running server and without it.

  tidemark group show diabetics
  tidemark group show diabetics --members
  tidemark group show diabetics --json`
}

// Run shows a Group.
func (c *showGroupCmd) Run(ctx context.Context, out io.Writer) error {
	if !fhir.ValidID(c.ID) {
		return fmt.Errorf("%q is no id of a Group: write 1 to 64 of A-Z, a-z, 0-9, . and -", c.ID)
	}
	f := storeFlags{configFlags: c.configFlags, Dir: c.Store}
	at, err := f.place()
	if err != nil {
		return err
	}
	args := url.Values{"id": {c.ID}}
	if c.Members {
		args.Set("members", "1")
	}
	if c.JSON {
		args.Set("json", "1")
	}
	return onStore(ctx, at, "group", args, out)
}

// showGroup is what the command does where the store is open.
func showGroup(_ context.Context, db *store.DB, args url.Values, out io.Writer) (err error) {
	id := args.Get("id")
	s, err := db.Present()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	rosters, err := s.Rosters(fhir.None)
	if err != nil {
		return err
	}
	of, err := rosters.Of(id)
	if err != nil {
		return err
	}
	if of.Body == nil {
		return fmt.Errorf("there is no Group/%s as of %s", id, s.Watermark())
	}
	if args.Has("json") {
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, of.Body, "", "  "); err != nil {
			return err
		}
		pretty.WriteByte('\n')
		_, err = pretty.WriteTo(out)
		return err
	}
	now := present(of)
	if args.Has("members") {
		return listMembers(of.Body, now, out)
	}
	return describeGroup(of.Body, len(now), s.Watermark(), out)
}

// present is since when each member is one.
func present(of store.Roster) map[string]fhir.Instant {
	now := map[string]fhir.Instant{}
	for ref, stays := range of.Members {
		for _, t := range stays {
			if t.Left == fhir.None {
				now[ref] = t.Joined
			}
		}
	}
	return now
}

func describeGroup(body []byte, members int, at fhir.Instant, out io.Writer) error {
	var g roster.Group
	if err := json.Unmarshal(body, &g); err != nil {
		return fmt.Errorf("the Group is none of FHIR R4: look at it with --json: %w", err)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "group\tGroup/%s\n", g.ID)
	if g.Name != "" {
		fmt.Fprintf(table, "name\t%s\n", printable([]byte(g.Name)))
	}
	for _, i := range g.Identifier {
		fmt.Fprintf(table, "identifier\t%s\n", printable([]byte(i.String())))
	}
	fmt.Fprintf(table, "written\t%s\n", g.Meta.LastUpdated)
	fmt.Fprintf(table, "as of\t%s\n", at)
	fmt.Fprintf(table, "members\t%s; %s entries\n", humanize.Comma(int64(members)), humanize.Comma(int64(len(g.Member))))
	if n := modifiers(body); n > 0 {
		fmt.Fprintf(table, "modified\tby %d extensions, searches for members or others: an export finds whom they leave in it, or says why it cannot\n", n)
	}
	return table.Flush()
}

// modifiers is by how many extensions a Group says something else than its list does.
func modifiers(body []byte) int {
	var g struct {
		Modifiers []json.RawMessage `json:"modifierExtension"`
	}
	_ = json.Unmarshal(body, &g) // what is no array has none
	return len(g.Modifiers)
}

// listMembers names members as the Group does: of an identifier the store keeps
// a digest.
func listMembers(body []byte, now map[string]fhir.Instant, out io.Writer) error {
	var g roster.Group
	if err := json.Unmarshal(body, &g); err != nil {
		return fmt.Errorf("the Group is none of FHIR R4: look at it with --json: %w", err)
	}
	names := map[string]string{}
	for _, m := range g.Member {
		if i := m.Entity.Identifier; i != nil {
			names[fhir.ByIdentifier([]byte(i.System), []byte(i.Value))] = i.String()
		}
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MEMBER\tSINCE")
	for _, ref := range slices.Sorted(maps.Keys(now)) {
		name, named := names[ref]
		if !named {
			name = ref
		}
		fmt.Fprintf(table, "%s\t%s\n", printable([]byte(name)), instantOf(now[ref]))
	}
	return table.Flush()
}
