package hint

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// What a viewer is admitted for is the most that a cycle of the movie needs, as
// ffprobe counts it, not the average; and not much more.
func TestRateIsThePeak(t *testing.T) {
	for _, m := range hinted {
		f := openMovie(t, hintedPath(m.name))
		for _, window := range []time.Duration{200 * time.Millisecond, time.Second} {
			var ids []uint32
			peaks, average := 0.0, 0.0 // bytes a second
			for _, kind := range m.streams {
				h := hintOf(t, f, handler[kind])
				ids = append(ids, h.ID)
				peak, all := probed(t, f.Name, kind, window)
				hints := int64(0)
				for i := range h.Samples() {
					e, _ := h.Sample(i)
					hints += e.Len
				}
				peaks += float64(peak) / window.Seconds()
				average += float64(all+hints) / f.Duration.Seconds()
			}
			got := float64(f.Rate(ids, window))
			if got < peaks || got > 2*peaks || window < time.Second && got < average {
				t.Errorf("%s, %v: %.0f bytes a second; at its peak the media alone take %.0f, on average all %.0f", m.name, window, got, peaks, average)
			}
			t.Logf("%s, %v: %.2f of the average", m.name, window, got/average)
		}
	}
}

// probed is how many bytes of a stream are due in the fullest window, and in all.
func probed(t *testing.T, name string, kind rune, window time.Duration) (peak, all int64) {
	t.Helper()
	sums := map[int64]int64{}
	begin := math.Inf(1)
	for line := range strings.Lines(string(run(t, "ffprobe", "-v", "error", "-select_streams", string(kind), "-show_entries", "packet=dts_time,size", "-of", "csv=p=0", name))) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		var at float64
		var size int64
		if _, err := fmt.Sscanf(strings.ReplaceAll(line, ",", " "), "%f %d", &at, &size); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		begin = min(begin, at) // of the first: time never goes back
		k := int64((at - begin + 1e-6) / window.Seconds())
		sums[k] += size
		all += size
		peak = max(peak, sums[k])
	}
	return peak, all
}
