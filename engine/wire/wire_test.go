package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var loopbacks = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}

// allOptions is every way of talking to the kernel.
var allOptions = []Options{
	{}, {GRO: Off}, {GSO: Off}, {GSO: Off, GRO: Off}, {Plain: true},
}

func (o Options) String() string {
	return fmt.Sprintf("gso=%v,gro=%v,plain=%v", o.GSO, o.GRO, o.Plain)
}

func mustOpen(t testing.TB, o Options) *Net {
	t.Helper()
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustListen(t testing.TB, n *Net, ip netip.Addr) Conn {
	t.Helper()
	c, err := n.Listen(netip.AddrPortFrom(ip, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// collector receives on some Conns until it has as many datagrams as wanted.
type collector struct {
	t      testing.TB
	conns  []Conn
	poller Poller
	inbox  *Inbox
	got    [][][]byte // by Conn
	from   map[netip.AddrPort]int
	runs   int // Messages of more than one datagram
}

func mustInbox(t testing.TB, n *Net, slots int) *Inbox {
	t.Helper()
	in, err := n.NewInbox(slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func newCollector(t testing.TB, n *Net, conns ...Conn) *collector {
	t.Helper()
	p, err := n.NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range conns {
		if err := p.Add(c, int32(i)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, c := range conns {
			if err := p.Remove(c); err != nil {
				t.Error(err)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return &collector{t: t, conns: conns, poller: p, inbox: mustInbox(t, n, 64), got: make([][][]byte, len(conns)), from: map[netip.AddrPort]int{}}
}

// collect waits for that many datagrams in all, at most five seconds.
func (c *collector) collect(want int) {
	c.t.Helper()
	late := time.AfterFunc(5*time.Second, c.poller.Wake)
	defer late.Stop()
	for have := 0; have < want; {
		events, err := c.poller.Wait(Forever)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(events) == 0 {
			c.t.Fatalf("received %d datagrams of %d", have, want)
		}
		for _, e := range events {
			msgs, err := c.conns[e.Token].Recv(c.inbox)
			if err != nil {
				c.t.Fatal(err)
			}
			for _, m := range msgs {
				have += c.keep(int(e.Token), m)
			}
			c.inbox.Reset()
		}
	}
}

func (c *collector) keep(i int, m Message) int {
	count := m.Count()
	c.from[m.From] += count
	if count > 1 {
		c.runs++
	}
	for data := m.Data; ; data = data[m.Segment:] {
		n := min(len(data), m.Segment)
		c.got[i] = append(c.got[i], bytes.Clone(data[:n]))
		if n == len(data) {
			return count
		}
	}
}

// datagram returns size bytes that no other call returns.
func datagram(r *rand.Rand, size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// script adds datagrams for several destinations to a Batch in every way there
// is, and returns what each must receive.
func script(r *rand.Rand, b *Batch, c Conn, to []*Dest, steps int) [][][]byte {
	want := make([][][]byte, len(to))
	sizes := []int{0, 1, 12, 200, 1412, 1412, 1412, 1472, 9000}
	for range steps {
		d := r.IntN(len(to))
		size := sizes[r.IntN(len(sizes))]
		switch r.IntN(5) {
		case 0: // one, in one piece
			p := datagram(r, size)
			want[d] = append(want[d], p)
			b.Add(c, to[d], p)
		case 1: // a frame, header and payload apart, the last one short
			for i := range 2 + r.IntN(12) {
				p := datagram(r, size)
				if i > 9 {
					p = p[:len(p)/2]
				}
				cut := min(len(p), 12)
				want[d] = append(want[d], p)
				b.Add(c, to[d], p[:cut], nil, p[cut:])
			}
		case 2: // a run in one piece
			size = max(size, 1)
			p := datagram(r, min(60000, size*(1+r.IntN(90))-r.IntN(size)))
			b.AddRun(c, to[d], p, size)
			want[d] = append(want[d], slices.Collect(slices.Chunk(p, size))...)
		case 3: // the same one for everybody
			p := datagram(r, size)
			for i := range to {
				want[i] = append(want[i], p)
				b.Add(c, to[i], p)
			}
		case 4: // a run for everybody but one, in two parts
			fan := NewFan(c)
			for _, d := range to {
				fan.Add(d)
			}
			fan.Remove(d)
			size = max(size, 1)
			p := datagram(r, min(60000, size*(1+r.IntN(90))-r.IntN(size)))
			run := slices.Collect(slices.Chunk(p, size))
			half := r.IntN(len(to))
			b.SendFan(fan, 0, half, p, size)
			b.SendFan(fan, half, len(to)-1, p, size)
			for i := range to {
				if i != d {
					to[i].Sent(len(run), len(p))
					want[i] = append(want[i], run...)
				}
			}
		}
	}
	return want
}

func compare(t *testing.T, who string, got, want [][]byte) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("%s: datagram %d is %d bytes %.20x, want %d bytes %.20x", who, i, len(got[i]), got[i], len(want[i]), want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d datagrams, want %d", who, len(got), len(want))
	}
}

// Every way of sending and every way of receiving give the same datagrams, in
// order, from the right address.
func TestSameDatagramsInAllCombinations(t *testing.T) {
	for _, so := range allOptions {
		for _, ro := range allOptions {
			for _, ip := range loopbacks {
				t.Run(fmt.Sprintf("send %v/receive %v/%v", so, ro, ip), func(t *testing.T) {
					t.Parallel()
					sn, rn := mustOpen(t, so), mustOpen(t, ro)
					out := mustListen(t, sn, ip)
					var conns []Conn
					var dests []*Dest
					tally := new(Tally)
					for range 3 {
						c := mustListen(t, rn, ip)
						conns = append(conns, c)
						dests = append(dests, NewDest(c.Local(), tally))
					}
					col := newCollector(t, rn, conns...)
					batch := sn.NewBatch()
					r := rand.New(rand.NewPCG(1, 2))
					total := 0
					want := make([][][]byte, len(dests))
					for range 20 { // small enough for the default receive buffer of an ordinary user
						more := script(r, batch, out, dests, 2)
						batch.Flush()
						n := 0
						for i := range more {
							n += len(more[i])
							want[i] = append(want[i], more[i]...)
						}
						col.collect(n)
						total += n
					}
					for i := range want {
						compare(t, fmt.Sprintf("receiver %d", i), col.got[i], want[i])
					}
					if col.from[out.Local()] != total {
						t.Errorf("%d of %d datagrams from %v: %v", col.from[out.Local()], total, out.Local(), col.from)
					}
					s := batch.Stats
					if tally.Packets.Load() != uint64(total) || s.Datagrams != uint64(total) || s.Dropped != 0 {
						t.Errorf("tally %d, %+v, want %d datagrams", tally.Packets.Load(), s, total)
					}
					if sn.GSO != (s.Supers > 0) || sn.GSO && rn.GRO != (col.runs > 0) {
						t.Errorf("gso %v with %d runs sent, gro %v with %d runs received", sn.GSO, s.Supers, rn.GRO, col.runs)
					}
				})
			}
		}
	}
}

func TestModes(t *testing.T) {
	for _, text := range []string{"auto", "on", "off"} {
		var m Mode
		if err := m.UnmarshalText([]byte(text)); err != nil || m.String() != text {
			t.Errorf("%q read as %v, %v", text, m, err)
		}
	}
	if err := new(Mode).UnmarshalText([]byte("yes")); err == nil {
		t.Error(`"yes" is no error`)
	}
	if _, err := Open(Options{Plain: true, GSO: On}); err == nil {
		t.Error("GSO on without GSO is no error")
	}
}

func TestPortPairs(t *testing.T) {
	for _, ip := range loopbacks {
		for _, odd := range []bool{false, true} {
			for _, offsets := range [][]int{{0}, {0, 1}, {0, 1, 5}, {0, 1}} {
				p := PortPairs{Net: mustOpen(t, Options{})}
				conns, err := p.Open(ip, odd, offsets...)
				if err != nil {
					t.Fatal(err)
				}
				first := int(conns[0].Local().Port())
				if first%2 == 1 != odd || first < 10000 {
					t.Errorf("odd %v: first port %d", odd, first)
				}
				for i, c := range conns {
					if want := netip.AddrPortFrom(ip, uint16(first+offsets[i])); c.Local() != want {
						t.Errorf("offsets %v: port %d is %v, want %v", offsets, i, c.Local(), want)
					}
				}
				if _, err := p.OpenAt(ip, first, 0); err == nil {
					t.Errorf("port %d opened twice", first)
				}
				for _, c := range conns {
					if err := c.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
}

func TestPortPairsRange(t *testing.T) {
	p := PortPairs{Net: mustOpen(t, Options{}), Min: 9001, Max: 9010}
	alone := netip.MustParseAddr("127.77.0.1") // where nobody else has ports
	var conns []Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	// One port taken by a stranger spoils one of the four even pairs.
	blocker, err := p.OpenAt(alone, 9005, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns = append(conns, blocker...)
	for range 3 {
		pair, err := p.Open(alone, false, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, pair...)
		if first := pair[0].Local().Port(); first%2 != 0 || first < 9002 || first > 9008 {
			t.Errorf("pair at %d", first)
		}
	}
	if pair, err := p.Open(alone, false, 0, 1); err == nil {
		t.Errorf("a pair was found in a full range: %v", pair[0].Local())
	}
	if one, err := p.Open(alone, false, 0); err != nil || one[0].Local().Port() == 0 {
		t.Errorf("a free single port was not found: %v", err)
	} else {
		conns = append(conns, one...)
	}
	for _, offsets := range [][]int{{0, 100}, {-1}} {
		if _, err := p.Open(alone, false, offsets...); err == nil {
			t.Errorf("offsets %v in 9001-9010: no error", offsets)
		}
	}
}
