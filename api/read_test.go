package api_test

import (
	"bytes"
	"net/http"
	"testing"
)

// TestRead: what is read is the resource as it came, at the watermark; what is
// deleted is not there.
func TestRead(t *testing.T) {
	m := newMachine(t)
	m.apply(patient(t, "a"), group(t, "g", `,"name":"a < b & c","quantity":1.50`), obs(t, "o", "a", ""))
	read := func(path string, want int) []byte {
		t.Helper()
		resp, body := m.get(path)
		if resp.StatusCode != want {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
		return body
	}
	whole := read("/fhir/Group/g", http.StatusOK)
	if !bytes.Contains(whole, []byte(`"name":"a < b & c","quantity":1.50`)) {
		t.Errorf("%s", whole)
	}
	if found := read("/fhir/Group?name=a%20%3C", http.StatusOK); !bytes.Contains(found, whole) || !bytes.Contains(found, []byte(`"total":1`)) {
		t.Errorf("%s", found)
	}
	if found := read("/fhir/Group?name=b", http.StatusOK); !bytes.Contains(found, []byte(`"total":0`)) {
		t.Errorf("%s", found)
	}
	read("/fhir/Patient/a", http.StatusOK)
	read("/fhir/Observation/o", http.StatusNotFound)
	m.apply(deletion(t, "Patient/a"), group(t, "g", `,"name":"b"`))
	m.restart()
	m.apply()
	read("/fhir/Patient/a", http.StatusNotFound)
	if found := read("/fhir/Group?name=b", http.StatusOK); !bytes.Contains(found, read("/fhir/Group/g", http.StatusOK)) {
		t.Errorf("%s", found)
	}
}
