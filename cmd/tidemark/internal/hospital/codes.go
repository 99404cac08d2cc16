package hospital

// Code systems.
const (
	loinc   = "http://loinc.org"
	snomed  = "http://snomed.info/sct"
	rxnorm  = "http://www.nlm.nih.gov/research/umls/rxnorm"
	icd10   = "http://hl7.org/fhir/sid/icd-10-cm"
	ucum    = "http://unitsofmeasure.org"
	actCode = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
)

type code struct{ code, display string }

// An analyte is something that can be measured.
type analyte struct {
	code
	unit, ucum     string
	least, most    float64 // of healthy people
	decimals       int
	often          float64 // share of visits (vitals)
	pressure, pain bool
}

var vitals = []analyte{
	{code: code{"85354-9", "Blood pressure panel with all children optional"}, often: 1, pressure: true},
	{code: code{"8867-4", "Heart rate"}, unit: "beats/minute", ucum: "/min", least: 58, most: 96, often: 1},
	{code: code{"9279-1", "Respiratory rate"}, unit: "breaths/minute", ucum: "/min", least: 12, most: 18, often: 1},
	{code: code{"8310-5", "Body temperature"}, unit: "degrees C", ucum: "Cel", least: 36.1, most: 37.4, decimals: 1, often: 0.7},
	{code: code{"29463-7", "Body weight"}, unit: "kg", ucum: "kg", least: 48, most: 109, decimals: 1, often: 1},
	{code: code{"8302-2", "Body height"}, unit: "cm", ucum: "cm", least: 150, most: 194, decimals: 1, often: 0.6},
	{code: code{"39156-5", "Body mass index (BMI) [Ratio]"}, unit: "kg/m2", ucum: "kg/m2", least: 18.5, most: 34, decimals: 2, often: 0.6},
	{
		code: code{"59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry"},
		unit: "%", ucum: "%", least: 94, most: 100, often: 0.7,
	},
	{code: code{"72514-3", "Pain severity - 0-10 verbal numeric rating [Score] - Reported"}, often: 0.8, pain: true},
}

// A battery is a panel of laboratory tests that are ordered together.
type battery struct {
	code
	often   float64
	results []analyte
}

var tests = [5]battery{
	{code{"51990-0", "Basic metabolic panel - Blood"}, 0.62, []analyte{
		{code: code{"2339-0", "Glucose [Mass/volume] in Blood"}, unit: "mg/dL", ucum: "mg/dL", least: 70, most: 99},
		{code: code{"6299-2", "Urea nitrogen [Mass/volume] in Blood"}, unit: "mg/dL", ucum: "mg/dL", least: 7, most: 20, decimals: 1},
		{code: code{"38483-4", "Creatinine [Mass/volume] in Blood"}, unit: "mg/dL", ucum: "mg/dL", least: 0.6, most: 1.3, decimals: 2},
		{code: code{"49765-1", "Calcium [Mass/volume] in Blood"}, unit: "mg/dL", ucum: "mg/dL", least: 8.5, most: 10.2, decimals: 1},
		{code: code{"2947-0", "Sodium [Moles/volume] in Blood"}, unit: "mmol/L", ucum: "mmol/L", least: 136, most: 144},
		{code: code{"6298-4", "Potassium [Moles/volume] in Blood"}, unit: "mmol/L", ucum: "mmol/L", least: 3.7, most: 5.2, decimals: 1},
		{code: code{"2069-3", "Chloride [Moles/volume] in Blood"}, unit: "mmol/L", ucum: "mmol/L", least: 101, most: 111},
		{code: code{"20565-8", "Carbon dioxide, total [Moles/volume] in Blood"}, unit: "mmol/L", ucum: "mmol/L", least: 20, most: 29},
	}},
	{code{"58410-2", "CBC panel - Blood by Automated count"}, 0.4, []analyte{
		{code: code{"6690-2", "Leukocytes [#/volume] in Blood by Automated count"}, unit: "10*3/uL", ucum: "10*3/uL", least: 4.5, most: 11, decimals: 1},
		{code: code{"789-8", "Erythrocytes [#/volume] in Blood by Automated count"}, unit: "10*6/uL", ucum: "10*6/uL", least: 4.1, most: 5.9, decimals: 2},
		{code: code{"718-7", "Hemoglobin [Mass/volume] in Blood"}, unit: "g/dL", ucum: "g/dL", least: 12, most: 17.5, decimals: 1},
		{code: code{"4544-3", "Hematocrit [Volume Fraction] of Blood by Automated count"}, unit: "%", ucum: "%", least: 36, most: 50, decimals: 1},
		{code: code{"787-2", "MCV [Entitic volume] by Automated count"}, unit: "fL", ucum: "fL", least: 80, most: 98, decimals: 1},
		{code: code{"785-6", "MCH [Entitic mass] by Automated count"}, unit: "pg", ucum: "pg", least: 27, most: 33, decimals: 1},
		{code: code{"786-4", "MCHC [Mass/volume] by Automated count"}, unit: "g/dL", ucum: "g/dL", least: 32, most: 36, decimals: 1},
		{code: code{"777-3", "Platelets [#/volume] in Blood by Automated count"}, unit: "10*3/uL", ucum: "10*3/uL", least: 150, most: 400},
	}},
	{code{"57698-3", "Lipid panel with direct LDL - Serum or Plasma"}, 0.3, []analyte{
		{code: code{"2093-3", "Cholesterol [Mass/volume] in Serum or Plasma"}, unit: "mg/dL", ucum: "mg/dL", least: 125, most: 200},
		{code: code{"2571-8", "Triglyceride [Mass/volume] in Serum or Plasma"}, unit: "mg/dL", ucum: "mg/dL", least: 50, most: 150},
		{code: code{"18262-6", "Cholesterol in LDL [Mass/volume] in Serum or Plasma by Direct assay"}, unit: "mg/dL", ucum: "mg/dL", least: 50, most: 129},
		{code: code{"2085-9", "Cholesterol in HDL [Mass/volume] in Serum or Plasma"}, unit: "mg/dL", ucum: "mg/dL", least: 40, most: 80},
	}},
	{code{"24325-3", "Hepatic function 2000 panel - Serum or Plasma"}, 0.2, []analyte{
		{code: code{"1975-2", "Bilirubin.total [Mass/volume] in Serum or Plasma"}, unit: "mg/dL", ucum: "mg/dL", least: 0.1, most: 1.2, decimals: 2},
		{code: code{"6768-6", "Alkaline phosphatase [Enzymatic activity/volume] in Serum or Plasma"}, unit: "U/L", ucum: "U/L", least: 40, most: 129},
		{code: code{"1742-6", "Alanine aminotransferase [Enzymatic activity/volume] in Serum or Plasma"}, unit: "U/L", ucum: "U/L", least: 7, most: 55},
		{code: code{"1920-8", "Aspartate aminotransferase [Enzymatic activity/volume] in Serum or Plasma"}, unit: "U/L", ucum: "U/L", least: 8, most: 48},
		{code: code{"1751-7", "Albumin [Mass/volume] in Serum or Plasma"}, unit: "g/dL", ucum: "g/dL", least: 3.5, most: 5, decimals: 1},
		{code: code{"2885-2", "Protein [Mass/volume] in Serum or Plasma"}, unit: "g/dL", ucum: "g/dL", least: 6.3, most: 7.9, decimals: 1},
	}},
	{code{"4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood"}, 0.25, []analyte{
		{code: code{"4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood"}, unit: "%", ucum: "%", least: 4.8, most: 6.9, decimals: 1},
	}},
}

type problem struct {
	code
	icd     code
	chronic bool
	drugs   []int // of drugs
}

// chronicProblems is the number of chronic ones, which come first.
const chronicProblems = 12

var problems = []problem{
	{code{"44054006", "Diabetes mellitus type 2"}, code{"E11.9", "Type 2 diabetes mellitus without complications"}, true, []int{0, 1}},
	{code{"59621000", "Essential hypertension"}, code{"I10", "Essential (primary) hypertension"}, true, []int{2, 3}},
	{code{"55822004", "Hyperlipidemia"}, code{"E78.5", "Hyperlipidemia, unspecified"}, true, []int{4}},
	{code{"195967001", "Asthma"}, code{"J45.909", "Unspecified asthma, uncomplicated"}, true, []int{5, 6}},
	{code{"49436004", "Atrial fibrillation"}, code{"I48.91", "Unspecified atrial fibrillation"}, true, []int{7, 8}},
	{code{"53741008", "Coronary arteriosclerosis"}, code{"I25.10", "Atherosclerotic heart disease of native coronary artery without angina pectoris"}, true, []int{9, 10}},
	{code{"239873007", "Osteoarthritis of knee"}, code{"M17.9", "Osteoarthritis of knee, unspecified"}, true, []int{11}},
	{code{"271737000", "Anemia"}, code{"D64.9", "Anemia, unspecified"}, true, []int{12}},
	{code{"40055000", "Chronic sinusitis"}, code{"J32.9", "Chronic sinusitis, unspecified"}, true, []int{13}},
	{code{"64859006", "Osteoporosis"}, code{"M81.0", "Age-related osteoporosis without current pathological fracture"}, true, []int{14}},
	{code{"15777000", "Prediabetes"}, code{"R73.03", "Prediabetes"}, true, nil},
	{code{"82423001", "Chronic pain"}, code{"G89.29", "Other chronic pain"}, true, []int{15}},
	{code{"195662009", "Acute viral pharyngitis"}, code{"J02.8", "Acute pharyngitis due to other specified organisms"}, false, []int{16}},
	{code{"10509002", "Acute bronchitis"}, code{"J20.9", "Acute bronchitis, unspecified"}, false, []int{17}},
	{code{"444814009", "Viral sinusitis"}, code{"J01.90", "Acute sinusitis, unspecified"}, false, nil},
	{code{"65363002", "Otitis media"}, code{"H66.90", "Otitis media, unspecified, unspecified ear"}, false, []int{18}},
	{code{"43878008", "Streptococcal sore throat"}, code{"J02.0", "Streptococcal pharyngitis"}, false, []int{19}},
	{code{"44465007", "Sprain of ankle"}, code{"S93.409A", "Sprain of unspecified ligament of unspecified ankle, initial encounter"}, false, []int{15}},
	{code{"284551006", "Laceration of foot"}, code{"S91.319A", "Laceration without foreign body, unspecified foot, initial encounter"}, false, []int{16}},
	{code{"70704007", "Sprain of wrist"}, code{"S63.509A", "Unspecified sprain of unspecified wrist, initial encounter"}, false, []int{11}},
}

// drugs are RxNorm concepts with the instruction that goes with them.
var drugs = []struct {
	code
	dose string
}{
	{code{"860975", "24 HR metformin hydrochloride 500 MG Extended Release Oral Tablet"}, "1 tablet with the evening meal"},
	{code{"106892", "insulin isophane, human 70 UNT/ML / insulin, regular, human 30 UNT/ML Injectable Suspension [Humulin]"}, "20 units before breakfast"},
	{code{"310798", "hydrochlorothiazide 25 MG Oral Tablet"}, "1 tablet in the morning"},
	{code{"197361", "amlodipine 5 MG Oral Tablet"}, "1 tablet daily"},
	{code{"312961", "simvastatin 20 MG Oral Tablet"}, "1 tablet at bedtime"},
	{code{"895994", "120 ACTUAT fluticasone propionate 0.044 MG/ACTUAT Metered Dose Inhaler"}, "2 puffs twice daily"},
	{code{"2123111", "NDA020503 200 ACTUAT albuterol 0.09 MG/ACTUAT Metered Dose Inhaler"}, "1 or 2 puffs when needed"},
	{code{"855332", "warfarin sodium 5 MG Oral Tablet"}, "1 tablet in the evening, as told by the clinic"},
	{code{"197604", "digoxin 0.125 MG Oral Tablet"}, "1 tablet daily"},
	{code{"309362", "clopidogrel 75 MG Oral Tablet"}, "1 tablet daily"},
	{code{"705129", "nitroglycerin 0.4 MG/ACTUAT Mucosal Spray"}, "1 spray under the tongue when needed"},
	{code{"849574", "naproxen sodium 220 MG Oral Tablet"}, "1 tablet twice daily with food"},
	{code{"310325", "ferrous sulfate 325 MG Oral Tablet"}, "1 tablet daily"},
	{code{"562251", "amoxicillin 250 MG / clavulanate 125 MG Oral Tablet"}, "1 tablet three times daily for 10 days"},
	{code{"904419", "alendronic acid 10 MG Oral Tablet"}, "1 tablet in the morning, upright, with water"},
	{code{"310965", "ibuprofen 200 MG Oral Tablet"}, "1 or 2 tablets up to three times daily"},
	{code{"313782", "acetaminophen 325 MG Oral Tablet"}, "2 tablets up to four times daily"},
	{code{"1043400", "acetaminophen 21.7 MG/ML / dextromethorphan hydrobromide 1 MG/ML / doxylamine succinate 0.417 MG/ML Oral Solution"}, "15 mL at bedtime"},
	{code{"308182", "amoxicillin 250 MG Oral Capsule"}, "1 capsule three times daily for 7 days"},
	{code{"834102", "penicillin V potassium 500 MG Oral Tablet"}, "1 tablet twice daily for 10 days"},
}

// Of a visit, by class.
var (
	classes = [3]code{{"AMB", "ambulatory"}, {"EMER", "emergency"}, {"IMP", "inpatient encounter"}}
	reasons = [3]code{
		{"185345009", "Encounter for symptom"}, {"50849002", "Emergency room admission"}, {"32485007", "Hospital admission"},
	}
)

// The hospital and, after it, the payers.
var houses = []struct{ name, kind, display string }{
	{"Ebb & Flood General Hospital", "prov", "Healthcare Provider"},
	{"Harbor Mutual Health Plan", "pay", "Payer"},
	{"Saltmarsh Health Insurance", "pay", "Payer"},
	{"Lighthouse Care Cooperative", "pay", "Payer"},
}

var wards = []string{
	"Outpatient clinic", "Emergency department", "Ward 2 East, internal medicine", "Ward 3 West, cardiology", "Day clinic", "Ward 4, surgery",
}

var titles = []string{
	"Diabetes registry", "Heart failure telemonitoring", "Anticoagulation clinic", "Falls prevention study", "Asthma action plan",
	"Accountable care panel",
}

var (
	women    = []string{"Ada", "Berit", "Carla", "Dilek", "Edda", "Fiona", "Greta", "Hanna", "Ines", "Joana", "Katla", "Luz", "Mina", "Nora", "Olga", "Pia"}
	men      = []string{"Adil", "Bruno", "Casper", "Dario", "Emil", "Falk", "Goran", "Hugo", "Ivar", "Jonas", "Kenji", "Lars", "Milo", "Nils", "Omar", "Piet"}
	families = []string{
		"Ahlers", "Brandt", "Castro", "Dahl", "Eriksen", "Fischer", "Gupta", "Haverkamp", "Ishii", "Jansen", "Kowalski", "Lindqvist",
		"Moreau", "Nakagawa", "Okafor", "Petersen", "Quist", "Rossi", "Santos", "Tanaka", "Ueland", "Vargas", "Weiss", "Yilmaz", "Zeller",
	}
	streets = []string{"Dune Road", "Harbor Street", "Ferry Lane", "Mill Creek Road", "Lantern Court", "Pilot Street", "Tidewater Avenue", "Quay Street"}
	towns   = []string{"Ebbton", "Port Lorne", "Saltmarsh", "Gull Point", "Westhaven"}
)
