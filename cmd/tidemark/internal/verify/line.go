package verify

import (
	"bytes"
	"errors"
	"hash/maphash"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"tidemark/cmd/tidemark/internal/bulkclient"
)

var (
	bom     = []byte("\ufeff")
	newline = []byte("\n")
)

// maxKinds bounds what is kept of a file that is no FHIR.
const maxKinds = 200

// A counter counts the lines of a file.
type counter struct {
	file   *file
	reader *reader
	seed   maphash.Seed
	keep   bool // keys
}

// line counts one, with its newline if it has one.
func (c *counter) line(raw []byte) error {
	f := c.file
	f.lines++
	f.asIs.Add(raw)
	line, ended := bytes.CutSuffix(raw, newline)
	f.open = !ended
	if f.lines == 1 {
		line, f.bom = bytes.CutPrefix(line, bom)
	}
	line, returned := bytes.CutSuffix(line, []byte("\r"))
	if returned {
		f.returns++
	}
	if len(bytes.TrimSpace(line)) == 0 {
		f.blank.add(f.lines)
		c.key(0)
		return nil
	}
	f.asIs.Lines++
	f.tidy.Lines++
	f.tidy.Add(line)
	f.tidy.Add(newline)
	c.resource(line)
	return nil
}

func (c *counter) resource(line []byte) {
	f := c.file
	res, err := c.reader.read(line)
	if err != nil {
		f.broken.add(f.lines)
		if errors.Is(err, errBinary) {
			f.binary.add(f.lines)
		}
		c.key(hash(c.seed, line))
		return
	}
	c.count(res.kind)
	if res.transaction {
		c.deletions(line)
	}
	if len(res.id) == 0 {
		f.nameless++
		c.key(hash(c.seed, line))
		return
	}
	c.key(hash(c.seed, c.reader.key(res)))
}

func (c *counter) count(kind []byte) {
	n := c.file.kinds[string(kind)]
	if n == nil {
		name := string(kind)
		if len(c.file.kinds) >= maxKinds {
			name = unknown
		}
		if n = c.file.kinds[name]; n == nil {
			n = new(int64)
			c.file.kinds[name] = n
		}
	}
	*n++
}

func (c *counter) deletions(line []byte) {
	keys, err := bulkclient.Deletions(line)
	if err != nil {
		return // a transaction of another kind; the type of its entry tells whether that is wrong
	}
	c.file.deletions++
	for _, key := range keys {
		if c.keep {
			c.file.gone.add(hash(c.seed, []byte(key)))
		}
	}
}

// key enters what a line is known by again: one for each line, so that its
// place tells the line's number; 0 for none.
func (c *counter) key(h uint64) {
	if c.keep {
		c.file.keys.add(h)
	}
}

// hash is never 0. It differs from run to run: nobody can make two resources
// that look like one.
func hash(seed maphash.Seed, b []byte) uint64 { return max(1, maphash.Bytes(seed, b)) }

// A resource is what counts of a line. It is valid until the next one.
type resource struct {
	kind, id    []byte
	transaction bool // a Bundle of this type
}

// A reader reads lines.
type reader struct {
	dec  *jsontext.Decoder
	buf  bytes.Buffer
	kind []byte
	id   []byte
	sort []byte
	both []byte
}

func newReader() *reader { return &reader{dec: jsontext.NewDecoder(bytes.NewReader(nil))} }

var (
	errShape  = errors.New("not one JSON object")
	errBinary = errors.New("not UTF-8")
)

// read reads a line whole: it must be one JSON object in UTF-8. Members that
// stand twice and halves of surrogate pairs are let pass, as most readers do; of
// members the last one counts.
func (r *reader) read(line []byte) (resource, error) {
	if !utf8.Valid(line) {
		return resource{}, errBinary
	}
	r.buf = *bytes.NewBuffer(line) // which the decoder reads without a copy
	r.dec.Reset(&r.buf, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	r.kind, r.id, r.sort = r.kind[:0], r.id[:0], r.sort[:0]
	if start, err := r.dec.ReadToken(); err != nil || start.Kind() != '{' {
		return resource{}, errShape
	}
	for r.dec.PeekKind() == '"' {
		name, err := r.dec.ReadValue()
		if err != nil {
			return resource{}, err
		}
		switch string(name) {
		case `"resourceType"`:
			r.kind, err = r.text(r.kind)
		case `"id"`:
			r.id, err = r.text(r.id)
		case `"type"`:
			r.sort, err = r.text(r.sort)
		default:
			err = r.dec.SkipValue()
		}
		if err != nil {
			return resource{}, err
		}
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return resource{}, err
	}
	if len(bytes.TrimSpace(line[r.dec.InputOffset():])) > 0 {
		return resource{}, errShape
	}
	return resource{kind: r.kind, id: r.id, transaction: string(r.kind) == "Bundle" && string(r.sort) == "transaction"}, nil
}

// text is what a string says, nothing if it is none.
func (r *reader) text(to []byte) ([]byte, error) {
	v, err := r.dec.ReadValue()
	if err != nil || v.Kind() != '"' {
		return to[:0], err
	}
	return jsontext.AppendUnquote(to[:0], v)
}

// key is Type/id.
func (r *reader) key(res resource) []byte {
	r.both = append(append(append(r.both[:0], res.kind...), '/'), res.id...)
	return r.both
}
