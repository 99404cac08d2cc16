package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"tidemark/cmd/tidemark/internal/demo"
)

type demoCmd struct {
	Once   bool   `help:"End after the proof, within 20 seconds; a failed proof is exit code 1."`
	Seed   uint64 `default:"42" help:"Another number, another hospital."`
	Rate   int    `default:"100" help:"Changes a second that the hospital writes."`
	Keep   string `placeholder:"DIR" type:"path" help:"Leave store, topic, configuration and log in this folder, which must be empty or new."`
	Listen string `default:"127.0.0.1:8080" help:"Where the server listens; another port is taken if this one is not free."`
}

// Help is shown by --help.
func (*demoCmd) Help() string {
	return `Needs nothing but this program: a simulated hospital writes FHIR changes to an embedded Kafka, the real server takes them in and
exports them, is killed in the middle of it and comes back, and the hospital's own log proves that every change was delivered
exactly once. Then it stays up for you to try, until Ctrl-C.

  tidemark demo
  tidemark demo --once --seed 7`
}

// Validate is called by kong.
func (c *demoCmd) Validate() error {
	if c.Rate < 1 || c.Rate > 20_000 {
		return fmt.Errorf("--rate must lie between 1 and 20000")
	}
	return nil
}

// Run plays the demo.
func (c *demoCmd) Run(ctx context.Context, out io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return demo.Run(ctx, out, demo.Options{
		Once: c.Once, Seed: c.Seed, Rate: c.Rate, Keep: c.Keep, Listen: c.Listen, Program: program, Version: version,
	})
}
