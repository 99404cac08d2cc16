// Package decode turns Kafka records into changes: one record in, the changes
// that it holds out. It knows the wire formats, and nothing of Kafka, of the
// store's order or of what became of a change.
//
// What cannot be decoded is an *Error, which is no trouble of the stream: the
// caller makes a dead letter of the record and goes on.
package decode

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tidemark/store"
	"tidemark/store/fhir"
)

// A Record is a Kafka record as the source read it.
//
// Value and Key are handed over: bodies and dead letters alias them, and the
// store keeps those. Whoever calls Decode or DeadLetter must not use the bytes
// for anything else, before or after.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Timestamp  fhir.Instant // None if the record has none
	Key, Value []byte       // nil is Kafka's null
	Headers    []store.Header
}

// A Decoder understands one wire format.
type Decoder interface {
	// Decode returns the changes that the record holds, in their order; none if
	// they are of a dropped type. It is safe for concurrent use.
	Decode(rec Record) ([]store.Change, error)
}

// Error is the record class of errors: this record cannot be decoded, however
// often one tries. Reason is one of our own sentences and never holds anything
// of the record.
type Error struct {
	Topic     string
	Partition int32
	Offset    int64
	Reason    string
}

// Error names the record and the reason.
func (e *Error) Error() string {
	return fmt.Sprintf("decode %s/%d at offset %d: %s", e.Topic, e.Partition, e.Offset, e.Reason)
}

func refuse(rec Record, reason string) error {
	return &Error{Topic: rec.Topic, Partition: rec.Partition, Offset: rec.Offset, Reason: reason}
}

// DefaultMaxRecord is the size above which a record is not decoded, if nothing
// else is configured (kafka.max_record).
const DefaultMaxRecord int64 = 128 << 20

// Options are what all formats have in common. The zero value works.
type Options struct {
	// MaxRecord is the size in bytes (key, value and headers) above which a
	// record becomes a dead letter whose value is not looked at; 0 is
	// DefaultMaxRecord.
	MaxRecord int64
	// DropTypes names resource types whose changes are not taken over.
	DropTypes []string
	// OwnBases are the bases (http://server/fhir) under which absolute
	// references are references to our own resources.
	OwnBases []string
	// Mixed: of the format bundle, resources by themselves count as in the format resource,
	// and so do null values whose key is Type/id.
	Mixed bool
	// Preset names the FHIR server whose tables the format debezium reads, see Presets.
	Preset string
	// Tables are those of the format debezium, before those of the preset.
	Tables []Table
	// TimeZone is that of times without one in tables; nil is UTC.
	TimeZone *time.Location
	// Schemas are those of the registry that records in Avro name; nil: there is none.
	Schemas Schemas
	// MaxDepth bounds the nesting of a resource; 0 is the scanner's default.
	MaxDepth int
}

// Validate joins all faults.
func (o Options) Validate() error {
	var faults []error
	if o.MaxRecord < 0 {
		faults = append(faults, fmt.Errorf("max record %d: must not be negative", o.MaxRecord))
	}
	if o.MaxDepth < 0 {
		faults = append(faults, fmt.Errorf("max depth %d: must not be negative", o.MaxDepth))
	}
	for _, name := range o.DropTypes {
		if _, ok := fhir.ParseType(name); !ok {
			faults = append(faults, fmt.Errorf("drop type %q: not a resource type of FHIR R4", name))
		}
	}
	if _, known := presets[o.Preset]; o.Preset != "" && !known {
		faults = append(faults, fmt.Errorf("preset %q: known are %s", o.Preset, strings.Join(Presets(), ", ")))
	}
	for i := range o.Tables {
		if err := o.Tables[i].Validate(); err != nil {
			faults = append(faults, fmt.Errorf("table %d: %w", i, err))
		}
	}
	return errors.Join(faults...)
}

func (o Options) maxRecord() int64 {
	if o.MaxRecord == 0 {
		return DefaultMaxRecord
	}
	return o.MaxRecord
}

func (o Options) dropped() map[fhir.Type]bool {
	drop := make(map[fhir.Type]bool, len(o.DropTypes))
	for _, name := range o.DropTypes {
		if t, ok := fhir.ParseType(name); ok {
			drop[t] = true
		}
	}
	return drop
}

// formats are the wire formats by their names in the configuration.
var formats = map[string]func(Options) Decoder{
	"avro":         newAvro,
	"bundle":       newBundle,
	"cloudevents":  newCloudEvents,
	"debezium":     newDebezium,
	"firely":       newFirely,
	"hapi-message": newHAPI,
	"lfh-event":    newLFH,
	"notification": newNotification,
	"outbox":       newOutbox,
	"resource":     newResource,
}

// Formats lists the known wire formats.
func Formats() []string { return slices.Sorted(maps.Keys(formats)) }

// New returns the decoder of a format.
func New(format string, o Options) (Decoder, error) {
	newDecoder, ok := formats[format]
	if !ok {
		return nil, fmt.Errorf("unknown format %q: known are %s", format, strings.Join(Formats(), ", "))
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("options of format %s: %w", format, err)
	}
	if (format == "debezium" || format == "avro") && o.Preset == "" && len(o.Tables) == 0 {
		return nil, fmt.Errorf("format %s: say whose tables these are by a preset (%s), or what their columns mean", format, strings.Join(Presets(), ", "))
	}
	if o.Mixed && format != "bundle" {
		return nil, fmt.Errorf("format %s: only topics of the format bundle are mixed", format)
	}
	if o.Preset == hapiPreset {
		if format != "debezium" || len(o.Tables) > 0 {
			return nil, fmt.Errorf("preset %s: goes with the format debezium, and without tables of one's own", hapiPreset)
		}
		return newHAPITables(o), nil
	}
	return newDecoder(o), nil
}
