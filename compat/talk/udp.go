package talk

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// pair is the client's two UDP ports of one track, the even one for RTP
// (RFC 3550 11).
type pair struct {
	rtp, rtcp *net.UDPConn
	port      int
	readers   sync.WaitGroup

	track *Track // nil until the SETUP is answered; guarded by talk.mutex
	early *Track // what came before that
}

// Ports are taken in turn, below those that systems give out by themselves: a
// server that goes on sending to a session nobody ended must not be heard in
// another conversation.
const (
	lowPort  = 10000
	portStep = 10 // a pair and odd ports near it
	portRoom = 22000 / portStep
)

var nextPort atomic.Uint32

func init() { nextPort.Store(rand.Uint32N(portRoom)) }

func (t *talk) newPair(local net.IP) (*pair, error) {
	for range 500 {
		port := lowPort + portStep*int(nextPort.Add(1)%portRoom)
		a, err := net.ListenUDP("udp", &net.UDPAddr{IP: local, Port: port})
		if err != nil {
			continue
		}
		b, err := net.ListenUDP("udp", &net.UDPAddr{IP: local, Port: port + 1})
		if err != nil {
			_ = a.Close()
			continue
		}
		_ = a.SetReadBuffer(4 << 20)
		p := &pair{rtp: a, rtcp: b, port: port, early: &Track{}}
		p.readers.Add(2)
		go p.reader(t, a, (*Track).addRTP)
		go p.reader(t, b, (*Track).addRTCP)
		t.recording.Ports = append(t.recording.Ports, port)
		return p, nil
	}
	return nil, fmt.Errorf("no free pair of UDP ports")
}

type adder func(t *Track, raw []byte, at duration, order int, from uint16)

// reader files datagrams until the socket is closed.
func (p *pair) reader(t *talk, socket *net.UDPConn, add adder) {
	defer p.readers.Done()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := socket.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		at := t.now()
		t.mutex.Lock()
		track := p.track
		if track == nil {
			track = p.early
		}
		if from.Addr().Unmap() == t.server {
			add(track, buf[:n], at, 0, from.Port())
		} else {
			track.Odd++
		}
		t.mutex.Unlock()
	}
}

// give names the track whose packets come here.
func (p *pair) give(t *talk, track *Track) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	track.Packets, track.Reports, track.Odd = p.early.Packets, p.early.Reports, p.early.Odd
	p.track = track
}

func (p *pair) close() {
	_ = p.rtp.Close()
	_ = p.rtcp.Close()
	p.readers.Wait()
}

// to is where the server wants packets of the track.
func (t *talk) to(track *Track, rtcp int) (netip.AddrPort, bool) {
	if !track.Known || track.Transport.ServerPorts == nil {
		return netip.AddrPort{}, false
	}
	port := track.Transport.ServerPorts[rtcp]
	return netip.AddrPortFrom(t.server, uint16(port)), port > 0 && port < 1<<16
}
