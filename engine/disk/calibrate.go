package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	trials     = 8         // reads at once while calibrating
	smallTrial = 64 << 10  // bytes
	largeTrial = 512 << 10 // bytes
)

// Calibrate measures the disk by reading at random places of the files named,
// which are best some dozens and larger than the disk's own cache, for as long
// as the limit says and no longer. It is what the disk can do at its best:
// give a Scheduler some four fifths of the bandwidth.
func Calibrate(from FS, names []string, limit time.Duration) (Speed, error) {
	memory, mapped, err := mapMemory(trials * largeTrial)
	if err != nil {
		return Speed{}, fmt.Errorf("calibrate: %w", err)
	}
	var reads [2]atomic.Int64 // small and large ones, half of the time each
	var failed atomic.Pointer[error]
	deadline := time.Now().Add(limit)
	var all sync.WaitGroup
	for i := range trials {
		all.Go(func() {
			if err := trial(from, names, i, memory[i*largeTrial:][:largeTrial], deadline, &reads); err != nil {
				failed.Store(&err)
			}
		})
	}
	done := make(chan struct{})
	go func() { // outlives the call when a read does not come back
		all.Wait()
		_ = unmapMemory(mapped)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit * 11 / 10):
	}
	if p := failed.Load(); p != nil {
		return Speed{}, fmt.Errorf("calibrate: %w", *p)
	}
	return speedOf(limit, reads[0].Load(), reads[1].Load())
}

// trial reads in one of the files until the deadline.
func trial(from FS, names []string, i int, buf []byte, deadline time.Time, reads *[2]atomic.Int64) error {
	if len(names) == 0 {
		return nil
	}
	h, err := from.Open(names[i*len(names)/trials])
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // only read
	id, err := h.Identity()
	if err == nil && id.Size < largeTrial {
		err = fmt.Errorf("%s: smaller than %d bytes", names[i*len(names)/trials], largeTrial)
	}
	for err == nil && time.Now().Before(deadline) {
		// Small and large ones by turns, so that both see the disk in the same state.
		kind := int(time.Until(deadline) / (10 * time.Millisecond) % 2)
		n := [2]int64{smallTrial, largeTrial}[kind]
		if _, err = h.ReadAt(buf[:n], rand.Int64N(id.Size-n+1)/minBlock*minBlock); err == nil {
			reads[kind].Add(1)
		}
	}
	return err
}

// speedOf solves time = overhead + bytes/bandwidth for the two kinds of reads,
// each done so often in half of the time.
func speedOf(total time.Duration, small, large int64) (Speed, error) {
	if small == 0 || large == 0 {
		return Speed{}, errors.New("calibrate: too few reads to measure the disk")
	}
	a, b := total.Seconds()/2/float64(small), total.Seconds()/2/float64(large)
	if b <= a { // no telling the two apart: all is bandwidth
		return Speed{Bandwidth: int64(largeTrial / b)}, nil
	}
	bandwidth := (largeTrial - smallTrial) / (b - a)
	overhead := max(a-smallTrial/bandwidth, 0)
	return Speed{Bandwidth: int64(bandwidth), Overhead: time.Duration(overhead * float64(time.Second))}, nil
}
