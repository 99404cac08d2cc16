// Package access is who sent a request, and what he may. Every route that gives out a
// resource or an id asks it; it refuses to know how somebody proved who he is.
package access

import (
	"context"
	"strconv"
	"strings"

	"tidemark/api/clients"
	"tidemark/api/smart"
)

// A Caller is who sent a request, and what he may. The zero value may nothing.
type Caller struct {
	Issuer string // of his tokens; "": this server
	Client string // client_id; "": nobody knows, and no token was asked for
	Serial uint64 // of the client
	Token  string // its id, for the audit
	// Rights are those of the token, never more than the client's.
	Rights smart.Rights
	May    clients.Permission
	Limits clients.Limits // of the client's own
}

// Anybody is who comes without a token where none is asked for.
func Anybody() *Caller {
	return &Caller{Rights: clients.Anything.Rights(), May: clients.Anything}
}

// An Owner is whose a job is: an issuer and a serial number, "" nobody's. It never
// comes again for another client.
type Owner string

// Owner of what the caller starts.
func (c *Caller) Owner() Owner { return OwnerOf(c.Issuer, c.Serial) }

// OwnerOf is the owner of what a client starts.
func OwnerOf(issuer string, serial uint64) Owner {
	if serial == 0 {
		return ""
	}
	return Owner(issuer + "#" + strconv.FormatUint(serial, 10))
}

// Serial is the client's, 0 if it is nobody's.
func (o Owner) Serial() uint64 {
	n, _ := strconv.ParseUint(string(o[strings.LastIndexByte(string(o), '#')+1:]), 10, 64)
	return n
}

// A Challenge says that it is not known who asks, and has to be (401).
type Challenge struct {
	Code  string // of RFC 6750, 3.1; "": no token was sent
	Text  string
	Cause error // such as smart.ErrExpired
}

func (e *Challenge) Error() string { return e.Text }

// Unwrap is the cause.
func (e *Challenge) Unwrap() error { return e.Cause }

// A Denied is what a caller may not (403). It says nothing of what there is.
type Denied struct {
	Text  string
	Scope bool // a token with other scopes would do
}

func (e *Denied) Error() string { return e.Text }

type key struct{}

// With is a context in which From finds a caller.
func With(ctx context.Context, c *Caller) context.Context { return context.WithValue(ctx, key{}, c) }

// From is who sent the request of a context. Nobody has put one there: nobody may
// anything.
func From(ctx context.Context) *Caller {
	if c, ok := ctx.Value(key{}).(*Caller); ok {
		return c
	}
	return &Caller{}
}
