package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/probe"
	"tidemark/pipeline/decode"
	"tidemark/pipeline/source"
	"tidemark/store"
	"tidemark/store/fhir"
)

type validateCmd struct {
	configFlags `embed:""`

	Topic    string        `placeholder:"NAME" xor:"from" required:"" help:"Read records of this topic, from the brokers of the configuration."`
	File     string        `placeholder:"FILE" xor:"from" required:"" type:"existingfile" help:"Read records from a file: a JSON object a line, which is the value of a record, or has its key and value ({\"topic\", \"key\", \"value\", \"headers\"}; bytes as keyBase64 and valueBase64; or what kcat -J writes)."`
	Format   string        `placeholder:"NAME" help:"The format to decode them in; else that of the topic in the configuration, else the one they look like."`
	Preset   string        `placeholder:"NAME" help:"Of the format debezium: whose tables these are."`
	TimeZone string        `placeholder:"ZONE" help:"Of tables: the zone of times without one."`
	Records  int           `default:"20" help:"How many of the newest records of each partition to read; of a file the first."`
	Wait     time.Duration `default:"20s" help:"How long to wait for the brokers."`
	Bodies   bool          `help:"Show the resources, too. They are patients' data."`
}

// Help is shown by --help.
func (*validateCmd) Help() string {
	return `Reads some records, and shows what each is understood as, or why it is refused, and which format they look like. Nothing is stored.

  tidemark validate --topic hapi.public.hfj_res_ver
  tidemark validate --topic medplum.public.Patient_History --format debezium --preset medplum
  tidemark validate --file records.ndjson --format bundle
  tidemark validate --config tidemark.yaml --file records.ndjson   # whose topics are configured there

Keys are resources' ids: what is shown is patients' data.

It ends with 1 if a record is refused. Next: write the format into topics in the configuration; pipeline/EVENTS.md tells each with an example.`
}

// Run decodes some records and shows what they are.
func (c *validateCmd) Run(ctx context.Context, out io.Writer) error {
	loaded, err := c.load()
	if err != nil {
		return err
	}
	records, err := c.read(ctx, &loaded.Config)
	switch {
	case err != nil:
		return err
	case len(records) == 0 && c.File != "":
		return fmt.Errorf("there are no records in %s: it is to have a JSON object a line (--help)", c.File)
	case len(records) == 0:
		return errors.New("there are no records: nothing has been written there, or retention has taken it")
	}
	schemas, err := schemaRegistry(&loaded.SchemaRegistry, forgetful{})
	if err != nil {
		return err
	}
	topic, err := c.topic(&loaded.Config, records)
	if err != nil {
		return err
	}
	o, err := decodeOptions(topic, ownBases(&loaded.Config), schemas)
	if err != nil {
		return err
	}
	guesses, err := probe.Guesses(records, o)
	if err != nil {
		return err
	}
	if topic.Format == "" {
		if len(guesses) == 0 {
			if err := showRefusals(out, records[0], o); err != nil {
				return err
			}
			return fmt.Errorf("of %d records none is understood in any format: %s", len(records), unlikely(records))
		}
		topic.Format, topic.Preset, topic.Tables = guesses[0].Format, guesses[0].Preset, nil
		o.Preset, o.Tables = guesses[0].Preset, nil
	}
	d, err := decode.New(topic.Format, o)
	if err != nil {
		return err
	}
	found, err := probe.Look(d, records)
	if err != nil {
		return err
	}
	if err := c.show(out, found, topic, guesses); err != nil {
		return err
	}
	if n := probe.Count(found).Refused; n > 0 {
		return fmt.Errorf("%d of %d records are refused in this format", n, len(found))
	}
	return nil
}

// topic is what the configuration says of the topic, and the command line better. A file's
// records may name theirs.
func (c *validateCmd) topic(conf *config.Config, records []decode.Record) (*config.Topic, error) {
	t := &config.Topic{}
	name := c.Topic
	for i := 0; i < len(records) && name == ""; i++ {
		name = records[i].Topic
	}
	for i := range conf.Topics {
		if name != "" && conf.Topics[i].Reads(name) {
			t = &conf.Topics[i]
			break
		}
	}
	if c.Format != "" && c.Format != t.Format || c.Preset != "" && c.Preset != t.Preset {
		t = &config.Topic{Format: c.Format, Preset: c.Preset}
	}
	if c.Preset != "" && t.Format == "" {
		t.Format = "debezium"
	}
	if c.TimeZone != "" {
		t.TimeZone = c.TimeZone
	}
	if t.Format != "" && !slices.Contains(decode.Formats(), t.Format) {
		return nil, fmt.Errorf("--format: %q is none of %s", t.Format, strings.Join(decode.Formats(), ", "))
	}
	ofTables := t.Format == "debezium" || t.Format == "avro"
	switch {
	case t.Preset != "" && !ofTables:
		return nil, errors.New("--preset: is for the formats debezium and avro")
	case ofTables && t.Preset == "" && len(t.Tables) == 0:
		return nil, fmt.Errorf("of the format %s it must be known what the columns mean: give --preset (%s) if they are a FHIR server's, else %s", t.Format, strings.Join(decode.Presets(), ", "), describe)
	}
	return t, nil
}

// describe is what to do about tables that no preset knows, and plain Avro.
const describe = "describe them in topics of a configuration (tables; pipeline/EVENTS.md has an example), and give that: --config FILE"

// unlikely says what records may be that no format understands of itself, and what to do.
func unlikely(records []decode.Record) string {
	for _, rec := range records {
		var row struct {
			Op, Before, After, Source, Payload json.RawMessage
		}
		if len(rec.Value) > 5 && rec.Value[0] == 0 {
			return "they name a schema of a registry, so they are Avro: say where the registry is (schema_registry.url), and name the format (--format outbox, debezium or avro)"
		}
		if json.Unmarshal(rec.Value, &row) != nil {
			continue
		}
		if row.Payload != nil && row.Op == nil {
			_ = json.Unmarshal(row.Payload, &row) // of schemas.enable; what is none is no row either
		}
		if row.Op != nil && row.Source != nil && (row.Before != nil || row.After != nil) {
			return "they are rows from Debezium, of tables that no preset knows: " + describe
		}
	}
	return "if one of the reasons above is of the format that your source writes, name that (--format) to see all of them; if they are rows, or plain Avro, " + describe
}

// showRefusals says why each format makes nothing of a record.
func showRefusals(out io.Writer, rec decode.Record, o decode.Options) error {
	all, err := probe.Refusals(rec, o)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "Why each format makes nothing of the first record:\n\n")
	for _, r := range all {
		fmt.Fprintf(table, "%s\t%s\n", r.Format, cmp.Or(r.Reason, "it says nothing, as heartbeats do"))
	}
	fmt.Fprintln(table)
	return table.Flush()
}

func (c *validateCmd) show(out io.Writer, found []probe.Finding, topic *config.Topic, guesses []probe.Guess) error {
	chosen := probe.Guess{Format: topic.Format, Preset: topic.Preset}
	n := probe.Count(found)
	w := bufio.NewWriter(out)
	parts := ""
	if n.Parts > 0 {
		parts = fmt.Sprintf("%d wait for rows of other tables, ", n.Parts)
	}
	fmt.Fprintf(w, "%d records, read as %s: %d resources, %d deletions, %s%d say nothing, %d refused\n\n", len(found), chosen, n.Upserts, n.Deletions, parts, n.Silent, n.Refused)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range found {
		at := fmt.Sprintf("%d/%d", f.Record.Partition, f.Record.Offset)
		switch {
		case f.Refused != "":
			fmt.Fprintf(table, "%s\trefused\t%s\n", at, f.Refused)
		case len(f.Changes) == 0 && f.Part:
			fmt.Fprintf(table, "%s\tpart\t\tkept until the rows of the other tables come\n", at)
		case len(f.Changes) == 0:
			fmt.Fprintf(table, "%s\tnothing\t\n", at)
		}
		for i := range f.Changes {
			fmt.Fprintf(table, "%s\t%s\n", at, c.change(&f.Changes[i]))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	guesses = withChosen(guesses, chosen, found)
	for i, g := range guesses {
		if i == 0 {
			fmt.Fprint(w, "\nThey look like:\n")
		}
		if i < 3 {
			fmt.Fprintf(w, "  %s   (%d of %d records are changes)\n", g, g.Understood, len(found))
		}
	}
	if len(guesses) == 0 {
		fmt.Fprint(w, "\nNo format understands any of them.\n")
	}
	return w.Flush()
}

// withChosen are the guesses, and among them the format that they were read in, which nobody can
// guess if what the columns mean stands in the configuration.
func withChosen(guesses []probe.Guess, chosen probe.Guess, found []probe.Finding) []probe.Guess {
	for i := range found {
		if len(found[i].Changes) > 0 || found[i].Part {
			chosen.Understood++
		}
	}
	if chosen.Understood == 0 || slices.ContainsFunc(guesses, func(g probe.Guess) bool { return g.Format == chosen.Format && g.Preset == chosen.Preset }) {
		return guesses
	}
	at := slices.IndexFunc(guesses, func(g probe.Guess) bool { return g.Understood <= chosen.Understood })
	if at < 0 {
		at = len(guesses)
	}
	return slices.Insert(slices.Clone(guesses), at, chosen)
}

// change is a line of the table.
func (c *validateCmd) change(ch *store.Change) string {
	op, said := "resource", []string{}
	switch {
	case ch.Delete:
		op = "deletion"
	case ch.Revise != nil:
		return fmt.Sprintf("change\t%s\tof what is stored: the row leaves the body out, or has tags alone", ch.Key)
	}
	if ch.Version != store.NoVersion {
		said = append(said, fmt.Sprintf("version %d", ch.Version))
	}
	for _, t := range []struct {
		name string
		at   fhir.Instant
	}{{"updated", ch.LastUpdated}, {"at", ch.Time}} {
		if t.at != fhir.None {
			said = append(said, t.name+" "+t.at.String())
		}
	}
	if ch.Version == store.NoVersion && ch.LastUpdated == fhir.None {
		said = append(said, "neither version nor instant: order within the partition decides")
	}
	if n := len(ch.Body); n > 0 {
		said = append(said, humanize.IBytes(uint64(n)))
	}
	if n := len(ch.Patients); n > 0 {
		said = append(said, fmt.Sprintf("in the compartment of %d", n))
	}
	line := fmt.Sprintf("%s\t%s\t%s", op, ch.Key, strings.Join(said, ", "))
	if c.Bodies && ch.Body != nil {
		line += "\t" + printable(ch.Body)
	}
	return line
}

func (c *validateCmd) read(ctx context.Context, conf *config.Config) ([]decode.Record, error) {
	if c.File != "" {
		return readRecords(c.File, c.Records)
	}
	secure, err := kafkaTLS(conf.Kafka.TLS)
	if err != nil {
		return nil, err
	}
	login, err := kafkaSASL(conf.Kafka.SASL)
	if err != nil {
		return nil, err
	}
	tail := &tail{want: c.Records, left: map[store.Partition]bool{}}
	ctx, tail.stop = context.WithTimeout(ctx, c.Wait)
	defer tail.stop()
	src, err := source.New(source.Config{
		Brokers: conf.Kafka.Brokers, TLS: secure, SASL: login, Topics: []source.Topics{{Name: c.Topic}}, MaxRecord: int(conf.Kafka.MaxRecord),
	}, tail)
	if err != nil {
		return nil, err
	}
	if err := src.Run(ctx, tail); err != nil {
		return nil, err
	}
	if tail.begun && len(tail.left) == 0 {
		return tail.records, nil
	}
	brokers := strings.Join(conf.Kafka.Brokers, ", ")
	switch s := src.Status(); {
	case len(s.Missing) > 0:
		return nil, fmt.Errorf("the brokers have no topic %s", c.Topic)
	case s.Trouble != "":
		return nil, fmt.Errorf("the brokers %s cannot be asked: %s; are they up, and kafka.tls and kafka.sasl as they want them?", brokers, s.Trouble)
	case tail.held != "":
		return nil, fmt.Errorf("the topic %s cannot be read: %s", c.Topic, tail.held)
	case !tail.begun || len(tail.records) == 0:
		return nil, fmt.Errorf("the brokers %s have not answered within %v: give them longer (--wait)", brokers, c.Wait)
	}
	return tail.records, nil
}

// A tail takes the newest records of each partition of a topic.
type tail struct {
	want int
	stop context.CancelFunc

	mu      sync.Mutex
	begun   bool
	from    map[store.Partition]int64
	until   map[store.Partition]int64
	left    map[store.Partition]bool
	records []decode.Record
	held    string // why a partition is not read
}

// Now implements source.Log.
func (*tail) Now() fhir.Instant { return fhir.FromTime(time.Now()) }

// Partition implements source.Log: reading begins a little before the end.
func (t *tail) Partition(id store.Partition) (store.PartitionState, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from, known := t.from[id]
	return store.PartitionState{Next: from, LeaderEpoch: -1, Seen: fhir.None}, known // it was never away
}

// Discover implements source.Handler.
func (t *tail) Discover(_ context.Context, d store.Discovery) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun || len(d.Partitions) == 0 {
		return nil
	}
	t.begun, t.from, t.until = true, map[store.Partition]int64{}, map[store.Partition]int64{}
	for _, p := range d.Partitions {
		t.from[p.Partition], t.until[p.Partition] = max(p.Start, p.End-int64(t.want)), p.End
		if p.End > p.Start {
			t.left[p.Partition] = true
		}
	}
	if len(t.left) == 0 {
		t.stop()
	}
	return nil
}

// Handle implements source.Handler.
func (t *tail) Handle(_ context.Context, a *source.Answer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range a.Records {
		if r.Offset < t.from[a.Partition] || r.Offset >= t.until[a.Partition] {
			continue
		}
		t.records = append(t.records, decode.Record{
			Topic: a.Partition.Topic, Partition: a.Partition.ID, Offset: r.Offset, Timestamp: r.Timestamp,
			Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value), Headers: r.Headers,
		})
	}
	if a.Next < t.until[a.Partition] {
		return nil
	}
	if delete(t.left, a.Partition); len(t.left) == 0 {
		t.stop()
	}
	return source.ErrStop
}

// Hold implements source.Handler.
func (t *tail) Hold(_ store.Partition, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = reason
}

// Release implements source.Handler.
func (*tail) Release(store.Partition) {}

// forgetful keeps no schemas: nothing is stored.
type forgetful struct{}

func (forgetful) Remember(string, []byte) error     { return nil }
func (forgetful) Remembered(string) ([]byte, error) { return nil, nil }

// readRecords reads the first records of a file.
func readRecords(path string, limit int) ([]decode.Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, int(decode.DefaultMaxRecord))
	var records []decode.Record
	for n := 1; lines.Scan() && len(records) < limit; n++ {
		line := lines.Bytes()
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf")) // of editors
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		rec, err := parseRecord(bytes.Clone(line))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if rec.Offset == 0 {
			rec.Offset = int64(n) // the line
		}
		records = append(records, rec)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return records, nil
}

// parseRecord reads a line: a record with its key, or the value alone. A value may have members
// that a record has, too: a Communication has a topic, and a payload; a message of HAPI's has
// headers, and a payload.
func parseRecord(line []byte) (decode.Record, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(line, &members); err != nil || members == nil {
		return decode.Record{}, errors.New("is no JSON object: each line is to be a whole one")
	}
	var m struct {
		Topic     string          `json:"topic"`
		Partition int32           `json:"partition"`
		Offset    int64           `json:"offset"`
		TS        *int64          `json:"ts"`
		Headers   json.RawMessage `json:"headers"`
		Key       json.RawMessage `json:"key"`
		Value     json.RawMessage `json:"value"`
		Payload   json.RawMessage `json:"payload"`
		KeyB64    []byte          `json:"keyBase64"` // as deadletter export writes it
		ValueB64  []byte          `json:"valueBase64"`
	}
	if !isRecord(members) {
		return decode.Record{Timestamp: fhir.None, Value: line}, nil
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return decode.Record{}, errors.New("is not a record: topic is text, ts, partition and offset are numbers, keyBase64 and valueBase64 base64")
	}
	if m.Value == nil {
		m.Value = m.Payload
	}
	rec := decode.Record{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Timestamp: fhir.None, Key: fieldOf(m.Key), Value: fieldOf(m.Value)}
	if m.KeyB64 != nil {
		rec.Key = m.KeyB64
	}
	if m.ValueB64 != nil {
		rec.Value = m.ValueB64
	}
	if m.TS != nil {
		rec.Timestamp = fhir.Instant(*m.TS)
	}
	var err error
	rec.Headers, err = parseHeaders(m.Headers)
	return rec, err
}

// isRecord tells a record from a value alone: it has a value, says something beside it, and
// neither is a resource nor an event.
func isRecord(members map[string]json.RawMessage) bool {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return members[name] != nil })
	}
	switch {
	case has("resourceType", "specversion"):
		return false
	case has("value", "valueBase64"):
		return has("topic", "key", "keyBase64", "headers")
	}
	return has("payload") && has("topic", "key")
}

// fieldOf is what a JSON string says; other JSON stands for itself, null for Kafka's.
func fieldOf(raw json.RawMessage) []byte {
	var text string
	switch {
	case raw == nil || string(raw) == "null":
		return nil
	case json.Unmarshal(raw, &text) == nil:
		return []byte(text)
	}
	return raw
}

// parseHeaders reads {"name": "value"}, the list of names and values that kcat writes, or the
// objects that deadletter export does.
func parseHeaders(raw json.RawMessage) (headers []store.Header, err error) {
	var pairs []string
	var named map[string]string
	var objects []deadHeader
	switch {
	case raw == nil || string(raw) == "null":
	case json.Unmarshal(raw, &named) == nil:
		for _, name := range slices.Sorted(maps.Keys(named)) {
			headers = append(headers, store.Header{Key: name, Value: []byte(named[name])})
		}
	case json.Unmarshal(raw, &pairs) == nil && len(pairs)%2 == 0:
		for pair := range slices.Chunk(pairs, 2) {
			headers = append(headers, store.Header{Key: pair[0], Value: []byte(pair[1])})
		}
	case json.Unmarshal(raw, &objects) == nil:
		for _, h := range objects {
			value := h.ValueB64
			if h.Value != nil {
				value = []byte(*h.Value)
			}
			headers = append(headers, store.Header{Key: h.Name, Value: value})
		}
	default:
		err = errors.New("headers are no object of strings")
	}
	return headers, err
}
