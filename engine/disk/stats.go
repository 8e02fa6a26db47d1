package disk

import "time"

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
	t.ReadP50, t.ReadP99, t.ReadMax = s.times.Quantile(0.5), s.times.Quantile(0.99), s.times.Max()
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
