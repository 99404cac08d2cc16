// Package probe looks at some records and tells what they are: what each is understood as
// in a format, and which format they look like. It refuses to know where they come from.
package probe

import (
	"cmp"
	"errors"
	"slices"

	"tidemark/pipeline/decode"
	"tidemark/pipeline/join"
	"tidemark/store"
	"tidemark/store/fhir"
)

// A Finding is what became of one record.
type Finding struct {
	Record  decode.Record
	Changes []store.Change // none: it says nothing, or Part
	Part    bool           // it says something beside others, of which it may be the last
	Refused string         // why, "" if it was understood
}

// Look decodes each record. An error is none of a record's: a registry that is away.
func Look(d decode.Decoder, records []decode.Record) ([]Finding, error) {
	found := make([]Finding, len(records))
	joined, joins := d.(decode.Joined)
	var together *join.Join
	if joins {
		together = join.New(joined, join.Memory{}, func() fhir.Instant { return 0 }, nil)
	}
	for i, rec := range records {
		found[i].Record = rec
		// Decoders keep what they are given, and there may be several.
		rec.Key, rec.Value = slices.Clone(rec.Key), slices.Clone(rec.Value)
		var err error
		if joins {
			var taken join.Taken
			taken, err = together.Take(rec)
			found[i].Changes, found[i].Part = taken.Changes, len(taken.Notes) > 0
		} else {
			found[i].Changes, err = d.Decode(rec)
		}
		if refused, is := errors.AsType[*decode.Error](err); is {
			found[i].Refused = refused.Reason
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Counts are the findings in numbers.
type Counts struct{ Upserts, Deletions, Parts, Silent, Refused int }

// Count counts upserts and deletions by changes, the others by records; those that make no
// change yet among the parts.
func Count(found []Finding) (c Counts) {
	for _, f := range found {
		switch {
		case f.Refused != "":
			c.Refused++
		case len(f.Changes) == 0 && f.Part:
			c.Parts++
		case len(f.Changes) == 0:
			c.Silent++
		}
		for i := range f.Changes {
			if f.Changes[i].Delete {
				c.Deletions++
			} else {
				c.Upserts++
			}
		}
	}
	return c
}

// A Guess is how well a format fits some records.
type Guess struct {
	Format, Preset string
	Understood     int // of the records, as a change of some resource
	Named          int // of the records, by headers that only this format's producers write
	Silent         int // of the records
}

// String is the guess as the configuration has it.
func (g Guess) String() string {
	if g.Preset == "" {
		return "format: " + g.Format
	}
	return "format: " + g.Format + ", preset: " + g.Preset
}

// specific are the formats in the order in which they are believed when several understand
// the same, and headers do not decide: a resource alone may be an outbox's, too, and a Bundle a
// resource.
var specific = []string{"notification", "bundle", "resource", "hapi-message", "lfh-event", "firely", "cloudevents", "outbox", "debezium"}

// naming are the headers by which records say their format.
var naming = map[string][]string{
	"cloudevents": {"ce_specversion"},
	"outbox":      {"eventType"},
	"resource":    {"fhir-op", "fhir-version", "fhir-last-updated"},
}

func named(format string, rec decode.Record) bool {
	return slices.ContainsFunc(rec.Headers, func(h store.Header) bool { return slices.Contains(naming[format], h.Key) })
}

// attempts calls try for each format that may be guessed, with each preset.
func attempts(try func(format, preset string) error) error {
	for _, format := range specific {
		presets := []string{""}
		if format == "debezium" {
			presets = decode.Presets()
		}
		for _, preset := range presets {
			if err := try(format, preset); err != nil {
				return err
			}
		}
	}
	return nil
}

// A Refusal is why a format makes no change of a record.
type Refusal struct {
	Format, Reason string // "": the record says nothing in it
}

// Refusals are why formats make no change of a record, each reason once: a message without its resource
// is understood by none, and by its own format refused with another reason than by the others.
func Refusals(rec decode.Record, o decode.Options) ([]Refusal, error) {
	var all []Refusal
	err := attempts(func(format, preset string) error {
		o.Preset, o.Tables = preset, nil
		d, err := decode.New(format, o)
		if err != nil {
			return err
		}
		found, err := Look(d, []decode.Record{rec})
		if err != nil {
			return err
		}
		if r := (Refusal{format, found[0].Refused}); len(found[0].Changes) == 0 && !slices.Contains(all, r) {
			all = append(all, r)
		}
		return nil
	})
	return all, err
}

// Guesses are the formats that understand any of the records, the best first. What tables of
// one's own mean nobody can guess, nor the fields of plain Avro.
func Guesses(records []decode.Record, o decode.Options) ([]Guess, error) {
	var all []Guess
	try := func(format, preset string) error {
		o.Preset, o.Tables = preset, nil
		d, err := decode.New(format, o)
		if err != nil {
			return err
		}
		found, err := Look(d, records)
		if err != nil {
			return err
		}
		g := Guess{Format: format, Preset: preset}
		for _, f := range found {
			if f.Refused == "" && named(format, f.Record) {
				g.Named++
			}
			switch {
			case len(f.Changes) > 0 || f.Part:
				g.Understood++
			case f.Refused == "":
				g.Silent++
			}
		}
		if g.Understood > 0 {
			all = append(all, g)
		}
		return nil
	}
	if err := attempts(try); err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b Guess) int {
		return cmp.Or(-cmp.Compare(a.Understood, b.Understood), -cmp.Compare(a.Named, b.Named), -cmp.Compare(a.Silent, b.Silent))
	})
	return all, nil
}
