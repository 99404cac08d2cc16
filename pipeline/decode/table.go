package decode

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/store"
	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// Why a row is refused.
const (
	reasonTable    = "no rule says what the columns of this table mean: leave the table out of the connector, or describe it"
	reasonRowType  = "row names no resource type of FHIR R4: if its table holds no resources, do not have it captured, or not read (topics)"
	reasonRowID    = "row has no FHIR id"
	reasonGone     = "the column that says whether the resource is deleted has a word that is not known here: give its meaning by one that is"
	reasonNoColumn = "row has no body: is it kept elsewhere (offloaded), or left out because it has not changed (binary.handling.mode is to be bytes or hex)?"
	reasonTime     = "the column that says when the resource was updated (last_updated) holds a date or a word: it is to be a time"
)

// Why a row is refused that lacks a column which decides: whether the resource is deleted, whether the row is an old version,
// which version is newer.
const (
	reasonNoDeleted fault = "row lacks a column that says whether the resource is deleted (deleted)" + underItsName
	reasonNoSkip    fault = "row lacks a column that says whether it is an old version (skip)" + underItsName
	reasonNoVersion fault = "row lacks a column that says which version it is (version)" + underItsName
	reasonNoUpdated fault = "row lacks a column that says when the resource was updated (last_updated)" + underItsName

	underItsName = ": have the connector write it under the name that tables have for it; if it is newer than the record, take a snapshot of the table, or name it in optional"
)

// A Table says what the columns of a table of resources mean, one row a resource or one of
// its versions. Names of columns are taken in whatever case of letters.
type Table struct {
	// Name is a regular expression for the names of the tables, without a schema; "" is any.
	// What its group called type matches is the resource type, in whatever case of letters.
	Name string `yaml:"name,omitempty"`
	// Type is the resource type of all rows, if no column and no table's name says it.
	Type string `yaml:"type,omitempty"`
	// TypeColumn, ID, Version, LastUpdated and Body are columns. Without one for the type or
	// the id, the body says it.
	TypeColumn  string `yaml:"type_column,omitempty"`
	ID          string `yaml:"id,omitempty"`
	Version     string `yaml:"version,omitempty"`
	LastUpdated string `yaml:"last_updated,omitempty"`
	Body        string `yaml:"body"`
	// Deleted is a column that is true, a number other than 0, a time, or one of Y, yes, true
	// or deleted where the resource is deleted; where it is not, it is false, 0, null, empty,
	// or one of N, no, false, active, created or updated. Rows with other words are refused, and those without the column.
	Deleted string `yaml:"deleted,omitempty"`
	// Skip is a column that is true, as Deleted, of rows that say nothing: old versions.
	Skip string `yaml:"skip,omitempty"`
	// History: rows are versions. What is done to one later says nothing of the resource.
	History bool `yaml:"history,omitempty"`
	// Optional are those of version, last_updated, deleted and skip whose column rows may lack, for
	// they are older than it. Of a table of one's own all others are refused.
	Optional []string `yaml:"optional,omitempty"`
	// Ignore: rows say nothing.
	Ignore bool `yaml:"ignore,omitempty"`

	emptyDeletes bool                            // an empty body is a deletion
	skipTypes    []string                        // resource types of the server's own, which FHIR does not have
	strip        []string                        // members of meta that are the server's own
	ticks        bool                            // LastUpdated holds eight times the 100 ns since the year 1
	adapt        func(c *changes, s *said) fault // what else is to be done to the body
}

// Validate joins all faults.
func (t *Table) Validate() error {
	var faults []error
	if _, err := regexp.Compile(t.Name); err != nil {
		faults = append(faults, fmt.Errorf("name: %w", err))
	}
	if _, known := fhir.ParseType(t.Type); t.Type != "" && !known {
		faults = append(faults, fmt.Errorf("type %q: not a resource type of FHIR R4", t.Type))
	}
	if t.Body == "" && !t.Ignore {
		faults = append(faults, errors.New("body: name the column that holds the resource"))
	}
	for _, key := range t.Optional {
		if !slices.Contains(OptionalColumns, key) {
			faults = append(faults, fmt.Errorf("optional: %q is none of %s", key, strings.Join(OptionalColumns, ", ")))
		}
	}
	return errors.Join(faults...)
}

// OptionalColumns are what may stand in a Table's Optional.
var OptionalColumns = []string{"version", "last_updated", "deleted", "skip"}

// A table is one whose Table was understood.
type table struct {
	Table
	name  *regexp.Regexp
	names []string // of the columns below
	own   bool     // an operator described it: all columns that he names are there
}

// columns of a table, in the order of table.names.
const (
	typeColumn = iota
	idColumn
	versionColumn
	updatedColumn
	bodyColumn
	deletedColumn
	skipColumn
)

type tables struct {
	all      []table
	zone     *time.Location // of times without one
	instants bool           // what Avro's types call a time is one of the world's, and not of a column without zone
}

func (o Options) tables() tables {
	t := tables{zone: o.TimeZone}
	if t.zone == nil {
		t.zone = time.UTC
	}
	for i, rule := range slices.Concat(o.Tables, presets[o.Preset]) {
		t.all = append(t.all, table{
			Table: rule, name: regexp.MustCompile("(?i)^(?:" + rule.Name + ")$"),
			names: []string{rule.TypeColumn, rule.ID, rule.Version, rule.LastUpdated, rule.Body, rule.Deleted, rule.Skip},
			own:   i < len(o.Tables),
		})
	}
	return t
}

// of finds the rule of a table, and the type that its name says.
func (ts tables) of(name string) (t *table, typ string) {
	for i := range ts.all {
		t := &ts.all[i]
		if t.Name == "" {
			return t, t.Type
		}
		m := t.name.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if at := t.name.SubexpIndex("type"); at >= 0 && m[at] != "" {
			return t, m[at]
		}
		return t, t.Type
	}
	return nil, ""
}

// typesFolded are the resource types by their names in small letters.
var typesFolded = func() map[string]fhir.Type {
	all := map[string]fhir.Type{}
	for _, t := range fhir.AllTypes() {
		all[strings.ToLower(t.String())] = t
	}
	return all
}()

// row makes the changes of a row's.
func (d *debezium) row(rec Record, c rowChange) ([]store.Change, error) {
	if c.op == 0 {
		return nil, nil
	}
	name := c.table
	if name == "" { // flattened: the topic ends with it
		name = rec.Topic[strings.LastIndexByte(rec.Topic, '.')+1:]
	}
	t, typ := d.tables.of(name)
	switch {
	case t == nil && isSignal(name, c):
		return nil, nil
	case t == nil:
		return nil, refuse(rec, reasonTable)
	case t.Ignore, t.History && c.op == 'd':
		return nil, nil
	}
	s, skip, reason := d.read(t, typ, c)
	switch {
	case reason != "":
		return nil, refuse(rec, string(reason))
	case skip:
		return nil, nil
	}
	if s.unchanged {
		return d.keep(rec, s), nil
	}
	return d.add(nil, rec, s, "")
}

// signals are what the table of signals may say, by which operators ask Debezium for snapshots,
// and in which it marks how far these are.
var signals = []string{
	"execute-snapshot", "stop-snapshot", "pause-snapshot", "resume-snapshot", "snapshot-window-open", "snapshot-window-close", "log", "schema-changes",
}

// isSignal tells whether a row is one of Debezium's own table of signals, which has to be captured
// with the others, under whatever name.
func isSignal(name string, c rowChange) bool {
	if c.op == 'd' { // all columns but the key may be made up
		return strings.EqualFold(name, "debezium_signal")
	}
	cells, once := c.row.cells([]string{"type"})
	return once && slices.Contains(signals, string(cells[0].text)) && c.row.holds("id") && c.row.holds("data")
}

// keep is the change of a row whose body is what it was: none of what is here, and a dead
// letter where nothing is.
func (d *debezium) keep(rec Record, s said) []store.Change {
	if d.drop[s.key.Type] {
		return nil
	}
	c := DeadLetter(rec, reasonUnavailable)
	c.Key, c.Position, c.Snapshot, c.Earlier, c.Version, c.LastUpdated, c.Time = s.key, s.position, s.snapshot, s.earlier, version(s.version), s.lastUpdated, s.time
	c.Revise = func([]byte) (store.Change, bool) { return store.Change{}, false }
	return []store.Change{c}
}

// read is what a row says of a resource.
func (d *debezium) read(t *table, typ string, c rowChange) (s said, skip bool, reason fault) {
	from := c.row
	if c.op == 'd' {
		from = c.key // all other columns may be made up
	}
	cells, once := from.cells(t.names)
	if !once {
		return s, false, reasonTwice
	}
	s = nothing
	s.position, s.time, s.lacks = c.position, c.at, true
	s.snapshot, s.earlier = c.op == 'r', t.History && c.op != 'c'
	if cells[typeColumn].kind == isText {
		typ = string(cells[typeColumn].text)
	}
	if cells[skipColumn].yes() || slices.Contains(t.skipTypes, typ) {
		return s, true, ""
	}
	if typ != "" {
		if s.key.Type = typesFolded[strings.ToLower(typ)]; s.key.Type == 0 {
			return s, false, reasonRowType
		}
	}
	s.key.ID = string(cells[idColumn].text)
	if c.op == 'd' {
		if s.delete = true; s.key.Type == 0 || !fhir.ValidID(s.key.ID) {
			return s, false, reasonKeyless
		}
		return s, false, ""
	}
	s.version = whole(cells[versionColumn])
	if s.lastUpdated = d.tables.instant(cells[updatedColumn], t.ticks); cells[updatedColumn].isNoTime(s.lastUpdated) {
		return s, false, reasonTime
	}
	switch reason := d.body(t, from, cells, &s); {
	case reason == unchanged && t.History:
		return s, true, ""
	case reason == unchanged:
		s.unchanged = true
	case reason != "":
		return s, false, reason
	}
	return d.identify(t, s)
}

// whole is a version as a column has it. Connectors may write a whole number as 3.0 or 1.0E7 (decimal.handling.mode: double).
func whole(c cell) string {
	if c.kind == isNumber && bytes.ContainsAny(c.text, ".eE") {
		if n, err := strconv.ParseFloat(string(c.text), 64); err == nil && n == math.Trunc(n) && math.Abs(n) < 1<<53 { // beyond, digits are lost
			return strconv.FormatFloat(n, 'f', 0, 64)
		}
	}
	return string(c.text)
}

// unchanged says that a row leaves its body out, for it is what it was.
const unchanged fault = "unchanged"

// body reads the body of a row, or that there is none any more.
func (d *debezium) body(t *table, row row, cells []cell, s *said) fault {
	text := cells[bodyColumn]
	var known bool
	s.delete, known = d.tables.gone(cells[deletedColumn])
	switch {
	case !known:
		return reasonGone
	}
	if reason := t.blind(row, cells); reason != "" {
		return reason
	}
	switch {
	case s.delete && (unavailable(text) || s.key.Type != 0 && s.key.ID != ""):
		return "" // whatever is left of it
	case unavailable(text):
		return unchanged
	case t.emptyDeletes && text.kind == isText && len(text.text) == 0:
		s.delete = true
	}
	if text.kind == absent || len(text.text) == 0 {
		if s.delete {
			return ""
		}
		return reasonNoColumn
	}
	var reason fault
	s.body, reason = d.unpack(text)
	return reason
}

// identify finds out of the body what no column says, and makes FHIR of it.
func (d *debezium) identify(t *table, s said) (said, bool, fault) {
	looked := s.body != nil && (s.key.Type == 0 || s.key.ID == "" || len(t.strip) > 0 || t.adapt != nil)
	if looked {
		v, err := d.compact(s.body)
		if err != nil {
			return s, false, fault("body " + err.Error())
		}
		s.body = v
		if s.key.Type == 0 {
			s.key.Type = typesFolded[strings.ToLower(string(v.member("resourceType").text()))]
		}
		if s.key.ID == "" {
			s.key.ID = string(v.member("id").text())
		}
		s.body = stripMeta(v, t.strip)
		if t.adapt != nil {
			if reason := t.adapt(&d.changes, &s); reason != "" {
				return s, false, reason
			}
		}
	}
	switch {
	case s.key.Type == 0:
		return s, false, reasonRowType
	case !fhir.ValidID(s.key.ID):
		return s, false, reasonRowID
	case looked && s.lacks:
		s.body, s.lacks = complete(s.body, s.key), false
	}
	return s, false, ""
}

// gone tells whether a column says that the resource is deleted. A word that is not known may
// well mean that.
func (ts tables) gone(c cell) (gone, known bool) {
	if c.kind != isText || c.yes() {
		return c.yes(), true
	}
	switch strings.ToLower(string(c.text)) {
	case "", "n", "no", "f", "false", "0", "active":
		return false, true
	}
	does := actionOf(c.text)
	gone = does == deletes || does == unknownAction && ts.instant(c, false) != fhir.None // deleted_at
	return gone, gone || does == upserts
}

// blind is which column a row lacks that says whether the resource is deleted, whether
// the row is one of old, or which row is newer: it is called otherwise, or was left out, and then no
// deletion would be seen, or old versions be taken for new.
func (t *table) blind(r row, cells []cell) fault {
	lacks := func(key, name string, c cell) bool {
		return name != "" && c.kind == absent && !slices.Contains(t.Optional, key) && !r.holds(name)
	}
	switch {
	case !t.emptyDeletes && lacks("deleted", t.Deleted, cells[deletedColumn]):
		return reasonNoDeleted
	case lacks("skip", t.Skip, cells[skipColumn]):
		return reasonNoSkip
	case t.own && lacks("version", t.Version, cells[versionColumn]):
		return reasonNoVersion
	case t.own && lacks("last_updated", t.LastUpdated, cells[updatedColumn]):
		return reasonNoUpdated
	}
	return ""
}

// isNoTime tells of what was read as a time that it says something, but no time: a word, or a
// date, which connectors write as days since 1970.
func (c cell) isNoTime(at fhir.Instant) bool {
	const days = 1_000_000 // as seconds they are January 1970
	switch c.kind {
	case isText:
		return at == fhir.None && len(c.text) > 0
	case isNumber:
		n, err := strconv.ParseInt(string(c.text), 10, 64)
		return err == nil && 0 < n && n < days
	}
	return false
}

// yes tells whether a column says so.
func (c cell) yes() bool {
	switch c.kind {
	case isTrue, isTime:
		return true
	case isBytes:
		return len(bytes.Trim(c.text, "\x00")) > 0
	case isNumber:
		n, err := strconv.ParseFloat(string(c.text), 64)
		return n != 0 || err != nil
	case isText:
		switch strings.ToLower(string(c.text)) {
		case "y", "yes", "t", "true", "1", "deleted":
			return true
		}
	}
	return false
}

// placeholder stands where Debezium does not know a large column, for it has not changed.
const placeholder = "__debezium_unavailable_value"

// placeholders are the forms in which it is written in columns of bytes.
var placeholders = []string{
	placeholder, base64.StdEncoding.EncodeToString([]byte(placeholder)), hex.EncodeToString([]byte(placeholder)),
}

func unavailable(c cell) bool {
	return (c.kind == isText || c.kind == isBytes) && slices.ContainsFunc(placeholders, func(p string) bool { return p == string(c.text) })
}

// instant reads a time as drivers and connectors write it: text, or the time since 1970 in
// seconds, milliseconds, microseconds or nanoseconds, which are told from each other by
// their size. Text without a zone, and numbers, which connectors make of times without one,
// are of the source's zone.
func (ts tables) instant(c cell, ticks bool) fhir.Instant {
	switch c.kind {
	case isTime:
		t, err := time.Parse(time.RFC3339Nano, string(c.text))
		switch {
		case err != nil: // a year that FHIR cannot write
			return fhir.None
		case ts.instants:
			return fhir.FromTime(t)
		}
		return fhir.FromTime(ts.onTheWall(t))
	case isText:
		if at := instant(c.text); at != fhir.None {
			return at
		}
		for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05Z07"} {
			if t, err := time.ParseInLocation(layout, string(c.text), ts.zone); err == nil {
				return fhir.FromTime(t)
			}
		}
	case isNumber:
		n, err := strconv.ParseInt(string(c.text), 10, 64)
		if err != nil || ticks && n < 0 {
			return fhir.None
		}
		if ticks {
			return fhir.Instant((n>>3)/1e4 - msBefore1970)
		}
		return ts.since1970(n)
	}
	return fhir.None
}

// msBefore1970 are the milliseconds from the year 1 to 1970.
const msBefore1970 = 62135596800000

// since1970 reads a time without a zone. Between 1973 and 5138 no unit is mistaken for
// another.
func (ts tables) since1970(n int64) fhir.Instant {
	const year1, year5138 = -62135596800, 1e11 // in seconds
	t := time.Unix(n, 0)
	switch {
	case n < year1: // FHIR cannot write it; a database may say by it that there is no bound
		return fhir.None
	case n >= year5138*1e6:
		t = time.Unix(0, n)
	case n >= year5138*1e3:
		t = time.UnixMicro(n)
	case n >= year5138:
		t = time.UnixMilli(n)
	}
	return fhir.FromTime(ts.onTheWall(t))
}

// onTheWall is the instant at which the source's clock showed what was taken for UTC.
func (ts tables) onTheWall(t time.Time) time.Time {
	if ts.zone == time.UTC {
		return t
	}
	t = t.UTC()
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), ts.zone)
}

// stripMeta is a resource without some members of its meta.
func stripMeta(v value, names []string) []byte {
	if len(names) == 0 || !v.isObject() {
		return v
	}
	var out []byte
	compact.Members(v, 0, func(m compact.Member) bool {
		if string(v[m.Name:m.Colon]) != `"meta"` || v[m.Colon+1] != '{' {
			return true
		}
		out = append(append(out, v[:m.Colon+1]...), '{')
		open := len(out)
		compact.Members(v, m.Colon+1, func(sub compact.Member) bool {
			if !slices.Contains(names, string(compact.Plain(nil, v[sub.Name:sub.Colon]))) {
				if len(out) > open {
					out = append(out, ',')
				}
				out = append(out, v[sub.Name:sub.End]...)
			}
			return true
		})
		out = append(append(out, '}'), v[m.End:]...)
		return false
	})
	if out == nil {
		return v
	}
	return out
}
