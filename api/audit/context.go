package audit

import "context"

type key struct{}

// noted is what a request's context has.
type noted struct {
	event  *Event
	intend func() error
}

// In is a context in which Note finds an event, and Intend a way to put it on record;
// nil: there is no need to.
func In(ctx context.Context, e *Event, intend func() error) context.Context {
	return context.WithValue(ctx, key{}, noted{e, intend})
}

// Note is the event of a request, for who knows more of it to say so. Where none is put
// on record nobody reads it.
func Note(ctx context.Context) *Event {
	if n, ok := ctx.Value(key{}).(noted); ok {
		return n.event
	}
	return &Event{}
}

// Intend puts the event of a request on record before what it asks for is done, for what
// cannot be taken back. It must not be done if that returns an error, which is as
// Trail.Record's.
func Intend(ctx context.Context) error {
	if n, ok := ctx.Value(key{}).(noted); ok && n.intend != nil {
		return n.intend()
	}
	return nil
}
