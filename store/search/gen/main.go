// Command gen writes parameters.txt: the search parameters of FHIR R4 (4.0.1) in
// the form that package search reads. It needs HL7's definitions, which HAPI
// carries unchanged in a jar; CC0 is their licence:
//
//	mvn dependency:get -Dtransitive=false -Dartifact=ca.uhn.hapi.fhir:hapi-fhir-validation-resources-r4:8.8.0
//	go run ./store/search/gen -jar ~/.m2/repository/ca/uhn/hapi/fhir/hapi-fhir-validation-resources-r4/8.8.0/hapi-fhir-validation-resources-r4-8.8.0.jar
//
// FHIRPath expressions become paths of JSON names: choices are written out, each
// path ends with the type of what it leads to. An expression of a shape that is
// not known here ends the program.
package main

import (
	"archive/zip"
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const definitions = "org/hl7/fhir/r4/model/"

func main() {
	jar := flag.String("jar", "", "the definitions, a jar (see the package's comment)")
	out := flag.String("out", "store/search/parameters.txt", "where to write the table")
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
	m := model{types: map[string]*structure{}, systems: map[string]string{}}
	for _, name := range []string{"profile/profiles-types.xml", "profile/profiles-resources.xml"} {
		if err := read(files, name, m.structures); err != nil {
			return err
		}
	}
	for _, name := range []string{"valueset/valuesets.xml"} {
		if err := read(files, name, m.valueSets); err != nil {
			return err
		}
	}
	var params []parameter
	err = read(files, "sp/search-parameters.json", func(r io.Reader) (err error) {
		params, err = official(r)
		return err
	})
	if err != nil {
		return err
	}
	lines, err := m.table(append(params, profiled...))
	if err != nil {
		return err
	}
	return write(out, lines)
}

func read(files *zip.ReadCloser, name string, fn func(io.Reader) error) error {
	f, err := files.Open(definitions + name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fn(bufio.NewReaderSize(f, 1<<20)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

const header = `# The search parameters of FHIR R4 (4.0.1), made by store/search/gen from HL7's definitions (CC0).
# Of US Core and CARIN Blue Button those that search extensions or line items.
# type	code	kind	expression	path:type, choices written out; {a=b} filters, =system is that of a code
`

func write(path string, lines []string) error {
	slices.Sort(lines)
	return os.WriteFile(path, []byte(header+strings.Join(lines, "\n")+"\n"), 0o644)
}

// A parameter is a SearchParameter, as far as it matters here.
type parameter struct {
	Code       string   `json:"code"`
	Type       string   `json:"type"`
	Base       []string `json:"base"`
	Expression string   `json:"expression"`
}

func official(r io.Reader) ([]parameter, error) {
	var bundle struct {
		Entry []struct {
			Resource parameter `json:"resource"`
		} `json:"entry"`
	}
	if err := json.NewDecoder(r).Decode(&bundle); err != nil {
		return nil, err
	}
	var all []parameter
	for _, e := range bundle.Entry {
		all = append(all, e.Resource)
	}
	return all, nil
}

// profiled are parameters that implementation guides add and their clients use:
// US Core 7 (asserted-date, discharge-disposition, role) and CARIN Blue Button 2 (the
// ones of ExplanationOfBenefit; outcome is one that CMS's bulk clients are told of).
var profiled = []parameter{
	{"role", "token", []string{"CareTeam"}, "CareTeam.participant.role"},
	{"outcome", "token", []string{"ExplanationOfBenefit"}, "ExplanationOfBenefit.outcome"},
	{"asserted-date", "date", []string{"Condition"}, "Condition.extension.where(url = 'http://hl7.org/fhir/StructureDefinition/condition-assertedDate').value.as(dateTime)"},
	{"discharge-disposition", "token", []string{"Encounter"}, "Encounter.hospitalization.dischargeDisposition"},
	{"name", "string", []string{"Group"}, "Group.name"}, // what clients look for a Group by
	{"description", "token", []string{"Goal"}, "Goal.description"},
	{"type", "token", []string{"ExplanationOfBenefit"}, "ExplanationOfBenefit.type"},
	{"service-date", "date", []string{"ExplanationOfBenefit"}, "ExplanationOfBenefit.billablePeriod | ExplanationOfBenefit.item.serviced"},
	{"service-start-date", "date", []string{"ExplanationOfBenefit"}, "ExplanationOfBenefit.billablePeriod.start | ExplanationOfBenefit.item.serviced.as(date) | ExplanationOfBenefit.item.serviced.as(Period).start"},
	{"billable-period-start", "date", []string{"ExplanationOfBenefit"}, "ExplanationOfBenefit.billablePeriod.start"},
	{"race", "token", []string{"Patient"}, "Patient.extension.where(url = 'http://hl7.org/fhir/us/core/StructureDefinition/us-core-race').extension.value.as(Coding)"},
	{"ethnicity", "token", []string{"Patient"}, "Patient.extension.where(url = 'http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity').extension.value.as(Coding)"},
}

// table is a line for each type and parameter.
func (m *model) table(params []parameter) ([]string, error) {
	var lines []string
	var faults []error
	for _, p := range params {
		for _, base := range p.Base {
			paths, err := m.paths(base, p)
			if err != nil {
				faults = append(faults, fmt.Errorf("%s.%s: %w", base, p.Code, err))
				continue
			}
			lines = append(lines, strings.Join([]string{base, p.Code, p.Type, p.expressionOf(base), strings.Join(paths, " ")}, "\t"))
		}
	}
	return lines, errors.Join(faults...)
}
