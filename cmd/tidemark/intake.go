package main

import (
	"fmt"
	"log/slog"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/pipeline"
	"tidemark/pipeline/decode"
	"tidemark/pipeline/source"
	"tidemark/store"
)

// newIntake makes the pipeline from Kafka into the store.
func newIntake(c *config.Config, db *store.DB, tel *telemetry, log *slog.Logger) (*pipeline.Pipeline, error) {
	secure, err := kafkaTLS(c.Kafka.TLS)
	if err != nil {
		return nil, err
	}
	login, err := kafkaSASL(c.Kafka.SASL)
	if err != nil {
		return nil, err
	}
	topics, err := intakeTopics(c.Topics, ownBases(c))
	if err != nil {
		return nil, err
	}
	return pipeline.New(pipeline.Options{
		Source:    source.Config{Brokers: c.Kafka.Brokers, TLS: secure, SASL: login},
		Topics:    topics,
		MaxRecord: int64(c.Kafka.MaxRecord),
		Group:     c.Kafka.Group,
		Logger:    log,
		Meter:     tel.meters.Meter("tidemark/pipeline"),
		Tracer:    tel.tracers.Tracer("tidemark/pipeline"),
	}, newSpaceGuard(db, c.Store.Path, int64(c.Store.MinFree), log))
}

// ownBases are those under which references lead to resources here.
func ownBases(c *config.Config) []string {
	return append([]string{c.HTTP.PublicURL}, c.Resources.OwnBases...)
}

func intakeTopics(list []config.Topic, bases []string) ([]pipeline.Topic, error) {
	topics := make([]pipeline.Topic, 0, len(list))
	for i, t := range list {
		pattern, err := config.WholeName(t.Pattern)
		if err != nil {
			return nil, fmt.Errorf("topics[%d].pattern: %w", i, err)
		}
		stopAfter := *t.StopAfter
		if stopAfter == 0 {
			stopAfter = -1 // never; the pipeline's 0 is its default
		}
		topics = append(topics, pipeline.Topic{
			Name: t.Name, Pattern: pattern, Format: t.Format, StopAfter: stopAfter,
			Decode: decode.Options{DropTypes: t.DropTypes, OwnBases: bases},
		})
	}
	return topics, nil
}
