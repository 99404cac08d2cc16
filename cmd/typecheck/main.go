// Command typecheck asks whether the program is right Go on other systems, in seconds:
// to compile it for one takes minutes, nearly all of them for the machine code of
// libraries, which others build there every day.
//
// It reads what go list says belongs to the program there, checks declarations
// everywhere and the bodies of functions in the main module. What is left to the compiler
// and the linker is assembly, and the code that they make of right Go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, ".", os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, targets []string, out io.Writer) error {
	if len(targets) == 0 {
		return errors.New("usage: typecheck SYSTEM/PROCESSOR…, from the root of the module")
	}
	var faults []error
	for _, target := range targets {
		n, err := check(ctx, dir, target)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", target, err))
			continue
		}
		fmt.Fprintf(out, "%s: %d packages are right\n", target, n)
	}
	return errors.Join(faults...)
}

// A listed package is what go list says of one.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	ImportMap  map[string]string // where an import leads that is not what it says
	Module     *struct{ Main bool }
	Error      *struct{ Err string }
}

func (p *listed) ours() bool { return p.Module != nil && p.Module.Main }

// check checks the module's packages and all that they import on a target such as
// linux/arm64, and tells how many these are.
func check(ctx context.Context, dir, target string) (int, error) {
	system, processor, ok := strings.Cut(target, "/")
	sizes := types.SizesFor("gc", processor)
	if !ok || sizes == nil {
		return 0, errors.New("is no system and processor, such as linux/arm64")
	}
	list, err := list(ctx, dir, system, processor)
	if err != nil {
		return 0, err
	}
	c := checker{files: token.NewFileSet(), sizes: sizes, done: map[string]*types.Package{"unsafe": types.Unsafe}}
	for i := range list { // each stands behind what it imports
		c.check(&list[i])
	}
	return len(list), errors.Join(c.faults...)
}

func list(ctx context.Context, dir, system, processor string) (list []listed, err error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Module,Error", "./...")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+processor, "CGO_ENABLED=0")
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(text))); ; {
		var p listed
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		list = append(list, p)
	}
}

type checker struct {
	files  *token.FileSet
	sizes  types.Sizes
	done   map[string]*types.Package
	faults []error
}

func (c *checker) check(p *listed) {
	if p.ImportPath == "unsafe" {
		return
	}
	if p.Error != nil {
		c.faults = append(c.faults, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err))
	}
	var files []*ast.File
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(c.files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			c.faults = append(c.faults, err)
			continue
		}
		files = append(files, file)
	}
	config := types.Config{
		Importer: importer{c.done, p.ImportMap}, Sizes: c.sizes, IgnoreFuncBodies: !p.ours(),
		Error: func(err error) {
			// Where bodies are passed over, imports seem to be used nowhere.
			if e, ok := errors.AsType[types.Error](err); !ok || !e.Soft || p.ours() {
				c.faults = append(c.faults, err)
			}
		},
	}
	c.done[p.ImportPath], _ = config.Check(p.ImportPath, c.files, files, nil) // Error has heard of it
}

type importer struct {
	done  map[string]*types.Package
	leads map[string]string
}

func (i importer) Import(path string) (*types.Package, error) {
	if to := i.leads[path]; to != "" {
		path = to
	}
	if p := i.done[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s is not listed before what imports it", path)
}
