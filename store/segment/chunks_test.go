package segment

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
)

// TestChunks: what is kept is what was read, of which segment and block ever, and
// never more than there is room for.
func TestChunks(t *testing.T) {
	fs := vfs.NewMem()
	a, want, _ := write(t, fs, "", 1)
	b, _, _ := write(t, fs, "", 2)
	largest, sum := 0, 0
	for i := range a.blocks {
		largest, sum = max(largest, int(a.blocks[i].chunkLen)), sum+int(a.blocks[i].chunkLen)
	}
	for _, room := range []int{sum * 4, largest * 4, largest, 0} {
		kept := NewChunks(room)
		for range 3 {
			for _, r := range []*Reader{a, b} {
				dir, err := r.OpenDirectory()
				if err != nil {
					t.Fatal(err)
				}
				dir.Chunks = kept
				for i := range want {
					rows, err := dir.Rows(nil, i)
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(want[i], rows); d != "" {
						t.Errorf("room for %d, block %d:\n%s", room, i, d)
					}
				}
				if err := dir.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		held := 0
		for _, chunk := range kept.lru.Values() {
			held += len(chunk)
		}
		if held > room || held != kept.bytes || room == sum*4 && held != 2*sum || room < largest*4 && room > 0 && held > room/4*4 {
			t.Errorf("room for %d bytes: %d are held, it says %d", room, held, kept.bytes)
		}
	}
}
