package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tidemark/api"
	"tidemark/api/clients"
	"tidemark/api/smart"
	"tidemark/api/withhold"
	"tidemark/cmd/tidemark/internal/config"
	"tidemark/store"
)

// aboutClient is what the operator of a client needs. It holds nothing secret but a
// secret that was made a moment ago.
type aboutClient struct {
	ID         string   `json:"client_id"`
	Secret     string   `json:"client_secret,omitempty"`
	Name       string   `json:"name,omitempty"`
	Configured bool     `json:"configured,omitempty"`
	Disabled   bool     `json:"disabled,omitempty"`
	Base       string   `json:"fhir_base"`
	Discovery  string   `json:"discovery"`
	Endpoint   string   `json:"token_endpoint,omitempty"`
	Issuer     string   `json:"issuer,omitempty"` // another server that gives out its tokens
	Method     string   `json:"token_endpoint_auth_method,omitempty"`
	KeysURL    string   `json:"jwks_uri,omitempty"`
	Kids       []string `json:"kids,omitempty"`
	Algorithms []string `json:"algorithms,omitempty"`
	Audiences  []string `json:"aud,omitempty"`
	Levels     []string `json:"levels"`
	Groups     []string `json:"groups"`
	Scope      string   `json:"scope"`

	Withhold withhold.Policy `json:"withhold,omitzero"`
	Limits   clients.Limits  `json:"limits,omitzero"` // of its own
}

func about(c *clients.Client, of *config.Config) *aboutClient {
	a := &aboutClient{
		ID: c.ID, Name: c.Name, Configured: c.Configured, Disabled: c.Disabled,
		Base: of.HTTP.PublicURL, Discovery: of.HTTP.PublicURL + "/.well-known/smart-configuration",
		Levels: append([]string{}, c.May.Levels...), Groups: append([]string{}, c.May.Groups...), Scope: c.May.Scopes, Withhold: c.May.Withhold,
		Limits: c.Limits,
	}
	if a.Issuer = of.TokenIssuer(); a.Issuer != "" {
		return a
	}
	a.Endpoint, a.Method, a.KeysURL = of.HTTP.PublicURL+api.TokenPath, "private_key_jwt", c.KeysURL
	if c.SecretHash != "" {
		a.Method = "client_secret_basic"
		return a
	}
	a.Audiences = append([]string{a.Endpoint}, of.Auth.Audiences...)
	for _, alg := range smart.Algorithms {
		a.Algorithms = append(a.Algorithms, string(alg))
	}
	keys, _ := smart.ParseKeys(c.KeySet) // of a URL there are none here
	for i := range keys {
		a.Kids = append(a.Kids, keys[i].KeyID)
	}
	return a
}

func (a *aboutClient) json(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false) // scopes have an ampersand
	e.SetIndent("", "  ")
	return e.Encode(a)
}

func (a *aboutClient) text(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"client_id", a.ID},
		{"client_secret", a.Secret},
		{"name", a.Name},
		{"state", a.state()},
		{"FHIR base", a.Base},
		{"discovery", a.Discovery},
		{"token endpoint", a.Endpoint},
		{"tokens from", a.Issuer},
		{"proves itself by", a.Method},
		{"keys at", a.KeysURL},
		{"kid", strings.Join(a.Kids, ", ")},
		{"algorithms", strings.Join(a.Algorithms, ", ")},
		{"aud", strings.Join(a.Audiences, ", or ")},
		{"levels", orNone(strings.Join(a.Levels, ", "))},
		{"Groups", strings.Join(a.Groups, ", ")},
		{"scopes", orNone(a.Scope)},
		{"limits", a.limits()},
		{"withheld", strings.Join(slices.Concat(inGroups(a.Withhold.Groups), a.Withhold.Security, a.Withhold.Filters, a.Withhold.Elements), ", ")},
	} {
		if line[1] != "" {
			fmt.Fprintf(table, "%s\t%s\n", line[0], printable([]byte(line[1])))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return a.example(out)
}

// limits are those of its own.
func (a *aboutClient) limits() string {
	var words []string
	add := func(n int64, text string) {
		if n != 0 {
			words = append(words, text)
		}
	}
	add(int64(a.Limits.Jobs), fmt.Sprintf("%d jobs at the same time", a.Limits.Jobs))
	add(int64(a.Limits.JobsPerDay), fmt.Sprintf("%d jobs a day", a.Limits.JobsPerDay))
	add(a.Limits.BytesPerDay, config.Bytes(a.Limits.BytesPerDay).String()+" a day")
	return strings.Join(words, ", ")
}

func (a *aboutClient) state() string {
	var words []string
	if a.Configured {
		words = append(words, "in the configuration")
	}
	if a.Disabled {
		words = append(words, "disabled")
	}
	return strings.Join(words, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "none: see tidemark client change --help"
	}
	return s
}

// example is a request for a token.
func (a *aboutClient) example(out io.Writer) error {
	scope := "system/*.rs"
	if a.Scope != "" {
		scope = a.Scope
	}
	var err error
	switch a.Method {
	case "private_key_jwt":
		_, err = fmt.Fprintf(out, `
A token is asked for with a JWT, signed by one of the keys, with "alg", "kid" and "typ": "JWT" in its header, and these claims:
  {"iss": %[1]q, "sub": %[1]q, "aud": %[2]q, "exp": in 5 minutes at most, "jti": another each time}

  curl -s %[3]s \
    -d grant_type=client_credentials \
    --data-urlencode %[4]s \
    -d client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer \
    -d client_assertion=JWT
`, a.ID, a.Endpoint, shellQuote(a.Endpoint), shellQuote("scope="+scope))
	case "client_secret_basic":
		_, err = fmt.Fprintf(out, `
  curl -s %s -u %s \
    -d grant_type=client_credentials \
    --data-urlencode %s
`, shellQuote(a.Endpoint), shellQuote(a.ID+":SECRET"), shellQuote("scope="+scope))
	}
	return err
}

// shellQuote makes text one word of a shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (a *aboutClient) print(args url.Values, out io.Writer) error {
	if args.Has("json") {
		return a.json(out)
	}
	return a.text(out)
}

// addClient is what the command does where the store is open.
func addClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	proof, secret, err := proofIn(args)
	if err != nil {
		return err
	}
	limits, err := limitsIn(clients.Limits{}, args)
	if err != nil {
		return err
	}
	c, err := at.clients.Add(clients.Client{ID: args.Get("id"), Name: args.Get("name"), Proof: proof, May: mayIn(args), Limits: limits})
	if err != nil {
		return err
	}
	a := about(&c, at.config)
	a.Secret = secret
	return a.print(args, out)
}

func mayIn(args url.Values) clients.Permission {
	return clients.Permission{Levels: args["level"], Groups: given(args["group"]), Scopes: strings.Join(args["scope"], " "), Withhold: withhold.Policy{
		Groups: given(args["withhold-group"]), Security: given(args["withhold-security"]), Filters: given(args["withhold-filter"]), Elements: given(args["withhold-element"]),
	}}
}

// inGroups says of Groups that it is about their members.
func inGroups(ids []string) (list []string) {
	for _, id := range ids {
		list = append(list, "members of Group/"+id)
	}
	return list
}

// given is a list without the empty words that stand for none.
func given(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
}

func showClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	c, known := at.clients.ByID(args.Get("id"))
	if !known {
		return fmt.Errorf("%q: %w", args.Get("id"), clients.ErrNone)
	}
	return about(&c, at.config).print(args, out)
}

func listClients(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	list := at.clients.List()
	if args.Has("json") {
		for i := range list {
			if err := about(&list[i], at.config).json(out); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLIENT\tNAME\tSTATE\tMAY")
	for i := range list {
		a := about(&list[i], at.config)
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.ID, printable([]byte(a.Name)), a.state(), list[i].May.String())
	}
	return table.Flush()
}

func changeClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	may := mayIn(args)
	if _, err := limitsIn(clients.Limits{}, args); err != nil {
		return err
	}
	e, err := at.clients.Change(args.Get("id"), func(c *clients.Client) {
		if args.Has("name") {
			c.Name = args.Get("name")
		}
		if args.Has("level") {
			c.May.Levels = may.Levels
		}
		if args.Has("group") {
			c.May.Groups = may.Groups
		}
		if args.Has("scope") {
			c.May.Scopes = may.Scopes
		}
		c.Limits, _ = limitsIn(c.Limits, args) // they were read before
		if args.Has("withhold-group") {
			c.May.Withhold.Groups = may.Withhold.Groups
		}
		if args.Has("withhold-security") {
			c.May.Withhold.Security = may.Withhold.Security
		}
		if args.Has("withhold-filter") {
			c.May.Withhold.Filters = may.Withhold.Filters
		}
		if args.Has("withhold-element") {
			c.May.Withhold.Elements = may.Withhold.Elements
		}
	})
	return say(out, args, "changed", e, err)
}

// say tells what was done to a client and to its jobs.
func say(out io.Writer, args url.Values, done string, e clients.Effect, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: %s; %s\n", args.Get("id"), done, e.Describe())
	return err
}

func disableClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	e, err := at.clients.Disable(args.Get("id"))
	return say(out, args, "disabled", e, err)
}

func enableClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	return say(out, args, "enabled", clients.Effect{}, at.clients.Enable(args.Get("id")))
}

func removeClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	e, err := at.clients.Remove(args.Get("id"))
	return say(out, args, "removed", e, err)
}

func rotateClient(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	proof, secret, err := proofIn(args)
	if err != nil {
		return err
	}
	if err := say(out, args, "what it had counts no more for new tokens", clients.Effect{}, at.clients.Rotate(args.Get("id"), proof)); err != nil || secret == "" {
		return err
	}
	_, err = fmt.Fprintf(out, "client_secret  %s\n", secret)
	return err
}

// rotateTokens makes another secret. A running server signs by it at once.
func rotateTokens(_ context.Context, at *opened, args url.Values, out io.Writer) error {
	dir := clients.Dir(store.Disk, at.config.Store.Path)
	secrets, err := clients.RotateSecrets(store.Disk, dir, time.Now(), args.Has("leaked"))
	if err != nil {
		return err
	}
	when := "once the server is started"
	if at.sign != nil {
		at.sign(secrets)
		when = "from now on"
	}
	_, err = fmt.Fprintf(out, "another secret signs tokens and URLs %s\n", when)
	return err
}
