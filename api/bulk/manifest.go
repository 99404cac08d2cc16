package bulk

import (
	"slices"
	"strconv"
	"time"

	"tidemark/api/access"
	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store"
)

// manifest is the answer to a status request, as the versions 2 and 3 of the
// guide have it.
type manifest struct {
	TransactionTime     string    `json:"transactionTime"`
	Request             string    `json:"request"`
	RequiresAccessToken bool      `json:"requiresAccessToken"`
	OutputOrganizedBy   string    `json:"outputOrganizedBy,omitempty"`
	Output              []entry   `json:"output"`
	Deleted             []entry   `json:"deleted"`
	Error               []entry   `json:"error"`
	Link                []link    `json:"link,omitempty"`
	Extension           extension `json:"extension"`
}

// A link leads to the next page of a manifest.
type link struct {
	Relation string `json:"relation"`
	URL      string `json:"url"`
}

func (h *Handlers) next(id string, m export.Manifest) []link {
	if !m.More {
		return nil
	}
	return []link{{"next", h.pageURL(id, m.Page+1)}}
}

type entry struct {
	Type  string `json:"type,omitempty"` // none of files in blocks
	URL   string `json:"url"`
	Count int64  `json:"count"`
	// ContinuesInFile is where the last block goes on.
	ContinuesInFile string `json:"continuesInFile,omitempty"`
	Extension       proof  `json:"extension"`
}

// A proof is what a file can be checked by once it was downloaded (tidemark
// verify).
type proof struct {
	Bytes int64  `json:"tidemark-bytes"`           // of the NDJSON
	CRC32 string `json:"tidemark-crc32,omitempty"` // of the same; "" if it is known only when the file is sent
}

func proofOf(f export.OutputFile) proof {
	p := proof{Bytes: f.Bytes}
	if f.CRC != nil {
		p.CRC32 = hex32(*f.CRC)
	}
	return p
}

type extension struct {
	// Epoch changes when the store was restored or rebuilt: a chain of _since
	// is exact within one epoch.
	Epoch uint64    `json:"tidemark-epoch"`
	Cut   *kafkaCut `json:"tidemark-cut,omitempty"` // for who may have the whole: it counts what came for everybody
	// Departed are files in the form of Deleted: what has left the export and lives.
	Departed []entry `json:"tidemark-departed,omitempty"`
}

// A kafkaCut tells where in Kafka an export was cut.
type kafkaCut struct {
	Lag        float64   `json:"lag"` // of transactionTime behind the clock at the kick-off, seconds
	Partitions []covered `json:"partitions"`
}

type covered struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Next      int64  `json:"next"`   // offsets below were read
	Behind    int64  `json:"behind"` // offsets from there to the end of the log
}

func cutOf(c store.Cut) *kafkaCut {
	out := &kafkaCut{c.Lag.Seconds(), []covered{}}
	for _, p := range c.Partitions {
		out.Partitions = append(out.Partitions, covered{p.Partition.Topic, p.Partition.ID, p.Next, p.Behind})
	}
	return out
}

// face is the manifest as the client's edition of the guide has it.
func (h *Handlers) face(id string, m export.Manifest, c *access.Caller) any {
	l := links{h: h, job: id, serial: c.Serial, until: m.Expires}
	whole := c.May.Level(export.System.Name())
	if m.Face == export.STU4 {
		out := h.manifest4(id, m, l)
		if whole {
			out.Extension = slices.Insert(out.Extension, 1, extension4{URL: extensionURL(h.Base, "tidemark-cut"), Extension: cut4(m.Cut)})
		}
		return out
	}
	out := h.manifest(id, m, l)
	if whole {
		out.Extension.Cut = cutOf(m.Cut)
	}
	return out
}

// links are the URLs of a job's files, and how their client proves there who it is: by a
// token as it did for the manifest, or by what stands in the URL.
type links struct {
	h      *Handlers
	job    string
	serial uint64 // of the client; 0: no token was asked for
	until  time.Time
}

func (l links) signed() bool { return l.serial != 0 && l.h.Sign != nil }

func (l links) needToken() bool { return l.serial != 0 && !l.signed() }

func (l links) file(n int) string {
	url := l.h.fileURL(l.job, n)
	if l.signed() {
		url += l.h.Sign(l.job, n, l.serial, l.until)
	}
	return url
}

func (h *Handlers) manifest(id string, m export.Manifest, l links) manifest {
	out := manifest{
		TransactionTime:     m.TransactionTime.String(),
		Request:             m.Request,
		RequiresAccessToken: l.needToken(),
		Output:              []entry{},
		Deleted:             []entry{},
		Error:               []entry{},
		Link:                h.next(id, m),
		OutputOrganizedBy:   organizedBy(m),
		Extension:           extension{Epoch: m.Epoch},
	}
	for i, f := range m.Files {
		e := entry{URL: l.file(m.From + i + 1), Count: f.Rows, Extension: proofOf(f)}
		switch f.List {
		case export.Output:
			if m.By == 0 {
				e.Type = f.Type.String()
			}
			if f.Continues {
				e.ContinuesInFile = l.file(m.From + i + 2)
			}
			out.Output = append(out.Output, e)
		case export.Deleted:
			e.Type = "Bundle"
			out.Deleted = append(out.Deleted, e)
		case export.Departed:
			e.Type = "Bundle"
			out.Extension.Departed = append(out.Extension.Departed, e)
		case export.Errors:
			e.Type = "OperationOutcome"
			out.Error = append(out.Error, e)
		}
	}
	return out
}

// organizedBy is the type whose resources the files' blocks are about, "" if each
// file is of a type.
func organizedBy(m export.Manifest) string {
	if m.By != 0 {
		return m.By.String()
	}
	return ""
}

// manifest4 is the answer as the ballot of version 4 has it: lists that are empty
// are not there, and extensions are FHIR's.
type manifest4 struct {
	ManifestType        string `json:"manifestType"`
	TransactionTime     string `json:"transactionTime"`
	RequiresAccessToken bool   `json:"requiresAccessToken"`
	OutputFormat        string `json:"outputFormat"`
	OutputOrganizedBy   string `json:"outputOrganizedBy,omitempty"`
	lists4
	Link      []link       `json:"link,omitempty"`
	Extension []extension4 `json:"extension"`
}

// lists4 are the files of a manifest.
type lists4 struct {
	Output  []entry4 `json:"output,omitempty"`
	Deleted []entry4 `json:"deleted,omitempty"`
	Outcome []entry4 `json:"outcome,omitempty"`
}

func (l *lists4) add(list export.List, e entry4) {
	switch list {
	case export.Output:
		l.Output = append(l.Output, e)
	case export.Deleted:
		l.Deleted = append(l.Deleted, e)
	case export.Errors:
		l.Outcome = append(l.Outcome, e)
	}
}

type entry4 struct {
	Type            string       `json:"type,omitempty"`
	URL             string       `json:"url"`
	Count           int64        `json:"count"`
	FileSize        int64        `json:"fileSize"` // bytes of the NDJSON (decisions.md 2)
	CountSeverity   []severity   `json:"countSeverity,omitempty"`
	ContinuesInFile string       `json:"continuesInFile,omitempty"`
	Extension       []extension4 `json:"extension,omitempty"`
}

type severity struct {
	Code  string `json:"code"`
	Count int    `json:"count"`
}

// An extension4 is FHIR's Extension. Its url lies under the base: what it says
// is this server's own.
type extension4 struct {
	URL          string       `json:"url"`
	ValueDecimal *float64     `json:"valueDecimal,omitempty"`
	ValueInteger *int64       `json:"valueInteger,omitempty"`
	ValueString  string       `json:"valueString,omitempty"`
	ValueURL     string       `json:"valueUrl,omitempty"`
	Extension    []extension4 `json:"extension,omitempty"`
}

// manifestTypes is where the guide defines manifests.
const manifestTypes = "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/"

func (h *Handlers) manifest4(id string, m export.Manifest, l links) manifest4 {
	out := manifest4{
		ManifestType:        manifestTypes + "BulkDataManifest",
		TransactionTime:     m.TransactionTime.String(),
		RequiresAccessToken: l.needToken(),
		OutputFormat:        ndjson,
		OutputOrganizedBy:   organizedBy(m),
		Link:                h.next(id, m),
		Extension: []extension4{
			{URL: extensionURL(h.Base, "tidemark-epoch"), ValueInteger: new(int64(m.Epoch))},
		},
	}
	for i, f := range m.Files {
		e := newEntry4(h.Base, l.file(m.From+i+1), f, m.Severities)
		if f.Continues {
			e.ContinuesInFile = l.file(m.From + i + 2)
		}
		if f.List == export.Departed {
			out.Extension = append(out.Extension, extension4{URL: extensionURL(h.Base, "tidemark-departed"), Extension: departed4(e)})
		}
		out.add(f.List, e)
	}
	return out
}

// departed4 is a file of what has left an export, in the words of the other lists.
func departed4(e entry4) []extension4 {
	return append([]extension4{
		{URL: "url", ValueURL: e.URL},
		{URL: "count", ValueDecimal: new(float64(e.Count))},
		{URL: "fileSize", ValueDecimal: new(float64(e.FileSize))},
	}, e.Extension...)
}

// newEntry4 is an output file; severities are of the issues in one of errors.
func newEntry4(base, url string, f export.OutputFile, severities []outcome.Tally) entry4 {
	e := entry4{URL: url, Count: f.Rows, FileSize: f.Bytes}
	if f.CRC != nil {
		e.Extension = []extension4{{URL: extensionURL(base, "tidemark-crc32"), ValueString: hex32(*f.CRC)}}
	}
	switch f.List {
	case export.Output:
		if f.Type != 0 { // none of files in blocks
			e.Type = f.Type.String()
		}
	case export.Errors:
		for _, s := range severities {
			e.CountSeverity = append(e.CountSeverity, severity{string(s.Severity), s.Count})
		}
	}
	return e
}

// cut4 is cutOf in FHIR's form. Offsets are strings: R4's integers have 32 bits.
func cut4(c store.Cut) []extension4 {
	out := []extension4{{URL: "lag", ValueDecimal: new(c.Lag.Seconds())}}
	for _, p := range c.Partitions {
		out = append(out, extension4{URL: "partition", Extension: []extension4{
			{URL: "topic", ValueString: p.Partition.Topic},
			{URL: "partition", ValueInteger: new(int64(p.Partition.ID))},
			{URL: "next", ValueString: strconv.FormatInt(p.Next, 10)},
			{URL: "behind", ValueString: strconv.FormatInt(p.Behind, 10)},
		}})
	}
	return out
}

func extensionURL(base, name string) string { return base + "/StructureDefinition/" + name }
