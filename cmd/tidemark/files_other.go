//go:build !unix

package main

import "math"

const storeFiles = 0

func maxFiles() uint64 { return math.MaxUint64 }
