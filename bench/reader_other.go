//go:build !linux

package bench

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	portTries = 200 // to find two ports in a row
	leaveTime = 3 * time.Second
)

// udpPair is an even port and the odd one above it (RFC 3550 §11).
type udpPair struct {
	rtp, rtcp *net.UDPConn
	port      int
	dropped   uint64 // not known here
}

func openPair(ip netip.Addr) (*udpPair, error) {
	err := errors.New("no two ports in a row")
	for range portTries {
		var a, b *net.UDPConn
		if a, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))); err != nil {
			return nil, err
		}
		port := a.LocalAddr().(*net.UDPAddr).Port
		if b, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(port^1)))); err != nil {
			_ = a.Close()
			continue
		}
		if port%2 == 1 {
			a, b = b, a
		}
		return &udpPair{rtp: a, rtcp: b, port: port &^ 1}, nil
	}
	return nil, err
}

func (p *udpPair) sendRTCP(b []byte, to netip.AddrPort) {
	if to.IsValid() {
		_, _ = p.rtcp.WriteToUDPAddrPort(b, to)
	}
}

func (p *udpPair) close() {
	_ = p.rtp.Close()
	_ = p.rtcp.Close()
}

// control is an RTSP connection that nobody waits on.
type control struct{ nc net.Conn }

func takeConn(nc net.Conn) (*control, error) {
	return &control{nc}, nc.SetDeadline(time.Time{})
}

func (c *control) write(b []byte) { _, _ = c.nc.Write(b) }

func (c *control) close() { _ = c.nc.Close() }

// reader receives for its sessions, with a goroutine a socket and no time
// stamps but its own: enough to look at a server, not to measure a fast one.
type reader struct {
	window          *window
	packets, octets atomic.Uint64 // so far
	busy            atomic.Int64  // not known here
	timeless        atomic.Uint64 // packets without a kernel time stamp: all

	mu       sync.Mutex // of the sessions and all they have
	sessions []*session
	work     sync.WaitGroup
}

func newReader(_ time.Duration, _ bool, w *window) (*reader, error) { return &reader{window: w}, nil }

// add gives a session to the reader.
func (r *reader) add(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions = append(r.sessions, s)
	for _, t := range s.tracks {
		if t.pair != nil {
			r.work.Go(func() { r.receive(t.pair.rtp, func(b []byte, at int64) { t.packet(b, len(b), at, r.window) }) })
			r.work.Go(func() { r.receive(t.pair.rtcp, func(b []byte, _ int64) { s.rtcp(t, b) }) })
		}
	}
	r.work.Go(func() { r.readControl(s) })
}

func (r *reader) receive(c *net.UDPConn, take func(b []byte, at int64)) {
	b := make([]byte, 1<<16)
	for {
		n, _, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		at := time.Now().UnixNano()
		r.mu.Lock()
		r.packets.Add(1)
		r.timeless.Add(1)
		r.octets.Add(uint64(n))
		take(b[:n], at)
		r.mu.Unlock()
	}
}

func (r *reader) readControl(s *session) {
	b := make([]byte, maxText+4+1<<16)
	for {
		r.mu.Lock()
		rest := copy(b, s.rest)
		r.mu.Unlock()
		n, err := s.control.nc.Read(b[rest:])
		at := time.Now().UnixNano()
		r.mu.Lock()
		before := s.count()
		if err == nil {
			r.octets.Add(uint64(n))
			err = s.stream(b[:rest+n], at, r.window)
		}
		if s.tcp {
			r.packets.Add(s.count() - before)
		}
		if err != nil {
			s.over()
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
	}
}

// run looks after the sessions until leave is closed, then takes leave of the
// servers and closes all sockets.
func (r *reader) run(leave <-chan struct{}) {
	tick := time.NewTicker(reportEvery / 10)
	defer tick.Stop()
	for stay := true; stay; {
		select {
		case <-leave:
			stay = false
		case now := <-tick.C:
			r.each(func(s *session) { s.tend(now) })
		}
	}
	r.each((*session).leave)
	for deadline := time.Now().Add(leaveTime); time.Now().Before(deadline) && !r.allGone(); {
		<-tick.C
	}
	r.each((*session).close)
	r.work.Wait()
}

func (r *reader) each(f func(*session)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		f(s)
	}
}

func (r *reader) allGone() bool {
	all := true
	r.each(func(s *session) { all = all && s.gone })
	return all
}
