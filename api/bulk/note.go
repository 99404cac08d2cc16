package bulk

import (
	"context"
	"strconv"

	"tidemark/api/audit"
	"tidemark/api/export"
)

// What a request is about, for the audit trail. Values of parameters stand there only
// (decisions.md 6).

func noteGoal(ctx context.Context, l export.Level, group string) {
	e := audit.Note(ctx)
	e.Level, e.Group = l.Name(), group
}

func noteParams(ctx context.Context, params []param) {
	e := audit.Note(ctx)
	for _, p := range params {
		e.Parameters = append(e.Parameters, audit.Parameter{Name: p.name, Value: p.value})
	}
}

// note says what a job that has begun is about: whose data at which instant.
func (h *Handlers) note(ctx context.Context, id string, q *export.Request) {
	e := audit.Note(ctx)
	e.Job = id
	for _, t := range q.Types {
		e.Types = append(e.Types, t.String())
	}
	// What is known stands there, though the Group's version could not be read.
	if f, err := h.Jobs.Facts(id); err == nil || f != (export.Facts{}) {
		e.W, e.Since, e.GroupVersion, e.Withheld = audit.At(f.Upto), audit.At(f.Since), f.GroupVersion, f.Withheld
	}
}

// noteFile says which file is asked for.
func noteFile(ctx context.Context, job string, n int) {
	e := audit.Note(ctx)
	e.Job, e.File = job, strconv.Itoa(n)
}

// noteSent says what the file is that is sent.
func noteSent(ctx context.Context, d *export.Download) {
	e := audit.Note(ctx)
	e.Kind = string(d.List)
	if d.Parts > 1 {
		e.Parts = d.Parts
	}
	if d.Type != 0 {
		e.Types = []string{d.Type.String()}
	}
}
