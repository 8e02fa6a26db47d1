package main

import "testing"

func TestTidier(t *testing.T) {
	const mib = 1 << 20
	var tidy tidier
	for n, step := range []struct {
		more uint64 // bytes allocated since the look before
		now  bool
	}{
		{20 * mib, false}, // at the start
		{mib / 2, true},   // calm again
		{mib / 2, false},  // nothing worth it
		{30 * mib, false}, // sessions come
		{30 * mib, false},
		{5 * mib, false}, // some still do
		{0, true},
		{0, false}, // nothing is left
		{mib, false}, {mib, false}, {mib, false}, {mib, false}, {mib, false}, {mib, false}, {mib, false},
		{mib, true}, // it sums up
	} {
		if got := tidy.now(tidy.seen + step.more); got != step.now {
			t.Errorf("step %d: %v, want %v", n, got, step.now)
		}
	}
}
