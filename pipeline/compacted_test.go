package pipeline

import "testing"

// TestCompactedRows: of the formats one loses deletions when its topic is compacted, and says so.
func TestCompactedRows(t *testing.T) {
	for format, want := range map[string]bool{"debezium": true, "resource": false, "outbox": false} {
		if got := (Topic{Name: "t", Format: format}).selector().Compacted != ""; got != want {
			t.Errorf("%s: warned of: %t, want %t", format, got, want)
		}
	}
}
