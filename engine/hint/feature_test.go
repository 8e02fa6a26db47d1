package hint

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// want is a packet as a movie's maker meant it.
type want struct {
	due     int // ms
	seq     int
	ts      int
	bits    int
	payload string
}

func ss(s ...string) (b [][]byte) {
	for _, x := range s {
		b = append(b, []byte(x))
	}
	return b
}

// media and hints make the two tracks most cases need: three media samples
// at 0, 10 and 20 ms, and hint samples at the same times.
func media(samples ...string) tt {
	return tt{id: 1, scale: 1000, kind: "vide", format: "mp4v", entry: []byte("A-DESCRIPTION"), samples: ss(samples...)}
}

func hints(samples ...[]byte) tt {
	return tt{id: 2, scale: 1000, kind: "hint", format: "rtp ", entry: rtpEntry(tims(90000)), refs: []int{1}, samples: samples}
}

func one(seq int, cons ...[]byte) []byte {
	return hintSample(nil, hp{bits: 0x60, seq: seq, cons: cons})
}

// Every feature of the format, and the packets it stands for.
var features = []struct {
	name  string
	movie tm
	want  []want
}{
	{"samples and immediate data", tm{tracks: []tt{
		media("first", "second", "third"),
		hints(one(7, smp(0, 5, 1, 0, 1, 1)), one(8, imm("\x01"), smp(0, 3, 2, 2, 1, 1)), one(9, imm(""), smp(0, 5, 3, 0, 0, 0))),
	}}, []want{{0, 7, 0, 0x8060, "first"}, {10, 8, 900, 0x8060, "\x01con"}, {20, 9, 1800, 0x8060, "third"}}},

	{"no-op and sample description", tm{tracks: []tt{
		media("x", "y"),
		hints(one(1, nop(), dsc(0, 11, 1, 18), nop()), one(2, dsc(-1, 4, 1, 4), smp(0, 1, 2, 0, 1, 1))),
	}}, []want{{0, 1, 0, 0x8060, "DESCRIPTION"}, {10, 2, 900, 0x8060, "rtp y"}}},

	{"data in the hint track", tm{tracks: []tt{
		media("x"),
		hints(hintSample([]byte("embedded"), hp{bits: 0x60, seq: 1, cons: [][]byte{smp(-1, 8, 1, 32, 1, 1)}}),
			one(2, smp(-1, 3, 1, 34, 0, 0))), // of the sample before
	}}, []want{{0, 1, 0, 0x8060, "embedded"}, {10, 2, 900, 0x8060, "bed"}}},

	{"header bits, version stored or not", tm{tracks: []tt{
		media("x"),
		hints(hintSample(nil, hp{bits: 0x80e0, seq: 1}, hp{bits: 0x2060, seq: 2}, hp{bits: 0x1061, seq: 3}, hp{bits: 0xc000, seq: 4})),
	}}, []want{{0, 1, 0, 0x80e0, ""}, {0, 2, 0, 0xa060, ""}, {0, 3, 0, 0x9061, ""}, {0, 4, 0, 0x8000, ""}}},

	{"extra information", tm{tracks: []tt{
		media("x"),
		hints(hintSample(nil,
			hp{bits: 0x60, seq: 1, flags: 4, extra: extra(tlv("rtpo", u32(-450)))},
			hp{bits: 0x60, seq: 2, flags: 4, extra: extra(tlv("what", []byte("odd")), tlv("rtpo", u32(900)), tlv("ever", nil)), cons: [][]byte{imm("z")}},
			hp{bits: 0x60, seq: 3, flags: 4, extra: extra()})),
	}}, []want{{0, 1, -450, 0x8060, ""}, {0, 2, 900, 0x8060, "z"}, {0, 3, 0, 0x8060, ""}}},

	{"relative times", tm{tracks: []tt{
		media("x"),
		hints(hintSample(nil, hp{rel: 25, bits: 1, seq: 1}, hp{rel: 5, bits: 1, seq: 2}, hp{bits: 1, seq: 3}),
			hintSample(nil, hp{rel: -3, bits: 1, seq: 4}, hp{bits: 1, seq: 5})),
	}}, []want{{0, 3, 0, 0x8001, ""}, {5, 2, 0, 0x8001, ""}, {7, 4, 900, 0x8001, ""}, {10, 5, 900, 0x8001, ""}, {25, 1, 0, 0x8001, ""}}},

	{"timestamp and sequence offsets, no tims", tm{tracks: []tt{
		media("x"),
		func() tt {
			t := hints(one(65535), one(0))
			t.entry = rtpEntry(mkbox("tsro", u32(1<<31)), mkbox("snro", u32(5)))
			return t
		}(),
	}}, []want{{0, 4, 1 << 31, 0x8060, ""}, {10, 5, 1<<31 + 10, 0x8060, ""}}},

	{"empty edit delays, and the timestamp with it", tm{tracks: []tt{
		media("x"),
		func() tt {
			t := hints(one(1), one(2))
			t.elst = cat(u32(0), u32(2), u32(500), u32(-1), u32(1<<16), u32(1000), u32(7), u32(1<<16))
			return t
		}(),
	}}, []want{{500, 1, 45000, 0x8060, ""}, {510, 2, 45900, 0x8060, ""}}},

	{"edit list of version 1", tm{v1: true, tracks: []tt{
		media("x"),
		func() tt {
			t := hints(one(1))
			t.elst = cat(u8(1, 0, 0, 0), u32(1), u64(250), u64(-1), u32(1<<16))
			return t
		}(),
	}}, []want{{250, 1, 22500, 0x8060, ""}}},

	{"moov first, 64-bit offsets and mdat", tm{moovFirst: true, mdat: "64", v1: true, tracks: []tt{
		func() tt { t := media("first", "second"); t.co64 = true; return t }(),
		func() tt { t := hints(one(1, smp(0, 6, 2, 0, 1, 1))); t.co64 = true; return t }(),
	}}, []want{{0, 1, 0, 0x8060, "second"}}},

	{"mdat to the end of the file", tm{moovFirst: true, mdat: "0", tracks: []tt{
		media("first", "second"), hints(one(1, smp(0, 6, 2, 0, 1, 1))),
	}}, []want{{0, 1, 0, 0x8060, "second"}}},

	{"several samples in a chunk, compact sizes", tm{tracks: []tt{
		func() tt {
			t := media("a", "bcdefg", "hi", "", "jklmnopqrstuvwx", "yz")
			t.stz2, t.perChunk = 4, []int{3, 2, 1}
			return t
		}(),
		func() tt {
			t := hints(one(1, smp(0, 2, 3, 0, 1, 1)), one(2, smp(0, 15, 5, 0, 1, 1), smp(0, 1, 6, 1, 1, 1)))
			t.stz2, t.perChunk = 8, []int{2}
			return t
		}(),
	}}, []want{{0, 1, 0, 0x8060, "hi"}, {10, 2, 900, 0x8060, "jklmnopqrstuvwxz"}}},

	{"compressed sound over chunks", tm{tracks: []tt{
		{id: 1, scale: 1000, kind: "soun", format: "ima4", fixed: 1, count: 12,
			samples: ss("aaAbbB", "ccCddD", "eeEffF"), perChunk: []int{1, 1, 1}}, // 2 samples in 3 bytes
		hints(one(1, smp(0, 6, 1, 0, 3, 2)), one(2, smp(0, 9, 3, 1, 3, 2)), one(3, smp(0, 4, 1, 14, 3, 2)), one(4, smp(0, 12, 2, 4, 3, 2))),
	}}, []want{{0, 1, 0, 0x8060, "aaAbbB"}, {10, 2, 900, 0x8060, "bBccCddDe"}, {20, 3, 1800, 0x8060, "EffF"}, {30, 4, 2700, 0x8060, "bBccCddDeeEf"}}},

	{"samples of equal size over chunks", tm{tracks: []tt{
		{id: 1, scale: 1000, kind: "soun", format: "twos", fixed: 2, count: 6, samples: ss("aAbB", "cCdD", "eEfF"), perChunk: []int{1, 1, 1}},
		hints(one(1, smp(0, 12, 1, 0, 1, 1)), one(2, smp(0, 5, 2, 1, 0, 0))),
	}}, []want{{0, 1, 0, 0x8060, "aAbBcCdDeEfF"}, {10, 2, 900, 0x8060, "BcCdD"}}},

	{"two hint tracks for one, one track without", tm{tracks: []tt{
		media("first", "second"),
		{id: 9, scale: 600, kind: "soun", format: "mp4a", samples: ss("unhinted")},
		func() tt { t := hints(one(1, smp(0, 1, 1, 0, 1, 1)), one(2, smp(0, 1, 2, 0, 1, 1))); return t }(),
		func() tt {
			t := hints(one(101, smp(0, 5, 1, 0, 1, 1)), one(102, smp(0, 6, 2, 0, 1, 1)))
			t.id = 3
			return t
		}(),
	}}, []want{{0, 1, 0, 0x8060, "f"}, {0, 101, 0, 0x8060, "first"}, {10, 2, 900, 0x8060, "s"}, {10, 102, 900, 0x8060, "second"}}},

	{"samples without packets or bytes", tm{tracks: []tt{
		media("x"), hints(hintSample(nil), nil, one(1, smp(0, 1, 1, 0, 1, 1))),
	}}, []want{{20, 1, 1800, 0x8060, "x"}}},
}

func TestFeatures(t *testing.T) {
	for _, f := range features {
		t.Run(f.name, func(t *testing.T) {
			got := scanAll(t, readMovie(t, f.movie.build()), Config{AsHinted: true}, 0)
			for i, w := range f.want {
				if i >= len(got) {
					t.Fatalf("%d packets, want %d", len(got), len(f.want))
				}
				g := &got[i]
				have := want{int(g.Due / time.Millisecond), int(g.Seq), int(g.Time), int(g.Bits), string(g.wire[12:])}
				w.ts = int(uint32(w.ts))
				if have != w || g.Send != g.Due {
					t.Errorf("packet %d: %+v, want %+v", i, have, w)
				}
			}
			if len(got) > len(f.want) {
				t.Errorf("%d packets, want %d", len(got), len(f.want))
			}
		})
	}
}

func TestFlags(t *testing.T) {
	m := readMovie(t, tm{tracks: []tt{media("x"), hints(hintSample(nil,
		hp{seq: 1, flags: 1}, hp{seq: 2, flags: 2}, hp{seq: 3, bits: 0x80}))}}.build())
	got := scanAll(t, m, Config{}, 0)
	for i, w := range []string{"repeat", "bframe", "marker"} {
		p := &got[i]
		have := map[bool]string{true: "repeat"}[p.Repeat()] + map[bool]string{true: "bframe"}[p.BFrame()] + map[bool]string{true: "marker"}[p.Marker()]
		if have != w {
			t.Errorf("packet %d is %q, want %q", i, have, w)
		}
	}
}

func TestSDP(t *testing.T) {
	h := hints(one(1))
	h.sdp = "m=video 0 RTP/AVP 96\r\na=control:trackID=2\r\n"
	m := readMovie(t, tm{sdp: "b=AS:94\r\n", tracks: []tt{media("x"), h}}.build())
	s := m.SDP()
	for _, w := range []string{"v=0\r\n", "\r\nb=AS:94\r\n", "\r\na=range:npt=0-5.00000\r\nm=video 0 RTP/AVP 96\r\na=control:trackID=2\r\n"} {
		if !strings.Contains(s, w) {
			t.Errorf("no %q in\n%s", w, s)
		}
	}
}

// A seek goes to the sample the time falls in: the first of those with
// exactly that time, else the last before it, as Darwin finds them.
func TestSeek(t *testing.T) {
	v := media("a", "b", "c", "d", "e", "f")
	h := hints(one(1), one(2), one(3), one(4), one(5), one(6))
	h.stts = [][2]int{{1, 120}, {2, 0}, {1, 120}, {2, 10}} // due at 0 120 120 120 240 250
	m := readMovie(t, tm{tracks: []tt{v, h}}.build())
	for _, c := range []struct{ at, seq int }{
		{0, 1}, {1, 1}, {119, 1}, {120, 2}, {121, 4}, {239, 4}, {240, 5}, {249, 5}, {250, 6}, {259, 6}, {260, 0}, {5000, 0},
	} {
		got := scanAll(t, m, Config{}, time.Duration(c.at)*time.Millisecond)
		seq := 0
		if len(got) > 0 {
			seq = int(got[0].Seq)
		}
		if seq != c.seq {
			t.Errorf("seek to %d ms: packet %d, want %d", c.at, seq, c.seq)
		}
	}
}

// A seek to the very time of a sample finds that sample, whatever its time is
// in nanoseconds.
func TestSeekToSample(t *testing.T) {
	for _, c := range []struct{ scale, delta int }{{90000, 3003}, {30000, 1001}, {24000, 1001}, {44100, 1024}, {600, 20}, {12800, 512}, {1, 1}, {90000, 1}, {4_000_000_000, 7}} {
		h := hints()
		for i := range 300 {
			h.samples = append(h.samples, one(i))
		}
		h.scale, h.stts = c.scale, [][2]int{{300, c.delta}}
		m := readMovie(t, tm{tracks: []tt{media("x"), h}}.build())
		r, err := m.Reader(Config{})
		if err != nil {
			t.Fatal(err)
		}
		limit := 300
		if c.delta*1_000_000_000/c.scale == 0 {
			limit = 0 // several samples in a nanosecond
		}
		for i, p := range scanAll(t, m, Config{AsHinted: true}, 0)[:limit] {
			if r.Seek(p.Due); r.streams[0].start != i {
				t.Fatalf("%d/%d s: a seek to %v finds sample %d, not %d", c.delta, c.scale, p.Due, r.streams[0].start, i)
			}
		}
	}
}

func TestNoHints(t *testing.T) {
	m := readMovie(t, tm{tracks: []tt{media("x")}}.build())
	_, err := m.Reader(Config{})
	if fmt.Sprint(err) != "made.mov: no hint tracks" {
		t.Error(err)
	}
}
