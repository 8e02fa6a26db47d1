package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	tidyLook  = time.Second
	tidyCalm  = 4 << 20 // bytes allocated in that time, at most: nobody is being set up
	tidyWorth = 8 << 20 // bytes allocated since the last time, at least
)

// tidier finds the moments to give memory back. Setting up sessions leaves as
// much garbage as they need themselves; sessions that play allocate nothing, so
// that the collector, which goes by what is allocated, would leave it for minutes.
type tidier struct{ seen, tidied uint64 }

// now says whether this is one, by the bytes allocated so far.
func (t *tidier) now(allocated uint64) bool {
	calm := allocated-t.seen <= tidyCalm
	t.seen = allocated
	if !calm || allocated-t.tidied < tidyWorth {
		return false
	}
	t.tidied = allocated
	return true
}

func giveMemoryBack(ctx context.Context) {
	var t tidier
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for ticker := time.NewTicker(tidyLook); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			ticker.Stop()
			return
		}
		if metrics.Read(sample); t.now(sample[0].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}
