package engine

import (
	"math/bits"
	"time"
)

// Lateness counts packets by how long after they were due they left, in classes
// an eighth wide. The zero Lateness is empty.
type Lateness struct {
	counts [8 * 24]uint64 // by microseconds: eight for each power of two
	n      uint64
	max    time.Duration
}

// add counts n packets that left together.
func (l *Lateness) add(d time.Duration, n int) {
	l.n += uint64(n)
	l.max = max(l.max, d)
	us := uint64(max(d.Microseconds(), 0))
	i := int(us)
	if us >= 8 {
		e := bits.Len64(us) - 4 // us>>e is from 8 to 15
		i = min(8*e+int(us>>e), len(l.counts)-1)
	}
	l.counts[i] += uint64(n)
}

// Quantile returns an upper bound of how late the q-th part of the packets was,
// q from 0 to 1; 0 when there were none.
func (l *Lateness) Quantile(q float64) time.Duration {
	rank := uint64(q * float64(l.n))
	for i, c := range l.counts {
		if rank < c {
			return min(l.max, latenessBound(i+1))
		}
		rank -= c
	}
	return l.max
}

// latenessBound is the least of class i.
func latenessBound(i int) time.Duration {
	if i < 8 {
		return time.Duration(i) * time.Microsecond
	}
	return time.Duration(i%8+8) << (i/8 - 1) * time.Microsecond
}

// Max is the latest.
func (l *Lateness) Max() time.Duration { return l.max }

// Packets is the number of those counted.
func (l *Lateness) Packets() uint64 { return l.n }

// Sub takes away what o, an earlier copy, had counted.
func (l *Lateness) Sub(o *Lateness) {
	for i, c := range o.counts {
		if l.counts[i] -= c; l.counts[i] > 0 {
			l.max = latenessBound(i + 1)
		}
	}
	l.n -= o.n
}

// Add counts those of o, too.
func (l *Lateness) Add(o *Lateness) {
	for i, c := range o.counts {
		l.counts[i] += c
	}
	l.n += o.n
	l.max = max(l.max, o.max)
}
