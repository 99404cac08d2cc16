package bulk

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/store/fhir"
)

// What the table says of a parameter is what a kick-off does with it: an example
// works at each level, and what is not supported is refused as such.
func TestParametersAreAsDescribed(t *testing.T) {
	now, _, err := fhir.ParseInstant("2026-06-01T00:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Parameters {
		if p.Means == "" || p.Refused == "" || p.Type == "" || len(p.Levels) == 0 || !slices.Contains([]string{"0", "1", "*"}, p.Max) {
			t.Errorf("%s is not described: %+v", p.Name, p)
		}
		value, err := url.QueryUnescape(p.Example)
		if err != nil {
			t.Fatal(err)
		}
		given := param{name: p.Name, value: value}
		if p.Type == "Reference" {
			given = param{p.Name, "Patient/1", "valueReference"}
		} else if (p.Example == "") != (p.Max == "0") {
			t.Errorf("%s: example %q, max %s", p.Name, p.Example, p.Max)
		}
		for _, level := range allLevels {
			a := asking{level: level, fromURL: given.kind == "", now: now}
			_, err := read([]param{given}, a)
			e, refused := errors.AsType[*Error](err)
			switch takes := slices.Contains(p.Levels, level) && p.Max != "0"; {
			case takes && refused:
				t.Errorf("%s at level %q: %v", p.Name, level, e.Issues)
			case !takes && (!refused || e.Issues[0].Code != outcome.NotSupported):
				t.Errorf("%s at level %q is taken, or wrongly refused: %v", p.Name, level, err)
			}
			if _, err := read([]param{given, given}, a); p.Max == "1" && err == nil {
				t.Errorf("%s is taken twice", p.Name)
			}
		}
	}
}

// exportType belongs to one operation, which has to have it.
func TestExportTypeIsAsDescribed(t *testing.T) {
	given := []param{{name: exportType.Name, value: exportType.Example}}
	if _, err := read(given, asking{level: export.Group, typed: true}); err != nil {
		t.Errorf("%v", err)
	}
	for _, wrong := range []struct {
		params []param
		typed  bool
	}{{nil, true}, {given, false}, {slices.Concat(given, given), true}} {
		if _, err := read(wrong.params, asking{level: export.Group, typed: wrong.typed}); err == nil {
			t.Errorf("%+v is taken", wrong)
		}
	}
}

// Each operation is described where it is, and is where it is described.
func TestOperationsAreRouted(t *testing.T) {
	described := map[string]Operation{}
	for _, o := range Operations {
		for _, name := range o.Names {
			described[strings.Replace(o.Path(name), "[id]", "{group}", 1)] = o
		}
	}
	for _, k := range KickOffs {
		o, is := described[k.Path]
		if !is || o.Level != k.Level || !slices.Equal(o.Methods, k.Methods()) || k.Typed != (o.Parameters[0].Name == "exportType") {
			t.Errorf("%s is not described as it is: %+v", k.Path, o)
		}
		delete(described, k.Path)
	}
	if len(described) > 0 {
		t.Errorf("there are no %v", described)
	}
}
