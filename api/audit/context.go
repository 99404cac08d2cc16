package audit

import "context"

type key struct{}

// In is a context in which Note finds an event.
func In(ctx context.Context, e *Event) context.Context { return context.WithValue(ctx, key{}, e) }

// Note is the event of a request, for who knows more of it to say so. Where none is put
// on record nobody reads it.
func Note(ctx context.Context) *Event {
	if e, ok := ctx.Value(key{}).(*Event); ok {
		return e
	}
	return &Event{}
}
