package intercept

import (
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
}

type offer struct {
	asked ports // by the client
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
	p := &pendingSetup{}
	ex.Value = p
	client, local := t.conn.Client().Addr(), t.conn.UpstreamLocal().Addr()
	var failed error
	ex.Request.Edit("Transport", func(value string) string {
		return editChoices(value, func(choice string) string {
			asked, ok := isRelayable(choice, client)
			if !ok {
				return choice
			}
			r, err := t.offer(p, asked)
			if r == nil {
				if err != nil {
					failed = err
				}
				return choice
			}
			choice = setParam(choice, "client_port", asked.shift(r.UpstreamPort()-asked.first).String())
			return setParam(choice, "destination", local.String())
		})
	})
	if failed != nil {
		p.close(nil)
		t.conn.Log().Error("no ports for a SETUP", "url", ex.URI, "err", failed)
		ex.Answer("503 Service Unavailable")
	}
}

// offer opens a relay for the client's ports, one for all choices that name
// the same.
func (t *tap) offer(p *pendingSetup, asked ports) (*relay.Relay, error) {
	for _, o := range p.offers {
		if o.asked == asked {
			return o.relay, nil
		}
	}
	if len(p.offers) == maxOffers {
		return nil, nil
	}
	offsets := []int{0, 1}
	if d := asked.rtcp() - asked.first; d != 0 && d != 1 {
		offsets = append(offsets, d)
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
	if err == nil {
		p.offers = append(p.offers, offer{asked, r})
	}
	return r, err
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
	id := sessionID(m)
	if p == nil || !m.OK() || id == "" {
		if p != nil {
			p.close(nil)
		}
		return
	}
	d := &media{url: ex.URI}
	var chosen *offer
	m.Edit("Transport", func(choice string) string {
		switch {
		case hasParam(choice, "multicast"):
			d.path = "multicast"
		case isTCP(choice):
			d.path = "tcp"
			d.channels = t.count(getParam(choice, "interleaved"))
		default:
			d.path = "udp"
			if chosen = p.chosen(choice); chosen != nil {
				choice = t.join(chosen, choice)
			}
		}
		return choice
	})
	if chosen != nil {
		d.relay = chosen.relay
	}
	p.close(d.relay)
	s := t.admit(id, t)
	t.attach(s, ex)
	s.setUp(d)
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
	if source, err := netip.ParseAddr(strings.Trim(getParam(choice, "source"), "[]")); err == nil {
		up = source.Unmap().WithZone(up.Zone())
	}
	if answered, ok := parsePorts(getParam(choice, "client_port")); ok {
		client := answered.shift(o.asked.first - o.relay.UpstreamPort())
		choice = setParam(choice, "client_port", client.String())
		addr := t.conn.Client().Addr()
		t.flow(o.relay.SetClient(netip.AddrPortFrom(addr, uint16(client.first)), netip.AddrPortFrom(addr, uint16(client.rtcp()))))
	}
	if server, ok := parsePorts(getParam(choice, "server_port")); ok {
		t.flow(o.relay.Connect(netip.AddrPortFrom(up, uint16(server.first)), netip.AddrPortFrom(up, uint16(server.rtcp()))))
		rtp, rtcp := o.relay.ServerPorts()
		own := ports{first: rtp}
		if server.second != 0 {
			own.second = rtcp
		}
		choice = setParam(choice, "server_port", own.String())
	} else {
		t.flow(o.relay.Connect(netip.AddrPortFrom(up, 0), netip.AddrPortFrom(up, 0)))
	}
	choice = setParam(choice, "source", t.conn.ClientLocal().Addr().String())
	if isAddr(getParam(choice, "destination"), t.conn.UpstreamLocal().Addr()) {
		choice = setParam(choice, "destination", t.conn.Client().Addr().String())
	}
	return choice
}

// flow tells of a relay that cannot reach one of its sides; the session goes
// on without it, as behind a firewall.
func (t *tap) flow(err error) {
	if err != nil {
		t.conn.Log().Error("media cannot flow", "err", err)
	}
}

// count starts counting an interleaved Media's channels, "A-B" or "A".
func (t *tap) count(interleaved string) *counters {
	c := &counters{}
	if t.channels == nil {
		t.channels = &[256]*counters{}
	}
	for _, ch := range strings.SplitN(interleaved, "-", 2) {
		if n, err := strconv.ParseUint(strings.TrimSpace(ch), 10, 8); err == nil {
			t.channels[n] = c
		}
	}
	return c
}
