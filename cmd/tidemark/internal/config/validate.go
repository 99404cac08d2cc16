package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/api/bulk"
	"tidemark/store/fhir"
)

// openDataRisk is said wherever data would be open to others. Whoever reads it
// must understand it without knowing us.
const openDataRisk = "without tokens everyone who can reach it can download all patients' data; " +
	"give them out with auth.mode: builtin, use a loopback address such as 127.0.0.1, or accept the risk with auth.allow_open_data: true"

// finish fills in what follows from other values.
func (l *loader) finish() {
	for i := range l.Topics {
		if l.Topics[i].StopAfter == nil {
			l.Topics[i].StopAfter = new(defaultStopAfter)
		}
	}
	_, set := l.origins["http.public_url"]
	if _, port, err := net.SplitHostPort(l.HTTP.Listen); err == nil && !set {
		l.HTTP.PublicURL = l.scheme() + "://127.0.0.1:" + port + "/fhir"
		if l.HTTP.PublicURL != defaultBase {
			l.origins["http.public_url"] = "follows http.listen"
		}
	}
}

func (l *loader) scheme() string {
	if l.HTTP.TLS.CertFile != "" {
		return "https"
	}
	return "http"
}

func (l *loader) validate() {
	l.validateEnums()
	l.validateSizes()
	l.validateHTTP()
	l.validateAdmin()
	l.validateOutside()
	l.validateAuth()
	l.validateKafka()
	l.validateTopics()
	l.validateGroups()
	l.validateLoad()
	l.validatePresets()
	l.validatePublish()
	l.validateWithhold(&l.Withhold, "withhold.")
	for _, b := range l.Resources.OwnBases {
		if !isHTTPURL(b) {
			l.invalid("resources.own_bases", "%q is not a URL such as http://hapi:8080/fhir", b)
		}
	}
	if e := l.Telemetry.OTLPEndpoint; e != "" && !isHTTPURL(e) {
		l.invalid("telemetry.otlp_endpoint", "is not a URL such as http://127.0.0.1:4318")
	}
	if s := l.Telemetry.Sample; !(s >= 0 && s <= 1) {
		l.invalid("telemetry.sample", "%v is not between 0 and 1", s)
	}
}

func (l *loader) validateEnums() {
	l.each(func(path string, k key, v reflect.Value) {
		if k.enum == nil || slices.Contains(k.enum, v.String()) {
			return
		}
		choices := make([]string, 0, len(k.enum))
		for _, c := range k.enum {
			if c == "" {
				c = `""`
			}
			choices = append(choices, c)
		}
		if v.String() == "" {
			l.invalid(path, "is missing: one of %s", strings.Join(choices, ", "))
			return
		}
		l.invalid(path, "%q is not one of %s", v.String(), strings.Join(choices, ", "))
	})
}

// each calls f for every value, list elements included.
func (l *loader) each(f func(path string, k key, v reflect.Value)) {
	eachField("", reflect.ValueOf(&l.Config).Elem(), f)
}

func eachField(prefix string, section reflect.Value, f func(path string, k key, v reflect.Value)) {
	for field, v := range section.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		path := join(prefix, name)
		switch {
		case isSection(v.Type()):
			eachField(path, v, f)
		case isList(v.Type()):
			for i := range v.Len() {
				eachField(fmt.Sprintf("%s[%d]", path, i), v.Index(i), f)
			}
		default:
			k, _ := find(path)
			f(path, k, v)
		}
	}
}

func (l *loader) validateSizes() {
	if l.Store.Path == "" {
		l.invalid("store.path", "names no directory")
	}
	l.positive("commit.interval", l.Commit.Interval)
	l.positive("watermark.allowance", l.Watermark.Allowance)
	l.positive("watermark.max_clock_step", l.Watermark.MaxClockStep)
	if l.Store.Scrub < 0 {
		l.invalid("store.scrub", "%v is less than 0", l.Store.Scrub)
	}
	l.positive("compaction.settle_after", l.Compaction.SettleAfter)
	l.positive("retention.deleted", l.Retention.Deleted)
	l.positive("retention.last_state", l.Retention.LastState)
	l.positive("retention.dead_letters", l.Retention.DeadLetters)
	if c := l.Compaction.Cores; !(c > 0 && c <= 1) {
		l.invalid("compaction.cores", "%v is not more than 0 and at most 1", c)
	}
	if r := l.Retention; r.LastState > r.Deleted {
		l.invalid("retention.last_state", "%v is longer than retention.deleted, %v: a deletion cannot go before what it deleted", r.LastState, r.Deleted)
	}
	l.atLeast("compaction.write_rate", l.Compaction.WriteRate, 1<<20)
	l.positive("export.expires", l.Export.Expires)
	l.positive("export.retry_after", l.Export.RetryAfter)
	l.atLeast("store.cache", l.Store.Cache, 1<<20)
	l.atLeast("commit.max_size", l.Commit.MaxSize, 1<<20)
	l.atLeast("kafka.max_record", l.Kafka.MaxRecord, 64<<10)
	l.atLeast("export.file.max_bytes", l.Export.File.MaxBytes, 1<<10)
	l.atLeast("limits.body", l.Limits.Body, 1<<10)
	l.some("limits.jobs", l.Limits.Jobs)
	l.some("limits.jobs_kept", l.Limits.JobsKept)
	l.bound("limits.jobs_per_client", l.Limits.JobsPerClient)
	l.bound("limits.jobs_per_client_day", l.Limits.JobsPerClientDay)
	l.positive("capability.ttl", l.Capability.TTL)
	if l.Audit.Keep < 0 {
		l.invalid("audit.keep", "%v is less than 0", l.Audit.Keep)
	}
	l.validateAuditTopic()
	l.validateDeadLetterTopic()
	if l.Capability.Enabled && l.AuthMode() == "none" {
		l.invalid("capability.enabled", "signs URLs of files, which anybody may read with auth.mode none: take it out, or ask for tokens")
	}
	l.some("limits.polls_per_minute", l.Limits.PollsPerMinute)
	l.bound("limits.connections", l.Limits.Connections)
	l.bound("limits.connections_per_address", l.Limits.ConnectionsPerAddress)
	if w := l.Export.Workers; w != 0 && (w < 2 || w > maxWorkers) {
		l.invalid("export.workers", "must be 0 (half of the processors), or 2 to %d", maxWorkers)
	}
	l.bound("export.file.max_resources", l.Export.File.MaxResources)
}

// maxWorkers is more than any machine has use for: beyond it somebody has
// mistaken the key.
const maxWorkers = 1024

func (l *loader) positive(path string, d Duration) {
	if d <= 0 {
		l.invalid(path, "must be more than 0")
	}
}

func (l *loader) some(path string, n int) {
	if n < 1 {
		l.invalid(path, "must be at least 1")
	}
}

func (l *loader) bound(path string, n int) {
	if n < 0 {
		l.invalid(path, "must be 0 (no bound) or more")
	}
}

func (l *loader) atLeast(path string, got, want Bytes) {
	if got < want {
		l.invalid(path, "%s is too little: at least %s", got, want)
	}
}

// validateHTTP holds the rule that data is open to nobody else unless the
// operator says so in as many words.
func (l *loader) validateHTTP() {
	l.listener("http.listen", l.HTTP.Listen, l.AuthMode() != "none", openDataRisk)
	l.publicURL()
	l.both("http.tls.cert_file", l.HTTP.TLS.CertFile, "http.tls.key_file", l.HTTP.TLS.KeyFile)
	if l.HTTP.TLS.ClientCAFile != "" && l.HTTP.TLS.CertFile == "" {
		l.invalid("http.tls.client_ca_file", "asks for clients' certificates without TLS: http.tls.cert_file and http.tls.key_file are missing")
	}
}

// listener checks an address to listen on, which others may reach if it is guarded.
func (l *loader) listener(path, address string, guarded bool, risk string) {
	host, ok := l.hostPort(path, address)
	if !ok {
		return
	}
	if !guarded && !l.Auth.AllowOpenData && !IsLoopback(host) {
		l.invalid(path, "%s is not a loopback address: %s", address, risk)
	}
}

// hostPort is the host of an address to listen on.
func (l *loader) hostPort(path, address string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || n > 65535 {
		l.invalid(path, "%q is not host:port", address)
		return "", false
	}
	return host, true
}

// validateAdmin: what has no password is on loopback, unless the operator says in as
// many words that its address is a network of his own.
func (l *loader) validateAdmin() {
	const path = "admin.listen"
	address := l.Admin.Listen
	if address == "" {
		return
	}
	host, ok := l.hostPort(path, address)
	if ok && !l.Admin.AllowOpen && !IsLoopback(host) {
		l.invalid(path, "%s is not a loopback address: metrics and profiles have no password; use a loopback address such as 127.0.0.1, or accept the risk with admin.allow_open: true", address)
	}
	if address == l.HTTP.Listen && !strings.HasSuffix(address, ":0") {
		l.invalid(path, "is http.listen too: leave it empty to have /metrics there")
	}
}

func (l *loader) publicURL() {
	const path = "http.public_url"
	u, err := url.Parse(l.HTTP.PublicURL)
	switch {
	case err == nil && u.Port() == "0":
		l.invalid(path, "is needed when the system chooses the port of http.listen")
	case err != nil || !isHTTPURL(l.HTTP.PublicURL):
		l.invalid(path, "is not a URL such as https://fhir.example.org/fhir")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/"):
		l.invalid(path, "must end with the path of the FHIR base: no user, no query, no slash at the end")
	case l.AuthMode() == "none" && !l.Auth.AllowOpenData && !IsLoopback(u.Hostname()):
		l.invalid(path, "%s is not a loopback address: %s", u.Host, openDataRisk)
	}
}

func isHTTPURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

// validateOutside: whom browsers and the audit believe.
func (l *loader) validateOutside() {
	for _, o := range l.HTTP.CORS.Origins {
		if reason := notOrigin(o); reason != "" {
			l.invalid("http.cors.origins", "%q %s: right is an origin as browsers send it, such as https://app.example.org", o, reason)
		}
	}
	for _, p := range l.HTTP.TrustedProxies {
		if _, err := parsePrefix(p); err != nil {
			l.invalid("http.trusted_proxies", "%q is no address or network, such as 10.0.0.1 or 10.0.0.0/8", p)
		}
	}
}

// notOrigin tells why a text is not what browsers send as Origin (RFC 6454, section 7),
// "" if it may be.
func notOrigin(s string) string {
	switch u, err := url.Parse(s); {
	case strings.Contains(s, "*"):
		return "stands for pages that nobody knows"
	case s == "null":
		return "is what any page can send that hides its origin"
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return "is no URL"
	case s != u.Scheme+"://"+u.Host || s != strings.ToLower(s):
		return "has more than a scheme, a host and a port, or capitals"
	case u.Scheme == "http" && u.Port() == "80" || u.Scheme == "https" && u.Port() == "443":
		return "has a port that browsers leave out"
	}
	return ""
}

// parsePrefix reads a network, or the network of one address.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// Proxies are the networks of TrustedProxies.
func (h *HTTP) Proxies() []netip.Prefix {
	var all []netip.Prefix
	for _, s := range h.TrustedProxies {
		p, _ := parsePrefix(s) // was checked
		all = append(all, p)
	}
	return all
}

// IsLoopback: only programs on this machine reach the host. Of names only
// localhost is believed, since any other may resolve to anything tomorrow.
func IsLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// both: two files that make sense only together.
func (l *loader) both(a, aFile, b, bFile string) {
	switch {
	case aFile != "" && bFile == "":
		l.invalid(b, "is missing while %s is set", a)
	case aFile == "" && bFile != "":
		l.invalid(a, "is missing while %s is set", b)
	}
}

func (l *loader) validateKafka() {
	k := &l.Kafka
	if len(k.Brokers) == 0 {
		l.invalid("kafka.brokers", "names no broker")
	}
	for _, b := range k.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			l.invalid("kafka.brokers", "%q is not host:port", b)
		}
	}
	l.both("kafka.tls.cert_file", k.TLS.CertFile, "kafka.tls.key_file", k.TLS.KeyFile)
	if !k.TLS.Enabled && (k.TLS.CAFile != "" || k.TLS.CertFile != "") {
		l.invalid("kafka.tls.enabled", "is false while files for TLS are named")
	}
	if k.SASL.Mechanism == "" {
		if k.SASL.Username != "" || k.SASL.PasswordFile != "" {
			l.invalid("kafka.sasl.mechanism", "is missing while a user or password file is named")
		}
		return
	}
	if k.SASL.Username == "" {
		l.invalid("kafka.sasl.username", "is missing for %s", k.SASL.Mechanism)
	}
	if k.SASL.PasswordFile == "" {
		l.invalid("kafka.sasl.password_file", "is missing for %s", k.SASL.Mechanism)
	}
}

// legalTopic is Kafka's own rule.
var legalTopic = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)

func (l *loader) validateTopics() {
	if len(l.Topics) == 0 {
		l.invalid("topics", "names no topic")
	}
	seen := map[string]bool{}
	for i, t := range l.Topics {
		at := fmt.Sprintf("topics[%d].", i)
		switch {
		case (t.Name == "") == (t.Pattern == ""):
			l.invalid(at+"name", "needs either a name or a pattern")
		case t.Name != "" && !legalTopic.MatchString(t.Name):
			l.invalid(at+"name", "%q is no name of a Kafka topic; for several topics write a pattern", t.Name)
		case seen[t.Name+"\n"+t.Pattern] && t.Name == "":
			l.invalid(at+"pattern", "is listed twice")
		case seen[t.Name+"\n"+t.Pattern]:
			l.invalid(at+"name", "is listed twice")
		case t.Name != "":
			l.reachable(i)
		}
		seen[t.Name+"\n"+t.Pattern] = true
		if _, err := regexp.Compile(t.Pattern); err != nil {
			l.invalid(at+"pattern", "is not a regular expression: %s", err)
		}
		if *t.StopAfter < 0 {
			l.invalid(at+"stop_after", "must be 0 (never) or more")
		}
		for _, name := range t.DropTypes {
			if _, ok := fhir.ParseType(name); !ok {
				l.invalid(at+"drop_types", "%q is not a FHIR R4 resource type", name)
			}
		}
		l.validateTables(at, &t)
	}
}

// reachable: of several entries that read a topic the first counts, so one of its own behind a pattern
// that reads it otherwise says nothing.
func (l *loader) reachable(i int) {
	own := l.Topics[i]
	first := slices.IndexFunc(l.Topics, func(t Topic) bool { return t.Reads(own.Name) })
	if first >= i {
		return
	}
	before := l.Topics[first]
	before.Name, before.Pattern = own.Name, own.Pattern
	if !reflect.DeepEqual(before, own) {
		l.invalid(fmt.Sprintf("topics[%d].name", i), "is read by topics[%d] already, in another way, and the first is what counts: put this entry before it", first)
	}
}

// optionalColumns are the keys of a Table whose column rows may lack.
var optionalColumns = []string{"version", "last_updated", "deleted", "skip"}

// validateTables looks at what topics say of tables.
func (l *loader) validateTables(at string, t *Topic) {
	ofTables := t.Format == "debezium" || t.Format == "avro"
	switch {
	case ofTables && t.Preset == "" && len(t.Tables) == 0:
		l.invalid(at+"tables", "must say what the columns mean, unless preset names a FHIR server")
	case t.Format == "avro" && l.SchemaRegistry.URL == "":
		l.invalid(at+"format", "is avro, whose records name schemas of a registry: say where that is (schema_registry.url)")
	}
	for _, key := range []struct {
		name string
		set  bool
	}{{"preset", t.Preset != ""}, {"tables", len(t.Tables) > 0}, {"time_zone", t.TimeZone != ""}} {
		if key.set && !ofTables {
			l.invalid(at+key.name, "is for the formats debezium and avro")
		}
	}
	if t.Mixed && t.Format != "bundle" {
		l.invalid(at+"mixed", "goes with the format bundle only")
	}
	if t.Preset == "hapi" && (t.Format != "debezium" || len(t.Tables) > 0) {
		l.invalid(at+"preset", "hapi goes with the format debezium, and without tables of one's own")
	}
	if _, err := time.LoadLocation(t.TimeZone); err != nil {
		l.invalid(at+"time_zone", "%q is no time zone that is known here", t.TimeZone)
	}
	named := map[string]bool{}
	for i, table := range t.Tables {
		at := fmt.Sprintf("%stables[%d].", at, i)
		if named[table.Name] {
			l.invalid(at+"name", "is listed twice, and the first is what counts")
		}
		named[table.Name] = true
		if _, err := regexp.Compile(table.Name); err != nil {
			l.invalid(at+"name", "is not a regular expression: %s", err)
		}
		if _, known := fhir.ParseType(table.Type); table.Type != "" && !known {
			l.invalid(at+"type", "%q is not a FHIR R4 resource type", table.Type)
		}
		if table.Body == "" && !table.Ignore {
			l.invalid(at+"body", "must name the column that holds the resource")
		}
		for i, key := range table.Optional {
			if !slices.Contains(optionalColumns, key) {
				l.invalid(fmt.Sprintf("%soptional[%d]", at, i), "%q is none of %s", key, strings.Join(optionalColumns, ", "))
			}
		}
	}
}

// validateGroups: what is written must be read, too, or nobody would notice
// that it is not.
func (l *loader) validateGroups() {
	const path = "groups.topic"
	if i := l.readsAsResources(path, l.Groups.Topic, "Groups"); i >= 0 && slices.Contains(l.Topics[i].DropTypes, "Group") {
		l.invalid(path, "topics[%d].drop_types passes over the Groups in %s", i, l.Groups.Topic)
	}
}

func (l *loader) validateLoad() { l.readsAsResources("load.topic", l.Load.Topic, "what is loaded") }

// readsAsResources is which entry of topics reads a topic that we write to ourselves, -1
// if there is none or something is wrong.
func (l *loader) readsAsResources(path, name, what string) int {
	if name == "" {
		return -1
	}
	if !legalTopic.MatchString(name) {
		l.invalid(path, "%q is no name of a Kafka topic", name)
		return -1
	}
	i := slices.IndexFunc(l.Topics, func(t Topic) bool { return t.Reads(name) })
	switch {
	case i < 0:
		l.invalid(path, "no entry of topics reads %s: add one, - {name: %s, format: resource}", name, name)
	case l.Topics[i].Format != "resource":
		l.invalid(path, "topics[%d] reads %s with another format than resource: %s would be dead letters", i, name, what)
		return -1
	}
	return i
}

// reader is the place of the topic's entry among those that are read, -1 if it is not read.
func (l *loader) reader(topic string) int {
	return slices.IndexFunc(l.Topics, func(t Topic) bool { return t.Reads(topic) })
}

// validateAuditTopic: what is read as FHIR changes must not be what is on record of them.
func (l *loader) validateAuditTopic() {
	const path = "audit.topic"
	name := l.Audit.Topic
	switch {
	case name == "":
	case !legalTopic.MatchString(name):
		l.invalid(path, "%q is no name of a Kafka topic", name)
	case !l.Audit.Enabled:
		l.invalid(path, "nothing would be written there: audit.enabled is false")
	default:
		if i := l.reader(name); i >= 0 {
			l.invalid(path, "topics[%d] reads %s, and AuditEvents would become resources: choose another topic", i, name)
		}
	}
}

// validateDeadLetterTopic: what is written there must not come back.
func (l *loader) validateDeadLetterTopic() {
	const path = "dead_letters.topic"
	name := l.DeadLetters.Topic
	switch {
	case name == "":
	case !legalTopic.MatchString(name):
		l.invalid(path, "%q is no name of a Kafka topic", name)
	case name == l.Audit.Topic:
		l.invalid(path, "%s is audit.topic: choose another topic", name)
	default:
		if i := l.reader(name); i >= 0 {
			l.invalid(path, "topics[%d] reads %s, and what cannot be decoded would come again without end: choose another topic", i, name)
		}
	}
}

func (l *loader) validatePresets() {
	for _, name := range slices.Sorted(maps.Keys(l.Presets)) {
		path, types := "presets."+name, l.Presets[name]
		if err := bulk.CheckPreset(name); err != nil {
			l.invalid(path, "%s", err)
		}
		if len(types) == 0 {
			l.invalid(path, "names no resource type")
		}
		if wrong := unknownTypes(types); len(wrong) > 0 {
			l.invalid(path, "not resource types of FHIR R4: %s", strings.Join(wrong, ", "))
		}
	}
}

func unknownTypes(names []string) (wrong []string) {
	for _, name := range names {
		if _, ok := fhir.ParseType(name); !ok {
			wrong = append(wrong, strconv.Quote(name)+didYouMean(name, typeNames()))
		}
	}
	return wrong
}

func typeNames() (names []string) {
	for _, t := range fhir.AllTypes() {
		names = append(names, t.String())
	}
	return names
}

// Reads tells whether the topic called name is meant.
func (t Topic) Reads(name string) bool {
	if t.Pattern == "" {
		return t.Name == name
	}
	whole, err := WholeName(t.Pattern)
	return err == nil && whole.MatchString(name)
}

// WholeName makes a topic pattern match names as a whole: ^fhir alone is not
// meant to take fhir-test, too. Of no pattern it makes nil.
func WholeName(pattern string) (*regexp.Regexp, error) {
	if pattern == "" {
		return nil, nil
	}
	return regexp.Compile(`\A(?:` + pattern + `)\z`)
}

// validatePublish holds the rule that nothing is shown to everybody that may be
// about a patient.
func (l *loader) validatePublish() {
	p := &l.Publish
	if wrong := unknownTypes(p.Types); len(wrong) > 0 {
		l.invalid("publish.types", "not resource types of FHIR R4: %s", strings.Join(wrong, ", "))
	}
	var never []string
	for _, name := range p.Types {
		if t, ok := fhir.ParseType(name); ok && fhir.MayNamePatient(t) {
			never = append(never, name)
		}
	}
	if slices.Contains(p.Types, fhir.Binary.String()) {
		l.invalid("publish.types", "Binary is never published: it may belong to a patient's data; take it out")
	}
	if p.Public && never != nil {
		l.invalid("publish.types", "%s can be about a patient and so is never public: take it out, or set publish.public: false", strings.Join(never, ", "))
	}
	if !p.Public && never != nil && len(l.Withhold.Groups) > 0 {
		l.invalid("publish.types", "%s can be about a patient, and what is published is not narrowed by withhold.groups: take it out", strings.Join(never, ", "))
	}
	if p.Every < second {
		l.invalid("publish.every", "%v is too little: at least 1s", p.Every)
	}
	if p.SnapshotEvery < p.Every {
		l.invalid("publish.snapshot_every", "%v is shorter than publish.every, %v", p.SnapshotEvery, p.Every)
	}
	if p.Grace < p.Every {
		l.invalid("publish.grace", "%v is shorter than publish.every, %v: pages would go before anybody comes for them", p.Grace, p.Every)
	}
}

// Loopback: only programs on this machine reach http.listen.
func (h *HTTP) Loopback() bool {
	host, _, err := net.SplitHostPort(h.Listen)
	return err == nil && IsLoopback(host)
}
