package manual

import (
	"testing"
	"time"

	"tidemark/api/export"
)

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		string(code("a `b<c` & `d`")):                        "a <code>b&lt;c</code> &amp; <code>d</code>",
		inBytes(256 << 20):                                   "256 MiB",
		inBytes(3 << 30):                                     "3 GiB",
		inBytes(1025):                                        "1025 bytes",
		inBytes(5000000):                                     "5000000 bytes",
		inWords(24 * time.Hour):                              "1 day",
		inWords(36 * time.Hour):                              "36 hours",
		inWords(90 * time.Second):                            "90 seconds",
		inWords(1500 * time.Millisecond):                     "1.5s",
		levels([]export.Level{export.System}):                "system",
		levels([]export.Level{export.Patient, export.Group}): "Patient and Group",
		levels([]export.Level{export.System, export.Patient, export.Group}): "system, Patient and Group",
		camel("patient-export"): "PatientExport",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
