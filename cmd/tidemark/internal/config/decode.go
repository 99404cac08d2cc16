package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// position is where a node begins. The decoder's errors carry nothing else that
// leads back to a key.
type position struct{ line, column int }

type decoding struct {
	*loader
	where func(line int) string
	paths map[position]string
	nodes map[position]*yaml.Node
}

// decode puts a node into the struct whose keys begin with prefix and reports
// whatever does not fit. where tells the origin of a line.
func (l *loader) decode(root *yaml.Node, into any, prefix string, where func(line int) string) {
	d := &decoding{l, where, map[position]string{}, map[position]*yaml.Node{}}
	d.walk(root, prefix)
	err := root.Load(into, yaml.WithKnownFields(), yaml.WithUniqueKeys(false))
	if many, ok := errors.AsType[*yaml.LoadErrors](err); ok {
		for _, e := range many.Errors {
			d.report(e)
		}
	} else if one, ok := errors.AsType[*yaml.LoadError](err); ok {
		d.report(one)
	} else if err != nil {
		d.fault(prefix, where(root.Line), "%s", err)
	}
}

// walk notes the path of every node and the origin of every value. A key comes
// after the section that begins at the same place, so the deeper path wins.
func (d *decoding) walk(n *yaml.Node, path string) {
	at := position{n.Line, n.Column}
	d.paths[at], d.nodes[at] = path, n
	switch n.Kind {
	case yaml.DocumentNode:
		for _, c := range n.Content {
			d.walk(c, path)
		}
	case yaml.AliasNode:
		d.walk(n.Alias, path)
	case yaml.MappingNode:
		lines := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := n.Content[i]
			below := join(path, name.Value)
			// The decoder would end at the first key that is written twice.
			if line, twice := lines[name.Value]; twice {
				d.fault(below, d.where(name.Line), "is written twice, first in line %d", line)
			}
			lines[name.Value] = name.Line
			d.walkValue(name, n.Content[i+1], below)
		}
	case yaml.SequenceNode:
		if k, ok := find(path); ok && isList(k.typ) {
			for i, c := range n.Content {
				element := fmt.Sprintf("%s[%d]", path, i)
				d.origins[element] = d.where(c.Line)
				d.walk(c, element)
			}
			return
		}
		for _, c := range n.Content {
			d.walk(c, path)
		}
	}
}

func (d *decoding) walkValue(name, value *yaml.Node, path string) {
	at := position{name.Line, name.Column}
	d.paths[at], d.nodes[at] = path, name
	if _, isKey := find(path); isKey {
		if value.ShortTag() == "!!null" {
			// The decoder would leave the default, which is not what is written here.
			d.fault(path, d.where(name.Line), "has no value: leave the key out for the default, or write \"\" for an empty one")
			return
		}
		d.forget(path)
		d.origins[path] = d.where(name.Line)
	}
	d.walk(value, path)
}

// forget empties a map that is given as a whole: what a later source says
// stands for all that earlier ones have said.
func (d *decoding) forget(path string) {
	if !slices.Contains(mapPaths(), path) {
		return
	}
	clear(d.Presets)
	for p := range d.origins {
		if strings.HasPrefix(p, path+".") {
			delete(d.origins, p)
		}
	}
}

// report says in the operator's words what the decoder did not like.
func (d *decoding) report(e *yaml.LoadError) {
	at := position{e.Mark.Line, e.Mark.Column}
	path, node := d.paths[at], d.nodes[at]
	where := d.where(e.Mark.Line)
	k, known := find(path)
	switch {
	case node == nil:
		d.fault(path, where, "%s", e.Message)
	case !known && !isSectionPath(path) && path != "":
		d.fault("", where, "%s", unknown(path))
	case !known:
		d.fault(path, where, "holds other keys and no value of its own")
	case isText(k.typ) && node.Kind == yaml.ScalarNode && k.typ.Kind() != reflect.String:
		d.fault(path, where, "%s", e.Message)
	case node.Kind == yaml.ScalarNode:
		d.fault(path, where, "%q is not %s", node.Value, wanted(k.typ))
	default:
		d.fault(path, where, "is not %s", wanted(k.typ))
	}
}

// isText: the value is taken as text, whatever YAML would make of it.
func isText(t reflect.Type) bool {
	return t.Kind() == reflect.String || t == reflect.TypeFor[Scopes]() || t == reflect.TypeFor[Duration]() || t == reflect.TypeFor[Bytes]()
}

func wanted(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return "a duration such as 500ms, 24h or 30d"
	case t == reflect.TypeFor[Bytes]():
		return "a size such as 64KiB, 256MiB or 1GiB"
	case isList(t):
		return "a list of sections"
	case isMap(t):
		return "a map of lists, as in {name: [a, b]}"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Pointer:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list, as in [a, b]"
	}
	return "a text"
}

func unknown(path string) string {
	known := make([]string, 0, 64)
	for _, k := range keys() {
		known = append(known, k.path)
	}
	return fmt.Sprintf("unknown key %s%s", path, didYouMean(pattern(path), known))
}

func didYouMean(name string, known []string) string {
	if n := nearest(name, known); n != "" {
		return " (did you mean " + n + "?)"
	}
	return ""
}
