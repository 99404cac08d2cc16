package segment

import (
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Chunks keeps what was read last of directories, as it is stored: an export of some
// Patients reads the same few again and again. It is safe for concurrent use; nil
// keeps nothing.
type Chunks struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[chunkKey, []byte]
	bytes int
	limit int
}

type chunkKey struct {
	segment ID
	block   int
}

// NewChunks keeps up to limit bytes.
func NewChunks(limit int) *Chunks {
	c := &Chunks{limit: limit}
	c.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ chunkKey, chunk []byte) { c.bytes -= len(chunk) }) // it only refuses a size below 1
	return c
}

// get is a chunk that is kept, or nil. Nobody may write to it.
func (c *Chunks) get(k chunkKey) []byte {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	chunk, _ := c.lru.Get(k)
	return chunk
}

// put keeps a chunk, which nobody may write to any more, until others need its room.
func (c *Chunks) put(k chunkKey, chunk []byte) {
	if c == nil || len(chunk) > c.limit/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lru.Contains(k) { // two read it at once
		return
	}
	c.lru.Add(k, chunk)
	for c.bytes += len(chunk); c.bytes > c.limit; {
		c.lru.RemoveOldest()
	}
}
