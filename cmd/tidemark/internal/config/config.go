// Package config knows every key that an operator may set: its name, its
// default, its meaning and what a sensible value is.
//
// A value comes from the defaults, then the YAML file, then the environment
// (TIDEMARK_HTTP_LISTEN for http.listen), then --set; the later one wins. All
// four go through one decoder, so a fault reads the same wherever it was made,
// and [Load] reports all faults at once, each with its key and where it stands.
// Unknown keys and unknown TIDEMARK_ variables are faults: a misspelt key that
// is silently ignored costs a night.
//
// The package refuses to know what the values do: it opens nothing and connects
// to nobody.
//
// Decision, November 2026: the environment is read by our own few lines instead
// of caarlos0/env. That library names the Go field instead of the variable in
// its errors, takes an empty variable for a missing one (kafka.group: "" means
// off) and cannot set the second topic alone. We gave up its other formats.
package config

// Config is the whole configuration. The doc comment of each field is the
// operator's manual for its key; deploy/tidemark.schema.json repeats it.
type Config struct {
	// Where changes are kept.
	Store Store `yaml:"store"`
	// When gathered changes become durable.
	Commit Commit `yaml:"commit"`
	// How far behind the clock exports are cut, so that out-of-order changes are in time.
	Watermark Watermark `yaml:"watermark"`
	// What may be taken to keep the store in shape.
	Compaction Compaction `yaml:"compaction"`
	// How long what is no longer current is kept.
	Retention Retention `yaml:"retention"`
	// What bulk clients talk to.
	HTTP HTTP `yaml:"http"`
	// What operators talk to: metrics and profiles.
	Admin Admin `yaml:"admin"`
	// Where changes come from.
	Kafka Kafka `yaml:"kafka"`
	// The topics to read. All of them must exist before the first export.
	Topics []Topic `yaml:"topics"`
	// Where the schemas are that records in Avro name.
	SchemaRegistry SchemaRegistry `yaml:"schema_registry"`
	// Where records go as well that cannot be decoded.
	DeadLetters DeadLetters `yaml:"dead_letters"`
	// Groups that are made here, of lists of patients.
	Groups Groups `yaml:"groups"`
	// What the source has exported, for a store that begins, and for what was missed.
	Load Loading `yaml:"load"`
	// What happens to a resource on its way in.
	Resources Resources `yaml:"resources"`
	// What an export gives.
	Export Export `yaml:"export"`
	// Lists of resource types by a name of your own, {claims: [Claim, Coverage]}: clients ask for one with includeAssociatedData=_claims.
	Presets map[string][]string `yaml:"presets"`
	// What is published with $bulk-publish.
	Publish Publish `yaml:"publish"`
	// Who may read.
	Auth Auth `yaml:"auth"`
	// What nobody is given, whatever his scopes: by policy, for consent and sensitive data.
	Withhold Withhold `yaml:"withhold"`
	// How the keys of clients are fetched from their URLs.
	JWKS JWKS `yaml:"jwks"`
	// URLs of output files that work for a while without a token.
	Capability Capability `yaml:"capability"`
	// Bounds against clients that ask for too much.
	Limits Limits `yaml:"limits"`
	// Who was given what, and who was refused.
	Audit Audit `yaml:"audit"`
	// The log on standard error.
	Log Log `yaml:"log"`
	// Traces for a collector. Metrics need no key: they are at /metrics.
	Telemetry Telemetry `yaml:"telemetry"`
}

// Store is where changes are kept.
type Store struct {
	// The store's directory: one directory, one process, a local disk.
	Path string `yaml:"path"`
	// With less free space on the store's disk than this, intake waits and downloads go on; jobs that write files wait with a quarter more. 0B: never wait.
	MinFree Bytes `yaml:"min_free"`
	// Room on the disk that is kept for when it is full: export jobs can still be deleted then, and cleaned up after. 0B: none.
	Reserve Bytes `yaml:"reserve"`
	// All stored bytes are read and checked once in this time. 0s: never.
	Scrub Duration `yaml:"scrub"`
	// Memory for index blocks. Below 96MiB look-ups of ten million resources become several times slower.
	Cache Bytes `yaml:"cache"`
}

// Commit is when gathered changes become durable.
type Commit struct {
	// A change waits no longer than this before it is committed. Shorter: fresher exports, more and smaller segments.
	Interval Duration `yaml:"interval"`
	// A commit is sealed earlier when this many bytes have gathered.
	MaxSize Bytes `yaml:"max_size"`
}

// Watermark is how far behind the clock exports are cut.
type Watermark struct {
	// How much later than its time a change may reach Kafka and still appear under its own time. Later ones are exported too, under the time of their arrival.
	Allowance Duration `yaml:"allowance"`
	// At start, a wall clock further than this below what was promised makes the log and the status warn. It never refuses.
	MaxClockStep Duration `yaml:"max_clock_step"`
}

// Compaction is what may be taken to keep the store in shape: its segments are written anew, fewer, sorted by patient, and without what died.
type Compaction struct {
	// The share of one processor core, up to 1. When segments grow in number all the same, nothing bounds it until they are few again.
	Cores float64 `yaml:"cores"`
	// Bytes a second that are written.
	WriteRate Bytes `yaml:"write_rate"`
	// At this age rows move into windows of time that are sorted by patient and compressed harder.
	SettleAfter Duration `yaml:"settle_after"`
}

// Retention is how long what is no longer current is kept. What is current is kept for ever.
type Retention struct {
	// Deletions are told to exports for so long. An older _since is answered with an OperationOutcome that says so. Whom exports found in Groups by identifiers or searches is kept as long.
	Deleted Duration `yaml:"deleted"`
	// The last state of a resource before its deletion. By it a deleted Patient is recognised whom a Group names by an identifier only.
	LastState Duration `yaml:"last_state"`
	// Records that could not be decoded.
	DeadLetters Duration `yaml:"dead_letters"`
}

// DeadLetters is where records go as well that cannot be decoded.
type DeadLetters struct {
	// A Kafka topic that gets each of them as it was, in order and at least once, with headers that say why and where from: tidemark-reason, -topic, -partition, -offset, -number. It must not be one of topics. Nothing waits for it. Empty: none.
	Topic string `yaml:"topic"`
}

// HTTP is what bulk clients talk to.
type HTTP struct {
	// Host and port to listen on. On anything but a loopback address clients need tokens: auth.mode.
	Listen string `yaml:"listen"`
	// The FHIR base as clients see it: every URL that a client is given starts with it. Unset, it follows the port of http.listen.
	PublicURL string `yaml:"public_url"`
	// The server's certificate; empty: plain HTTP.
	TLS ServerTLS `yaml:"tls"`
	// Pages of other origins, in browsers.
	CORS CORS `yaml:"cors"`
	// Addresses and networks, such as 10.0.0.0/8, of proxies in front of the server: what they write into X-Forwarded-For is taken for the client's address in the audit. From all others it is ignored.
	TrustedProxies []string `yaml:"trusted_proxies"`
}

// CORS is pages of other origins, in browsers.
type CORS struct {
	// Origins whose pages may send requests and read the answers, such as https://app.example.org. "*" is refused. Empty: none.
	Origins []string `yaml:"origins"`
}

// ServerTLS is the server's certificate.
type ServerTLS struct {
	// PEM file with the certificate and its chain. Replaced files are taken up without a restart.
	CertFile string `yaml:"cert_file"`
	// PEM file with the private key.
	KeyFile string `yaml:"key_file"`
	// PEM file with the authorities of clients' certificates: without one of theirs nobody comes in, in addition to auth (mutual TLS). Empty: no certificate is asked for.
	ClientCAFile string `yaml:"client_ca_file"`
}

// Admin is what operators talk to.
type Admin struct {
	// Host and port for /metrics, /debug/pprof and the probes. Empty: /metrics is on http.listen while that is loopback, else nowhere; profiles are nowhere. Anything but a loopback address needs admin.allow_open.
	Listen string `yaml:"listen"`
	// Serve metrics and profiles, which have no password, on an address that others can reach.
	AllowOpen bool `yaml:"allow_open"`
}

// Kafka is where changes come from.
type Kafka struct {
	// Addresses to begin with; the others are learned from them.
	Brokers []string `yaml:"brokers"`
	// Our offsets are mirrored to this consumer group for lag tools. They are never read back. Empty: off.
	Group string `yaml:"group"`
	// Encryption towards the brokers.
	TLS ClientTLS `yaml:"tls"`
	// Authentication towards the brokers.
	SASL SASL `yaml:"sasl"`
	// A larger record becomes a dead letter of which only origin, length, hash and the first 64 KiB are kept.
	MaxRecord Bytes `yaml:"max_record"`
}

// ClientTLS is encryption towards the brokers.
type ClientTLS struct {
	// Speak TLS to the brokers.
	Enabled bool `yaml:"enabled"`
	// PEM file with the authorities to trust; empty: the system's.
	CAFile string `yaml:"ca_file"`
	// PEM file with our certificate, if the brokers ask for one.
	CertFile string `yaml:"cert_file"`
	// PEM file with its private key.
	KeyFile string `yaml:"key_file"`
}

// SASL is authentication towards the brokers.
type SASL struct {
	// Empty: none.
	Mechanism string `yaml:"mechanism" enum:",PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"`
	// The user.
	Username string `yaml:"username"`
	// File with the password; a newline at its end does not count.
	PasswordFile string `yaml:"password_file"`
}

// Topic is one topic, or all topics that match a pattern.
type Topic struct {
	// The topic's name. Either name or pattern.
	Name string `yaml:"name,omitempty"`
	// A regular expression that must match the whole name; topics that appear later are picked up.
	Pattern string `yaml:"pattern,omitempty"`
	// What the records are; pipeline/EVENTS.md tells each format with an example. resource: key Type/id, value the resource as JSON, a null value or the header "fhir-op: delete" for a deletion.
	Format string `yaml:"format" enum:"avro,bundle,cloudevents,debezium,firely,hapi-message,lfh-event,notification,outbox,resource"`
	// Of the format bundle: resources by themselves among the Bundles count as in the format resource, and so does a null value whose key is Type/id. Otherwise they are refused, for the topic's format is probably another one.
	Mixed bool `yaml:"mixed,omitempty"`
	// Of the format debezium: the FHIR server whose tables are captured.
	Preset string `yaml:"preset,omitempty" enum:",aidbox,hapi,lfh,medplum,miracum,msfhir"`
	// Of the formats debezium and avro: what the columns of tables mean; the first that fits a table holds, and those of the preset come last.
	Tables []Table `yaml:"tables,omitempty"`
	// Of the formats debezium and avro: the zone of times without one, such as Europe/Berlin. Empty: UTC.
	TimeZone string `yaml:"time_zone,omitempty"`
	// After this many dead letters without a good record between, the topic is held, since its format is probably wrong; the watermark waits with it. 0: never. Unset: 100.
	StopAfter *int `yaml:"stop_after,omitempty"`
	// Resource types of this topic that are passed over.
	DropTypes []string `yaml:"drop_types,omitempty"`
}

// Table is what the columns of a table of resources mean, or the fields of a record.
type Table struct {
	// A regular expression for the table's whole name, without its schema, in any case of letters; what its group (?P<type>...) matches is the resource type. Empty: any table.
	Name string `yaml:"name,omitempty"`
	// The resource type of all rows, if neither the table's name nor a column says it.
	Type string `yaml:"type,omitempty"`
	// The column that holds the resource type. Without one the body may say it.
	TypeColumn string `yaml:"type_column,omitempty"`
	// The column that holds the id. Without one the body says it, and rows that are deleted cannot be told.
	ID string `yaml:"id,omitempty"`
	// The column that holds the version.
	Version string `yaml:"version,omitempty"`
	// The column that holds when the resource was last updated: text, or seconds to nanoseconds since 1970.
	LastUpdated string `yaml:"last_updated,omitempty"`
	// The column that holds the resource: JSON, or gzip of it, as bytes, base64 or hexadecimal digits.
	Body string `yaml:"body,omitempty"`
	// A column that is true where the resource is deleted: a boolean, a number other than 0, a time, or Y, yes, true, deleted. Words that are not known are refused.
	Deleted string `yaml:"deleted,omitempty"`
	// A column that is true, in the same way, of rows that say nothing, such as old versions.
	Skip string `yaml:"skip,omitempty"`
	// Rows are versions, which are only inserted: that one is deleted says nothing of the resource.
	History bool `yaml:"history,omitempty"`
	// Those of version, last_updated, deleted and skip whose column rows or records may lack, for they are older than it. Without, such are dead letters: it may be called otherwise here.
	Optional []string `yaml:"optional,omitempty"`
	// Rows of this table say nothing.
	Ignore bool `yaml:"ignore,omitempty"`
}

// SchemaRegistry is where the schemas are that records in Avro name.
type SchemaRegistry struct {
	// Its address, as far as Confluent's API is below it: http://registry:8081, or of Apicurio http://apicurio:8080/apis/ccompat/v7. It is asked once for each schema, which is kept in the store. Empty: none.
	URL string `yaml:"url"`
	// The user, if it asks for one.
	Username string `yaml:"username"`
	// File with the password; a newline at its end does not count.
	PasswordFile string `yaml:"password_file"`
	// PEM file with the authorities to trust; empty: the system's.
	CAFile string `yaml:"ca_file"`
}

// Groups is Groups that are made here, for sources that have none.
type Groups struct {
	// The topic that "tidemark group" writes to. It must be one of those that are read, best a compacted one with nothing else in it. Empty: none.
	Topic string `yaml:"topic"`
}

// Loading is what the source has exported, for a store that begins, and for what was missed.
type Loading struct {
	// The topic that "tidemark load" and "tidemark reconcile --repair" write to. It must be one of those that are read, best a compacted one with nothing else in it. Empty: none.
	Topic string `yaml:"topic"`
}

// Resources is what happens to a resource on its way in.
type Resources struct {
	// Write meta.versionId and meta.lastUpdated where the source left them out. Nothing else of a resource is ever changed.
	InjectMeta bool `yaml:"inject_meta"`
	// The bases of the servers that the records come from, such as http://hapi:8080/fhir: absolute references under them, or under http.public_url, lead to resources here, all others elsewhere. What has come in before it is changed stays as it was understood.
	OwnBases []string `yaml:"own_bases"`
}

// Export is what an export gives.
type Export struct {
	// How long a finished export can be downloaded, and how long one that is worked on stays though nobody asks for it. Its segments stay on disk as long.
	Expires Duration `yaml:"expires"`
	// How an export is cut into files.
	File ExportFile `yaml:"file"`
	// How long clients are told to wait before they ask again.
	RetryAfter Duration `yaml:"retry_after"`
	// Jobs of Groups, of some Patients, with filters or elements that are worked on at the same time: more of them, less for intake and downloads. One is kept for those that read no bodies, so at least 2. 0: half of the processors.
	Workers int `yaml:"workers"`
	// Content of attachments that came over Kafka as Binary takes the place of its URL up to this size. 0B: never, the URL becomes absolute.
	InlineAttachments Bytes `yaml:"inline_attachments"`
}

// ExportFile is how an export is cut into files.
type ExportFile struct {
	// Begin another file after this many uncompressed bytes.
	MaxBytes Bytes `yaml:"max_bytes"`
	// Begin another file after this many resources. 0: no bound.
	MaxResources int `yaml:"max_resources"`
}

// Publish is what is published with $bulk-publish: all resources of some types, as a chain of pages whose files never change.
type Publish struct {
	// The resource types, such as [Organization, Practitioner, Location]. Empty: nothing is published. Other types begin another chain, and its consumers begin again.
	Types []string `yaml:"types"`
	// Time between two pages of changes; consumers are told to come as often. Where nothing has changed there is no page.
	Every Duration `yaml:"every"`
	// Time between two roots, which hold everything: new consumers begin with the newest.
	SnapshotEvery Duration `yaml:"snapshot_every"`
	// How long a page stays once a newer root has come after it. A consumer that comes at least as often never has to begin again. What they hold stays on the disk as long.
	Grace Duration `yaml:"grace"`
	// The pages are for everybody: shared caches may keep them, and every type that can be about a patient is refused.
	Public bool `yaml:"public"`
}

// Auth is who may read.
type Auth struct {
	// builtin: clients get tokens here (SMART Backend Services). external: from another server. none: no tokens are asked for. auto is none while http.listen and http.public_url are loopback, else builtin.
	Mode string `yaml:"mode" enum:"auto,none,builtin,external"`
	// Let auth.mode none hold on addresses that others can reach: everyone who can reach the port can then download all patients' data. Let admin.listen be such an address.
	AllowOpenData bool `yaml:"allow_open_data"`
	// How long an access token counts, 5m at most.
	TokenLifetime Duration `yaml:"token_lifetime"`
	// Further URLs of the token endpoint that clients may write into aud, beside the one under http.public_url: those by which they reach it behind a proxy.
	Audiences []string `yaml:"audiences"`
	// Clients; more by "tidemark client add". One that is taken out loses its jobs, and is another when it comes back.
	Clients []Client `yaml:"clients"`
	// The server that gives out tokens when auth.mode is external.
	External External `yaml:"external"`
}

// Client is a program that may ask for data. It proves itself by one of jwks, jwks_file, jwks_uri, secret_file.
type Client struct {
	// What it calls itself (client_id): printable ASCII without spaces and colons.
	ID string `yaml:"id"`
	// What people call it.
	Name string `yaml:"name,omitempty"`
	// Its public keys, a JSON Web Key Set.
	JWKS KeySet `yaml:"jwks,omitempty"`
	// File with its public keys, a JSON Web Key Set; read at start.
	JWKSFile string `yaml:"jwks_file,omitempty"`
	// URL of its public keys; https.
	JWKSURI string `yaml:"jwks_uri,omitempty"`
	// File with a secret of 43 characters at least, such as "openssl rand -base64 32" makes, for a client that knows HTTP Basic only; a newline at its end does not count.
	SecretFile string `yaml:"secret_file,omitempty"`
	// What it may export: system, patient, group. None until told.
	Levels []string `yaml:"levels,omitempty"`
	// With the level group: ids of Groups, or "*" for all.
	Groups []string `yaml:"groups,omitempty"`
	// The most that it can be granted, such as [system/Patient.rs, "system/Observation.rs?category=laboratory"]: a list, or one text with spaces.
	Scopes Scopes `yaml:"scopes,omitempty"`
	// What it is not given, beside what nobody is.
	Withhold Withhold `yaml:"withhold,omitempty"`
	// Limits of its own, in place of those that each client has.
	Limits ClientLimits `yaml:"limits,omitempty"`
}

// ClientLimits are one client's own.
type ClientLimits struct {
	// Export jobs of it that are worked on at the same time. 0: limits.jobs_per_client.
	Jobs int `yaml:"jobs"`
	// Export jobs that it may start in a day of UTC. 0: limits.jobs_per_client_day.
	JobsPerDay int `yaml:"jobs_per_day"`
	// Bytes of files that it may be sent in a day of UTC. 0B: limits.bytes_per_client_day.
	BytesPerDay Bytes `yaml:"bytes_per_day"`
}

// Withhold is what is not given, whatever the scopes. More of it ends the jobs and published pages that hold more.
type Withhold struct {
	// Ids of Groups: their members have opted out. What is theirs and no others' is withheld as if it were not there, and so are these Groups. One that is not there, or that does not tell whom it has, stops exports and reads.
	Groups []string `yaml:"groups"`
	// Labels of meta.security: a code such as R, of whatever system, or a system, a bar and a code. Resources with one are withheld.
	Security []string `yaml:"security"`
	// Searches, such as ["Condition?code=86406008"]: what one of them finds is withheld.
	Filters Scopes `yaml:"filters"`
	// Elements, such as [ExplanationOfBenefit.total, Claim.item.net]: they are taken out of what is sent, and the narrative with them.
	Elements []string `yaml:"elements"`
}

// External is another server that gives out tokens.
type External struct {
	// What its tokens have as iss, exactly.
	Issuer string `yaml:"issuer"`
	// What they must have among their aud.
	Audience string `yaml:"audience"`
	// URL of its public keys; https.
	JWKSURL string `yaml:"jwks_url"`
	// The claim with the client's id.
	ClientClaim string `yaml:"client_claim"`
	// The claim with the scopes.
	ScopeClaim string `yaml:"scope_claim"`
	// Types of tokens (typ in the header) that count. "" is that of tokens which say none.
	TokenTypes []string `yaml:"token_types"`
	// Claims that say that a token is a program's and no user's, where its sub is not the client: claim=value, each alone. {client} in it is the client's id.
	ProgramClaims []string `yaml:"program_claims"`
	// What the server calls scopes that it cannot spell, each as NAME=SCOPE, or with several scopes and spaces between them: such as "Bulk.Read=system/*.rs".
	ScopeNames []string `yaml:"scope_names"`
}

// JWKS is how the keys of clients are fetched from their URLs.
type JWKS struct {
	// Hosts whose keys are fetched though they have an address in a private network.
	Allow []string `yaml:"allow"`
	// Let URLs of keys on this machine be plain http: for tests.
	AllowHTTPLoopback bool `yaml:"allow_http_loopback"`
}

// Capability is URLs of output files that work for a while without a token.
type Capability struct {
	// Manifests say requiresAccessToken: false, and give signed URLs; who has one reads that file. For clients that cannot send a token with each download.
	Enabled bool `yaml:"enabled"`
	// How long a URL works. Each request for the manifest gives new ones; none outlives the job.
	TTL Duration `yaml:"ttl"`
}

// Limits is bounds against clients that ask for too much.
type Limits struct {
	// Export jobs that are worked on at the same time; those whose files are ready do not count.
	Jobs int `yaml:"jobs"`
	// Export jobs whose files are kept; those that were deleted, have expired or were ended do not count. One client has half of them at most, so that none takes all places from the others until its files expire. What they hold stays on the disk.
	JobsKept int `yaml:"jobs_kept"`
	// Export jobs of one client that are worked on at the same time; those whose files are ready do not count. 0: no bound but limits.jobs.
	JobsPerClient int `yaml:"jobs_per_client"`
	// Export jobs that one client may start in a day of UTC. 0: no bound.
	JobsPerClientDay int `yaml:"jobs_per_client_day"`
	// Bytes of files that one client may be sent in a day of UTC, as they go over the wire; what has begun is sent to its end. 0B: no bound.
	BytesPerClientDay Bytes `yaml:"bytes_per_client_day"`
	// Status requests a minute and job; more are answered with 429.
	PollsPerMinute int `yaml:"polls_per_minute"`
	// Largest request body.
	Body Bytes `yaml:"body"`
	// Connections to http.listen that are open at the same time; one more is closed at once. Each may need two file descriptors. 0: no bound.
	Connections int `yaml:"connections"`
	// Those of one address (of IPv6: one /64) that is not among http.trusted_proxies. 0: no bound.
	ConnectionsPerAddress int `yaml:"connections_per_address"`
}

// Audit is who was given what, and who was refused: FHIR AuditEvents, one on a line, each chained to the one before.
type Audit struct {
	// Write it. false: nobody knows afterwards who was given what.
	Enabled bool `yaml:"enabled"`
	// The directory of its files, audit-YYYYMMDD-N.ndjson. Empty: audit in store.path, which backups have no copy of.
	File string `yaml:"file"`
	// A Kafka topic that gets each line as well, in order and at least once, with its id as key: a copy that who may write the files cannot change. It must not be one of topics. While it is away the files keep all that it has not had. Empty: none.
	Topic string `yaml:"topic"`
	// What is given out must be on record before: kick-offs, reads and downloads are answered with 503 while that cannot be written.
	Required bool `yaml:"required"`
	// How long files are kept. 0s: for ever.
	Keep Duration `yaml:"keep"`
}

// Log is the log on standard error.
type Log struct {
	// The least important line that is written.
	Level string `yaml:"level" enum:"debug,info,warn,error"`
	// auto: text on a terminal, else JSON.
	Format string `yaml:"format" enum:"auto,text,json"`
}

// Telemetry is traces for a collector.
type Telemetry struct {
	// OTLP over HTTP, for example http://127.0.0.1:4318. Empty: no traces.
	OTLPEndpoint string `yaml:"otlp_endpoint"`
	// The share of requests, batches and commits that is traced, 0 to 1.
	Sample float64 `yaml:"sample"`
}

// defaultStopAfter tells a wrong format (nothing decodes) from a source with a
// few broken records.
const defaultStopAfter = 100

// defaultBase is http.public_url as long as http.listen is the default too.
const defaultBase = "http://127.0.0.1:8080/fhir"

// Default is the configuration of somebody who sets nothing.
func Default() *Config {
	return &Config{
		Store:      Store{Path: "./data", MinFree: 5 << 30, Reserve: 64 << 20, Scrub: 14 * day, Cache: 96 << 20},
		Commit:     Commit{Interval: 500 * millisecond, MaxSize: 32 << 20},
		Watermark:  Watermark{Allowance: second, MaxClockStep: 30 * second},
		Compaction: Compaction{Cores: 0.5, WriteRate: 50 << 20, SettleAfter: day},
		Retention:  Retention{Deleted: 400 * day, LastState: 30 * day, DeadLetters: 90 * day},
		HTTP:       HTTP{Listen: "127.0.0.1:8080", PublicURL: defaultBase, CORS: CORS{Origins: []string{}}, TrustedProxies: []string{}},
		Kafka:      Kafka{Brokers: []string{"127.0.0.1:9092"}, Group: "tidemark", MaxRecord: 128 << 20},
		Topics:     []Topic{{Name: "fhir-changes", Format: "resource", StopAfter: new(defaultStopAfter)}},
		Resources:  Resources{InjectMeta: true, OwnBases: []string{}},
		Export:     Export{Expires: day, File: ExportFile{MaxBytes: 256 << 20}, RetryAfter: second},
		Presets:    map[string][]string{},
		Publish:    Publish{Types: []string{}, Every: hour, SnapshotEvery: 7 * day, Grace: 7 * day},
		Auth: Auth{
			Mode: "auto", TokenLifetime: 5 * minute, Audiences: []string{}, Clients: []Client{},
			External: External{ClientClaim: "client_id", ScopeClaim: "scope", TokenTypes: []string{"at+jwt"}, ProgramClaims: []string{"gty=client-credentials", "idtyp=app"}, ScopeNames: []string{}},
		},
		Withhold:   Withhold{Groups: []string{}, Security: []string{}, Filters: Scopes{}, Elements: []string{}},
		JWKS:       JWKS{Allow: []string{}},
		Capability: Capability{TTL: hour},
		Limits:     Limits{Jobs: 100, JobsKept: 1000, JobsPerClient: 5, PollsPerMinute: 120, Body: 1 << 20, Connections: 4096, ConnectionsPerAddress: 1024},
		Audit:      Audit{Enabled: true, Required: true, Keep: 400 * day},
		Log:        Log{Level: "info", Format: "auto"},
		Telemetry:  Telemetry{Sample: 0.01},
	}
}
