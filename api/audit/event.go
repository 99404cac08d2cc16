package audit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The line of an Event is a FHIR R4 AuditEvent. Its id is the link of the chain, so
// whoever loads a line twice has it once.

type auditEvent struct {
	Type     coding   `json:"type"`
	Subtype  []coding `json:"subtype"`
	Action   string   `json:"action"`
	Recorded string   `json:"recorded"`
	Outcome  Outcome  `json:"outcome"`
	Desc     string   `json:"outcomeDesc,omitempty"`
	Agent    []agent  `json:"agent"`
	Source   source   `json:"source"`
	Entity   []entity `json:"entity,omitempty"`
}

type coding struct {
	System  string `json:"system,omitempty"`
	Code    string `json:"code"`
	Display string `json:"display,omitempty"`
}

type agent struct {
	Who       *reference `json:"who,omitempty"`
	AltID     string     `json:"altId,omitempty"`
	Name      string     `json:"name,omitempty"`
	Requestor bool       `json:"requestor"`
	Network   *network   `json:"network,omitempty"`
}

type reference struct {
	Reference  string      `json:"reference,omitempty"`
	Identifier *identifier `json:"identifier,omitempty"`
	Display    string      `json:"display,omitempty"`
}

type identifier struct {
	System string `json:"system,omitempty"`
	Value  string `json:"value"`
}

type network struct {
	Address string `json:"address"`
	Type    string `json:"type"`
}

type source struct {
	Observer reference `json:"observer"`
}

type entity struct {
	What   *reference `json:"what,omitempty"`
	Type   coding     `json:"type"`
	Role   coding     `json:"role"`
	Detail []detail   `json:"detail,omitempty"`
}

type detail struct {
	Type   string `json:"type"`
	String string `json:"valueString,omitempty"`
	Bytes  []byte `json:"valueBase64Binary,omitempty"`
}

const (
	dicom      = "http://dicom.nema.org/resources/ontology/DCM"
	hl7        = "http://terminology.hl7.org/CodeSystem/"
	actions    = "urn:tidemark:audit"  // what we call an Action
	clientIDs  = "urn:tidemark:client" // where no other issuer has a name for them
	users      = "urn:tidemark:user"   // of the operating system
	jobIDs     = "urn:tidemark:job"
	ipAddress  = "2" // of network types
	maxName    = 256 // characters that are kept of a client's id and the like: strangers choose them
	timeFormat = "2006-01-02T15:04:05.000Z"
)

// kinds are FHIR's words for the actions: type, and what is done to the entities.
var kinds = map[Action]struct {
	typ    coding
	action string
}{
	KickOff:  {coding{hl7 + "audit-event-type", "rest", "RESTful Operation"}, "E"},
	Download: {coding{dicom, "110106", "Export"}, "R"},
	Read:     {coding{hl7 + "audit-event-type", "rest", "RESTful Operation"}, "R"},
	Publish:  {coding{dicom, "110106", "Export"}, "C"},
	Delete:   {coding{hl7 + "audit-event-type", "rest", "RESTful Operation"}, "D"},
	Token:    {coding{dicom, "110114", "User Authentication"}, "E"},
	Refused:  {coding{dicom, "110113", "Security Alert"}, "E"},
	Client:   {coding{dicom, "110113", "Security Alert"}, "U"},
	Command:  {coding{dicom, "110100", "Application Activity"}, "E"},
	Begin:    {coding{dicom, "110101", "Audit Log Used"}, "C"},
	Lost:     {coding{dicom, "110101", "Audit Log Used"}, "U"},
}

var (
	aPerson   = coding{hl7 + "audit-entity-type", "1", "Person"}
	anObject  = coding{hl7 + "audit-entity-type", "2", "System Object"}
	aPatient  = coding{hl7 + "object-role", "1", "Patient"}
	aResource = coding{hl7 + "object-role", "4", "Domain Resource"}
	aJob      = coding{hl7 + "object-role", "20", "Job"}
	aQuery    = coding{hl7 + "object-role", "24", "Query"}
)

// encode is the line of an Event without its beginning, which holds the chain.
func (e *Event) encode(observer string) []byte {
	k := kinds[e.Action]
	a := auditEvent{
		Type: k.typ, Subtype: []coding{{System: actions, Code: string(e.Action)}}, Action: k.action,
		Recorded: e.Time.UTC().Format(timeFormat), Outcome: cmp.Or(e.Outcome, Done), Desc: clean(e.Reason),
		Agent: []agent{e.agent()}, Source: source{reference{Display: observer}}, Entity: e.entities(),
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(a) // strings and slices of them cannot fail to encode
	return bytes.TrimSuffix(bytes.TrimPrefix(b.Bytes(), []byte("{")), []byte("\n"))
}

func (e *Event) agent() agent {
	a := agent{Requestor: true}
	switch {
	case clean(e.User) != "":
		a.Who = &reference{Identifier: &identifier{users, clean(e.User)}}
	case clean(e.Client) != "":
		a.Who = &reference{Identifier: &identifier{cmp.Or(clean(e.Issuer), clientIDs), clean(e.Client)}}
	case e.Action == Begin || e.Action == Lost || e.Action == Publish:
		a.Name, a.Requestor = "the server", false
	default:
		a.Name = "nobody knows who"
	}
	if e.Serial != 0 {
		a.AltID = strconv.FormatUint(e.Serial, 10)
	}
	if address := clean(e.Remote); address != "" {
		a.Network = &network{address, ipAddress}
	}
	return a
}

func (e *Event) entities() []entity {
	what := entity{Type: anObject, Role: aJob, Detail: e.facts()}
	if e.Job != "" {
		what.What = &reference{Identifier: &identifier{jobIDs, clean(e.Job)}}
	}
	var list []entity
	if what.What != nil || len(what.Detail) > 0 {
		list = append(list, what)
	}
	if e.Group != "" {
		ref := "Group/" + e.Group
		if e.GroupVersion != "" {
			ref += "/_history/" + e.GroupVersion
		}
		list = append(list, entity{What: &reference{Reference: ref}, Type: anObject, Role: aResource})
	}
	if e.Resource != "" {
		r := entity{What: &reference{Reference: e.Resource}, Type: anObject, Role: aResource}
		if strings.HasPrefix(e.Resource, "Patient/") {
			r.Type, r.Role = aPerson, aPatient
		}
		list = append(list, r)
	}
	if len(e.Parameters) > 0 {
		q := entity{Type: anObject, Role: aQuery}
		for _, p := range e.Parameters {
			q.Detail = append(q.Detail, newDetail(p.Name, p.told()))
		}
		list = append(list, q)
	}
	return list
}

// secrets are parameters by which clients prove who they are. Some send them where they do
// not belong, in the URL of a kick-off (RFC 6750, 2.3): there they open nothing, elsewhere
// they may.
var secrets = []string{"access_token", "id_token", "client_assertion", "client_secret", "refresh_token"}

// told is the value as it stands in the trail.
func (p Parameter) told() string {
	if slices.Contains(secrets, strings.ToLower(p.Name)) {
		return "(secret)"
	}
	return p.Value
}

// facts are what FHIR has no place for, in the order in which people read them.
func (e *Event) facts() (list []detail) {
	add := func(name, value string) {
		if value != "" {
			list = append(list, newDetail(name, value))
		}
	}
	number := func(name string, n int64) {
		if n != 0 {
			add(name, strconv.FormatInt(n, 10))
		}
	}
	instant := func(name string, t time.Time) {
		if !t.IsZero() {
			add(name, t.UTC().Format(timeFormat))
		}
	}
	add("phase", string(e.Phase))
	add("pair", e.Pair)
	add("command", e.Command)
	add("token", clean(e.TokenID))
	add("level", e.Level)
	instant("transactionTime", e.W)
	instant("since", e.Since)
	instant("until", e.Until)
	add("types", strings.Join(e.Types, ","))
	add("scopes", e.Scopes)
	if e.Withheld {
		add("withheld", "by policy")
	}
	add("file", e.File)
	add("kind", e.Kind)
	number("parts", int64(e.Parts))
	add("range", clean(e.Range))
	number("bytes", e.Bytes)
	number("rows", e.Rows)
	number("status", int64(e.Status))
	return list
}

// nothing stands for a value that is empty, which FHIR cannot say.
const nothing = "(empty)"

// newDetail keeps a value exactly: one that is no string of FHIR's as its bytes.
func newDetail(name, value string) detail {
	d := detail{Type: cmp.Or(clean(name), nothing)}
	switch {
	case value == "":
		d.String = nothing
	case clear(value):
		d.String = value
	default:
		d.Bytes = []byte(value)
	}
	return d
}

func (d *detail) value() string {
	if d.Bytes != nil {
		return string(d.Bytes)
	}
	if d.String == nothing {
		return ""
	}
	return d.String
}

func clear(s string) bool {
	return utf8.ValidString(s) && strings.TrimSpace(s) == s && strings.IndexFunc(s, unprintable) < 0
}

func unprintable(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }

// clean is a short string from outside, cut and without what could disturb a terminal.
func clean(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if r == utf8.RuneError || unprintable(r) {
			continue
		}
		if n++; n > maxName {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// decode is what encode was given.
func decode(line []byte) (*Event, error) {
	var a auditEvent
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, err
	}
	if len(a.Subtype) != 1 || len(a.Agent) != 1 {
		return nil, fmt.Errorf("an AuditEvent of somebody else's")
	}
	at, err := time.Parse(timeFormat, a.Recorded)
	if err != nil {
		return nil, err
	}
	e := &Event{Time: at, Action: Action(a.Subtype[0].Code), Outcome: a.Outcome, Reason: a.Desc}
	e.setAgent(&a.Agent[0])
	for i := range a.Entity {
		e.setEntity(&a.Entity[i])
	}
	return e, nil
}

func (e *Event) setAgent(a *agent) {
	if a.Who != nil && a.Who.Identifier != nil {
		switch id := a.Who.Identifier; id.System {
		case users:
			e.User = id.Value
		case clientIDs:
			e.Client = id.Value
		default:
			e.Issuer, e.Client = id.System, id.Value
		}
	}
	e.Serial, _ = strconv.ParseUint(a.AltID, 10, 64) // none is 0
	if a.Network != nil {
		e.Remote = a.Network.Address
	}
}

func (e *Event) setEntity(x *entity) {
	switch {
	case x.Role.Code == aQuery.Code:
		for _, d := range x.Detail {
			e.Parameters = append(e.Parameters, Parameter{d.Type, d.value()})
		}
	case x.Role.Code == aJob.Code:
		if x.What != nil && x.What.Identifier != nil {
			e.Job = x.What.Identifier.Value
		}
		for _, d := range x.Detail {
			e.setFact(d.Type, d.value())
		}
	case x.What == nil:
	case e.Group == "" && e.Resource == "" && strings.HasPrefix(x.What.Reference, "Group/") && e.Action != Read:
		id, version, _ := strings.Cut(strings.TrimPrefix(x.What.Reference, "Group/"), "/_history/")
		e.Group, e.GroupVersion = id, version
	default:
		e.Resource = x.What.Reference
	}
}

func (e *Event) setFact(name, value string) {
	instant := func(to *time.Time) { *to, _ = time.Parse(timeFormat, value) }
	number := func(to *int64) { *to, _ = strconv.ParseInt(value, 10, 64) }
	switch name {
	case "phase":
		e.Phase = Phase(value)
	case "pair":
		e.Pair = value
	case "command":
		e.Command = value
	case "token":
		e.TokenID = value
	case "level":
		e.Level = value
	case "transactionTime":
		instant(&e.W)
	case "since":
		instant(&e.Since)
	case "until":
		instant(&e.Until)
	case "types":
		e.Types = strings.Split(value, ",")
	case "scopes":
		e.Scopes = value
	case "file":
		e.File = value
	case "kind":
		e.Kind = value
	case "withheld":
		e.Withheld = true
	case "parts":
		e.Parts, _ = strconv.Atoi(value)
	case "range":
		e.Range = value
	case "bytes":
		number(&e.Bytes)
	case "rows":
		number(&e.Rows)
	case "status":
		e.Status, _ = strconv.Atoi(value)
	}
}
