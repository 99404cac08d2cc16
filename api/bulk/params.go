package bulk

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"tidemark/api/outcome"
)

// A param is one value of one parameter, whichever way it came.
type param struct {
	name  string
	value string
	kind  string // the value[x] of a Parameters resource, "" from a URL
}

// maxParams bounds what one request may make us say; the longest sensible one
// names each resource type in a parameter of its own.
const maxParams = 1000

// maxBodyParams bounds those of a body: 10,000 Patients can be named in it
// (decisions.md 6), and all else.
const maxBodyParams = maxPatients + maxParams

// maxPatients bounds the parameters patient of one request (decisions.md 6).
const maxPatients = 10_000

// queryParams reads the parameters of a GET. It is stricter than url.ParseQuery
// where that would drop something: what a client asked for and did not get may
// turn a small request into a full one.
func queryParams(raw string) ([]param, error) {
	var params []param
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(rawName)
		value, errValue := url.QueryUnescape(rawValue)
		if errName != nil || errValue != nil {
			return nil, refuse(Invalid, outcome.Structure, "the parameter %s has a broken percent-escape: a %% itself is written %%25", outcome.Quote(rawName))
		}
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, refuse(Invalid, outcome.Structure, "the parameter %s is not UTF-8", outcome.Quote(name))
		}
		if params = append(params, param{name: name, value: value}); len(params) > maxParams {
			return nil, refuse(Invalid, outcome.TooCostly, "more than %d parameters in one request", maxParams)
		}
	}
	return params, nil
}

// bodyParams reads the Parameters resource of a POST.
func bodyParams(w http.ResponseWriter, r *http.Request, maxBytes int64) ([]param, error) {
	if r.URL.RawQuery != "" {
		return nil, refuse(Invalid, outcome.Invalid, "a POST takes its parameters from its body, a Parameters resource: move those of the URL there")
	}
	if err := checkMedia(r.Header); err != nil {
		return nil, err
	}
	body, err := readBody(w, r, maxBytes)
	if err != nil {
		return nil, err
	}
	if err := checkJSON(body); err != nil {
		return nil, err
	}
	return parameters(body)
}

func readBody(w http.ResponseWriter, r *http.Request, maxBytes int64) ([]byte, error) {
	if r.ContentLength > maxBytes {
		// Of no use, but a client that is still sending would see its connection end
		// before it sees the answer. Who sends far more has to live with that, and who
		// waits to be told to go on (RFC 9110, 10.1.1) has sent nothing.
		if r.Header.Get("Expect") == "" {
			_, _ = io.CopyN(io.Discard, r.Body, maxBytes)
		}
		return nil, tooLarge(maxBytes)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBytes))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, tooLarge(maxBytes)
	}
	if err != nil {
		return nil, refuse(Invalid, outcome.Structure, "the body ended early or came too slowly")
	}
	return body, nil
}

func tooLarge(maxBytes int64) error {
	return refuse(TooLarge, outcome.TooLong, "the body is longer than %d bytes (limits.body)", maxBytes)
}

// maxDepth is how deep JSON in a request may nest (decisions.md 6).
const maxDepth = 32

// checkJSON makes sure that a body is one strict JSON value (no member twice,
// UTF-8) and no deeper than anything sensible.
func checkJSON(body []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(body))
	for values := 0; ; {
		_, err := dec.ReadToken()
		if dec.StackDepth() == 0 && err == nil {
			values++
		}
		switch {
		case errors.Is(err, io.EOF) && values == 1:
			return nil
		case err != nil || values > 1:
			return refuse(Invalid, outcome.Structure, "the body is not one valid JSON value: see byte %d", dec.InputOffset())
		case dec.StackDepth() > maxDepth:
			return refuse(Invalid, outcome.TooCostly, "the body nests deeper than %d levels", maxDepth)
		}
	}
}

// parameters takes apart a Parameters resource that is known to be strict JSON.
func parameters(body []byte) ([]param, error) {
	top, ok := object(body)
	if !ok || text(top["resourceType"]) != "Parameters" {
		return nil, refuse(Invalid, outcome.Structure, `the body is not a Parameters resource, such as {"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient"}]}`)
	}
	if top["parameter"] == nil {
		return nil, nil
	}
	items, ok := array(top["parameter"])
	if !ok {
		return nil, refuse(Invalid, outcome.Structure, "Parameters.parameter is not an array")
	}
	if len(items) > maxBodyParams {
		return nil, refuse(Invalid, outcome.TooCostly, "more than %d parameters in one request", maxBodyParams)
	}
	var params []param
	for i, item := range items {
		p, err := parameter(i, item)
		if err != nil {
			return nil, err
		}
		params = append(params, p)
	}
	return params, nil
}

// parameter reads one parameter: a name and one value[x].
func parameter(i int, item jsontext.Value) (param, error) {
	members, ok := object(item)
	name := text(members["name"])
	if !ok || name == "" {
		return param{}, refuse(Invalid, outcome.Structure, "Parameters.parameter[%d] is not an object with a name", i)
	}
	p := param{name: name}
	for _, key := range sortedKeys(members) {
		switch {
		case key == "name" || key == "id" || key == "extension" || strings.HasPrefix(key, "_"):
			continue
		case strings.HasPrefix(key, "value") && len(key) > len("value") && p.kind == "":
			p.kind = key
		default:
			return param{}, refuse(Invalid, outcome.Structure, "the parameter %s has the member %s: right is a name and one value[x]", outcome.Quote(name), outcome.Quote(key))
		}
	}
	if p.kind == "" {
		return param{}, refuse(Invalid, outcome.Structure, "the parameter %s has no value[x]", outcome.Quote(name))
	}
	value, ok := scalar(p.kind, members[p.kind])
	if !ok {
		return param{}, refuse(Invalid, outcome.Value, "the parameter %s has a %s that is not one text, as valueString is", outcome.Quote(name), outcome.Quote(p.kind))
	}
	p.value = value
	return p, nil
}

// scalar is the text of a value[x]: of a Coding its code, of a Reference its
// reference.
func scalar(kind string, v jsontext.Value) (string, bool) {
	switch kind {
	case "valueCoding":
		v = member(v, "code")
	case "valueReference":
		v = member(v, "reference")
	}
	switch v.Kind() {
	case '"':
		return text(v), true
	case 't', 'f', '0':
		return string(v), true
	}
	return "", false
}

func member(v jsontext.Value, name string) jsontext.Value {
	members, _ := object(v)
	return members[name]
}

// object, array and text take apart JSON that was checked before; numbers and
// nested values stay as they were written.
func object(v jsontext.Value) (map[string]jsontext.Value, bool) {
	dec := jsontext.NewDecoder(bytes.NewReader(v))
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '{' {
		return nil, false
	}
	members := map[string]jsontext.Value{}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, false
		}
		key := name.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil, false
		}
		members[key] = value.Clone()
	}
	return members, true
}

func array(v jsontext.Value) ([]jsontext.Value, bool) {
	dec := jsontext.NewDecoder(bytes.NewReader(v))
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '[' {
		return nil, false
	}
	var items []jsontext.Value
	for dec.PeekKind() != ']' {
		item, err := dec.ReadValue()
		if err != nil {
			return nil, false
		}
		items = append(items, item.Clone())
	}
	return items, true
}

func text(v jsontext.Value) string {
	if v.Kind() != '"' {
		return ""
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return ""
	}
	return string(b)
}

func sortedKeys(m map[string]jsontext.Value) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
