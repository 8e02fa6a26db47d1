package hint

import (
	"encoding/binary"
	"sort"
)

// packed is a column of whole numbers, each in as few bytes as its largest
// needs: an open movie is little more than its columns.
type packed struct {
	width int
	mask  uint64
	n     int
	b     []byte // little endian, 8 bytes longer than n*width
}

// pack makes a column of n numbers given by at.
func pack(n int, at func(int) uint64) packed {
	var top uint64
	for i := range n {
		top |= at(i)
	}
	p := packed{width: 1, n: n}
	for p.width < 8 && top>>(8*p.width) != 0 {
		p.width++
	}
	p.mask = ^uint64(0) >> (64 - 8*p.width)
	p.b = make([]byte, n*p.width+8)
	for i := range n {
		// later numbers overwrite the zeros this one writes beyond its width
		binary.LittleEndian.PutUint64(p.b[i*p.width:], at(i))
	}
	return p
}

func (p *packed) at(i int) int64 {
	return int64(binary.LittleEndian.Uint64(p.b[i*p.width:]) & p.mask)
}

// last returns the last index whose number is ≤ v in a rising column, or -1.
func (p *packed) last(v int64) int {
	return sort.Search(p.n, func(i int) bool { return p.at(i) > v }) - 1
}

// samples is a track's sample table: where each sample lies and when it is due.
// Samples and chunks count from 0 here, from 1 in the file.
type samples struct {
	n     int
	fixed int64   // bytes of every sample, when sizes is not used
	sizes packed  // bytes of each sample
	sums  []int64 // bytes of all samples before sample 64*i

	chunks packed // file offset of each chunk

	// runs of chunks with as many samples each (stsc)
	runChunk, runSample, runPer packed

	// runs of samples with the same duration (stts), in media time units
	timeSample, timeStart, timeDelta packed

	// compressed QuickTime sound, whose "samples" have no bytes of their own:
	// blockBytes hold blockSamples of them. 1 and 0 for anything else.
	blockSamples, blockBytes int64
}

const sumStep = 64

func (t *samples) size(i int) int64 {
	if t.sizes.n == 0 {
		return t.fixed
	}
	return t.sizes.at(i)
}

// before returns the bytes of all samples before i: O(1).
func (t *samples) before(i int) int64 {
	if t.sizes.n == 0 {
		return int64(i) * t.fixed
	}
	s := t.sums[i/sumStep]
	for k := i &^ (sumStep - 1); k < i; k++ {
		s += t.sizes.at(k)
	}
	return s
}

// time returns when sample i is due, in media time units; i may be n (the end)
// or more. The last run goes on for ever.
func (t *samples) time(i int) int64 {
	if t.timeSample.n == 0 {
		return 0
	}
	return t.timeIn(t.timeSample.last(int64(i)), i)
}

func (t *samples) timeIn(run, i int) int64 {
	return t.timeStart.at(run) + (int64(i)-t.timeSample.at(run))*t.timeDelta.at(run)
}

// runFor returns the first run that ends at v or later.
func (t *samples) runFor(v int64) int {
	return sort.Search(t.timeSample.n, func(i int) bool {
		if i+1 < t.timeSample.n {
			return t.timeStart.at(i+1) >= v
		}
		return t.timeIn(i, t.n) >= v
	})
}

// locate returns the sample that time v falls in: n when v is past the end.
// Where several samples share a time it is the first of them when v is that
// time exactly, else the last: the rule Darwin seeks by.
func (t *samples) locate(v int64) int {
	r := t.runFor(v)
	if r == t.timeSample.n {
		return t.n
	}
	i := t.timeSample.at(r)
	if d := t.timeDelta.at(r); d > 0 && v > t.timeStart.at(r) {
		i += (v - t.timeStart.at(r)) / d
	}
	return int(min(i, int64(t.n)))
}

// lower returns the first sample due at v or later, n when there is none.
func (t *samples) lower(v int64) int {
	r := t.runFor(v)
	if r == t.timeSample.n {
		return t.n
	}
	i := t.timeSample.at(r)
	if s := t.timeStart.at(r); v > s {
		d := t.timeDelta.at(r) // not 0: the run ends at v or later
		i += (v - s + d - 1) / d
	}
	return int(min(i, int64(t.n)))
}

// cursor finds samples; going on to the next one is O(1), to any other O(log n).
type cursor struct {
	t          *samples
	run, chunk int
	first, end int   // samples of the chunk
	base       int64 // file offset of the chunk
	i          int   // sample last found
	off        int64 // and its file offset
}

func newCursor(t *samples) cursor { return cursor{t: t, chunk: -1} }

// enter makes chunk the current one; run is the run it lies in.
func (c *cursor) enter(run, chunk int) {
	per := c.t.runPer.at(run)
	first := c.t.runSample.at(run) + (int64(chunk)-c.t.runChunk.at(run))*per
	c.run, c.chunk = run, chunk
	c.first, c.end = int(first), int(min(first+per, int64(c.t.n)))
	c.base = c.t.chunks.at(chunk)
	c.i, c.off = c.first, c.base
}

// next goes on to the chunk after the current one.
func (c *cursor) next() bool {
	if c.chunk+1 >= c.t.chunks.n || c.end >= c.t.n {
		return false
	}
	run := c.run
	if run+1 < c.t.runChunk.n && c.t.runChunk.at(run+1) == int64(c.chunk+1) {
		run++
	}
	c.enter(run, c.chunk+1)
	return true
}

// find goes to sample i and returns its file offset; false when no chunk
// holds it.
func (c *cursor) find(i int) (int64, bool) {
	switch {
	case c.chunk >= 0 && i >= c.first && i < c.end:
	case i < 0 || i >= c.t.n:
		return 0, false
	case c.chunk >= 0 && i == c.end:
		if !c.next() {
			return 0, false
		}
	default:
		run := c.t.runSample.last(int64(i))
		if run < 0 {
			return 0, false
		}
		chunk := c.t.runChunk.at(run) + (int64(i)-c.t.runSample.at(run))/c.t.runPer.at(run)
		if chunk >= int64(c.t.chunks.n) {
			return 0, false
		}
		c.enter(run, int(chunk))
	}
	switch i {
	case c.i:
	case c.i + 1:
		c.off += c.t.size(c.i)
	default:
		c.off = c.base + c.t.before(i) - c.t.before(c.first)
	}
	c.i = i
	return c.off, true
}

// chunkBytes returns how long the current chunk is when per samples take
// bytes bytes; 0 bytes means by the sample sizes.
func (c *cursor) chunkBytes(bytes, per int64) int64 {
	if bytes > 0 { // a last block that is not full is there as a whole
		return (int64(c.end-c.first) + per - 1) / per * bytes
	}
	return c.t.before(c.end) - c.t.before(c.first)
}
