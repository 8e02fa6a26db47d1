package relay

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"rtspshim/engine/wire"
)

// Flow tells what came from one side and what became of it. Packets not sent,
// not dropped and not muted are still on their way.
type Flow struct {
	Received, ReceivedBytes uint64    // accepted from this side
	Sent, SentBytes         uint64    // passed on to the other side
	Dropped                 uint64    // packets the kernel would not send, or with nowhere to go
	Foreign                 uint64    // packets refused: not from this side's address
	Lost                    uint64    // datagrams our full receive buffers lost (upstream only)
	Unreachable             uint64    // ICMP errors the other side sent back
	Last                    time.Time // of the last packet accepted; zero if none
	Bye                     bool      // an RTCP BYE was seen (RFC 3550 §6.6)
}

// Stats tells what a Relay has done.
type Stats struct {
	FromUpstream, FromClient Flow
	Own                      Sent // to the client, not the upstream's
}

// Sent counts packets to the client through Outlet.
type Sent struct{ Packets, Bytes, Dropped uint64 }

// Stats returns the counters as they are now.
func (r *Relay) Stats() Stats {
	s := Stats{FromUpstream: r.up.stats(r.spec.Start), FromClient: r.down.stats(r.spec.Start)}
	s.Own = Sent{r.own.Packets.Load(), r.own.Bytes.Load(), r.own.Dropped.Load()}
	for _, c := range r.spec.Upstream {
		s.FromUpstream.Lost += c.Lost()
	}
	return s
}

// Heard is when each side's last packet was accepted, zero if none: Flow.Last
// without all else.
func (r *Relay) Heard() (upstream, client time.Time) {
	return r.up.heard(r.spec.Start), r.down.heard(r.spec.Start)
}

// flow is the counters of one direction, written by the pumps.
type flow struct {
	packets, bytes, foreign, failures atomic.Uint64
	last                              atomic.Int64 // ns since the epoch, 0 = never
	bye                               atomic.Bool
	out                               wire.Tally
}

func (f *flow) stats(epoch time.Time) Flow {
	s := Flow{
		Received: f.packets.Load(), ReceivedBytes: f.bytes.Load(),
		Sent: f.out.Packets.Load(), SentBytes: f.out.Bytes.Load(),
		Dropped: f.out.Dropped.Load(), Foreign: f.foreign.Load(),
		Unreachable: f.failures.Load(), Bye: f.bye.Load(),
	}
	s.Last = f.heard(epoch)
	return s
}

func (f *flow) heard(epoch time.Time) (last time.Time) {
	if ns := f.last.Load(); ns != 0 {
		last = epoch.Add(time.Duration(ns))
	}
	return last
}

// accept keeps the messages that come from those addresses, and not from
// ourselves, in order and in place, and counts them and the others.
func (f *flow) accept(msgs []wire.Message, from []netip.Addr, own *Own, rtcp bool, at time.Duration) []wire.Message {
	kept := msgs[:0]
	for i := range msgs {
		if source := msgs[i].From; slices.Contains(from, source.Addr()) && !own.has(source) {
			kept = append(kept, msgs[i])
		} else {
			f.foreign.Add(uint64(msgs[i].Count()))
		}
	}
	if len(kept) > 0 {
		f.count(kept, rtcp, at)
	}
	return kept
}

func (f *flow) count(msgs []wire.Message, rtcp bool, at time.Duration) {
	bytes := 0
	for i := range msgs {
		m := &msgs[i]
		bytes += len(m.Data)
		for data := m.Data; len(data) > 1; data = data[min(m.Segment, len(data)):] {
			if isBye(data[:min(m.Segment, len(data))], rtcp) {
				f.bye.Store(true)
			}
		}
	}
	f.packets.Add(uint64(count(msgs)))
	f.bytes.Add(uint64(bytes))
	f.last.Store(int64(max(at, 1)))
}

func count(msgs []wire.Message) (packets int) {
	for i := range msgs {
		packets += msgs[i].Count()
	}
	return packets
}

const (
	packetSR  = 200 // RFC 3550 §12.1
	packetBye = 203
)

// isBye says whether a packet that came to an RTP or RTCP port holds a BYE. With
// RTCP on the RTP port the packet type tells (RFC 5761 §4).
func isBye(p []byte, rtcp bool) bool {
	return len(p) > 1 && (rtcp || p[1] >= packetSR && p[1] <= packetBye) && hasBye(p)
}

// hasBye looks for a BYE in a compound RTCP packet. The parts must fill the
// packet exactly, so that encrypted bytes are hardly ever taken for one.
func hasBye(p []byte) (found bool) {
	for len(p) > 0 {
		if len(p) < 4 || p[0]>>6 != 2 {
			return false
		}
		size := 4 * (int(binary.BigEndian.Uint16(p[2:])) + 1)
		if size > len(p) {
			return false
		}
		found = found || p[1] == packetBye
		p = p[size:]
	}
	return found
}
