package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Setting up makes garbage, playing none: what is left of the one would stay for all
// of the other, and to clear up all the time takes from those who are being set up. So
// while there is much to do garbage may lie, and once there is not it goes.
const (
	heapLook   = 500 * time.Millisecond // between two looks
	heapCalm   = 512 << 10              // allocated between them at most, octets, where nobody is being set up
	heapFew    = 16 << 20               // of garbage that may lie where little is in use, octets, and …
	heapMuch   = 256 << 20              // … where much is; between them as much as is in use
	heapLeast  = 30                     // so many percent of that may lie anyway
	heapRemain = 4 << 20                // of garbage not worth clearing up
)

// heapUse is what the runtime tells of its heap, in octets.
type heapUse struct {
	allocated uint64 // since the program began
	live      uint64 // that the last collection found in use
	held      uint64 // by what is in use and what no longer is
}

// percent is how much garbage may lie while there is much to do.
func (u heapUse) percent() int {
	live := max(u.live, heapFew/4)
	return int(max(min(max(live, heapFew), heapMuch)*100/live, heapLeast))
}

// calm says that little has been allocated since before.
func (u heapUse) calm(before heapUse) bool { return u.allocated-before.allocated < heapCalm }

// littered says that more garbage lies than may where there is little to do.
func (u heapUse) littered() bool {
	return u.held > u.live+max(u.live*heapLeast/100, heapRemain)
}

// tendHeap sets the collector's percentage by what there is to do, until ctx ends.
// GOGC in the environment goes before it.
func tendHeap(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	read := func() heapUse {
		metrics.Read(samples)
		return heapUse{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()}
	}
	before := read()
	percent := before.percent()
	defer debug.SetGCPercent(debug.SetGCPercent(percent))
	tick := time.NewTicker(heapLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		use := read()
		switch is := use.percent(); {
		case use.calm(before):
			if use.littered() {
				debug.FreeOSMemory()
			}
		case is < percent*4/5 || is > percent*5/4:
			percent = is // setting it stops the world
			debug.SetGCPercent(percent)
		}
		before = read()
	}
}
