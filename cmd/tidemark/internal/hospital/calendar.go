package hospital

// A calendar holds what is planned, earliest first. Equal times keep the order
// in which they were planned, so that a seed gives one history.
type calendar struct {
	heap []event
	seq  uint64
}

type event struct {
	due  int64
	seq  uint64
	what plan
	who  *patient  // toVisit
	res  *resource // toCreate, toStep
	of   *panel    // toMeet
}

type plan uint8

const (
	toCreate plan = iota // a resource appears
	toStep               // a resource takes the next step of its life
	toVisit              // a patient comes
	toMeet               // a panel takes in or lets go
)

func (c *calendar) len() int     { return len(c.heap) }
func (c *calendar) next() *event { return &c.heap[0] }

func (c *calendar) add(e event) {
	c.seq++
	e.seq = c.seq
	c.heap = append(c.heap, e)
	i := len(c.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !c.before(i, parent) {
			return
		}
		c.heap[i], c.heap[parent] = c.heap[parent], c.heap[i]
		i = parent
	}
}

func (c *calendar) pop() event {
	top, last := c.heap[0], len(c.heap)-1
	c.heap[0] = c.heap[last]
	c.heap[last] = event{} // lets go of what it points to
	c.heap = c.heap[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child+1 < last && c.before(child+1, child) {
			child++
		}
		if child >= last || !c.before(child, i) {
			return top
		}
		c.heap[i], c.heap[child] = c.heap[child], c.heap[i]
		i = child
	}
}

func (c *calendar) before(i, j int) bool {
	a, b := &c.heap[i], &c.heap[j]
	return a.due < b.due || a.due == b.due && a.seq < b.seq
}
