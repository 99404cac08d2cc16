package fhir

import "strings"

// patientPaths is the Patient compartment of FHIR R4 4.0.1, the official table
// (66 types): for each type the elements whose references to a Patient put a
// resource into that Patient's compartment, search parameters reduced to
// elements. R4B has the same.
//
// A Patient lies in its own compartment. Patient.link.other is in the official
// table and not in ours: such a link is no merger, it puts nobody into
// another's compartment.
var patientPaths = map[string]string{
	"Account":                     "subject",
	"AdverseEvent":                "subject",
	"AllergyIntolerance":          "patient recorder asserter",
	"Appointment":                 "participant.actor",
	"AppointmentResponse":         "actor",
	"AuditEvent":                  "agent.who entity.what",
	"Basic":                       "subject author",
	"BodyStructure":               "patient",
	"CarePlan":                    "subject activity.detail.performer",
	"CareTeam":                    "subject participant.member",
	"ChargeItem":                  "subject",
	"Claim":                       "patient payee.party",
	"ClaimResponse":               "patient",
	"ClinicalImpression":          "subject",
	"Communication":               "subject sender recipient",
	"CommunicationRequest":        "subject sender recipient requester",
	"Composition":                 "subject author attester.party",
	"Condition":                   "subject asserter",
	"Consent":                     "patient",
	"Coverage":                    "policyHolder subscriber beneficiary payor",
	"CoverageEligibilityRequest":  "patient",
	"CoverageEligibilityResponse": "patient",
	"DetectedIssue":               "patient",
	"DeviceRequest":               "subject performer",
	"DeviceUseStatement":          "subject",
	"DiagnosticReport":            "subject",
	"DocumentManifest":            "subject author recipient",
	"DocumentReference":           "subject author",
	"Encounter":                   "subject",
	"EnrollmentRequest":           "candidate",
	"EpisodeOfCare":               "patient",
	"ExplanationOfBenefit":        "patient payee.party",
	"FamilyMemberHistory":         "patient",
	"Flag":                        "subject",
	"Goal":                        "subject",
	"Group":                       "member.entity",
	"ImagingStudy":                "subject",
	"Immunization":                "patient",
	"ImmunizationEvaluation":      "patient",
	"ImmunizationRecommendation":  "patient",
	"Invoice":                     "subject recipient",
	"List":                        "subject source",
	"MeasureReport":               "subject",
	"Media":                       "subject",
	"MedicationAdministration":    "subject performer.actor",
	"MedicationDispense":          "subject receiver",
	"MedicationRequest":           "subject",
	"MedicationStatement":         "subject",
	"MolecularSequence":           "patient",
	"NutritionOrder":              "patient",
	"Observation":                 "subject performer",
	"Patient":                     "",
	"Person":                      "link.target",
	"Procedure":                   "subject performer.actor",
	"Provenance":                  "target",
	"QuestionnaireResponse":       "subject author",
	"RelatedPerson":               "patient",
	"RequestGroup":                "subject action.participant",
	"ResearchSubject":             "individual",
	"RiskAssessment":              "subject",
	"Schedule":                    "actor",
	"ServiceRequest":              "subject performer",
	"Specimen":                    "subject",
	"SupplyDelivery":              "patient",
	"SupplyRequest":               "deliverTo",
	"VisionPrescription":          "patient",
}

// extraPaths are compartments that the official table of R4 lacks and R5 has, or
// that clients ask for: what is somebody's Device or Task goes with the rest.
var extraPaths = map[string]string{
	"Device": "patient",
	"Task":   "for focus",
}

// ownPaths are compartments of resources that no export of Patients holds. Whose
// data a Binary is part of, it may say itself.
var ownPaths = map[string]string{"Binary": "securityContext"}

// referredTypes lie outside of the Patient compartment and are what its
// resources refer to: without them clinical data cannot be read. Exports of
// Patients and Groups hold them, too.
var referredTypes = newSet(`Device DeviceDefinition Endpoint HealthcareService InsurancePlan Location Medication MedicationKnowledge
	Organization OrganizationAffiliation Practitioner PractitionerRole Substance`)

func newSet(names string) (set [256]bool) {
	for name := range strings.FieldsSeq(names) {
		set[typeNumbers[name]] = true
	}
	return set
}

// Referred says whether resources of the type go with those of the Patient
// compartment that refer to them.
func Referred(t Type) bool { return referredTypes[t] }

// OnlyTargeted says whether a reference to a resource of the type, where it
// stands among Resource.References, is what a Provenance is about.
func OnlyTargeted(t Type) bool { return inCompartment[t] }

// InPatientCompartment says whether resources of the type can lie in the
// compartment of a Patient at all.
func InPatientCompartment(t Type) bool {
	_, extra := extraPaths[t.String()]
	return inCompartment[t] || extra
}

// namingTypes lie in nobody's compartment and may be about a Patient all the
// same: an element of them may refer to one (R4 4.0.1), or they carry whatever
// somebody put into them.
var namingTypes = newSet(`Binary BiologicallyDerivedProduct Bundle Contract DeviceMetric EnrollmentResponse GuidanceResponse Linkage
	MessageHeader OperationOutcome Parameters PaymentNotice PaymentReconciliation Subscription VerificationResult`)

// MayNamePatient says whether a resource of the type can be about a Patient at
// all, so that it must not be shown to everybody.
func MayNamePatient(t Type) bool { return InPatientCompartment(t) || namingTypes[t] }

// inCompartment is the official table.
var inCompartment = func() (in [256]bool) {
	for name := range patientPaths {
		in[typeNumbers[name]] = true
	}
	return in
}()

// A node is a member name that the scanner cares about, at its place in the
// resource. Names without a node are validated and passed by. Lists are looked
// through: a node is met once for each of their elements.
type node struct {
	name     string // for errors: the path from the root
	is       meaning
	names    []string // member names; children[i] belongs to names[i]
	children []*node
}

// meaning is what the scanner does when it comes by a node.
type meaning uint8

const (
	passage meaning = iota // an object on the way to something
	metaObject
	tagObject
	memberObject
	typeText // from here on single values
	idText
	versionText
	updatedText
	tagSystemText
	tagCodeText
	referenceText
	memberReferenceText
	memberTypeText
	memberSystemText // of its identifier
	memberValueText
	targetText // of a Provenance
	startText
	endText
	inactiveFlag
)

// optional says whether null may stand for absence. FHIR has no null; where it
// leaves no doubt we are lenient, where the store's truth rests on it we are not.
func (n *node) optional() bool {
	switch n.is {
	case metaObject, typeText, idText, versionText, updatedText:
		return false
	}
	return true
}

func (n *node) find(name []byte) int {
	for i, own := range n.names {
		if string(name) == own {
			return i
		}
	}
	return -1
}

// child returns the child of that name, made if need be.
func (n *node) child(name string, is meaning) *node {
	if i := n.find([]byte(name)); i >= 0 {
		return n.children[i]
	}
	path := name
	if n.name != "" {
		path = n.name + "." + name
	}
	c := &node{name: path, is: is}
	n.names, n.children = append(n.names, name), append(n.children, c)
	return c
}

// patientType is the number of Patient.
var patientType = typeNumbers["Patient"]

// headNode is the root while the type is not known yet. The roots of the types
// begin with the same children in the same places.
var headNode = newHead()

// roots holds the node of each type's root, by the number of the type.
var roots = newRoots()

func newHead() *node {
	root := &node{}
	root.child("resourceType", typeText)
	root.child("id", idText)
	meta := root.child("meta", metaObject)
	meta.child("versionId", versionText)
	meta.child("lastUpdated", updatedText)
	tag := meta.child("tag", tagObject)
	tag.child("system", tagSystemText)
	tag.child("code", tagCodeText)
	return root
}

func newRoots() []*node {
	all := make([]*node, len(typeNames))
	for number := range all {
		root := newHead()
		name := typeNames[number]
		for path := range strings.FieldsSeq(patientPaths[name] + " " + extraPaths[name] + " " + ownPaths[name]) {
			at := root
			for name := range strings.SplitSeq(path, ".") {
				at = at.child(name, passage)
			}
			at.child("reference", referenceText)
		}
		all[number] = root
	}
	markMembers(all[typeNumbers["Group"]].child("member", memberObject))
	all[typeNumbers["Provenance"]].child("target", passage).child("reference", targetText).is = targetText
	return all
}

// markMembers makes of Group.member more than a way to references.
func markMembers(member *node) {
	member.is = memberObject
	entity := member.child("entity", passage)
	entity.child("reference", memberReferenceText).is = memberReferenceText
	entity.child("type", memberTypeText)
	identifier := entity.child("identifier", passage)
	identifier.child("system", memberSystemText)
	identifier.child("value", memberValueText)
	member.child("inactive", inactiveFlag)
	period := member.child("period", passage)
	period.child("start", startText)
	period.child("end", endText)
}
