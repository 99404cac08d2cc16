package withhold

import (
	"strings"
	"testing"

	"tidemark/store/fhir"
	"tidemark/store/search"
)

// TestMatcher: what has a label, or is found by a search, goes not, wherever it stands.
func TestMatcher(t *testing.T) {
	p := Policy{
		Security: []string{"http://x/c?a=1&b|R", "HIV"},
		Filters:  []string{"Condition?code=http://s|1", "Condition?clinical-status=resolved&code=2"},
	}
	if g, s, f, e := p.Check(); g != nil || s != nil || f != nil || e != nil {
		t.Fatal(g, s, f, e)
	}
	r, err := p.Rule(search.Env{})
	if err != nil {
		t.Fatal(err)
	}
	const label = `"meta":{"security":[{"system":"%","code":"R"}]}`
	for _, c := range []struct {
		typ, rest string
		goes      bool
	}{
		{"Patient", `"active":true`, true},
		{"Patient", strings.Replace(label, "%", "http://x/c?a=1&b", 1), false},
		{"Patient", strings.Replace(label, "%", "http://x/c", 1), true},
		{"Basic", `"meta":{"security":[{"code":"N"},{"system":"any","code":"HIV"}]}`, false},
		{"Basic", `"meta":{"tag":[{"code":"HIV"}]}`, true},
		{"Condition", `"code":{"coding":[{"system":"http://s","code":"1"}]}`, false},
		{"Observation", `"code":{"coding":[{"system":"http://s","code":"1"}]}`, true},
		{"Condition", `"code":{"coding":[{"system":"http://s","code":"2"}]}`, true},
		{"Condition", `"code":{"coding":[{"system":"http://s","code":"2"}]},"clinicalStatus":{"coding":[{"code":"resolved"}]}`, false},
		{"Task", `"contained":[{"resourceType":"Condition","code":{"coding":[{"system":"http://s","code":"1"}]}}]`, false},
		{"Bundle", `"entry":[{"resource":{"resourceType":"Patient","meta":{"security":[{"code":"HIV"}]}}}]`, false},
		{"Bundle", `"entry":[{"resource":{"resourceType":"Patient","meta":{"security":[{"code":"N"}]}}}]`, true},
	} {
		typ, _ := fhir.ParseType(c.typ)
		line := []byte(`{"resourceType":"` + c.typ + `","id":"1",` + c.rest + "}\n")
		if got := r.Matcher(typ)(line); got != c.goes {
			t.Errorf("%s: %v", line, got)
		}
	}
}

func TestCheck(t *testing.T) {
	p := Policy{
		Groups:   []string{"opt-out", "", "*", "a b", "Group/a"},
		Security: []string{"R", "", "|R", "http://x|", "a|b|c", "a,b", `a\b`},
		Filters:  []string{"Condition?code=1", "code=1", "Condition?cod=1"},
		Elements: []string{"Claim.total", "Claim.status"},
	}
	groups, security, filters, elements := p.Check()
	for _, c := range []struct {
		err  error
		want int
	}{{groups, 4}, {security, 6}, {filters, 2}, {elements, 1}} {
		if c.err == nil || len(strings.Split(c.err.Error(), "\n")) != c.want {
			t.Errorf("want %d faults: %v", c.want, c.err)
		}
		if _, err := p.Rule(search.Env{}); err == nil {
			t.Error("a policy with faults is a rule")
		}
	}
}

// TestWithin: more that is withheld is within nothing that withholds less.
func TestWithin(t *testing.T) {
	none, some, more := Policy{}, Policy{Security: []string{"R"}}, Policy{Security: []string{"R"}, Elements: []string{"Claim.total"}}
	if !none.Within(&some) || some.Within(&none) || !some.Within(&more) || more.Within(&some) {
		t.Error("what is withheld is taken away")
	}
	both := some.And(Policy{Security: []string{"V", "R"}, Filters: []string{"Condition?code=1"}})
	if len(both.Security) != 2 || len(both.Filters) != 1 || !some.Within(&both) {
		t.Errorf("%v", both)
	}
	if r, err := none.Rule(search.Env{}); r != nil || err != nil || r.Whole() || r.Cuts() {
		t.Error("nothing is withheld")
	}
	if got := string((*Rule)(nil).Cut(nil, []byte("x"), 0)); got != "x" {
		t.Error(got)
	}
}
