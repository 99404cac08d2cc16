package store

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/fhir"
	"tidemark/store/segment"
)

// TestScrub flips a bit in a body or a directory, or removes a file. Within the
// time that is set for it the damage is found, the log names the file and the
// way out, and the layout tells.
func TestScrub(t *testing.T) {
	for _, damage := range []string{"body", "directory", "lost"} {
		synctest.Test(t, func(t *testing.T) {
			fs := vfs.NewMem()
			var log bytes.Buffer
			db := mustOpen(t, "store", Options{FS: fs, Scrub: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			defer db.Close()
			f := newFeed(t, db)
			for i := range 5 {
				f.commit(patientChange(fmt.Sprintf("p%d", i), fhir.None, strings.Repeat("x", 1000)))
			}
			ctx, stop := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- db.Run(ctx) }()
			time.Sleep(3 * time.Hour)
			if db.Layout().Damaged != nil || strings.Contains(log.String(), "damaged") {
				t.Fatalf("nothing is damaged, and the log says\n%s", &log)
			}
			bad := db.view.fresh[2].r
			name := "store/segments/" + bad.ID().BodyName()
			if damage == "directory" {
				name = "store/segments/" + bad.ID().DirectoryName()
			}
			data := copyFiles(t, fs, "store/segments")[strings.TrimPrefix(name, "store/segments/")]
			data[segment.HeaderSize+5] ^= 0x10
			if damage == "lost" {
				if err := fs.Remove(name); err != nil {
					t.Fatal(err)
				}
			} else {
				writeFile(t, fs, name, data)
			}
			time.Sleep(2 * time.Hour)
			if got := db.Layout().Damaged; len(got) != 1 || got[0] != bad.ID().BodyName() {
				t.Errorf("%s: the layout tells %v", damage, got)
			}
			if n := strings.Count(log.String(), "a segment is damaged"); n != 1 || !strings.Contains(log.String(), bad.ID().BodyName()) || !strings.Contains(log.String(), "tidemark reindex") {
				t.Errorf("%s: the log says so %d times:\n%s", damage, n, &log)
			}
			stop()
			if err := <-ran; err != nil {
				t.Error(err)
			}
		})
	}
}
