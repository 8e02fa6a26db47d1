package wire

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var l Histogram
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(r.Int64N(1 << r.IntN(35)))
		l.Add(d, 1)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		exact := all[min(int(q*float64(len(all))), len(all)-1)]
		if got := l.Quantile(q); got < exact || float64(got) > float64(exact)*1.13+2000 {
			t.Errorf("quantile %v: %v, want %v or up to an eighth more", q, got, exact)
		}
	}
	early := l
	for range 1000 {
		l.Add(time.Hour, 1)
	}
	l.Sub(&early)
	if l.N() != 1000 || l.Quantile(0) < time.Minute {
		t.Errorf("the thousand that came later: %d, %v", l.N(), l.Quantile(0))
	}
	if l = early; l.N() != 10_000 || l.Max() != all[len(all)-1] {
		t.Errorf("%d packets, max %v", l.N(), l.Max())
	}
}
