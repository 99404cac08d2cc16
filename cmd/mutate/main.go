// Command mutate asks whether the tests are worth anything: it breaks the code
// on purpose, one line at a time, and reports every break that no test notices.
//
// The list of breaks is a text file (see parse). Each is applied to a copy of
// the tree, never to the tree itself. A break counts as noticed only if the
// code still compiles and the named tests, green without it, turn red.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mutate", flag.ContinueOnError)
	only := flags.String("run", "", "only breaks whose name matches this regular expression")
	timeout := flags.Duration("timeout", 5*time.Minute, "longest that the tests of one break may take; longer counts as noticed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: mutate [-run REGEXP] LIST, from the root of the module")
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	text, err := os.Open(flags.Arg(0))
	if err != nil {
		return err
	}
	defer text.Close()
	all, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", flags.Arg(0), err)
	}
	var list []mutation
	for _, m := range all {
		if wanted.MatchString(m.name) {
			list = append(list, m)
		}
	}
	dir, err := os.MkdirTemp("", "mutate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copyTree(dir, "."); err != nil {
		return fmt.Errorf("copy the tree: %w", err)
	}
	l := &laboratory{dir: dir, timeout: *timeout, out: out}
	return l.all(ctx, list)
}

// laboratory is a copy of the tree in which things may be broken.
type laboratory struct {
	dir     string
	timeout time.Duration
	out     io.Writer
}

func (l *laboratory) all(ctx context.Context, list []mutation) error {
	if err := l.sound(ctx, list); err != nil {
		return err
	}
	unnoticed := 0
	for _, m := range list {
		start := time.Now()
		verdict, ok := l.try(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !ok {
			unnoticed++
		}
		fmt.Fprintf(l.out, "%-40s %5.1fs  %s\n", m.name, time.Since(start).Seconds(), verdict)
	}
	fmt.Fprintf(l.out, "%d breaks, %d noticed\n", len(list), len(list)-unnoticed)
	if unnoticed > 0 {
		return fmt.Errorf("%d of %d breaks were not noticed by a test or could not be tried", unnoticed, len(list))
	}
	return nil
}

// sound runs the tests once without any break: red ones would notice anything.
func (l *laboratory) sound(ctx context.Context, list []mutation) error {
	seen := map[string]bool{}
	for _, m := range list {
		key := strings.Join(m.test, " ")
		if seen[key] {
			continue
		}
		seen[key] = true
		output, err := l.goTest(ctx, m.test)
		if err != nil {
			return fmt.Errorf("go test %s is red without any break:\n%s", key, tail(output))
		}
		if noTests.MatchString(output) && !someTests.MatchString(output) {
			return fmt.Errorf("go test %s (%s) runs no test", key, m.name)
		}
	}
	return nil
}

var (
	noTests   = regexp.MustCompile(`\[no tests to run\]|\[no test files\]`)
	someTests = regexp.MustCompile(`(?m)^ok\s+\S+\s+[0-9.]+s$`)
	failed    = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
)

// try applies one break and puts the file back.
func (l *laboratory) try(ctx context.Context, m mutation) (verdict string, ok bool) {
	name := filepath.Join(l.dir, filepath.FromSlash(m.file))
	source, err := os.ReadFile(name)
	if err != nil {
		return "BAD ENTRY: " + err.Error(), false
	}
	broken, err := m.apply(string(source))
	if err != nil {
		return "BAD ENTRY: " + err.Error(), false
	}
	if err := os.WriteFile(name, []byte(broken), 0o600); err != nil {
		return "BAD ENTRY: " + err.Error(), false
	}
	defer os.WriteFile(name, source, 0o600) //nolint:errcheck // a copy; the next ReadFile would show it

	if output, err := l.goCommand(ctx, "build", "./"+filepath.ToSlash(filepath.Dir(m.file))); err != nil {
		return "BAD ENTRY: does not compile: " + firstLine(output), false
	}
	output, err := l.goTest(ctx, m.test)
	if err == nil {
		return "SURVIVED: no test noticed", false
	}
	if names := failed.FindStringSubmatch(output); names != nil {
		return "noticed by " + names[1], true
	}
	return "noticed: " + firstLine(output), true
}

func (l *laboratory) goTest(ctx context.Context, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout+time.Minute)
	defer cancel()
	return l.goCommand(ctx, append([]string{"test", "-timeout", l.timeout.String()}, args...)...)
}

func (l *laboratory) goCommand(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = l.dir
	output, err := cmd.CombinedOutput()
	return string(output), err
}

func firstLine(s string) string {
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}

// tail is the end of a long output.
func tail(s string) string {
	const most = 4000
	return s[max(0, len(s)-most):]
}

// copyTree copies what Go needs: hidden folders and what is built or fetched
// stay behind.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && name != from && (strings.HasPrefix(base, ".") || name == "bin" || name == "data") {
			return filepath.SkipDir
		}
		relative, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type().IsRegular():
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(target, data, 0o600)
		}
		return nil
	})
}
