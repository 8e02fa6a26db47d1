package wire

import (
	"math/bits"
	"time"
)

// Histogram counts durations, such as packets by how late they left, in classes
// an eighth wide. The zero Histogram is empty.
type Histogram struct {
	counts [8 * 24]uint64 // by microseconds: eight for each power of two
	n      uint64
	max    time.Duration
}

// Add counts n that took d.
func (h *Histogram) Add(d time.Duration, n int) {
	h.n += uint64(n)
	h.max = max(h.max, d)
	us := uint64(max(d.Microseconds(), 0))
	i := int(us)
	if us >= 8 {
		e := bits.Len64(us) - 4 // us>>e is from 8 to 15
		i = min(8*e+int(us>>e), len(h.counts)-1)
	}
	h.counts[i] += uint64(n)
}

// Quantile returns an upper bound of what the q-th part of the durations was,
// q from 0 to 1; 0 when there were none.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.n))
	for i, c := range h.counts {
		if rank < c {
			return min(h.max, bound(i+1))
		}
		rank -= c
	}
	return h.max
}

// bound is the least of class i.
func bound(i int) time.Duration {
	if i < 8 {
		return time.Duration(i) * time.Microsecond
	}
	return time.Duration(i%8+8) << (i/8 - 1) * time.Microsecond
}

// Max is the longest.
func (h *Histogram) Max() time.Duration { return h.max }

// N is the number of durations counted.
func (h *Histogram) N() uint64 { return h.n }

// Sub takes away what o, an earlier copy, had counted.
func (h *Histogram) Sub(o *Histogram) {
	for i, c := range o.counts {
		if h.counts[i] -= c; h.counts[i] > 0 {
			h.max = bound(i + 1)
		}
	}
	h.n -= o.n
}

// Merge counts those of o, too.
func (h *Histogram) Merge(o *Histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.max = max(h.max, o.max)
}
