package export

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"tidemark/api/outcome"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Level is which resources an export is about.
type Level string

// The levels.
const (
	System  Level = ""        // all
	Patient Level = "patient" // those in the compartment of any Patient, and what goes with them
	Group   Level = "group"   // those of the members of a Group
)

// Name is what people and configurations call the level.
func (l Level) Name() string {
	if l == System {
		return "system"
	}
	return string(l)
}

// Holds tells whether an export of this level can hold resources of a type.
func (l Level) Holds(t fhir.Type) bool {
	return l == System || fhir.InPatientCompartment(t) || fhir.Referred(t)
}

// of is what of a snapshot an export of this level holds of a type. Whatever is
// referred to goes as a whole: at this level everybody's data refers to it. So
// does Provenance, whose targets tell more than its compartments (Bulk Data,
// "Provenance": all that is available by default). So do deletions: a client
// may have what had left every compartment before it was deleted, or what a
// restored store never knew, and the deletion of what it has not does no harm.
func (l Level) of(s Snapshot, list List, t fhir.Type) Snapshot {
	if l == System || list == Deleted || fhir.Referred(t) || t == provenanceType {
		return s
	}
	return s.Choosing(store.Choice{})
}

var provenanceType, _ = fhir.ParseType("Provenance")

// A Face is which edition of the guide a job is spoken of in. All of them are
// the same job.
type Face string

// The faces.
const (
	STU3 Face = ""   // of STU1 to STU3, whose manifests differ in nothing that they share
	STU4 Face = "v4" // of the ballot of STU4
)

// A Request is a kick-off that was understood and found right.
type Request struct {
	Level    Level
	Face     Face
	Separate bool            // the status of the job is told apart from that of a poll (Bulk Data, "separate-export-status")
	Access   *Access         // whose it is, and what he may have; nil: nobody's, and all
	Group    string          // the id of one, at its level
	Patients []string        // ids of those meant; none: all of the level
	URL      string          // what the manifest's request says
	Types    []fhir.Type     // empty: all
	Since    fhir.Instant    // exclusive; None: from the beginning
	Upto     fhir.Instant    // inclusive, from _until; None: up to the watermark
	Filters  []string        // searches, such as Observation?code=1, each of a type that is exported
	Elements []string        // what is left of resources, such as Patient.name; none: all
	Attach   Attachment      // which Provenance goes with the rows that are sent
	MaxBytes int64           // of an output file, where that is less than the server's limit; 0: the server's
	Partial  bool            // the manifest may come in pages while the job is planned
	Departed bool            // tell what has left the export since then and lives
	By       fhir.Type       // in blocks of resources of this type; 0: a type to a file
	Notes    []outcome.Issue // what was left out, one line each in the manifest's error
	AtOnce   int             // jobs of its owner that may be worked on; 0: Options.JobsPerOwner. Not kept
	Still    func() bool     // its client may still do all that it might when it came in; nil: yes. Not kept
}

// An Attachment is a choice of Provenance by what it is about, in place of what
// goes by default (Bulk Data, "includeAssociatedData").
type Attachment string

// The attachments.
const (
	ByDefault Attachment = ""
	Latest    Attachment = "latest"   // the newest about each resource that is sent
	Relevant  Attachment = "relevant" // all about them
)

// aboutSome tells whether the export is about some Patients only.
func (q *Request) aboutSome() bool { return q.Level == Group || len(q.Patients) > 0 }

// chosen tells whether rows are chosen one by one. Then planning it means to read
// directories or bodies, and to write files of what is not as it is stored, which
// is done behind the kick-off.
func (q *Request) chosen() bool {
	return q.aboutSome() || q.readsBodies() || q.departs() || q.optsOut()
}

func (q *Request) readsBodies() bool {
	return len(q.Filters)+len(q.Elements) > 0 || q.Attach != ByDefault || q.By != 0 || len(q.constrained()) > 0 || q.Access.readsToWithhold()
}

// A List is one of the lists of files in a manifest.
type List string

// The lists.
const (
	Output   List = "output"
	Deleted  List = "deleted"
	Departed List = "departed" // in the form of Deleted: what lives, but elsewhere
	Errors   List = "error"
)

// An OutputFile is a file as the rule remembers it: a run of a section's
// extents, or the rule's own text for the list of errors.
type OutputFile struct {
	List  List
	Type  fhir.Type // of the rows; 0 for errors, and for blocks of many types
	From  int       // extents [From, To) of the section
	To    int
	Rows  int64
	Bytes int64 // uncompressed
	Made  bool  // written for the job: its lines are not as they are stored
	// CRC is the CRC-32 (IEEE) of the NDJSON; nil if it is not known before rows
	// have been taken out of the file's blocks.
	CRC *uint32
	// Continues: its last block goes on in the next file.
	Continues bool
}

// section is where the file's rows lie.
func (f OutputFile) section() store.Section {
	if f.List == Deleted {
		return store.Section{Kind: store.Deleted, Type: f.Type}
	}
	return store.Section{Kind: store.Live, Type: f.Type}
}

// A rule is all that is kept of a job. Together with the pinned snapshot it
// gives the same files at every request and after every restart.
type rule struct {
	Level    Level
	Face     Face
	Separate bool
	Request  string
	Since    fhir.Instant
	Upto     fhir.Instant // inclusive, never after the watermark: the transactionTime
	Cut      store.Cut    // where in Kafka the snapshot was taken
	By       fhir.Type    // of the blocks; 0: a type to a file
	Access   *Access      // nil: nobody's, with everything
	Taken    bool         // it has ended, for rights were taken
	Files    []OutputFile
	// Pending is the request while the job is being planned.
	Pending *Request
	// Failure is why no export could be made.
	Failure []outcome.Issue
	// Checkpoint is how far planning has come: Files has what is done.
	Checkpoint *checkpoint
	// Pages are where those of the manifest end that a client has seen, as numbers of
	// files. They never change.
	Pages []int
	// Pieces are what is kept beside the snapshot of a job whose rows were chosen one
	// by one.
	Pieces []piece
	// Errors is the text of the one file of errors. It is kept rather than made
	// again, so that a later version of this program, which may say the same
	// in other words, still serves the bytes that were promised.
	Errors string
}

// ruleVersion is the form below. A job of an unknown form is an error, not a
// guess.
//
// Since 3 there are filters and elements: a program that did not know them would
// send all. Since 4 there are faces and blocks. Since 5 there are rights. Since
// 6 there is what is withheld. Since 7 there are people who have opted out.
const ruleVersion = 7

// Types stand by name and None as null, so that the stored form depends on
// nobody's numbers.
type ruleForm struct {
	Version   int             `json:"v"`
	Level     Level           `json:"level,omitempty"`
	Face      Face            `json:"face,omitempty"`
	Separate  bool            `json:"separate,omitempty"`
	Request   string          `json:"request"`
	Since     *int64          `json:"since,omitempty"`
	Upto      int64           `json:"upto"`
	Cut       *cutForm        `json:"cut,omitempty"`
	By        string          `json:"by,omitempty"`
	Access    *accessForm     `json:"access,omitempty"`
	Taken     bool            `json:"taken,omitempty"`
	Files     []fileForm      `json:"files,omitempty"`
	Pending   *pendingForm    `json:"pending,omitempty"`
	Failure   []outcome.Issue `json:"failure,omitempty"`
	Check     *checkForm      `json:"checkpoint,omitempty"`
	Pages     []int           `json:"pages,omitempty"`
	Pieces    []piece         `json:"pieces,omitempty"`
	Selection *uint32         `json:"selection,omitempty"` // before 4: the one piece
	Errors    string          `json:"errors,omitempty"`
}

// pendingForm is what of a request the rule does not say anyhow.
type pendingForm struct {
	Group    string          `json:"group,omitempty"`
	Patients []string        `json:"patients,omitempty"`
	Types    []string        `json:"types,omitempty"`
	Filters  []string        `json:"filters,omitempty"`
	Elements []string        `json:"elements,omitempty"`
	Attach   Attachment      `json:"attach,omitempty"`
	MaxBytes int64           `json:"maxBytes,omitempty"`
	Partial  bool            `json:"partial,omitempty"`
	Departed bool            `json:"departed,omitempty"`
	Notes    []outcome.Issue `json:"notes,omitempty"`
}

type cutForm struct {
	Lag        int64         `json:"lag"` // ms
	Partitions []coveredForm `json:"partitions,omitempty"`
}

type coveredForm struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Next      int64  `json:"next"`
	Behind    int64  `json:"behind"`
}

func formOfCut(c store.Cut) *cutForm {
	if c.Lag == 0 && len(c.Partitions) == 0 {
		return nil
	}
	form := &cutForm{Lag: c.Lag.Milliseconds()}
	for _, p := range c.Partitions {
		form.Partitions = append(form.Partitions, coveredForm{p.Partition.Topic, p.Partition.ID, p.Next, p.Behind})
	}
	return form
}

func (f *cutForm) cut() (c store.Cut) {
	if f == nil {
		return c
	}
	c.Lag = time.Duration(f.Lag) * time.Millisecond
	for _, p := range f.Partitions {
		c.Partitions = append(c.Partitions, store.Covered{Partition: store.Partition{Topic: p.Topic, ID: p.Partition}, Next: p.Next, Behind: p.Behind})
	}
	return c
}

type fileForm struct {
	List      List    `json:"list"`
	Type      string  `json:"type,omitempty"`
	From      int     `json:"from,omitempty"`
	To        int     `json:"to,omitempty"`
	Rows      int64   `json:"rows"`
	Bytes     int64   `json:"bytes"`
	Made      bool    `json:"made,omitempty"`
	CRC       *uint32 `json:"crc,omitempty"`
	Continues bool    `json:"continues,omitempty"`
}

func (r rule) encode() ([]byte, error) {
	form := ruleForm{
		Version: ruleVersion, Level: r.Level, Face: r.Face, Separate: r.Separate, Request: r.Request, Since: instantForm(r.Since), Upto: int64(r.Upto), Cut: formOfCut(r.Cut),
		Failure: r.Failure, Check: r.Checkpoint.form(), Pages: r.Pages, Pieces: r.Pieces, Errors: r.Errors,
	}
	form.By, form.Taken = typeForm(r.By), r.Taken
	var err error
	if form.Access, err = r.Access.form(); err != nil {
		return nil, err
	}
	if q := r.Pending; q != nil {
		form.Pending = &pendingForm{Group: q.Group, Patients: q.Patients, Filters: q.Filters, Elements: q.Elements, Attach: q.Attach, Departed: q.Departed, MaxBytes: q.MaxBytes, Partial: q.Partial, Notes: q.Notes}
		for _, t := range q.Types {
			form.Pending.Types = append(form.Pending.Types, t.String())
		}
	}
	for _, f := range r.Files {
		form.Files = append(form.Files, fileForm{f.List, typeForm(f.Type), f.From, f.To, f.Rows, f.Bytes, f.Made, f.CRC, f.Continues})
	}
	return json.Marshal(form)
}

func decodeRule(b []byte) (rule, error) {
	var form ruleForm
	if err := json.Unmarshal(b, &form); err != nil {
		return rule{}, fmt.Errorf("decode the rule: %w", err)
	}
	if form.Version < 1 || form.Version > ruleVersion { // those before said less
		return rule{}, fmt.Errorf("the rule has version %d, this program knows %d: was the store used by a newer one?", form.Version, ruleVersion)
	}
	if !slices.Contains([]Level{System, Patient, Group}, form.Level) {
		return rule{}, fmt.Errorf("the rule has the level %q: was the store used by a newer program?", form.Level)
	}
	if form.Face != STU3 && form.Face != STU4 {
		return rule{}, fmt.Errorf("the rule has the face %q: was the store used by a newer program?", form.Face)
	}
	r := rule{
		Level: form.Level, Face: form.Face, Separate: form.Separate, Request: form.Request, Since: instantOf(form.Since), Upto: fhir.Instant(form.Upto), Cut: form.Cut.cut(),
		Failure: form.Failure, Pages: form.Pages, Pieces: form.Pieces, Errors: form.Errors, Taken: form.Taken,
	}
	if form.Selection != nil {
		r.Pieces = []piece{{Name: selectionName, Sum: *form.Selection}}
	}
	var err error
	if r.Checkpoint, err = form.Check.checkpoint(); err != nil {
		return rule{}, err
	}
	if r.Access, err = form.Access.access(); err != nil {
		return rule{}, err
	}
	if r.Access != nil {
		r.Access.Level = r.Level
	}
	var known bool
	if r.By, known = fhir.ParseType(form.By); !known && form.By != "" {
		return rule{}, fmt.Errorf("the rule has blocks of the resource type %q", form.By)
	}
	if p := form.Pending; p != nil {
		r.Pending = &Request{Access: r.Access, By: r.By, Level: r.Level, Face: r.Face, Separate: r.Separate, Group: p.Group, Patients: p.Patients, URL: r.Request, Since: r.Since, Upto: r.Upto, Filters: p.Filters, Elements: p.Elements, Attach: p.Attach, Departed: p.Departed, MaxBytes: p.MaxBytes, Partial: p.Partial, Notes: p.Notes}
		for _, name := range p.Types {
			t, known := fhir.ParseType(name)
			if !known {
				return rule{}, fmt.Errorf("the rule asks for the resource type %q", name)
			}
			r.Pending.Types = append(r.Pending.Types, t)
		}
	}
	for _, f := range form.Files {
		typ, known := fhir.ParseType(f.Type)
		if known == (f.List == Errors || f.List == Output && r.By != 0) {
			return rule{}, fmt.Errorf("a file of the rule lists %q with resource type %q", f.List, f.Type)
		}
		r.Files = append(r.Files, OutputFile{f.List, typ, f.From, f.To, f.Rows, f.Bytes, f.Made, f.CRC, f.Continues})
	}
	return r, nil
}

// typeForm is a type by its name, "" for none.
func typeForm(t fhir.Type) string {
	if t == 0 {
		return ""
	}
	return t.String()
}

// instantForm and instantOf keep None as null.
func instantForm(i fhir.Instant) *int64 {
	if i == fhir.None {
		return nil
	}
	return new(int64(i))
}

func instantOf(i *int64) fhir.Instant {
	if i == nil {
		return fhir.None
	}
	return fhir.Instant(*i)
}

// upto is where an export with this _until ends (decisions.md 1): what changed
// later belongs to the next window, whatever compaction made of it meanwhile.
func upto(watermark, until fhir.Instant) fhir.Instant {
	if until == fhir.None {
		return watermark
	}
	return min(watermark, until)
}

// noLimit stands for a limit that is switched off.
func noLimit(n int64) int64 {
	if n <= 0 {
		return math.MaxInt64
	}
	return n
}
