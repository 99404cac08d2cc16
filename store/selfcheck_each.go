//go:build invariants && !race

package store

const selfCheckEach = 1
