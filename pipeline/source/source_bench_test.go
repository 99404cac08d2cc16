package source

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// BenchmarkSource reads canned batches of 2 KB values from a broker in the same
// process, so broker and reader share the processors. One operation is 64 MiB
// of values.
func BenchmarkSource(b *testing.B) {
	for _, codec := range []struct {
		name string
		kgo.CompressionCodec
	}{{"none", kgo.NoCompression()}, {"lz4", kgo.Lz4Compression()}, {"zstd", kgo.ZstdCompression()}, {"gzip", kgo.GzipCompression()}} {
		b.Run(codec.name, func(b *testing.B) {
			c := newCluster(b, kfake.SeedTopics(8, "t"),
				kfake.SyntheticFetch(kfake.SyntheticBatch{RecordBytes: 2000, RandomFrac: 0.2, Compression: codec.CompressionCodec}))
			const op = 64 << 20
			b.SetBytes(op)
			b.ReportAllocs()
			f := newFakeStore()
			var read atomic.Int64
			ctx, stop := context.WithCancel(b.Context())
			goal := int64(b.N) * op
			f.handle = func(a *Answer) error {
				var n int64
				for i := range a.Records {
					n += int64(len(a.Records[i].Value))
				}
				if read.Add(n) >= goal {
					stop()
				}
				return errDiscard
			}
			s, err := New(testConfig(c, "t"), f)
			if err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			if err := s.Run(ctx, f); err != nil {
				b.Fatal(err)
			}
		})
	}
}
