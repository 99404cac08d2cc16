//go:build unix

package main

import "syscall"

// ownFiles keeps all that this program makes to its user, whatever the umask that it
// was started with: the index's library makes files for everybody, and a directory
// that is closed (0700) helps no file that is copied out of it.
func ownFiles() { syscall.Umask(0o077) }
