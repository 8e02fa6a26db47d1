package engine

import (
	"fmt"
	"hash/maphash"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"rtspshim/engine/hint"
)

// sentPacket is what an upstream would have put on the wire.
type sentPacket struct {
	media int
	at    time.Duration
	bytes []byte
}

// play makes the packets of a movie's tracks as a server numbers them, due
// from the time on.
func play(t *testing.T, f *hint.File, from, length time.Duration, maps []Mapping) (list []sentPacket) {
	t.Helper()
	scan, err := f.Scan(f, hint.Config{AsHinted: true}, from)
	if err != nil {
		t.Fatal(err)
	}
	var p hint.Packet
	for scan.Next(&p) && p.Due < from+length {
		m := maps[p.Track]
		var head [12]byte
		p.PutHeader(&head, m.Seq, m.Time, m.SSRC)
		b := head[:]
		for _, piece := range p.Payload {
			b = append(b, piece...)
		}
		list = append(list, sentPacket{p.Track, p.Due + time.Minute, b})
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// feed gives packets to a proof and returns after how many it was done, -1 if
// never.
func feed(p *Proof, list []sentPacket) int {
	for i, s := range list {
		if seen, ok := See(s.media, s.bytes, s.at); ok && p.Packet(seen) {
			return i + 1
		}
	}
	return -1
}

func openMovie(t *testing.T, name string) *hint.File {
	t.Helper()
	f, err := hint.Open(filepath.Join("..", "testdata", "hinted", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestProof(t *testing.T) {
	f := openMovie(t, "h264-bframes-aac.mp4")
	other := openMovie(t, "h264-aac.mp4")
	tracks := f.HintTracks()
	maps := []Mapping{{tracks[0].ID, 7, 65530, 1 << 31}, {tracks[1].ID, 9, 100, 4294967290}}
	whole := play(t, f, 0, 4*time.Second, maps)
	later := play(t, f, 5*time.Second, 3*time.Second, maps)
	edit := func(list []sentPacket, change func(i int, s *sentPacket) bool) (out []sentPacket) {
		for i, s := range list {
			s.bytes = append([]byte(nil), s.bytes...)
			if change(i, &s) {
				out = append(out, s)
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		file   *hint.File
		list   []sentPacket
		from   time.Duration
		proved bool
	}{
		"same":                 {f, whole, 0, true},
		"from the middle":      {f, later, 5 * time.Second, true},
		"start a little wrong": {f, later, 4 * time.Second, true},
		"every 7th lost":       {f, edit(whole, func(i int, _ *sentPacket) bool { return i%7 != 3 }), 0, true},
		"medias swapped":       {f, edit(whole, func(_ int, s *sentPacket) bool { s.media = 1 - s.media; return true }), 0, true},
		"other movie":          {other, whole, 0, false},
		"one octet flipped":    {f, edit(whole, func(i int, s *sentPacket) bool { s.bytes[20] ^= byte(b2i(i == 10)); return true }), 0, false},
		"marker dropped":       {f, edit(whole, func(_ int, s *sentPacket) bool { s.bytes[1] &^= 0x80; return true }), 0, false},
		"other payload type":   {f, edit(whole, func(_ int, s *sentPacket) bool { s.bytes[1] ^= 1; return true }), 0, false},
		"timestamps drift":     {f, edit(whole, func(i int, s *sentPacket) bool { s.bytes[7] += byte(i); return true }), 0, false},
		"SSRC changes":         {f, edit(whole, func(i int, s *sentPacket) bool { s.bytes[11] += byte(b2i(i > 9)); return true }), 0, false},
		"cut short":            {f, edit(whole, func(i int, s *sentPacket) bool { s.bytes = s.bytes[:len(s.bytes)-b2i(i == 12)]; return true }), 0, false},
		"one media only":       {f, edit(whole, func(_ int, s *sentPacket) bool { return s.media == 0 }), 0, false},
		"from elsewhere":       {f, later, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := (&Engine{passages: newPassages()}).NewProof(c.file, 2, c.from, 8)
			if err != nil {
				t.Fatal(err)
			}
			n := feed(p, c.list)
			if (n > 0) != c.proved {
				t.Fatalf("proved after %d packets of %d: %q", n, len(c.list), p.Why())
			}
			if !c.proved {
				return
			}
			for _, m := range maps {
				if got := p.Mapping(0); got != m && p.Mapping(1) != m {
					t.Errorf("mapping %+v, want %+v", got, m)
				}
			}
			if p.Base() != time.Minute {
				t.Errorf("base %v", p.Base())
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A packet's place is the one that a fresh reading of the movie gives it.
func TestProofPlace(t *testing.T) {
	f := openMovie(t, "h264-aac.mp4")
	tracks := f.HintTracks()
	maps := []Mapping{{tracks[0].ID, 1, 1, 1}, {tracks[1].ID, 2, 2, 2}}
	list := play(t, f, 0, 3*time.Second, maps)
	p, err := (&Engine{passages: newPassages()}).NewProof(f, 2, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	n := feed(p, list)
	if n < 0 {
		t.Fatal(p.Why())
	}
	for _, s := range list[n:] {
		seen, _ := See(s.media, s.bytes, s.at)
		at, ok := p.Place(s.media, seen.Seq)
		if !ok || at.Seq+maps[s.media].Seq != seen.Seq || at.Due != s.at-time.Minute {
			t.Fatalf("sequence number %d of media %d stands at %+v, %v", seen.Seq, s.media, at, ok)
		}
	}
}

// An upstream that sends ahead of time is measured while it does.
func TestProofAhead(t *testing.T) {
	f := openMovie(t, "h264-aac.mp4")
	tracks := f.HintTracks()
	maps := []Mapping{{tracks[0].ID, 1, 1, 1}, {tracks[1].ID, 2, 2, 2}}
	const from, step = 2 * time.Second, 50 * time.Millisecond
	for name, c := range map[string]struct {
		lead   time.Duration
		growth float64
		by     time.Duration // when it must be known
	}{
		"real time":    {0, 0, 500 * time.Millisecond},
		"a little":     {100 * time.Millisecond, 0, 500 * time.Millisecond},
		"a second":     {time.Second, 0, 4100 * time.Millisecond},
		"Darwin":       {1050 * time.Millisecond, 1.3, 1300 * time.Millisecond},
		"grows slower": {1050 * time.Millisecond, 0.7, 2400 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := (&Engine{passages: newPassages()}).NewProof(f, 2, from, 8)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range play(t, f, from, 10*time.Second, maps) {
				due := s.at - time.Minute - from
				at := max(0, min(due-c.lead, time.Duration(float64(due)/(1+c.growth))))
				s.at = time.Minute + (at + step - 1).Truncate(step)
				seen, _ := See(s.media, s.bytes, s.at)
				p.Packet(seen)
				a, known := p.Ahead()
				if !known && at > c.by {
					t.Fatalf("not known after %v", at)
				} else if !known {
					continue
				}
				if c.lead < time.Second {
					if a != (Ahead{}) {
						t.Errorf("%+v", a)
					}
				} else if (a.Lead-c.lead).Abs() > 60*time.Millisecond || a.Growth < 0.95*c.growth || a.Growth > 1.05*c.growth {
					t.Errorf("%+v, want a lead of %v that grows by %v", a, c.lead, c.growth)
				}
				return
			}
			t.Fatal("never known")
		})
	}
}

func BenchmarkProofSee(b *testing.B) {
	packet := make([]byte, 1412)
	packet[0] = 0x80
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	for b.Loop() {
		See(0, packet, 0)
	}
}

// TestPassages takes a movie's packets in pieces, in any order, and some of them
// again: they are those of a scan from beginning to end.
func TestPassages(t *testing.T) {
	for _, name := range []string{"h264-bframes-aac.mp4", "h264-aac.mov", "mpeg4-aac.mp4"} {
		f, err := hint.Open("../testdata/hinted/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		scan, err := f.Scan(f, hint.Config{AsHinted: true}, 0)
		if err != nil {
			t.Fatal(err)
		}
		want := make([][]string, len(f.HintTracks()))
		end := 0
		for p := (hint.Packet{}); scan.Next(&p); end = max(end, int(p.Due/passageTime)) {
			sum := maphash.Bytes(sumSeed, slices.Concat(p.Payload...))
			want[p.Track] = append(want[p.Track], fmt.Sprint(p.Sample, p.Seq, p.Time, p.Due, p.Size, sum))
		}
		k := newPassages()
		for _, part := range [][2]int{{end, end + 3}, {1, 2}, {0, 3}, {2, end}, {0, end + 9}} {
			all, err := k.take(f, part[0], part[1])
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != min(part[1], end)-part[0]+1 || all[len(all)-1].last != (part[1] >= end) {
				t.Errorf("%s: passages %v: %d of them, last %v; the movie ends in %d", name, part, len(all), all[len(all)-1].last, end)
			}
			for n := range want {
				var got []string
				for _, p := range all {
					for _, c := range p.tracks[n] {
						got = append(got, fmt.Sprint(c.sample, c.seq, c.time, c.due, c.size, c.sum))
					}
				}
				if part[0] == 0 && part[1] > end && !slices.Equal(got, want[n]) {
					t.Errorf("%s track %d: %d packets, a scan has %d", name, n, len(got), len(want[n]))
				}
				if len(got) > 0 && !slices.Contains(want[n], got[0]) {
					t.Fatalf("%s track %d: %s is not in the movie", name, n, got[0])
				}
			}
		}
		if len(k.known) < end || len(k.order) != len(k.known) {
			t.Errorf("%s: %d passages known, %d in order", name, len(k.known), len(k.order))
		}
	}
}
