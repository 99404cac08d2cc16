//go:build unix

package main

import (
	"math"
	"syscall"
)

// storeFiles is how many files a large store may have open: Pebble's cache of tables,
// and what merges and downloads read.
const storeFiles = 6000

// maxFiles is how many files this process may open, as far as that is known. Go has
// raised the limit to what the system allows.
func maxFiles() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return math.MaxUint64
	}
	return uint64(limit.Cur)
}
