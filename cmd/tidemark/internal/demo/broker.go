package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidemark/cmd/tidemark/internal/hospital"
	"tidemark/cmd/tidemark/internal/proof"
)

const (
	topic      = "fhir-changes"
	partitions = 4
)

// A source is the embedded broker with the hospital that writes to it. Every
// record is entered into the ledger before it is sent, and acknowledged there
// when the broker has it.
type source struct {
	cluster *kfake.Cluster
	client  *kgo.Client
	ledger  *proof.Ledger

	begun time.Time // the clock of this source runs evenly from here

	mu       sync.Mutex // above the hospital, which is for one goroutine
	hospital *hospital.Hospital

	failed chan error // the first failure
}

func openSource(dir string, h *hospital.Hospital, ledger *proof.Ledger) (*source, error) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir), kfake.SeedTopics(partitions, topic))
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(cluster.ListenAddrs()...),
		kgo.DefaultProduceTopic(topic),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), // the hospital knows
	)
	if err != nil {
		cluster.Close()
		return nil, fmt.Errorf("connect to the embedded broker: %w", err)
	}
	return &source{cluster: cluster, client: client, ledger: ledger, begun: time.Now(), hospital: h, failed: make(chan error, 1)}, nil
}

func (s *source) close() {
	s.client.Close()
	s.cluster.Close()
}

func (s *source) address() string { return s.cluster.ListenAddrs()[0] }

// history writes the past and waits until the broker has it.
func (s *source) history(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hospital.History(s.send(ctx))
	return s.flush(ctx)
}

// live writes at a steady rate until ctx ends, then waits for what is under way.
func (s *source) live(ctx context.Context, rate int) error {
	const tick = 20 * time.Millisecond
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	// What is being sent is not given up: nothing could tell whether the broker has it.
	sending := context.WithoutCancel(ctx)
	last, owed := time.Now(), 0.0
	for {
		select {
		case <-ctx.Done():
			return s.flush(sending)
		case now := <-ticker.C:
			owed += now.Sub(last).Seconds() * float64(rate)
			last = now
			n := int(owed)
			owed -= float64(n)
			s.write(sending, n)
		}
	}
}

// write lets the hospital write n records now. They are stamped a little
// earlier, as in a database that stamps a change when its transaction begins.
func (s *source) write(ctx context.Context, n int) {
	const transaction = 20 * time.Millisecond
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hospital.Live(s.now().Add(-transaction), n, s.send(ctx))
}

// now is the time as the server's clock has it too: taken once, then counted.
// A clock that is set meanwhile must not look like a server that cheats.
func (s *source) now() time.Time { return s.begun.Add(time.Since(s.begun)) }

func (s *source) tally() hospital.Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hospital.Tally()
}

func (s *source) send(ctx context.Context) func(hospital.Record) bool {
	return func(rec hospital.Record) bool {
		receipt, err := s.ledger.Sent(rec)
		if err != nil {
			s.fail(err)
			return false
		}
		s.client.Produce(ctx, message(rec), func(_ *kgo.Record, err error) {
			if err != nil {
				s.fail(fmt.Errorf("write to the embedded broker: %w", err))
				return
			}
			s.ledger.Acked(receipt, s.now())
		})
		return ctx.Err() == nil
	}
}

func message(rec hospital.Record) *kgo.Record {
	m := &kgo.Record{Partition: rec.Partition, Key: rec.Key, Value: rec.Value, Timestamp: rec.Timestamp}
	for _, h := range rec.Headers {
		m.Headers = append(m.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return m
}

// flush waits for all acknowledgements.
func (s *source) flush(ctx context.Context) error {
	err := s.client.Flush(ctx)
	select {
	case failed := <-s.failed:
		s.fail(failed)
		return failed
	default:
		return err
	}
}

func (s *source) fail(err error) {
	select {
	case s.failed <- err:
	default: // one is enough
	}
}
