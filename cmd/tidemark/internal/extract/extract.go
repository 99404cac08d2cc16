// Package extract reads what a source has exported: NDJSON files, plain or compressed,
// a folder of them, or a finished bulk export with its manifest.
//
// It finds the files, says as of when they are and whether they are all that the source
// has, and tells of each line which resource, or whose deletion, it is. What is wrong with
// a line it says by file and line, never by what stands there. It refuses to know what
// becomes of them.
package extract

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"tidemark/cmd/tidemark/internal/manifest"
	"tidemark/store/fhir"
)

// An Extract is what a source has exported.
type Extract struct {
	Files []*File
	// At is when the source was as the files say (transactionTime), None if nothing tells.
	At fhir.Instant
	// Asked are the types that were asked for; nil: not told.
	Asked []fhir.Type
	// Part says why these are not all resources of their types, as far as is known; "": they are.
	Part string
	// Aside is how many files of the folders are no part of it.
	Aside int
}

// Size is that of all files as they lie on the disk, bytes.
func (e *Extract) Size() (n int64) {
	for _, f := range e.Files {
		n += f.Size
	}
	return n
}

// Find finds the files that some paths mean: files are taken as they are called, of
// folders what lies in them as NDJSON, and of manifests what they list. Where a manifest
// lists files, they are looked for in the folders that are given, else in its own.
func Find(paths []string) (*Extract, error) {
	f := finder{out: &Extract{At: fhir.None}}
	for _, path := range paths {
		if err := f.sort(path); err != nil {
			return nil, err
		}
	}
	if err := f.find(); err != nil {
		return nil, err
	}
	switch {
	case len(f.out.Files) > 0:
	case f.listing:
		return nil, errors.New("the manifest lists no file: it is of an export of nothing, with which nothing can be done")
	default:
		return nil, fmt.Errorf("no NDJSON file lies in %s: they are called .ndjson, with .gz or .zst behind it if they are compressed", strings.Join(paths, ", "))
	}
	return f.out, nil
}

type finder struct {
	out       *Extract
	manifests []*manifest.Manifest
	listing   bool // there is a manifest
	folders   []string
	beside    []string // the folders of manifests
}

// sort tells what a path is.
func (f *finder) sort(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		f.folders = append(f.folders, path)
		return nil
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file nor a folder: write it to a file first, for it may have to be read twice", path)
	}
	if m, err := readManifest(path, info.Size()); m != nil || err != nil {
		f.manifests, f.beside = append(f.manifests, m), append(f.beside, filepath.Dir(path))
		return err
	}
	f.out.Files = append(f.out.Files, &File{Name: path, Path: path, Size: info.Size()})
	return nil
}

// maxManifest is more than any manifest has, and less than would hurt.
const maxManifest = 64 << 20

// readManifest reads a file that calls itself JSON; nil if it is no manifest.
func readManifest(path string, size int64) (*manifest.Manifest, error) {
	if !strings.EqualFold(filepath.Ext(path), ".json") || size > maxManifest {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Read(text)
	switch {
	case err == nil:
		return m, nil
	case strings.EqualFold(filepath.Base(path), "manifest.json"):
		return nil, fmt.Errorf("%s cannot be used: %w; download it again, or move it away", path, err)
	}
	return nil, nil // a resource, or whatever it is
}

func (f *finder) find() error {
	if len(f.manifests) > 0 {
		folders := f.folders
		if len(folders) == 0 {
			folders = f.beside
		}
		return f.listed(folders)
	}
	for _, folder := range f.folders {
		if err := f.folder(folder); err != nil {
			return err
		}
	}
	return nil
}

// folder takes a folder for what is in it: an export with its manifest, or NDJSON.
func (f *finder) folder(folder string) error {
	list, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range list {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		m, err := readManifest(filepath.Join(folder, entry.Name()), info.Size())
		if err != nil {
			return err
		}
		if m != nil {
			f.manifests = append(f.manifests, m)
		}
	}
	if len(f.manifests) > 0 {
		defer func() { f.manifests = nil }()
		return f.listed([]string{folder})
	}
	if err := f.logged(folder); err != nil {
		return err
	}
	files, err := walk(folder)
	for _, file := range files {
		switch {
		case !file.ndjson() || file.within("error", "errors", "outcome"):
			f.out.Aside++
		case file.Deletions(): // those come last: what was deleted is no more
			f.out.Part = partDeleted
			defer f.take(file)
		default:
			f.take(file)
		}
	}
	return err
}

func (f *finder) take(file *File) { f.out.Files = append(f.out.Files, file) }

// walk lists the files below a folder by their names. What is hidden is none.
func walk(folder string) (files []*File, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != folder && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		}
		info, err := os.Stat(path) // of what a link leads to
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		below, err := filepath.Rel(folder, path)
		files = append(files, &File{Name: path, Path: path, Size: info.Size(), below: filepath.ToSlash(below)})
		return err
	})
	return files, err
}

// logName is the log that smart-fetch and Cumulus keep of an export in its folder.
const logName = "log.ndjson"

// logged takes from the log of an export when it was, and what was asked for.
func (f *finder) logged(folder string) error {
	text, err := os.ReadFile(filepath.Join(folder, logName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range bytes.Lines(text) {
		var e struct {
			Detail struct {
				TransactionTime string `json:"transactionTime"`
				ExportURL       string `json:"exportUrl"`
			} `json:"eventDetail"`
		}
		if json.Unmarshal(line, &e) != nil {
			continue // another tool's
		}
		if at, err := time.Parse(time.RFC3339, e.Detail.TransactionTime); err == nil {
			f.at(at)
		}
		if e.Detail.ExportURL != "" {
			f.asked(e.Detail.ExportURL)
		}
	}
	return nil
}

// at takes an instant: of several exports it is the earliest, since then all are as they say.
func (f *finder) at(t time.Time) {
	if i := fhir.FromTime(t); f.out.At == fhir.None || i < f.out.At {
		f.out.At = i
	}
}

const (
	partDeleted = "it tells what was deleted since another export (deleted)"
	partSince   = "it has only what changed since another one (_since)"
	partLevel   = "it is not one of the whole system"
	partFilter  = "it was narrowed by a filter"
	partErrors  = "its manifest lists errors"
	partPages   = "not all pages of its manifest were given"
)

// asked learns from the URL of a kick-off whether all resources were asked for, and of
// which types.
func (f *finder) asked(request string) {
	u, err := url.Parse(request)
	if err != nil {
		return
	}
	q := u.Query()
	segments := strings.Split(strings.Trim(u.Path, "/"), "/")
	before := ""
	if n := len(segments); n > 1 {
		before = segments[n-2]
	}
	grouped := len(segments) > 2 && segments[len(segments)-3] == "Group"
	switch {
	case q.Has("_since"):
		f.out.Part = partSince
	case before == "Patient" || grouped || q.Has("patient"):
		f.out.Part = partLevel
	case q.Has("_typeFilter") || q.Has("_until"):
		f.out.Part = partFilter
	}
	for _, list := range q["_type"] {
		for name := range strings.SplitSeq(list, ",") {
			if t, ok := fhir.ParseType(strings.TrimSpace(name)); ok && !slices.Contains(f.out.Asked, t) {
				f.out.Asked = append(f.out.Asked, t)
			}
		}
	}
}

// listed takes what the manifests list, from some folders.
func (f *finder) listed(folders []string) error {
	f.listing = true
	var files []*File
	for _, folder := range folders {
		below, err := walk(folder)
		if err != nil {
			return err
		}
		files = append(files, below...)
	}
	var output, deleted []manifest.File
	next := 0
	for _, m := range f.manifests {
		f.at(m.TransactionTime)
		f.asked(m.Request)
		output, deleted = append(output, m.Output...), append(deleted, m.Deleted...)
		if m.Next != "" {
			next++
		}
		if len(m.Error) > 0 && f.out.Part == "" {
			f.out.Part = partErrors
		}
	}
	if len(deleted) > 0 && f.out.Part == "" {
		f.out.Part = partDeleted
	}
	if next == len(f.manifests) {
		f.out.Part = partPages
	}
	m := matching{files: files, taken: map[*File]bool{}}
	m.byName(output, false)
	m.byName(deleted, true)
	found, err := m.all(output, deleted)
	if err != nil {
		return fmt.Errorf("%w; look in %s", err, strings.Join(folders, ", "))
	}
	for _, file := range files {
		if !m.taken[file] && file.ndjson() {
			f.out.Aside++
		}
	}
	f.out.Files = append(f.out.Files, found...)
	return nil
}
