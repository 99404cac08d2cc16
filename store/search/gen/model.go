package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A model is what the definitions say of types and of the systems of codes.
type model struct {
	types   map[string]*structure
	systems map[string]string // the one system of a value set, by its canonical URL
}

// A structure is a type's elements by their paths, such as Patient.name.
type structure struct {
	name     string
	elements map[string]*element
}

type element struct {
	Path  value `xml:"path"`
	Types []struct {
		Code value `xml:"code"`
	} `xml:"type"`
	Content value `xml:"contentReference"`
	Binding struct {
		Strength value `xml:"strength"`
		ValueSet value `xml:"valueSet"`
	} `xml:"binding"`
}

type value struct {
	V string `xml:"value,attr"`
}

// each calls fn for every resource of a type in a Bundle.
func each[T any](r io.Reader, name string, fn func(T)) error {
	d := xml.NewDecoder(r)
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		start, ok := t.(xml.StartElement)
		if !ok || start.Name.Local != name {
			continue
		}
		var v T
		if err := d.DecodeElement(&v, &start); err != nil {
			return err
		}
		fn(v)
	}
}

func (m *model) structures(r io.Reader) error {
	type definition struct {
		Kind       value     `xml:"kind"`
		Type       value     `xml:"type"`
		Derivation value     `xml:"derivation"`
		Elements   []element `xml:"snapshot>element"`
	}
	return each(r, "StructureDefinition", func(d definition) {
		if d.Derivation.V == "constraint" && d.Type.V != "Quantity" { // profiles, and Age and the like, which are Quantities
			return
		}
		if m.types[d.Type.V] != nil {
			return
		}
		s := &structure{d.Type.V, map[string]*element{}}
		for i := range d.Elements {
			s.elements[d.Elements[i].Path.V] = &d.Elements[i]
		}
		m.types[d.Type.V] = s
	})
}

// valueSets notes those whose codes are all of one system.
func (m *model) valueSets(r io.Reader) error {
	type set struct {
		URL     value `xml:"url"`
		Include []struct {
			System value `xml:"system"`
		} `xml:"compose>include"`
	}
	return each(r, "ValueSet", func(s set) {
		if len(s.Include) == 1 {
			m.systems[s.URL.V] = s.Include[0].System.V
		}
	})
}

// A place is an element as an expression reaches it: its JSON name is settled,
// so is its type.
type place struct {
	path   string // JSON names
	in     *structure
	at     string // path in the structure, "" at the root of a datatype
	typ    string
	system string
}

// root is where expressions about a type begin.
func (m *model) root(name string) (place, error) {
	s := m.types[name]
	if s == nil {
		return place{}, fmt.Errorf("no type %s", name)
	}
	return place{in: s, at: name, typ: name}, nil
}

// children are what a name leads to: one place for each type that it can have.
func (m *model) children(p place, name string) ([]place, error) {
	if p.typ != "BackboneElement" && p.typ != "Element" && p.typ != p.at { // a datatype has a structure of its own
		s := m.types[p.typ]
		if s == nil {
			return nil, fmt.Errorf("no type %s at %s", p.typ, p.path)
		}
		p.in, p.at = s, p.typ
	}
	if e := p.in.elements[p.at]; e != nil && e.Content.V != "" {
		p.at = strings.TrimPrefix(e.Content.V, "#")
	}
	if e := p.in.elements[p.at+"."+name]; e != nil {
		if e.Content.V != "" {
			return []place{{join(p.path, name), p.in, p.at + "." + name, "BackboneElement", ""}}, nil
		}
		if len(e.Types) != 1 {
			return nil, fmt.Errorf("%s.%s has %d types", p.at, name, len(e.Types))
		}
		return []place{m.place(p, e, name, e.Types[0].Code.V)}, nil
	}
	e := p.in.elements[p.at+"."+name+"[x]"]
	if e == nil {
		return nil, fmt.Errorf("no element %s.%s", p.at, name)
	}
	var all []place
	for _, t := range e.Types {
		all = append(all, m.place(p, e, name+strings.ToUpper(t.Code.V[:1])+t.Code.V[1:], t.Code.V))
	}
	return all, nil
}

func (m *model) place(p place, e *element, name, typ string) place {
	if strings.HasPrefix(typ, "http://hl7.org/fhirpath/System.") { // of an id
		typ = "id"
	}
	system := ""
	if typ == "code" && e.Binding.Strength.V == "required" {
		set, _, _ := strings.Cut(e.Binding.ValueSet.V, "|")
		system = m.systems[set]
	}
	return place{join(p.path, name), p.in, e.Path.V, typ, system}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
