package intercept

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"rtspshim/engine"
	"rtspshim/engine/relay"
	"rtspshim/proxy"
)

// pendingSetup is what a SETUP holds until it is answered: a relay for each
// pair of client ports that its Transport offers.
type pendingSetup struct {
	offers []offer
	again  *control // of a session that is there already
}

type offer struct {
	asked ports // by the client
	sent  ports // by us in their place
	relay *relay.Relay
}

// maxOffers bounds the port pairs one SETUP can make the shim open; choices
// beyond are left as they are.
const maxOffers = 4

// requestSetup gives the upstream ports of the shim's in the place of the
// client's, in every choice that asks for datagrams to the client itself.
// Everything else (multicast, interleaving, a third party's destination,
// ports that are not there) goes up untouched.
func (t *tap) requestSetup(ex *proxy.Exchange) {
	p := &pendingSetup{again: t.requestAgain(ex)}
	ex.Value = p
	client := t.conn.Client().Addr()
	var failed error
	ex.Request.Edit("Transport", func(value string) string {
		return editChoices(value, func(choice string) string {
			asked, ok := isRelayable(choice, client)
			if !ok {
				return t.toUpstream(choice)
			}
			o, err := t.offer(p, asked)
			if o == nil {
				if err != nil {
					failed = err
				}
				return choice
			}
			return t.toUpstream(setParam(choice, "client_port", o.sent.String()))
		})
	})
	if failed != nil {
		p.close(nil)
		t.release(p.again)
		t.conn.Log().Error("no ports for a SETUP", "url", ex.URI, "err", failed)
		ex.Answer("503 Service Unavailable")
	}
}

// maxApart is how far apart the client's ports may lie for the upstream to be
// asked for ports that lie so too.
const maxApart = 128

// offer opens a relay for the client's ports, one for all choices that name
// the same.
func (t *tap) offer(p *pendingSetup, asked ports) (*offer, error) {
	for i, o := range p.offers {
		if o.asked == asked {
			return &p.offers[i], nil
		}
	}
	if len(p.offers) == maxOffers {
		return nil, nil
	}
	offsets, apart := []int{0, 1}, asked.rtcp()-asked.first
	if apart < 0 || apart > maxApart {
		apart = 1
	} else if apart > 1 { // some upstreams take the next port all the same
		offsets = append(offsets, apart)
	}
	client := t.conn.Client().Addr()
	r, err := t.cfg.Engine.OpenRelay(engine.RelaySpec{
		ClientLocal:   t.conn.ClientLocal().Addr(),
		ClientRTP:     netip.AddrPortFrom(client, uint16(asked.first)),
		ClientRTCP:    netip.AddrPortFrom(client, uint16(asked.rtcp())),
		UpstreamLocal: t.conn.UpstreamLocal().Addr(),
		PortOffsets:   offsets,
		OddPort:       asked.first%2 == 1,
	})
	if err != nil {
		return nil, err
	}
	sent := ports{first: r.UpstreamPort()}
	if asked.second != 0 {
		sent.second = sent.first + apart
	}
	p.offers = append(p.offers, offer{asked, sent, r})
	return &p.offers[len(p.offers)-1], nil
}

// close closes all relays but keep.
func (p *pendingSetup) close(keep *relay.Relay) {
	for _, o := range p.offers {
		if o.relay != keep {
			_ = o.relay.Close()
		}
	}
}

// answerSetup joins the relay that the upstream chose to its ports, and gives
// the client the engine's.
func (t *tap) answerSetup(ex *proxy.Exchange, m *proxy.Message) {
	p, _ := ex.Value.(*pendingSetup)
	if p == nil {
		return
	}
	defer t.release(p.again)
	id := sessionID(m)
	if !m.OK() || id == "" {
		p.close(nil)
		return
	}
	d := &media{url: ex.URI, tap: t, watch: &watch{}}
	var chosen *offer
	m.Edit("Transport", func(choice string) string {
		switch {
		case hasParam(choice, "multicast"):
			d.path = "multicast"
		case isTCP(choice):
			d.path = "tcp"
			t.count(getParam(choice, "interleaved"), d)
			choice = t.toClient(choice)
		default:
			d.path = "udp"
			if chosen = p.chosen(choice); chosen != nil {
				choice = t.join(chosen, choice)
			}
			choice = t.toClient(choice)
		}
		return choice
	})
	if chosen != nil {
		d.relay = chosen.relay
		if t.takes() {
			d.watch.observe(d.relay)
		}
	}
	p.close(d.relay)
	s := t.admit(id, t)
	t.attach(s, ex)
	d.watch.bye = func() { t.goodbye(s) }
	timeout, relayOnly := getParam(m.Get("Session"), "timeout"), negotiated(ex.Request, m)
	t.add(p, s, func() { s.setUp(d, timeout, relayOnly) })
}

// add has setUp add a Media to a session. A connection that the session was not
// on may have guessed its name: only the upstream's answer has shown that they
// belong together, and the engine, if that sends, is stopped now.
func (t *tap) add(p *pendingSetup, s *session, setUp func()) {
	if p.again != nil {
		setUp()
		return
	}
	held := s.tryEnter()
	if g, _ := t.role(s); held && g == nil && s.now() == relayed {
		setUp()
		s.leave()
		return
	}
	t.work.Go(func() { // the upstream is asked, whose answers the caller reads
		if held || s.enter(context.Background()) {
			defer s.leave()
			t.giveUp(s, setUpAgain)
		}
		setUp()
	})
}

// negotiated says what a SETUP agreed on that the engine does not carry.
func negotiated(asked, answered *proxy.Message) string {
	for _, name := range []string{"x-Retransmit", "x-RTP-Meta-Info", "x-Dynamic-Rate", "3GPP-Adaptation", "x-Transport-Options"} {
		if v := answered.Get(name); v != "" && v != "0" || asked.Get(name) != "" && name != "x-Dynamic-Rate" {
			return name + " was negotiated"
		}
	}
	transport := strings.ToUpper(answered.Get("Transport"))
	switch {
	case !strings.HasPrefix(transport, "RTP/AVP"):
		return "transport " + transport[:min(len(transport), 16)]
	case strings.HasPrefix(transport, "RTP/AVPF"):
		return "feedback profile"
	case strings.Contains(transport, "MODE=RECORD") || strings.Contains(transport, `MODE="RECORD"`):
		return "the client publishes"
	}
	return ""
}

// chosen is the offer whose ports the upstream's answer names; where it names
// none, the first.
func (p *pendingSetup) chosen(choice string) *offer {
	answered, named := parsePorts(getParam(choice, "client_port"))
	for i := range p.offers {
		if !named || p.offers[i].relay.UpstreamPort() == answered.first {
			return &p.offers[i]
		}
	}
	return nil
}

// join lets packets flow, and writes the client's view of the answer.
func (t *tap) join(o *offer, choice string) string {
	up := t.conn.Upstream().Addr()
	said, _ := lastParam(choice, "source")
	if source, err := netip.ParseAddr(strings.Trim(said, "[]")); err == nil {
		up = source.Unmap().WithZone(up.Zone())
	}
	if answered, ok := parsePorts(getParam(choice, "client_port")); ok {
		client := o.asked
		if answered != o.sent {
			client = answered.shift(o.asked.first - o.sent.first)
		}
		choice = setParam(choice, "client_port", client.String())
		addr := t.conn.Client().Addr()
		t.flow(o.relay.SetClient(netip.AddrPortFrom(addr, uint16(client.first)), netip.AddrPortFrom(addr, uint16(client.rtcp()))))
	}
	named, _ := lastParam(choice, "server_port")
	server, ok := parsePorts(named)
	if !ok { // none is told: nothing is sent there
		t.flow(o.relay.Connect(netip.AddrPortFrom(up, 0), netip.AddrPortFrom(up, 0), t.conn.Upstream().Addr()))
	} else {
		t.flow(o.relay.Connect(netip.AddrPortFrom(up, uint16(server.first)), netip.AddrPortFrom(up, uint16(server.rtcp())), t.conn.Upstream().Addr()))
	}
	// What the upstream said itself is ours to say; what it echoes is not.
	edit := func(name, was, is string) {
		choice = editParams(choice, name, func(v string) string {
			if v == was {
				return is
			}
			return v
		})
	}
	rtp, rtcp := o.relay.ServerPorts()
	own := ports{first: rtp}
	if server.second != 0 {
		own.second = rtcp
	}
	if ok {
		edit("server_port", named, own.String())
	}
	edit("source", said, t.conn.ClientLocal().Addr().String())
	return choice
}

// toUpstream puts the shim's address in the place of the client's own, where a
// request names it.
func (t *tap) toUpstream(choice string) string {
	if isAddr(getParam(choice, "destination"), t.conn.Client().Addr()) {
		choice = setParam(choice, "destination", t.conn.UpstreamLocal().Addr().String())
	}
	return choice
}

// toClient puts the client's address in the place of the shim's, and the
// shim's in the place of the upstream's, where an answer names them.
func (t *tap) toClient(choice string) string {
	replace := func(name string, was, is netip.Addr) {
		choice = editParams(choice, name, func(v string) string {
			if isAddr(v, was) {
				return is.String()
			}
			return v
		})
	}
	replace("source", t.conn.Upstream().Addr(), t.conn.ClientLocal().Addr())
	replace("destination", t.conn.UpstreamLocal().Addr(), t.conn.Client().Addr())
	return choice
}

// flow tells of a relay that cannot reach one of its sides; the session goes
// on without it, as behind a firewall.
func (t *tap) flow(err error) {
	if err != nil {
		t.conn.Log().Error("media cannot flow", "err", err)
	}
}

// count starts watching an interleaved Media's channels, "A-B" or "A".
func (t *tap) count(interleaved string, d *media) {
	d.channels = &counters{}
	if t.channels == nil {
		t.channels = &[256]channel{}
	}
	for i, ch := range strings.SplitN(interleaved, "-", 2) {
		if n, err := strconv.ParseUint(strings.TrimSpace(ch), 10, 8); err == nil {
			t.channels[n] = channel{d.channels, d.watch, i == 1}
			d.channel[i] = uint8(n)
		}
	}
}
