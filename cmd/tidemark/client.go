package main

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strconv"

	"tidemark/api/clients"
	"tidemark/cmd/tidemark/internal/config"
)

type clientCmd struct {
	Add     addClientCmd     `cmd:"" help:"Make a client, and print what its operator needs."`
	List    listClientsCmd   `cmd:"" help:"List all clients and what each may."`
	Show    showClientCmd    `cmd:"" help:"Print again what the operator of a client needs."`
	Change  changeClientCmd  `cmd:"" help:"Change what a client may. What is taken away ends its jobs."`
	Rotate  rotateClientCmd  `cmd:"" help:"Give a client other keys, or another secret. The old ones count no more."`
	Disable disableClientCmd `cmd:"" help:"Let a client do nothing until it is enabled, and end its jobs."`
	Enable  enableClientCmd  `cmd:"" help:"Let a disabled client do again what it may."`
	Remove  removeClientCmd  `cmd:"" help:"Forget a client, and end its jobs."`
	Keygen  keygenCmd        `cmd:"" help:"Make a pair of keys, for a client that has none."`

	RotateTokenSecret rotateTokensCmd `cmd:"" help:"Make another secret that signs this server's tokens."`
}

// Help is shown by --help.
func (*clientCmd) Help() string {
	return `The programs that may ask for data, beside those of the configuration (auth.clients). All of it works beside the running server, which
knows of it at once, and without it.

  tidemark client keygen --out research                  # if its operator has no keys
  tidemark client add research --jwks research.jwks.json --level group --group diabetics --scope system/Group.rs --scope system/Patient.rs
  tidemark client list
  tidemark client change research --scope system/*.rs    # what is given replaces what was there
  tidemark client disable research

A client may nothing until told: give levels, scopes, and Groups with the level group. Scopes with ? and * go in quotes.

Next: send what "add" prints to the client's operator. It holds nothing secret, unless you asked for a secret.`
}

// clientFlags is what all commands on clients have in common.
type clientFlags struct {
	configFlags `embed:""`
	Store       string `type:"path" placeholder:"DIR" help:"The store's directory. Default: store.path of the configuration."`
}

// do carries an operation out, wherever the store is open.
func (f *clientFlags) do(ctx context.Context, name string, args url.Values, out io.Writer) error {
	c, err := f.load()
	if err != nil {
		return err
	}
	if f.Store != "" {
		c.Store.Path = f.Store
	}
	return onStore(ctx, place{c.Store.Path, &c.Config}, "client-"+name, args, out)
}

// proofFlags is how a client proves itself.
type proofFlags struct {
	JWKS    string `name:"jwks" xor:"proof" type:"path" placeholder:"FILE" help:"File with its public keys, a JSON Web Key Set."`
	JWKSURI string `name:"jwks-uri" xor:"proof" placeholder:"URL" help:"URL of its public keys, https: better, for it can change them by itself."`
	Secret  bool   `xor:"proof" help:"Make a secret, for a client that knows HTTP Basic only. It is shown once."`
}

// args are the flags for an operation. Keys are looked at here, where their file has a name.
func (p *proofFlags) args(args url.Values) error {
	switch {
	case p.JWKS != "":
		proof, err := keysIn(p.JWKS)
		if err != nil {
			return err
		}
		args.Set("jwks", string(proof.KeySet))
	case p.JWKSURI != "":
		args.Set("jwks_uri", p.JWKSURI)
	case p.Secret:
		args.Set("secret", "1")
	}
	return nil
}

// proofIn makes a proof of arguments. A secret is told to nobody but the caller.
func proofIn(args url.Values) (p clients.Proof, secret string, err error) {
	if args.Has("secret") {
		secret = clients.NewSecret()
		p, err = clients.BySecret(secret)
		return p, secret, err
	}
	p.KeysURL = args.Get("jwks_uri")
	if set := args.Get("jwks"); set != "" {
		p.KeySet = []byte(set)
	}
	return p, "", nil
}

// mayFlags is what a client may.
type mayFlags struct {
	Level []string `enum:"system,patient,group" help:"What it may export: system, patient, group. May be repeated."`
	Group []string `placeholder:"ID" help:"With the level group: a Group that it may export, * for all. May be repeated; '' for none."`
	Scope []string `sep:"none" placeholder:"SCOPE" help:"What it can be granted, such as system/*.rs or 'system/Observation.rs?category=laboratory'. May be repeated."`

	WithholdGroup    []string `sep:"none" placeholder:"ID" help:"What it is not given all the same: data of the members of this Group, who have opted out. May be repeated; '' for none, as with the next three."`
	WithholdSecurity []string `sep:"none" placeholder:"LABEL" help:"Likewise what has this label in meta.security, such as R, or a system, a bar and a code. May be repeated."`
	WithholdFilter   []string `sep:"none" placeholder:"SEARCH" help:"Likewise what this finds, such as 'Condition?code=86406008'. May be repeated."`
	WithholdElement  []string `sep:"none" placeholder:"ELEMENT" help:"Likewise this element, such as ExplanationOfBenefit.total or Claim.item.net. May be repeated."`
}

// limitFlags are limits of a client's own.
type limitFlags struct {
	LimitJobs        *int          `placeholder:"N" help:"Jobs that are worked on at the same time, in place of limits.jobs_per_client. 0: that, as with the next two."`
	LimitJobsPerDay  *int          `placeholder:"N" help:"Jobs that it may start in a day of UTC."`
	LimitBytesPerDay *config.Bytes `placeholder:"SIZE" help:"Bytes of files that it may be sent in a day of UTC, such as 50GiB."`
}

func (l *limitFlags) args(args url.Values) {
	number := func(name string, n int64) { args.Set(name, strconv.FormatInt(n, 10)) }
	if l.LimitJobs != nil {
		number("limit-jobs", int64(*l.LimitJobs))
	}
	if l.LimitJobsPerDay != nil {
		number("limit-jobs-per-day", int64(*l.LimitJobsPerDay))
	}
	if l.LimitBytesPerDay != nil {
		number("limit-bytes-per-day", int64(*l.LimitBytesPerDay))
	}
}

// limitsIn are limits with those of arguments in their place.
func limitsIn(l clients.Limits, args url.Values) (clients.Limits, error) {
	var faults []error
	number := func(name string) int64 {
		n, err := strconv.ParseInt(args.Get(name), 10, 64)
		faults = append(faults, err)
		return n
	}
	if args.Has("limit-jobs") {
		l.Jobs = int(number("limit-jobs"))
	}
	if args.Has("limit-jobs-per-day") {
		l.JobsPerDay = int(number("limit-jobs-per-day"))
	}
	if args.Has("limit-bytes-per-day") {
		l.BytesPerDay = number("limit-bytes-per-day")
	}
	return l, errors.Join(faults...)
}

func (m *mayFlags) args(args url.Values) {
	for name, values := range map[string][]string{
		"level": m.Level, "group": m.Group, "scope": m.Scope,
		"withhold-group": m.WithholdGroup, "withhold-security": m.WithholdSecurity, "withhold-filter": m.WithholdFilter, "withhold-element": m.WithholdElement,
	} {
		switch {
		case values == nil:
		case len(values) == 0: // --group '': an operation is told of no list without words
			args[name] = []string{""}
		default:
			args[name] = values
		}
	}
}

type addClientCmd struct {
	ID string `arg:"" help:"What it calls itself (client_id): printable ASCII without spaces and colons."`

	Name       string `help:"What people call it."`
	JSON       bool   `name:"json" help:"Print JSON, for programs."`
	proofFlags `embed:""`
	mayFlags   `embed:""`
	limitFlags `embed:""`

	clientFlags `embed:""`
}

// Run makes a client.
func (c *addClientCmd) Run(ctx context.Context, out io.Writer) error {
	args := flagArgs(c.ID, c.JSON)
	args.Set("name", c.Name)
	c.mayFlags.args(args)
	c.limitFlags.args(args)
	if err := c.proofFlags.args(args); err != nil {
		return err
	}
	return c.do(ctx, "add", args, out)
}

func flagArgs(id string, json bool) url.Values {
	args := url.Values{"id": {id}}
	if json {
		args.Set("json", "1")
	}
	return args
}

type changeClientCmd struct {
	ID string `arg:"" help:"The client."`

	Name       *string `help:"What people call it."`
	mayFlags   `embed:""`
	limitFlags `embed:""`

	clientFlags `embed:""`
}

// Run changes a client.
func (c *changeClientCmd) Run(ctx context.Context, out io.Writer) error {
	args := flagArgs(c.ID, false)
	if c.Name != nil {
		args.Set("name", *c.Name)
	}
	c.mayFlags.args(args)
	c.limitFlags.args(args)
	if len(args) == 1 {
		return errors.New("say what to change: --name, --level, --group, --scope, --withhold-group, --withhold-security, --withhold-filter, --withhold-element, --limit-jobs, --limit-jobs-per-day, --limit-bytes-per-day")
	}
	return c.do(ctx, "change", args, out)
}

type rotateClientCmd struct {
	ID         string `arg:"" help:"The client."`
	proofFlags `embed:""`

	clientFlags `embed:""`
}

// Run replaces how a client proves itself.
func (c *rotateClientCmd) Run(ctx context.Context, out io.Writer) error {
	args := flagArgs(c.ID, false)
	if err := c.args(args); err != nil {
		return err
	}
	if len(args) == 1 {
		return errors.New("say what it has from now on: --jwks FILE, --jwks-uri URL or --secret")
	}
	return c.do(ctx, "rotate", args, out)
}

type listClientsCmd struct {
	JSON bool `name:"json" help:"Print JSON, for programs."`

	clientFlags `embed:""`
}

// Run lists the clients.
func (c *listClientsCmd) Run(ctx context.Context, out io.Writer) error {
	return c.do(ctx, "list", flagArgs("", c.JSON), out)
}

// oneClient is a command that needs nothing but the client.
type oneClient struct {
	ID string `arg:"" help:"The client."`

	clientFlags `embed:""`
}

type showClientCmd struct {
	JSON      bool `name:"json" help:"Print JSON, for programs."`
	oneClient `embed:""`
}

// Run shows a client.
func (c *showClientCmd) Run(ctx context.Context, out io.Writer) error {
	return c.do(ctx, "show", flagArgs(c.ID, c.JSON), out)
}

type disableClientCmd struct {
	oneClient `embed:""`
}

// Run disables a client.
func (c *disableClientCmd) Run(ctx context.Context, out io.Writer) error {
	return c.do(ctx, "disable", flagArgs(c.ID, false), out)
}

type enableClientCmd struct {
	oneClient `embed:""`
}

// Run enables a client.
func (c *enableClientCmd) Run(ctx context.Context, out io.Writer) error {
	return c.do(ctx, "enable", flagArgs(c.ID, false), out)
}

type removeClientCmd struct {
	oneClient `embed:""`
}

// Run removes a client.
func (c *removeClientCmd) Run(ctx context.Context, out io.Writer) error {
	return c.do(ctx, "remove", flagArgs(c.ID, false), out)
}

type rotateTokensCmd struct {
	Leaked bool `help:"Somebody knows the secret: drop all old ones. Tokens and signed URLs that are out count no more."`

	clientFlags `embed:""`
}

// Run makes another secret that signs tokens.
func (c *rotateTokensCmd) Run(ctx context.Context, out io.Writer) error {
	args := url.Values{}
	if c.Leaked {
		args.Set("leaked", "1")
	}
	return c.do(ctx, "rotate-tokens", args, out)
}
