//go:build invariants && race

package store

// selfCheckEach: a proof goes through the whole store, ten times slower under the race
// detector, where it was half of all that the tests did. What is wrong mostly stays wrong.
const selfCheckEach = 5
