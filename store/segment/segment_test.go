package segment

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/store/fhir"
)

var (
	patient, _     = fhir.ParseType("Patient")
	observation, _ = fhir.ParseType("Observation")
)

// rowsOf makes n rows of a section with every shape of column.
func rowsOf(r *rand.Rand, sec Section, n int, seq uint64) []Row {
	rows := make([]Row, n)
	for i := range rows {
		at := fhir.Instant(1_700_000_000_000 + int64(i)*1000)
		row := Row{
			Section: sec, Key: fhir.Key{Type: sec.Type, ID: fmt.Sprintf("id-%d", i)}, Seq: seq + uint64(i), Instant: at, Placed: at,
			Length: int32(20 + i), Life: NoLife,
			Clock: Clock{Version: NoVersion, LastUpdated: fhir.None, Timestamp: fhir.None, Origin: Partition{"t", int32(i % 3)}, Offset: int64(i * 7)},
		}
		if sec.Kind == Live {
			row.Hash = r.Uint64()
		}
		if sec.Kind == Internal {
			row.Key.Type = observation
		}
		if i%2 == 0 {
			row.Key.ID = fmt.Sprintf("%08x-0000-4000-8000-%012x", r.Uint32(), r.Uint32())
			row.Clock.Version, row.Clock.Inherited, row.Clock.UpTo = int64(i), i%4 == 0, i%8 == 0
		}
		if i%3 == 0 {
			row.Clock.LastUpdated, row.Clock.Timestamp = at-fhir.Instant(r.IntN(1e6)), at+fhir.Instant(r.IntN(1e6))
			row.Clock.Position, row.Clock.Told = r.Uint64(), row.Clock.Version == NoVersion && i%9 == 0
			row.Patients = []string{"a", "b"}[:1+i%2]
			row.References = []fhir.Key{{Type: observation, ID: "x"}, {Type: observation, ID: row.Key.ID}}[:1+i%2]
			row.Placed = at - 5
		}
		if i%5 == 0 {
			row.Life = Life{FloorVersion: 3, FloorUpdated: at - 9, Reborn: i%2 == 0, Tombstones: []fhir.Instant{at - 8, at - 7}}
		}
		rows[i] = row
	}
	return rows
}

func linesOf(rows []Row) [][]byte {
	lines := make([][]byte, len(rows))
	for i := range rows {
		lines[i] = append(bytes.Repeat([]byte{'a' + byte(i%26)}, int(rows[i].Length)-1), '\n')
	}
	return lines
}

// write makes a segment of three sections.
func write(t testing.TB, fs vfs.FS, dir string, id ID) (*Reader, [][]Row, []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	w, err := Create(fs, dir, id)
	if err != nil {
		t.Fatal(err)
	}
	c := NewCompressor(FastLevel)
	var all [][]Row
	var text []byte
	seq := uint64(10)
	for _, sec := range []Section{{Live, patient}, {Live, patient}, {Deleted, observation}, {Internal, Unseen}} {
		rows := rowsOf(r, sec, 40, seq)
		seq += 40
		for i := range rows { // the second block lies behind the first
			rows[i].Instant += fhir.Instant(len(all) * 100_000)
			rows[i].Placed += fhir.Instant(len(all) * 100_000)
		}
		lines := linesOf(rows)
		text = append(text, bytes.Join(lines, nil)...)
		if err := w.Append(c.Block(lines...), rows); err != nil {
			t.Fatal(err)
		}
		all = append(all, rows)
	}
	f := Footer{
		Store: [16]byte{1}, Epoch: 2, Commits: [2]uint64{3, 4}, Seqs: [2]uint64{10, seq}, Line: fhir.None,
		Offsets: []Progress{{Partition{"t", 0}, 99, -1}}, Merge: 7, Part: 1, Parts: 2, Inputs: []ID{5, 6},
	}
	sealed, err := w.Seal(f)
	if err != nil {
		t.Fatal(err)
	}
	return sealed, all, text
}

func TestRoundTrip(t *testing.T) {
	fs := vfs.NewMem()
	sealed, want, _ := write(t, fs, "", 9)
	got, err := Open(fs, "", 9)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sealed.Footer(), got.Footer()); d != "" {
		t.Errorf("footer:\n%s", d)
	}
	if d := cmp.Diff(sealed.Blocks(), got.Blocks(), cmp.AllowUnexported(BlockInfo{}, Sum{})); d != "" {
		t.Errorf("blocks:\n%s", d)
	}
	for b, rows := range want {
		have, err := got.Rows(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(rows, have); d != "" {
			t.Errorf("rows of block %d:\n%s", b, d)
		}
		for _, r := range rows {
			if f := got.Find(r.Section, r.Place()); f != b {
				t.Errorf("Find says block %d, the row lies in %d", f, b)
			}
		}
	}
}

// TestBodyIsGzip reads a body with the standard library, with gunzip if it is
// there, and as one member.
func TestBodyIsGzip(t *testing.T) {
	dir := t.TempDir()
	sealed, _, want := write(t, vfs.Default, dir, 1)
	body, err := sealed.OpenBody()
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	z, err := gzip.NewReader(body)
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false)
	got, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("gzip reads %d bytes, %d were written (%v)", len(got), len(want), err)
	}
	if zcat, err := exec.LookPath("zcat"); err == nil {
		out, err := exec.Command(zcat, filepath.Join(dir, ID(1).BodyName())).Output()
		if err != nil || !bytes.Equal(out, want) {
			t.Errorf("zcat reads %d bytes (%v)", len(out), err)
		}
	}
}

// TestSplice joins random blocks in random order and compares with one stream.
func TestSplice(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var whole []byte
		out := slices.Clone(Header())
		var sum Sum
		for range 1 + r.IntN(6) {
			raw := make([]byte, r.IntN(1<<14))
			for i := range raw {
				raw[i] = byte('a' + r.IntN(4))
			}
			b := NewCompressor(1 + r.IntN(9)).Block(raw)
			if b.Sum != SumOf(raw) {
				t.Fatalf("sum of a block: %v, of its bytes: %v", b.Sum, SumOf(raw))
			}
			whole = append(whole, raw...)
			out = append(out, b.Data...)
			sum = sum.Then(Sum{Size: b.Sum.Size, CRC: b.Sum.CRC})
		}
		out = append(out, Trailer(sum)...)
		if sum.CRC != crc32.ChecksumIEEE(whole) {
			t.Fatalf("CRC of the splice: %08x, of the bytes: %08x", sum.CRC, crc32.ChecksumIEEE(whole))
		}
		z, err := gzip.NewReader(bytes.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, whole) {
			t.Fatalf("splice: %v", err)
		}
	}
}

// The sum of any run of blocks is that of their lines one by one.
func TestSumOfBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var x Reader
	for range 40 {
		raw := make([]byte, 1+r.IntN(1<<10))
		for i := range raw {
			raw[i] = byte(r.IntN(256))
		}
		x.blocks = append(x.blocks, BlockInfo{Sum: SumOf(raw)})
	}
	for from := range x.blocks {
		var want Sum
		for to := from; to <= len(x.blocks); to++ {
			if got := x.Sum(from, to); got.CRC != want.CRC || got.Size != want.Size || got.Then(SumOf([]byte("x"))).CRC != want.Then(SumOf([]byte("x"))).CRC {
				t.Fatalf("blocks [%d,%d): %d bytes, CRC-32 %08x, want %d, %08x", from, to, got.Size, got.CRC, want.Size, want.CRC)
			}
			if to < len(x.blocks) {
				want = want.Then(x.blocks[to].Sum)
			}
		}
	}
}

// TestCorrupt flips each byte of both files in turn: whatever is read must be
// what was written or an error.
func TestCorrupt(t *testing.T) {
	fs := vfs.NewMem()
	_, want, _ := write(t, fs, "", 1)
	original := readAll(t, fs, ID(1).DirectoryName())
	body := readAll(t, fs, ID(1).BodyName())
	for i := 0; i < len(original); i += 3 {
		damaged := slices.Clone(original)
		damaged[i] ^= 0x40
		writeAll(t, fs, ID(1).DirectoryName(), damaged)
		if !detects(fs, want) {
			t.Errorf("a flip at %d of the directory is not noticed", i)
		}
	}
	writeAll(t, fs, ID(1).DirectoryName(), original)
	r, err := Open(fs, "", 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := int(HeaderSize); i < len(body)-TrailerSize; i += 3 {
		damaged := slices.Clone(body)
		damaged[i] ^= 0x10
		if !notices(r, damaged) {
			t.Errorf("a flip at %d of the body is not noticed", i)
		}
	}
}

func detects(fs vfs.FS, want [][]Row) bool {
	r, err := Open(fs, "", 1)
	if err != nil {
		return true
	}
	for b := range want {
		rows, err := r.Rows(b)
		if err != nil {
			return errors.Is(err, ErrCorrupt)
		}
		if !cmp.Equal(rows, want[b]) {
			return false
		}
	}
	return false
}

// notices tells whether some block is refused; a flip that inflates to the same
// bytes (the unused bits before a flush) harms nobody.
func notices(r *Reader, body []byte) bool {
	for b := range r.Blocks() {
		k := r.Blocks()[b]
		text, err := r.Lines(nil, bytes.NewReader(body), b)
		if err != nil {
			return errors.Is(err, ErrCorrupt)
		}
		if crc32.ChecksumIEEE(text) != k.Sum.CRC {
			return false
		}
	}
	return true
}

func readAll(t testing.TB, fs vfs.FS, name string) []byte {
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeAll(t testing.TB, fs vfs.FS, name string, b []byte) {
	f, err := fs.Create(name, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(slices.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPackID(t *testing.T) {
	for _, id := range []string{"", "a", "123e4567-e89b-12d3-a456-426614174000", "123E4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-42661417400g", "123e4567xe89b-12d3-a456-426614174000"} {
		p := PackID(nil, id)
		if got := UnpackID(p); got != id {
			t.Errorf("PackID(%q) comes back as %q", id, got)
		}
	}
}

func FuzzPackID(f *testing.F) {
	f.Add("123e4567-e89b-12d3-a456-426614174000", "x")
	f.Fuzz(func(t *testing.T, a, b string) {
		if !fhir.ValidID(a) || !fhir.ValidID(b) {
			return
		}
		if UnpackID(PackID(nil, a)) != a || (a == b) != bytes.Equal(PackID(nil, a), PackID(nil, b)) {
			t.Errorf("ids %q and %q", a, b)
		}
	})
}

// FuzzOpen reads arbitrary directories: an error or rows, never a panic, and
// memory bounded by the file's size.
func FuzzOpen(f *testing.F) {
	fs := vfs.NewMem()
	write(f, fs, "", 1)
	f.Add(readAll(f, fs, ID(1).DirectoryName()))
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := vfs.NewMem()
		writeAll(t, fs, ID(1).DirectoryName(), b)
		r, err := Open(fs, "", 1)
		if err != nil {
			return
		}
		for i := range r.Blocks() {
			if _, err := r.Rows(i); err != nil {
				return
			}
		}
	})
}

// FuzzChunk reads arbitrary columns behind a valid compression. What plans read
// of a chunk is what all of it says.
func FuzzChunk(f *testing.F) {
	rows := rowsOf(rand.New(rand.NewPCG(1, 1)), Section{Live, patient}, 8, 1)
	raw, err := inflateChunk(encodeChunk(rows, &origins{}), maxChunk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, 8)
	rows[3].Instant += 1 << 60 // columns of more than the usual width
	for i := range rows {
		rows[i].Seq += uint64(i) << 60
	}
	if raw, err = inflateChunk(encodeChunk(rows, &origins{}), maxChunk); err != nil {
		f.Fatal(err)
	}
	f.Add(raw, 8)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		if n < 1 || n > 1000 {
			return
		}
		chunk := deflateChunk(raw)
		rows, err := decodeChunk(nil, chunk, n, Section{Live, patient}, []Partition{{"t", 0}, {"t", 1}, {"t", 2}})
		if err != nil {
			return
		}
		cells, err := decodeCells(chunk, n)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range cells {
			if c != (Cell{rows[i].Seq, rows[i].Instant, rows[i].Length}) {
				t.Fatalf("row %d: %+v, but %+v", i, c, rows[i])
			}
		}
	})
}
