package smart

import (
	"net/http"
	"strings"
)

// A Scheme is how a request says who sent it.
type Scheme uint8

// The schemes.
const (
	// NoScheme: it says nothing. An Authorization that is empty, or Bearer and nothing
	// after it, is what clients send that have no token: it says nothing, too.
	NoScheme Scheme = iota
	// BearerScheme: by an access token (RFC 6750, 2.1).
	BearerScheme
	// BasicScheme: by a name and a secret (RFC 7617), not decoded yet.
	BasicScheme
	// OtherScheme: in a way that we do not know.
	OtherScheme
	// BadScheme: more than one thing, or what cannot be a token.
	BadScheme
)

// Bearer reads the Authorization of a request: the token or the credentials, and of
// which kind they are. Names of schemes may be written in any case (RFC 9110, 11.1).
func Bearer(h http.Header) (text string, kind Scheme) {
	values := h.Values("Authorization")
	if len(values) > 1 {
		return "", BadScheme
	}
	if len(values) == 0 {
		return "", NoScheme
	}
	scheme, text, _ := strings.Cut(strings.Trim(values[0], " \t"), " ")
	text = strings.TrimLeft(text, " ")
	switch {
	case scheme == "", text == "" && strings.EqualFold(scheme, "Bearer"):
		return "", NoScheme
	case strings.EqualFold(scheme, "Bearer"):
		kind = BearerScheme
	case strings.EqualFold(scheme, "Basic"):
		kind = BasicScheme
	default:
		return "", OtherScheme
	}
	if !isToken68(text) {
		return "", BadScheme
	}
	return text, kind
}

// isToken68 is RFC 9110, 11.2: nothing else can be a token, or be sent as one.
func isToken68(text string) bool {
	text = strings.TrimRight(text, "=")
	return text != "" && !strings.ContainsFunc(text, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._~+/", c)
	})
}
