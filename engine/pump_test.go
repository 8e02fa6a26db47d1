package engine

import (
	"testing"
	"time"
)

func TestGathering(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ since, want time.Duration }{
		{0, ms}, // a flood: as before
		{ms / 4, ms * 3 / 4},
		{ms * 3 / 4, ms / 4},
		{ms, ms / 4}, // after a pause: as long as a burst takes to come
		{time.Hour, ms / 4},
	} {
		if got := gathering(ms, c.since); got != c.want {
			t.Errorf("%v after the last tick: %v, want %v", c.since, got, c.want)
		}
	}
}
