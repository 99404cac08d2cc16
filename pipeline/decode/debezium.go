package decode

import (
	"bytes"
	"errors"
	"math"
	"strconv"

	"tidemark/store"
	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// Why a change of a table's row is refused.
const (
	reasonNoChange    = "value is not the change of a table's row, neither in Debezium's envelope nor flattened"
	reasonTruncated   = "the table was truncated: what was deleted by that is not told"
	reasonNull        = "value is a null that is written out, as of a flattened row that is deleted: have deletions told as rows (delete.tombstone.handling.mode: rewrite)"
	reasonUnknownOp   = "op is none of c, r, u, d, t, m"
	reasonKeyless     = "deletion of a row whose key does not tell which resource it was: have the connector write the columns of its type and id as the key (message.key.columns, with REPLICA IDENTITY FULL), or the source say in a column of the row that it is deleted (deleted)"
	reasonKeyText     = ": it tells what is deleted, have it written as the value is (key.converter)"
	reasonUnavailable = "body is left out, for it has not changed (Debezium's unavailable value), and the resource is not known here: take a snapshot of the table, or set its REPLICA IDENTITY to FULL"
)

// debezium are changes of tables' rows as Debezium writes them: as JSON, with a schema beside
// it or without, or as Avro with the schemas of a registry; in its envelope or flattened
// (ExtractNewRecordState). What the columns mean says a Table.
type debezium struct {
	changes
	tables tables
	codecs codecs
}

// rowDepth is where a row's columns lie in an envelope: payload, after.
const rowDepth = 3

func newDebezium(o Options) Decoder {
	d := &debezium{tables: o.tables(), codecs: codecs{schemas: o.Schemas}}
	d.prepare(o, rowDepth)
	return d
}

// Decode implements Decoder. The tombstone behind a deletion says nothing.
func (d *debezium) Decode(rec Record) ([]store.Change, error) {
	c, err := d.change(rec)
	if err != nil {
		return nil, err
	}
	return d.row(rec, c)
}

// change reads what a record says of a row.
func (d *debezium) change(rec Record) (c rowChange, err error) {
	switch {
	case rec.Value == nil:
		return c, nil
	case rec.size() > d.maxRecord:
		return c, refuse(rec, reasonLarge)
	}
	key, err := d.keyRow(rec)
	wrong, is := errors.AsType[*Error](err)
	if err != nil && !is {
		return c, err
	}
	c, err = d.rowChange(rec, key)
	if f, is := errors.AsType[fault](err); is {
		return c, refuse(rec, string(f))
	}
	c.hear(rec)
	if err == nil && wrong != nil && c.op == 'd' { // a row that is there says itself what it is
		return c, wrong
	}
	return c, err
}

// rowChange reads what was done to a row, in Avro or in JSON.
func (d *debezium) rowChange(rec Record, key row) (c rowChange, err error) {
	fields, json, framing, err := d.codecs.read(rec.Value)
	switch {
	case err != nil:
		return c, err
	case fields != nil:
		c, reason := readAvroChange(fields)
		c.key = key
		return c, orNil(reason)
	case framing:
		rec.Value = json
	}
	n, err := d.document(rec)
	switch {
	case err != nil:
		return c, err
	case payload(n).none():
		return c, fault(reasonNull)
	case !n.isObject():
		return c, fault(reasonNoObject)
	}
	c, reason := readRowChange(n)
	c.key = key
	return c, orNil(reason)
}

// orNil makes an error of a fault, if it is one.
func orNil(f fault) error {
	if f == "" {
		return nil
	}
	return f
}

// keyRow is the record's key as a row, which has the columns of the table's key; a row without
// columns beside an error.
func (d *debezium) keyRow(rec Record) (row, error) {
	fields, json, framing, err := d.codecs.read(rec.Key)
	switch f, is := errors.AsType[fault](err); {
	case is:
		return node{}, refuse(rec, "key: "+string(f))
	case err != nil:
		return node{}, err
	case fields != nil:
		return fields, nil
	case !framing:
		json = rec.Key
	}
	if len(json) == 0 {
		return node{}, nil
	}
	n, err := d.nodes(json)
	if err != nil {
		return node{}, refuse(rec, "key "+err.Error()+reasonKeyText)
	}
	return payload(n), nil
}

// payload is what a JSON converter with schemas.enable wraps.
func payload(n node) node {
	var at [2]node
	if n.read([]string{"payload", "schema"}, at[:]); at[1].isObject() && members(n.value) == 2 {
		return at[0] // the zero node, if that is null
	}
	return n
}

// A rowChange is what was done to a row.
type rowChange struct {
	op       byte // c, r, u, d; 0: the message says nothing of rows
	row, key row
	table    string
	position uint64
	at       fhir.Instant // when it was done, by the database's clock; None: not told
	more     bool         // of a snapshot's row: it is not the last of its table
	message  row          // the whole of it
}

var (
	envelopeMembers = []string{"op", "after", "source"}
	flatMembers     = []string{"__op", "__deleted", "__lsn", "__table", "__source_lsn", "__source_ts_ms", "__source_snapshot"}
	sourceMembers   = []string{"table", "lsn", "ts_ms", "snapshot"}
	flatHeaders     = []string{"__op", "__table", "__lsn", "__source_lsn", "__source_ts_ms", "__source_snapshot"}

	cloudMembersOfRows = []string{"iodebeziumop", "iodebeziumtable", "iodebeziumlsn", "data", "iodebeziumtsms"}
)

// readRowChange reads an envelope, or what is left of one when it is flattened.
func readRowChange(n node) (c rowChange, reason fault) {
	n = payload(n)
	var at [3]node
	if !n.read(envelopeMembers, at[:]) {
		return c, reasonTwice
	}
	op := string(at[0].text())
	switch {
	case op == "" && n.member("iodebeziumop").value != nil:
		return readCloud(n)
	case !at[2].isObject() && (op == "" || at[1].value == nil && !has(n, "before")):
		return readFlat(n) // whose columns may be called op and source
	case op == "" && schemaChange(n):
		return c, ""
	case op == "":
		return c, reasonUnknownOp
	}
	var source [4]node
	if !at[2].read(sourceMembers, source[:]) {
		return c, reasonTwice
	}
	return did(op, at[1], rowChange{
		table: string(source[0].text()), position: position(source[1].value), at: since(source[2].text()), more: more(source[3].text()), message: n,
	})
}

// readCloud reads what Debezium's CloudEvents converter makes of an envelope: what was done
// and the source are attributes, the rows are the data.
func readCloud(n node) (c rowChange, reason fault) {
	var at [5]node
	if !n.read(cloudMembersOfRows, at[:]) {
		return c, reasonTwice
	}
	after := payload(at[3]).member("after")
	return did(string(at[0].text()), after, rowChange{table: string(at[1].text()), position: position(at[2].value), at: since(at[4].text()), message: n})
}

// did says what was done to a row, which is after it now.
func did(op string, after node, c rowChange) (rowChange, fault) {
	c.row = after
	switch op {
	case "c", "r", "u":
		if c.op = op[0]; !after.isObject() {
			return c, reasonNoChange
		}
	case "d":
		c.op = 'd'
	case "t":
		return c, reasonTruncated
	case "m": // of the log, not of a row
	default:
		return c, reasonUnknownOp
	}
	return c, ""
}

// readFlat reads a row that was taken out of its envelope. Of one that is deleted all
// columns but the key are made up.
func readFlat(n node) (c rowChange, reason fault) {
	if c.message = n; control(n) {
		return c, ""
	}
	var at [7]node
	if !n.read(flatMembers, at[:]) {
		return c, reasonTwice
	}
	c.op, c.table, c.row, c.position = 'u', string(at[3].text()), n, max(position(at[2].value), position(at[4].value))
	c.at, c.more = since(at[5].text()), more(at[6].text())
	if op := at[0].text(); len(op) == 1 {
		c.op = op[0]
	}
	if string(at[1].text()) == "true" || at[1].isTrue() {
		c.op = 'd'
	}
	switch c.op {
	case 'c', 'r', 'u', 'd':
		return c, ""
	case 't':
		return c, reasonTruncated
	}
	return c, reasonUnknownOp
}

// hear takes out of headers what a flattened row does not say itself (add.headers in the place of add.fields).
func (c *rowChange) hear(rec Record) {
	if c.op == 0 || len(rec.Headers) == 0 {
		return
	}
	h := headersOf(rec, flatHeaders...)
	if c.table == "" {
		c.table = h["__table"]
	}
	if c.position == 0 {
		c.position = max(position(value(h["__lsn"])), position(value(h["__source_lsn"])))
	}
	if c.at == fhir.None {
		c.at = since([]byte(h["__source_ts_ms"]))
	}
	c.more = c.more || more([]byte(h["__source_snapshot"]))
	if op := h["__op"]; c.op == 'u' && (op == "c" || op == "r" || op == "d") {
		c.op = op[0]
	}
}

// since reads the milliseconds since 1970 that a connector writes; None if there are none.
func since(text []byte) fhir.Instant {
	ms, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || ms <= 0 {
		return fhir.None
	}
	return fhir.Instant(ms)
}

// more tells of what a connector says of a snapshot's row whether others of its table come behind it.
// Of an incremental snapshot it does not say.
func more(snapshot []byte) bool {
	switch string(snapshot) {
	case "true", "first", "first_in_data_collection":
		return true
	}
	return false
}

// control tells whether a message is one of Debezium's own: a heartbeat, or where a
// transaction begins or ends. A row may have columns of these names, among others.
func control(n node) bool {
	var at [2]node
	n.read([]string{"ts_ms", "status"}, at[:])
	status := string(at[1].text())
	all := members(n.value)
	return at[0].value != nil && (all == 1 || all <= 5 && (status == "BEGIN" || status == "END"))
}

// schemaChange tells whether a message tells of a change of tables' columns, as connectors of MySQL
// and SQL Server do in a topic of their own.
func schemaChange(n node) bool { return has(n, "databaseName") && has(n, "ddl") }

// has tells whether an object has a member of that name, be it null.
func has(n node, name string) (found bool) {
	_ = n.fields(func(member []byte, _ node) error { // fn does not fail
		found = found || string(compact.Plain(nil, member)) == name
		return nil
	})
	return found
}

// position is a source's log sequence number; 0: none.
func position(v value) uint64 {
	n, err := strconv.ParseUint(string(v.text()), 10, 64)
	if err != nil || n > math.MaxInt64 {
		return 0
	}
	return n
}

// A row is a table's row: its columns by name, in whatever case of letters.
type row interface {
	// cells are the columns of these names, in their order; false if one comes twice.
	cells(names []string) ([]cell, bool)
	// holds tells whether there is a column of that name, be it null.
	holds(name string) bool
}

// A cell is the value of a column.
type cell struct {
	kind cellKind
	text []byte // of text; of a number as it is written; the bytes
}

type cellKind uint8

const (
	absent cellKind = iota // there is no such column, or it is null
	isText
	isNumber
	isTrue
	isFalse
	isBytes
	isTime // as text; of the type of Avro's that says so
)

// cells implements row, for one as a JSON object.
func (n node) cells(names []string) ([]cell, bool) {
	columns := make([]node, len(names))
	once := n.readFold(names, columns)
	cells := make([]cell, len(names))
	for i, c := range columns {
		cells[i] = jsonCell(c.value)
	}
	return cells, once
}

// holds implements row.
func (n node) holds(name string) (found bool) {
	_ = n.fields(func(column []byte, _ node) error { // fn does not fail
		found = found || bytes.EqualFold(compact.Plain(nil, column), []byte(name))
		return nil
	})
	return found
}

func jsonCell(v value) cell {
	switch {
	case v.none():
		return cell{}
	case v.isText():
		return cell{isText, v.text()}
	case v.isTrue():
		return cell{kind: isTrue}
	case v[0] == 'f':
		return cell{kind: isFalse}
	case v.isObject(), v.isList():
		if c := scaledJSON(v); c.kind == isNumber {
			return c
		}
		return cell{isText, v} // JSON in a column that the converter has expanded
	}
	return cell{isNumber, v}
}

// scaledJSON is scaledDecimal in JSON; absent for what is something else.
func scaledJSON(v value) cell {
	if !bytes.HasPrefix(v, []byte(`{"scale":`)) || members(v) != 2 {
		return cell{}
	}
	scale, err := strconv.ParseInt(string(v.member("scale").text()), 10, 32)
	digits, is := base64Text(v.member("value").text())
	if err != nil || !is {
		return cell{}
	}
	return scaled(scale, digits)
}
