package fhir

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// compartments says again, the other way round, what compartment.go says: for
// each element the types in which it leads into a Patient's compartment.
var compartments = map[string]string{
	"subject": `Account AdverseEvent Basic CarePlan CareTeam ChargeItem ClinicalImpression Communication CommunicationRequest
		Composition Condition DeviceRequest DeviceUseStatement DiagnosticReport DocumentManifest DocumentReference Encounter Flag
		Goal ImagingStudy Invoice List MeasureReport Media MedicationAdministration MedicationDispense MedicationRequest
		MedicationStatement Observation Procedure QuestionnaireResponse RequestGroup RiskAssessment ServiceRequest Specimen`,
	"patient": `AllergyIntolerance BodyStructure Claim ClaimResponse Consent CoverageEligibilityRequest CoverageEligibilityResponse
		DetectedIssue Device EpisodeOfCare ExplanationOfBenefit FamilyMemberHistory Immunization ImmunizationEvaluation
		ImmunizationRecommendation MolecularSequence NutritionOrder RelatedPerson SupplyDelivery VisionPrescription`,
	"performer":                 "DeviceRequest Observation ServiceRequest",
	"securityContext":           "Binary",
	"performer.actor":           "MedicationAdministration Procedure",
	"activity.detail.performer": "CarePlan",
	"author":                    "Basic Composition DocumentManifest DocumentReference QuestionnaireResponse",
	"asserter":                  "AllergyIntolerance Condition",
	"recorder":                  "AllergyIntolerance",
	"recipient":                 "Communication CommunicationRequest DocumentManifest Invoice",
	"sender":                    "Communication CommunicationRequest",
	"requester":                 "CommunicationRequest",
	"actor":                     "AppointmentResponse Schedule",
	"participant.actor":         "Appointment",
	"participant.member":        "CareTeam",
	"action.participant":        "RequestGroup",
	"payee.party":               "Claim ExplanationOfBenefit",
	"attester.party":            "Composition",
	"policyHolder":              "Coverage",
	"subscriber":                "Coverage",
	"beneficiary":               "Coverage",
	"payor":                     "Coverage",
	"agent.who":                 "AuditEvent",
	"entity.what":               "AuditEvent",
	"candidate":                 "EnrollmentRequest",
	"member.entity":             "Group",
	"source":                    "List",
	"receiver":                  "MedicationDispense",
	"link.target":               "Person",
	"target":                    "Provenance",
	"individual":                "ResearchSubject",
	"deliverTo":                 "SupplyRequest",
	"for":                       "Task",
	"focus":                     "Task",
}

// pathsOf turns compartments round.
func pathsOf(typ string) []string {
	var paths []string
	for path, types := range compartments {
		if slices.Contains(strings.Fields(types), typ) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// naive learns from a document that Scan accepts what Scan should have learnt,
// the slow and obvious way.
func naive(t *testing.T, doc []byte, ownBase string) Resource {
	t.Helper()
	root := decodeTree(t, doc)
	typ, _ := root["resourceType"].(string)
	id, _ := root["id"].(string)
	number, _ := ParseType(typ)
	res := Resource{Key: Key{Type: number, ID: id}, LastUpdated: None}
	if meta, ok := root["meta"].(map[string]any); ok {
		res.Version, _ = meta["versionId"].(string)
		if s, ok := meta["lastUpdated"].(string); ok {
			res.LastUpdated, _, _ = ParseInstant(s)
		}
		for _, tag := range each(meta["tag"]) {
			tag, _ := tag.(map[string]any)
			if tag["code"] == "SUBSETTED" && tag["system"] == "http://terminology.hl7.org/CodeSystem/v3-ObservationValue" {
				res.Subsetted = true
			}
		}
	}
	if typ == "Patient" {
		res.Patients = []string{id}
	}
	for _, path := range pathsOf(typ) {
		for _, end := range walk(root, strings.Split(path+".reference", ".")) {
			if s, ok := end.(string); ok {
				if target, ok := strings.CutPrefix(literal(s, ownBase), "Patient/"); ok {
					res.Patients = append(res.Patients, target)
				}
			}
		}
	}
	slices.Sort(res.Patients)
	res.Patients = slices.Compact(res.Patients)
	for _, ref := range naiveReferences(root) {
		key, err := ParseKey(literal(ref, ownBase))
		if _, in := patientPaths[key.Type.String()]; err == nil && !in {
			res.References = append(res.References, key)
		}
	}
	for _, ref := range walk(root, []string{"target", "reference"}) {
		s, _ := ref.(string)
		key, err := ParseKey(literal(s, ownBase))
		if _, in := patientPaths[key.Type.String()]; err == nil && in && typ == "Provenance" && key.Type != patientType {
			res.References = append(res.References, key)
		}
	}
	for _, url := range naiveAttachments(root) {
		switch id, is := strings.CutPrefix(literal(url, ownBase), "Binary/"); {
		case is && validID([]byte(id)):
			res.References = append(res.References, Key{Binary, id})
		case url != "" && url[0] != '#' && !strings.HasPrefix(url, "data:"):
			res.References = append(res.References, Key{Binary, naiveOrigin(url)})
		}
	}
	slices.SortFunc(res.References, Key.Compare)
	res.References = slices.Compact(res.References)
	if typ == "Group" {
		res.Members = naiveMembers(root, ownBase)
	}
	return res
}

// naiveReferences lists the strings that are the member reference of any object.
func naiveReferences(v any) (refs []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if s, ok := member.(string); ok && name == "reference" {
				refs = append(refs, s)
			}
			refs = append(refs, naiveReferences(member)...)
		}
	case []any:
		for _, e := range v {
			refs = append(refs, naiveReferences(e)...)
		}
	}
	return refs
}

// naiveAttachments lists the urls of all Attachments.
func naiveAttachments(v any) (urls []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			for _, a := range each(member) {
				a, _ := a.(map[string]any)
				if s, ok := a["url"].(string); ok && attachmentName.MatchString(name) {
					urls = append(urls, s)
				}
			}
			urls = append(urls, naiveAttachments(member)...)
		}
	case []any:
		for _, e := range v {
			urls = append(urls, naiveAttachments(e)...)
		}
	}
	return urls
}

var (
	attachmentName = regexp.MustCompile(`^(attachment|content|document|form|image|photo|presentedForm|.*Attachment)$`)
	urlParts       = regexp.MustCompile(`(?s)^([^:/?#]*:)(?://([^/?#]*))?`)
)

func naiveOrigin(url string) string {
	m := urlParts.FindStringSubmatch(url)
	switch {
	case m == nil:
		return Relative
	case m[2] == "" && !strings.HasPrefix(url[len(m[1]):], "//"):
		return strings.ToLower(m[1])
	}
	o := strings.ToLower(m[1] + "//" + m[2][strings.LastIndexByte(m[2], '@')+1:])
	return o[:min(len(o), maxOrigin)]
}

func naiveMembers(root map[string]any, ownBase string) []Member {
	var members []Member
	for _, m := range each(root["member"]) {
		m, ok := m.(map[string]any)
		if !ok {
			continue
		}
		member := Member{Start: None, End: None}
		last := func(path ...string) (s string) {
			for _, v := range walk(m, path) {
				if text, ok := v.(string); ok {
					s = text
				}
			}
			return s
		}
		for _, s := range walk(m, []string{"entity", "reference"}) {
			if s, ok := s.(string); ok {
				if ref := literal(s, ownBase); ref != "" {
					member.Ref = ref
				}
			}
		}
		for _, v := range each(m["inactive"]) {
			member.Inactive = v == true
		}
		for _, s := range walk(m, []string{"period", "start"}) {
			if s, ok := s.(string); ok {
				member.Start, _ = naiveSpan(s)
			}
		}
		for _, s := range walk(m, []string{"period", "end"}) {
			if s, ok := s.(string); ok {
				_, member.End = naiveSpan(s)
			}
		}
		value, kind := last("entity", "identifier", "value"), last("entity", "type")
		if member.Ref == "" && value != "" && (kind == "" || kind == "Patient") {
			member.Ref = fmt.Sprintf("Patient?identifier=%.16x", sha256.Sum256([]byte(last("entity", "identifier", "system")+"|"+value)))
		}
		members = append(members, member)
	}
	return members
}

var (
	beyondMilliseconds = regexp.MustCompile(`(\.[0-9]{3})[0-9]+`)
	leapSecond         = regexp.MustCompile(`^(.{17})60`)
)

func naiveSpan(s string) (first, last Instant) {
	if leapSecond.MatchString(s) {
		first, last = naiveSpan(leapSecond.ReplaceAllString(s, "${1}59"))
		return first + 1000, last + 1000
	}
	s = beyondMilliseconds.ReplaceAllString(s, "$1")
	for layout, next := range map[string]func(time.Time) time.Time{
		"2006":                         func(t time.Time) time.Time { return t.AddDate(1, 0, 0) },
		"2006-01":                      func(t time.Time) time.Time { return t.AddDate(0, 1, 0) },
		"2006-01-02":                   func(t time.Time) time.Time { return t.AddDate(0, 0, 1) },
		"2006-01-02T15:04:05Z07:00":    func(t time.Time) time.Time { return t.Add(time.Second) },
		"2006-01-02T15:04:05.0Z07:00":  func(t time.Time) time.Time { return t.Add(time.Second / 10) },
		"2006-01-02T15:04:05.00Z07:00": func(t time.Time) time.Time { return t.Add(time.Second / 100) },
		"2006-01-02T15:04:05.000Z07:00": func(t time.Time) time.Time {
			return t.Add(time.Millisecond)
		},
	} {
		if t, err := time.Parse(layout, s); err == nil && len(t.Format(layout)) == len(s) {
			return FromTime(t), FromTime(next(t)) - 1
		}
	}
	return None, None
}

var literalReference = regexp.MustCompile(`^([A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(/_history/[A-Za-z0-9\-.]{1,64})?$`)

// literal returns Type/id, or "".
func literal(ref, ownBase string) string {
	if ownBase != "" {
		ref = strings.TrimPrefix(ref, ownBase+"/")
	}
	m := literalReference.FindStringSubmatch(ref)
	if m == nil {
		return ""
	}
	if _, ok := ParseType(m[1]); !ok {
		return ""
	}
	return m[1] + "/" + m[2]
}

func decodeTree(t *testing.T, doc []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var root map[string]any
	if err := d.Decode(&root); err != nil {
		t.Fatalf("the standard library refuses what Scan accepts: %v", err)
	}
	return root
}

// walk returns what stands at the end of a path, through lists.
func walk(v any, path []string) []any {
	if len(path) == 0 {
		return each(v)
	}
	var found []any
	for _, e := range each(v) {
		if object, ok := e.(map[string]any); ok {
			found = append(found, walk(object[path[0]], path[1:])...)
		}
	}
	return found
}

// each returns the elements of a list, of lists in it too, or the value itself.
func each(v any) []any {
	list, ok := v.([]any)
	if !ok {
		return []any{v}
	}
	var all []any
	for _, e := range list {
		all = append(all, each(e)...)
	}
	return all
}
