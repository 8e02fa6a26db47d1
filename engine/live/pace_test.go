package live

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"rtspshim/engine/wire"
)

// Big frames leave in runs over half of their interval, small ones at once,
// each in order; what has been let go never waits for what follows.
func TestSmoother(t *testing.T) {
	const every = 40 * time.Millisecond
	for _, c := range []struct {
		name string
		size int
		want []time.Duration // when packets were let go, a run each, in the second frame
	}{
		{"small", 16, []time.Duration{0}},
		{"two runs", 20, []time.Duration{0, 16 * time.Millisecond}},
		{"big", 80, []time.Duration{0, 4 * time.Millisecond, 8 * time.Millisecond, 12 * time.Millisecond, 16 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLog(1, true)
			s := smoother{frames: make([]frame, 1)}
			start := time.Unix(1000, 0)
			seq := uint16(0)
			var went []time.Duration
			for f := range 3 {
				at := start.Add(time.Duration(f) * every)
				for range c.size {
					e, _, _ := read(0, packet(t, seq, uint32(f)*3600, 1, false, []byte("x")), at)
					l.put(e, packet(t, seq, uint32(f)*3600, 1, false, []byte("x")))
					seq++
				}
				for now := at; s.open < l.head; {
					before := s.open
					next := s.release(l, []uint32{90000}, now)
					if s.open > before && f == 1 {
						went = append(went, now.Sub(at))
					}
					if next.IsZero() {
						break
					}
					if !next.After(now) || next.After(at.Add(every/2)) {
						t.Fatalf("frame %d: at %v more is to come at %v", f, now.Sub(at), next.Sub(at))
					}
					now = next
				}
				if s.open != l.head {
					t.Fatalf("frame %d: %d of %d packets let go", f, s.open, l.head)
				}
			}
			if !slices.Equal(went, c.want) {
				t.Errorf("let go at %v, not %v", went, c.want)
			}
		})
	}
}

// A frame that is still coming is waited for, but not for long, and not when as
// much as leaves in one send is there.
func TestRipe(t *testing.T) {
	for _, test := range []struct {
		name, codec string
		markers     []bool // of the packets that came, a hundredth of ripen apart
		wait        bool
	}{
		{"whole", "H264", []bool{false, false, true}, false},
		{"begun", "H264", []bool{false, true, false, false}, true},
		{"as much as leaves in one send", "H264", make([]bool, burst), false},
		{"of a codec that is not known", "MPA", []bool{false, false}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := group(t, Media{test.codec, 90000})
			src, at := g.NewSource(false), time.Now()
			src.Lead(nil)
			whole, begun := 0, at
			for n, m := range test.markers {
				src.Feed(0, [][]byte{packet(t, uint16(n), 0, 1, m, []byte{1})}, false, at)
				if at = at.Add(ripen / 100); m {
					whole, begun = n+1, at
				}
			}
			open, next := g.ripe(at)
			if test.wait {
				if open != uint64(whole) || !next.Equal(begun.Add(ripen)) {
					t.Errorf("%d packets may leave, more in %v", open, next.Sub(begun))
				}
				open, next = g.ripe(next)
			}
			if open != uint64(len(test.markers)) || !next.IsZero() {
				t.Errorf("%d packets may leave, more at %v", open, next)
			}
		})
	}
}

// Who takes nothing of a Media cannot be sent what others are.
func TestSteps(t *testing.T) {
	to := wire.NewDest(netip.MustParseAddrPort("192.0.2.1:5000"), nil)
	for _, test := range []struct {
		at   uint64
		dest *wire.Dest
		want bool
	}{{joined, to, true}, {joined - 1, to, false}, {joined, nil, false}} {
		m := &Member{plain: true, at: test.at, via: [][2]via{{{dest: to}}, {{dest: test.dest}}}}
		if got := m.steps(); got != test.want {
			t.Errorf("%+v: in step: %t", test, got)
		}
	}
}
