package decode

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"

	"tidemark/store"
	"tidemark/store/fhir"
)

// keptOfLarge is how much of a record above the limit a dead letter keeps:
// enough to see what it is, and nothing that hurts.
const keptOfLarge = 64 << 10

// DeadLetter makes of a record the change that says it could not be decoded.
// The record is kept whole, unless it is larger than DefaultMaxRecord.
func DeadLetter(rec Record, reason string) store.Change {
	return Options{}.DeadLetter(rec, reason)
}

// DeadLetter is DeadLetter with the options' own limit. Of a larger record only
// the length and hash of the value stay, and the first 64 KiB each of key, value
// and headers: copies, so that the rest can go.
func (o Options) DeadLetter(rec Record, reason string) store.Change {
	dead := &store.DeadLetter{Reason: reason, Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
	if rec.size() > o.maxRecord() {
		sum := sha256.Sum256(rec.Value)
		dead.Key, dead.Value, dead.Headers = head(rec.Key), head(rec.Value), headHeaders(rec.Headers)
		dead.SHA256 = hex.EncodeToString(sum[:])
		dead.Truncated = true
	}
	dead.Length = int64(len(rec.Value))
	return store.Change{
		Version:     store.NoVersion,
		LastUpdated: fhir.None,
		Time:        fhir.None,
		Timestamp:   rec.Timestamp,
		Offset:      rec.Offset,
		Dead:        dead,
	}
}

// size is what the record weighs, as far as it is not ours.
func (rec Record) size() int64 {
	n := len(rec.Key) + len(rec.Value)
	for _, h := range rec.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return int64(n)
}

// head copies the beginning of b; nil stays nil, for it is Kafka's null.
func head(b []byte) []byte { return bytes.Clone(b[:min(len(b), keptOfLarge)]) }

// headHeaders copies the leading headers that fit together.
func headHeaders(headers []store.Header) []store.Header {
	var kept []store.Header
	room := keptOfLarge
	for _, h := range headers {
		room -= len(h.Key) + len(h.Value)
		if room < 0 {
			break
		}
		kept = append(kept, store.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
	}
	return kept
}
