//go:build !linux

package demo

import "os/exec"

// isolate does nothing here: Ctrl-C reaches the child too, which is what it
// would be told anyway. A demo that is killed may leave the child behind.
func isolate(*exec.Cmd) {}
