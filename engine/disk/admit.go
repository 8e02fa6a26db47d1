package disk

import (
	"cmp"
	"fmt"
	"time"
)

// Speed is what a disk does: a read of n bytes takes Overhead + n/Bandwidth
// of its time when as many are under way as it needs to be busy.
type Speed struct {
	Bandwidth int64 // bytes a second; 0 is without limit
	Overhead  time.Duration
}

// Time returns how long the disk is busy with a number of reads.
func (v Speed) Time(reads, bytes int64) time.Duration {
	t := time.Duration(reads) * v.Overhead
	if v.Bandwidth > 0 {
		t += time.Duration(float64(bytes) / float64(v.Bandwidth) * float64(time.Second))
	}
	return t
}

// Demand is what a stream needs in every cycle of its whole length.
type Demand struct {
	// Rate is the most it wants in one cycle, in bytes a second.
	Rate int64

	// Places is the number of places of the file it reads from at a time: 1, or
	// 0, for an interleaved movie, more where hints, sound and picture lie apart.
	Places int
}

// Budget is what there is to be shared out. Its methods are arithmetic.
type Budget struct {
	Speed     Speed
	Cycle     time.Duration
	Memory    int64 // bytes of blocks
	BlockSize int
	MaxRead   int
}

// cycleBytes is what a stream wants in a cycle.
func (b *Budget) cycleBytes(d Demand) int64 {
	return int64(float64(d.Rate) * b.Cycle.Seconds())
}

// Time returns how long the disk works for a stream each cycle: reads of MaxRead
// for what it wants, and one that is shorter in each place. Blocks are read
// whole, but what is too much in one cycle is had in the next.
func (b *Budget) Time(d Demand) time.Duration {
	n := b.cycleBytes(d)
	return b.Speed.Time(n/int64(b.MaxRead)+int64(max(d.Places, 1)), n)
}

// Blocks returns how many blocks a stream holds: two cycles of data, one being
// sent while the other is read, and in each place the block they begin within.
func (b *Budget) Blocks(d Demand) int {
	size := int64(b.BlockSize)
	return int((2*b.cycleBytes(d)+size-1)/size) + max(d.Places, 1)
}

// Admit says whether a stream may be added to others that use so much time of
// each cycle and so many blocks: nil, ErrDisk or ErrMemory.
func (b *Budget) Admit(time time.Duration, blocks int) error {
	if b.Speed.Bandwidth > 0 && time > b.Cycle {
		return fmt.Errorf("%w: %v of reads for a cycle of %v", ErrDisk, time, b.Cycle)
	}
	if have := int(b.Memory / int64(b.BlockSize)); blocks > have {
		return fmt.Errorf("%w: %d blocks of %d", ErrMemory, blocks, have)
	}
	return nil
}

// share is what the streams of one file use together: no more than it takes to
// have all of the file in memory, and to read all of it each cycle.
type share struct {
	time, maxTime     time.Duration
	blocks, maxBlocks int
}

func (h *share) init(c *Config, size int64) {
	b := c.budget()
	h.maxTime = c.Speed.Time(size/int64(b.MaxRead)+1, size)
	h.maxBlocks = int((size + int64(b.BlockSize) - 1) / int64(b.BlockSize))
}

func (h *share) used() (time.Duration, int) {
	return min(h.time, h.maxTime), min(h.blocks, h.maxBlocks)
}

func (c *Config) budget() Budget {
	return Budget{c.Speed, c.Cycle, c.Memory, c.BlockSize, cmp.Or(c.MaxRead, c.BlockSize)}
}

// ledger is what all streams use.
type ledger struct {
	Budget
	time   time.Duration
	blocks int
}

// admit enters a stream that reads a file with the share, or says why not.
func (l *ledger) admit(h *share, d Demand) error {
	was := *h
	l.add(h, l.Time(d), l.Blocks(d))
	err := l.Admit(l.time, l.blocks)
	if err != nil {
		l.add(h, was.time-h.time, was.blocks-h.blocks)
	}
	return err
}

// leave takes a stream out again.
func (l *ledger) leave(h *share, d Demand) { l.add(h, -l.Time(d), -l.Blocks(d)) }

func (l *ledger) add(h *share, time time.Duration, blocks int) {
	t, n := h.used()
	h.time, h.blocks = h.time+time, h.blocks+blocks
	t2, n2 := h.used()
	l.time, l.blocks = l.time+t2-t, l.blocks+n2-n
}
