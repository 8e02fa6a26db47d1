package hint

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

// chopped is Data in small buffers of one file, of which only the extents
// brought in are there; it lends at most a buffer at a time.
type chopped struct {
	file []byte
	size int64 // of a buffer
	have []Extent
}

func (d *chopped) At(off int64, n int) []byte {
	for _, e := range d.have {
		if off >= e.Off && off < e.Off+e.Len {
			end := min(off+int64(n), e.Off+e.Len, (off/d.size+1)*d.size)
			return d.file[off:end:end]
		}
	}
	return nil
}

// byCycle reads a movie in intervals of step, from buffers of the size given.
func byCycle(t testing.TB, m *Movie, file []byte, cfg Config, from time.Duration, step func() time.Duration, buffer int64) []wirePacket {
	t.Helper()
	r, err := m.Reader(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Seek(from)
	var all []wirePacket
	var cycles [2]Cycle // by turns, as a disk cycle uses them
	for n := 0; r.More(); n++ {
		c := &cycles[n%2]
		start := r.From()
		if err := r.Plan(c, start+step()); err != nil {
			t.Fatal(err)
		}
		more := r.More()
		d := &chopped{file: file, size: buffer}
		for round := 0; ; round++ {
			if !slices.IsSortedFunc(c.Extents, func(a, b Extent) int { return int(a.Off - b.Off) }) {
				t.Fatalf("extents out of file order: %v", c.Extents)
			}
			d.have = append(d.have, c.Extents...)
			ok, err := r.Load(c, d)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				break
			}
			if round == 3 {
				t.Fatalf("%v: still missing %v", c.From, c.Extents)
			}
		}
		if r.More() && !more {
			t.Fatalf("%v to %v: Plan left nothing, Load does", c.From, c.To)
		}
		var p Packet
		for last := time.Duration(0); c.Next(&p); last = p.Send {
			if p.Send >= c.To || p.Send < last || p.Send < p.Due {
				t.Fatalf("sent at %v, due at %v, after %v, in %v to %v", p.Send, p.Due, last, c.From, c.To)
			}
			var h [12]byte
			p.PutHeader(&h, 0, 0, 0)
			w := wirePacket{p, append(h[:], payload(&p)...)}
			w.Payload = nil
			all = append(all, w)
		}
	}
	return all
}

func steady(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// However a movie is cut into intervals and buffers, the packets, their times
// and their order within a track are the same, each given once.
func TestIntervals(t *testing.T) {
	paths := []string{"../../testdata/hinted/h264-bframes-aac.mp4", "../../testdata/hinted/mpeg4-aac.mp4"}
	t.Run("apple", func(t *testing.T) {
		paths = append(paths, apple(t, "movies/sample_100kbit.mov"), apple(t, "movies/sample_50kbit.3gp"))
	})
	for _, path := range paths {
		f := openMovie(t, path)
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, asHinted := range []bool{true, false} {
			cfg := Config{AsHinted: asHinted}
			from := 3*time.Second + 17*time.Millisecond
			whole := byCycle(t, f.Movie, file, cfg, from, steady(time.Hour), 1<<20)
			rnd := rand.New(rand.NewPCG(1, 2))
			for _, c := range []struct {
				name   string
				step   func() time.Duration
				buffer int64
			}{
				{"1s", steady(time.Second), 64 << 10},
				{"40ms", steady(40 * time.Millisecond), 512},
				{"333ms", steady(333 * time.Millisecond), 7},
				{"random", func() time.Duration { return time.Duration(rnd.IntN(int(2*time.Second))) + 1 }, 1000},
			} {
				got := byCycle(t, f.Movie, file, cfg, from, c.step, c.buffer)
				if err := same(got, whole); err != nil {
					t.Errorf("%s, as hinted %v, intervals of %s: %v", path, asHinted, c.name, err)
				}
			}
		}
	}
}

// same compares packets track by track.
func same(got, want []wirePacket) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d packets, want %d", len(got), len(want))
	}
	byTrack := func(a, b wirePacket) int { return a.Track - b.Track }
	slices.SortStableFunc(got, byTrack)
	slices.SortStableFunc(want, byTrack)
	for i := range got {
		g, w := &got[i], &want[i]
		if g.Track != w.Track || g.Sample != w.Sample || g.Due != w.Due || !bytes.Equal(g.wire, w.wire) {
			return fmt.Errorf("packet %d: track %d sample %d seq %d due %v, want track %d sample %d seq %d due %v",
				i, g.Track, g.Sample, g.Seq, g.Due, w.Track, w.Sample, w.Seq, w.Due)
		}
		if g.Send != w.Send {
			return fmt.Errorf("packet %d: sent at %v, want %v", i, g.Send, w.Send)
		}
	}
	return nil
}

// A packet due before its sample is found late once, in the interval of its
// sample, and in time from then on.
func TestEarlyPackets(t *testing.T) {
	var samples [][]byte
	for i := range 10 {
		samples = append(samples, hintSample(nil, hp{rel: -15, seq: i}))
	}
	b := tm{tracks: []tt{media("x"), hints(samples...)}}.build()
	m := readMovie(t, b)
	got := packetsByCycle(t, m.Movie, b, 10*time.Millisecond)
	want := []string{"0-10 0@-15", "10-20 1@-5 2@5 3@15", "20-30 4@25", "30-40 5@35", "40-50 6@45"}
	if !slices.Equal(got[:5], want) {
		t.Errorf("got  %q\nwant %q", got[:5], want)
	}
}

func packetsByCycle(t *testing.T, m *Movie, file []byte, step time.Duration) (out []string) {
	r, err := m.Reader(Config{AsHinted: true})
	if err != nil {
		t.Fatal(err)
	}
	var c Cycle
	for r.More() {
		if err := r.Plan(&c, r.From()+step); err != nil {
			t.Fatal(err)
		}
		if ok, err := r.Load(&c, Pieces{{0, file}}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		s := fmt.Sprintf("%d-%d", c.From.Milliseconds(), c.To.Milliseconds())
		var p Packet
		for c.Next(&p) {
			s += fmt.Sprintf(" %d@%d", p.Seq, p.Due.Milliseconds())
		}
		out = append(out, s)
	}
	return out
}

// Packets due together are spread by their bytes up to the next that are due.
func TestSmoothing(t *testing.T) {
	h := hints(
		one(1, smp(0, 88, 1, 0, 1, 1)),
		one(2, smp(0, 88, 1, 0, 1, 1)), one(3, smp(0, 188, 1, 0, 1, 1)), one(4, smp(0, 88, 1, 0, 1, 1)),
		hintSample(nil, hp{seq: 5}, hp{seq: 6}, hp{seq: 7, rel: 40}, hp{seq: 8, rel: 40}),
		hintSample(nil, hp{seq: 9}, hp{seq: 10}))
	h.stts = [][2]int{{1, 120}, {2, 0}, {1, 120}, {1, 60}, {1, 1000}}
	v := media(string(make([]byte, 200)))
	f := readMovie(t, tm{tracks: []tt{v, h}}.build())
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{AsHinted: true}, "1@0 2@120 3@120 4@120 5@240 6@240 7@280 8@280 9@300 10@300"},
		// 100, 200 and 100 bytes over 120 ms; two over 40, two over 20; the end is held to 200 ms
		{Config{}, "1@0 2@120 3@150 4@210 5@240 6@260 7@280 8@290 9@300 10@400"},
		{Config{MaxSpread: 20 * time.Millisecond}, "1@0 2@120 3@125 4@135 5@240 6@250 7@280 8@290 9@300 10@310"},
	} {
		got, plain := "", scanAll(t, f, Config{AsHinted: true}, 0)
		for i, p := range scanAll(t, f, c.cfg, 0) {
			got += fmt.Sprintf(" %d@%d", p.Seq, p.Send.Milliseconds())
			if !bytes.Equal(p.wire, plain[i].wire) || p.Due != plain[i].Due {
				t.Errorf("packet %d changed", p.Seq)
			}
		}
		if got[1:] != c.want {
			t.Errorf("%+v:\ngot  %s\nwant %s", c.cfg, got[1:], c.want)
		}
	}
}

// Over a gap without packets a scan goes straight on, however long it is.
func TestGap(t *testing.T) {
	h := hints(one(1), one(2))
	h.scale, h.stts = 1, [][2]int{{2, 1<<31 - 1}} // 68 years
	v := media("x")
	got := scanAll(t, readMovie(t, tm{tracks: []tt{v, h}}.build()), Config{}, 0)
	if len(got) != 2 || got[1].Due != (1<<31-1)*time.Second {
		t.Error(len(got), got[len(got)-1].Due)
	}
}

// One extent of a movie hinted by ffmpeg is a second of everything: hints,
// media, and nothing twice. Load never has to ask for more.
func TestPlanSuffices(t *testing.T) {
	for _, m := range hinted {
		f := openMovie(t, hintedPath(m.name))
		r, err := f.Reader(Config{})
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(f.Name)
		if err != nil {
			t.Fatal(err)
		}
		var c Cycle
		var cycles, short int
		var read int64
		for ; r.More(); cycles++ {
			if err := r.Plan(&c, r.From()+time.Second); err != nil {
				t.Fatal(err)
			}
			for ok := false; !ok; {
				for _, e := range c.Extents {
					read += e.Len
				}
				d := &chopped{file: file, size: 1 << 20, have: slices.Clone(c.Extents)}
				if ok, err = r.Load(&c, d); err != nil {
					t.Fatal(err)
				}
				if !ok {
					short++
					break
				}
			}
		}
		if short > 1 || read > f.Size*115/100 {
			t.Errorf("%s: %d of %d plans fell short, %d bytes read of %d", m.name, short, cycles, read, f.Size)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	f := openMovie(t, hintedPath("h264-bframes-aac.mp4"))
	file, err := os.ReadFile(f.Name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Reader(Config{})
	if err != nil {
		t.Fatal(err)
	}
	var c Cycle
	var p Packet
	data := Data(Pieces{{0, file[:len(file)/3]}, {int64(len(file) / 3), file[len(file)/3:]}})
	packets := 0
	pass := func() {
		r.Seek(0)
		for r.More() {
			if err := r.Plan(&c, r.From()+time.Second); err != nil {
				t.Fatal(err)
			}
			if ok, err := r.Load(&c, data); !ok || err != nil {
				t.Fatal(ok, err)
			}
			for c.Next(&p) {
				packets++
			}
		}
	}
	if n := testing.AllocsPerRun(5, pass); n != 0 {
		t.Errorf("%v allocations a pass", n)
	}
	if want := 6 * len(scanAll(t, f, Config{}, 0)); packets != want { // one pass to warm up
		t.Errorf("%d packets, want %d", packets, want)
	}
}

// Whether there is more is known before the data are: packets spread, or due
// by their hints, beyond an interval are not forgotten at the movie's end.
func TestMoreBeforeLoad(t *testing.T) {
	spread := hints(hintSample(nil, hp{seq: 1}), hintSample(nil, hp{seq: 2}, hp{seq: 3}))
	spread.stts = [][2]int{{2, 120}}
	late := hints(hintSample(nil, hp{seq: 1, rel: 50}), hintSample(nil, hp{seq: 2}, hp{seq: 3, rel: 50}))
	late.stts = [][2]int{{2, 120}}
	for _, h := range []tt{spread, late} {
		b := tm{tracks: []tt{media("x"), h}}.build()
		r, err := readMovie(t, b).Reader(Config{})
		if err != nil {
			t.Fatal(err)
		}
		var c Cycle
		var p Packet
		packets := 0
		for _, to := range []time.Duration{100 * time.Millisecond, 130 * time.Millisecond, time.Second} {
			if err := r.Plan(&c, to); err != nil {
				t.Fatal(err)
			}
			more := r.More()
			if ok, err := r.Load(&c, Pieces{{0, b}}); !ok || err != nil {
				t.Fatal(ok, err)
			}
			for c.Next(&p) {
				packets++
			}
			if want := packets < 3; more != want || r.More() != want {
				t.Errorf("at %v after %d packets: more %v before Load, %v after", to, packets, more, r.More())
			}
		}
		if packets != 3 {
			t.Errorf("%d packets", packets)
		}
	}
}
