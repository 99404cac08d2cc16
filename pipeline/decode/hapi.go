package decode

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"tidemark/store"
	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// Why a row of HAPI's tables is refused.
const (
	reasonLargeObject = "body is in a large object (RES_ENCODING JSONC), which logical decoding does not carry: have HAPI write it as text (since 7.0 it does), or load the resource"
	reasonElsewhere   = "body is kept outside of the database (RES_ENCODING ESR): load the resource"
	reasonEncoding    = "RES_ENCODING is none of JSON, JSONC, DEL, ESR"
	reasonNoNumber    = "row lacks the number that identifies it"
	reasonForced      = "id is a forced one of HAPI before 7.0, which another table has"
	reasonLeftOut     = "row lacks a column without which a resource or its labels would be taken for others (fhir_id, has_tags, tag_type): have the connector leave none out"
	reasonJoined      = "row of one of several tables, which say together what a resource is"
)

// hapiPreset are the tables of HAPI's JPA server.
const hapiPreset = "hapi"

// Joined is a Decoder whose records are rows of several tables, each of which says a part of
// a resource. Its Decode refuses them: who reads them keeps the parts, and asks for changes
// once they are together.
type Joined interface {
	Decoder
	// Part is what a record says; nil if that is nothing. A version that is refused (*Error)
	// has its transaction beside the error.
	Part(rec Record) (*Part, error)
	// Version is the change that a version makes, none if it is of a dropped type. The record
	// is the one that p was read from. Whether it is an *Error does not depend on key's id and
	// on tags.
	Version(rec Record, p *Part, key fhir.Key, tags []Tag) ([]store.Change, error)
	// Purged is the change of a resource whose row is gone.
	Purged(rec Record, p *Part, key fhir.Key) []store.Change
	// Retagged is the change of a resource that has other tags now, as of a place in the database's
	// log and a time by its clock.
	Retagged(rec Record, position uint64, at fhir.Instant, key fhir.Key, tags []Tag) []store.Change
}

// A Part is what one row says.
type Part struct {
	Of       PartOf
	Gone     bool         // the row was deleted: of all else only the numbers that are its key count
	Made     bool         // the row was inserted; false, too, where the message does not say what was done
	Snapshot bool         // the row was read as it is, whatever was before
	More     bool         // others of its table come behind it in the snapshot
	Resource int64        // the number of the resource, res_id; 0 if the row does not say it
	Row      int64        // the number of the row: pid, or tag_id of a definition
	Position uint64       // in the database's log
	At       fhir.Instant // when it was written, by the database's clock; None: not told
	// Transaction is what its transaction is called, "" if the message does not say.
	Transaction string
	// Order is the row's place in what its connector told of the transaction, from 1 on; 0: not
	// told. A connector that begins again in the midst of one begins to count again.
	Order int64

	// Of PartResource: what the number stands for, and since when; 0: it does not say.
	Key       fhir.Key
	Published fhir.Instant

	// Of PartVersion:
	Type     fhir.Type
	Number   int64 // res_ver
	Deletion bool
	Tagged   bool         // there are tags
	Updated  fhir.Instant // when it was written, None if it does not say
	body     []byte
	source   string

	Tag        int64          // Of PartTag: the number of its definition
	Definition Tag            // Of PartDefinition
	Counts     map[string]int // Of PartEnd: rows of each table in the transaction
}

// PartOf says which table a Part is of.
type PartOf uint8

const versionTable = "hfj_res_ver"

// The tables, and the messages that tell where transactions end.
const (
	PartResource   PartOf = iota + 1 // hfj_resource: what the number of a resource stands for
	PartVersion                      // hfj_res_ver: a version
	PartTag                          // hfj_res_tag: that a resource has a tag
	PartDefinition                   // hfj_tag_def: what a tag is
	PartBegin                        // a transaction begins
	PartEnd                          // it ends
)

// A Tag is a tag, a profile or a security label of a resource.
type Tag struct {
	Kind         TagKind `json:"kind"`
	System       string  `json:"system,omitempty"`
	Code         string  `json:"code"` // of a profile the canonical URL
	Display      string  `json:"display,omitempty"`
	Version      string  `json:"version,omitempty"`
	UserSelected string  `json:"userSelected,omitempty"` // true, false, or nothing
}

// TagKind is what a tag is for, as HAPI numbers it.
type TagKind uint8

// The kinds.
const (
	TagTag TagKind = iota
	TagProfile
	TagSecurity
)

// hapi are the tables of HAPI's JPA server: hfj_resource says which resource a number is,
// hfj_res_ver has the versions, hfj_res_tag and hfj_tag_def what is in the newest version's
// meta, and further tables say nothing that counts.
type hapi struct{ debezium }

func newHAPITables(o Options) Decoder {
	d := &hapi{debezium{codecs: codecs{schemas: o.Schemas}, tables: o.tables()}}
	d.prepare(o, rowDepth)
	return d
}

// Decode implements Decoder. No row alone makes a change.
func (d *hapi) Decode(rec Record) ([]store.Change, error) {
	p, err := d.Part(rec)
	if p == nil || err != nil {
		return nil, err
	}
	return nil, refuse(rec, reasonJoined)
}

// Part implements Joined.
func (d *hapi) Part(rec Record) (*Part, error) {
	c, err := d.change(rec)
	if err != nil {
		return nil, err
	}
	if c.op == 0 {
		return transactionPart(c.message), nil
	}
	name := c.table
	if name == "" {
		name = rec.Topic[strings.LastIndexByte(rec.Topic, '.')+1:]
	}
	p, reason := d.part(strings.ToLower(name), c)
	if reason != "" && strings.EqualFold(name, versionTable) { // it is one of its transaction's rows, all the same
		p := &Part{Of: PartVersion, Position: c.position}
		p.Transaction, p.Order = transactionOf(c.message)
		return p, refuse(rec, string(reason))
	}
	if reason != "" {
		return nil, refuse(rec, string(reason))
	}
	if p == nil {
		return nil, nil
	}
	p.Gone, p.Made, p.Snapshot, p.More, p.Position, p.At = c.op == 'd', c.op == 'c', c.op == 'r', c.op == 'r' && c.more, c.position, c.at
	p.Transaction, p.Order = transactionOf(c.message)
	return p, nil
}

// part reads a row of the table of that name.
func (d *hapi) part(table string, c rowChange) (*Part, fault) {
	from := c.row
	if c.op == 'd' {
		from = c.key // all other columns may be made up
	}
	read := func(names ...string) []cell { cells, _ := from.cells(names); return cells }
	switch table {
	case "hfj_resource":
		if c.op != 'd' && !from.holds("fhir_id") && !from.holds("forced_id_pid") {
			return nil, reasonLeftOut
		}
		return d.resourcePart(read("res_id", "res_type", "fhir_id", "forced_id_pid", "res_published"), c.op == 'd')
	case versionTable:
		return d.versionPart(read("pid", "res_id", "res_ver", "res_type", "res_encoding", "res_text_vc", "res_text", "res_updated", "has_tags", "source_uri", "request_id"), c.op == 'd')
	case "hfj_res_tag":
		cells := read("pid", "res_id", "tag_id")
		p := &Part{Of: PartTag, Row: cells[0].number(), Resource: cells[1].number(), Tag: cells[2].number()}
		if p.Row == 0 || c.op != 'd' && (p.Resource == 0 || p.Tag == 0) {
			return nil, reasonNoNumber
		}
		return p, ""
	case "hfj_tag_def":
		cells := read("tag_id", "tag_type", "tag_system", "tag_code", "tag_display", "tag_version", "tag_user_selected")
		p := &Part{Of: PartDefinition, Row: cells[0].number(), Definition: Tag{
			Kind: TagKind(cells[1].number()), System: string(cells[2].text), Code: string(cells[3].text),
			Display: string(cells[4].text), Version: string(cells[5].text), UserSelected: cells[6].truth(),
		}}
		switch {
		case p.Row == 0:
			return nil, reasonNoNumber
		case c.op != 'd' && cells[1].kind == absent:
			return nil, reasonLeftOut
		}
		return p, ""
	}
	if strings.HasPrefix(table, "hfj_") { // for searches, and what tags earlier versions had
		return nil, ""
	}
	return nil, reasonTable
}

func (d *hapi) resourcePart(cells []cell, gone bool) (*Part, fault) {
	p := &Part{Of: PartResource, Resource: cells[0].number()}
	switch {
	case p.Resource == 0:
		return nil, reasonNoNumber
	case gone:
		return p, ""
	}
	p.Row = p.Resource
	if at := d.tables.instant(cells[4], false); at != fhir.None {
		p.Published = at
	}
	if p.Key.Type = typesFolded[strings.ToLower(string(cells[1].text))]; p.Key.Type == 0 {
		return nil, reasonRowType
	}
	if p.Key.ID = string(cells[2].text); p.Key.ID == "" { // before 7.0
		if cells[3].kind != absent {
			return nil, reasonForced
		}
		p.Key.ID = strconv.FormatInt(p.Resource, 10)
	}
	if !fhir.ValidID(p.Key.ID) {
		return nil, reasonRowID
	}
	return p, ""
}

func (d *hapi) versionPart(cells []cell, gone bool) (*Part, fault) {
	p := &Part{Of: PartVersion, Row: cells[0].number(), Resource: cells[1].number(), Number: cells[2].number(), Tagged: cells[8].yes()}
	switch {
	case p.Row == 0 || !gone && (p.Resource == 0 || p.Number == 0):
		return nil, reasonNoNumber
	case gone:
		return p, ""
	}
	if p.Type = typesFolded[strings.ToLower(string(cells[3].text))]; p.Type == 0 {
		return nil, reasonRowType
	}
	p.Updated = d.tables.instant(cells[7], false)
	p.source = string(cells[9].text)
	if request := cells[10].text; len(request) > 0 {
		p.source += "#" + string(request)
	}
	switch string(cells[4].text) {
	case "DEL":
		p.Deletion = true
		return p, ""
	case "JSON":
		return p, d.bodyPart(p, cells[5], cells[8])
	case "JSONC":
		if cells[6].kind == isNumber || cells[6].kind == absent { // the number of a large object
			return nil, reasonLargeObject
		}
		return p, d.bodyPart(p, cells[6], cells[8])
	case "ESR":
		return nil, reasonElsewhere
	}
	return nil, reasonEncoding
}

// bodyPart reads a body. That it is left out, for it has not changed, is a body, too.
func (d *hapi) bodyPart(p *Part, c, tagged cell) fault {
	switch {
	case tagged.kind == absent: // it would be told before its labels
		return reasonLeftOut
	case unavailable(c):
		return ""
	case len(c.text) == 0:
		return reasonNoColumn
	}
	text, reason := d.unpack(c)
	if reason != "" {
		return reason
	}
	v, err := d.compact(text)
	switch {
	case err != nil:
		return fault("body " + err.Error())
	case !v.isObject():
		return reasonBody
	}
	p.body = v
	return ""
}

// Bodiless tells of a version that its row leaves the body out: it is what it was.
func (p *Part) Bodiless() bool { return p.Of == PartVersion && !p.Deletion && p.body == nil }

// Take has a version's row that leaves its body out be one with the body of an earlier row of
// the same version.
func (p *Part) Take(earlier *Part) { p.body = earlier.body }

// Version implements Joined.
func (d *hapi) Version(rec Record, p *Part, key fhir.Key, tags []Tag) ([]store.Change, error) {
	s := nothing
	s.key, s.delete, s.position, s.time = key, p.Deletion, p.Position, p.At
	s.lastUpdated, s.version, s.snapshot = p.Updated, strconv.FormatInt(p.Number, 10), p.Snapshot
	if p.Bodiless() {
		return d.revised(rec, s, DeadLetter(rec, reasonUnavailable).Dead, func(line value) []byte {
			if string(line.member("meta").member("versionId").text()) != s.version {
				return line // the body of another version
			}
			return d.whole(untagged(line), key, s, p.source, tags)
		}), nil
	}
	if !p.Deletion {
		s.body = d.whole(p.body, key, s, p.source, tags)
	}
	return d.add(nil, rec, s, "")
}

// Purged implements Joined.
func (d *hapi) Purged(rec Record, p *Part, key fhir.Key) []store.Change {
	s := nothing
	s.key, s.delete, s.position, s.time = key, true, p.Position, p.At
	changes, _ := d.add(nil, rec, s, "") // there is nothing in it that could be wrong
	return changes
}

// Retagged implements Joined.
func (d *hapi) Retagged(rec Record, position uint64, at fhir.Instant, key fhir.Key, tags []Tag) []store.Change {
	s := nothing
	s.key, s.position, s.time = key, position, at
	return d.revised(rec, s, nil, func(line value) []byte {
		meta := line.member("meta")
		now := s
		now.version, now.lastUpdated = string(meta.member("versionId").text()), instant(meta.member("lastUpdated").text())
		return d.whole(untagged(line), key, now, string(meta.member("source").text()), tags)
	})
}

// revised is a change of what is here; dead counts where nothing is.
func (d *hapi) revised(rec Record, s said, dead *store.DeadLetter, edit func(line value) []byte) []store.Change {
	if d.drop[s.key.Type] {
		return nil
	}
	return []store.Change{{
		Key: s.key, Version: version(s.version), LastUpdated: s.lastUpdated, Time: s.time,
		Position: s.position, Snapshot: s.snapshot, Timestamp: rec.Timestamp, Offset: rec.Offset, Dead: dead,
		Revise: func(line []byte) (store.Change, bool) {
			now := s
			now.body = edit(line)
			if bytes.Equal(now.body, line) {
				return store.Change{}, false
			}
			ch, ok, reason := d.changes.change(rec, now)
			return ch, ok && reason == ""
		},
	}}
}

// whole is a resource with what HAPI keeps beside its body: type, id, and of meta the version,
// the instant, the source and the tags. A body that has tags of its own (storage mode INLINE)
// keeps them.
func (d *hapi) whole(body value, key fhir.Key, s said, source string, tags []Tag) []byte {
	b := make([]byte, 0, len(body)+300)
	b = append(append(append(b, `{"resourceType":"`...), key.Type.String()...), `","id":"`...)
	b = append(append(b, key.ID...), `","meta":{`...)
	b = append(append(append(b, `"versionId":"`...), s.version...), '"')
	if s.lastUpdated != fhir.None {
		b = append(s.lastUpdated.Append(append(b, `,"lastUpdated":"`...)), '"')
	}
	if source != "" {
		b = quote(append(b, `,"source":`...), source)
	}
	meta := body.member("meta")
	b = appendTags(b, meta, tags)
	b = append(appendMembers(b, meta, metaWritten), '}')
	b = appendMembers(b, body, bodyWritten)
	return append(b, '}')
}

// What whole writes itself.
var (
	metaWritten = []string{`"versionId"`, `"lastUpdated"`, `"source"`, `"profile"`, `"security"`, `"tag"`}
	bodyWritten = []string{`"resourceType"`, `"id"`, `"meta"`}
)

// untagged is a resource without what tags make of its meta.
func untagged(line value) value { return stripMeta(line, []string{"profile", "security", "tag"}) }

// appendMembers appends an object's members but for some, each behind a comma.
func appendMembers(b []byte, v value, but []string) []byte {
	if !v.isObject() {
		return b
	}
	compact.Members(v, 0, func(m compact.Member) bool {
		if !slices.Contains(but, string(v[m.Name:m.Colon])) {
			b = append(append(b, ','), v[m.Name:m.End]...)
		}
		return true
	})
	return b
}

// tagMembers are the members of meta for the kinds of tags.
var tagMembers = [...]string{TagTag: "tag", TagProfile: "profile", TagSecurity: "security"}

// appendTags appends the members of meta that tags make: those that the body has, and the others.
func appendTags(b []byte, meta value, tags []Tag) []byte {
	for _, kind := range [...]TagKind{TagProfile, TagSecurity, TagTag} {
		member := tagMembers[kind]
		head := len(b)
		b = append(append(append(b, `,"`...), member...), `":[`...)
		empty := len(b)
		if inline := meta.member(member); inline.isList() {
			b = append(b, inline[1:len(inline)-1]...)
		}
		for _, t := range tags {
			if t.Kind != kind {
				continue
			}
			if len(b) > empty {
				b = append(b, ',')
			}
			b = t.appendTo(b)
		}
		if len(b) == empty {
			b = b[:head]
			continue
		}
		b = append(b, ']')
	}
	return b
}

func (t Tag) appendTo(b []byte) []byte {
	if t.Kind == TagProfile {
		return quote(b, t.Code)
	}
	b = append(b, '{')
	for _, m := range [...]struct{ name, text string }{{"system", t.System}, {"version", t.Version}, {"code", t.Code}, {"display", t.Display}} {
		if m.text == "" {
			continue
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = quote(append(append(append(b, '"'), m.name...), `":`...), m.text)
	}
	if t.UserSelected != "" {
		b = append(append(b, `,"userSelected":`...), t.UserSelected...)
	}
	return append(b, '}')
}

// quote appends text as JSON.
func quote(b []byte, text string) []byte {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string always is
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte{'\n'})...)
}

// number is an integer that identifies something, 0 if the column holds none.
func (c cell) number() int64 {
	n, err := strconv.ParseInt(string(c.text), 10, 64)
	if err != nil || c.kind != isNumber && c.kind != isText {
		return 0
	}
	return n
}

// truth is what a column says that is true or false, "" if it says neither.
func (c cell) truth() string {
	switch {
	case c.kind == absent:
		return ""
	case c.yes():
		return "true"
	}
	return "false"
}

// transactionOf is what the transaction of a change is called, and which of its changes this
// is.
func transactionOf(message row) (id string, order int64) {
	switch m := message.(type) {
	case node:
		if id = string(m.at("transaction", "id").text()); id == "" {
			id = string(m.member("iodebeziumtransactionid").text())
		}
		order = jsonCell(m.at("transaction", "total_order").value).number()
		if id == "" { // flattened
			id, order = string(m.member("__transaction_id").text()), jsonCell(m.member("__transaction_total_order").value).number()
		}
	case avroRow:
		if of, ok := recordOf(m["transaction"]); ok {
			id, _ = of["id"].(string)
			order = avroCell(of["total_order"]).number()
		} else {
			id, order = string(avroCell(m["__transaction_id"]).text), avroCell(m["__transaction_total_order"]).number()
		}
	}
	id, _ = transactionName(id)
	return id, order
}

// transactionName takes the place in the log away which Debezium adds for PostgreSQL: it is
// another for each change. Names of other databases may have colons of their own.
func transactionName(id string) (name string, place uint64) {
	number, of, _ := strings.Cut(id, ":")
	if _, err := strconv.ParseUint(number, 10, 64); err != nil {
		return id, 0
	}
	place, err := strconv.ParseUint(of, 10, 64)
	if err != nil {
		return id, 0
	}
	return number, place
}

// transactionPart is what a message says of where a transaction begins or ends; nil if it is
// a heartbeat.
func transactionPart(message row) *Part {
	if message == nil {
		return nil
	}
	cells, _ := message.cells([]string{"status", "id", "ts_ms"})
	p := &Part{Of: PartBegin}
	switch string(cells[0].text) {
	case "BEGIN":
	case "END":
		p.Of, p.Counts = PartEnd, collections(message)
	default:
		return nil
	}
	p.Transaction, p.Position = transactionName(string(cells[1].text))
	p.At = fhir.Instant(cells[2].number())
	return p
}

// collections counts a transaction's rows by table.
func collections(message row) map[string]int {
	counts := map[string]int{}
	count := func(name string, n int64) {
		counts[strings.ToLower(name[strings.LastIndexByte(name, '.')+1:])] += int(n)
	}
	switch m := message.(type) {
	case node:
		_ = m.member("data_collections").each(func(e node) error {
			count(string(e.member("data_collection").text()), jsonCell(e.member("event_count").value).number())
			return nil
		})
	case avroRow:
		for _, e := range listOf(m["data_collections"]) {
			of, _ := recordOf(e)
			name, _ := of["data_collection"].(string)
			count(name, avroCell(of["event_count"]).number())
		}
	}
	return counts
}

// listOf is a list, or the one that a union holds.
func listOf(v any) []any {
	if m, is := v.(map[string]any); is {
		for _, inner := range m {
			return listOf(inner)
		}
	}
	list, _ := v.([]any)
	return list
}
