package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestHeapUse(t *testing.T) {
	const mib = 1 << 20
	for live, want := range map[uint64]int{0: 400, 2 * mib: 400, 8 * mib: 200, 16 * mib: 100, 200 * mib: 100, 512 * mib: 50, 4096 * mib: 30} {
		if got := (heapUse{live: live}).percent(); got != want {
			t.Errorf("%d MiB in use: %d %%, not %d", live/mib, got, want)
		}
	}
	for held, want := range map[uint64]bool{103 * mib: false, 129 * mib: false, 131 * mib: true} {
		if got := (heapUse{live: 100 * mib, held: held}).littered(); got != want {
			t.Errorf("%d MiB held of 100 in use: %t", held/mib, got)
		}
	}
}

var keep [][]byte

// Garbage that a busy time has left goes once it is over, although the runtime would
// let it lie.
func TestTendHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tendHeap(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	runtime.GC()
	for range 12 {
		keep = append(keep, make([]byte, 1<<20))
	}
	keep = nil
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if runtime.ReadMemStats(&now); now.NumForcedGC > before.NumForcedGC && now.HeapAlloc < before.HeapAlloc-10<<20 {
			break
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("%d KiB are held, %d before; %d collections", now.HeapAlloc>>10, before.HeapAlloc>>10, now.NumGC)
		}
	}
	cancel()
	<-done
	if percent := debug.SetGCPercent(100); percent != 100 {
		t.Errorf("leaves %d %% behind", percent)
	}
}
