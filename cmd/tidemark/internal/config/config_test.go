package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tidemark/pipeline/decode"
)

// write puts text into a file and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tidemark.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// faults loads and returns one line per fault, with the file named tidemark.yaml.
func faults(t *testing.T, s Source) []string {
	t.Helper()
	_, err := Load(s)
	if err == nil {
		return nil
	}
	all, ok := errors.AsType[Faults](err)
	if !ok {
		t.Fatalf("Load: got error %T %v, want Faults", err, err)
	}
	var lines []string
	for _, f := range all {
		f.Where = strings.TrimPrefix(f.Where, filepath.Dir(s.File)+string(filepath.Separator))
		lines = append(lines, f.String())
	}
	return lines
}

func load(t *testing.T, s Source) *Loaded {
	t.Helper()
	l, err := Load(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLaterSourcesWin(t *testing.T) {
	file := write(t, "commit: {interval: 1s, max_size: 8MiB}\nlimits: {jobs: 7}\n")
	env := []string{"TIDEMARK_COMMIT_INTERVAL=2s", "TIDEMARK_LIMITS_JOBS=8", "PATH=/bin"}
	l := load(t, Source{File: file, Environ: env, Set: []string{"limits.jobs=9"}})
	got := []any{l.Watermark.Allowance, l.Commit.MaxSize, l.Commit.Interval, l.Limits.Jobs}
	want := []any{Duration(time.Second), Bytes(8 << 20), Duration(2 * time.Second), 9}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for path, origin := range map[string]string{
		"watermark.allowance": "default",
		"commit.max_size":     file + ":1",
		"commit.interval":     "environment TIDEMARK_COMMIT_INTERVAL",
		"limits.jobs":         "--set limits.jobs",
	} {
		if got := l.Origin(path); got != origin {
			t.Errorf("origin of %s: got %q, want %q", path, got, origin)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	file := write(t, `store: {path: ./data, cach: 96MiB}
commit:
  interval: 5
  max_size: big
http:
  listen: 0.0.0.0:8080
  public_url: https://fhir.example.org/fhir/
kafka:
  brokers: [localhost]
  sasl: {mechanism: PLAN}
topics:
  - name: fhir-changes
    pattern: ^fhir
    stop_after: many
  - format: csv
    name: other
    drop_types: [Binary, Patiant]
export:
  expires:
limits: 5
limit: {jobs: 3}
commit: {}
watermark: {allowance: -1s, max_clock_step: 1s, max_clock_step: 2s}
telemetry: {sample: 2, otlp_endpoint: {a: b}}
resources: {inject_meta: perhaps, own_bases: [hapi/fhir]}
`)
	got := faults(t, Source{
		File:    file,
		Environ: []string{"TIDEMARK_HTTP_LISTN=:80", "TIDEMARK_LIMITS_JOBS=x", "TIDEMARK_TOPICS_3_NAME=far"},
		Set:     []string{"export.retry_after=1", "log.levl=info", "nonsense"},
	})
	golden(t, "faults.txt", strings.Join(got, "\n")+"\n")
}

func TestSyntaxFaultNamesTheLine(t *testing.T) {
	for _, text := range []string{"store:\n  path: [a\n", "a: b\n\tc: d\n", "log: {level: info}\n---\nlog: {level: warn}\n"} {
		got := faults(t, Source{File: write(t, text)})
		if len(got) != 1 || !strings.Contains(got[0], "not valid YAML") {
			t.Errorf("%q: got %q, want one fault", text, got)
		}
		t.Log(got)
	}
}

func TestMissingFile(t *testing.T) {
	got := faults(t, Source{File: filepath.Join(t.TempDir(), "none.yaml")})
	want := []string{"none.yaml: no such file or directory"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestFilesThatSayNothing(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "http:\n  # listen: 127.0.0.1:1\n"} {
		l := load(t, Source{File: write(t, text)})
		if d := cmp.Diff(*Default(), l.Config); d != "" {
			t.Errorf("%q: %s", text, d)
		}
	}
}

func TestSettingByText(t *testing.T) {
	tests := []struct {
		name    string
		environ []string
		set     []string
		want    func(*Config)
	}{
		{"list with commas", []string{"TIDEMARK_KAFKA_BROKERS=a:1, b:2"}, nil, func(c *Config) { c.Kafka.Brokers = []string{"a:1", "b:2"} }},
		{"list as in YAML", nil, []string{"kafka.brokers=[a:1, b:2]"}, func(c *Config) { c.Kafka.Brokers = []string{"a:1", "b:2"} }},
		{"empty text switches off", []string{"TIDEMARK_KAFKA_GROUP="}, nil, func(c *Config) { c.Kafka.Group = "" }},
		{"text that looks like a number", nil, []string{"kafka.group=5"}, func(c *Config) { c.Kafka.Group = "5" }},
		{"deep key", []string{"TIDEMARK_EXPORT_FILE_MAX_BYTES=1GiB"}, nil, func(c *Config) { c.Export.File.MaxBytes = 1 << 30 }},
		{"first topic", []string{"TIDEMARK_TOPICS_0_NAME=mine"}, nil, func(c *Config) { c.Topics[0].Name = "mine" }},
		{"second topic", []string{
			"TIDEMARK_TOPICS_1_NAME=b", "TIDEMARK_TOPICS_1_FORMAT=resource", "TIDEMARK_TOPICS_1_STOP_AFTER=0",
		}, nil, func(c *Config) {
			c.Topics = append(c.Topics, Topic{Name: "b", Format: "resource", StopAfter: new(0)})
		}},
		{"all topics", nil, []string{"topics=[{pattern: ^a, format: resource, drop_types: [Binary]}]"}, func(c *Config) {
			c.Topics = []Topic{{Pattern: "^a", Format: "resource", StopAfter: new(100), DropTypes: []string{"Binary"}}}
		}},
		{"one topic's list", nil, []string{"topics[0].drop_types=Binary"}, func(c *Config) { c.Topics[0].DropTypes = []string{"Binary"} }},
		{"boolean", nil, []string{"resources.inject_meta=false"}, func(c *Config) { c.Resources.InjectMeta = false }},
		{"public_url follows the port", []string{"TIDEMARK_HTTP_LISTEN=127.0.0.1:9999"}, nil, func(c *Config) {
			c.HTTP.Listen, c.HTTP.PublicURL = "127.0.0.1:9999", "http://127.0.0.1:9999/fhir"
		}},
		{"and the scheme", nil, []string{"http.tls.cert_file=c", "http.tls.key_file=k"}, func(c *Config) {
			c.HTTP.TLS = ServerTLS{CertFile: "c", KeyFile: "k"}
			c.HTTP.PublicURL = "https://127.0.0.1:8080/fhir"
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := Default()
			test.want(want)
			got := load(t, Source{Environ: test.environ, Set: test.set})
			if d := cmp.Diff(*want, got.Config); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTopicsBeyondTenComeInOrder(t *testing.T) {
	var env []string
	for _, n := range []string{"10", "9", "8", "7", "6", "5", "4", "3", "2", "1", "0"} {
		env = append(env, "TIDEMARK_TOPICS_"+n+"_FORMAT=resource", "TIDEMARK_TOPICS_"+n+"_NAME=t"+n)
	}
	if got := len(load(t, Source{Environ: env}).Topics); got != 11 {
		t.Errorf("got %d topics, want 11", got)
	}
}

// Data is open to nobody else unless the operator says so.
func TestOpenDataIsRefused(t *testing.T) {
	tests := []struct {
		set    string
		refuse bool
	}{
		{"http.listen=127.0.0.1:1", false},
		{"http.listen=127.8.8.8:1", false},
		{"http.listen=[::1]:1", false},
		{"http.listen=localhost:1", false},
		{"http.listen=:1", true},
		{"http.listen=0.0.0.0:1", true},
		{"http.listen=[::]:1", true},
		{"http.listen=10.1.2.3:1", true},
		{"http.listen=localhost.example.org:1", true},
		{"http.public_url=http://localhost:1/fhir", false},
		{"http.public_url=http://[::1]:1/fhir", false},
		{"http.public_url=https://fhir.example.org/fhir", true},
		{"http.public_url=http://127.0.0.1.example.org/fhir", true},
	}
	for _, test := range tests {
		for _, mode := range []string{"auto", "none"} {
			s := Source{Set: []string{test.set, "auth.mode=" + mode}}
			got := faults(t, s)
			refuse := test.refuse && (mode == "none" || strings.HasPrefix(test.set, "admin.listen"))
			if (len(got) > 0) != refuse {
				t.Errorf("%s, auth.mode %s: got %q, want refusal %v", test.set, mode, got, refuse)
				continue
			}
			if !refuse {
				want := "none"
				if test.refuse {
					want = "builtin" // to be public is to ask for tokens
				}
				if l := load(t, s); l.AuthMode() != want && mode == "auto" {
					t.Errorf("%s: auto is %s", test.set, l.AuthMode())
				}
			}
			if refuse && !strings.Contains(got[0], "auth.allow_open_data") {
				t.Errorf("%s: %q does not say what to do", test.set, got[0])
			}
			s.Set = append(s.Set, "auth.allow_open_data=true")
			if got := faults(t, s); got != nil {
				t.Errorf("%s with auth.allow_open_data: got %q", test.set, got)
			}
		}
	}
	got := faults(t, Source{Set: []string{"http.listen=:1", "auth.mode=none"}})
	if !strings.Contains(strings.Join(got, ""), "everyone who can reach it can download all patients' data") {
		t.Errorf("%q does not name the risk", got)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct{ set, want string }{
		{"http.listen=127.0.0.1", "is not host:port"},
		{"http.listen=127.0.0.1:70000", "is not host:port"},
		{"http.listen=127.0.0.1:0", "http.public_url: is needed"},
		{"http.public_url=fhir", "is not a URL"},
		{"http.public_url=ftp://127.0.0.1/fhir", "is not a URL"},
		{"http.public_url=http://127.0.0.1/fhir?a=b", "no query"},
		{"http.public_url=http://127.0.0.1/fhir/", "no slash"},
		{"http.tls.cert_file=c", "http.tls.key_file: is missing"},
		{"http.tls.key_file=c", "http.tls.cert_file: is missing"},
		{"admin.listen=127.0.0.1:8080", "is http.listen too"},
		{"auth.mode=basic", "is not one of auto, none, builtin, external"},
		{"kafka.brokers=", "names no broker"},
		{"kafka.brokers=a", "is not host:port"},
		{"kafka.tls.ca_file=c", "kafka.tls.enabled: is false"},
		{"kafka.sasl.mechanism=PLAIN", "kafka.sasl.username: is missing"},
		{"kafka.sasl.username=u", "kafka.sasl.mechanism: is missing"},
		{"kafka.max_record=1KiB", "too little"},
		{"topics=[]", "names no topic"},
		{"topics=[{format: resource}]", "either a name or a pattern"},
		{"topics=[{name: a b, format: resource}]", "write a pattern"},
		{"topics=[{name: a, format: resource}, {name: a, format: resource}]", "listed twice"},
		{"topics=[{pattern: ^a, format: resource}, {pattern: ^a, format: resource}]", "topics[1].pattern: is listed twice"},
		{"topics=[{pattern: 'a.*', format: bundle}, {name: ab, format: resource}]", "topics[1].name: is read by topics[0] already, in another way"},
		{"topics=[{pattern: '(', format: resource}]", "regular expression"},
		{"topics=[{name: a}]", "topics[0].format: is missing: one of avro, bundle, cloudevents, debezium, firely, hapi-message, lfh-event, notification, outbox, resource"},
		{"topics=nothing", "is not a list"},
		{"topics[0].stop_after=-1", "0 (never) or more"},
		{"topics[2].name=a", "the next one is topics[1]"},
		{"groups.topic=a b", "no name of a Kafka topic"},
		{"audit.topic=a b", "no name of a Kafka topic"},
		{"audit.topic=fhir-changes", "AuditEvents would become resources"},
		{"dead_letters.topic=a b", "no name of a Kafka topic"},
		{"dead_letters.topic=fhir-changes", "would come again without end"},
		{"groups.topic=groups", "no entry of topics reads groups"},
		{"store.path=", "names no directory"},
		{"store.cache=1KiB", "too little"},
		{"store.sharding=on", "unknown key store.sharding"},
		{"store=x", "unknown key store"},
		{"http.listn=x", "did you mean http.listen?"},
		{"topic[0].name=x", "did you mean topics[].name?"},
		{"commit.interval=0", "must be more than 0"},
		{"export.retry_after=0s", "must be more than 0"},
		{"limits.jobs=0", "at least 1"},
		{"limits.jobs=", "wants a whole number"},
		{"limits.polls_per_minute=0", "at least 1"},
		{"export.file.max_resources=-1", "or more"},
		{"export.workers=1", "or 2 to 1024"},
		{"export.workers=-2", "or 2 to 1024"},
		{"export.workers=2000", "or 2 to 1024"},
		{"telemetry.sample=1.5", "between 0 and 1"},
		{"telemetry.sample=.nan", "between 0 and 1"},
		{"telemetry.otlp_endpoint=localhost:4318", "is not a URL"},
		{"resources.inject_meta=perhaps", "not true or false"},
		{"topics=[{name: a, format: debezium}]", "topics[0].tables: must say what the columns mean"},
		{"topics=[{name: a, format: avro, tables: [{body: b}]}]", "say where that is (schema_registry.url)"},
		{"topics=[{name: a, format: bundle, preset: lfh}]", "topics[0].preset: is for the formats debezium and avro"},
		{"topics=[{name: a, format: resource, mixed: true}]", "topics[0].mixed: goes with the format bundle only"},
		{"topics=[{name: a, format: debezium, preset: hapi, tables: [{body: x}]}]", "topics[0].preset: hapi goes with the format debezium, and without tables"},
		{"topics=[{name: a, format: debezium, preset: lfh, time_zone: Nowhere/At_all}]", `"Nowhere/At_all" is no time zone`},
		{"topics=[{name: a, format: debezium, tables: [{name: '(', body: b}]}]", "topics[0].tables[0].name: is not a regular expression"},
		{"topics=[{name: a, format: debezium, tables: [{type: Patiant, body: b}]}]", `"Patiant" is not a FHIR R4 resource type`},
		{"topics=[{name: a, format: debezium, tables: [{name: t, body: b}, {name: t, body: c}]}]", "topics[0].tables[1].name: is listed twice"},
		{"topics=[{name: a, format: debezium, tables: [{body: b, optional: [gone]}]}]", `topics[0].tables[0].optional[0]: "gone" is none of version, last_updated, deleted, skip`},
		{"topics=[{name: a, format: debezium, tables: [{}]}]", "topics[0].tables[0].body: must name the column"},
		{"log.level=loud", "is not one of debug, info, warn, error"},
	}
	for _, test := range tests {
		got := faults(t, Source{Set: []string{test.set}})
		if !strings.Contains(strings.Join(got, "\n"), test.want) {
			t.Errorf("--set %s: got %q, want %q", test.set, got, test.want)
		}
	}
}

// A map comes from the file, a variable or --set as a whole, each standing for all
// before it, and --set adds or replaces entries.
func TestPresets(t *testing.T) {
	file := write(t, "presets:\n  claims: [Claim, Coverage]\n  labs: [Observation]\n")
	tests := []struct {
		name    string
		environ string
		set     []string
		want    map[string][]string
		origins map[string]string
	}{
		{
			"the file alone", "", nil,
			map[string][]string{"claims": {"Claim", "Coverage"}, "labs": {"Observation"}},
			map[string]string{"presets": file + ":1", "presets.claims": file + ":2", "presets.labs": file + ":3"},
		},
		{
			"a variable replaces all", "TIDEMARK_PRESETS={claims: [Claim]}", nil,
			map[string][]string{"claims": {"Claim"}},
			map[string]string{"presets.claims": "environment TIDEMARK_PRESETS", "presets.labs": "default"},
		},
		{
			"entries are added and replaced", "",
			[]string{"presets.labs=Specimen, Observation", "presets.My-own_2=[Patient]"},
			map[string][]string{"claims": {"Claim", "Coverage"}, "labs": {"Specimen", "Observation"}, "My-own_2": {"Patient"}},
			map[string]string{"presets.claims": file + ":2", "presets.labs": "--set presets.labs", "presets.My-own_2": "--set presets.My-own_2"},
		},
		{"none", "", []string{"presets={}"}, map[string][]string{}, map[string]string{"presets": "--set presets", "presets.claims": "default"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := load(t, Source{File: file, Environ: []string{test.environ}, Set: test.set})
			if d := cmp.Diff(test.want, l.Presets); d != "" {
				t.Error(d)
			}
			for path, want := range test.origins {
				if got := l.Origin(path); got != want {
					t.Errorf("origin of %s: got %q, want %q", path, got, want)
				}
			}
		})
	}
}

func TestPresetFaults(t *testing.T) {
	file := write(t, `presets:
  claims: Claim
  _labs: [Observation]
  us-core-7: [Patient]
  departed: [Patient]
  none: []
  wrong: [Patient, Observatoin, patient, Claim]
  nothing:
  a.b: [Patient]
  twice: [Patient]
  twice: [Claim]
  deep: {a: [Patient]}
  5: [Patient]
`)
	got := faults(t, Source{
		File: file, Environ: []string{"TIDEMARK_PRESETS_CLAIMS=Claim"},
		Set: []string{"presets.mine=", "presets.worse=[Nothing]", "presets.c.d=Claim", "presets.é=Claim"},
	})
	got = append(got, faults(t, Source{Set: []string{"presets=Claim"}})...)
	got = append(got, faults(t, Source{Set: []string{"presets="}})...)
	got = append(got, faults(t, Source{File: write(t, "presets: [Claim]\n")})...)
	got = append(got, faults(t, Source{File: write(t, "presets:\n")})...)
	golden(t, "presets.txt", strings.Join(got, "\n")+"\n")
}

// Groups are written where they are read, in the format that is read there.
func TestGroupsAreRead(t *testing.T) {
	tests := []struct {
		topics string
		want   string // "" is no fault
	}{
		{"[{name: groups, format: resource}]", ""},
		{"[{pattern: 'gr.*|x', format: resource}]", ""},
		{"[{pattern: 'group', format: resource}]", "no entry of topics reads groups"},
		{"[{name: a, format: resource}, {name: groups, format: resource, drop_types: [Binary, Group]}]", "topics[1].drop_types passes over"},
		{"[{pattern: 'gr.*', format: resource, drop_types: [Group]}, {name: groups, format: resource}]", "topics[0].drop_types passes over"},
		{"[{name: groups, format: other}]", "topics[0] reads groups with another format"},
	}
	for _, test := range tests {
		got := strings.Join(faults(t, Source{Set: []string{"topics=" + test.topics, "groups.topic=groups"}}), "\n")
		if !strings.Contains(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", test.topics, got, test.want)
		}
	}
}

// What is loaded is written where it is read, in the format that is read there.
func TestLoadedIsRead(t *testing.T) {
	tests := []struct {
		topics, topic string
		want          string // "" is no fault
	}{
		{"[{name: fhir-load, format: resource}]", "fhir-load", ""},
		{"[{pattern: 'fhir-.*', format: resource, drop_types: [Group]}]", "fhir-load", ""},
		{"[{name: fhir-changes, format: resource}]", "fhir-load", "load.topic: no entry of topics reads fhir-load"},
		{"[{pattern: 'fhir-.*', format: bundle}, {name: fhir-load, format: resource}]", "fhir-load", "load.topic: topics[0] reads fhir-load with another format"},
		{"[{name: fhir-load, format: resource}]", "fhir load", "load.topic: \"fhir load\" is no name of a Kafka topic"},
	}
	for _, test := range tests {
		got := strings.Join(faults(t, Source{Set: []string{"topics=" + test.topics, "load.topic=" + test.topic}}), "\n")
		if !strings.Contains(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", test.topics, got, test.want)
		}
	}
}

func TestIgnoredVariables(t *testing.T) {
	env := []string{"TIDEMARK_CONFIG=x"}
	if got := faults(t, Source{Environ: env}); len(got) != 1 {
		t.Errorf("got %q, want one fault", got)
	}
	load(t, Source{Environ: env, Ignore: []string{"TIDEMARK_CONFIG"}})
}

// What is printed is a configuration that gives the same values.
func TestPrintReadsBack(t *testing.T) {
	l := load(t, Source{Set: []string{
		"topics=[{pattern: '^fhir\\..*', format: resource, stop_after: 5, drop_types: [Binary]}, {name: 'on', format: resource}]",
		"kafka.brokers=[a:1, 'b:2']", `kafka.group=a "b" # c`, "commit.interval=1500ms", "export.expires=30d", "store.min_free=1234B",
		"presets={claims: [Claim, Coverage], 'on': [Patient]}",
	}})
	var out strings.Builder
	if err := l.Print(&out); err != nil {
		t.Fatal(err)
	}
	back := load(t, Source{File: write(t, out.String())})
	if d := cmp.Diff(l.Config, back.Config, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s\n%s", d, out.String())
	}
}

func TestPrint(t *testing.T) {
	l := load(t, Source{
		Environ: []string{"TIDEMARK_HTTP_LISTEN=127.0.0.1:9999"},
		Set:     []string{"telemetry.otlp_endpoint=http://user:canary@127.0.0.1:4318", "topics[0].stop_after=3", "presets.claims=Claim,Coverage"},
	})
	var out strings.Builder
	if err := l.Print(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "canary") {
		t.Error("a password is printed")
	}
	golden(t, "print.txt", out.String())
}

// The formats that may be written are those that can be decoded.
func TestFormatsAreTheDecoders(t *testing.T) {
	k, ok := find("topics[0].format")
	if d := cmp.Diff(decode.OptionalColumns, optionalColumns); d != "" {
		t.Errorf("optional (-decoders +configuration):\n%s", d)
	}
	if d := cmp.Diff(decode.Formats(), k.enum); !ok || d != "" {
		t.Error(d)
	}
}
