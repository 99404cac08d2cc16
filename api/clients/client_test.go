package clients

import "testing"

// TestWithin: what a permission takes away is seen, what it adds does no harm.
func TestWithin(t *testing.T) {
	some := Permission{Levels: []string{"group"}, Groups: []string{"a"}, Scopes: "system/Patient.rs system/Observation.rs?category=laboratory"}
	for _, c := range []struct {
		name   string
		after  Permission
		within bool
	}{
		{"the same", some, true},
		{"everything", Anything, true},
		{"another level", Permission{Levels: []string{"group", "system"}, Groups: []string{"b", "a"}, Scopes: some.Scopes}, true},
		{"no level", Permission{Groups: []string{"a"}, Scopes: some.Scopes}, false},
		{"another Group", Permission{Levels: []string{"group"}, Groups: []string{"b"}, Scopes: some.Scopes}, false},
		{"fewer types", Permission{Levels: []string{"group"}, Groups: []string{"a"}, Scopes: "system/Patient.rs"}, false},
		{"narrower", Permission{Levels: []string{"group"}, Groups: []string{"a"}, Scopes: "system/Patient.rs system/Observation.rs?category=laboratory&status=final"}, false},
		{"wider", Permission{Levels: []string{"group"}, Groups: []string{"a"}, Scopes: "system/Patient.rs system/Observation.rs"}, true},
		{"other actions", Permission{Levels: []string{"group"}, Groups: []string{"a"}, Scopes: "system/Patient.r system/Observation.rs"}, false},
	} {
		if got := some.Within(&c.after); got != c.within {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	all := Permission{Levels: []string{"system"}, Scopes: "system/*.rs"}
	if all.Within(&Permission{Levels: []string{"system"}, Scopes: "system/*.rs?_security=N"}) {
		t.Error("a constraint on all types takes something away")
	}
	group := Permission{Levels: []string{"group"}, Groups: []string{All}, Scopes: "system/Patient.rs system/Group.r"}
	if narrow := (Permission{Levels: group.Levels, Groups: group.Groups, Scopes: "system/Patient.rs system/Group.r?_id=a"}); group.Within(&narrow) || !narrow.Within(&group) {
		t.Error("a constraint on what is only read takes something away: Groups that may be exported")
	}
	less := some
	less.Withhold.Security = []string{"R"}
	if some.Within(&less) || !less.Within(&some) || !less.Within(&less) {
		t.Error("what is withheld is taken away")
	}
	var nobody Permission
	if nobody.Level("system") || nobody.Group("a") || nobody.Rights() != nil || !nobody.Confined() {
		t.Error("who was told nothing may something")
	}
}
