// Command gen writes choices.txt: what the elements of FHIR R4 (4.0.1) are called that come
// in one of several types, with these types, and those that are references. It needs HL7's
// definitions, which HAPI carries unchanged in a jar (see store/elements/gen); CC0 is their
// licence:
//
//	FHIR_R4_JAR=… go generate ./pipeline/decode
package main

import (
	"archive/zip"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// files of the jar define the types of data and of resources.
var files = []string{
	"org/hl7/fhir/r4/model/profile/profiles-types.xml",
	"org/hl7/fhir/r4/model/profile/profiles-resources.xml",
}

func main() {
	jar := flag.String("jar", "", "the definitions, a jar")
	out := flag.String("out", "choices.txt", "where to write the table")
	flag.Parse()
	if err := run(*jar, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(jar, out string) error {
	archive, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer archive.Close()
	t := table{}
	for _, name := range files {
		f, err := archive.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(t.read(f), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return os.WriteFile(out, []byte(t.String()), 0o644)
}

// A table has the types of each choice by its name; of a reference that is no choice "".
type table map[string]map[string]bool

type element struct {
	Path struct {
		V string `xml:"value,attr"`
	} `xml:"path"`
	Types []struct {
		Code struct {
			V string `xml:"value,attr"`
		} `xml:"code"`
	} `xml:"type"`
}

func (t table) read(r io.Reader) error {
	d := xml.NewDecoder(r)
	inSnapshot := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if end, is := token.(xml.EndElement); is && end.Name.Local == "snapshot" {
			inSnapshot = false
		}
		start, is := token.(xml.StartElement)
		switch {
		case is && start.Name.Local == "snapshot":
			inSnapshot = true
		case is && inSnapshot && start.Name.Local == "element":
			var e element
			if err := d.DecodeElement(&e, &start); err != nil {
				return err
			}
			t.add(e)
		}
	}
}

func (t table) add(e element) {
	name, choice := strings.CutSuffix(e.Path.V[strings.LastIndexByte(e.Path.V, '.')+1:], "[x]")
	for _, typ := range e.Types {
		switch {
		case choice:
			t.put(name, typ.Code.V)
		case typ.Code.V == "Reference":
			t.put(name, "")
		}
	}
}

func (t table) put(name, typ string) {
	if t[name] == nil {
		t[name] = map[string]bool{}
	}
	t[name][typ] = true
}

// String is a line for each name.
func (t table) String() string {
	var b strings.Builder
	b.WriteString("# Elements of HL7 FHIR R4 (4.0.1), made by pipeline/decode/gen from HL7's StructureDefinitions (CC0): of a choice\n" +
		"# the types, and & where one of that name is a reference.\n")
	for _, name := range slices.Sorted(maps.Keys(t)) {
		b.WriteString(name)
		for _, typ := range slices.Sorted(maps.Keys(t[name])) {
			if typ == "" {
				typ = "&"
			}
			b.WriteString(" " + typ)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
