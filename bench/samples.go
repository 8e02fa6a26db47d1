package bench

import (
	"fmt"
	"math"
	"slices"
)

// maxSamples is how many values a samples keeps before it keeps every second one.
const maxSamples = 1 << 14

// samples is a bounded record of values, in µs mostly: all of them, or every
// stride-th evenly chosen when they are many. The extremes are always exact.
type samples struct {
	kept     []int32
	stride   int // 0 is 1
	skip     int // values until the next one kept
	n        uint64
	min, max int32
}

func (s *samples) add(v int32) {
	if s.n == 0 {
		s.min, s.max = v, v
	}
	s.min, s.max = min(s.min, v), max(s.max, v)
	s.n++
	if s.skip > 0 {
		s.skip--
		return
	}
	if len(s.kept) == maxSamples {
		for i := range maxSamples / 2 {
			s.kept[i] = s.kept[2*i]
		}
		s.kept = s.kept[:maxSamples/2]
		s.stride = 2 * max(s.stride, 1)
	}
	s.kept = append(s.kept, v)
	s.skip = max(s.stride, 1) - 1
}

// Quantiles are of one figure, in its unit. With N 0 there is nothing to tell.
type Quantiles struct {
	N    int     `json:"n"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// String is the quantiles by themselves, "p50 p99 p99.9 max" in this order.
func (q Quantiles) String() string {
	if q.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s / %s / %s / %s", short(q.P50), short(q.P99), short(q.P999), short(q.Max))
}

// pool gathers values of many sources for their quantiles.
type pool struct {
	values []float64
	max    float64
}

func (p *pool) add(v float64) {
	if len(p.values) == 0 || v > p.max {
		p.max = v
	}
	p.values = append(p.values, v)
}

// take adds the values of s as f sees them.
func (p *pool) take(s *samples, f func(int32) float64) {
	for _, v := range s.kept {
		p.add(f(v))
	}
	if s.n > 0 {
		p.max = max(p.max, f(s.max)) // it may not be among those kept
	}
}

// quantiles sorts the pool. A quantile is the least value that many do not exceed.
func (p *pool) quantiles() Quantiles {
	n := len(p.values)
	if n == 0 {
		return Quantiles{}
	}
	slices.Sort(p.values)
	at := func(q float64) float64 { return p.values[max(0, int(math.Ceil(q*float64(n)))-1)] }
	return Quantiles{N: n, P50: at(.5), P99: at(.99), P999: at(.999), Max: p.max}
}

// short is a number with about three digits that matter.
func short(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a < 10:
		return fmt.Sprintf("%.2f", v)
	case a < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
