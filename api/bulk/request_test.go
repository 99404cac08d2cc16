package bulk

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
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
