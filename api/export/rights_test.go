package export_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api/export"
	"tidemark/api/outcome"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// A lock is a scope and what it lets, said a second time.
type lock struct {
	scope string
	typ   string // "": all
	r, s  bool
	lets  func(body map[string]any) bool
}

func anyBody(map[string]any) bool { return true }

func field(name, value string) func(map[string]any) bool {
	return func(body map[string]any) bool { return fmt.Sprint(body[name]) == value }
}

func labelled(code string) func(map[string]any) bool {
	return func(body map[string]any) bool {
		meta, _ := body["meta"].(map[string]any)
		return strings.Contains(fmt.Sprint(meta["security"]), "code:"+code)
	}
}

var locks = []lock{
	{"system/*.read", "", true, true, anyBody},
	{"system/*.rs", "", true, true, anyBody},
	{"system/Patient.rs", "Patient", true, true, anyBody},
	{"system/Patient.read", "Patient", true, true, anyBody},
	{"system/Group.rs", "Group", true, true, anyBody},
	{"system/Group.r", "Group", true, false, anyBody},
	{"system/Group.rs?_security=N", "Group", true, true, labelled("N")},
	{"system/Group.r?_id=0", "Group", true, false, field("id", "0")},
	{"system/Group.rs?_id=1", "Group", true, true, field("id", "1")},
	{"system/Practitioner.rs", "Practitioner", true, true, anyBody},
	{"system/Provenance.rs", "Provenance", true, true, anyBody},
	{"system/Observation.rs", "Observation", true, true, anyBody},
	{"system/Observation.r", "Observation", true, false, anyBody},
	{"system/Patient.rs?active=true", "Patient", true, true, field("active", "true")},
	{"system/Observation.rs?status=final", "Observation", true, true, field("status", "final")},
	{"system/Observation.rs?status=amended", "Observation", true, true, field("status", "amended")},
	{"system/Observation.s?_security=N", "Observation", false, true, labelled("N")},
	{"system/Encounter.rs?status=finished", "Encounter", true, true, field("status", "finished")},
	{"system/Encounter.rs", "Encounter", true, true, anyBody},
	{"system/Practitioner.rs?active=true", "Practitioner", true, true, field("active", "true")},
	{"system/Provenance.rs?_security=N", "Provenance", true, true, labelled("N")},
	{"system/*.rs?_security=N", "", true, true, labelled("N")},
}

// A ban is a policy and what it withholds, said a second time.
type ban struct {
	withhold.Policy

	typ  string // "": all
	hits func(body map[string]any) bool
}

var bans = []ban{
	{withhold.Policy{Security: []string{"R"}}, "", labelled("R")},
	{withhold.Policy{Security: []string{"http://terminology.hl7.org/CodeSystem/v3-Confidentiality|N"}}, "", labelled("N")},
	{withhold.Policy{Security: []string{"http://terminology.hl7.org/CodeSystem/v3-ActCode|R"}}, "", nobody},
	{withhold.Policy{Filters: []string{"Observation?status=amended"}}, "Observation", field("status", "amended")},
	{withhold.Policy{Filters: []string{"Patient?active=false"}}, "Patient", field("active", "false")},
	{withhold.Policy{Filters: []string{"Provenance?_security=N", "Encounter?_security=V"}}, "Provenance", labelled("N")},
	{withhold.Policy{Elements: []string{"Observation.note", "Claim.total"}}, "", nobody},
}

func nobody(map[string]any) bool { return false }

// keys are the locks that a client has, and what is withheld from it all the same.
type keys struct {
	locks []lock
	bans  []ban
	outs  bool // so are people who have opted out
}

func (k keys) policy() (p withhold.Policy) {
	for _, b := range k.bans {
		p = p.And(b.Policy)
	}
	if k.outs {
		p.Groups = []string{"out"}
	}
	return p
}

// withholds tells whether anything is withheld of a resource of a type.
func (k keys) withholds(typ string, body map[string]any) bool {
	return slices.ContainsFunc(k.bans, func(b ban) bool { return (b.typ == "" || b.typ == typ) && b.hits(body) })
}

func (k keys) scopes() string {
	var list []string
	for _, l := range k.locks {
		list = append(list, l.scope)
	}
	return strings.Join(list, " ")
}

// let tells whether a resource may be had: found by one lock, and read by one.
func (k keys) let(typ string, body map[string]any) bool {
	is := func(do func(lock) bool) bool {
		return slices.ContainsFunc(k.locks, func(l lock) bool { return do(l) && (l.typ == "" || l.typ == typ) && l.lets(body) })
	}
	return !k.withholds(typ, body) && is(func(l lock) bool { return l.r }) && is(func(l lock) bool { return l.s })
}

// reads tells whether a resource may be read by its id.
func (k keys) reads(typ string, body map[string]any) bool {
	return !k.withholds(typ, body) && slices.ContainsFunc(k.locks, func(l lock) bool { return l.r && (l.typ == "" || l.typ == typ) && l.lets(body) })
}

// types tells whether any of a type may be had, and whether all.
func (k keys) types(typ string) (some, all bool) {
	is := func(do func(lock) bool, free bool) bool {
		return slices.ContainsFunc(k.locks, func(l lock) bool {
			return do(l) && (l.typ == "" || l.typ == typ) && (!free || !strings.Contains(l.scope, "?"))
		})
	}
	r, s := func(l lock) bool { return l.r }, func(l lock) bool { return l.s }
	p := k.policy()
	return is(r, false) && is(s, false), is(r, true) && is(s, true) && len(p.Security)+len(p.Filters) == 0
}

// A clinic is a ward whose resources have what scopes ask for, and a canary in each
// version. It remembers what there was at each export.
type clinic struct {
	*ward
	live map[string]string // bodies
	last map[string]string // of what was deleted
	then map[fhir.Instant]map[string]string
	sent map[string]int       // rows by list, for what a test is worth
	outs []map[string]bool    // who had opted out, from version to version of the Group that says so
	at   map[fhir.Instant]int // which of them there was at an export
	all  map[string][]string  // bodies, of all versions
}

func (c *clinic) happen() {
	c.text++
	kinds := []string{"Observation", "Observation", "Observation", "Encounter", "Encounter", "Provenance", "Provenance", "Practitioner", "Patient", "Group"}
	kind := kinds[c.r.IntN(len(kinds))]
	n := map[string]int{"Observation": 12, "Encounter": 5, "Provenance": 6, "Practitioner": 3, "Patient": 4, "Group": 1}[kind]
	ref := fmt.Sprintf("%s/%d", kind, c.r.IntN(n))
	if kind == "Group" && c.r.IntN(2) == 0 {
		ref = "Group/out"
	}
	if kind != "Group" && c.live[ref] != "" && c.r.IntN(5) == 0 {
		c.last[ref] = c.live[ref]
		delete(c.live, ref)
		c.commit(wardDeletion(c.t, ref))
		return
	}
	c.put(ref)
}

func (c *clinic) put(ref string) {
	c.text++
	kind, _, _ := strings.Cut(ref, "/")
	more := fmt.Sprintf(`,"meta":{"tag":[{"code":"canary-%d-"}],"security":[{"system":"http://terminology.hl7.org/CodeSystem/v3-Confidentiality","code":%q}]}`, c.text, c.one("N", "R"))
	patient := fmt.Sprintf(`{"reference":"Patient/%d"}`, c.r.IntN(4))
	switch kind {
	case "Observation":
		more += fmt.Sprintf(`,"text":{"status":"generated","div":"note-%d-"},"note":[{"text":"note-%d-"}]`, c.text, c.text)
		more += fmt.Sprintf(`,"status":%q,"subject":%s,"encounter":{"reference":"Encounter/%d"},"performer":[{"reference":"Practitioner/%d"}]`, c.one("final", "amended", "preliminary"), patient, c.r.IntN(5), c.r.IntN(3))
	case "Encounter":
		more += fmt.Sprintf(`,"status":%q,"subject":%s,"participant":[{"individual":{"reference":"Practitioner/%d"}}]`, c.one("finished", "planned"), patient, c.r.IntN(3))
	case "Provenance":
		more += fmt.Sprintf(`,"target":[{"reference":"Observation/%d"}],"recorded":"2026-01-01T00:00:00Z","agent":[{"who":{"reference":"Practitioner/%d"}}]`, c.r.IntN(12), c.r.IntN(3))
	case "Practitioner", "Patient":
		more += `,"active":` + c.one("true", "false")
	case "Group":
		a, b := fmt.Sprint(c.r.IntN(4)), fmt.Sprint(c.r.IntN(4))
		more += `,"member":` + references(`{"entity":{"reference":%q}}`, "Patient/"+a, "Patient/"+b)
		if ref == "Group/out" {
			c.outs = append(c.outs, map[string]bool{a: true, b: true})
		}
	}
	ch := scanned(c.t, ref, more)
	c.live[ref] = string(ch.Body)
	c.all[ref] = append(c.all[ref], c.live[ref])
	c.commit(ch)
}

func (c *clinic) one(list ...string) string { return list[c.r.IntN(len(list))] }

// keysFor are keys for a level, which for Groups are rarely none to them.
func (c *clinic) keysFor(level export.Level) keys {
	k := c.keys()
	for level == export.Group && c.r.IntN(10) > 0 && !slices.ContainsFunc(k.locks, func(l lock) bool { return l.r && (l.typ == "" || l.typ == "Group") }) {
		k.locks = append(k.locks, locks[c.r.IntN(len(locks))])
	}
	return k
}

func (c *clinic) keys() (k keys) {
	for range 1 + c.r.IntN(5) {
		if l := locks[c.r.IntN(len(locks))]; l.typ != "" || c.r.IntN(3) == 0 {
			k.locks = append(k.locks, l)
		}
	}
	if len(k.locks) == 0 {
		return c.keys()
	}
	for range c.r.IntN(3) {
		k.bans = append(k.bans, bans[c.r.IntN(len(bans))])
	}
	k.outs = c.r.IntN(3) == 0
	return k
}

var ofPatient = regexp.MustCompile(`"subject":{"reference":"Patient/(\d+)"}`)

// patientOf is who a resource is about, "" for nobody.
func patientOf(ref, body string) string {
	kind, id, _ := strings.Cut(ref, "/")
	if m := ofPatient.FindStringSubmatch(body); m != nil {
		return m[1]
	}
	if kind == "Patient" {
		return id
	}
	return ""
}

var ofTarget = regexp.MustCompile(`"target":\[{"reference":"(Observation/\d+)"}\]`)

// hides tells whether a resource is of somebody who has opted out, or says who has.
func (c *clinic) hides(k keys, ref string) bool {
	if !k.outs || ref == "Group/out" {
		return k.outs
	}
	body := c.live[ref]
	if target := ofTarget.FindStringSubmatch(body); target != nil {
		ref = target[1]
		if body = c.live[ref]; body == "" {
			body = c.last[ref]
		}
	}
	return c.outs[len(c.outs)-1][patientOf(ref, body)]
}

// took tells whether whose a resource is, or was, took part at any time since an export.
func (c *clinic) took(k keys, ref string, since fhir.Instant) bool {
	bodies := c.all[ref]
	if i := slices.Index(bodies, c.then[since][ref]); i > 0 {
		bodies = bodies[i:]
	}
	for _, body := range bodies {
		id := patientOf(ref, body)
		if !k.outs || id == "" || slices.ContainsFunc(c.outs[c.at[since]:], func(out map[string]bool) bool { return !out[id] }) {
			return true
		}
	}
	return false
}

// lists are what an export delivers: of each list the references of its rows, once.
func (c *clinic) lists(q export.Request) (lists map[string]map[string]map[string]any, text string, at fhir.Instant) {
	c.t.Helper()
	id := start(c.t, c.jobs, q)
	stop := runs(c.t, c.jobs)
	synctest.Wait()
	stop()
	if c.r.IntN(4) == 0 {
		c.restart()
	}
	lines, at := c.held(id)
	lists = map[string]map[string]map[string]any{}
	for _, line := range lines {
		list, body, _ := strings.Cut(line, " ")
		text += body
		var res map[string]any
		c.must(json.Unmarshal([]byte(body), &res))
		ref := fmt.Sprint(res["resourceType"], "/", res["id"])
		switch {
		case list == "error" || res["resourceType"] == "Parameters":
			continue
		case list != "output":
			ref = res["entry"].([]any)[0].(map[string]any)["request"].(map[string]any)["url"].(string)
		}
		if lists[list] == nil {
			lists[list] = map[string]map[string]any{}
		}
		lists[list][ref] = res
	}
	c.must(c.jobs.Delete(c.t.Context(), id))
	return lists, text, at
}

func parsed(t *testing.T, body string) (m map[string]any) {
	t.Helper()
	if body == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func kindOf(ref string) string { kind, _, _ := strings.Cut(ref, "/"); return kind }

var canary = regexp.MustCompile(`canary-\d+-`)

// ask asks for an export with and without rights, and compares.
func (c *clinic) ask() {
	c.t.Helper()
	q := export.Request{URL: "http://tidemark.test/fhir/$export", Since: fhir.None, Upto: fhir.None, Departed: c.r.IntN(2) == 0}
	switch c.r.IntN(3) {
	case 0:
		q.Level = export.Patient
	case 1:
		q.Level, q.Group = export.Group, "0"
	}
	if len(c.times) > 0 && c.r.IntN(3) > 0 {
		q.Since = c.times[c.r.IntN(len(c.times))]
	}
	if c.r.IntN(3) == 0 {
		for _, name := range []string{"Observation", "Patient", "Practitioner"} {
			typ, _ := fhir.ParseType(name)
			q.Types = append(q.Types, typ)
		}
	}
	k := c.keysFor(q.Level)
	if q.Level == export.Patient && c.r.IntN(2) == 0 {
		for i := range 4 { // whom it may not read it cannot ask for
			if body := c.live[fmt.Sprint("Patient/", i)]; body != "" && k.let("Patient", parsed(c.t, body)) && c.r.IntN(2) == 0 {
				q.Patients = append(q.Patients, fmt.Sprint(i))
			}
		}
		c.sent["of some Patients"] += len(q.Patients)
	}
	full, _, at := c.lists(q)
	q.Access = &export.Access{Owner: "#1", Rights: smart.Parse(k.scopes()), Withhold: k.policy()}
	filtered := c.r.IntN(3) == 0
	if filtered {
		q.Filters = []string{"Observation?status=final,preliminary"}
	}
	if c.r.IntN(4) == 0 {
		q.Elements = []string{"id"}
	}
	patient, _ := fhir.ParseType("Patient")
	encounter, _ := fhir.ParseType("Encounter")
	if c.r.IntN(3) == 0 {
		q.By = []fhir.Type{patient, encounter}[c.r.IntN(2)]
	}
	q.Attach = []export.Attachment{export.ByDefault, export.ByDefault, export.Latest, export.Relevant}[c.r.IntN(4)]
	may := false
	for _, typ := range fhir.AllTypes() {
		some, _ := k.types(typ.String())
		may = may || some && q.Level.Holds(typ) && (len(q.Types) == 0 || slices.Contains(q.Types, typ))
	}
	if !may {
		if _, err := c.jobs.Start(c.t.Context(), q); err == nil {
			c.t.Errorf("%q: an export of nothing was started", k.scopes())
		}
		return
	}
	if q.Level == export.Group && !k.reads("Group", parsed(c.t, c.live["Group/0"])) {
		c.sent["unseen"]++
		_, err := c.jobs.Start(c.t.Context(), q)
		if r, is := errors.AsType[*export.Refusal](err); !is || !r.NotFound {
			c.t.Errorf("%q: an export of a Group that may not be read: %v", k.scopes(), err)
		}
		return
	}
	if q.Level == export.Group {
		c.sent["seen"]++
	}
	got, text, _ := c.lists(q)
	if (len(k.bans) > 0 || k.outs) != strings.Contains(text, "policy of this server's operator withholds data") {
		c.t.Errorf("what is withheld is told of wrongly")
	}
	if c.heldBack(q) != strings.Contains(text, "deleted lists of them only what matched") {
		c.t.Errorf("that deletions are held back is told wrongly")
	}
	notes := regexp.MustCompile(`note-\d+-`).FindAllString(text, -1)
	if c.sent["notes"] += len(notes); len(k.policy().Elements) > 0 && len(notes) > 0 {
		c.t.Errorf("elements that are withheld: %v", notes)
	}
	c.compare(k, q, full, got)
	c.canaries(k, text)
	c.times = append(c.times, at)
	c.then[at], c.at[at] = maps.Clone(c.live), len(c.outs)-1
	if c.t.Failed() {
		c.t.Fatalf("scopes %q, withheld %+v, request %+v", k.scopes(), k.policy(), q)
	}
}

// heldBack tells whether a request is one whose list of deletions has only some, whatever
// was deleted.
func (c *clinic) heldBack(q export.Request) bool {
	return q.Since != fhir.None && slices.ContainsFunc(fhir.AllTypes(), func(t fhir.Type) bool {
		attached := q.Attach != export.ByDefault && t.String() == "Provenance"
		asked := len(q.Types) == 0 || slices.Contains(q.Types, t) || attached
		return asked && q.Level.Holds(t) && q.Access.Rights.Filters(t) != nil
	})
}

func (c *clinic) compare(k keys, q export.Request, full, got map[string]map[string]map[string]any) {
	c.t.Helper()
	for list := range full {
		want := map[string]bool{}
		for ref, body := range full[list] {
			if c.expects(k, q, list, ref, body) {
				want[ref] = true
			}
		}
		have := map[string]bool{}
		for ref := range got[list] {
			have[ref] = true
			c.sent[list]++
		}
		if k.outs && q.Since != fhir.None { // who comes back brings more: TestOptOut tells how much
			continue
		}
		if k.outs && q.Level == export.Group { // whom only who is hidden refers to does not go
			drop := func(ref string, _ bool) bool { return kindOf(ref) == "Practitioner" || kindOf(ref) == "Provenance" }
			maps.DeleteFunc(want, drop)
			maps.DeleteFunc(have, drop)
		}
		// What filters, blocks and attachment add or leave out is not the same without
		// rights: then it is asked only whether anything goes that may not.
		if list == "departed" && len(q.Filters) > 0 || list == "output" && q.By != 0 {
			want = c.allowedOf(k, q, list, have)
		}
		// A Practitioner who only made Provenance comes with that.
		makers, _ := k.types("Provenance")
		if q.Attach != export.ByDefault || q.Level == export.Group && !makers {
			drop := func(ref string, _ bool) bool {
				return kindOf(ref) == "Provenance" || kindOf(ref) == "Practitioner" && q.Level == export.Group
			}
			maps.DeleteFunc(want, drop)
			maps.DeleteFunc(have, drop)
		}
		if q.Level != export.System && list == "output" {
			maps.DeleteFunc(want, func(ref string, _ bool) bool {
				return kindOf(ref) == "Practitioner" && !have[ref] && !c.refers(k, q, full[list], ref)
			})
		}
		if d := cmp.Diff(want, have); d != "" {
			c.t.Errorf("%s (-want +got):\n%s", list, d)
		}
	}
	for list := range got {
		have := map[string]bool{}
		for ref := range got[list] {
			have[ref] = true
		}
		if d := cmp.Diff(c.allowedOf(k, q, list, have), have); d != "" {
			c.t.Errorf("%s has what may not be there:\n%s", list, d)
		}
	}
}

// refers tells whether one of some rows that is sent refers to a resource that lies in no
// compartment, which is what puts it into an export of Patients (decisions.md 3, c): what
// may not be had does not, for that would tell of it.
func (c *clinic) refers(k keys, q export.Request, rows map[string]map[string]any, to string) bool {
	for ref, body := range rows {
		if kindOf(ref) == "Provenance" && q.Attach != export.ByDefault {
			continue // another one may be attached
		}
		if text, err := json.Marshal(body); err == nil && strings.Contains(string(text), `"reference":"`+to+`"`) && c.expects(k, q, "output", ref, body) {
			return true
		}
	}
	return false
}

// allowedOf are those of some rows that may be in a list.
func (c *clinic) allowedOf(k keys, q export.Request, list string, refs map[string]bool) map[string]bool {
	may := map[string]bool{}
	for ref := range refs {
		some, all := k.types(kindOf(ref))
		now := k.let(kindOf(ref), parsed(c.t, c.live[ref])) && !c.hides(k, ref)
		if list != "output" && !c.took(k, ref, q.Since) {
			continue
		}
		was := k.let(kindOf(ref), parsed(c.t, c.then[q.Since][ref]))
		last := k.let(kindOf(ref), parsed(c.t, c.last[ref]))
		switch {
		case list == "output" && now, list == "deleted" && (last && some || all), list == "departed" && (was || now || all):
			may[ref] = true
		}
	}
	return may
}

// expects tells whether what an export without rights holds is in one with them.
func (c *clinic) expects(k keys, q export.Request, list, ref string, body map[string]any) bool {
	some, all := k.types(kindOf(ref))
	switch {
	case !some:
		return false
	case list == "output":
		filtered := kindOf(ref) == "Observation" && len(q.Filters) > 0 && !field("status", "final")(body) && !field("status", "preliminary")(body)
		return k.let(kindOf(ref), body) && !filtered && !c.hides(k, ref)
	case all:
		return true
	case list == "deleted":
		return k.let(kindOf(ref), parsed(c.t, c.last[ref]))
	}
	return c.live[ref] != "" && c.then[q.Since][ref] == c.live[ref] && k.let(kindOf(ref), parsed(c.t, c.live[ref]))
}

// canaries looks for those of what the client may not have.
func (c *clinic) canaries(k keys, text string) {
	c.t.Helper()
	may := map[string]bool{}
	for ref, body := range c.live {
		if k.let(kindOf(ref), parsed(c.t, body)) && !c.hides(k, ref) {
			may[canary.FindString(body)] = true
		}
	}
	for _, found := range canary.FindAllString(text, -1) {
		if !may[found] {
			c.t.Errorf("%s is outside of the rights", found)
		}
	}
}

// TestRights: whatever the scopes, level, types, filters, elements, blocks, attached
// Provenance and window, an export holds what one without limits holds of what the
// scopes let, and nothing of anything else is in any of its bytes.
func TestRights(t *testing.T) {
	sent := map[string]int{}
	seeds := storetest.Rounds(12)
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) {
			w := &ward{t: t, r: rand.New(rand.NewPCG(seed, 66)), fs: vfs.NewMem(), unled: &unled{}}
			c := &clinic{ward: w, live: map[string]string{}, last: map[string]string{}, then: map[fhir.Instant]map[string]string{}, sent: sent, at: map[fhir.Instant]int{}, all: map[string][]string{}}
			w.open()
			defer func() { w.db.Close() }()
			w.advance(time.Second)
			for i := range 4 {
				c.put(fmt.Sprint("Patient/", i))
			}
			c.put("Group/0")
			c.put("Group/out")
			for range 40 {
				for range c.r.IntN(12) {
					c.happen()
					c.advance(10 * time.Millisecond)
				}
				c.advance(2 * time.Second)
				c.ask()
			}
		})
	}
	dozen := map[string]int{"output": 700, "deleted": 100, "departed": 12, "notes": 300, "seen": 30, "unseen": 24, "of some Patients": 8}
	for what, least := range dozen {
		if sent[what] < least*seeds/12 {
			t.Errorf("this proves little of %s: %v", what, sent)
		}
	}
}

// TestRightsAfterLastStates: of what is constrained no deletion is told whose last state
// is not known any more, and that is said.
func TestRightsAfterLastStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ward{t: t, r: rand.New(rand.NewPCG(1, 66)), fs: vfs.NewMem(), unled: &unled{}}
		w.open()
		defer func() { w.db.Close() }()
		w.commit(scanned(t, "Observation/1", `,"status":"final"`), scanned(t, "Observation/2", `,"status":"final"`))
		w.advance(2 * time.Second)
		since := w.db.Status().Watermark
		w.advance(time.Second)
		w.commit(wardDeletion(t, "Observation/1"))
		for range 2 { // as long as last states are kept, and more
			w.advance(time.Hour)
			w.commit(scanned(t, "Observation/3", fmt.Sprintf(`,"meta":{"tag":[{"code":"%d"}]}`, w.db.Now())))
			w.merge()
		}
		w.commit(wardDeletion(t, "Observation/2"))
		w.advance(2 * time.Second)
		id := start(t, w.jobs, export.Request{
			URL: "x", Since: since, Upto: fhir.None, Access: &export.Access{Owner: "#1", Rights: smart.Parse("system/Observation.rs?status=final")},
		})
		stop := runs(t, w.jobs)
		synctest.Wait()
		stop()
		lines, _ := w.held(id)
		text := strings.Join(lines, "")
		if strings.Contains(text, `"Observation/1"`) || !strings.Contains(text, `"Observation/2"`) || !strings.Contains(text, "no longer known here whether it did") {
			t.Error(text)
		}
	})
}

// TestRightsOfNamedPatients: a member who is found when the job is planned only is unknown
// all the same to a client that may have nothing of him.
func TestRightsOfNamedPatients(t *testing.T) {
	for scopes, known := range map[string]bool{"system/Observation.rs?status=final": true, "system/Observation.rs?status=amended": false, "system/Patient.rs": true} {
		synctest.Test(t, func(t *testing.T) {
			w := &ward{t: t, r: rand.New(rand.NewPCG(1, 66)), fs: vfs.NewMem(), unled: &unled{}}
			w.open()
			defer func() { w.db.Close() }()
			w.commit(
				scanned(t, "Patient/1", `,"identifier":[{"system":"s","value":"1"}]`), scanned(t, "Observation/1", `,"status":"final","subject":{"reference":"Patient/1"}`),
				scanned(t, "Group/0", `,"member":[{"entity":{"identifier":{"system":"s","value":"1"}}}]`),
			)
			w.advance(2 * time.Second)
			id := start(t, w.jobs, export.Request{
				Level: export.Group, Group: "0", Patients: []string{"1"}, URL: "x", Since: fhir.None, Upto: fhir.None,
				Access: &export.Access{Owner: "#1", Rights: smart.Parse(scopes + " system/Group.r")},
			})
			stop := runs(t, w.jobs)
			synctest.Wait()
			stop()
			_, err := w.jobs.Manifest(id)
			failed, is := errors.AsType[*export.FailedError](err)
			if is == known || is && failed.Issues[0].Code != outcome.NotFound {
				t.Errorf("%s: %v", scopes, err)
			}
		})
	}
}

// TestRightsOfBlocks: what a client may not have puts nothing into blocks, for where
// something stands would tell of it.
func TestRightsOfBlocks(t *testing.T) {
	for _, by := range []string{"Patient", "Encounter"} {
		synctest.Test(t, func(t *testing.T) {
			w := &ward{t: t, r: rand.New(rand.NewPCG(1, 66)), fs: vfs.NewMem(), unled: &unled{}}
			w.open()
			defer func() { w.db.Close() }()
			observation := func(id, status, performer string) store.Change {
				return scanned(t, "Observation/"+id, fmt.Sprintf(`,"status":%q,"subject":{"reference":"Patient/1"},"encounter":{"reference":"Encounter/1"},"performer":[{"reference":"Practitioner/%s"}]`, status, performer))
			}
			w.commit(
				scanned(t, "Patient/1", ""), scanned(t, "Encounter/1", `,"subject":{"reference":"Patient/1"}`), scanned(t, "Practitioner/seen", ""), scanned(t, "Practitioner/hidden", ""),
				observation("1", "final", "seen"), observation("2", "amended", "hidden"),
			)
			w.advance(2 * time.Second)
			q := export.Request{URL: "x", Since: fhir.None, Upto: fhir.None, Access: &export.Access{
				Owner: "#1", Rights: smart.Parse("system/Patient.rs system/Encounter.rs system/Practitioner.rs system/Observation.rs?status=final"),
			}}
			q.By, _ = fhir.ParseType(by)
			id := start(t, w.jobs, q)
			stop := runs(t, w.jobs)
			synctest.Wait()
			stop()
			lines, _ := w.held(id)
			text := strings.Join(lines, "")
			if !strings.Contains(text, `"id":"seen"`) || strings.Contains(text, "hidden") {
				t.Errorf("blocks of %s:\n%s", by, text)
			}
		})
	}
}
