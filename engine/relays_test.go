package engine_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/relay"
)

func TestRelayPassesBothWays(t *testing.T) {
	for _, m := range modes {
		for _, ips := range [][2]netip.Addr{{v4, v4}, {v4, v6}, {v6, v4}, {v6, v6}} {
			t.Run(fmt.Sprintf("%v/%v-%v", m, ips[0], ips[1]), func(t *testing.T) {
				e := open(t, m.config())
				a, b := newTrip(t, e, ips[0], ips[1]), newTrip(t, e, ips[0], ips[1])
				if a.toUpstream != b.toUpstream {
					t.Errorf("two relays have the server ports %v and %v", a.toUpstream, b.toUpstream)
				}
				for _, r := range []*trip{a, b} {
					for kind := range 2 {
						for seq, size := range []int{12, 1400, 1400, 0, 9000, 1} {
							p := rtp(seq, size)[:size]
							r.upstream.send(kind, r.toClient[kind], p)
							r.client.want(kind, p, r.toUpstream[kind])
							r.client.send(kind, r.toUpstream[kind], p)
							r.upstream.want(kind, p, r.toClient[kind])
						}
					}
				}
			})
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	// On loopback every address of 127/8 is ours: another IP address is easily had.
	elsewhere := netip.MustParseAddr("127.0.0.9")
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			e := open(t, m.config())
			r := newTrip(t, e, v4, v4)
			stranger, neighbour := newPeer(t, elsewhere), newPeer(t, v4)

			// Towards the client: by the upstream's IP address, from any port.
			stranger.send(0, r.toClient[0], rtp(1, 100))
			stranger.send(1, r.toClient[1], rtp(2, 100))
			neighbour.send(0, r.toClient[0], rtp(3, 100))
			r.client.want(0, rtp(3, 100), r.toUpstream[0])
			neighbour.send(1, r.toClient[1], rtp(4, 100))
			r.client.want(1, rtp(4, 100), r.toUpstream[1])

			// Towards the upstream: a stranger nowhere; somebody with the client's
			// IP address as long as the client itself has not spoken.
			stranger.send(0, r.toUpstream[0], rtp(5, 100))
			neighbour.send(0, r.toUpstream[0], rtp(6, 100))
			r.upstream.want(0, rtp(6, 100), r.toClient[0])
			r.upstream.send(0, r.toClient[0], rtp(7, 100))
			r.client.want(0, rtp(7, 100), r.toUpstream[0]) // media stay where they were
			neighbour.nothing(0)
			r.client.send(0, r.toUpstream[0], rtp(8, 100))
			r.upstream.want(0, rtp(8, 100), r.toClient[0])
			neighbour.send(0, r.toUpstream[0], rtp(9, 100))
			neighbour.send(1, r.toUpstream[1], rtp(10, 100)) // RTCP: not heard from yet
			r.upstream.want(1, rtp(10, 100), r.toClient[1])

			settle(t, func() bool { return e.ServerStats().Unknown == 2 && r.Stats().FromUpstream.Foreign == 2 })
			r.upstream.nothing(0)
			r.client.nothing(0)
			r.client.nothing(1)
		})
	}
}

func TestTwoBehindOneAddressAreAmbiguous(t *testing.T) {
	e := open(t, engine.Config{})
	a, b := newTrip(t, e, v4, v4), newTrip(t, e, v4, v4)
	other := newPeer(t, v4)
	other.send(0, a.toUpstream[0], rtp(1, 50))
	settle(t, func() bool { return e.ServerStats().Unknown == 1 })
	a.client.send(0, a.toUpstream[0], rtp(2, 50))
	a.upstream.want(0, rtp(2, 50), a.toClient[0])
	other.send(0, a.toUpstream[0], rtp(3, 50)) // now only b can be meant
	b.upstream.want(0, rtp(3, 50), b.toClient[0])
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	other.send(0, a.toUpstream[0], rtp(4, 50))
	settle(t, func() bool { return e.ServerStats().Unknown == 2 })
	a.upstream.nothing(0)
}

func TestTakenAddressGetsASecondPair(t *testing.T) {
	e := open(t, engine.Config{})
	r := newTrip(t, e, v4, v4)
	spec := engine.RelaySpec{ClientLocal: v4, ClientRTP: r.client.addr(0), ClientRTCP: r.client.addr(1), UpstreamLocal: v4}
	second, err := e.OpenRelay(spec)
	if err != nil {
		t.Fatal(err)
	}
	up := newPeer(t, v4)
	if err := second.Connect(up.addr(0), up.addr(1)); err != nil {
		t.Fatal(err)
	}
	port, _ := second.ServerPorts()
	if first, _ := r.ServerPorts(); port == first {
		t.Fatalf("both relays have server port %d", port)
	}
	// The client speaks to both from one port; each upstream hears its own.
	for i := range 3 {
		r.client.send(0, r.toUpstream[0], rtp(i, 60))
		r.client.send(0, netip.AddrPortFrom(v4, uint16(port)), rtp(100+i, 60))
		r.upstream.want(0, rtp(i, 60), r.toClient[0])
		up.want(0, rtp(100+i, 60), netip.AddrPortFrom(v4, uint16(second.UpstreamPort())))
	}
	// Once the first is gone, its place on the first pair is free.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := e.OpenRelay(spec)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := third.ServerPorts(); netip.AddrPortFrom(v4, uint16(got)) != r.toUpstream[0] {
		t.Errorf("third relay at port %d, want %v", got, r.toUpstream[0])
	}
}

func TestSetClient(t *testing.T) {
	e := open(t, engine.Config{})
	r, other := newTrip(t, e, v4, v4), newTrip(t, e, v4, v4)
	moved := newPeer(t, v4)
	if err := r.SetClient(moved.addr(0), moved.addr(1)); err != nil {
		t.Fatal(err)
	}
	r.upstream.send(0, r.toClient[0], rtp(1, 80))
	moved.want(0, rtp(1, 80), r.toUpstream[0])
	moved.send(1, r.toUpstream[1], rtp(2, 80))
	r.upstream.want(1, rtp(2, 80), r.toClient[1])
	r.client.nothing(0)

	for _, test := range []struct {
		name string
		rtp  netip.AddrPort
		want error
	}{
		{"another's", other.client.addr(0), relay.ErrTaken},
		{"a third party's", netip.MustParseAddrPort("127.0.0.9:5000"), relay.ErrThirdParty},
	} {
		if err := r.SetClient(test.rtp, moved.addr(1)); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	if err := r.SetClient(moved.addr(0), netip.MustParseAddrPort("127.0.0.9:5000")); !errors.Is(err, relay.ErrThirdParty) {
		t.Errorf("RTCP to a third party: %v", err)
	}
	r.upstream.send(0, r.toClient[0], rtp(3, 80))
	moved.want(0, rtp(3, 80), r.toUpstream[0]) // as before the errors
}

func TestRTCPOnTheRTPPort(t *testing.T) {
	e := open(t, engine.Config{})
	client, upstream := newPeer(t, v4), newPeer(t, v4)
	r, err := e.OpenRelay(engine.RelaySpec{
		ClientLocal: v4, ClientRTP: client.addr(0), ClientRTCP: client.addr(0), UpstreamLocal: v4, PortOffsets: []int{0},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Connect(upstream.addr(0), upstream.addr(0)); err != nil {
		t.Fatal(err)
	}
	p, _ := r.ServerPorts()
	to := netip.AddrPortFrom(v4, uint16(p))
	up := netip.AddrPortFrom(v4, uint16(r.UpstreamPort()))
	for _, packet := range [][]byte{rtp(1, 100), rtcpPacket(201, 1), rtcpPacket(200, 6)} {
		client.send(0, to, packet)
		upstream.want(0, packet, up)
		upstream.send(0, up, packet)
		client.want(0, packet, to)
	}
	bye := append(rtcpPacket(201, 1), rtcpPacket(203, 1)...)
	client.send(0, to, bye)
	upstream.want(0, bye, up)
	if s := r.Stats(); !s.FromClient.Bye || s.FromUpstream.Bye {
		t.Errorf("BYE from client %v, from upstream %v, want true, false", s.FromClient.Bye, s.FromUpstream.Bye)
	}
}

// rtcp makes one RTCP packet of that type and number of 32-bit words after the first.
func rtcpPacket(kind byte, words int) []byte {
	p := make([]byte, 4+4*words)
	p[0], p[1] = 0x81, kind
	binary.BigEndian.PutUint16(p[2:], uint16(words))
	return p
}

func TestPortsTowardsTheUpstream(t *testing.T) {
	e := open(t, engine.Config{})
	client, upstream := newPeer(t, v4), newPeer(t, v4)
	r, err := e.OpenRelay(engine.RelaySpec{
		ClientLocal: v4, ClientRTP: client.addr(0), ClientRTCP: client.addr(1),
		UpstreamLocal: v4, OddPort: true, PortOffsets: []int{0, 1, 5},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.UpstreamPort()%2 != 1 {
		t.Errorf("port %d is not odd", r.UpstreamPort())
	}
	at := func(offset int) netip.AddrPort { return netip.AddrPortFrom(v4, uint16(r.UpstreamPort()+offset)) }

	// What comes before Connect waits for it.
	upstream.send(0, at(0), rtp(1, 99))
	if err := r.Connect(upstream.addr(0), upstream.addr(1)); err != nil {
		t.Fatal(err)
	}
	rtpPort, rtcpPort := r.ServerPorts()
	client.want(0, rtp(1, 99), netip.AddrPortFrom(v4, uint16(rtpPort)))

	// RTCP leaves by the port the upstream's RTCP comes to.
	for _, offset := range []int{1, 5, 1} {
		upstream.send(1, at(offset), rtcpPacket(200, 6))
		client.want(1, rtcpPacket(200, 6), netip.AddrPortFrom(v4, uint16(rtcpPort)))
		client.send(1, netip.AddrPortFrom(v4, uint16(rtcpPort)), rtcpPacket(201, 1))
		upstream.want(1, rtcpPacket(201, 1), at(offset))
	}
}

func TestObserveAndMute(t *testing.T) {
	e := open(t, engine.Config{Gather: time.Millisecond})
	r := newTrip(t, e, v4, v4)
	seen := make(chan string, 100)
	r.Observe(func(b relay.Burst) {
		for _, p := range b.Packets {
			seen <- fmt.Sprintf("client=%v rtcp=%v %d bytes", b.FromClient, b.RTCP, len(p))
			if len(p) == 777 {
				r.Mute(true)
			}
		}
	})
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("observed %q, want %q", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("not observed: %q", want)
		}
	}
	r.upstream.send(0, r.toClient[0], rtp(1, 500))
	expect("client=false rtcp=false 500 bytes")
	r.client.want(0, rtp(1, 500), r.toUpstream[0])
	r.client.send(1, r.toUpstream[1], rtcpPacket(201, 7))
	expect("client=true rtcp=true 32 bytes")
	r.upstream.want(1, rtcpPacket(201, 7), r.toClient[1])

	r.upstream.send(0, r.toClient[0], rtp(2, 777)) // mutes itself
	expect("client=false rtcp=false 777 bytes")
	r.upstream.send(0, r.toClient[0], rtp(3, 400))
	expect("client=false rtcp=false 400 bytes")
	r.upstream.send(1, r.toClient[1], rtcpPacket(200, 6))
	expect("client=false rtcp=true 28 bytes")
	r.Sync()
	r.client.nothing(1)
	r.client.nothing(0)
	r.upstream.send(1, r.toClient[1], rtcpPacket(203, 1))
	expect("client=false rtcp=true 8 bytes")
	r.client.want(1, rtcpPacket(203, 1), r.toUpstream[1])
	r.client.send(1, r.toUpstream[1], rtcpPacket(201, 7)) // reports of the client's still flow
	expect("client=true rtcp=true 32 bytes")
	r.upstream.want(1, rtcpPacket(201, 7), r.toClient[1])

	r.Mute(false)
	r.Observe(nil)
	r.upstream.send(0, r.toClient[0], rtp(4, 300))
	r.client.want(0, rtp(4, 300), r.toUpstream[0])
	if len(seen) > 0 {
		t.Errorf("observed %q after the end", <-seen)
	}
}

func TestStats(t *testing.T) {
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			before := time.Now()
			e := open(t, m.config())
			r := newTrip(t, e, v4, v4)
			if s := r.Stats(); s != (relay.Stats{}) {
				t.Errorf("a new relay has %+v", s)
			}
			for i := range 10 {
				r.upstream.send(0, r.toClient[0], rtp(i, 1000))
				r.client.want(0, rtp(i, 1000), netip.AddrPort{})
			}
			bye := append(rtcpPacket(200, 6), rtcpPacket(203, 1)...)
			r.upstream.send(1, r.toClient[1], bye)
			r.client.want(1, bye, netip.AddrPort{})
			r.client.send(1, r.toUpstream[1], rtcpPacket(201, 1))
			r.upstream.want(1, rtcpPacket(201, 1), netip.AddrPort{})
			settle(t, func() bool { return r.Stats().FromClient.Sent == 1 && r.Stats().FromUpstream.Sent == 11 })
			s := r.Stats()
			up, down := s.FromUpstream, s.FromClient
			if up.Received != 11 || up.ReceivedBytes != 10036 || up.SentBytes != 10036 || up.Dropped+up.Foreign+up.Lost != 0 || !up.Bye {
				t.Errorf("from upstream %+v", up)
			}
			if down.Received != 1 || down.ReceivedBytes != 8 || down.SentBytes != 8 || down.Bye {
				t.Errorf("from client %+v", down)
			}
			for _, last := range []time.Time{up.Last, down.Last} {
				if last.Before(before) || last.After(time.Now()) {
					t.Errorf("last packet at %v, not since %v", last, before)
				}
			}
			var in, out uint64
			for _, p := range e.PumpStats() {
				in, out = in+p.Packets, out+p.Out.Datagrams
			}
			settle(t, func() bool {
				in, out = 0, 0
				for _, p := range e.PumpStats() {
					in, out = in+p.Packets, out+p.Out.Datagrams
				}
				return in == 12 && out == 12
			})
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := engine.Open(engine.Config{UDPPort: 6971}); err == nil {
		t.Error("an odd server port is no error")
	}
	e := open(t, engine.Config{})
	good := engine.RelaySpec{ClientLocal: v4, ClientRTP: netip.AddrPortFrom(v4, 5000), ClientRTCP: netip.AddrPortFrom(v4, 5001), UpstreamLocal: v4}
	for name, change := range map[string]func(*engine.RelaySpec){
		"no client":                 func(s *engine.RelaySpec) { s.ClientRTP = netip.AddrPort{} },
		"no local address":          func(s *engine.RelaySpec) { s.ClientLocal = netip.Addr{} },
		"no upstream address":       func(s *engine.RelaySpec) { s.UpstreamLocal = netip.Addr{} },
		"not our address":           func(s *engine.RelaySpec) { s.ClientLocal = netip.MustParseAddr("192.0.2.1") },
		"IPv6 client, IPv4 address": func(s *engine.RelaySpec) { s.ClientRTP = netip.AddrPortFrom(v6, 5000) },
		"RTCP to a third party":     func(s *engine.RelaySpec) { s.ClientRTCP = netip.MustParseAddrPort("127.0.0.2:5001") },
		"offset out of range":       func(s *engine.RelaySpec) { s.PortOffsets = []int{0, 70000} },
	} {
		spec := good
		change(&spec)
		if r, err := e.OpenRelay(spec); err == nil {
			t.Errorf("%s: no error, server ports %v", name, r)
		}
	}
	r, err := e.OpenRelay(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Connect(netip.AddrPortFrom(v6, 1), netip.AddrPortFrom(v6, 2)); err == nil {
		t.Error("an IPv6 upstream from an IPv4 socket is no error")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.OpenRelay(good); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("open after close: %v", err)
	}
	if err := r.Connect(netip.AddrPortFrom(v4, 1), netip.AddrPortFrom(v4, 2)); !errors.Is(err, relay.ErrClosed) {
		t.Errorf("connect after close: %v", err)
	}
}

func TestServerPortPerAddress(t *testing.T) {
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 77, 0, 2)})
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port &^ 1
	_ = free.Close()
	e := open(t, engine.Config{UDPPort: port})
	client := newPeer(t, v4)
	for _, local := range []string{"127.77.0.2", "127.77.0.3"} {
		for second := range 2 {
			r, err := e.OpenRelay(engine.RelaySpec{
				ClientLocal: netip.MustParseAddr(local), ClientRTP: client.addr(0), ClientRTCP: client.addr(1), UpstreamLocal: v4,
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			a, b := r.ServerPorts()
			if want := port + 2*second; a != want || b != want+1 {
				t.Errorf("%s: server ports %d-%d, want %d", local, a, b, want)
			}
			up := newPeer(t, v4)
			if err := r.Connect(up.addr(0), up.addr(1)); err != nil {
				t.Fatal(err)
			}
			up.send(0, netip.AddrPortFrom(v4, uint16(r.UpstreamPort())), rtp(1, 50))
			client.want(0, rtp(1, 50), netip.AddrPortFrom(netip.MustParseAddr(local), uint16(a)))
		}
	}
	taken := listen(t, netip.MustParseAddr("127.77.0.4"))
	p := int(addr(taken).Port()) &^ 1
	e = open(t, engine.Config{UDPPort: p})
	if _, err := e.OpenRelay(engine.RelaySpec{
		ClientLocal: netip.MustParseAddr("127.77.0.4"), ClientRTP: client.addr(0), ClientRTCP: client.addr(1), UpstreamLocal: v4,
	}); err == nil {
		t.Errorf("the configured server port %d is taken, no error", p)
	}
}

// A client that is gone makes itself heard by ICMP. It is counted, and its
// neighbours on the same server port lose nothing.
func TestUnreachableClient(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: elsewhere unconnected sockets are not told of ICMP errors")
	}
	e := open(t, engine.Config{Gather: time.Millisecond})
	alive, dead := newTrip(t, e, v4, v4), newTrip(t, e, v4, v4)
	_ = dead.client.conn[0].Close()
	_ = dead.upstream.conn[1].Close()
	for i := range 200 {
		dead.upstream.send(0, dead.toClient[0], rtp(i, 900))
		alive.upstream.send(0, alive.toClient[0], rtp(i, 900))
	}
	dead.client.send(1, dead.toUpstream[1], rtcpPacket(201, 1))
	for i := range 200 {
		alive.client.want(0, rtp(i, 900), alive.toUpstream[0])
	}
	settle(t, func() bool {
		s := dead.Stats()
		return s.FromUpstream.Unreachable > 0 && s.FromClient.Unreachable == 1
	})
	if s := alive.Stats(); s.FromUpstream.Unreachable != 0 || s.FromUpstream.Sent != 200 || s.FromUpstream.Dropped != 0 {
		t.Errorf("the neighbour's stats: %+v", s.FromUpstream)
	}
	if s := dead.Stats(); s.FromUpstream.Received != 200 || s.FromUpstream.Sent != 200 {
		t.Errorf("the dead client's stats: %+v", s.FromUpstream)
	}
}

// A client that names the relay's own ports as its client_port gets nothing,
// instead of a packet that goes round for ever.
func TestOwnPacketsDoNotGoRound(t *testing.T) {
	e := open(t, engine.Config{})
	r, other := newTrip(t, e, v4, v4), newTrip(t, e, v4, v4)
	if err := r.SetClient(r.toClient[0], r.toClient[1]); err != nil {
		t.Fatal(err)
	}
	for kind := range 2 {
		r.upstream.send(kind, r.toClient[kind], rtp(1, 100))
	}
	settle(t, func() bool { return r.Stats().FromUpstream.Foreign == 2 })
	if err := r.SetClient(other.toClient[0], other.toClient[1]); err != nil { // another's are no better
		t.Fatal(err)
	}
	r.upstream.send(0, r.toClient[0], rtp(2, 100))
	settle(t, func() bool { return other.Stats().FromUpstream.Foreign == 1 })
	other.client.nothing(0)
	if s := r.Stats().FromUpstream; s.Received != 3 || s.Foreign != 2 {
		t.Errorf("%+v, want 3 received and 2 refused", s)
	}
}
