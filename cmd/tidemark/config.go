package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"tidemark/cmd/tidemark/internal/config"
)

// configFlags is how every command that needs the configuration is told of it.
type configFlags struct {
	Config string   `short:"c" placeholder:"FILE" type:"path" env:"TIDEMARK_CONFIG" help:"Configuration file; without one the defaults hold."`
	Set    []string `sep:"none" placeholder:"KEY=VALUE" help:"Set one key, stronger than file and environment. May be repeated."`
}

// ownVariables begin with TIDEMARK_ like keys but are flags.
var ownVariables = []string{"TIDEMARK_CONFIG"}

func (f *configFlags) load() (*config.Loaded, error) {
	return config.Load(config.Source{
		File: f.Config, Environ: os.Environ(), Set: f.Set, Ignore: ownVariables,
	})
}

// checkConfigCmd looks at a file alone: what the environment of the machine
// that will run it adds is not known here.
type checkConfigCmd struct {
	File string `arg:"" type:"path" help:"The file to check."`
}

// Help is shown by --help.
func (*checkConfigCmd) Help() string {
	return `Reads the file alone, without the environment, and lists all faults with key and line. Ends with
0 when there is none, else with 2.

Next: tidemark serve --config FILE --print-config shows what would hold, and where each value comes from.`
}

// Run checks one file.
func (c *checkConfigCmd) Run(_ context.Context, out io.Writer) error {
	if _, err := config.Load(config.Source{File: c.File}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s: no fault found\n", c.File)
	return err
}

// coldLog is for commands that end: warnings only, as text.
func coldLog() *slog.Logger {
	return newLogger(config.Log{Level: "warn", Format: "text"}, os.Stderr)
}
