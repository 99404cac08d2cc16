package pipeline

import (
	"context"
	"maps"
	"time"

	"tidemark/store"
)

// mirrorOffsets keeps our committed offsets under Options.Group, as best it
// can: lag tools look there, we never do.
func (p *Pipeline) mirrorOffsets(ctx context.Context) error {
	ticker := time.NewTicker(p.o.MirrorEvery)
	defer ticker.Stop()
	last := map[store.Partition]int64{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := p.readable(p.store.Committed())
		if len(now) == 0 || maps.Equal(now, last) {
			continue
		}
		err := p.source.Commit(ctx, p.o.Group, now)
		if ctx.Err() != nil {
			return nil
		}
		if p.mirrored(ctx, err); err == nil {
			last = now
		}
	}
}

// readable leaves out partitions that the broker does not have.
func (p *Pipeline) readable(offsets map[store.Partition]int64) map[store.Partition]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[store.Partition]int64{}
	for id, next := range offsets {
		if p.partitions[id] {
			out[id] = next
		}
	}
	return out
}

// mirrored notes how a commit went and logs when that changes.
func (p *Pipeline) mirrored(ctx context.Context, err error) {
	p.mu.Lock()
	before := p.mirror
	p.mirror = ""
	if err != nil {
		p.mirror = err.Error()
	}
	p.mu.Unlock()
	switch {
	case err != nil && before == "":
		p.o.Logger.WarnContext(ctx, "offsets are not mirrored to kafka, retrying; only lag tools miss them", "group", p.o.Group, "error", err)
	case err == nil && before != "":
		p.o.Logger.InfoContext(ctx, "offsets are mirrored to kafka again", "group", p.o.Group)
	}
}
