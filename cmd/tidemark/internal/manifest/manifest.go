// Package manifest reads what an export's manifest says of its files, and tells
// whether some NDJSON is what it says.
//
// It knows the manifests of the Bulk Data guide's versions 1 to 4, of any
// server, and Tidemark's two additions to them: how many bytes a file has and
// their CRC-32. It refuses to know where files come from or lie.
package manifest

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Header is the header of a file's response that tells its CRC-32.
const Header = "Tidemark-CRC32"

// Names of what Tidemark adds to manifests. Version 4 has them as the last part
// of an extension's url.
const (
	extBytes    = "tidemark-bytes"
	extCRC      = "tidemark-crc32"
	extDeparted = "tidemark-departed"
	extOurs     = "tidemark-" // what only our manifests have begins with it
)

// A Manifest lists the files of an export, or those of one of its pages.
type Manifest struct {
	TransactionTime     time.Time
	Request             string // the kick-off's URL; version 4 does not tell it
	RequiresAccessToken bool
	OrganizedBy         string // the type by which files are organised; "" where each holds one type
	Next                string // URL of the next page; "" on the last one
	Published           bool   // of $bulk-publish: a later file may hold a newer version
	Output              []File
	Deleted             []File
	Departed            []File // in the form of Deleted: what lives, but has left the export
	Error               []File // version 4 calls it outcome
}

// A File is an entry of a manifest. What the manifest does not say is nil.
type File struct {
	Type  string // of the resources; "" for deletions and outcomes in version 4, and for organised output
	URL   string
	Count *int64  // lines
	Bytes *int64  // of the NDJSON, uncompressed
	CRC   *uint32 // CRC-32 (IEEE) of the same
}

// Name is the last part of the file's URL, which many clients make the file's
// name of. A query, which may be a secret, is no part of it.
func (f *File) Name() string {
	u, err := url.Parse(f.URL)
	if err != nil {
		return ""
	}
	return path.Base(u.Path)
}

// Read reads a manifest of any version.
func Read(text []byte) (*Manifest, error) {
	m := new(Manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", explain(err))
	}
	return m, nil
}

// explain leaves out of an error what it would quote of the text: any file may
// have been given as a manifest.
func explain(err error) error {
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("it is not valid JSON at byte %d", syntax.ByteOffset)
	}
	if shape, ok := errors.AsType[*json.SemanticError](err); ok {
		if shape.Err != nil && shape.JSONPointer == "" {
			return explain(shape.Err)
		}
		if shape.Err != nil {
			return fmt.Errorf("%w, at %q", explain(shape.Err), shape.JSONPointer)
		}
		return fmt.Errorf("a %s stands where none may, at %q", kindOf(shape.JSONKind), shape.JSONPointer)
	}
	return err
}

func kindOf(k jsontext.Kind) string {
	switch k {
	case '{', '}':
		return "JSON object"
	case '[', ']':
		return "JSON array"
	case '"':
		return "string"
	case '0':
		return "number"
	}
	return "value"
}

// raw is a manifest as it is written.
type raw struct {
	ManifestType        string         `json:"manifestType"`
	TransactionTime     string         `json:"transactionTime"`
	Request             string         `json:"request"`
	RequiresAccessToken bool           `json:"requiresAccessToken"`
	OutputOrganizedBy   string         `json:"outputOrganizedBy"`
	Link                []rawLink      `json:"link"`
	Output              []rawFile      `json:"output"`
	Deleted             []rawFile      `json:"deleted"`
	Error               []rawFile      `json:"error"`
	Outcome             []rawFile      `json:"outcome"`
	Extension           jsontext.Value `json:"extension"`
}

type rawLink struct {
	Relation string `json:"relation"`
	URL      string `json:"url"`
}

type rawFile struct {
	Type      string         `json:"type"`
	URL       string         `json:"url"`
	Count     *int64         `json:"count"`
	FileSize  *int64         `json:"fileSize"`
	Extension jsontext.Value `json:"extension"`
}

// UnmarshalJSON reads a manifest of any version.
func (m *Manifest) UnmarshalJSON(text []byte) error {
	var r raw
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	if r.TransactionTime == "" {
		return errors.New("it has no transactionTime: it is the manifest of no export")
	}
	at, err := time.Parse(time.RFC3339, r.TransactionTime)
	if err != nil {
		return errors.New("its transactionTime is not an instant such as 2026-01-03T08:15:03.412Z")
	}
	*m = Manifest{
		TransactionTime: at, Request: r.Request, RequiresAccessToken: r.RequiresAccessToken, OrganizedBy: r.OutputOrganizedBy,
		Published: path.Base(r.ManifestType) == "BulkPublishManifest",
	}
	for _, l := range r.Link {
		if l.Relation == "next" && !strings.HasPrefix(l.URL, "#") { // #pending, #closed: there is no next page (yet)
			m.Next = l.URL
		}
	}
	// fileSize may be that of the compressed file (the guide does not say); here
	// it never is.
	ours := r.ours()
	departed, err := r.departed()
	if err != nil {
		return fmt.Errorf("%s: %w", extDeparted, explain(err))
	}
	for _, list := range []struct {
		to   *[]File
		from []rawFile
	}{{&m.Output, r.Output}, {&m.Deleted, r.Deleted}, {&m.Departed, departed}, {&m.Error, append(r.Error, r.Outcome...)}} {
		for i := range list.from {
			f, err := list.from[i].file(ours)
			if err != nil {
				return err
			}
			*list.to = append(*list.to, f)
		}
	}
	return nil
}

// ours tells whether a manifest is Tidemark's.
func (r *raw) ours() bool {
	found := false
	mark := func(name string, _ jsontext.Value) error {
		found = found || strings.HasPrefix(name, extOurs)
		return nil
	}
	_ = extensions(r.Extension, mark) // faults are found below, where they matter
	for _, list := range [][]rawFile{r.Output, r.Deleted, r.Error, r.Outcome} {
		for i := range list {
			_ = extensions(list[i].Extension, mark)
		}
	}
	return found
}

// departed are the files of what has left an export.
func (r *raw) departed() (files []rawFile, err error) {
	if r.Extension.Kind() == '[' {
		return r.departed4()
	}
	err = extensions(r.Extension, func(name string, v jsontext.Value) error {
		if name != extDeparted {
			return nil
		}
		return json.Unmarshal(v, &files)
	})
	return files, err
}

// departed4 reads them from version 4: an Extension for each, whose own say what
// entries do.
func (r *raw) departed4() (files []rawFile, err error) {
	var list []struct {
		URL       string         `json:"url"`
		Extension jsontext.Value `json:"extension"`
	}
	if json.Unmarshal(r.Extension, &list) != nil {
		return nil, nil // another server's
	}
	for _, e := range list {
		if path.Base(e.URL) != extDeparted {
			continue
		}
		var about []struct {
			URL     string `json:"url"`
			Text    string `json:"valueUrl"`
			Decimal *int64 `json:"valueDecimal"`
		}
		if err := json.Unmarshal(e.Extension, &about); err != nil {
			return nil, err
		}
		f := rawFile{Extension: e.Extension}
		for _, a := range about {
			switch a.URL {
			case "url":
				f.URL = a.Text
			case "count":
				f.Count = a.Decimal
			case "fileSize":
				f.FileSize = a.Decimal
			}
		}
		files = append(files, f)
	}
	return files, nil
}

func (r *rawFile) file(ours bool) (File, error) {
	f := File{Type: r.Type, URL: r.URL, Count: r.Count}
	if ours {
		f.Bytes = r.FileSize
	}
	err := extensions(r.Extension, func(name string, v jsontext.Value) (err error) {
		switch name {
		case extBytes:
			f.Bytes = new(int64)
			err = json.Unmarshal(v, f.Bytes)
		case extCRC:
			var digits string
			if err = json.Unmarshal(v, &digits); err == nil {
				f.CRC, err = ParseCRC(digits)
			}
		}
		if err != nil {
			return fmt.Errorf("%s of an entry: %w", name, explain(err))
		}
		return nil
	})
	return f, err
}

// ParseCRC reads a checksum as it stands in manifests and headers: 8
// hexadecimal digits.
func ParseCRC(digits string) (*uint32, error) {
	n, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || len(digits) != 8 {
		return nil, errors.New("a CRC-32 that is not 8 hexadecimal digits")
	}
	crc := uint32(n)
	return &crc, nil
}

// extensions calls fn for each: members of an object up to version 3, FHIR
// Extensions in version 4, which are named here by the last part of their url.
func extensions(v jsontext.Value, fn func(name string, v jsontext.Value) error) error {
	switch v.Kind() {
	case '{':
		var members map[string]jsontext.Value
		if err := json.Unmarshal(v, &members); err != nil {
			return err
		}
		for name, value := range members {
			if err := fn(name, value); err != nil {
				return err
			}
		}
	case '[':
		var list []struct {
			URL   string         `json:"url"`
			Value jsontext.Value `json:"valueString"`
		}
		if err := json.Unmarshal(v, &list); err != nil {
			return err
		}
		for _, e := range list {
			if err := fn(path.Base(e.URL), e.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// A Tally is what counts of some NDJSON.
type Tally struct {
	Lines int64 // that are not blank
	Bytes int64
	CRC   uint32
}

// Add enters bytes; lines are counted by the caller.
func (t *Tally) Add(b []byte) {
	t.Bytes += int64(len(b))
	t.CRC = crc32.Update(t.CRC, crc32.IEEETable, b)
}

// Check is nil if a tally is what the manifest says, else what is not.
func (f *File) Check(t Tally) error {
	switch {
	case f.Count != nil && *f.Count != t.Lines:
		return fmt.Errorf("it has %d lines, the manifest says %d", t.Lines, *f.Count)
	case f.Bytes != nil && *f.Bytes != t.Bytes:
		return fmt.Errorf("it has %d bytes, the manifest says %d", t.Bytes, *f.Bytes)
	case f.CRC != nil && *f.CRC != t.CRC:
		return fmt.Errorf("its CRC-32 is %08x, the manifest says %08x", t.CRC, *f.CRC)
	}
	return nil
}
