package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
)

// Listen binds a Conn to local; port 0 lets the system choose.
func (n *Net) Listen(local netip.AddrPort) (Conn, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	listen := listenFast
	if n.Plain {
		listen = func(local netip.AddrPort, n *Net) (Conn, error) { return listenPlain(local, n.buffer) }
	}
	c, err := listen(local, n)
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %v: %w", local, err)
	}
	return c, nil
}

// ErrNoPorts says that no free ports were found in a bounded number of tries.
var ErrNoPorts = errors.New("no free ports")

// PortPairs opens Conns on neighbouring ports, as RTP and RTCP want them
// (RFC 3550 §11).
type PortPairs struct {
	Net      *Net
	Min, Max int // ports to choose from, both included; 0 means 10000 and 65535

	mu   sync.Mutex
	next int // where the next search starts; 0 before the first
}

const portTries = 1000

// Open binds one Conn on local for each offset: first+offsets[0],
// first+offsets[1] and so on, where first is a number of the range, even or
// odd as asked. The offsets are usually 0 and 1.
func (p *PortPairs) Open(local netip.Addr, odd bool, offsets ...int) ([]Conn, error) {
	low, high := p.Min, p.Max
	if low == 0 {
		low = 10000
	}
	if high == 0 {
		high = 65535
	}
	top := high
	for _, o := range offsets {
		if o < 0 {
			return nil, fmt.Errorf("port offset %d: negative", o)
		}
		high = min(high, top-o)
	}
	if odd != (low%2 == 1) {
		low++
	}
	count := (high-low)/2 + 1 // candidates
	if high < low {
		return nil, fmt.Errorf("%w: the range %d-%d cannot hold offsets %v", ErrNoPorts, low, top, offsets)
	}
	var last error
	for range min(count, portTries) {
		conns, err := p.OpenAt(local, low+2*(p.step()%count), offsets...)
		if err == nil {
			return conns, nil
		}
		if last = err; !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
		if count > portTries {
			p.jump()
		}
	}
	return nil, fmt.Errorf("%w on %v: %w", ErrNoPorts, local, last)
}

// step returns a number one higher than the last one. It starts anywhere, so
// that late packets for an earlier run of the program do not hit this one.
func (p *PortPairs) step() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == 0 {
		p.next = 1 + rand.IntN(1<<15)
	}
	p.next++
	return p.next
}

// jump goes on anywhere else: taken ports come in rows.
func (p *PortPairs) jump() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = 1 + rand.IntN(1<<15)
}

// OpenAt binds one Conn on local for each offset from the given first port.
func (p *PortPairs) OpenAt(local netip.Addr, first int, offsets ...int) ([]Conn, error) {
	conns := make([]Conn, 0, len(offsets))
	for _, o := range offsets {
		port := first + o
		err := fmt.Errorf("port %d: out of range", port)
		if port > 0 && port <= 65535 {
			var c Conn
			if c, err = p.Net.Listen(netip.AddrPortFrom(local, uint16(port))); err == nil {
				conns = append(conns, c)
				continue
			}
		}
		for _, c := range conns {
			err = errors.Join(err, c.Close())
		}
		return nil, err
	}
	return conns, nil
}
