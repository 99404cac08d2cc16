package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/dustin/go-humanize"

	"tidemark/store"
	"tidemark/store/fhir"
)

type eraseCmd struct {
	Resource    string `arg:"" help:"What to erase, as Type/id."`
	Compartment bool   `help:"With a Patient: everything in the Patient's compartment, too, and what is attached to it, but for Groups."`
	Yes         bool   `help:"Do it. Without this it is only said what would be erased."`

	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// Help is shown by --help.
func (*eraseCmd) Help() string {
	return `Takes a resource, or all that lies in a Patient's compartment, out of all history: every version, dead letters, the files of export
jobs. Jobs and published pages that hold any of it end at once, downloads under way stop. Clients are told by one entry in deleted for each resource.
What was erased is refused for ever, wherever it comes from: Kafka, reindex, restore. It works beside the running server.
With a Patient's compartment go the Binaries to which only that refers; a single resource leaves what is attached to it.

This cannot be undone.

  tidemark erase Observation/o1 --yes
  tidemark erase Patient/7f0a --compartment --yes

Next: delete the backups and folders that it names, and have the source erase it in Kafka: a compacted topic forgets it once it is deleted there.`
}

// Run erases.
func (c *eraseCmd) Run(ctx context.Context, out io.Writer) error {
	key, err := fhir.ParseKey(c.Resource)
	if err != nil {
		return fmt.Errorf("%q is not a resource such as Patient/7f0a", c.Resource)
	}
	if c.Compartment && key.Type.String() != "Patient" {
		return fmt.Errorf("--compartment needs a Patient, not %s", key.Type)
	}
	f := storeFlags{configFlags: c.configFlags, Dir: c.Store}
	at, err := f.place()
	if err != nil {
		return err
	}
	args := url.Values{"resource": {c.Resource}}
	if c.Compartment {
		args.Set("compartment", "1")
	}
	if !c.Yes {
		if err := onStore(ctx, at, "inspect", url.Values{"resource": {c.Resource}}, out); err != nil {
			fmt.Fprintf(out, "%s: %v\n", c.Resource, err)
		}
		return errors.New("nothing was erased: give --yes to erase it, and what comes later under this id")
	}
	return onStore(ctx, at, "erase", args, out)
}

// erase is what the command does where the store is open.
func erase(ctx context.Context, db *store.DB, args url.Values, out io.Writer) error {
	key, err := fhir.ParseKey(args.Get("resource"))
	if err != nil {
		return err
	}
	done, err := db.Erase(ctx, store.Erasure{Key: key, Compartment: args.Has("compartment")})
	if err != nil {
		return fmt.Errorf("%w; ask again: it goes on where it stopped", err)
	}
	fmt.Fprintf(out, "erased: %s living resources, %s rows, %s of them dead letters; %d segments written anew, %d export jobs and published pages ended\n",
		humanize.Comma(int64(done.Resources)), humanize.Comma(int64(done.Rows)), humanize.Comma(int64(done.DeadLetters)), done.Segments, len(done.Jobs))
	for _, id := range done.Groups {
		fmt.Fprintf(out, "Group/%s still names the Patient: change it at the source, then erase again for its earlier versions\n", id)
	}
	if len(done.Elsewhere) == 0 {
		_, err = fmt.Fprintln(out, "no backup and no folder beside this store is known that could hold it still")
		return err
	}
	fmt.Fprintln(out, "these may still hold it, delete them:")
	for _, w := range done.Elsewhere {
		fmt.Fprintln(out, "  "+w)
	}
	return nil
}
