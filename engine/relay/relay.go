// Package relay passes the packets of one Media of one Session between the
// upstream and the client, both ways, unread.
//
//	upstream RTP  ──▶ P   ┐           ┌ shared RTP port  ──▶ client RTP
//	upstream RTCP ──▶ P+1 ┘   Relay   └ shared RTCP port ──▶ client RTCP
//
// Towards the upstream every Relay has ports of its own; towards the clients
// many Relays share one Pair, which tells them apart by the client's address.
// A packet is passed on by the socket it came in on, never by what is in it, so
// SRTP, RTP and RTCP on one port, hole-punching dummies and a publisher's media
// all take the same path.
package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/engine/wire"
)

// RTP and RTCP number the sockets of a pair.
const (
	RTP  = 0
	RTCP = 1
)

var (
	// ErrTaken says that another Relay of the Pair has that client address.
	ErrTaken = errors.New("client address is taken")
	// ErrThirdParty refuses packets for anybody but the RTSP peer.
	ErrThirdParty = errors.New("not the address of the RTSP peer")
	// ErrClosed is returned by methods of a closed Relay.
	ErrClosed = errors.New("relay is closed")
)

// Pump is what a Relay needs of the thread that serves its sockets.
type Pump interface {
	// Attach starts watching c for h.
	Attach(c wire.Conn, h wire.Handler) error
	// Detach stops watching and returns when the pump neither runs one of
	// their handlers nor holds a datagram for them.
	Detach(conns ...wire.Conn)
	// Sync returns when everything the pump held before is done.
	Sync()
}

// Burst is packets that arrived on one socket, in order, within one tick.
type Burst struct {
	FromClient bool // otherwise from the upstream
	RTCP       bool // by the socket, whatever they are
	Packets    [][]byte
	At         time.Time // the tick's time
}

// Observer sees every Burst before it is passed on. It runs on the pump's
// thread: it must not block and must not Close the Relay. The packets are on
// loan until it returns. When it calls Mute, that holds for this Burst already.
type Observer func(Burst)

// Spec describes a Relay.
type Spec struct {
	// Client is where packets for the client go, RTP and RTCP: the only
	// addresses ever sent to. They may be equal. An invalid or zero RTCP
	// address means that the client takes no RTCP.
	Client [2]netip.AddrPort
	Server *Pair // towards the client; ErrTaken if it knows the addresses already

	// Upstream are bound sockets of our own towards the upstream: RTP, RTCP,
	// and more RTCP ones where it is not known which port the upstream will
	// choose. A single one takes both. The Relay closes them.
	Upstream []wire.Conn
	Pump     Pump // serves them

	Start time.Time // the epoch Stats times are measured from
	Done  func()    // if set, called once by Close
}

// Relay is one Media of one Session. Its methods may be called from anywhere.
type Relay struct {
	spec    Spec
	entry   *entry
	route   atomic.Pointer[route]
	observe atomic.Pointer[Observer]
	muted   atomic.Bool
	rtcp    atomic.Int32 // which of Upstream the upstream's RTCP came to last

	up, down flow       // from the upstream, from the client
	own      wire.Tally // packets to the client that are not the upstream's

	mu        sync.Mutex // the life: Connect, SetClient, Close
	connected bool
	closed    bool
}

// route is where packets go, replaced as a whole when a SETUP changes it.
type route struct {
	client   [2]*wire.Dest // nil: nowhere
	own      [2]*wire.Dest // the same, for packets that are not the upstream's
	upstream [2]*wire.Dest
	accept   []netip.Addr // of the upstream's packets
}

// Open makes a Relay. Nothing flows before Connect; what the upstream sends
// earlier waits in the sockets' buffers. On error the sockets are still the
// caller's.
func Open(s Spec) (*Relay, error) {
	if len(s.Upstream) == 0 {
		return nil, errors.New("relay: no socket towards the upstream")
	}
	r := &Relay{spec: s}
	r.entry = &entry{r: r}
	r.route.Store(&route{}) // packets may come as soon as it is registered
	if len(s.Upstream) > 1 {
		r.rtcp.Store(1)
	}
	if err := r.setClient(s.Client); err != nil {
		return nil, err
	}
	return r, nil
}

// setClient registers and routes to the client's addresses.
func (r *Relay) setClient(to [2]netip.AddrPort) error {
	peer, local := r.spec.Client[RTP].Addr().Unmap(), r.spec.Server.conns[RTP].Local().Addr()
	if peer.Is4() != local.Is4() {
		return fmt.Errorf("relay: client %v cannot be reached from %v", to[RTP], local)
	}
	was := r.route.Load()
	next := route{upstream: was.upstream, accept: was.accept}
	for i := range to {
		to[i] = netip.AddrPortFrom(to[i].Addr().Unmap(), to[i].Port())
		if !reachable(to[i]) {
			continue
		}
		if to[i].Addr() != peer {
			return fmt.Errorf("relay to %v: %w", to[i], ErrThirdParty)
		}
		next.client[i] = wire.NewDest(to[i], &r.up.out)
		next.own[i] = wire.NewDest(to[i], &r.own)
	}
	if err := r.spec.Server.register(r.entry, to); err != nil {
		return err
	}
	r.route.Store(&next)
	return nil
}

// reachable says whether a names a port at all.
func reachable(a netip.AddrPort) bool { return a.IsValid() && a.Port() != 0 }

// UpstreamPort is the first port the upstream must send to: client_port=P-P+1.
func (r *Relay) UpstreamPort() int { return int(r.spec.Upstream[RTP].Local().Port()) }

// ServerPorts are the ports the client must be told as server_port.
func (r *Relay) ServerPorts() (rtp, rtcp int) {
	c := r.spec.Server.conns
	return int(c[RTP].Local().Port()), int(c[RTCP].Local().Port())
}

// Connect lets packets flow both ways. It is called after the upstream's answer
// to SETUP told its ports, and again if a later one changes them. From the
// upstream packets are accepted by IP address: those of rtp and rtcp, and others
// given to accept, as one behind a NAT announces an address it is not seen from.
// The port may be any: some servers send from others than they announce. A port
// of 0 means that the upstream told none, and nothing is sent there.
func (r *Relay) Connect(rtp, rtcp netip.AddrPort, accept ...netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	next := *r.route.Load()
	for i, a := range [...]netip.AddrPort{rtp, rtcp} {
		if !a.IsValid() {
			a = netip.AddrPortFrom(rtp.Addr(), 0)
		}
		if local := r.spec.Upstream[RTP].Local(); a.Addr().Unmap().Is4() != local.Addr().Is4() {
			return fmt.Errorf("relay: upstream %v cannot be reached from %v", a, local)
		}
		next.upstream[i] = wire.NewDest(a, &r.down.out)
		accept = append(accept, a.Addr())
	}
	next.accept = make([]netip.Addr, len(accept))
	for i, a := range accept {
		next.accept[i] = a.Unmap()
	}
	r.route.Store(&next)
	if r.connected {
		return nil
	}
	for i, c := range r.spec.Upstream {
		if err := r.spec.Pump.Attach(c, &upstreamSide{r: r, index: int32(i)}); err != nil {
			r.spec.Pump.Detach(r.spec.Upstream[:i]...)
			return fmt.Errorf("relay: %w", err)
		}
	}
	r.connected = true
	return nil
}

// SetClient changes where the client takes its packets, after a second SETUP
// with another client_port. The IP address cannot change.
func (r *Relay) SetClient(rtp, rtcp netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	return r.setClient([2]netip.AddrPort{rtp, rtcp})
}

// Observe has fn see all packets from now on; nil ends it. A call under way may
// still finish after Observe returns, none after Close.
func (r *Relay) Observe(fn Observer) {
	if fn == nil {
		r.observe.Store(nil)
		return
	}
	r.observe.Store(&fn)
}

// Mute stops passing on what comes from the upstream, or starts again, but for
// RTCP packets that hold a BYE: its reports would contradict those of whoever
// sends in its place. Everything is still received, counted and observed, and
// the client's RTCP still flows.
func (r *Relay) Mute(on bool) { r.muted.Store(on) }

// Sync returns when everything that came from the upstream before has been
// passed on or held back: after Mute, nothing of the upstream's follows.
func (r *Relay) Sync() { r.spec.Pump.Sync() }

// Send passes on to the client a packet of the upstream's that was held back. It
// must not be called after Close.
func (r *Relay) Send(kind int, packet []byte) {
	if to := r.route.Load().client[kind]; to != nil {
		r.spec.Server.conns[kind].Send(to, packet)
	}
}

// Outlet is where packets to the client go that are not the upstream's: through
// the socket the Relay sends from, to where it sends, counted as Stats.Own. It
// changes with SetClient; the Dest is nil where the client takes none. It may be
// used until Close.
func (r *Relay) Outlet(kind int) (wire.Conn, *wire.Dest) {
	return r.spec.Server.conns[kind], r.route.Load().own[kind]
}

// Release gives the client's addresses free for another Relay: what comes from
// there is no longer this one's. What comes from the upstream is passed on until
// Close.
func (r *Relay) Release() { r.spec.Server.unregister(r.entry) }

// Close ends the Relay and closes its own sockets. When it returns, no Observer
// runs any more and nothing more is sent. It waits for the pumps' current ticks.
func (r *Relay) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.spec.Server.unregister(r.entry)
	if !r.connected || r.spec.Server.pump != r.spec.Pump {
		r.spec.Server.pump.Sync()
	}
	if r.connected {
		r.spec.Pump.Detach(r.spec.Upstream...)
	}
	var errs []error
	for _, c := range r.spec.Upstream {
		errs = append(errs, c.Close())
	}
	if r.spec.Done != nil {
		r.spec.Done()
	}
	return errors.Join(errs...)
}

// upstreamSide handles what arrives on one of the sockets towards the upstream.
type upstreamSide struct {
	r     *Relay
	index int32    // in Spec.Upstream
	shown [][]byte // for show to use
}

func (s *upstreamSide) Receive(msgs []wire.Message, out *wire.Batch, now time.Time) {
	r, kind := s.r, min(int(s.index), RTCP)
	route := r.route.Load()
	msgs = r.up.accept(msgs, route.accept, r.spec.Server.own, kind == RTCP, now.Sub(r.spec.Start))
	if len(msgs) == 0 {
		return
	}
	if kind == RTCP {
		r.rtcp.Store(s.index)
	}
	r.show(Burst{RTCP: kind == RTCP, At: now}, msgs, &s.shown)
	if r.muted.Load() {
		r.passByes(msgs, kind, route.client[kind], out)
		return
	}
	r.pass(msgs, r.spec.Server.conns[kind], route.client[kind], &r.up, out)
}

func (s *upstreamSide) Failed(netip.AddrPort, error) { s.r.down.failures.Add(1) }

// fromClient handles messages the Pair has found to be this Relay's.
func (r *Relay) fromClient(s *serverSide, msgs []wire.Message, out *wire.Batch, now time.Time) {
	kind := s.kind
	r.down.count(msgs, kind == RTCP, now.Sub(r.spec.Start))
	r.show(Burst{FromClient: true, RTCP: kind == RTCP, At: now}, msgs, &s.shown)
	conn := r.spec.Upstream[RTP]
	if kind == RTCP {
		conn = r.spec.Upstream[r.rtcp.Load()]
	}
	r.pass(msgs, conn, r.route.Load().upstream[kind], &r.down, out)
}

func (r *Relay) pass(msgs []wire.Message, via wire.Conn, to *wire.Dest, f *flow, out *wire.Batch) {
	for i := range msgs {
		if to == nil || !reachable(to.Addr()) {
			f.out.Dropped.Add(uint64(msgs[i].Count()))
			continue
		}
		out.AddRun(via, to, msgs[i].Data, msgs[i].Segment)
	}
}

// passByes passes on only packets that hold a BYE.
func (r *Relay) passByes(msgs []wire.Message, kind int, to *wire.Dest, out *wire.Batch) {
	for i := range msgs {
		for data := msgs[i].Data; len(data) > 0; {
			p := data[:min(msgs[i].Segment, len(data))]
			data = data[len(p):]
			if to != nil && isBye(p, kind == RTCP) {
				out.Add(r.spec.Server.conns[kind], to, p)
			}
		}
	}
}

// show gives the messages to the Observer, if there is one, packet by packet.
// The list of packets is kept for the next time.
func (r *Relay) show(b Burst, msgs []wire.Message, keep *[][]byte) {
	fn := r.observe.Load()
	if fn == nil {
		return
	}
	b.Packets = (*keep)[:0]
	for i := range msgs {
		data, segment := msgs[i].Data, msgs[i].Segment
		for len(data) > segment {
			b.Packets = append(b.Packets, data[:segment:segment])
			data = data[segment:]
		}
		b.Packets = append(b.Packets, data)
	}
	*keep = b.Packets
	(*fn)(b)
}
