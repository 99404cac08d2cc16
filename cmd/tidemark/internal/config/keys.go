package config

import (
	"encoding"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// envPrefix begins every variable of ours; the rest is the key, upper case,
// with _ for the dot.
const envPrefix = "TIDEMARK_"

// A key is one thing that can be set. Elements of a list of sections are
// written topics[].name here and topics[0].name where one is meant, entries of a
// map presets.* and presets.claims.
type key struct {
	path string
	typ  reflect.Type
	enum []string // what may be written, nil if that is not a short list
}

// keys lists all keys in the order of the structs.
func keys() []key {
	return fieldKeys("", reflect.TypeFor[Config]())
}

func fieldKeys(prefix string, t reflect.Type) []key {
	var all []key
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		path := join(prefix, name)
		switch {
		case isSection(f.Type):
			all = append(all, fieldKeys(path, f.Type)...)
		case isList(f.Type):
			all = append(all, key{path: path, typ: f.Type})
			all = append(all, fieldKeys(path+"[]", f.Type.Elem())...)
		case isMap(f.Type):
			all = append(all, key{path: path, typ: f.Type}, key{path: path + anyName, typ: f.Type.Elem()})
		default:
			k := key{path: path, typ: f.Type}
			if enum, ok := f.Tag.Lookup("enum"); ok {
				k.enum = strings.Split(enum, ",")
			}
			all = append(all, k)
		}
	}
	return all
}

// isSection: a struct of keys and no value in itself.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func isList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && isSection(t.Elem())
}

// isMap: values by names that the operator chooses.
func isMap(t reflect.Type) bool { return t.Kind() == reflect.Map }

// anyName ends the key of a map's entries.
const anyName = ".*"

// entry takes the path of a map's entry apart.
func entry(path string) (of, name string, ok bool) {
	of, name, ok = strings.Cut(path, ".")
	return of, name, ok && slices.Contains(mapPaths(), of)
}

// mapPaths are the keys whose entries have names of the operator's.
func mapPaths() (all []string) {
	for f := range reflect.TypeFor[Config]().Fields() {
		if isMap(f.Type) {
			all = append(all, f.Tag.Get("yaml"))
		}
	}
	return all
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// pattern replaces the numbers of list elements and the names of a map's
// entries: topics[3].name is an instance of topics[].name.
func pattern(path string) string {
	if of, _, ok := entry(path); ok {
		return of + anyName
	}
	before, rest, found := strings.Cut(path, "[")
	if !found {
		return path
	}
	_, after, _ := strings.Cut(rest, "]")
	return before + "[]" + after
}

// find returns the key of a path.
func find(path string) (key, bool) {
	want := pattern(path)
	for _, k := range keys() {
		if k.path == want {
			return k, true
		}
	}
	return key{}, false
}

// isSectionPath: some key lies below it.
func isSectionPath(path string) bool {
	below := pattern(path) + "."
	for _, k := range keys() {
		if strings.HasPrefix(k.path, below) {
			return true
		}
	}
	return false
}

// envName is the variable of a key. For list elements: TIDEMARK_TOPICS_0_NAME.
// The entries of a map have none, for variables do not keep the case of names.
func envName(path string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer("[", "_", "].", "_", ".", "_").Replace(path))
}

// envPath is the reverse of envName.
func envPath(name string) (string, bool) {
	for _, k := range keys() {
		if strings.HasSuffix(k.path, anyName) {
			continue
		}
		if path, ok := instance(k.path, name); ok {
			return path, true
		}
	}
	return "", false
}

// instance is that of a path that a variable names.
func instance(path, name string) (string, bool) {
	list, rest, isElement := strings.Cut(path, "[].")
	if !isElement {
		return path, envName(path) == name
	}
	middle, ok := strings.CutPrefix(name, envName(list)+"_")
	if !ok {
		return "", false
	}
	number, behind, _ := strings.Cut(middle, "_")
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 {
		return "", false
	}
	below, ok := instance(rest, envPrefix+behind)
	return list + "[" + strconv.Itoa(n) + "]." + below, ok
}

// nearest is the known name that was most likely meant, "" if none is near.
func nearest(name string, known []string) string {
	best, least := "", 1+len(name)/3
	for _, k := range known {
		if d := distance(name, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the single-byte edits between two names (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
