package disk

import (
	"math/bits"
	"time"
)

// Stats counts a Scheduler's work since Open. Blocks / (Hits + Blocks) is how
// much of what was wanted had to be read.
type Stats struct {
	Reads  uint64 // given to the disk
	Bytes  uint64 // read
	Blocks uint64 // asked of the disk: Blocks - Reads were joined to others
	Hits   uint64 // blocks wanted that were in memory, or asked for already

	Sets      uint64 // handed over
	Underruns uint64 // of them, late; also those that are late and still missing
	Errors    uint64 // reads that failed
	Starved   uint64 // sets that waited for blocks to become free
	Refused   uint64 // sets that got ErrMemory

	// How long reads took, from when the disk was given them.
	ReadP50, ReadP99, ReadMax time.Duration

	Streams  int           // open
	Budget   time.Duration // of a cycle: its length
	Admitted time.Duration // of it, for the streams that are open

	Cycles   uint64        // gone by
	Overruns uint64        // of them, those whose reads were not done in time
	Used     time.Duration // how long the disk was busy in the last cycle
	UsedMax  time.Duration // in the worst

	PoolBlocks int // in all
	InUse      int // held by sets, or being read
	Cached     int // not held, but with data
	UnderWay   int // reads
	Stuck      int // of them, those that take so long that they do not count for the depth
}

// Stats returns the counters as they are now.
func (s *Scheduler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.stats
	t.ReadP50, t.ReadP99, t.ReadMax = s.times.quantile(0.5), s.times.quantile(0.99), s.times.max
	t.Streams, t.Budget, t.Admitted = len(s.streams), s.cfg.Cycle, s.ledger.time
	t.PoolBlocks, t.InUse = len(s.blocks), len(s.blocks)-len(s.heap)
	for _, i := range s.heap {
		if s.blocks[i].file != nil {
			t.Cached++
		}
	}
	t.UnderWay, t.Stuck = len(s.slots)-len(s.idle), s.stuck
	return t
}

// histogram counts durations in classes an eighth wide.
type histogram struct {
	counts [8 * 40]uint32 // by microseconds: eight for each power of two
	n      uint64
	max    time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.counts[class(d)]++
	h.n++
	h.max = max(h.max, d)
}

func class(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 0))
	if us < 8 {
		return int(us)
	}
	e := bits.Len64(us) - 4 // us>>e is from 8 to 15
	return min(8*(e+1)+int(us>>e)-8, 8*40-1)
}

// quantile returns an upper bound of the class that holds the q-th part.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	for i, c := range h.counts {
		if rank < uint64(c) {
			return min(h.max, time.Duration(bound(i))*time.Microsecond)
		}
		rank -= uint64(c)
	}
	return h.max
}

// bound is the least duration beyond class i, in microseconds.
func bound(i int) uint64 {
	if i++; i < 8 {
		return uint64(i)
	}
	return uint64(i%8+8) << (i/8 - 1)
}
