package elements

import (
	_ "embed"
	"strings"
	"sync"

	"tidemark/store/fhir"
)

//go:generate go run ./gen -jar $FHIR_R4_JAR -out elements.txt

//go:embed elements.txt
var definitions string

// An element is a root element of a resource type.
type element struct {
	name   string   // without the [x] of a choice
	choice []string // the JSON names of a choice, nil if it is none
	// mandatory: there must be one, or a resource is invalid; it can also be one of
	// several, of which an invariant demands one. modifier: it can turn round what
	// other elements say.
	mandatory, modifier bool
	// beside is the element without which an invariant forbids this one.
	beside string
}

// table is the elements of each type, by its number.
var table = sync.OnceValue(func() [][]element {
	all := make([][]element, len(fhir.AllTypes())+1)
	for line := range strings.Lines(definitions) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, _ := strings.Cut(line, "\t")
		t, ok := fhir.ParseType(name)
		if !ok {
			panic("elements.txt: no resource type " + name)
		}
		for text := range strings.FieldsSeq(rest) {
			all[t] = append(all[t], parseElement(text))
		}
	}
	return all
})

// parseElement reads an element as elements.txt has it.
func parseElement(text string) (e element) {
	text, e.mandatory = strings.CutPrefix(text, "*")
	text, e.modifier = strings.CutPrefix(text, "!")
	text, demanded := strings.CutPrefix(text, "+")
	e.mandatory = e.mandatory || demanded
	name, types, choice := strings.Cut(text, "[x]=")
	e.name, e.beside, _ = strings.Cut(name, ">")
	if choice {
		for typ := range strings.SplitSeq(types, "|") {
			e.choice = append(e.choice, e.name+typ)
		}
	}
	return e
}

// always is what every resource keeps: without it nobody could tell what it is,
// which version of what, and whether it must not be understood at all.
var always = []string{"resourceType", "id", "meta", "implicitRules", "modifierExtension"}

// least is what the types are cut to when nothing of them is asked for.
var least = sync.OnceValue(func() []selection {
	all := make([]selection, len(table()))
	for t, elements := range table() {
		all[t].names = append(all[t].names, always...)
		for _, e := range elements {
			if e.mandatory || e.modifier {
				all[t].add(e)
			}
		}
	}
	return all
})
