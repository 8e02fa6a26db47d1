package relay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/engine/wire"
)

// Pair is one server port pair, shared by many Relays. It finds the Relay a
// client's packet belongs to by where the packet came from:
//
//  1. exactly the address and port of a Relay's client: that Relay;
//  2. otherwise, if just one Relay has a client with that IP address that was
//     not yet heard from its own port: that one. So a publisher or hole-puncher
//     behind a NAT that maps ports gets through. Packets for the client still
//     go only where its SETUP said;
//  3. otherwise the packet is dropped and counted.
type Pair struct {
	conns   [2]wire.Conn
	pump    Pump
	own     *Own
	unknown atomic.Uint64

	mu      sync.Mutex
	exact   [2]map[netip.AddrPort]*entry
	unheard [2]map[netip.Addr][]*entry
}

// Own is the addresses of all Pairs of an engine. What comes from one of them to
// a Relay's port towards the upstream was sent by a Relay: with client, upstream
// and engine on one IP address, a client that names such a port as its own would
// have the packet go round for ever. The zero Own is ready for use.
type Own struct {
	set atomic.Pointer[map[netip.AddrPort]struct{}]
}

func (o *Own) has(a netip.AddrPort) bool {
	set := o.set.Load()
	if set == nil {
		return false
	}
	_, has := (*set)[a]
	return has
}

// add is called by one goroutine at a time.
func (o *Own) add(a netip.AddrPort) {
	next := map[netip.AddrPort]struct{}{a: {}}
	if old := o.set.Load(); old != nil {
		maps.Copy(next, *old)
	}
	o.set.Store(&next)
}

// entry is a Relay's registration.
type entry struct {
	r     *Relay
	addrs [2]netip.AddrPort
	known [2]bool // a packet came from exactly that address
}

// NewPair makes a Pair of two bound sockets, which it closes in the end, has the
// pump serve it and adds it to own. Not to be called by two goroutines at once.
func NewPair(rtp, rtcp wire.Conn, p Pump, own *Own) (*Pair, error) {
	pair := &Pair{conns: [2]wire.Conn{rtp, rtcp}, pump: p, own: own}
	for i := range pair.conns {
		pair.exact[i] = map[netip.AddrPort]*entry{}
		pair.unheard[i] = map[netip.Addr][]*entry{}
	}
	for i, c := range pair.conns {
		if err := p.Attach(c, &serverSide{pair: pair, kind: i}); err != nil {
			p.Detach(pair.conns[:i]...)
			return nil, fmt.Errorf("server port pair: %w", err)
		}
		own.add(c.Local())
	}
	return pair, nil
}

// Port is the first port of the pair.
func (p *Pair) Port() int { return int(p.conns[RTP].Local().Port()) }

// Unknown is the number of packets that belonged to no Relay.
func (p *Pair) Unknown() uint64 { return p.unknown.Load() }

// Lost is the number of datagrams that full receive buffers lost.
func (p *Pair) Lost() uint64 { return p.conns[RTP].Lost() + p.conns[RTCP].Lost() }

// Close closes the sockets. All Relays of the Pair must be closed.
func (p *Pair) Close() error {
	p.pump.Detach(p.conns[:]...)
	if err := p.conns[RTP].Close(); err != nil {
		_ = p.conns[RTCP].Close()
		return err
	}
	return p.conns[RTCP].Close()
}

// register gives an entry the addresses it is found by, in place of those it
// had; on error it keeps them.
func (p *Pair) register(e *entry, addrs [2]netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, a := range addrs {
		if other := p.exact[i][a]; other != nil && other != e {
			return fmt.Errorf("%v: %w", a, ErrTaken)
		}
	}
	p.remove(e)
	e.addrs, e.known = addrs, [2]bool{}
	for i, a := range addrs {
		if reachable(a) {
			p.exact[i][a] = e
			p.unheard[i][a.Addr()] = append(p.unheard[i][a.Addr()], e)
		}
	}
	return nil
}

func (p *Pair) unregister(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(e)
}

func (p *Pair) remove(e *entry) {
	for i, a := range e.addrs {
		if p.exact[i][a] == e {
			delete(p.exact[i], a)
			p.heard(e, i)
		}
	}
}

// heard takes an entry off the list of those whose client has not been heard.
func (p *Pair) heard(e *entry, kind int) {
	ip := e.addrs[kind].Addr()
	rest := p.unheard[kind][ip]
	if i := slices.Index(rest, e); i >= 0 {
		rest = slices.Delete(rest, i, i+1)
	}
	if len(rest) == 0 {
		delete(p.unheard[kind], ip)
		return
	}
	p.unheard[kind][ip] = rest
}

// find returns the Relay a packet from that address belongs to, or nil.
func (p *Pair) find(from netip.AddrPort, kind int) *Relay {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.exact[kind][from]; e != nil {
		if !e.known[kind] {
			e.known[kind] = true
			p.heard(e, kind)
		}
		return e.r
	}
	if maybe := p.unheard[kind][from.Addr()]; len(maybe) == 1 {
		return maybe[0].r
	}
	return nil
}

// serverSide handles what arrives on one of the two sockets.
type serverSide struct {
	pair  *Pair
	kind  int
	shown [][]byte // for Relay.show to use
}

func (s *serverSide) Receive(msgs []wire.Message, out *wire.Batch, now time.Time) {
	for len(msgs) > 0 {
		n := 1 // messages from the same sender
		for n < len(msgs) && msgs[n].From == msgs[0].From {
			n++
		}
		if r := s.pair.find(msgs[0].From, s.kind); r != nil {
			r.fromClient(s, msgs[:n], out, now)
		} else {
			s.pair.unknown.Add(uint64(count(msgs[:n])))
		}
		msgs = msgs[n:]
	}
}

// Failed counts an ICMP error at the Relay whose client it came from.
func (s *serverSide) Failed(to netip.AddrPort, _ error) {
	s.pair.mu.Lock()
	defer s.pair.mu.Unlock()
	if e := s.pair.exact[s.kind][to]; e != nil {
		e.r.up.failures.Add(1)
	}
}
