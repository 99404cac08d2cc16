package source

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Whose transaction is open is known by its producer's id, and where it began.
func TestOpenTransactions(t *testing.T) {
	id := at("t", 0)
	c := newCluster(t, kfake.SeedTopics(1, "t"))
	produce(t, newProducer(t, c), id, "a", "b")
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.TransactionalID("hangs"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, cl, id, "c")
	producer, epoch, err := cl.ProducerID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, _ := run(t, testConfig(c, "t"), newFakeStore())
	waitStatus(t, s, func(p PartitionStatus) bool { return p.Next == 2 && p.High == 3 })
	got, err := s.Transactions(t.Context(), id)
	if err != nil || len(got) != 1 || got[0].Producer != producer || got[0].Epoch != int32(epoch) || got[0].Start != 2 {
		t.Errorf("open: %+v, %v; want producer %d, epoch %d, from 2", got, err, producer, epoch)
	}
	if err := cl.EndTransaction(context.Background(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Transactions(t.Context(), id); err != nil || len(got) != 0 {
		t.Errorf("after the end: %+v, %v", got, err)
	}
}

func FuzzProducers(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 2, 2, 't', 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, body []byte) { _, _ = parseProducers(body) })
}
