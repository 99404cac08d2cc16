package smart

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tidemark/api/outcome"
)

// An Endpoint gives tokens to clients that prove who they are (SMART 2.2.0, "Backend
// Services"; RFC 6749, 4.4). Its answers are OAuth's, so it makes them itself.
//
// Attempts that fail are not limited. One costs a signature at most and no secret can be
// guessed, while a limit for a client_id would let strangers lock its owner out.
type Endpoint struct {
	Verifier *Verifier
	Minter   *Minter
	// Seen hears of each attempt before it is answered; nil: nobody does. With an error of
	// it there is no token.
	Seen func(ctx context.Context, a Attempt) error
	// RetryAfter is when to come again if nothing can be written (default 5 s).
	RetryAfter time.Duration
}

// An Attempt is one request for a token, as the audit records it. Client, KeyID and Asked
// are what was said: they come from outside, and prove nothing if there is an Error.
type Attempt struct {
	Client  string // client_id
	Serial  uint64 // of the client, once it has proved who it is
	KeyID   string // kid of the assertion
	Asked   string // scopes
	Granted string // scopes
	TokenID string // jti of the token
	Error   string // code of what was refused
}

// maxForm bounds the body of a request, bytes: an assertion and scopes.
const maxForm = 64 << 10

// assertionType is the only client_assertion_type there is (RFC 7523, 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// granted is the answer to who is known (RFC 6749, 5.1).
type granted struct {
	Token   string `json:"access_token"`
	Type    string `json:"token_type"`
	Seconds int    `json:"expires_in"`
	Scope   string `json:"scope"`
}

// refused is the answer to everybody else (RFC 6749, 5.2).
type refused struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// unavailable is said when it is not the client's fault: the code that OAuth has for it
// elsewhere (RFC 6749, 4.1.2.1).
const unavailable = "temporarily_unavailable"

// ServeHTTP answers a request for a token.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var a Attempt
	answer, err := e.grant(r, &a)
	a.Error = codeOf(err)
	if e.Seen != nil {
		err = cmp.Or(err, e.Seen(r.Context(), a))
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	if err != nil {
		e.refuse(w, r, err)
		return
	}
	_ = json.NewEncoder(w).Encode(answer) // only the connection can fail
}

// A badForm is a request that cannot even be read; the status says why.
type badForm struct {
	status int
	text   string
}

func (b *badForm) Error() string { return b.text }

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	if r, is := errors.AsType[*Refusal](err); is {
		return r.Code
	}
	if errors.As(err, new(*badForm)) {
		return "invalid_request"
	}
	return unavailable
}

// refuse writes an error. What is no fault of the client's is told without details.
func (e *Endpoint) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, say := http.StatusBadRequest, refused{Code: codeOf(err)}
	if r, is := errors.AsType[*Refusal](err); is {
		say.Description = r.Description
	}
	if b, is := errors.AsType[*badForm](err); is {
		status, say.Description = b.status, b.text
	}
	switch say.Code {
	case "invalid_client":
		status = http.StatusUnauthorized
		if _, kind := Bearer(r.Header); kind == BasicScheme {
			w.Header().Set("WWW-Authenticate", `Basic realm="token", charset="UTF-8"`)
		}
	case unavailable:
		status, say.Description = http.StatusServiceUnavailable, "the server cannot give tokens at present: come again"
		w.Header().Set("Retry-After", strconv.Itoa(e.seconds()))
	}
	if status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	say.Description = describable(say.Description)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(say) // only the connection can fail
}

func (e *Endpoint) seconds() int {
	if e.RetryAfter <= 0 {
		return 5
	}
	return int(math.Ceil(e.RetryAfter.Seconds()))
}

// describable is a text in the characters that an error_description may have (RFC 6749,
// 5.2): printable ASCII without quotation marks and backslashes.
func describable(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '"':
			return '\''
		case c < ' ' || c > '~' || c == '\\':
			return '?'
		}
		return c
	}, text)
}

// grant walks the checks in their order: what is asked, who asks, for what.
func (e *Endpoint) grant(r *http.Request, a *Attempt) (granted, error) {
	form, err := readForm(r)
	if err != nil {
		return granted{}, err
	}
	a.Asked = form.Get("scope")
	switch grant := form.Get("grant_type"); grant {
	case "client_credentials":
	case "":
		return granted{}, &Refusal{"invalid_request", "the grant_type is missing: right is client_credentials"}
	default:
		return granted{}, &Refusal{"unsupported_grant_type", "the grant_type " + outcome.Quote(grant) + " is none of this server: right is client_credentials"}
	}
	client, err := e.authenticate(r, form, a)
	if err != nil {
		return granted{}, err
	}
	a.Client, a.Serial = client.ID, client.Serial
	if len(client.Rights) == 0 {
		return granted{}, &Refusal{"unauthorized_client", "the client was given no scopes: ask the operator of the server"}
	}
	rights, err := client.Rights.Grant(a.Asked)
	if err != nil {
		return granted{}, &Refusal{"invalid_scope", "nothing of the scope can be granted: the client may have " + short(client.Rights.String())}
	}
	text, token, err := e.Minter.MintFor(client, rights, certificate(r))
	if err != nil {
		return granted{}, err
	}
	a.TokenID, a.Granted = token.ID, rights.String()
	return granted{text, "bearer", int(token.Expires.Sub(e.Minter.now()) / time.Second), a.Granted}, nil
}

// short cuts scopes that fill pages.
func short(text string) string {
	const enough = 400
	if len(text) > enough {
		return text[:enough] + "..."
	}
	return text
}

// certificate is that which a connection has proved; a token is bound to it.
func certificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// readForm reads the parameters of a request (RFC 6749, 3.2). None may stand in the URL,
// which ends up in logs. No error repeats what may be a secret.
func readForm(r *http.Request) (url.Values, error) {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case r.Method != http.MethodPost:
		return nil, &badForm{http.StatusMethodNotAllowed, "the method is not POST"}
	case r.URL.RawQuery != "":
		return nil, &badForm{http.StatusBadRequest, "parameters stand in the URL: right is the body"}
	case r.Header.Get("Content-Encoding") != "":
		return nil, &badForm{http.StatusUnsupportedMediaType, "the body has a Content-Encoding: right is none"}
	case kind != "application/x-www-form-urlencoded":
		return nil, &badForm{http.StatusBadRequest, "the Content-Type is not application/x-www-form-urlencoded"}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	switch {
	case err != nil:
		return nil, &badForm{http.StatusBadRequest, "the body ends before its end"}
	case len(body) > maxForm:
		return nil, &badForm{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxForm)}
	}
	return parseForm(string(body))
}

func parseForm(body string) (url.Values, error) {
	form, err := url.ParseQuery(body)
	if err != nil {
		return nil, &badForm{http.StatusBadRequest, "the body is not a form: a % or a ; stands where none can"}
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, &badForm{http.StatusBadRequest, "the parameter " + outcome.Quote(name) + " stands there more than once"}
		}
	}
	return form, nil
}

// authenticate finds out who asks, in one way and not in two (RFC 6749, 2.3).
func (e *Endpoint) authenticate(r *http.Request, form url.Values, a *Attempt) (Client, error) {
	text, kind := Bearer(r.Header)
	says, as := form.Get("client_assertion"), form.Get("client_assertion_type")
	a.Client = form.Get("client_id")
	switch {
	case kind == BadScheme:
		return Client{}, &Refusal{"invalid_request", "the Authorization header cannot be read, or there are several"}
	case kind != NoScheme && says+as != "", form.Get("client_secret") != "" && (kind != NoScheme || says+as != ""):
		return Client{}, &Refusal{"invalid_request", "the client proves who it is in more than one way"}
	case form.Get("client_secret") != "":
		return Client{}, refuse("a client_secret is not taken in the body: right is a client_assertion")
	case kind == BasicScheme:
		return e.basic(text, a)
	case kind != NoScheme:
		return Client{}, refuse("the client does not prove who it is by an Authorization header of this kind: right is a client_assertion")
	case says+as == "":
		return Client{}, refuse("nothing proves who the client is: right is a client_assertion")
	case says == "":
		return Client{}, &Refusal{"invalid_request", "the client_assertion is missing"}
	case as != assertionType:
		return Client{}, &Refusal{"invalid_request", "the client_assertion_type is not " + assertionType}
	}
	named := a.Client
	client, err := e.Verifier.verify(r.Context(), says, a)
	if err == nil && named != "" && named != client.ID { // RFC 7521, 4.2
		return Client{}, refuse("the client_id is not the iss of the client_assertion")
	}
	return client, err
}

// basic is RFC 6749, 2.3.1, for clients that have a secret. All that is wrong is told in
// the same words. An unknown client costs a hash less than a wrong secret does: that is far
// below what a network lets anybody measure.
func (e *Endpoint) basic(credentials string, a *Attempt) (Client, error) {
	wrong := refuse("the client or its secret is not right, or it has none")
	id, secret, err := splitBasic(credentials)
	a.Client = id
	if err != nil {
		return Client{}, wrong
	}
	client, known := e.Verifier.Client(id)
	if id == "" || secret == "" || !known || client.Disabled || client.CheckSecret == nil {
		return Client{}, wrong
	}
	if !client.CheckSecret(secret) {
		return Client{}, wrong
	}
	return client, nil
}

func splitBasic(credentials string) (id, secret string, err error) {
	plain, err := base64.StdEncoding.DecodeString(credentials)
	if err != nil {
		return "", "", err
	}
	id, secret, _ = strings.Cut(string(plain), ":")
	if id, err = url.QueryUnescape(id); err != nil {
		return "", "", err
	}
	secret, err = url.QueryUnescape(secret)
	return id, secret, err
}
