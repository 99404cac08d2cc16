package bulk

import (
	"strconv"

	"tidemark/api/outcome"
)

// leastMaximum is the least _maximumFileSize: files are made of whole blocks of
// lines, of which one has at most about as much. Bytes.
const leastMaximum = 1 << 20

// numbers are the forms in which a whole number may come in Parameters.
var numbers = []string{"valuePositiveInt", "valueInteger", "valueUnsignedInt", "valueInteger64", "valueString"}

// size takes a number of bytes (Bulk Data STU4, "_minimumFileSize",
// "_maximumFileSize").
func (r *reading) size(p param, size *int64) {
	if !r.once(p, numbers...) {
		return
	}
	n, err := strconv.ParseInt(p.value, 10, 64)
	if err != nil || n <= 0 {
		r.fault(outcome.Value, "%s: %s is not a positive number of bytes", p.name, outcome.Quote(p.value))
		return
	}
	*size = n
}

// finishSizes: files are as large as they may be anyhow, so a minimum asks for
// nothing, unless it contradicts the maximum.
func (r *reading) finishSizes() {
	switch most := r.q.MaxBytes; {
	case most == 0:
	case most < leastMaximum:
		r.fault(outcome.Value, "_maximumFileSize: %d bytes are less than this server can keep to: at least %d are right", most, leastMaximum)
	case r.least >= most:
		r.fault(outcome.Value, "_maximumFileSize: %d bytes are not more than _minimumFileSize: %d", most, r.least)
	}
}
