// Command tidemark turns a Kafka stream of FHIR changes into a FHIR Bulk Data
// server. It knows everybody and decides nothing: each subcommand reads the
// configuration, wires the packages together and waits for them to end.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"tidemark/cmd/tidemark/internal/config"
	"tidemark/cmd/tidemark/internal/roster"
)

// Exit codes. Scripts may rely on them.
const (
	exitFailed = 1 // it was tried and went wrong
	exitUsage  = 2 // it was not tried: the command line, the configuration or a file that was given is wrong
)

func main() {
	ownFiles()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal is a request, the second one ends the process at once.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tidemark: "+err.Error())
		os.Exit(exitCode(err))
	}
}

// commands is the command line; kong reads it by its tags.
type commands struct {
	Demo        demoCmd        `cmd:"" help:"Show it all on this machine: a simulated hospital, a Kafka, exports, a crash, a proof."`
	Serve       serveCmd       `cmd:"" help:"Read the topics and serve bulk exports until stopped."`
	Load        loadCmd        `cmd:"" help:"Write an export of the source, or other NDJSON files, to Kafka: to begin with all that it has."`
	Reconcile   reconcileCmd   `cmd:"" help:"Compare a store with an export of the source: what was lost on the way, and its repair."`
	Inspect     inspectCmd     `cmd:"" help:"Show what a store holds and how it stands, or the history of one resource."`
	Check       checkCmd       `cmd:"" help:"Prove the invariants of a store."`
	Backup      backupCmd      `cmd:"" help:"Copy a store while it is served."`
	Restore     restoreCmd     `cmd:"" help:"Make a store of a backup."`
	Erase       eraseCmd       `cmd:"" help:"Take a resource, or a Patient's compartment, out of all history."`
	Client      clientCmd      `cmd:"" help:"Manage the programs that may ask for data."`
	Group       groupCmd       `cmd:"" help:"Make Groups of lists of patients, for sources that have none."`
	Reindex     reindexCmd     `cmd:"" help:"Rebuild a store's index from its segments."`
	Promise     promiseCmd     `cmd:"" help:"Repair what was promised while the clock was far ahead."`
	Deadletter  deadletterCmd  `cmd:"" help:"Look at the records that could not be decoded, and settle them."`
	Topic       topicCmd       `cmd:"" help:"Show how topics are read, and decide about what holds the watermark."`
	Audit       auditCmd       `cmd:"" help:"Read and prove the trail of who was given what."`
	Verify      verifyCmd      `cmd:"" help:"Recount a downloaded export against its manifest."`
	Validate    validateCmd    `cmd:"" help:"Look at records of a topic: what they are understood as, and which format they are in."`
	CheckConfig checkConfigCmd `cmd:"" help:"List all faults of a configuration file."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

const description = `Tidemark turns a Kafka stream of FHIR changes into a FHIR Bulk Data server.

First look, needs nothing else:
  tidemark demo

With a Kafka on this machine and a topic fhir-changes (key Type/id, value the resource as JSON):
  tidemark serve
  curl -s -D- -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' 'http://127.0.0.1:8080/fhir/$export'

Every command explains itself: tidemark serve --help`

// run parses the command line and carries it out.
func run(ctx context.Context, args []string, out io.Writer) error {
	exited := false
	parser, err := kong.New(&commands{},
		kong.Name("tidemark"),
		kong.Description(description),
		kong.ConfigureHelp(kong.HelpOptions{NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.Writers(out, out),
		kong.Exit(func(int) { exited = true }), // after --help; kong would go on parsing
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.BindTo(out, (*io.Writer)(nil)),
	)
	if err != nil {
		return fmt.Errorf("build the command line: %w", err)
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if exited {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w\ntry: tidemark --help", err)
	}
	return parsed.Run()
}

// A misuse is what is wrong with a command line, or with what it names: nothing was tried.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

func exitCode(err error) int {
	if _, ok := errors.AsType[misuse](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*kong.ParseError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[config.Faults](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[roster.Faults](err); ok {
		return exitUsage
	}
	return exitFailed
}
