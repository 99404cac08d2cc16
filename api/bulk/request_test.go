package bulk

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tidemark/api/export"
)

// The most that one request may ask of us is refused within moments.
func TestLargeRequestsAreCheap(t *testing.T) {
	const size = 1 << 20
	parameters := func(one string) string {
		n := size / (len(one) + 1)
		return `{"resourceType":"Parameters","parameter":[` + strings.Repeat(one+",", n) + one + `]}`
	}
	bodies := map[string]string{
		"values":     parameters(`{"name":"_type","valueString":"` + strings.Repeat(",", size-1000) + `"}`),
		"parameters": parameters(`{"name":"a","valueString":""}`),
		"types":      parameters(`{"name":"_type","valueString":"` + strings.Repeat("x,", 999) + `x"}`),
		"searches":   parameters(`{"name":"_typeFilter","valueString":"Observation?value-quantity=1` + strings.Repeat(",1", 2000) + `"}`),
		"search":     `{"resourceType":"Parameters","parameter":[{"name":"_typeFilter","valueString":"Observation?value-quantity=1` + strings.Repeat(strings.Repeat(",1", 2000)+",Observation?subject=1", 50) + `"}]}`,
		"elements":   parameters(`{"name":"_elements","valueString":"x` + strings.Repeat(",x", 900) + `"}`),
		"members":    `{` + manyMembers(size/16) + `}`,
		"deep":       strings.Repeat(`{"a":[`, 16) + strings.Repeat("{},", size/3) + `{}`,
	}
	for name, body := range bodies {
		for _, lenient := range []bool{false, true} {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			began := time.Now()
			params, err := bodyParams(httptest.NewRecorder(), r, 2*size)
			if err == nil {
				_, err = read(params, asking{base: "http://base", lenient: lenient})
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%s took %s", name, took)
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || len(e.Issues) > maxNotes {
				t.Errorf("%s, lenient %t: %v", name, lenient, err)
			}
		}
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"m%d":0,`, i)
	}
	return b.String() + `"z":0`
}

// Ten thousand Patients can be named in a request, and no more (decisions.md 6).
func TestPatientsAreBounded(t *testing.T) {
	ask := func(n int) error {
		params := make([]param, n)
		for i := range params {
			params[i] = param{name: "patient", kind: "valueReference", value: fmt.Sprintf("Patient/%d", i)}
		}
		_, err := read(params, asking{level: export.Patient})
		return err
	}
	if err := ask(10_000); err != nil {
		t.Errorf("10000: %v", err)
	}
	err, is := errors.AsType[*Error](ask(10_001))
	if !is || len(err.Issues) != 1 || err.Issues[0].Text != "more than 10000 parameters patient in one request" {
		t.Errorf("10001: %v", err)
	}
}
