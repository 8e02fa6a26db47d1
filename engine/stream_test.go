package engine_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtcp"

	"rtspshim/engine"
	"rtspshim/engine/disk"
	"rtspshim/engine/hint"
)

// wanted is what a client should get of a track: the movie's packets as a scan
// of the file has them, with the mapping applied.
type wanted struct {
	place engine.Place
	send  time.Duration
	bytes []byte
}

func scanned(t testing.TB, f *hint.File, m engine.Mapping, asHinted bool, from time.Duration) (all []wanted) {
	t.Helper()
	scan, err := f.Scan(f, hint.Config{Tracks: []uint32{m.Track}, AsHinted: asHinted}, from)
	if err != nil {
		t.Fatal(err)
	}
	var p hint.Packet
	for scan.Next(&p) {
		var head [12]byte
		binary.BigEndian.PutUint16(head[0:], p.Bits)
		binary.BigEndian.PutUint16(head[2:], p.Seq+m.Seq)
		binary.BigEndian.PutUint32(head[4:], p.Time+m.Time)
		binary.BigEndian.PutUint32(head[8:], m.SSRC)
		all = append(all, wanted{
			engine.Place{Sample: p.Sample, Seq: p.Seq, Due: p.Due}, p.Send,
			bytes.Join(append([][]byte{head[:]}, p.Payload...), nil),
		})
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func movie(t testing.TB, e *engine.Engine, name string) *hint.File {
	t.Helper()
	f, err := e.OpenMovie(filepath.Join("../testdata/hinted", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// viewer is a client of a Stream: it keeps all that comes.
type viewer struct {
	t     testing.TB
	trips []*trip // over UDP
	spec  engine.StreamSpec
	done  chan error

	mu   sync.Mutex
	got  [][][]byte // RTP, by track
	sr   [][][]byte // RTCP
	at   [][]time.Time
	news chan struct{}
}

func newViewer(t testing.TB, f *hint.File) *viewer {
	v := &viewer{t: t, done: make(chan error, 1), news: make(chan struct{}, 1)}
	v.spec = engine.StreamSpec{File: f, Done: func(err error) { v.done <- err }}
	for i, h := range f.HintTracks() {
		v.spec.Tracks = append(v.spec.Tracks, engine.StreamTrack{Mapping: engine.Mapping{
			Track: h.ID, SSRC: 0xcafe0000 + uint32(i), Seq: uint16(65500 - 7*i), Time: 0xffff0000 + uint32(i),
		}})
	}
	n := len(v.spec.Tracks)
	v.got, v.sr, v.at = make([][][]byte, n), make([][][]byte, n), make([][]time.Time, n)
	return v
}

func (v *viewer) keep(track, kind int, p []byte) {
	v.mu.Lock()
	if kind == 0 {
		v.got[track] = append(v.got[track], bytes.Clone(p))
		v.at[track] = append(v.at[track], time.Now())
	} else {
		v.sr[track] = append(v.sr[track], bytes.Clone(p))
	}
	v.mu.Unlock()
	select {
	case v.news <- struct{}{}:
	default:
	}
}

func (v *viewer) overUDP(e *engine.Engine) {
	for i := range v.spec.Tracks {
		r := newTrip(v.t, e, v4, v4)
		v.trips = append(v.trips, r)
		v.spec.Tracks[i].Relay = r.Relay
		for kind, c := range r.client.conn {
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					v.keep(i, kind, buf[:n])
				}
			}()
		}
	}
}

// WriteFrames makes a viewer a FrameWriter.
func (v *viewer) WriteFrames(frames net.Buffers) error {
	var b bytes.Buffer
	if _, err := frames.WriteTo(&b); err != nil {
		return err
	}
	for rest := b.Bytes(); len(rest) > 0; {
		if len(rest) < 4 || rest[0] != '$' || len(rest) < 4+int(binary.BigEndian.Uint16(rest[2:])) {
			return fmt.Errorf("no whole frame: %.20x", rest)
		}
		n := 4 + int(binary.BigEndian.Uint16(rest[2:]))
		v.keep(int(rest[1]/2), int(rest[1]%2), rest[4:n])
		rest = rest[n:]
	}
	return nil
}

func (v *viewer) TryFrames(frames net.Buffers) int {
	b := slices.Concat(frames...)
	if err := v.WriteFrames(net.Buffers{b}); err != nil {
		v.t.Error(err)
	}
	return len(b)
}

func (v *viewer) overTCP() {
	v.spec.TCP = v
	for i := range v.spec.Tracks {
		v.spec.Tracks[i].RTP, v.spec.Tracks[i].RTCP = uint8(2*i), uint8(2*i+1)
	}
}

// await waits until so many RTP packets of each track are there.
func (v *viewer) await(counts []int) {
	v.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		v.mu.Lock()
		whole := true
		for i, n := range counts {
			whole = whole && len(v.got[i]) >= n
		}
		v.mu.Unlock()
		if whole {
			return
		}
		select {
		case <-v.news:
		case <-timeout:
			v.t.Fatalf("packets missing: %d, %d of %v", len(v.got[0]), len(v.got[len(v.got)-1]), counts)
		}
	}
}

// equal compares what came of a track.
func (v *viewer) equal(track int, want []wanted) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, p := range v.got[track] {
		if i >= len(want) || !bytes.Equal(p, want[i].bytes) {
			v.t.Fatalf("track %d: packet %d of %d is %d bytes %.24x; want %d bytes %.24x", track, i, len(want),
				len(p), p, len(want[min(i, len(want)-1)].bytes), want[min(i, len(want)-1)].bytes)
		}
	}
	if len(v.got[track]) != len(want) {
		v.t.Fatalf("track %d: %d packets, want %d", track, len(v.got[track]), len(want))
	}
}

func (v *viewer) open(e *engine.Engine) *engine.Stream {
	v.t.Helper()
	s, err := e.OpenStream(v.spec)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { s.Halt() })
	return s
}

func TestStreamSendsTheMovie(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		for _, asHinted := range []bool{false, true} {
			for _, c := range []engine.Config{{}, {Plain: true}, {Pumps: 2, Gather: time.Millisecond}} {
				name := fmt.Sprintf("tcp=%v,hinted=%v,plain=%v,gather=%v", tcp, asHinted, c.Plain, c.Gather)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					e := open(t, c)
					f := movie(t, e, "h264-bframes-aac.mp4")
					v := newViewer(t, f)
					if v.overTCP(); !tcp {
						v.spec.TCP = nil
						v.overUDP(e)
					}
					v.spec.AsHinted = asHinted
					v.spec.From = f.Duration - 1200*time.Millisecond
					v.spec.Base = time.Now().Add(-v.spec.From - 800*time.Millisecond) // late: it catches up
					s := v.open(e)
					if err := s.Start(nil); err != nil {
						t.Fatal(err)
					}
					if err := <-v.done; err != nil {
						t.Fatal(err)
					}
					var counts []int
					for i, st := range s.State() {
						want := scanned(t, f, v.spec.Tracks[i].Mapping, asHinted, v.spec.From)
						if counts = append(counts, len(want)); !st.Ended || st.Sent != uint64(len(want)) {
							t.Errorf("track %d: %+v, want all of %d packets", i, st, len(want))
						}
					}
					v.await(counts)
					for i := range counts {
						v.equal(i, scanned(t, f, v.spec.Tracks[i].Mapping, asHinted, v.spec.From))
						if len(v.sr[i]) == 0 {
							t.Errorf("track %d: no report", i)
						}
					}
				})
			}
		}
	}
}

// TestHaltAndGoOn stops a Stream at any moment and goes on with another, again
// and again. The client sees the movie, as if nothing had been.
func TestHaltAndGoOn(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		for _, asHinted := range []bool{false, true} {
			for _, name := range []string{"h264-bframes-aac.mp4", "mpeg4-aac.mp4", "h264-aac.mov"} {
				t.Run(fmt.Sprintf("tcp=%v,hinted=%v,%s", tcp, asHinted, name), func(t *testing.T) {
					t.Parallel()
					e := open(t, engine.Config{CycleTime: 200 * time.Millisecond, BurstLimit: 3})
					f := movie(t, e, name)
					v := newViewer(t, f)
					v.spec.AsHinted = asHinted
					if v.overTCP(); !tcp {
						v.spec.TCP = nil
						v.overUDP(e)
					}
					haltAndGoOn(t, e, v)
				})
			}
		}
	}
}

func haltAndGoOn(t *testing.T, e *engine.Engine, v *viewer) {
	random := rand.New(rand.NewPCG(7, 11))
	n := len(v.spec.Tracks)
	after, sent := make([]*engine.Place, n), make([]int, n)
	var wants [][]wanted
	for _, track := range v.spec.Tracks {
		wants = append(wants, scanned(t, v.spec.File, track.Mapping, v.spec.AsHinted, 0))
	}
	for part := 0; ; part++ {
		// Far behind its time, a Stream goes as fast as the burst limit lets it.
		v.spec.Base = time.Now().Add(-v.spec.From - time.Duration(random.IntN(3000))*time.Millisecond)
		s := v.open(e)
		if err := s.Start(after); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-v.done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Duration(random.IntN(300)) * time.Millisecond):
		}
		before, state := s.State(), s.Halt()
		left := false
		for i, st := range state {
			sent[i] += int(st.Sent)
			left = left || !st.Ended
			if before[i].Sent > st.Sent {
				t.Fatalf("part %d: %d packets sent after %d were", part, st.Sent, before[i].Sent)
			}
		}
		v.await(sent)
		for i := range state {
			v.equal(i, wants[i][:sent[i]])
			after[i] = checkState(t, fmt.Sprintf("part %d, track %d", part, i), &state[i], wants[i], sent[i])
		}
		if !left {
			t.Logf("%d parts", part+1)
			return
		}
		v.spec.From = s.Position()
	}
}

// checkState compares what a Halt says with what was received, and returns the
// last packet's place.
func checkState(t *testing.T, name string, st *engine.TrackState, want []wanted, sent int) (last *engine.Place) {
	t.Helper()
	if st.Ended != (sent == len(want)) {
		t.Fatalf("%s: %+v after %d of %d packets", name, st, sent, len(want))
	}
	if sent > 0 {
		w := want[sent-1]
		if last = &w.place; st.Last != w.place || st.LastSeq != binary.BigEndian.Uint16(w.bytes[2:]) {
			t.Fatalf("%s: last %+v, want %+v", name, st, w.place)
		}
	}
	if st.Ended {
		return last
	}
	next := want[sent]
	if st.Next != next.place || st.NextSeq != binary.BigEndian.Uint16(next.bytes[2:]) ||
		st.NextTime != binary.BigEndian.Uint32(next.bytes[4:]) {
		t.Fatalf("%s: next %+v, want %+v", name, st, next.place)
	}
	if st.Sent > 0 && next.place.Sample == last.Sample {
		t.Fatalf("%s: halted within sample %d", name, next.place.Sample)
	}
	return last
}

func TestReports(t *testing.T) {
	for _, test := range []struct{ tcp, still bool }{{false, false}, {true, false}, {false, true}} {
		t.Run(fmt.Sprintf("%+v", test), func(t *testing.T) {
			t.Parallel()
			e := open(t, engine.Config{})
			f := movie(t, e, "h264-aac.mp4")
			v := newViewer(t, f)
			if v.overTCP(); !test.tcp {
				v.spec.TCP = nil
				v.overUDP(e)
			}
			tail, err := rtcp.Marshal([]rtcp.Packet{rtcp.NewCNAMESourceDescription(0xcafe0000, "QTSS1146")})
			if err != nil {
				t.Fatal(err)
			}
			const clock = -3 * time.Hour
			for i := range v.spec.Tracks {
				v.spec.Tracks[i].Report = engine.Report{
					Interval: 300 * time.Millisecond, Due: 400 * time.Millisecond, Clock: clock, Still: test.still, Tail: tail, Packets: 1000, Octets: 1 << 20,
				}
			}
			v.spec.From = 2 * time.Second
			v.spec.End = 3500 * time.Millisecond
			v.spec.Base = time.Now().Add(200*time.Millisecond - v.spec.From)
			s := v.open(e)
			if err := s.Start(nil); err != nil {
				t.Fatal(err)
			}
			if err := <-v.done; err != nil {
				t.Fatal(err)
			}
			state := s.Halt()
			var counts []int
			for _, st := range state {
				counts = append(counts, int(st.Sent))
			}
			v.await(counts)
			for i, st := range state {
				if !st.Ended || st.Next.Due < v.spec.End || st.Last.Due >= v.spec.End {
					t.Errorf("track %d: ended with %+v", i, st)
				}
				v.reports(i, tail, clock)
			}
		})
	}
}

// reports checks what another parser sees in a track's reports.
func (v *viewer) reports(track int, tail []byte, clock time.Duration) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := len(v.sr[track]); n < 3 || n > 6 {
		v.t.Fatalf("track %d: %d reports in 1.5 s, the first after 0.2 s, then one every 0.3 s", track, n)
	}
	h, m := v.spec.File.HintTracks()[track], v.spec.Tracks[track].Mapping
	last := uint32(0)
	for _, raw := range v.sr[track] {
		packets, err := rtcp.Unmarshal(raw)
		if err != nil {
			v.t.Fatalf("track %d: %v: %x", track, err, raw)
		}
		sr, ok := packets[0].(*rtcp.SenderReport)
		if !ok || len(packets) != 2 || sr.SSRC != m.SSRC || !bytes.HasSuffix(raw, tail) {
			v.t.Fatalf("track %d: %v", track, packets)
		}
		at := time.Unix(int64(sr.NTPTime>>32)-2208988800, int64(uint64(uint32(sr.NTPTime))*1e9>>32)).Add(-clock)
		if d := at.Sub(v.at[track][0]); d < 0 || d > 3*time.Second {
			v.t.Errorf("track %d: a report %v after the first packet", track, d)
		}
		if sr.PacketCount <= 1000 || sr.PacketCount <= last || sr.PacketCount > 1000+uint32(len(v.got[track])) {
			v.t.Fatalf("track %d: %d packets counted", track, sr.PacketCount)
		}
		want, slack := uint32(int64(at.Sub(v.spec.Base).Seconds()*float64(h.RTPScale)))+m.Time, int32(h.RTPScale/100)
		if v.spec.Tracks[track].Report.Still {
			want, slack = binary.BigEndian.Uint32(v.got[track][sr.PacketCount-1001][4:]), 0
		}
		if d := int32(sr.RTPTime - want); d < -slack || d > slack {
			v.t.Errorf("track %d: RTP time off by %d of %d a second", track, d, h.RTPScale)
		}
		octets := uint32(1 << 20)
		for _, p := range v.got[track][:sr.PacketCount-1000] {
			octets += uint32(len(p) - 12)
		}
		if sr.OctetCount != octets {
			v.t.Errorf("track %d: %d octets in %d packets, want %d", track, sr.OctetCount, sr.PacketCount, octets)
		}
		last = sr.PacketCount
	}
}

// gate is a FrameWriter that can be closed.
type gate struct {
	*viewer
	mu   sync.Mutex
	held chan struct{} // told once a write waits
}

func (g *gate) WriteFrames(frames net.Buffers) error {
	if !g.mu.TryLock() {
		select {
		case g.held <- struct{}{}:
		default:
		}
		g.mu.Lock()
	}
	defer g.mu.Unlock()
	return g.viewer.WriteFrames(frames)
}

func (g *gate) TryFrames(frames net.Buffers) int {
	if !g.mu.TryLock() {
		return 0
	}
	defer g.mu.Unlock()
	return g.viewer.TryFrames(frames)
}

func TestSlowReaderHarmsNobody(t *testing.T) {
	e := open(t, engine.Config{Pumps: 1, CycleTime: 250 * time.Millisecond})
	f := movie(t, e, "h264-aac.mp4")
	slow, other, third := newViewer(t, f), newViewer(t, f), newViewer(t, f)
	slow.overTCP()
	other.overUDP(e)
	third.overTCP()
	g := &gate{viewer: slow, held: make(chan struct{}, 1)}
	slow.spec.TCP = g
	slow.spec.Ahead = engine.Ahead{Lead: time.Second, Growth: 0.35, Most: 25 * time.Second}
	g.mu.Lock()
	var all []*engine.Stream
	for _, v := range []*viewer{slow, other, third} {
		v.spec.Base, v.spec.End = time.Now().Add(200*time.Millisecond), 2*time.Second
		s := v.open(e)
		if err := s.Start(nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	<-g.held
	for _, v := range []*viewer{other, third} {
		if err := <-v.done; err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range all {
		if st := s.Stats(); st.Underruns > 0 || i > 0 && st.LateP99 > 500*time.Millisecond { // the slow one stands for longer
			t.Errorf("stream %d: %+v", i, st)
		}
	}
	for _, st := range all[0].State() {
		if st.Sent != 0 || st.Next.Sample != 0 {
			t.Errorf("nothing was taken, and yet: %+v", st)
		}
	}
	g.mu.Unlock()
	if err := <-slow.done; err != nil { // it catches up
		t.Fatal(err)
	}
	for i := range slow.spec.Tracks {
		want := scanned(t, f, slow.spec.Tracks[i].Mapping, false, 0)
		n := 0
		for n < len(want) && want[n].place.Due < 2*time.Second {
			n++
		}
		slow.equal(i, want[:n])
	}
}

// reluctant is a FrameWriter that takes all, a part, or nothing at once.
type reluctant struct {
	*viewer
	mu   sync.Mutex
	owed []byte
	turn int
}

func (r *reluctant) TryFrames(frames net.Buffers) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.owed) > 0 {
		r.t.Error("tried again before the rest was written")
	}
	r.turn++
	b := slices.Concat(frames...)
	switch n := len(b) * (r.turn % 3) / 2; {
	case n < len(b):
		if n > 0 {
			r.owed = b
		}
		return n
	default:
		return r.viewer.TryFrames(frames)
	}
}

func (r *reluctant) WriteFrames(frames net.Buffers) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	frames = append(net.Buffers{r.owed}, frames...)
	r.owed = nil
	return r.viewer.WriteFrames(frames)
}

func TestReluctantReaders(t *testing.T) {
	e := open(t, engine.Config{CycleTime: 200 * time.Millisecond})
	f := movie(t, e, "h264-aac.mp4")
	all := make([]*viewer, 8)
	for i := range all {
		v := newViewer(t, f)
		v.overTCP()
		v.spec.TCP = &reluctant{viewer: v, turn: i}
		v.spec.From = f.Duration - 2*time.Second
		v.spec.Base = time.Now().Add(-v.spec.From)
		if err := v.open(e).Start(nil); err != nil {
			t.Fatal(err)
		}
		all[i] = v
	}
	for _, v := range all {
		if err := <-v.done; err != nil {
			t.Fatal(err)
		}
		for i := range v.spec.Tracks {
			v.equal(i, scanned(t, f, v.spec.Tracks[i].Mapping, false, v.spec.From))
		}
	}
}

// A goodbye that comes before the first packet is told the time of the start.
func TestCountsBeforeTheFirst(t *testing.T) {
	e := open(t, engine.Config{})
	f := movie(t, e, "h264-aac.mp4")
	v := newViewer(t, f)
	v.overUDP(e)
	v.spec.From, v.spec.Base = 3*time.Second, time.Now().Add(time.Hour)
	s := v.open(e)
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	_ = s.Halt()
	for i, tr := range v.spec.Tracks {
		want := tr.Time + f.Track(tr.Track).RTPTime(3*time.Second)
		if rtp, packets, _ := s.Counts(i); rtp != want || packets != 0 {
			t.Errorf("track %d: %d packets, time %d; want none, %d", i, packets, rtp, want)
		}
	}
}

// TestFileLostWhilePlaying takes one movie away while it and another are sent.
func TestFileLostWhilePlaying(t *testing.T) {
	e := open(t, engine.Config{CycleTime: 100 * time.Millisecond})
	whole, err := os.ReadFile("../testdata/hinted/h264-aac.mp4")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "lost.mp4")
	if err := os.WriteFile(name, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := e.OpenMovie(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lost, kept := newViewer(t, f), newViewer(t, movie(t, e, "h264-aac.mp4"))
	for _, v := range []*viewer{lost, kept} {
		v.overUDP(e)
		v.spec.Base, v.spec.End = time.Now(), 2*time.Second
		if err := v.open(e).Start(nil); err != nil {
			t.Fatal(err)
		}
	}
	lost.await([]int{1, 1})
	if err := os.Truncate(name, 1000); err != nil {
		t.Fatal(err)
	}
	if err := <-lost.done; err == nil {
		t.Error("the end of a movie that was cut off")
	} else {
		t.Log(err)
	}
	if err := <-kept.done; err != nil {
		t.Error(err)
	}
}

func TestAdmission(t *testing.T) {
	for _, test := range []struct {
		name   string
		config engine.Config
	}{
		{"network", engine.Config{Bandwidth: 1_500_000}},
		{"memory", engine.Config{Memory: 4 << 18}},
		{"disk", engine.Config{DiskBandwidth: 1 << 20, DiskOverhead: 200 * time.Millisecond}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := open(t, test.config)
			v := newViewer(t, movie(t, e, "h264-aac.mp4"))
			w := newViewer(t, movie(t, e, "mpeg4-aac.mp4"))
			v.overTCP()
			w.overTCP()
			v.spec.Base, w.spec.Base = time.Now(), time.Now()
			var all []*engine.Stream
			var err error
			for i := 0; err == nil && i < 100; i++ { // by turns: streams of one movie share what they read
				var s *engine.Stream
				if s, err = e.OpenStream([]*viewer{v, w}[i%2].spec); err == nil {
					all = append(all, s)
				}
			}
			if !errors.Is(err, engine.ErrAdmission) || len(all) == 0 {
				t.Fatalf("%d streams, then %v", len(all), err)
			}
			t.Log(len(all), "streams, then", err)
			for _, s := range all {
				s.Halt()
			}
			settle(t, func() bool { // Halt waits for packets, not for memory
				s, err := e.OpenStream(w.spec)
				if err == nil {
					s.Halt()
				}
				return err == nil
			})
		})
	}
}

func TestFirsts(t *testing.T) {
	e := open(t, engine.Config{})
	f := movie(t, e, "h264-bframes-aac.mp4")
	var tracks []uint32
	for _, h := range f.HintTracks() {
		tracks = append(tracks, h.ID)
	}
	for _, at := range []time.Duration{0, 1, 3333 * time.Millisecond, f.Duration - time.Millisecond, f.Duration + time.Minute} {
		firsts, err := e.Firsts(f, tracks, at)
		if err != nil {
			t.Fatal(err)
		}
		for i, id := range tracks {
			want := scanned(t, f, engine.Mapping{Track: id}, true, at)
			if firsts[i].OK != (len(want) > 0) {
				t.Fatalf("at %v, track %d: %+v, %d packets", at, id, firsts[i], len(want))
			}
			if firsts[i].OK && (firsts[i].Place != want[0].place || firsts[i].Time != binary.BigEndian.Uint32(want[0].bytes[4:])) {
				t.Errorf("at %v, track %d: %+v, want %+v", at, id, firsts[i], want[0].place)
			}
		}
	}
	if s := e.DiskStats(); s.PoolBlocks != 0 {
		t.Errorf("a pool of %d blocks although nothing was played", s.PoolBlocks)
	}
}

// TestEngineClosesUnderStreams leaves nothing behind.
func TestEngineClosesUnderStreams(t *testing.T) {
	for _, c := range []engine.Config{{}, {Plain: true}, {Uring: disk.Off}} {
		before := runtime.NumGoroutine()
		c.Memory = 16 << 20
		e, err := engine.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		f := movie(t, e, "h264-aac.mp4")
		ends := make(chan error, 10)
		clients := 0
		var all []*engine.Stream
		for i := range 6 {
			v := newViewer(t, f)
			if v.overTCP(); i%2 == 0 {
				v.spec.TCP = nil
				v.overUDP(e)
				clients += 4 // they read until the test ends
			}
			v.spec.Done = func(err error) { ends <- err }
			v.spec.Base = time.Now()
			s := v.open(e)
			if all = append(all, s); i >= 4 {
				continue // never started
			}
			if err := s.Start(nil); err != nil {
				t.Fatal(err)
			}
			if i < 2 {
				v.await([]int{1, 1})
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		for range 4 {
			if err := <-ends; !errors.Is(err, engine.ErrClosed) {
				t.Errorf("ended with %v", err)
			}
		}
		for _, s := range all {
			s.Halt()
			if err := s.Start(nil); err == nil {
				t.Error("started after the end")
			}
		}
		spec := engine.StreamSpec{File: f, Tracks: []engine.StreamTrack{{Mapping: engine.Mapping{Track: f.HintTracks()[0].ID}}}, TCP: &viewer{}}
		if _, err := e.OpenStream(spec); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("opened a stream after Close: %v", err)
		}
		settle(t, func() bool { return runtime.NumGoroutine() <= before+clients })
	}
}

// TestClientMoves has a client take its packets elsewhere while the engine sends
// them, again and again: each packet comes once, in order, where the next one is.
func TestClientMoves(t *testing.T) {
	e := open(t, engine.Config{})
	f := movie(t, e, "h264-aac.mp4")
	r := newTrip(t, e, v4, v4)
	m := engine.Mapping{Track: f.HintTracks()[0].ID, SSRC: 7, Seq: 65500}
	done := make(chan error, 1)
	s, err := e.OpenStream(engine.StreamSpec{File: f, Tracks: []engine.StreamTrack{{Mapping: m, Relay: r.Relay}},
		Base: time.Now(), End: 2 * time.Second, Done: func(err error) { done <- err }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	peers := []*peer{r.client}
	for range 4 {
		at := s.State()[0].Sent
		settle(t, func() bool { return s.State()[0].Sent >= at+10 })
		p := newPeer(t, v4)
		if err := r.SetClient(p.addr(0), p.addr(1)); err != nil {
			t.Fatal(err)
		}
		peers = append(peers, p)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := scanned(t, f, m, false, 0)
	mark := []byte("the last")
	for k, p := range peers {
		p.send(0, p.addr(0), mark)
		n := 0
		for got, _ := recv(t, p.conn[0]); !bytes.Equal(got, mark); got, _ = recv(t, p.conn[0]) {
			if !bytes.Equal(got, want[0].bytes) {
				t.Fatalf("place %d, packet %d: %.24x, want %.24x", k, n, got, want[0].bytes)
			}
			want = want[1:]
			n++
		}
		if n < 10 {
			t.Errorf("place %d: %d packets", k, n)
		}
	}
	if len(want) == 0 || want[0].place.Due < 2*time.Second {
		t.Errorf("%d packets of the movie did not come", len(want))
	}
}

func TestDropTrack(t *testing.T) {
	e := open(t, engine.Config{})
	f := movie(t, e, "h264-aac.mp4")
	v := newViewer(t, f)
	v.overUDP(e)
	v.spec.Base, v.spec.End = time.Now(), time.Second
	s := v.open(e)
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	v.await([]int{5, 5})
	s.DropTrack(0)
	dropped := s.State()[0]
	if err := v.trips[0].Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-v.done; err != nil {
		t.Fatal(err)
	}
	state := s.Halt()
	if state[0] != dropped || state[1].Last.Due < 800*time.Millisecond {
		t.Errorf("after DropTrack %+v, at the end %+v", dropped, state)
	}
	v.await([]int{int(state[0].Sent), int(state[1].Sent)})
}
