package reconcile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"tidemark/store"
	"tidemark/store/fhir"
)

// What a store has goes to the process that compares as lines of fields, between which are
// tabs. Neither types and ids nor topics hold any.

// WriteRows writes what a store has of each resource of some types, sorted.
func WriteRows(ctx context.Context, db *store.DB, types []fhir.Type, out io.Writer) error {
	w := bufio.NewWriterSize(out, 64<<10)
	var line []byte
	err := db.EachNewest(ctx, types, func(n *store.Newest) error {
		line = appendRow(line[:0], n)
		_, err := w.Write(line)
		return err
	})
	if err != nil {
		return err
	}
	return w.Flush()
}

// fields are how many a row has.
const fields = 13

func appendRow(b []byte, n *store.Newest) []byte {
	b = append(b, n.Key.String()...)
	for _, v := range [fields - 3]int64{
		int64(n.Kind), int64(n.Seq), int64(n.Instant), n.Clock.Version, flag(n.Clock.Inherited), int64(n.Clock.LastUpdated), int64(n.Clock.Timestamp),
		n.Life.FloorVersion, int64(n.Life.FloorUpdated), flag(n.Life.Reborn),
	} {
		b = strconv.AppendInt(append(b, '\t'), v, 10)
	}
	b = strconv.AppendUint(append(b, '\t'), n.Hash, 16)
	b = append(append(b, '\t'), n.Clock.Origin.Topic...)
	return append(b, '\n')
}

func flag(set bool) int64 {
	if set {
		return 1
	}
	return 0
}

var errRow = errors.New("the process that has the store open says something else than what it has: is it of another version?")

// readRow reads one; io.EOF: there are no more.
func readRow(in *bufio.Reader) (*store.Newest, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%w (%w)", errRow, err)
	}
	parts := bytes.Split(line[:len(line)-1], []byte{'\t'})
	if len(parts) != fields {
		return nil, errRow
	}
	n := &store.Newest{}
	var bad error
	if n.Key, bad = fhir.ParseKey(string(parts[0])); bad != nil {
		return nil, errRow
	}
	number := func(i int) int64 {
		v, err := strconv.ParseInt(string(parts[i]), 10, 64)
		bad = errors.Join(bad, err)
		return v
	}
	n.Kind, n.Seq, n.Instant = store.Kind(number(1)), uint64(number(2)), fhir.Instant(number(3))
	n.Clock.Version, n.Clock.Inherited = number(4), number(5) != 0
	n.Clock.LastUpdated, n.Clock.Timestamp = fhir.Instant(number(6)), fhir.Instant(number(7))
	n.Life.FloorVersion, n.Life.FloorUpdated, n.Life.Reborn = number(8), fhir.Instant(number(9)), number(10) != 0
	n.Hash, err = strconv.ParseUint(string(parts[11]), 16, 64)
	n.Clock.Origin.Topic = string(parts[12])
	if bad = errors.Join(bad, err); bad != nil {
		return nil, errRow
	}
	return n, nil
}

// WriteContent writes a hash of what each living resource of some types says, old versions
// too, in any order.
func WriteContent(ctx context.Context, db *store.DB, types []fhir.Type, out io.Writer) error {
	w := bufio.NewWriterSize(out, 64<<10)
	err := db.EachLine(ctx, types, func(key fhir.Key, seq uint64, line []byte) error {
		_, err := fmt.Fprintf(w, "%s\t%d\t%x\n", key, seq, Canonical(bytes.TrimSpace(line)))
		return err
	})
	if err != nil {
		return err
	}
	return w.Flush()
}

func readContent(in *bufio.Reader) (key fhir.Key, seq, hash uint64, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return key, 0, 0, io.EOF
		}
		return key, 0, 0, fmt.Errorf("%w (%w)", errRow, err)
	}
	parts := bytes.Split(line[:len(line)-1], []byte{'\t'})
	if len(parts) != 3 {
		return key, 0, 0, errRow
	}
	key, err = fhir.ParseKey(string(parts[0]))
	seq, seqErr := strconv.ParseUint(string(parts[1]), 10, 64)
	hash, hashErr := strconv.ParseUint(string(parts[2]), 16, 64)
	if errors.Join(err, seqErr, hashErr) != nil {
		return key, 0, 0, errRow
	}
	return key, seq, hash, nil
}
