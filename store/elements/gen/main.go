// Command gen writes elements.txt: the root elements of the resource types of
// FHIR R4 (4.0.1) in the form that package elements reads. It needs HL7's
// definitions, which HAPI carries unchanged in a jar; CC0 is their licence:
//
//	mvn dependency:get -Dtransitive=false -Dartifact=ca.uhn.hapi.fhir:hapi-fhir-validation-resources-r4:8.8.0
//	FHIR_R4_JAR=~/.m2/repository/ca/uhn/hapi/fhir/hapi-fhir-validation-resources-r4/8.8.0/hapi-fhir-validation-resources-r4-8.8.0.jar \
//	    go generate ./store/elements
//
// Of an element it tells what cutting a resource needs: its name, whether there
// must be one, whether it modifies what others mean, which other one an invariant
// wants beside it, and the types of a choice. What invariants say is judged by a
// person, in invariants.go: gen ends with an error where one was not judged.
package main

import (
	"archive/zip"
	"bufio"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// profiles is the file of the jar that defines the resource types.
const profiles = "org/hl7/fhir/r4/model/profile/profiles-resources.xml"

func main() {
	jar := flag.String("jar", "", "the definitions, a jar (see the package's comment)")
	out := flag.String("out", "elements.txt", "where to write the table")
	flag.Parse()
	if err := run(*jar, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(jar, out string) error {
	files, err := zip.OpenReader(jar)
	if err != nil {
		return err
	}
	defer files.Close()
	f, err := files.Open(profiles)
	if err != nil {
		return err
	}
	defer f.Close()
	lines, err := table(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", profiles, err)
	}
	return os.WriteFile(out, []byte(header+strings.Join(lines, "\n")+"\n"), 0o644)
}

const header = `# The root elements of the resource types of HL7 FHIR R4 (4.0.1), made by store/elements/gen from HL7's
# StructureDefinitions (CC0).
# type	elements: * there must be at least one, ! it is a modifier element, + an invariant demands it or one of
# several, >name an invariant demands that one beside it, [x]=A|B the types of a choice
`

// A definition is a StructureDefinition, as far as it matters here.
type definition struct {
	Kind     value     `xml:"kind"`
	Type     value     `xml:"type"`
	Abstract value     `xml:"abstract"`
	Elements []element `xml:"snapshot>element"`
}

type element struct {
	Path     value `xml:"path"`
	Min      value `xml:"min"`
	Modifier value `xml:"isModifier"`
	Types    []struct {
		Code value `xml:"code"`
	} `xml:"type"`
	Invariants []struct {
		Key      value `xml:"key"`
		Severity value `xml:"severity"`
	} `xml:"constraint"`
}

type value struct {
	V string `xml:"value,attr"`
}

// table is a line for each resource type.
func table(r io.Reader) ([]string, error) {
	var lines []string
	d := xml.NewDecoder(r)
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			slices.Sort(lines)
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		start, ok := t.(xml.StartElement)
		if !ok || start.Name.Local != "StructureDefinition" {
			continue
		}
		var s definition
		if err := d.DecodeElement(&s, &start); err != nil {
			return nil, err
		}
		if s.Kind.V == "resource" && s.Abstract.V == "false" {
			line, err := s.line()
			if err != nil {
				return nil, err
			}
			lines = append(lines, line)
		}
	}
}

func (s definition) line() (string, error) {
	var roots []string
	judged, err := s.judge()
	for _, e := range s.Elements {
		if name, ok := strings.CutPrefix(e.Path.V, s.Type.V+"."); ok && !strings.Contains(name, ".") {
			roots = append(roots, e.marks()+judged.mark(name)+name+judged.companion(name)+e.choice())
		}
	}
	return s.Type.V + "\t" + strings.Join(roots, " "), err
}

func (e element) marks() (marks string) {
	if e.Min.V != "0" {
		marks += "*"
	}
	if e.Modifier.V == "true" {
		marks += "!"
	}
	return marks
}

// choice is the types of one, as they end its JSON names.
func (e element) choice() string {
	if !strings.HasSuffix(e.Path.V, "[x]") {
		return ""
	}
	var types []string
	for _, t := range e.Types {
		if name := strings.ToUpper(t.Code.V[:1]) + t.Code.V[1:]; !slices.Contains(types, name) {
			types = append(types, name)
		}
	}
	return "=" + strings.Join(types, "|")
}
