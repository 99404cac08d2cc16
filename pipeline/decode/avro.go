package decode

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/linkedin/goavro/v2"

	"tidemark/store"
	"tidemark/store/fhir"
)

// Why a record in Avro is refused.
const (
	reasonNoRegistry = "value was written with a schema of a registry: name the registry (schema_registry.url)"
	reasonNoSchema   = "the registry does not know the schema that the record names"
	reasonSchemaKind = "the record's schema is neither Avro nor a JSON schema"
	reasonSchema     = "the record's schema cannot be read: does it refer to others?"
	reasonRecursive  = "value is larger than 256 KiB, and its schema has a record that holds records of its own kind: it may be nested too deep"
	reasonAvro       = "value is not what its schema says"
	reasonNoText     = fault("key or value is a record in Avro where text is expected: leave table.expand.json.payload off")
	reasonNotAvro    = "value does not begin as records do that name their schema (a 0, and its id)"
)

// ErrNoSchema says that a registry does not know a schema. It is no trouble of the registry.
var ErrNoSchema = errors.New("the registry does not know the schema")

// Schemas are what producers have registered, by the ids that stand in their records.
type Schemas interface {
	// Schema is a schema and its kind: AVRO, JSON, PROTOBUF, or REFERENCES if it is not whole. ErrNoSchema if there is none of
	// that id; any other error means that it is worth to ask again, for the record is not to
	// blame.
	Schema(id uint32) (kind, text string, err error)
}

// framed splits what Confluent's serializers write: a 0, the id of a schema in four bytes,
// and what was written with it.
func framed(b []byte) (id uint32, rest []byte, ok bool) {
	if len(b) < 5 || b[0] != 0 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint32(b[1:]), b[5:], true
}

// codecs read what was written with the schemas of a registry. There is no resolution: a
// record is read with the schema that it was written with, and its fields by name.
type codecs struct {
	schemas Schemas
	known   sync.Map // of *codec by id
}

type codec struct {
	kind  string
	avro  *goavro.Codec
	union bool // the schema is one
	max   int  // the size of a record that may be read with it, 0: any
	err   fault
}

// maxRecursive is the size of a record of a schema that is part of itself. goavro calls itself
// for each level of it, which may be one byte: two million are more than a goroutine's stack
// may have, which ends the process, and would at each start again. These take a quarter of it.
const maxRecursive = 256 << 10

// maxBlock is how many elements of a list, or pairs of a map, one block of a record may say that it has.
// goavro makes room for them before it reads them: of a record of ten bytes that is not what
// its schema says, for two thousand million.
const maxBlock = 1 << 20

// bounded is goavro with that bound, which is a variable of its package.
var bounded = sync.OnceFunc(func() { goavro.MaxBlockCount = maxBlock })

// of is the codec of a schema. An error is none of the record's.
func (cs *codecs) of(id uint32) (*codec, error) {
	if c, known := cs.known.Load(id); known {
		return c.(*codec), nil
	}
	if cs.schemas == nil {
		return &codec{err: reasonNoRegistry}, nil
	}
	kind, text, err := cs.schemas.Schema(id)
	switch {
	case errors.Is(err, ErrNoSchema):
		return &codec{err: reasonNoSchema}, nil // it may be registered yet
	case err != nil:
		return nil, fmt.Errorf("ask for the schema of a record: %w", err)
	}
	c := &codec{kind: kind, union: strings.HasPrefix(strings.TrimSpace(text), "[")}
	switch kind {
	case "AVRO":
		bounded()
		if c.avro, err = compile(text); err != nil {
			c.err = reasonSchema
		}
		if recursive(text) {
			c.max = maxRecursive
		}
	case "JSON":
	case "REFERENCES":
		c.err = reasonSchema
	default:
		c.err = reasonSchemaKind
	}
	known, _ := cs.known.LoadOrStore(id, c)
	return known.(*codec), nil
}

// compile is goavro's NewCodec, which panics over some schemas that are none, as over a default
// of a record within itself.
func compile(schema string) (c *goavro.Codec, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("not a schema")
		}
	}()
	return goavro.NewCodec(schema)
}

// decoded is what a record says; no bytes of one may end the process.
func (c *codec) decoded(b []byte) (native any, rest []byte, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("not what the schema says")
		}
	}()
	return c.avro.NativeFromBinary(b)
}

// recursive tells whether a schema has a record that is part of itself. Namespaces do not
// count: two records of one name in each other are taken for one.
func recursive(schema string) bool {
	var root any
	if json.Unmarshal([]byte(schema), &root) != nil {
		return false
	}
	open := map[string]bool{}
	var within func(v any) bool
	within = func(v any) bool {
		switch v := v.(type) {
		case string:
			return open[v[strings.LastIndexByte(v, '.')+1:]]
		case []any:
			return slices.ContainsFunc(v, within)
		case map[string]any:
			name, _ := v["name"].(string)
			name = name[strings.LastIndexByte(name, '.')+1:]
			if fields, is := v["fields"].([]any); is {
				outer := open[name]
				open[name] = true
				defer func() { open[name] = outer }()
				return slices.ContainsFunc(fields, func(f any) bool { m, _ := f.(map[string]any); return within(m["type"]) })
			}
			return within(v["type"]) || within(v["items"]) || within(v["values"])
		}
		return false
	}
	return within(root)
}

// read is a framed value: a record's fields, or, of a JSON schema, the JSON. Neither, for
// what is not framed.
func (cs *codecs) read(b []byte) (fields avroRow, json []byte, framing bool, err error) {
	native, json, framing, err := cs.native(b)
	fields, _ = native.(map[string]any)
	return fields, json, framing, err
}

// plain is what is said by text, framed or not: the text. nil stays nil.
func (cs *codecs) plain(b []byte) ([]byte, error) {
	native, json, framing, err := cs.native(b)
	switch {
	case err != nil:
		return nil, err
	case !framing:
		return b, nil
	case json != nil:
		return json, nil
	case native == nil:
		return nil, nil
	}
	c := avroCell(native)
	if c.kind != isText && c.kind != isBytes {
		return nil, reasonNoText
	}
	return c.text, nil
}

// native is a framed value as goavro reads it, without the union around it, or, of a JSON
// schema, the JSON.
func (cs *codecs) native(b []byte) (native any, json []byte, framing bool, err error) {
	id, rest, ok := framed(b)
	if !ok {
		return nil, nil, false, nil
	}
	c, err := cs.of(id)
	switch {
	case err != nil:
		return nil, nil, true, err
	case c.err != "":
		return nil, nil, true, c.err
	case c.kind == "JSON":
		return nil, rest, true, nil
	}
	if c.max > 0 && len(rest) > c.max {
		return nil, nil, true, fault(reasonRecursive)
	}
	native, rest, err = c.decoded(rest)
	if err != nil || len(rest) > 0 {
		return nil, nil, true, fault(reasonAvro)
	}
	if c.union {
		native = unioned(native)
	}
	return native, nil, true, nil
}

// An avroRow is a row as goavro reads a record.
type avroRow map[string]any

// unioned is what a union holds.
func unioned(v any) any {
	m, is := v.(map[string]any)
	for _, inner := range m {
		if is && len(m) == 1 {
			return inner
		}
	}
	return v
}

// recordOf is a record within another, or the one that a union there holds.
func recordOf(v any) (avroRow, bool) {
	m, ok := v.(map[string]any)
	if ok && len(m) == 1 {
		for _, inner := range m {
			if r, is := inner.(map[string]any); is {
				return r, true
			}
		}
	}
	return m, ok
}

func (r avroRow) cells(names []string) ([]cell, bool) {
	cells := make([]cell, len(names))
	once := true
	for i, name := range names {
		if name == "" {
			continue
		}
		v, exact := r[name]
		if !exact {
			var found bool
			for field, other := range r {
				if strings.EqualFold(field, name) {
					once = once && !found
					v, found = other, true
				}
			}
		}
		cells[i] = avroCell(v)
	}
	return cells, once
}

// holds implements row.
func (r avroRow) holds(name string) bool {
	for field := range r {
		if strings.EqualFold(field, name) {
			return true
		}
	}
	return false
}

func avroCell(v any) cell {
	switch v := v.(type) {
	case string:
		return cell{isText, []byte(v)}
	case []byte:
		return cell{isBytes, v}
	case bool:
		if v {
			return cell{kind: isTrue}
		}
		return cell{kind: isFalse}
	case int32:
		return cell{isNumber, strconv.AppendInt(nil, int64(v), 10)}
	case int64:
		return cell{isNumber, strconv.AppendInt(nil, v, 10)}
	case float32:
		return cell{isNumber, strconv.AppendFloat(nil, float64(v), 'f', -1, 32)}
	case float64:
		return cell{isNumber, strconv.AppendFloat(nil, v, 'f', -1, 64)}
	case *big.Rat:
		return cell{isNumber, []byte(v.RatString())}
	case time.Time:
		return cell{isTime, v.UTC().AppendFormat(nil, time.RFC3339Nano)}
	case map[string]any:
		if len(v) == 1 {
			for _, inner := range v {
				return avroCell(inner) // of a union
			}
		}
		return scaledDecimal(v)
	}
	return cell{}
}

// scaledDecimal is a number of any scale as connectors write it (io.debezium.data.VariableScaleDecimal): a whole
// number, and how many of its digits stand behind the point.
func scaledDecimal(v avroRow) cell {
	scale, is := v["scale"].(int32)
	digits, has := v["value"].([]byte)
	if !is || !has || len(v) != 2 {
		return cell{}
	}
	return scaled(int64(scale), digits)
}

// scaled is a whole number, in two's complement, of whose digits some stand behind the point.
func scaled(scale int64, digits []byte) cell {
	if len(digits) == 0 || scale < -maxScale || scale > maxScale {
		return cell{}
	}
	n := new(big.Int).SetBytes(digits)
	if digits[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(digits))))
	}
	ten := new(big.Int).Exp(big.NewInt(10), big.NewInt(max(scale, -scale)), nil)
	if scale < 0 {
		return cell{isNumber, n.Mul(n, ten).Append(nil, 10)}
	}
	return avroCell(new(big.Rat).SetFrac(n, ten))
}

// maxScale bounds the power of ten that a record asks for: numbers of PostgreSQL have up to 16383 digits behind the point.
const maxScale = 16383

// readAvroChange is readRowChange for what was read with a schema.
func readAvroChange(v avroRow) (c rowChange, reason fault) {
	named := func(r avroRow, name string) cell {
		cells, _ := r.cells([]string{name})
		return cells[0]
	}
	number := func(c cell) uint64 {
		n, _ := strconv.ParseUint(string(c.text), 10, 63)
		return n
	}
	c.message = v
	source, enveloped := recordOf(v["source"])
	op := string(named(v, "op").text)
	if !enveloped || op == "" {
		return flatAvro(v, c, named, number)
	}
	c.table, c.position, c.at = string(named(source, "table").text), number(named(source, "lsn")), since(named(source, "ts_ms").text)
	c.more = more(named(source, "snapshot").text)
	switch op {
	case "c", "r", "u":
		after, is := recordOf(v["after"])
		if !is {
			return c, reasonNoChange
		}
		c.op, c.row = op[0], after
	case "d":
		c.op = 'd'
	case "t":
		return c, reasonTruncated
	case "m":
	default:
		return c, reasonUnknownOp
	}
	return c, ""
}

func flatAvro(v avroRow, c rowChange, named func(avroRow, string) cell, number func(cell) uint64) (rowChange, fault) {
	if _, beats := v["ts_ms"]; beats && len(v) == 1 {
		return c, "" // a heartbeat
	}
	if status := string(named(v, "status").text); (status == "BEGIN" || status == "END") && v["data_collections"] != nil || status == "BEGIN" && v["event_count"] == nil && len(v) == 5 {
		return c, "" // where a transaction begins or ends
	}
	c.op, c.row, c.table = 'u', v, string(named(v, "__table").text)
	c.position, c.at = max(number(named(v, "__lsn")), number(named(v, "__source_lsn"))), since(named(v, "__source_ts_ms").text)
	c.more = more(named(v, "__source_snapshot").text)
	if op := named(v, "__op").text; len(op) == 1 {
		c.op = op[0]
	}
	if named(v, "__deleted").yes() {
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

// avro are plain records, one resource each, whose fields a Table names. A null value
// deletes what the key names.
type avro struct{ debezium }

func newAvro(o Options) Decoder {
	d := &avro{debezium{tables: o.tables(), codecs: codecs{schemas: o.Schemas}}}
	d.tables.instants = true
	d.prepare(o, rowDepth)
	return d
}

// Decode implements Decoder.
func (d *avro) Decode(rec Record) ([]store.Change, error) {
	if rec.size() > d.maxRecord {
		return nil, refuse(rec, reasonLarge)
	}
	if rec.Value == nil {
		if key, err := fhir.ParseKey(string(rec.Key)); err == nil { // as in the format resource
			s := nothing
			s.key, s.delete = key, true
			return d.add(nil, rec, s, "")
		}
	}
	key, err := d.keyRow(rec)
	if _, is := errors.AsType[*Error](err); err != nil && (!is || rec.Value == nil) {
		return nil, err
	}
	c := rowChange{op: 'd', key: key, at: fhir.None}
	if rec.Value != nil {
		fields, _, framing, err := d.codecs.read(rec.Value)
		switch f, is := errors.AsType[fault](err); {
		case is:
			return nil, refuse(rec, string(f))
		case err != nil:
			return nil, err
		case !framing || fields == nil:
			return nil, refuse(rec, reasonNotAvro)
		}
		c.op, c.row = 'u', fields
	}
	return d.row(rec, c)
}
