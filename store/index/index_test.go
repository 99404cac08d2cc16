package index

import (
	"bytes"
	"cmp"
	"errors"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

var origin = segment.Partition{Topic: "t", ID: 3}

func known(n uint64) (segment.Partition, bool) { return origin, n == 7 }

func TestState(t *testing.T) {
	for _, s := range []State{
		{Kind: segment.Live, Seq: 1, Instant: 5, Length: 10, Clock: segment.Clock{Version: segment.NoVersion, LastUpdated: fhir.None, Timestamp: fhir.None, Origin: origin}, Placed: 5, Life: segment.NoLife},
		{
			Kind: segment.Live, Seq: 1 << 40, Instant: 1_700_000_000_000, Length: 1 << 30, Hash: 1<<63 + 1, Placed: 1_600_000_000_000, Patients: 9,
			Clock: segment.Clock{Version: 4, Inherited: true, LastUpdated: 1_700_000_000_001, Position: 1 << 60, UpTo: true, Timestamp: -5, Origin: origin, Offset: 1 << 50},
			Life:  segment.Life{FloorVersion: 3, FloorUpdated: 7, Reborn: true, Tombstones: []fhir.Instant{1, 2}},
		},
		{Kind: segment.Live, Seq: 3, Clock: segment.Clock{Version: segment.NoVersion, LastUpdated: 4, Position: 5, Told: true, Timestamp: fhir.None, Origin: origin}, Life: segment.NoLife},
		{Kind: segment.Internal, Seq: 2, Instant: -1, Clock: segment.Clock{Version: 0, LastUpdated: fhir.None, Timestamp: 3, Origin: origin}, Placed: -1, Life: segment.Life{FloorVersion: segment.NoVersion, FloorUpdated: fhir.None, Tombstones: []fhir.Instant{3}}},
	} {
		b := s.Encode(nil, 7)
		got, err := DecodeState(b, known)
		if err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(s, got); d != "" {
			t.Errorf("state:\n%s", d)
		}
		for n := range b {
			if _, err := DecodeState(b[:n], known); !errors.Is(err, ErrCorrupt) && !errors.Is(err, segment.ErrCorrupt) {
				t.Errorf("%d of %d bytes: %v", n, len(b), err)
			}
		}
	}
	if _, err := DecodeState((&State{Clock: segment.Clock{Origin: origin}}).Encode(nil, 8), known); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an unknown partition: %v", err)
	}
}

func TestDeaths(t *testing.T) {
	want := []Death{
		{Section: segment.Section{Kind: segment.Live, Type: 9}, Place: segment.Place{Patients: 9, Bound: segment.Bound{Instant: 100, Seq: 50}}, Removed: true, Length: 7, At: 100},
		{Section: segment.Section{Kind: segment.Internal, Type: 1}, Place: segment.Place{Bound: segment.Bound{Instant: -3, Seq: 2}}, Length: 1 << 30, At: 1 << 50},
	}
	got, err := DecodeDeaths(nil, EncodeDeaths(want))
	if err != nil || !gocmp.Equal(want, got) {
		t.Errorf("deaths: %v, %v", got, err)
	}
}

func TestMetaRefusesOtherFormats(t *testing.T) {
	m := Meta{Store: [16]byte{1}, Epoch: 2, NextSegment: 3, NextSeq: 4, Commit: 5, NextMerge: 6, Newest: fhir.None, Closed: segment.Upto(7)}
	b := m.Encode()
	if got, err := DecodeMeta(b); err != nil || got != m {
		t.Errorf("meta: %v, %v", got, err)
	}
	b[0] = Format + 1
	if _, err := DecodeMeta(b); err == nil {
		t.Error("a later format was read")
	}
}

// FuzzKeys: keys come back, and their byte order is the order of what they say.
func FuzzKeys(f *testing.F) {
	f.Add("fhir", int32(0), int64(5), "a", "b2", int32(9), int64(-1), "c")
	f.Fuzz(func(t *testing.T, topicA string, idA int32, instantA int64, resA, topicB string, idB int32, instantB int64, resB string) {
		a, b := segment.Partition{Topic: topicA, ID: idA}, segment.Partition{Topic: topicB, ID: idB}
		if name(topicA) && name(topicB) && idA >= 0 && idB >= 0 {
			if back, err := ParsePartitionKey(PartitionKey(a)); err != nil || back != a {
				t.Errorf("partition key of %v: %v, %v", a, back, err)
			}
			if bytes.Compare(PartitionKey(a), PartitionKey(b)) != a.Compare(b) {
				t.Errorf("partition keys of %v and %v are out of order", a, b)
			}
		}
		i, j := fhir.Instant(instantA), fhir.Instant(instantB)
		if back, err := ParsePromiseKey(PromiseKey(i)); err != nil || back != i {
			t.Errorf("promise key of %d: %d, %v", i, back, err)
		}
		if bytes.Compare(PromiseKey(i), PromiseKey(j)) != cmp.Compare(i, j) {
			t.Errorf("promise keys of %d and %d are out of order", i, j)
		}
		if fhir.ValidID(resA) && fhir.ValidID(resB) {
			k := fhir.Key{Type: 5, ID: resA}
			if back, err := ParseRowKey(RowKey(nil, k)); err != nil || back != k {
				t.Errorf("row key: %v", err)
			}
			if same := bytes.Equal(RowKey(nil, k), RowKey(nil, fhir.Key{Type: 5, ID: resB})); same != (resA == resB) {
				t.Errorf("row keys of two ids")
			}
		}
	})
}

// name tells whether s can be a Kafka topic: no zero byte, not empty.
func name(s string) bool {
	return s != "" && !bytes.ContainsRune([]byte(s), 0)
}
