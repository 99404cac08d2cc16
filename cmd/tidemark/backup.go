package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
)

type backupCmd struct {
	Root string `arg:"" type:"path" help:"The folder that holds backups; each gets a folder of its own in it."`
	Copy bool   `help:"Copy all files. Without this, files on the same disk are linked: quick and small, but no help when the disk fails."`

	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// Help is shown by --help.
func (*backupCmd) Help() string {
	return `A consistent copy of all that is committed, made while the server runs. Segments never change: what the backup before already has is
linked from there, so each backup takes only what is new. On another disk it is copied.

  tidemark backup /backups

Next: tidemark restore BACKUP DIR. A backup that did not end lacks backup.json and is no backup: delete its folder.`
}

// Run makes a backup.
func (c *backupCmd) Run(ctx context.Context, out io.Writer) error {
	f := storeFlags{configFlags: c.configFlags, Dir: c.Store}
	at, err := f.place()
	if err != nil {
		return err
	}
	root, err := filepath.Abs(c.Root) // the server has another working directory
	if err != nil {
		return err
	}
	args := url.Values{"root": {root}}
	if c.Copy {
		args.Set("copy", "1")
	}
	return onStore(ctx, at, "backup", args, out)
}

// backup is what the command does where the store is open.
func backup(ctx context.Context, db *store.DB, args url.Values, out io.Writer) error {
	b, err := db.Backup(ctx, args.Get("root"), args.Has("copy"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: %d segments as of commit %d; %s linked, %s copied\n", b.Path, len(b.Segments)/2, b.Commit, bytesOf(b.Linked), bytesOf(b.Copied))
	return err
}

type restoreCmd struct {
	Backup string `arg:"" type:"path" help:"A backup: a folder with backup.json."`
	Dir    string `arg:"" type:"path" help:"The directory of the new store; it must be empty, but for the audit trail of the store that was there."`
	Erased string `type:"path" placeholder:"FILE" help:"The list of what was erased since: the file \"erased\" of the lost store. Default: that of the newest backup beside this one."`

	configFlags `embed:""`
}

// Help is shown by --help.
func (*restoreCmd) Help() string {
	return `Makes a store of a backup. When it is served, Kafka is read again from where the backup stood: nothing is missed that its topics
still hold, and what came since the backup may come twice to clients. A new epoch begins (manifest: extension.tidemark-epoch), export jobs are lost.

  tidemark restore /backups/tidemark-20260102T030405.678Z ./data

It is put on record in the audit trail of the new store, or where audit.file says if --config is given. An audit trail that is all
the directory holds goes on.

Next: tidemark check DIR, then tidemark serve.`
}

// Run restores a backup.
func (c *restoreCmd) Run(ctx context.Context, out io.Writer) error {
	f := storeFlags{configFlags: c.configFlags, Dir: c.Dir}
	at, err := f.place()
	if err != nil {
		return err
	}
	if taken, err := occupied(c.Dir); taken || err != nil {
		return errors.Join(err, c.restore(ctx, out)) // which refuses, and leaves nothing there
	}
	return at.alone(ctx, "restore", url.Values{"backup": {c.Backup}}, func() error { return c.restore(ctx, out) })
}

// occupied tells whether a directory holds more than an audit trail.
func occupied(dir string) (bool, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return slices.ContainsFunc(list, func(e os.DirEntry) bool { return e.Name() != config.AuditName }), err
}

func (c *restoreCmd) restore(ctx context.Context, out io.Writer) error {
	erased := c.Erased
	if erased == "" {
		list, err := store.Backups(store.Disk, filepath.Dir(c.Backup))
		if err != nil {
			return err
		}
		if len(list) > 0 {
			erased = filepath.Join(list[len(list)-1].Path, "erased")
			fmt.Fprintf(out, "what was erased is taken from the backup of %s\n", list[len(list)-1].At.Format(time.RFC3339))
		}
	}
	return store.Restore(ctx, c.Backup, c.Dir, erased, store.Options{Logger: coldLog(), Beside: []string{config.AuditName}}, out)
}
