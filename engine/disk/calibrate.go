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
	end := time.NewTimer(limit)
	defer end.Stop()
	memory, err := mapMemory(trials * largeTrial)
	if err != nil {
		return Speed{}, fmt.Errorf("calibrate: %w", err)
	}
	var c calibration
	c.deadline = time.Now().Add(limit)
	var all sync.WaitGroup
	for i := range trials {
		all.Add(1)
		go func() {
			defer all.Done()
			c.work(from, names, i, memory[i*largeTrial:][:largeTrial])
		}()
	}
	done := make(chan struct{})
	go func() { // outlives the call when a read does not come back
		all.Wait()
		_ = unmapMemory(memory)
		close(done)
	}()
	select {
	case <-done:
	case <-end.C:
		select {
		case <-done:
		case <-time.After(limit / 10): // for the last reads
		}
	}
	v, err := speedOf(limit, c.reads[0].Load(), c.reads[1].Load())
	if err != nil {
		if p := c.err.Load(); p != nil {
			err = *p
		}
		return v, fmt.Errorf("calibrate: %w", err)
	}
	return v, nil
}

// calibration counts small and large reads, half of the time each.
type calibration struct {
	deadline time.Time
	reads    [2]atomic.Int64
	err      atomic.Pointer[error]
}

// work reads in every trials-th file, from the i-th on.
func (c *calibration) work(from FS, names []string, i int, buf []byte) {
	var open []Handle
	var sizes []int64
	defer func() {
		for _, h := range open {
			_ = h.Close()
		}
	}()
	for k := i % max(len(names), 1); k < len(names) && len(open) < 16; k += trials {
		h, err := from.Open(names[k])
		if err != nil {
			c.err.Store(&err)
			continue
		}
		open = append(open, h)
		id, err := h.Identity()
		if err != nil {
			c.err.Store(&err)
		}
		sizes = append(sizes, id.Size)
	}
	for time.Now().Before(c.deadline) && len(open) > 0 {
		k := rand.IntN(len(open))
		// By turns, so that both see the disk in the same state.
		kind, n := 0, int64(smallTrial)
		if phase := time.Until(c.deadline) / (10 * time.Millisecond) % 2; phase == 1 {
			kind, n = 1, largeTrial
		}
		if sizes[k] < n {
			err := fmt.Errorf("%s: smaller than %d bytes", names[0], n)
			c.err.Store(&err)
			return
		}
		off := rand.Int64N(sizes[k]-n+1) / minBlock * minBlock
		if _, err := open[k].ReadAt(buf[:n], off); err != nil {
			c.err.Store(&err)
			return
		}
		c.reads[kind].Add(1)
	}
}

// speedOf solves time = overhead + bytes/bandwidth for the two kinds of reads,
// each done so often in half of the time.
func speedOf(total time.Duration, small, large int64) (Speed, error) {
	if small == 0 || large == 0 {
		return Speed{}, errors.New("too few reads to measure the disk")
	}
	a, b := total.Seconds()/2/float64(small), total.Seconds()/2/float64(large)
	if b <= a { // no telling the two apart: all is bandwidth
		return Speed{Bandwidth: int64(largeTrial / b)}, nil
	}
	bandwidth := (largeTrial - smallTrial) / (b - a)
	overhead := max(a-smallTrial/bandwidth, 0)
	return Speed{Bandwidth: int64(bandwidth), Overhead: time.Duration(overhead * float64(time.Second))}, nil
}
