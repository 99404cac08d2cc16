package decode

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// told writes down what a node has.
func told(n node) string {
	var b strings.Builder
	_ = n.fields(func(name []byte, is node) error {
		fmt.Fprintf(&b, "%s=%s(%s) ", name, is.value, told(is))
		return nil
	})
	return b.String()
}

// TestNodes: what was noted, down to some depth, is what a walk finds.
func TestNodes(t *testing.T) {
	var c changes
	const depth = 4
	c.prepare(Options{}, depth)
	deep := strings.Repeat(`{"a":[`, depth) + `{"b":1,"c":{}},[],2` + strings.Repeat(`]}`, depth)
	for _, doc := range []string{`{}`, `[]`, `1`, `{"a":{},"b":[],"c":"{\"a\":1}"}`, `[[1,{"a":2}],3]`, `{"":{"":[{"":""}]}}`, deep, `{"a":[0` + strings.Repeat(",1", 2000) + `],"b":{"c":[]}}`} {
		n, err := c.nodes([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(told(node{value: n.value}), told(n)); diff != "" {
			t.Errorf("%s: -walked +noted:\n%s", doc, diff)
		}
	}
	n, _ := c.nodes([]byte(deep))
	for range depth {
		n = n.member("a").first()
	}
	if got := n.at("c"); string(got.value) != "{}" || string(n.member("b").text()) != "1" {
		t.Errorf("deeper than what was noted: %s", n.value)
	}
	if got := n.at("c", "d", "e"); got.value != nil {
		t.Errorf("of nothing: %s", got.value)
	}
}
