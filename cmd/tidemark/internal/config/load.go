package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Source says where values come from; the zero value gives the defaults.
type Source struct {
	File    string   // a YAML file, "" if there is none
	Environ []string // as os.Environ gives it
	Set     []string // key=value, the strongest
	// Ignore lists TIDEMARK_ variables that are not keys but belong to the command line.
	Ignore []string
}

// A Fault is one thing that is wrong with the configuration.
type Fault struct {
	Key     string // "" if the file as a whole is meant
	Where   string // file:line, the variable, or --set
	Message string
}

func (f Fault) String() string {
	if f.Key == "" {
		return f.Where + ": " + f.Message
	}
	return f.Where + ": " + f.Key + ": " + f.Message
}

// rank orders faults by line, what is in no file last.
func (f Fault) rank() int {
	line, err := strconv.Atoi(f.Where[strings.LastIndexByte(f.Where, ':')+1:])
	if err != nil {
		return math.MaxInt
	}
	return line
}

// Faults is everything that is wrong, in the order of the sources.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, 0, len(f)+1)
	if len(f) == 1 {
		lines = append(lines, "the configuration has a fault:")
	} else {
		lines = append(lines, fmt.Sprintf("the configuration has %d faults:", len(f)))
	}
	for _, fault := range f {
		lines = append(lines, "  "+fault.String())
	}
	return strings.Join(lines, "\n")
}

// Loaded is a configuration that knows where each of its values comes from.
type Loaded struct {
	Config
	origins map[string]string // by path; what is missing is a default
}

// fromDefault is the origin of what nobody set.
const fromDefault = "default"

// Origin says where the value of a key comes from; of one that an element of a list lacks, where
// that element begins.
func (l *Loaded) Origin(path string) string {
	for inList := strings.Contains(path, "["); path != ""; path = path[:max(0, strings.LastIndexAny(path, ".["))] {
		if o, ok := l.origins[path]; ok {
			return o
		}
		if !inList {
			break
		}
	}
	return fromDefault
}

// Load reads the sources in their order and validates the result. Its error is
// of type [Faults] and holds all faults.
func Load(s Source) (*Loaded, error) {
	l := &loader{Loaded: Loaded{Config: *Default(), origins: map[string]string{}}}
	if s.File != "" {
		l.file(s.File)
	}
	l.environment(s.Environ, s.Ignore)
	for _, assignment := range s.Set {
		l.assignment(assignment)
	}
	l.finish()
	l.validate()
	if len(l.faults) > 0 {
		slices.SortStableFunc(l.faults, func(a, b Fault) int { return cmp.Compare(a.rank(), b.rank()) })
		return nil, l.faults
	}
	return &l.Loaded, nil
}

type loader struct {
	Loaded
	faults Faults
}

func (l *loader) fault(path, where, format string, args ...any) {
	l.faults = append(l.faults, Fault{Key: path, Where: where, Message: fmt.Sprintf(format, args...)})
}

// invalid reports a value that could be read but makes no sense; a key that
// already has a fault gets no second one.
func (l *loader) invalid(path, format string, args ...any) {
	if !slices.ContainsFunc(l.faults, func(f Fault) bool { return f.Key == path }) {
		l.fault(path, l.Origin(path), format, args...)
	}
}

func (l *loader) file(name string) {
	data, err := os.ReadFile(name)
	if err != nil {
		l.faults = append(l.faults, Fault{Where: name, Message: reason(err)})
		return
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	var document, second yaml.Node
	if err == nil {
		err = loader.Load(&document)
	}
	if errors.Is(err, io.EOF) {
		return // empty, or only comments: the defaults
	}
	if err == nil {
		if err = loader.Load(&second); err == nil {
			err = errors.New("a second document begins: write all keys into one")
		}
	}
	if !errors.Is(err, io.EOF) {
		l.syntax(name, err)
		return
	}
	l.decode(&document, &l.Config, "", func(line int) string { return name + ":" + strconv.Itoa(line) })
}

// reason drops the operation and the path, which the fault names already.
func reason(err error) string {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

func (l *loader) syntax(name string, err error) {
	where, message := name, err.Error()
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		where, message = name+":"+strconv.Itoa(e.Mark.Line), e.Message
	}
	l.faults = append(l.faults, Fault{Where: where, Message: "not valid YAML: " + message})
}

// environment takes our variables in such an order that the first topic comes
// before the second.
func (l *loader) environment(environ, ignore []string) {
	environ = slices.Clone(environ)
	slices.SortFunc(environ, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a[:strings.IndexByte(a+"=", '=')]), len(b[:strings.IndexByte(b+"=", '=')])), cmp.Compare(a, b))
	})
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(ignore, name) {
			continue
		}
		where := "environment " + name
		path, ok := envPath(name)
		if !ok {
			l.fault("", where, "unknown variable%s", didYouMean(name, envNames()))
			continue
		}
		l.set(path, value, where)
	}
}

func envNames() []string {
	var names []string
	for _, k := range keys() {
		if strings.HasSuffix(k.path, anyName) {
			continue
		}
		names = append(names, envName(strings.ReplaceAll(k.path, "[]", "[0]")))
	}
	return names
}

func (l *loader) assignment(s string) {
	path, value, ok := strings.Cut(s, "=")
	where := "--set " + path
	if !ok {
		l.fault("", where, "write --set key=value")
		return
	}
	if _, known := find(path); !known {
		l.fault("", where, "%s", unknown(path))
		return
	}
	l.set(path, value, where)
}

// set gives one key a value that is written as text.
func (l *loader) set(path, value, where string) {
	k, _ := find(path)
	node, err := valueNode(k, value)
	if err != nil {
		l.fault(path, where, "%s", err)
		return
	}
	into, prefix, rest, err := l.target(path)
	if err != nil {
		l.fault(path, where, "%s", err)
		return
	}
	names := strings.Split(rest, ".")
	if _, _, ok := entry(path); ok {
		names = []string{rest} // it may have dots, which is a fault of its own
	}
	for _, name := range slices.Backward(names) {
		node = mapping(name, node)
	}
	l.decode(node, into, prefix, func(int) string { return where })
}

// target says what to decode a path into: the configuration, or one topic, for
// the decoder replaces lists as a whole. Only the next topic may be added. An
// entry of a map is added, or replaces the one of its name.
func (l *loader) target(path string) (into any, prefix, rest string, err error) {
	if of, name, ok := entry(path); ok {
		return &l.Presets, of, name, nil
	}
	list, after, isElement := strings.Cut(path, "[")
	if !isElement {
		return &l.Config, "", path, nil
	}
	number, rest, _ := strings.Cut(after, "].")
	prefix = fmt.Sprintf("%s[%s]", list, number)
	if list != "topics" {
		into, err = element(&l.Auth.Clients, list, number)
		return into, prefix, rest, err
	}
	topic, err := element(&l.Topics, list, number)
	if err != nil || !strings.HasPrefix(rest, "tables[") {
		return topic, prefix, rest, err
	}
	number, rest, _ = strings.Cut(strings.TrimPrefix(rest, "tables["), "].")
	into, err = element(&topic.Tables, "tables", number)
	return into, fmt.Sprintf("%s.tables[%s]", prefix, number), rest, err
}

// element is the one of a list with a number, which may be the next one.
func element[T any](of *[]T, list, number string) (*T, error) {
	n, err := strconv.Atoi(number)
	if have := len(*of); err != nil || n < 0 || n > have {
		return nil, fmt.Errorf("there are %d %s: the next one is %s[%d]", have, list, list, have)
	}
	if n == len(*of) {
		*of = append(*of, *new(T))
	}
	return &(*of)[n], nil
}

// valueNode makes text the YAML node that the key's type wants. Lists may be
// written a,b or as in YAML: [a, b].
func valueNode(k key, value string) (*yaml.Node, error) {
	value = strings.TrimSpace(value)
	switch kind := k.typ.Kind(); {
	case value == "" && kind != reflect.Slice && kind != reflect.String:
		return nil, fmt.Errorf("has no value: it wants %s", wanted(k.typ))
	case kind == reflect.Map:
		var document yaml.Node
		if err := yaml.Load([]byte(value), &document); err != nil || len(document.Content) == 0 || document.Content[0].Kind != yaml.MappingNode {
			return nil, fmt.Errorf("%q is no map: write it as in YAML, in braces", value)
		}
		return document.Content[0], nil
	case kind == reflect.Slice && (isList(k.typ) || strings.HasPrefix(value, "[")):
		var document yaml.Node
		if err := yaml.Load([]byte(value), &document); err != nil || len(document.Content) == 0 {
			return nil, fmt.Errorf("%q is no list: write it as in YAML, in square brackets", value)
		}
		return document.Content[0], nil
	case kind == reflect.Slice && k.typ != reflect.TypeFor[Scopes](): // a scope may have commas
		list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for part := range strings.SplitSeq(value, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list.Content = append(list.Content, text(part))
			}
		}
		return list, nil
	case isText(k.typ):
		return text(value), nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: value}, nil
}

// text is a scalar that stays a string, whatever it looks like.
func text(value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Style: yaml.DoubleQuotedStyle}
}

func mapping(name string, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{text(name), value}}
}
