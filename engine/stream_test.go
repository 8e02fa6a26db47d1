package engine_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/hint"
	"rtspshim/engine/wire"
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
			for _, c := range []engine.Config{{}, {GSO: wire.Off}, {Plain: true}, {Pumps: 2, Gather: time.Millisecond}} {
				t.Run(fmt.Sprintf("tcp=%v,hinted=%v,gso=%v,plain=%v,gather=%v", tcp, asHinted, c.GSO, c.Plain, c.Gather), func(t *testing.T) {
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
					v.spec.Base = time.Now().Add(-v.spec.From)
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
					t.Logf("%+v", s.Stats())
				})
			}
		}
	}
}
