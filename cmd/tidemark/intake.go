package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/probe"
	"tidemark/pipeline"
	"tidemark/pipeline/decode"
	"tidemark/pipeline/registry"
	"tidemark/pipeline/source"
	"tidemark/store"
)

// newIntake makes the pipeline from Kafka into the store.
func newIntake(c *config.Config, db *store.DB, tel *telemetry, log *slog.Logger) (*pipeline.Pipeline, error) {
	o, err := intakeOptions(c, db, log)
	if err != nil {
		return nil, err
	}
	o.Meter, o.Tracer = tel.meters.Meter("tidemark/pipeline"), tel.tracers.Tracer("tidemark/pipeline")
	return pipeline.New(o, newSpaceGuard(db, c.Store.Path, int64(c.Store.MinFree), log))
}

// intakeOptions are what is configured of it.
func intakeOptions(c *config.Config, keep registry.Keeper, log *slog.Logger) (o pipeline.Options, err error) {
	secure, err := kafkaTLS(c.Kafka.TLS)
	if err != nil {
		return o, err
	}
	login, err := kafkaSASL(c.Kafka.SASL)
	if err != nil {
		return o, err
	}
	schemas, err := schemaRegistry(&c.SchemaRegistry, keep)
	if err != nil {
		return o, err
	}
	topics, err := intakeTopics(c, schemas)
	if err != nil {
		return o, err
	}
	return pipeline.Options{
		Source:    source.Config{Brokers: c.Kafka.Brokers, TLS: secure, SASL: login},
		Topics:    topics,
		MaxRecord: int64(c.Kafka.MaxRecord),
		Group:     c.Kafka.Group,
		Likely:    likely,
		Logger:    log,
	}, nil
}

// likely is the format that records look like, as the configuration has it.
func likely(o decode.Options, records []decode.Record) string {
	guesses, err := probe.Guesses(records, o)
	if err != nil || len(guesses) == 0 { // a registry that is away is no reason to tell nothing else
		return ""
	}
	return fmt.Sprintf("%s (%d of the last %d)", guesses[0], guesses[0].Understood, len(records))
}

// ownBases are those under which references lead to resources here.
func ownBases(c *config.Config) []string {
	return append([]string{c.HTTP.PublicURL}, c.Resources.OwnBases...)
}

// schemaRegistry is nil if none is configured.
func schemaRegistry(c *config.SchemaRegistry, keep registry.Keeper) (decode.Schemas, error) {
	if c.URL == "" {
		return nil, nil
	}
	o := registry.Config{URL: c.URL, Username: c.Username, Keeper: keep}
	if c.PasswordFile != "" {
		text, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read schema_registry.password_file: %w", err)
		}
		o.Password = strings.TrimRight(string(text), "\r\n")
	}
	if c.CAFile != "" {
		pool, err := authorities(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read schema_registry.ca_file: %w", err)
		}
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	return registry.New(o)
}

func intakeTopics(c *config.Config, schemas decode.Schemas) ([]pipeline.Topic, error) {
	topics := make([]pipeline.Topic, 0, len(c.Topics))
	for i, t := range c.Topics {
		pattern, err := config.WholeName(t.Pattern)
		if err != nil {
			return nil, fmt.Errorf("topics[%d].pattern: %w", i, err)
		}
		stopAfter := *t.StopAfter
		if stopAfter == 0 {
			stopAfter = -1 // never; the pipeline's 0 is its default
		}
		o, err := decodeOptions(&t, ownBases(c), schemas)
		if err != nil {
			return nil, fmt.Errorf("topics[%d]: %w", i, err)
		}
		topics = append(topics, pipeline.Topic{
			Name: t.Name, Pattern: pattern, Format: t.Format, Reading: reading(&t, c.SchemaRegistry.URL), StopAfter: stopAfter, Decode: o,
		})
	}
	return topics, nil
}

func decodeOptions(t *config.Topic, bases []string, schemas decode.Schemas) (decode.Options, error) {
	zone, err := time.LoadLocation(t.TimeZone)
	if err != nil {
		return decode.Options{}, fmt.Errorf("time_zone: %w", err)
	}
	o := decode.Options{DropTypes: t.DropTypes, OwnBases: bases, Mixed: t.Mixed, Preset: t.Preset, TimeZone: zone, Schemas: schemas}
	for _, table := range t.Tables {
		o.Tables = append(o.Tables, decode.Table{
			Name: table.Name, Type: table.Type, TypeColumn: table.TypeColumn, ID: table.ID, Version: table.Version,
			LastUpdated: table.LastUpdated, Body: table.Body, Deleted: table.Deleted, Skip: table.Skip, History: table.History, Optional: table.Optional, Ignore: table.Ignore,
		})
	}
	return o, nil
}

// reading names what decides how records are understood beside the format; "" if nothing.
func reading(t *config.Topic, registryURL string) string {
	switch {
	case t.Mixed:
		return "mixed"
	case t.Format == "outbox" && registryURL != "": // it may be written in Avro
	case t.Preset == "" && len(t.Tables) == 0:
		return ""
	}
	b, err := json.Marshal([]any{t.Preset, t.Tables, t.TimeZone, registryURL})
	if err != nil {
		panic(err) // words only
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
