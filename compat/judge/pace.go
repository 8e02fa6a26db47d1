package judge

import (
	"slices"
	"time"

	"rtspshim/compat/talk"
)

// What may pass for noise of a busy machine, and never counts.
const (
	firstSlack = 0.015 // seconds until the first packet
	delaySlack = 0.012 // median lateness against the direct run, seconds
	earlySlack = 0.060
	gapSlack   = 0.060
	burstSlack = 8 // packets within burstWindow
	leadSlack  = 0.200

	burstWindow = 5 * time.Millisecond
)

// pace compares when packets came, within one section.
func (d *differ) pace(where string, a, b *talk.Track, x, y Section, rhythm float64) {
	pa, pb := a.Packets[x.From:x.To], b.Packets[y.From:y.To]
	firstA, firstB := max(0, (pa[0].At-x.Begin).Seconds()), max(0, (pb[0].At-y.Begin).Seconds())
	d.more(Timing, where, "time to the first packet", firstA, firstB, firstSlack+rhythm, "s", &Sooner)
	if len(pa) < 10 || len(pb) < 10 {
		return
	}
	d.more(Timing, where, "longest gap", longestGap(pa), longestGap(pb), gapSlack, "s", &Steady)
	burstA, burstB := float64(longestBurst(pa)), float64(longestBurst(pb))
	d.more(Timing, where, "longest burst", burstA, burstB, max(burstSlack, burstA/2), "packets", &Steady)
	leadA, okA := Lead(a, x)
	leadB, okB := Lead(b, y)
	if okA && okB {
		d.number(Timing, where, "lead of media time over time at the end", leadA[len(leadA)-1], leadB[len(leadB)-1], leadSlack, "s")
	}
}

func longestGap(p []talk.Packet) float64 {
	var longest time.Duration
	for i := 1; i < len(p); i++ {
		longest = max(longest, p[i].At-p[i-1].At)
	}
	return longest.Seconds()
}

// longestBurst is the most packets that came within one window.
func longestBurst(p []talk.Packet) int {
	most, i := 0, 0
	for j := range p {
		for p[j].At-p[i].At > burstWindow {
			i++
		}
		most = max(most, j-i+1)
	}
	return most
}

// Lead is, for every packet of a section, by how many seconds media time runs
// ahead of time, both counted from the section's first packet. False if the
// clock rate is unknown or there is too little to say.
func Lead(t *talk.Track, s Section) ([]float64, bool) {
	p := t.Packets[s.From:s.To]
	if t.Clock == 0 || len(p) < 10 || p[len(p)-1].At-p[0].At < 500*time.Millisecond {
		return nil, false
	}
	out := make([]float64, len(p))
	for i := range p {
		media := float64(int32(p[i].Timestamp-p[0].Timestamp)) / float64(t.Clock)
		out[i] = media - (p[i].At - p[0].At).Seconds()
	}
	return out, true
}

// delays compares arrival times of the same packets: of a movie counted from
// the PLAY's answer, of a live stream on the clock.
func (d *differ) delays(where string, a, b []talk.Packet, m alignment, ra, rb stretch) {
	if len(m.pairs) < 10 || len(ra.sections) == 0 || len(rb.sections) == 0 {
		return
	}
	shift := ra.sections[0].Begin - rb.sections[0].Begin
	endA, endB := ra.sections[0].To-ra.from, rb.sections[0].To-rb.from
	if !ra.fixed {
		shift = d.b.Began.Sub(d.a.Began)
	}
	var late []float64
	for _, pair := range m.pairs {
		if pair[0] < endA && pair[1] < endB {
			late = append(late, (b[pair[1]].At - a[pair[0]].At + shift).Seconds())
		}
	}
	if len(late) < 10 {
		return
	}
	middle := median(late)
	// A server that sends in bunches has no phase to keep within them.
	noise := 0.0
	if ra.fixed {
		s := slices.Sorted(slices.Values(late))
		noise = (s[len(s)*3/4] - s[len(s)/4]) / 2
	}
	x := Difference{Where: where, What: "arrival of the same packets", Class: Timing, A: "0", B: show(middle, "s") + " later",
		Size: middle, Within: delaySlack + noise}
	if middle < 0 {
		x.B, x.Size, x.Within = show(-middle, "s")+" earlier", -middle, earlySlack+noise
		if !ra.fixed {
			x.Rule = &Sooner
		}
	}
	d.add(x)
}

// Pace is what a section's packets did in time, in figures.
type Pace struct {
	Packets int
	Gap     time.Duration // the longest
	Burst   int           // most packets within 5 ms
	Ahead   time.Duration // media time before time, at the end; 0 if unknown
}

// PaceOf sums up a section.
func PaceOf(t *talk.Track, s Section) Pace {
	p := t.Packets[s.From:s.To]
	out := Pace{Packets: len(p), Gap: time.Duration(longestGap(p) * float64(time.Second)), Burst: longestBurst(p)}
	if lead, ok := Lead(t, s); ok {
		out.Ahead = time.Duration(lead[len(lead)-1] * float64(time.Second))
	}
	return out
}
