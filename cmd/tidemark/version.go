package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// version is raised by the commit that releases it.
const version = "0.1.0"

type versionCmd struct{}

// Run prints one line that a bug report should hold.
func (*versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintf(out, "tidemark %s%s %s %s/%s\n", version, revision(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// revision is the commit that was built, if the build knew it.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return " (" + s.Value[:12] + ")"
		}
	}
	return ""
}
