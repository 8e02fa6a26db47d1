package bench

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

// open is a window that is always open.
func openWindow() *window {
	w := &window{}
	w.from.Store(1)
	w.to.Store(math.MaxInt64)
	return w
}

func rtpPacket(seq uint16, ts, ssrc uint32, marker bool, payload byte) []byte {
	b := make([]byte, 12+20)
	b[0], b[1] = 0x80, 96
	if marker {
		b[1] |= 0x80
	}
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[4:], ts)
	binary.BigEndian.PutUint32(b[8:], ssrc)
	for i := range b[12:] {
		b[12+i] = payload
	}
	return b
}

func TestSequence(t *testing.T) {
	many := func(from, n int) []uint16 {
		s := make([]uint16, n)
		for i := range s {
			s[i] = uint16(from + i)
		}
		return s
	}
	join := func(parts ...[]uint16) (all []uint16) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for _, c := range []struct {
		name                             string
		seqs                             []uint16
		lost, reordered, duplicate, came uint64
	}{
		{"in order", []uint16{7, 8, 9}, 0, 0, 0, 3},
		{"one lost", []uint16{7, 9}, 1, 0, 0, 2},
		{"swapped", []uint16{7, 9, 8, 10}, 0, 1, 0, 4},
		{"twice", []uint16{7, 8, 8, 9}, 0, 0, 1, 4},
		{"twice, the first of all", []uint16{7, 7}, 0, 0, 1, 2},
		{"late and then again", []uint16{7, 9, 8, 8}, 0, 1, 1, 4},
		{"around", []uint16{65534, 65535, 0, 1}, 0, 0, 0, 4},
		{"around, swapped", []uint16{65534, 0, 65535, 1}, 0, 1, 0, 4},
		{"around, lost", []uint16{65534, 1}, 2, 0, 0, 2},
		{"from before the window", []uint16{7, 6, 5, 8}, 0, 0, 0, 2},
		{"first at 0, from before", []uint16{0, 65535, 1}, 0, 0, 0, 2},
		{"a gap of more than the memory", join(many(0, 10), many(5000, 10)), 4990, 0, 0, 20},
		{"a gap of more, and too late to tell", []uint16{0, seqWindow + 1, 1}, seqWindow, 0, 1, 3},
		{"a gap of just the memory", []uint16{0, seqWindow, 1}, seqWindow - 2, 1, 0, 3},
		{"a gap of just less", []uint16{0, seqWindow - 1, 1}, seqWindow - 3, 1, 0, 3},
		{"twice around", join(many(0, 1<<16), many(0, 1<<16)), 0, 0, 0, 1 << 17},
		{"memory is forgotten", join(many(0, 3000), []uint16{2990}), 0, 0, 1, 3001},
	} {
		t.Run(c.name, func(t *testing.T) {
			var k counter
			w := openWindow()
			for i, s := range c.seqs {
				b := rtpPacket(s, uint32(i), 1, true, 0)
				k.packet(b, len(b), int64(i+1), w)
			}
			if k.lost() != c.lost || k.reordered != c.reordered || k.duplicate != c.duplicate || k.packets != c.came {
				t.Errorf("lost %d, reordered %d, duplicate %d, came %d; want %d, %d, %d, %d",
					k.lost(), k.reordered, k.duplicate, k.packets, c.lost, c.reordered, c.duplicate, c.came)
			}
			if k.octets != 32*c.came {
				t.Errorf("%d octets, want %d", k.octets, 32*c.came)
			}
		})
	}
}

func TestSourceChanges(t *testing.T) {
	var k counter
	w := openWindow()
	for _, p := range []struct {
		seq  uint16
		ssrc uint32
	}{{10, 1}, {11, 1}, {13, 1}, {40000, 2}, {40001, 2}, {40003, 2}} {
		b := rtpPacket(p.seq, 0, p.ssrc, true, 0)
		k.packet(b, len(b), 1, w)
	}
	if k.lost() != 2 || k.sources != 1 || k.packets != 6 {
		t.Errorf("lost %d, %d changes, %d packets; want 2, 1, 6", k.lost(), k.sources, k.packets)
	}
}

// A server that begins anew under another SSRC is not late for it.
func TestLatenessOverSources(t *testing.T) {
	k := counter{rate: 1000}
	w := &window{}
	w.from.Store(int64(50 * time.Millisecond))
	w.to.Store(math.MaxInt64)
	for i, p := range []struct {
		ts, ssrc uint32
		ms       int64
	}{{0, 1, 10}, {4e9, 2, 30}, {4e9 + 50, 2, 80}, {4e9 + 90, 2, 120}, {7, 3, 160}, {57, 3, 215}} {
		b := rtpPacket(uint16(i), p.ts, p.ssrc, true, 0)
		k.packet(b, len(b), p.ms*int64(time.Millisecond), w)
	}
	if want := []int32{0, 5000}; len(k.late.kept) != 2 || k.late.kept[0] != want[0] || k.late.kept[1] != want[1] {
		t.Errorf("%v µs, want %v", k.late.kept, want)
	}
}

func TestWindowCountsInside(t *testing.T) {
	w := &window{}
	w.from.Store(100)
	w.to.Store(200)
	var k counter
	for i, at := range []int64{50, 99, 100, 150, 199, 200, 300} {
		b := rtpPacket(uint16(i), 0, 1, true, 0)
		k.packet(b, len(b), at, w)
	}
	k.packet([]byte{1, 2, 3}, 3, 150, w)
	if k.packets != 3 || k.all != 8 || k.first != 50 || k.foreign != 1 {
		t.Errorf("%d of %d packets, the first at %d, %d foreign; want 3 of 8, 50, 1", k.packets, k.all, k.first, k.foreign)
	}
}

// frames feeds frames of packets, ms after each other, and returns the counter.
type frame struct {
	ts      uint32
	at      time.Duration
	packets int
	gap     time.Duration // between packets
}

func feed(k *counter, frames []frame) {
	w := openWindow()
	var seq uint16
	const epoch = int64(time.Hour)
	for _, f := range frames {
		for i := range f.packets {
			b := rtpPacket(seq, f.ts, 1, i == f.packets-1, byte(f.ts))
			k.packet(b, len(b), epoch+int64(f.at+time.Duration(i)*f.gap), w)
			seq++
		}
	}
	k.endBurst()
}

func TestLateness(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name   string
		rate   uint32
		frames []frame
		want   []int32 // µs against the first packet, of all frames but the first
	}{
		{"punctual", 90000, []frame{{0, 0, 1, 0}, {3600, 40 * ms, 1, 0}, {7200, 80 * ms, 1, 0}}, []int32{0, 0}},
		{"late by 5 ms", 90000, []frame{{0, 0, 1, 0}, {3600, 40 * ms, 1, 0}, {7200, 85 * ms, 1, 0}, {10800, 120 * ms, 1, 0}}, []int32{0, 5000, 0}},
		{"early", 90000, []frame{{0, 0, 1, 0}, {3600, 40 * ms, 1, 0}, {7200, 70 * ms, 1, 0}}, []int32{0, -10000}},
		{"the first packet of a frame tells", 90000, []frame{{0, 0, 3, ms}, {3600, 40 * ms, 8, 4 * ms}, {7200, 80 * ms, 2, ms}}, []int32{0, 0}},
		{"RTP time goes around", 90000, []frame{{math.MaxUint32 - 3599, 0, 1, 0}, {0, 40 * ms, 1, 0}, {3600, 80 * ms, 1, 0}}, []int32{0, 0}},
		{"B-frames are left out", 90000, []frame{{0, 0, 1, 0}, {3600, 0, 1, 0}, {14400, 40 * ms, 1, 0}, {7200, 80 * ms, 1, 0}, {10800, 120 * ms, 1, 0}, {25200, 160 * ms, 1, 0}}, []int32{-40000, -120000, -120000}},
		{"no clock", 0, []frame{{0, 0, 1, 0}, {3600, 40 * ms, 1, 0}}, nil},
		{"44.1 kHz", 44100, []frame{{0, 0, 1, 0}, {1024, 23220 * time.Microsecond, 1, 0}, {45124, 1023220 * time.Microsecond, 1, 0}}, []int32{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := counter{rate: c.rate}
			feed(&k, c.frames)
			if len(k.late.kept) != len(c.want) {
				t.Fatalf("%v, want %v", k.late.kept, c.want)
			}
			for i, v := range k.late.kept {
				if d := v - c.want[i]; d < -1 || d > 1 {
					t.Errorf("%v, want %v", k.late.kept, c.want)
					break
				}
			}
		})
	}
}

func TestSpreadAndBursts(t *testing.T) {
	const ms = time.Millisecond
	var k counter
	feed(&k, []frame{{0, 0, 4, 10 * time.Microsecond}, {3600, 40 * ms, 5, 2 * ms}, {7200, 80 * ms, 1, 0}, {10800, 120 * ms, 3, 100 * time.Microsecond}})
	if len(k.spread.kept) != 2 || k.spread.kept[0] != 8000 || k.spread.kept[1] != 200 {
		t.Errorf("spread %v µs, want [8000 200]", k.spread.kept)
	}
	// 4 at once; 5 and 1 by themselves; 3 at once.
	if k.bursts[4] != 1 || k.bursts[1] != 6 || k.bursts[3] != 1 {
		t.Errorf("bursts %v", k.bursts[:6])
	}
	var counts [maxBurst + 1]uint64
	for n, c := range k.bursts {
		counts[n] = uint64(c)
	}
	if q := burstQuantiles(counts); q.N != 8 || q.P50 != 1 || q.P99 != 4 || q.Max != 4 {
		t.Errorf("%+v", q)
	}
}

func TestSamplesStayBounded(t *testing.T) {
	var s samples
	const n = 100_000
	for i := range n {
		v := int32(i)
		if i == 77_777 {
			v = 1 << 30
		}
		s.add(v)
	}
	if len(s.kept) > maxSamples || len(s.kept) < maxSamples/2 {
		t.Errorf("%d kept", len(s.kept))
	}
	var p pool
	p.take(&s, func(v int32) float64 { return float64(v) })
	q := p.quantiles()
	if q.Max != 1<<30 || s.min != 0 {
		t.Errorf("extremes %v and %v", s.min, q.Max)
	}
	for want, got := range map[float64]float64{.5 * n: q.P50, .99 * n: q.P99} {
		if math.Abs(got-want) > .01*n {
			t.Errorf("a quantile is %v, want about %v", got, want)
		}
	}
}

func TestQuantiles(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Quantiles
	}{
		{nil, Quantiles{}},
		{[]float64{3}, Quantiles{1, 3, 3, 3, 3}},
		{[]float64{2, 1}, Quantiles{2, 1, 2, 2, 2}},
		{[]float64{4, 3, 2, 1}, Quantiles{4, 2, 4, 4, 4}},
	} {
		var p pool
		for _, v := range c.values {
			p.add(v)
		}
		if got := p.quantiles(); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.values, got, c.want)
		}
	}
}

// Of a live stream that several see, the skew is from the first to the last.
func TestSkew(t *testing.T) {
	const ms = int64(time.Millisecond)
	viewer := func(delay int64, keys ...uint32) *session {
		tr := &track{}
		for i, k := range keys {
			tr.seen = append(tr.seen, seen{key: k, at: int64(i)*40*ms + delay})
		}
		return &session{url: "x", tracks: []*track{tr}}
	}
	var p pool
	skews([]*session{viewer(0, 1, 2, 3), viewer(2*ms, 1, 2, 3), viewer(5*ms, 1, 2, 9)}, &p)
	q := p.quantiles()
	if q.N != 3 || q.Max != 5 || q.P50 != 5 {
		t.Errorf("%+v", q)
	}
	// The same picture again, each second viewer: nothing can be told apart.
	p = pool{}
	skews([]*session{viewer(0, 1, 1, 1), viewer(ms, 1, 1, 1)}, &p)
	if p.quantiles().N != 0 {
		t.Errorf("pictures all alike: %+v", p.quantiles())
	}
}

// The delay added is each packet's, but of those that look alike.
func TestDelays(t *testing.T) {
	const ms = int64(time.Millisecond)
	viewer := func(delay int64, keys ...uint32) *session {
		tr := &track{}
		for i, k := range keys {
			tr.came = append(tr.came, seen{key: k, at: int64(i+1)*40*ms + delay})
		}
		return &session{tracks: []*track{tr}}
	}
	var p pool
	delays(viewer(0, 1, 2, 3, 3, 4), []*session{viewer(ms, 1, 2, 3, 3, 4), viewer(2*ms, 1, 2, 3, 3, 5)}, &p)
	if q := p.quantiles(); q.N != 5 || q.P50 != 1 || q.Max != 2 {
		t.Errorf("%+v", q)
	}
	// A raw loop at 1 Gbit/s: two packets of 1250 octets for 100 viewers take 1 ms
	// each, the second waits for the first; the third comes later.
	p = pool{}
	queue([]seen{{size: 1250, at: ms}, {size: 1250, at: ms}, {size: 1250, at: 9 * ms}}, 100, 1, &p)
	if q := p.quantiles(); q.Max < 1.999 || q.Max > 2.001 || q.P50 < .5 || q.P50 > 1 {
		t.Errorf("%+v", q)
	}
}

func recording(seq uint16, ts uint32, payloads ...byte) *counter {
	k := &counter{full: true}
	w := openWindow()
	for i, p := range payloads {
		if p == 0 {
			continue // lost
		}
		b := rtpPacket(seq+uint16(i), ts+uint32(i)*100, 1, false, p)
		k.packet(b, len(b), 1, w)
	}
	return k
}

func TestCompareTracks(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b *counter
		want Verified
	}{
		{"same", recording(10, 0, 1, 2, 3, 4), recording(10, 0, 1, 2, 3, 4), Verified{Packets: 4}},
		{"other numbers", recording(10, 0, 1, 2, 3, 4), recording(65534, 777, 1, 2, 3, 4), Verified{Packets: 4}},
		{"begun later, ended later", recording(10, 0, 1, 2, 3, 4), recording(500, 9, 3, 4, 5), Verified{Packets: 2}},
		{"a loss is no difference", recording(10, 0, 1, 2, 0, 4), recording(10, 0, 1, 0, 3, 4), Verified{Packets: 2}},
		{"one differs", recording(10, 0, 1, 2, 3, 4), recording(10, 0, 1, 2, 9, 4), Verified{Packets: 4, Different: 1}},
		{"one is missing without a gap", recording(10, 0, 1, 2, 3, 4, 5, 6), recording(10, 0, 1, 3, 4, 5, 6), Verified{Packets: 5, Different: 1}},
		{"nothing in common", recording(10, 0, 1, 2), recording(10, 0, 3, 4), Verified{Unaligned: 1}},
		{"nothing came", recording(10, 0, 1, 2), recording(10, 0), Verified{Unaligned: 1}},
	} {
		if got := compareTracks(c.a, c.b); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	late := recording(10, 0, 1, 2, 3)
	late.recorded[2].time++
	if got := compareTracks(recording(10, 0, 1, 2, 3), late); got.Different != 1 {
		t.Errorf("a step of RTP time: %+v", got)
	}
}
