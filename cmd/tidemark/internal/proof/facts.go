package proof

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
)

// unknown stands for a version or an instant that a body does not state.
const unknown = -1

// facts are what the proof remembers of a body. It reads bodies by itself, not
// with the server's scanner: what is proved must not be its own witness.
type facts struct {
	kind, id string
	version  int64  // meta.versionId, or unknown
	updated  int64  // meta.lastUpdated in ms, or unknown
	whole    uint64 // hash of the body
	content  uint64 // hash without these two, which a server may inject anywhere in meta
}

func read(body []byte) (f facts, err error) {
	f = facts{version: unknown, updated: unknown, whole: xxhash.Sum64(body)}
	var meta []byte
	if !json.Valid(body) {
		return f, errors.New("not valid JSON")
	}
	sum := xxhash.New()
	err = members(body, func(name, value []byte) error {
		switch string(name) {
		case "resourceType":
			f.kind = unquote(value)
		case "id":
			f.id = unquote(value)
		case "meta":
			meta = value
			return nil
		}
		add(sum, name, value)
		return nil
	})
	if err == nil && meta != nil {
		err = members(meta, func(name, value []byte) error { return f.meta(sum, name, value) })
	}
	if err == nil && (f.kind == "" || f.id == "") {
		err = errors.New("no resourceType or no id")
	}
	f.content = sum.Sum64()
	return f, err
}

func (f *facts) meta(sum *xxhash.Digest, name, value []byte) (err error) {
	switch string(name) {
	case "versionId":
		f.version, err = strconv.ParseInt(unquote(value), 10, 64)
	case "lastUpdated":
		var at time.Time
		at, err = time.Parse(time.RFC3339, unquote(value))
		f.updated = at.UnixMilli()
	default:
		sum.WriteString("meta.")
		add(sum, name, value)
	}
	return err
}

func add(sum *xxhash.Digest, name, value []byte) {
	sum.Write(name)
	sum.WriteString(":")
	sum.Write(value)
	sum.WriteString(",")
}

// unquote returns what a string without escapes says.
func unquote(value []byte) string { return string(bytes.Trim(value, `"`)) }

// members calls visit for each member of a valid JSON object, with its name
// unquoted and its value as it stands there.
func members(object []byte, visit func(name, value []byte) error) error {
	rest := bytes.TrimSpace(object)
	if len(rest) < 2 || rest[0] != '{' || rest[len(rest)-1] != '}' {
		return errors.New("not a JSON object")
	}
	rest = bytes.TrimSpace(rest[1 : len(rest)-1])
	for len(rest) > 0 {
		end := skip(rest)
		name := rest[1 : end-1]
		rest = bytes.TrimSpace(rest[end:])
		rest = bytes.TrimSpace(rest[1:]) // the colon
		end = skip(rest)
		if err := visit(name, rest[:end]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rest = bytes.TrimSpace(rest[end:])
		if len(rest) > 0 {
			rest = bytes.TrimSpace(rest[1:]) // the comma
		}
	}
	return nil
}

// skip returns the length of the valid JSON value that text begins with.
func skip(text []byte) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i = closing(text, i)
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i // behind a number or a word
			}
			continue
		default:
			continue
		}
		if depth <= 0 {
			return i + 1
		}
	}
	return len(text)
}

// closing returns the index of the quote that closes the string opened at i.
func closing(text []byte, i int) int {
	for i++; i < len(text) && text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i
}
