//go:build race

package engine_test

const raced = true // the detector remembers all memory in some of its own
