package movie

import (
	"slices"
	"strings"
	"time"

	"rtspshim/engine/hint"
)

// tally counts the packets of one hint track, in the order they fall due.
type tally struct {
	t      *hint.Track
	h      Hints
	last   uint16
	due    time.Duration
	once   int // packets due at that time
	size   int // and their bytes
	stamps map[uint32]bool
	gaps   map[int64]int64 // by their milliseconds, rounded
	// the packets of the last second, for the peak
	window []sent
	inside int64
	peak   int64
	first  time.Duration
}

type sent struct {
	due  time.Duration
	size int
}

func newTally(t *hint.Track) *tally {
	return &tally{t: t, stamps: map[uint32]bool{}, gaps: map[int64]int64{}}
}

func (t *tally) add(p *hint.Packet) {
	h, size := &t.h, p.Size+rtpHeader
	if h.Packets == 0 {
		h.FirstSeq, h.Smallest, t.first = p.Seq, size, p.Due
	} else if p.Seq != t.last+1 && !p.Repeat() {
		h.SeqJumps++
	}
	t.last = p.Seq
	h.Packets++
	h.Bytes += int64(size)
	h.Smallest, h.Largest = min(h.Smallest, size), max(h.Largest, size)
	if p.Repeat() {
		h.Repeats++
	}
	if p.BFrame() {
		h.BFrames++
	}
	t.together(p, size)

	t.window = append(t.window, sent{p.Due, size})
	t.inside += int64(size)
	drop := 0
	for ; t.window[drop].due <= p.Due-time.Second; drop++ {
		t.inside -= int64(t.window[drop].size)
	}
	t.window = slices.Delete(t.window, 0, drop)
	t.peak = max(t.peak, t.inside)
}

// together counts packets that are due at once.
func (t *tally) together(p *hint.Packet, size int) {
	if t.once == 0 || p.Due != t.due {
		if t.once > 0 {
			gap := p.Due - t.due
			t.h.LongestGapMs = max(t.h.LongestGapMs, gap.Seconds()*1e3)
			t.gaps[int64(gap.Round(time.Millisecond)/time.Millisecond)]++
		}
		t.due, t.once, t.size = p.Due, 0, 0
		t.h.Times++
		clear(t.stamps)
	}
	t.once++
	t.size += size
	t.stamps[p.Time] = true
	t.h.MostAtOnce = max(t.h.MostAtOnce, t.once)
	t.h.MostStamps = max(t.h.MostStamps, len(t.stamps))
	t.h.MostBytesOnce = max(t.h.MostBytesOnce, t.size)
}

func (t *tally) done() Hints {
	h := &t.h
	h.Track = t.t.ID
	if _, m, ok := strings.Cut(t.t.SDP, "m="); ok {
		h.Media, _, _ = strings.Cut(m, " ")
	}
	for i := range t.t.Samples() {
		if i == maxCounted {
			break
		}
		e, _ := t.t.Sample(i)
		h.HintBytes += e.Len
	}
	if h.Packets == 0 {
		return *h
	}
	h.EndsSeconds = t.due.Seconds()
	h.Average = float64(h.Bytes) / float64(h.Packets)
	h.PeakKbit = float64(t.peak) * 8 / 1e3
	if d := max(t.due-t.first, t.t.Duration).Seconds(); d > 0 {
		h.AverageKbit = float64(h.Bytes) * 8 / 1e3 / d
	}
	var half int64
	ms := make([]int64, 0, len(t.gaps))
	for k := range t.gaps {
		ms = append(ms, k)
	}
	slices.Sort(ms)
	for _, k := range ms {
		if half += t.gaps[k]; 2*half >= h.Times-1 {
			h.MiddleGapMs = float64(k)
			break
		}
	}
	return *h
}

// maxCounted bounds the look at a hint track's own samples: a damaged table
// may name billions.
const maxCounted = 50_000_000
