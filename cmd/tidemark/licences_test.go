package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewriteLicences = flag.Bool("rewrite", false, "rewrite deploy/LICENCES.md")

// licences are those under which a module may be linked in, by words that only their
// texts have. Decision, November 2026: these few lines over "go list" and the files in
// the module cache instead of go-licenses: they work offline, bring no module, and what
// they do not know is a fault.
var licences = []struct{ name, words string }{
	{"Apache-2.0", "Apache License Version 2.0, January 2004"},
	{"MPL-2.0", "Mozilla Public License, version 2.0"}, // of its own files only, which we do not change
	{"BSD-3-Clause", "Neither the name of"},
	{"BSD-3-Clause", "names of its contributors may be used to endorse"},
	{"BSD-2-Clause", "Redistribution and use in source and binary forms"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"},
}

// Every module that is linked in has a licence that we may ship it under, and
// deploy/LICENCES.md names them all.
func TestLicences(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("skipped: go not found")
	}
	list := exec.Command(goTool, "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}", ".")
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64") // what the image holds, wherever this runs
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	modules := slices.Compact(slices.Sorted(strings.Lines(string(out))))
	if len(modules) < 20 {
		t.Fatalf("%d modules are linked in: is the list whole?", len(modules))
	}
	var text strings.Builder
	text.WriteString("# What is linked in\n\nMade by `make golden`, checked by `make licences`: the modules in the binary, and the licences that they come under. Go's own library comes under BSD-3-Clause.\n\n| module | version | licence |\n|---|---|---|\n")
	for _, m := range modules {
		f := strings.Fields(m)
		name := licenceOf(f[2])
		if name == "" {
			t.Errorf("%s %s has no licence that is known here to be fit: read the files in %s", f[0], f[1], filepath.Base(f[2]))
		}
		fmt.Fprintf(&text, "| %s | %s | %s |\n", f[0], f[1], name)
	}
	const name = "../../deploy/LICENCES.md"
	if *rewriteLicences {
		if err := os.WriteFile(name, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), text.String()); d != "" {
		t.Errorf("%s differs (-want +got), make golden rewrites it:\n%s", name, d)
	}
}

// licenceOf reads what a module says, "" if that is nothing known. Files of further
// terms, such as PATENTS and NOTICE, only add to it.
func licenceOf(dir string) string {
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, file := range files {
		name := strings.ToUpper(filepath.Base(file))
		if !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if known := classify(string(b)); known != "" {
			return known
		}
	}
	return ""
}

func classify(text string) string {
	words := strings.Join(strings.Fields(text), " ")
	for _, forbidden := range []string{"GNU GENERAL PUBLIC LICENSE", "GNU AFFERO", "GNU LESSER", "Business Source License", "Server Side Public License", "Commons Clause"} {
		if strings.Contains(words, forbidden) && !strings.Contains(words, "Mozilla Public License") { // which names the GNU ones
			return ""
		}
	}
	for _, l := range licences {
		if strings.Contains(words, l.words) {
			return l.name
		}
	}
	return ""
}

func TestClassify(t *testing.T) {
	for text, want := range map[string]string{
		"Apache License\n   Version 2.0,  January 2004":                         "Apache-2.0",
		"GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3":                          "",
		"Apache License\nVersion 2.0, January 2004\n\"Commons Clause\" License": "",
		"Business Source License 1.1":                                           "",
		"All rights reserved.":                                                  "",
	} {
		if got := classify(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
