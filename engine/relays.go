package engine

import (
	"errors"
	"fmt"
	"net/netip"

	"rtspshim/engine/relay"
	"rtspshim/engine/wire"
)

// RelaySpec says between whom a Relay passes packets. Client and upstream may
// be of different IP versions.
type RelaySpec struct {
	// ClientLocal is our address as the client sees it: that of the RTSP
	// connection. Packets to the client come from it.
	ClientLocal netip.Addr

	// ClientRTP and ClientRTCP are where the client takes its packets: the
	// RTSP peer's IP address and its client_port. Nothing is sent elsewhere.
	// They may be equal (RTCP on the RTP port, RFC 5761); a ClientRTCP of zero
	// means that the client takes no RTCP.
	ClientRTP, ClientRTCP netip.AddrPort

	// UpstreamLocal is our address as the upstream sees it.
	UpstreamLocal netip.Addr

	// PortOffsets are the ports wanted towards the upstream, from the first
	// one: 0 and 1 when empty. More than two listen for RTCP on all but the
	// first; a single one takes both RTP and RTCP.
	PortOffsets []int
	OddPort     bool // the first port is to be odd
}

// OpenRelay opens a Relay for one Media. Nothing flows before its Connect.
func (e *Engine) OpenRelay(s RelaySpec) (*relay.Relay, error) {
	r, err := e.openRelay(s)
	if err != nil {
		return nil, fmt.Errorf("engine: open relay: %w", err)
	}
	return r, nil
}

func (e *Engine) openRelay(s RelaySpec) (_ *relay.Relay, err error) {
	if !s.ClientLocal.IsValid() || !s.UpstreamLocal.IsValid() || !s.ClientRTP.IsValid() {
		return nil, errors.New("an address is missing")
	}
	if len(s.PortOffsets) == 0 {
		s.PortOffsets = []int{0, 1}
	}
	conns, err := e.ports.Open(s.UpstreamLocal.Unmap(), s.OddPort, s.PortOffsets...)
	if err != nil {
		return nil, fmt.Errorf("ports towards the upstream: %w", err)
	}
	defer func() {
		if err != nil {
			closeAll(conns)
		}
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	spec := relay.Spec{
		Client:   [2]netip.AddrPort{s.ClientRTP, s.ClientRTCP},
		Upstream: conns,
		Pump:     e.pick(),
		Start:    e.start,
	}
	var r *relay.Relay
	spec.Done = func() { e.forget(r) }
	local := s.ClientLocal.Unmap()
	for i := range maxPairs {
		if spec.Server, err = e.pair(local, i); err != nil {
			return nil, err
		}
		if r, err = relay.Open(spec); err == nil {
			e.relays[r] = struct{}{}
			return r, nil
		}
		if !errors.Is(err, relay.ErrTaken) {
			return nil, err
		}
	}
	return nil, err
}

func (e *Engine) forget(r *relay.Relay) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.relays, r)
}

// pair returns the i-th server port pair on that address, opened if it is not
// yet. All addresses get the same port numbers where they are free, so that
// what a firewall has to let through is one pair.
func (e *Engine) pair(local netip.Addr, i int) (*relay.Pair, error) {
	if i < len(e.pairs[local]) {
		return e.pairs[local][i], nil
	}
	conns, err := e.serverPorts(local, i)
	if err != nil {
		return nil, fmt.Errorf("server port pair: %w", err)
	}
	p, err := relay.NewPair(conns[relay.RTP], conns[relay.RTCP], e.pick(), &e.own)
	if err != nil {
		closeAll(conns)
		return nil, err
	}
	if e.first == 0 {
		e.first = p.Port()
	}
	e.pairs[local] = append(e.pairs[local], p)
	e.log.Info("engine: server ports", "ip", local, "rtp", p.Port(), "rtcp", p.Port()+1)
	return p, nil
}

func (e *Engine) serverPorts(local netip.Addr, i int) ([]wire.Conn, error) {
	if e.first > 0 {
		conns, err := e.ports.OpenAt(local, e.first+2*i, 0, 1)
		if err == nil || e.config.UDPPort > 0 && i == 0 {
			return conns, err
		}
	}
	return e.ports.Open(local, false, 0, 1)
}

func closeAll(conns []wire.Conn) {
	for _, c := range conns {
		_ = c.Close() // nothing was sent through them
	}
}
