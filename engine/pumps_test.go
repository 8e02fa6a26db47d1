package engine_test

import (
	"fmt"
	"testing"
	"time"

	"rtspshim/engine"
)

// Hundreds of short sessions come and go, their relays, Streams and server ports
// spread over several pumps: each is relayed first, then taken over. Every viewer
// gets every packet, from the first on, in order.
func TestEverySessionOnManyPumps(t *testing.T) {
	const sessions, atOnce = 240, 24
	for _, pumps := range []int{2, 4} {
		t.Run(fmt.Sprint(pumps), func(t *testing.T) {
			t.Parallel()
			e := open(t, engine.Config{Pumps: pumps, Gather: time.Millisecond, Memory: 64 << 20})
			f := movie(t, e, "h264-bframes-aac.mp4")
			starts := []time.Duration{0, 700 * time.Millisecond, 1900 * time.Millisecond}
			want := make([][][]wanted, len(starts))
			for n, from := range starts {
				for _, track := range newViewer(t, f).spec.Tracks {
					want[n] = append(want[n], scanned(t, f, track.Mapping, false, from))
				}
			}
			var open []*short
			for n := range sessions {
				if len(open) == atOnce {
					open[0].finish()
					open = open[1:]
				}
				open = append(open, begin(t, e, newViewer(t, f), starts[n%len(starts)], want[n%len(starts)]))
			}
			for _, s := range open {
				s.finish()
			}
		})
	}
}

// short is a viewer who was relayed, and is played to.
type short struct {
	*viewer
	stream *engine.Stream
	want   [][]wanted
}

const relayedFirst = 4 // packets of each track before the takeover

func begin(t *testing.T, e *engine.Engine, v *viewer, from time.Duration, want [][]wanted) *short {
	v.overUDP(e)
	for i, trip := range v.trips {
		for seq := range relayedFirst {
			trip.upstream.send(0, trip.toClient[0], rtp(seq, 100+40*i))
		}
	}
	v.await([]int{relayedFirst, relayedFirst})
	v.spec.From, v.spec.Base = from, time.Now().Add(-from)
	s := v.open(e)
	for _, trip := range v.trips {
		trip.Mute(true)
		trip.Sync()
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	return &short{v, s, want}
}

// finish waits for what is due in the first moments, and compares all that came.
func (s *short) finish() {
	counts := make([]int, len(s.trips))
	for i := range counts {
		for counts[i] = relayedFirst; s.want[i][counts[i]].send < s.spec.From+150*time.Millisecond; {
			counts[i]++
		}
	}
	s.await(counts)
	sent := s.stream.Halt()
	for i := range counts {
		counts[i] = relayedFirst + int(sent[i].Sent)
	}
	s.await(counts)
	for i, trip := range s.trips {
		s.mu.Lock()
		s.got[i] = s.got[i][relayedFirst:]
		s.mu.Unlock()
		s.equal(i, s.want[i][:sent[i].Sent])
		if err := trip.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

// A pump that has more to send than it can still receives: what it relays gets
// through while all its Streams are behind.
func TestFullPumpReceives(t *testing.T) {
	const streams = 300
	e := open(t, engine.Config{Pumps: 1, Plain: true, BurstLimit: 8, CycleTime: 10 * time.Second, Memory: 2 << 30})
	f := movie(t, e, "h264-bframes-aac.mp4")
	sink, relayed := newTrip(t, e, v4, v4), newTrip(t, e, v4, v4)
	var all []*engine.Stream
	for range streams {
		v := newViewer(t, f)
		for i := range v.spec.Tracks {
			v.spec.Tracks[i].Relay = sink.Relay
		}
		v.spec.Base = time.Now().Add(-f.Duration) // all is due
		s, err := e.OpenStream(v.spec)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	for _, s := range all {
		if err := s.Primed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range all {
		if err := s.Start(nil); err != nil {
			t.Fatal(err)
		}
	}
	for seq := range 5 {
		p := rtp(seq, 200)
		relayed.upstream.send(0, relayed.toClient[0], p)
		relayed.client.want(0, p, relayed.toUpstream[0])
	}
	for n, s := range all {
		if s.State()[0].Ended {
			t.Fatalf("stream %d is over: the pump had nothing else to do", n)
		}
	}
}
