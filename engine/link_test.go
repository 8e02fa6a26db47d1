package engine

import (
	"cmp"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"rtspshim/engine/hint"
)

// ledger is a sink that writes down what it gets.
type ledger struct {
	now     time.Duration
	turn    int
	entries []departure
}

type departure struct {
	at, send, due time.Duration
	track, seq    int
	turn          int
}

func (g *ledger) packet(l *line) {
	g.entries = append(g.entries, departure{g.now, l.packet.Send, l.packet.Due, int(l.Track), int(l.packet.Seq), g.turn})
}

func (g *ledger) left(int, time.Duration) {}
func (g *ledger) report(*line)            {}

// opened is an Engine and a movie, until the test ends.
func opened(t testing.TB, name string) (*Engine, *hint.File) {
	t.Helper()
	e, err := Open(Config{Memory: 16 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	f, err := e.OpenMovie("../testdata/hinted/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return e, f
}

// virtual drives a Stream by a clock of the test's own, millisecond by
// millisecond where it asks for it, to the end of the movie.
func virtual(t testing.TB, name string, asHinted bool, limit int, slot, late time.Duration) (*hint.File, *ledger) {
	e, f := opened(t, name)
	spec := StreamSpec{File: f, Base: e.start.Add(-time.Hour), AsHinted: asHinted, TCP: noFrames{}}
	for _, h := range f.HintTracks() {
		spec.Tracks = append(spec.Tracks, StreamTrack{Mapping: Mapping{Track: h.ID}})
	}
	s, err := e.OpenStream(spec)
	if err != nil {
		t.Fatal(err)
	}
	g := &ledger{}
	for g.now = late; !drive(s, g, limit, slot); {
	}
	return f, g
}

type noFrames struct{ FrameWriter }

// drive lets the Stream send once, and moves the clock, which tells the movie's
// time as it is sent, to when it wants to again. It is true at the end. All
// data are long due, so that the disk brings them at once.
func drive(s *Stream, g *ledger, limit int, slot time.Duration) (over bool) {
	g.turn++
	until := g.now
	if slot > 0 {
		until = (g.now/slot+1)*slot - 1
	}
	s.mu.Lock()
	at, again := s.run(s.due(0)+g.now, s.due(0)+until, limit, g)
	dry := s.dry
	s.mu.Unlock()
	over = s.settle()
	s.e.feeder.post(s)
	if over {
		s.mu.Lock()
		s.leave()
		s.mu.Unlock()
		return true
	}
	if again && !dry { // else the data come in real time, and the clock stands
		if at -= s.due(0); slot > 0 && at > until {
			at -= at % slot
		}
		g.now = max(g.now, (at+wheelTick-1)/wheelTick*wheelTick)
	} else {
		runtime.Gosched()
	}
	return false
}

// TestLink holds every departure against the rule.
func TestLink(t *testing.T) {
	for _, test := range []struct {
		name     string
		asHinted bool
		limit    int
		slot     time.Duration
		late     time.Duration
	}{
		{"h264-bframes-aac.mp4", false, 16, 0, 0},
		{"h264-bframes-aac.mp4", false, 1, 0, 0},
		{"h264-bframes-aac.mp4", false, 4, 0, 0},
		{"h264-bframes-aac.mp4", true, 4, 0, 0},
		{"h264-bframes-aac.mp4", false, 16, 4 * time.Millisecond, 0},
		{"mpeg4-aac.mp4", false, 2, 0, 0},
		{"mpeg4-aac.mp4", false, 4, 10 * time.Millisecond, 0},
		{"mpeg4-aac.mp4", true, 2, 0, 300 * time.Millisecond},
		{"h264-aac.mov", false, 16, 4 * time.Millisecond, 2 * time.Second},
	} {
		f, g := virtual(t, test.name, test.asHinted, test.limit, test.slot, test.late)
		scan, err := f.Scan(f, hint.Config{AsHinted: test.asHinted}, 0)
		if err != nil {
			t.Fatal(err)
		}
		var p hint.Packet
		n := 0
		for scan.Next(&p) {
			n++
		}
		if len(g.entries) != n {
			t.Errorf("%+v: %d packets, want %d", test, len(g.entries), n)
		}
		run, early := map[departure]int{}, 0
		last := map[int]time.Duration{}
		for _, d := range g.entries {
			if run[departure{turn: d.turn, track: d.track}]++; run[departure{turn: d.turn, track: d.track}] > test.limit {
				t.Fatalf("%+v: more than %d packets of a track at %v", test, test.limit, d.at)
			}
			if d.at+max(0, test.slot-1) < d.due || test.slot > 0 && d.at < d.due/test.slot*test.slot {
				t.Fatalf("%+v: %+v leaves before it is due, and before its slot", test, d)
			}
			if d.at < d.send {
				early++
			}
			// On time: unless late as a whole, or behind others at the limit.
			slack := wheelTick
			switch {
			case test.asHinted:
				slack = 100 * time.Millisecond
			case test.limit < 4:
				slack = 5 * time.Millisecond
			}
			if d.at-d.send > slack && test.late == 0 {
				t.Fatalf("%+v: %+v leaves %v late", test, d, d.at-d.send)
			}
			if d.at < last[d.track] {
				t.Fatalf("%+v: %+v out of order", test, d)
			}
			last[d.track] = d.at
		}
		if test.limit == 1 && early > 0 || test.limit == 16 && early == 0 {
			t.Errorf("%+v: %d packets went with others, ahead of their own time", test, early)
		}
	}
}

// TestStreamAllocatesNothing sends a movie again and again, and counts.
func TestStreamAllocatesNothing(t *testing.T) {
	e, f := opened(t, "h264-bframes-aac.mp4")
	spec := StreamSpec{File: f, Base: e.start.Add(-time.Hour), TCP: noFrames{}}
	for _, h := range f.HintTracks() {
		spec.Tracks = append(spec.Tracks, StreamTrack{Mapping: Mapping{Track: h.ID}, Report: Report{Interval: time.Second}})
	}
	s, err := e.OpenStream(spec)
	if err != nil {
		t.Fatal(err)
	}
	g := &ledger{entries: make([]departure, 0, 1<<12)}
	for g.now < 4*time.Second { // the first intervals find out how large they are
		drive(s, g, 16, 0)
	}
	var before, after runtime.MemStats
	first := len(g.entries)
	runtime.ReadMemStats(&before)
	for !drive(s, g, 16, 0) {
	}
	runtime.ReadMemStats(&after)
	packets, allocs := len(g.entries)-first, after.Mallocs-before.Mallocs
	pages := len(f.HintTracks()) * int(f.Duration/time.Second-4) // a second's packets are listed once for all viewers
	t.Logf("%d packets, %d allocations, %d pages", packets, allocs, pages)
	if packets < 200 || allocs > uint64(packets/20+7*pages) {
		t.Errorf("%d allocations for %d packets, and the intervals they are in", allocs, packets)
	}
}

// A Stream that is over tells where it stood without the data, which may be
// another's by then.
func TestStateAfterTheEnd(t *testing.T) {
	e, f := opened(t, "h264-bframes-aac.mp4")
	spec := StreamSpec{File: f, Base: time.Now(), From: 3 * time.Second, TCP: noFrames{}}
	for _, h := range f.HintTracks() {
		spec.Tracks = append(spec.Tracks, StreamTrack{Mapping: Mapping{Track: h.ID}})
	}
	var states [2][]TrackState
	for i := range states {
		s, err := e.OpenStream(spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Primed(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			states[i] = s.State()
		}
		s.mu.Lock()
		s.over, s.told = true, true
		s.leave()
		s.mu.Unlock()
		for e.DiskStats().InUse > 0 { // until they are given back
			runtime.Gosched()
		}
		if i == 1 {
			s.source.slots = [slots]slot{}
			states[i] = s.State()
		}
	}
	if !slices.Equal(states[0], states[1]) || states[0][0].Next.Due < spec.From {
		t.Errorf("with the data %+v\nwithout    %+v", states[0], states[1])
	}
}

// TestWheel compares the wheel with a sorted list.
func TestWheel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w wheel
	all := make([]*Stream, 200)
	want := map[*Stream]time.Duration{} // when each is to come by
	for i := range all {
		all[i] = &Stream{slot: slotNone}
	}
	now := time.Duration(0)
	for range 20_000 {
		s := all[r.IntN(len(all))]
		switch _, in := want[s]; {
		case !in:
			at := now + time.Duration(r.Int64N(int64([]time.Duration{time.Millisecond, 50 * time.Millisecond, 3 * time.Second}[r.IntN(3)])))
			w.add(s, at)
			want[s] = at
		case r.IntN(3) == 0:
			w.remove(s)
			delete(want, s)
		case r.IntN(5) == 0:
			w.now(s)
			want[s] = 0
		}
		if r.IntN(4) > 0 {
			continue
		}
		next, ok := w.next()
		if ok != (len(want) > 0) {
			t.Fatalf("next: %v, with %d in the wheel", ok, len(want))
		}
		if ok { // no later than the first of them
			first := slices.MinFunc(values(want), cmp.Compare)
			if most := (first + wheelTick - 1) / wheelTick * wheelTick; next > max(most, now+wheelTick) {
				t.Fatalf("next at %v, but one is due at %v", next, first)
			}
		}
		now += time.Duration(r.Int64N(int64([]time.Duration{time.Millisecond, 30 * time.Millisecond, 2 * time.Second}[r.IntN(3)])))
		w.advance(now)
		for s := w.pop(); s != nil; s = w.pop() {
			at := want[s]
			delete(want, s)
			if at > now { // a long way off: it comes by once a turn
				w.add(s, at)
				want[s] = at
			}
		}
		for _, at := range want {
			if tick := (at + wheelTick - 1) / wheelTick * wheelTick; tick <= now-wheelTick {
				t.Fatalf("at %v one that is due at %v has not come by", now, at)
			}
		}
	}
}

func values(m map[*Stream]time.Duration) (v []time.Duration) {
	for _, at := range m {
		v = append(v, at)
	}
	return v
}
