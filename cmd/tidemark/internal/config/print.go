package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Print writes the configuration as YAML that can be used again, each value
// with its origin. Secrets are in files and only their names appear; what a
// URL carries before the @ is hidden.
func (l *Loaded) Print(w io.Writer) error {
	var out bytes.Buffer
	l.printSection(&out, "", "", reflect.ValueOf(l.Config))
	_, err := w.Write(out.Bytes())
	return err
}

// column is where origins begin, so that values can be read as a block.
const column = 48

func (l *Loaded) printSection(out *bytes.Buffer, indent, prefix string, section reflect.Value) {
	for field, v := range section.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		path := join(prefix, name)
		switch {
		case strings.HasSuffix(field.Tag.Get("yaml"), ",omitempty") && v.IsZero():
		case isSection(v.Type()):
			fmt.Fprintf(out, "%s%s:\n", indent, name)
			l.printSection(out, indent+"  ", path, v)
		case isList(v.Type()) && v.Len() > 0:
			fmt.Fprintf(out, "%s%s:\n", indent, name)
			l.printList(out, indent, path, v)
		case isMap(v.Type()) && v.Len() > 0:
			fmt.Fprintf(out, "%s%s:\n", indent, name)
			for _, entry := range slices.Sorted(maps.Keys(v.Interface().(map[string][]string))) {
				line := indent + "  " + quote(entry) + ": " + literal(v.MapIndex(reflect.ValueOf(entry)))
				fmt.Fprintf(out, "%-*s # %s\n", column, line, l.Origin(join(path, entry)))
			}
		default:
			line := indent + name + ": " + literal(v)
			fmt.Fprintf(out, "%-*s # %s\n", column, line, l.Origin(path))
		}
	}
}

func (l *Loaded) printList(out *bytes.Buffer, indent, path string, list reflect.Value) {
	for i := range list.Len() {
		start := out.Len()
		l.printSection(out, indent+"    ", fmt.Sprintf("%s[%d]", path, i), list.Index(i))
		out.Bytes()[start+len(indent)+2] = '-'
	}
}

// literal writes one value as YAML of one line.
func literal(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case Duration:
		return value.String()
	case Bytes:
		return value.String()
	case *int:
		return fmt.Sprint(*value)
	case string:
		return quote(hideUser(value))
	case []string:
		quoted := make([]string, 0, len(value))
		for _, s := range value {
			quoted = append(quoted, quote(hideUser(s)))
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case Scopes:
		return literal(reflect.ValueOf([]string(value)))
	case map[string][]string:
		return "{}" // Print writes the entries of one that has some
	default:
		return fmt.Sprint(value)
	}
}

// quote quotes only what YAML would take for something else than this text.
func quote(s string) string {
	var back any
	if err := yaml.Load([]byte("["+s+"]"), &back); err == nil {
		if list, ok := back.([]any); ok && len(list) == 1 && list[0] == any(s) && !strings.Contains(s, "#") {
			return s
		}
	}
	return fmt.Sprintf("%q", s)
}

func hideUser(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	u.User = url.User("hidden")
	return u.String()
}
