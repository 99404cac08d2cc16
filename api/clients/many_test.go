package clients_test

import (
	"fmt"
	"strings"
	"testing"

	"tidemark/api/clients"
)

// TestManyConstraints: scopes that would not be looked at are refused, not passed over.
func TestManyConstraints(t *testing.T) {
	var scopes []string
	for i := range 21 {
		scopes = append(scopes, fmt.Sprintf("system/Patient.rs?_id=%d", i))
	}
	may := clients.Permission{Levels: []string{"system"}, Scopes: strings.Join(scopes, " ")}
	if _, _, err := may.Check(); err == nil || !strings.Contains(err.Error(), "narrow the same type") {
		t.Errorf("21 constraints: %v", err)
	}
	may.Scopes = strings.Join(scopes[1:], " ")
	if _, _, err := may.Check(); err != nil {
		t.Errorf("20 constraints: %v", err)
	}
}
