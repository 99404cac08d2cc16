package config

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// deploy is seen from this package.
var deploy = filepath.Join("..", "..", "..", "..", "deploy")

// docs reads the doc comments of config.go: Type.Field → text.
func docs(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok {
			for _, f := range s.Fields.List {
				all[spec.Name.Name+"."+f.Names[0].Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
			}
		}
		return true
	})
	return all
}

type object = map[string]any

func schema(t *testing.T, section reflect.Value, docs map[string]string) object {
	t.Helper()
	properties := object{}
	for f, v := range section.Fields() {
		doc := docs[section.Type().Name()+"."+f.Name]
		if doc == "" {
			t.Errorf("%s.%s has no doc comment: it is the operator's manual", section.Type().Name(), f.Name)
		}
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		p := property(t, v, docs)
		p["description"] = doc
		if enum, ok := f.Tag.Lookup("enum"); ok {
			p["enum"] = strings.Split(enum, ",")
		}
		properties[name] = p
	}
	return object{"type": "object", "additionalProperties": false, "properties": properties}
}

func property(t *testing.T, v reflect.Value, docs map[string]string) object {
	t.Helper()
	switch {
	case isSection(v.Type()):
		return schema(t, v, docs)
	case isList(v.Type()):
		item := schema(t, reflect.Zero(v.Type().Elem()), docs)
		if v.Type().Elem() != reflect.TypeFor[Topic]() {
			item["required"] = []string{"id"}
			return object{"type": "array", "items": item}
		}
		item["required"] = []string{"format"}
		item["oneOf"] = []object{{"required": []string{"name"}}, {"required": []string{"pattern"}}}
		return object{"type": "array", "minItems": 1, "items": item}
	}
	switch value := v.Interface().(type) {
	case Duration:
		return object{"type": "string", "pattern": `^(0|(\d+d)?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))*)$`, "default": value.String()}
	case Bytes:
		return object{"type": "string", "pattern": `^\d+(\.\d+)? ?([KMGT]i|[kMGT])?B$`, "default": value.String()}
	case map[string][]string:
		lists := object{"type": "array", "minItems": 1, "items": object{"type": "string"}}
		return object{"type": "object", "additionalProperties": lists, "default": value}
	case []string:
		p := object{"type": "array", "items": object{"type": "string"}}
		if value != nil {
			p["default"] = value
		}
		return p
	case Scopes:
		return object{"type": []string{"array", "string"}, "items": object{"type": "string"}}
	case KeySet:
		return object{"type": []string{"object", "string"}}
	case *int:
		return object{"type": "integer", "minimum": 0, "default": defaultStopAfter}
	case int:
		return object{"type": "integer", "default": value}
	case float64:
		return object{"type": "number", "default": value}
	case bool:
		return object{"type": "boolean", "default": value}
	case string:
		return object{"type": "string", "default": value}
	}
	t.Fatalf("no schema for %s", v.Type())
	return nil
}

// The schema for editors is made from the structs, so it cannot lag behind.
func TestSchema(t *testing.T) {
	s := schema(t, reflect.ValueOf(*Default()), docs(t))
	s["$schema"] = "http://json-schema.org/draft-07/schema#"
	s["title"] = "Tidemark configuration"
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("..", deploy, "tidemark.schema.json"), string(got)+"\n")
}

// The sample holds every key with its default, so it can be copied and cut down.
func TestSampleIsTheDefault(t *testing.T) {
	name := filepath.Join(deploy, "tidemark.yaml")
	l := load(t, Source{File: name})
	if d := cmp.Diff(*Default(), l.Config); d != "" {
		t.Errorf("%s differs from the defaults: %s", name, d)
	}
	for _, k := range keys() {
		if strings.Contains(k.path, "[]") || strings.HasSuffix(k.path, anyName) {
			continue
		}
		if l.Origin(k.path) == fromDefault {
			t.Errorf("%s lacks %s", name, k.path)
		}
	}
}

// The table in the manual is made from the doc comments.
func TestManualListsEveryKey(t *testing.T) {
	const begin, end = "<!-- keys: made by make golden from config.go -->\n", "<!-- end of keys -->"
	name := filepath.Join(deploy, "OPERATIONS.md")
	manual, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(manual), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the keys", name)
	}
	var table strings.Builder
	table.WriteString("\n| key | default | |\n|---|---|---|\n")
	tableRows(&table, "", reflect.ValueOf(*Default()), docs(t))
	golden(t, filepath.Join("..", name), before+begin+table.String()+"\n"+end+after)
}

func tableRows(table *strings.Builder, prefix string, section reflect.Value, docs map[string]string) {
	for f, v := range section.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		path, doc := join(prefix, name), docs[section.Type().Name()+"."+f.Name]
		switch {
		case isSection(v.Type()):
			tableRows(table, path, v, docs)
		case isList(v.Type()):
			one := reflect.Zero(v.Type().Elem())
			if v.Len() > 0 {
				one = v.Index(0)
			}
			tableRows(table, path+"[]", one, docs)
		default:
			value := literal(v)
			if v.IsZero() && strings.HasSuffix(f.Tag.Get("yaml"), ",omitempty") {
				value = ""
			}
			if enum := f.Tag.Get("enum"); enum != "" {
				doc = "One of `" + strings.ReplaceAll(strings.TrimPrefix(enum, ","), ",", "`, `") + "`. " + doc
			}
			table.WriteString("| `" + path + "` | " + code(value) + " | " + doc + " |\n")
		}
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// Two keys that share a variable could not be told apart.
func TestVariablesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, k := range keys() {
		if strings.HasSuffix(k.path, anyName) {
			continue
		}
		path := strings.ReplaceAll(k.path, "[]", "[0]")
		name := envName(path)
		if other, twice := seen[name]; twice {
			t.Errorf("%s and %s are both %s", path, other, name)
		}
		seen[name] = path
		if back, ok := envPath(name); !ok || back != path {
			t.Errorf("%s: got %q, want %q", name, back, path)
		}
	}
}
