package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"tidemark/cmd/tidemark/internal/manifest"
	"tidemark/cmd/tidemark/internal/verify"
)

type verifyCmd struct {
	Paths     []string `arg:"" name:"manifest" type:"path" help:"The manifest, as the server gave it; of an export with several pages all of them. The last argument may be the folder that holds the files. Default: the folder of the manifest."`
	FilesOnly bool     `help:"Compare each file with the manifest only: do not look for resources that stand twice, which takes about 20 bytes of memory for each."`
	Show      bool     `help:"Name resources that stand twice by their ids. They are patient data."`
	Ask       bool     `help:"Ask the server for checksums that the manifest does not have."`
	TokenFile string   `type:"path" placeholder:"FILE" help:"With --ask: a file with the access token, for a server that wants one."`
}

// Help is shown by --help.
func (*verifyCmd) Help() string {
	return `Reads each downloaded file once and compares it with what the manifest says of it: lines, bytes, CRC-32, resource type. Which file is which it
finds by their content, not by their names: .ndjson and .ndjson.gz in the folder and the folders in it, and whatever is called as a URL ends. Files of a type may have been joined.
Then it looks for resources that stand twice in all of output, or in output and in deleted. Nothing is changed, no id or body is shown.

  curl -s -H 'Accept: application/json' "$STATUS_URL" > manifest.json     # before the job is deleted
  tidemark verify manifest.json downloads/
  tidemark verify page1.json page2.json downloads/
  tidemark verify --ask --token-file token manifest.json downloads/

Ends with 0 if all is as the server has sent it, else with 1 and what is wrong with which file. It says how much that proves: with checksums
(Tidemark's manifests have them) everything; by lines and bytes, or by lines alone as with other servers, less.

Next: download again what is named, or export again if the job is gone.`
}

// Validate is called by kong.
func (c *verifyCmd) Validate() error {
	if c.TokenFile != "" && !c.Ask {
		return errors.New("--token-file is for --ask")
	}
	return nil
}

// Run verifies a download.
func (c *verifyCmd) Run(ctx context.Context, out io.Writer) error {
	pages, dir, err := c.read()
	if err != nil {
		return err
	}
	opts := verify.Options{Dir: dir, FilesOnly: c.FilesOnly, Show: c.Show, Progress: progress("reading")}
	if c.Ask {
		token, err := c.token()
		if err != nil {
			return err
		}
		if opts.Ask, err = verify.Asker(pages, token, http.DefaultTransport); err != nil {
			return err
		}
	}
	report, err := verify.Run(ctx, pages, opts)
	if err != nil {
		return err
	}
	if _, err := report.WriteTo(out); err != nil {
		return err
	}
	if report.Faults() > 0 {
		return fmt.Errorf("what lies in %s is not what the server has sent: download again what is named above", dir)
	}
	return nil
}

// read reads the manifests and tells the folder.
func (c *verifyCmd) read() (pages []*manifest.Manifest, dir string, err error) {
	paths := c.Paths
	dir = filepath.Dir(paths[0])
	if last := paths[len(paths)-1]; isDir(last) {
		dir, paths = last, paths[:len(paths)-1]
	}
	if len(paths) == 0 {
		return nil, "", fmt.Errorf("%s is a folder: name the manifest before it", dir)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, "", fmt.Errorf("read the manifest: %w", err)
		}
		m, err := manifest.Read(text)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
		pages = append(pages, m)
	}
	return pages, dir, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (c *verifyCmd) token() (string, error) {
	if c.TokenFile == "" {
		return "", nil
	}
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read --token-file: %w", err)
	}
	if token = bytes.TrimSpace(token); len(token) == 0 || bytes.ContainsAny(token, "\r\n \t") {
		return "", errors.New("--token-file: the file must hold one access token and nothing else")
	}
	return string(token), nil
}
