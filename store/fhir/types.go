package fhir

import (
	"slices"
	"strconv"
)

// A Type is the number of a FHIR resource type; 0 is none.
//
// The numbers are on disk. They never change and are never used again: what
// later releases bring is appended to the table, however that sorts.
type Type uint16

// typeNames holds the concrete resource types of FHIR R4 (4.0.1); the number
// of a type is its place here. Append only.
var typeNames = [...]string{
	1:   "Account",
	2:   "ActivityDefinition",
	3:   "AdverseEvent",
	4:   "AllergyIntolerance",
	5:   "Appointment",
	6:   "AppointmentResponse",
	7:   "AuditEvent",
	8:   "Basic",
	9:   "Binary",
	10:  "BiologicallyDerivedProduct",
	11:  "BodyStructure",
	12:  "Bundle",
	13:  "CapabilityStatement",
	14:  "CarePlan",
	15:  "CareTeam",
	16:  "CatalogEntry",
	17:  "ChargeItem",
	18:  "ChargeItemDefinition",
	19:  "Claim",
	20:  "ClaimResponse",
	21:  "ClinicalImpression",
	22:  "CodeSystem",
	23:  "Communication",
	24:  "CommunicationRequest",
	25:  "CompartmentDefinition",
	26:  "Composition",
	27:  "ConceptMap",
	28:  "Condition",
	29:  "Consent",
	30:  "Contract",
	31:  "Coverage",
	32:  "CoverageEligibilityRequest",
	33:  "CoverageEligibilityResponse",
	34:  "DetectedIssue",
	35:  "Device",
	36:  "DeviceDefinition",
	37:  "DeviceMetric",
	38:  "DeviceRequest",
	39:  "DeviceUseStatement",
	40:  "DiagnosticReport",
	41:  "DocumentManifest",
	42:  "DocumentReference",
	43:  "EffectEvidenceSynthesis",
	44:  "Encounter",
	45:  "Endpoint",
	46:  "EnrollmentRequest",
	47:  "EnrollmentResponse",
	48:  "EpisodeOfCare",
	49:  "EventDefinition",
	50:  "Evidence",
	51:  "EvidenceVariable",
	52:  "ExampleScenario",
	53:  "ExplanationOfBenefit",
	54:  "FamilyMemberHistory",
	55:  "Flag",
	56:  "Goal",
	57:  "GraphDefinition",
	58:  "Group",
	59:  "GuidanceResponse",
	60:  "HealthcareService",
	61:  "ImagingStudy",
	62:  "Immunization",
	63:  "ImmunizationEvaluation",
	64:  "ImmunizationRecommendation",
	65:  "ImplementationGuide",
	66:  "InsurancePlan",
	67:  "Invoice",
	68:  "Library",
	69:  "Linkage",
	70:  "List",
	71:  "Location",
	72:  "Measure",
	73:  "MeasureReport",
	74:  "Media",
	75:  "Medication",
	76:  "MedicationAdministration",
	77:  "MedicationDispense",
	78:  "MedicationKnowledge",
	79:  "MedicationRequest",
	80:  "MedicationStatement",
	81:  "MedicinalProduct",
	82:  "MedicinalProductAuthorization",
	83:  "MedicinalProductContraindication",
	84:  "MedicinalProductIndication",
	85:  "MedicinalProductIngredient",
	86:  "MedicinalProductInteraction",
	87:  "MedicinalProductManufactured",
	88:  "MedicinalProductPackaged",
	89:  "MedicinalProductPharmaceutical",
	90:  "MedicinalProductUndesirableEffect",
	91:  "MessageDefinition",
	92:  "MessageHeader",
	93:  "MolecularSequence",
	94:  "NamingSystem",
	95:  "NutritionOrder",
	96:  "Observation",
	97:  "ObservationDefinition",
	98:  "OperationDefinition",
	99:  "OperationOutcome",
	100: "Organization",
	101: "OrganizationAffiliation",
	102: "Parameters",
	103: "Patient",
	104: "PaymentNotice",
	105: "PaymentReconciliation",
	106: "Person",
	107: "PlanDefinition",
	108: "Practitioner",
	109: "PractitionerRole",
	110: "Procedure",
	111: "Provenance",
	112: "Questionnaire",
	113: "QuestionnaireResponse",
	114: "RelatedPerson",
	115: "RequestGroup",
	116: "ResearchDefinition",
	117: "ResearchElementDefinition",
	118: "ResearchStudy",
	119: "ResearchSubject",
	120: "RiskAssessment",
	121: "RiskEvidenceSynthesis",
	122: "Schedule",
	123: "SearchParameter",
	124: "ServiceRequest",
	125: "Slot",
	126: "Specimen",
	127: "SpecimenDefinition",
	128: "StructureDefinition",
	129: "StructureMap",
	130: "Subscription",
	131: "Substance",
	132: "SubstanceNucleicAcid",
	133: "SubstancePolymer",
	134: "SubstanceProtein",
	135: "SubstanceReferenceInformation",
	136: "SubstanceSourceMaterial",
	137: "SubstanceSpecification",
	138: "SupplyDelivery",
	139: "SupplyRequest",
	140: "Task",
	141: "TerminologyCapabilities",
	142: "TestReport",
	143: "TestScript",
	144: "ValueSet",
	145: "VerificationResult",
	146: "VisionPrescription",
}

// r4Types is the number of the last R4 type: up to here the table is alphabetical.
const r4Types Type = 146

var typeNumbers = numberTypes()

func numberTypes() map[string]Type {
	m := make(map[string]Type, len(typeNames))
	for n, name := range typeNames {
		if n > 0 {
			m[name] = Type(n)
		}
	}
	return m
}

// ParseType finds a type by its name, which is case-sensitive.
func ParseType(name string) (Type, bool) {
	t, ok := typeNumbers[name]
	return t, ok
}

// String is the name of the type.
func (t Type) String() string {
	if t == 0 || int(t) >= len(typeNames) {
		return "Type(" + strconv.Itoa(int(t)) + ")"
	}
	return typeNames[t]
}

// AllTypes lists the concrete R4 types in alphabetical order.
func AllTypes() []Type {
	all := make([]Type, 0, r4Types)
	for t := Type(1); t <= r4Types; t++ {
		all = append(all, t)
	}
	return slices.Clip(all)
}
