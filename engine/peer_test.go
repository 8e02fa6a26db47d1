package engine_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/relay"
	"rtspshim/engine/wire"
)

var (
	v4 = netip.MustParseAddr("127.0.0.1")
	v6 = netip.MustParseAddr("::1")
)

// peer is a client or an upstream: two plain sockets that know nothing of ours.
type peer struct {
	t    testing.TB
	conn [2]*net.UDPConn
}

func newPeer(t testing.TB, ip netip.Addr) *peer {
	t.Helper()
	p := &peer{t: t}
	for i := range p.conn {
		p.conn[i] = listen(t, ip)
	}
	return p
}

func listen(t testing.TB, ip netip.Addr) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadBuffer(4 << 20)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func addr(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func (p *peer) addr(kind int) netip.AddrPort { return addr(p.conn[kind]) }

func (p *peer) send(kind int, to netip.AddrPort, packet []byte) {
	p.t.Helper()
	if _, err := p.conn[kind].WriteToUDPAddrPort(packet, to); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) want(kind int, packet []byte, from netip.AddrPort) {
	p.t.Helper()
	got, at := recv(p.t, p.conn[kind])
	if !bytes.Equal(got, packet) {
		p.t.Fatalf("received %d bytes %.40x, want %d bytes %.40x", len(got), got, len(packet), packet)
	}
	if from.IsValid() && at != from {
		p.t.Fatalf("received from %v, want %v", at, from)
	}
}

// nothing checks that none of the packets sent so far went to that socket: a
// marker sent there last must be the first to arrive.
func (p *peer) nothing(kind int) {
	p.t.Helper()
	mark := []byte("nothing before this")
	p.send(kind, p.addr(kind), mark)
	p.want(kind, mark, p.addr(kind))
}

func recv(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 64<<10)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// rtp makes an RTP packet of that many bytes whose content depends on seq.
func rtp(seq, size int) []byte {
	p := make([]byte, max(size, 12))
	p[0], p[1] = 0x80, 96
	binary.BigEndian.PutUint16(p[2:], uint16(seq))
	binary.BigEndian.PutUint32(p[8:], 0x5eed)
	for i := 12; i < len(p); i++ {
		p[i] = byte(i*7 + seq*31)
	}
	return p
}

func open(t testing.TB, c engine.Config) *engine.Engine {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Memory = cmp.Or(c.Memory, 16<<20)
	e, err := engine.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// trip is a Relay with both its ends.
type trip struct {
	*relay.Relay
	client, upstream *peer
	toClient         [2]netip.AddrPort // where the upstream sends
	toUpstream       [2]netip.AddrPort // where the client sends
}

func newTrip(t testing.TB, e *engine.Engine, clientIP, upstreamIP netip.Addr) *trip {
	t.Helper()
	r := &trip{client: newPeer(t, clientIP), upstream: newPeer(t, upstreamIP)}
	var err error
	r.Relay, err = e.OpenRelay(engine.RelaySpec{
		ClientLocal: clientIP, ClientRTP: r.client.addr(0), ClientRTCP: r.client.addr(1), UpstreamLocal: upstreamIP,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	rtpPort, rtcpPort := r.ServerPorts()
	for i := range 2 {
		r.toClient[i] = netip.AddrPortFrom(upstreamIP, uint16(r.UpstreamPort()+i))
		r.toUpstream[i] = netip.AddrPortFrom(clientIP, uint16([]int{rtpPort, rtcpPort}[i]))
	}
	if err := r.Connect(r.upstream.addr(0), r.upstream.addr(1)); err != nil {
		t.Fatal(err)
	}
	return r
}

// mode is one way of talking to the kernel.
type mode struct {
	gso, gro wire.Mode
	plain    bool
	gather   time.Duration
}

var modes = []mode{
	{gso: wire.Auto, gro: wire.Auto, gather: time.Millisecond},
	{gso: wire.Auto, gro: wire.Off, gather: time.Millisecond},
	{gso: wire.Off, gro: wire.Auto, gather: time.Millisecond},
	{gso: wire.Off, gro: wire.Off},
	{plain: true},
	{plain: true, gather: time.Millisecond},
}

func (m mode) String() string {
	return fmt.Sprintf("gso=%v,gro=%v,plain=%v,gather=%v", m.gso, m.gro, m.plain, m.gather)
}

func (m mode) config() engine.Config {
	return engine.Config{GSO: m.gso, GRO: m.gro, Plain: m.plain, Gather: m.gather, Pumps: 2}
}

// settle waits for counters, which nothing announces, to get where they should.
func settle(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("the counters did not get there")
		}
	}
}
