package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/index"
	"tidemark/store/segment"
)

// TestScript runs the conversations in testdata/script. Instants are
// milliseconds since the start of the test: the bubble's clock.
func TestScript(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{fs: vfs.NewCrashableMem(), start: fhir.FromTime(time.Now()), next: map[int]int64{}}
				defer s.close()
				datadriven.RunTest(t, path, s.run)
			})
		})
	}
}

type script struct {
	fs    *vfs.MemFS
	db    *DB
	start fhir.Instant
	next  map[int]int64
	job   int
}

func (s *script) close() {
	if s.db != nil {
		s.db.Close()
		s.db = nil
	}
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	out, err := s.do(d)
	if err != nil {
		return out + "error: " + err.Error() + "\n"
	}
	return out
}

func (s *script) do(d *datadriven.TestData) (string, error) {
	switch d.Cmd {
	case "open":
		return s.open(d)
	case "partition":
		return s.partition(d)
	case "apply":
		return s.apply(d)
	case "commit":
		return s.commit()
	case "merge":
		merged, err := s.db.Merge(context.Background())
		return fmt.Sprintf("merged: %v, %d segments\n", merged, s.db.Status().Segments), err
	case "export":
		return s.export(d)
	case "status":
		return s.status(), nil
	case "hold":
		s.db.Hold(Partition{Topic: "t", ID: int32(arg(d, "p", 0))}, "a gap")
		return s.status(), nil
	case "wait":
		time.Sleep(time.Duration(arg(d, "ms", 0)) * time.Millisecond)
		return "", nil
	case "check":
		r, err := s.db.Check(true)
		return fmt.Sprintf("%d rows, %d live, %d dead\n", r.Rows, r.Live, r.Dead), err
	case "crash":
		clone := s.fs.CrashClone(vfs.CrashCloneCfg{})
		s.close()
		s.fs = clone
		return "", nil
	case "close":
		s.close()
		return "", nil
	case "reindex":
		var out strings.Builder
		if err := s.fs.RemoveAll("store/index"); err != nil {
			return "", err
		}
		return "", Reindex(context.Background(), "store", Options{FS: s.fs, Cache: 1 << 20}, &out)
	}
	return "", fmt.Errorf("unknown command %s", d.Cmd)
}

func arg(d *datadriven.TestData, name string, def int64) int64 {
	for _, a := range d.CmdArgs {
		if a.Key == name {
			n, err := strconv.ParseInt(a.Vals[0], 10, 64)
			if err != nil {
				panic(err)
			}
			return n
		}
	}
	return def
}

func (s *script) open(d *datadriven.TestData) (string, error) {
	db, err := Open("store", Options{FS: s.fs, MergeOff: true, Cache: 1 << 20, Allowance: time.Duration(arg(d, "allowance", 1)) * time.Millisecond})
	if err != nil {
		return "", err
	}
	s.db = db
	return fmt.Sprintf("now %s\n", s.at(db.Now())), nil
}

func (s *script) at(i fhir.Instant) string {
	if i == fhir.None {
		return "none"
	}
	return fmt.Sprintf("@%d", i-s.start)
}

func (s *script) partition(d *datadriven.TestData) (string, error) {
	p := int(arg(d, "p", 0))
	err := s.db.Discover(Discovery{
		Complete:   arg(d, "complete", 1) == 1,
		Partitions: []Discovered{{Partition: Partition{Topic: "t", ID: int32(p)}, End: arg(d, "end", 0)}},
	})
	st, _ := s.db.Partition(Partition{Topic: "t", ID: int32(p)})
	s.next[p] = st.Next
	return s.status(), err
}

// apply takes a batch in. Each line is a change: Type/id, then v=, lu=, ts=,
// body= or delete; "poison" is a dead letter.
func (s *script) apply(d *datadriven.TestData) (string, error) {
	p := int(arg(d, "p", 0))
	b := Batch{Partition: Partition{Topic: "t", ID: int32(p)}, LeaderEpoch: -1, Asked: s.start + fhir.Instant(arg(d, "asked", int64(s.db.Now()-s.start)))}
	for line := range strings.Lines(d.Input) {
		ch, err := s.change(strings.Fields(line))
		if err != nil {
			return "", err
		}
		ch.Offset = s.next[p]
		s.next[p]++
		b.Changes = append(b.Changes, ch)
	}
	b.Next = s.next[p]
	b.End = max(b.Next, arg(d, "end", 0))
	if err := s.db.Apply(context.Background(), b); err != nil {
		return "", err
	}
	return s.status(), nil
}

func (s *script) change(words []string) (Change, error) {
	ch := Change{Version: NoVersion, LastUpdated: fhir.None, Time: fhir.None, Timestamp: fhir.None}
	if words[0] == "poison" {
		ch.Dead = &DeadLetter{Reason: "not JSON", Value: []byte("x")}
		words[0] = "Patient/x"
	}
	var err error
	if ch.Key, err = fhir.ParseKey(words[0]); err != nil {
		return ch, err
	}
	body := "x"
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "v":
			ch.Version = n
		case "lu":
			ch.LastUpdated = s.start + fhir.Instant(n)
		case "ts":
			ch.Timestamp = s.start + fhir.Instant(n)
		case "body":
			body = value
		case "of":
			ch.Patients = strings.Split(value, ",")
		case "member":
			for ref := range strings.SplitSeq(value, ",") {
				ch.Members = append(ch.Members, fhir.Member{Ref: ref, Start: fhir.None, End: fhir.None})
			}
		case "delete":
			ch.Delete = true
		default:
			return ch, fmt.Errorf("unknown word %s", w)
		}
	}
	if !ch.Delete {
		ch.Body = fmt.Appendf(nil, `{"resourceType":"%v","id":"%s","x":"%s"}`, ch.Key.Type, ch.Key.ID, body)
	}
	return ch, nil
}

// commit shows the rows of the new segment.
func (s *script) commit() (string, error) {
	before := s.db.view.len()
	if err := s.db.Flush(); err != nil {
		return "", err
	}
	if s.db.view.len() == before {
		return "no segment\n", nil
	}
	g := s.db.view.fresh[len(s.db.view.fresh)-1]
	var out strings.Builder
	fmt.Fprintf(&out, "line %s\n", s.at(g.r.Footer().Line))
	rows, err := allRows(g.r)
	for _, r := range rows {
		fmt.Fprintf(&out, "%d: %s", r.Seq, r.Section)
		if r.Key.ID != "" {
			fmt.Fprintf(&out, " %s", r.Key)
		}
		fmt.Fprintf(&out, " c=%s", s.at(r.Instant))
		if r.Placed != r.Instant {
			fmt.Fprintf(&out, " placed=%s", s.at(r.Placed))
		}
		if len(r.Patients) > 0 {
			fmt.Fprintf(&out, " of=%s", strings.Join(r.Patients, ","))
		}
		out.WriteByte('\n')
	}
	gone := s.db.deathsOf(s.db.view.all(), func(d index.Death) {
		fmt.Fprintf(&out, "dead: %d at %s\n", d.Place.Seq, s.at(d.At))
	})
	return out.String(), errors.Join(err, gone)
}

func (s *script) status() string {
	st := s.db.Status()
	var out strings.Builder
	fmt.Fprintf(&out, "W %s, promised %s", s.at(st.Watermark), s.at(st.Promised))
	for _, p := range st.Partitions {
		fmt.Fprintf(&out, "; %d: next %d", p.Partition.ID, p.Next)
		if !p.Joined {
			out.WriteString(" not joined")
		}
		if p.Held != "" {
			out.WriteString(" held: " + p.Held)
		}
	}
	return out.String() + "\n"
}

func (s *script) export(d *datadriven.TestData) (string, error) {
	s.job++
	snap, err := s.db.Pin(context.Background(), fmt.Sprintf("job-%d", s.job), time.Now(), func(*Snapshot) ([]byte, error) { return nil, nil })
	if err != nil {
		return "", err
	}
	defer snap.Close()
	since, upto := fhir.None, snap.Watermark()
	if n := arg(d, "since", -1); n >= 0 {
		since = s.start + fhir.Instant(n)
	}
	if n := arg(d, "upto", -1); n >= 0 {
		upto = s.start + fhir.Instant(n)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "transactionTime %s\n", s.at(snap.Watermark()))
	for _, kind := range []segment.Kind{segment.Live, segment.Deleted, segment.Internal} {
		for _, sec := range snap.Sections(kind) {
			if err := s.section(&out, snap, sec, since, upto); err != nil {
				return "", err
			}
		}
	}
	return out.String(), nil
}

func (s *script) section(out *strings.Builder, snap *Snapshot, sec segment.Section, since, upto fhir.Instant) error {
	ext, err := snap.Extents(sec, since, upto)
	if err != nil || len(ext) == 0 {
		return err
	}
	f, err := snap.File(context.Background(), strings.ToLower(strings.ReplaceAll(sec.String(), "/", "-")), sec, since, upto, ext)
	if err != nil {
		return err
	}
	var w lineWriter
	err = f.WriteIdentity(&w, 0, f.Size())
	for line := range strings.Lines(string(w.b)) {
		line = strings.ReplaceAll(strings.TrimSpace(line), s.start.String()[:len("2000-01-01T00:00:")], "")
		fmt.Fprintf(out, "%s %s\n", sec, line)
	}
	return errors.Join(err, f.Close())
}

func allRows(s *segment.Reader) ([]segment.Row, error) {
	dir, err := s.OpenDirectory()
	if err != nil {
		return nil, err
	}
	var rows []segment.Row
	for b := range s.Blocks() {
		if rows, err = dir.Rows(rows, b); err != nil {
			return nil, errors.Join(err, dir.Close())
		}
	}
	return rows, dir.Close()
}
