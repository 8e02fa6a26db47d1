package engine_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/live"
)

const liveRate = 90000

// crowd is a live group whose viewers take datagrams.
type crowd struct {
	group   *live.Group
	source  *live.Source
	clients []*net.UDPConn
	members []*live.Member
	seq     uint16
	time    uint32
}

func newCrowd(t testing.TB, e *engine.Engine, viewers int, smooth bool) *crowd {
	t.Helper()
	g, err := e.OpenGroup([]live.Media{{Codec: "H264", Rate: liveRate}}, smooth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	c := &crowd{group: g, source: g.NewSource(false)}
	c.source.Lead(nil)
	c.source.Feed(0, [][]byte{c.packet(12, true)}, false, time.Now())
	for range viewers {
		client := listen(t, v4)
		r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: addr(client), UpstreamLocal: v4})
		if err != nil {
			t.Fatal(err)
		}
		c.clients = append(c.clients, client)
		c.members = append(c.members, g.Join(live.MemberSpec{Medias: []live.MemberMedia{
			{Mapping: live.Mapping{SSRC: 1}, Last: c.seq - 1, Outlet: r}}}))
	}
	return c
}

// packet is the next one of the frame.
func (c *crowd) packet(size int, marker bool) []byte {
	p := make([]byte, size)
	p[0], p[1] = 0x80, 96
	if marker {
		p[1] |= 0x80
	}
	binary.BigEndian.PutUint16(p[2:], c.seq)
	binary.BigEndian.PutUint32(p[4:], c.time)
	binary.BigEndian.PutUint32(p[8:], 1)
	c.seq++
	return p
}

// frame feeds a frame, all at once.
func (c *crowd) frame(packets, size int, every time.Duration) {
	c.time += uint32(every * liveRate / time.Second)
	var all [][]byte
	for i := range packets {
		all = append(all, c.packet(size, i == packets-1))
	}
	c.source.Feed(0, all, false, time.Now())
}

// Of a big frame a viewer gets a burst at most back to back; with smoothing its
// packets take half of the frame's interval, and all the same all have come
// before the next one.
func TestLiveBursts(t *testing.T) {
	const every, frames, size = 40 * time.Millisecond, 20, 90
	for name, c := range map[string]struct {
		smooth   bool
		together int           // packets within a millisecond, at most
		least    time.Duration // from a frame's first packet to its last
	}{
		"as it comes": {false, 88, time.Millisecond},
		"smoothed":    {true, 20, 12 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t, engine.Config{Gather: engine.DefaultGather, Pumps: 1})
			crowd := newCrowd(t, e, 1, c.smooth)
			came := make(chan []time.Time)
			go func() {
				var at []time.Time
				b := make([]byte, 2000)
				for len(at) < frames*size {
					_ = crowd.clients[0].SetReadDeadline(time.Now().Add(5 * time.Second))
					if _, err := crowd.clients[0].Read(b); err != nil {
						break
					}
					if want := uint16(len(at) + 1); binary.BigEndian.Uint16(b[2:]) != want {
						t.Errorf("packet %d is number %d", want, binary.BigEndian.Uint16(b[2:]))
					}
					at = append(at, time.Now())
				}
				came <- at
			}()
			tick := time.NewTicker(every)
			defer tick.Stop()
			var fed []time.Time
			for range frames {
				fed = append(fed, time.Now())
				crowd.frame(size, 1200, every)
				<-tick.C
			}
			at := <-came
			if len(at) != frames*size {
				t.Fatalf("%d of %d packets came", len(at), frames*size)
			}
			var spans, took, most []int
			for f := 1; f < frames; f++ { // the first one has no interval yet
				of := at[f*size : (f+1)*size]
				spans = append(spans, int(of[size-1].Sub(of[0])/time.Microsecond))
				took = append(took, int(of[size-1].Sub(fed[f])/time.Microsecond))
				together := 0
				for i, first := range of {
					n, _ := slices.BinarySearchFunc(of, first.Add(time.Millisecond), time.Time.Compare)
					together = max(together, n-i)
				}
				most = append(most, together)
			}
			slices.Sort(spans)
			slices.Sort(took)
			slices.Sort(most)
			t.Logf("%d µs for a frame, %d packets within a ms (medians)", spans[len(spans)/2], most[len(most)/2])
			if span := time.Duration(spans[len(spans)/2]) * time.Microsecond; span < c.least || most[len(most)/2] > c.together {
				t.Errorf("wanted %v at least, %d at most", c.least, c.together)
			}
			if d := time.Duration(took[len(took)/2]) * time.Microsecond; d > every*3/4 {
				t.Errorf("a frame takes %v (median), from where it came in", d)
			}
		})
	}
}

// One pump or several send a group's stream, to a part of its viewers each. Whoever
// stays has every packet once, in order and in its own numbers; whoever leaves in
// the middle has all that Leave says, and nothing after it.
func TestLiveManyPumps(t *testing.T) {
	for _, pumps := range []int{1, 3} {
		t.Run(fmt.Sprint(pumps), func(t *testing.T) { testLivePumps(t, pumps) })
	}
}

func testLivePumps(t *testing.T, pumps int) {
	const viewers, frames, size, every = 150, 120, 20, 4 * time.Millisecond // from the 51st on many are in step
	e := open(t, engine.Config{Gather: engine.DefaultGather, Pumps: pumps})
	crowd := newCrowd(t, e, 0, false)
	type viewer struct {
		conn       *net.UDPConn
		member     *live.Member
		next, want uint16
	}
	var all []*viewer
	came := make(chan struct{}, 1) // the first viewer has a frame's first packet
	var work sync.WaitGroup
	for i := range viewers {
		v := &viewer{conn: listen(t, v4)}
		r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: addr(v.conn), UpstreamLocal: v4})
		if err != nil {
			t.Fatal(err)
		}
		own := live.Mapping{SSRC: 1, Seq: uint16(i % 2 * 1000)}
		v.next = crowd.seq + own.Seq
		v.want = v.next + frames*size
		v.member = crowd.group.Join(live.MemberSpec{Medias: []live.MemberMedia{{Mapping: own, Last: v.next - 1, Outlet: r}}})
		all = append(all, v)
		_ = v.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		whole := v.want
		work.Go(func() {
			b := make([]byte, 2000)
			for v.next != whole {
				if _, err := v.conn.Read(b); err != nil {
					return
				}
				if got := binary.BigEndian.Uint16(b[2:]); got != v.next {
					t.Errorf("viewer %d got %d, not %d", i, got, v.next)
					return
				}
				v.next++
				if i == 0 && (whole-v.next+1)%size == 0 {
					select {
					case came <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for f := range frames {
		select {
		case <-came:
		default:
		}
		crowd.frame(size, 1200, every)
		if v := all[f]; f%3 == 1 {
			select { // a pump sends to others then, as a rule
			case <-came:
			case <-time.After(10 * time.Second):
				t.Fatal("the first viewer gets no more")
			}
			v.want = v.member.Leave()[0].Last + 1
			_ = v.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
		<-tick.C
	}
	work.Wait()
	for i, v := range all {
		if v.next != v.want {
			t.Errorf("viewer %d was sent all before %d, not before %d", i, v.next, v.want)
		}
	}
	busy := 0
	for _, p := range e.PumpStats() {
		if p.Out.Datagrams > 1000 {
			busy++
		}
	}
	if busy != pumps {
		t.Errorf("%d pumps of %d sent", busy, pumps)
	}
}
