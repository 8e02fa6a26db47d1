package demo

import (
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"

	"rtspshim/engine/hint"
)

const rtpHeader = 12

// stream is one track on its way to one reader.
type stream struct {
	session *session
	lane    *lane // of a movie; a live stream has one for all its readers
	track   *hint.Track
	control string // last part of the SETUP's URL
	ssrc    uint32

	// seq and time are the offsets of what is sent to what is hinted, or to what
	// the live stream says.
	seq  uint16
	time uint32

	conn          *conn // over TCP
	channel       int
	rtpTo, rtcpTo netip.AddrPort // over UDP

	packets, octets, reports atomic.Uint64
	payload                  uint64    // octets, for the sender report
	last                     uint16    // sequence number sent
	mark                     uint32    // timestamp sent
	marked                   time.Time // when that was due
	reported                 time.Time
	b                        []byte
}

// lead is how far the stream may be ahead of its time when it has played that
// long: over TCP as far as Darwin is by default, a second at first, then in
// proportion to the time.
func (st *stream) lead(played time.Duration) time.Duration {
	if st.conn == nil {
		return 0
	}
	most := st.session.srv.cfg.TCPLead
	return max(0, min(max(1050*time.Millisecond, played*13/10), most))
}

// send sends a packet. Ahead is how much it is before its time; seq and time
// are offsets in addition to the stream's own.
func (st *stream) send(now time.Time, p *hint.Packet, seq uint16, ts uint32, ahead time.Duration) {
	s := st.session
	var h [rtpHeader]byte
	p.PutHeader(&h, st.seq+seq, st.time+ts, st.ssrc)
	st.last = p.Seq + st.seq + seq
	st.mark, st.marked = p.Time+st.time+ts, now.Add(ahead)
	st.b = append(st.b[:0], h[:]...)
	for _, b := range p.Payload {
		st.b = append(st.b, b...)
	}
	b := st.b
	if spoil := s.srv.cfg.Faults.Packet; spoil != nil {
		b = spoil(s.id, st.track.ID, s.packets.Load(), b)
	}
	s.packets.Add(1)
	s.sentAt.Store(now.UnixNano())
	s.srv.sent.Add(1)
	st.packets.Add(1)
	st.octets.Add(uint64(len(st.b)))
	st.payload += uint64(len(st.b) - rtpHeader)
	if b != nil {
		st.out(b, false)
	}
	if st.reported.IsZero() || now.Sub(st.reported) >= s.srv.cfg.ReportInterval {
		st.reported = now
		st.rtcp(st.senderReport(now))
	}
}

// ticks is a time in units of the track's RTP timestamp, modulo 2^32.
func (st *stream) ticks(d time.Duration) uint32 { return ticks(st.track, d) }

func ticks(t *hint.Track, d time.Duration) uint32 {
	scale := int64(t.RTPScale)
	s, rest := int64(d/time.Second), int64(d%time.Second)
	return uint32(s*scale + rest*scale/int64(time.Second))
}

// out puts a packet on its way. A movie waits for its reader over TCP, a live
// stream does not.
func (st *stream) out(b []byte, isRTCP bool) {
	switch {
	case st.conn != nil && isRTCP:
		st.conn.interleaved(st.channel+1, b, false)
	case st.conn != nil:
		st.conn.interleaved(st.channel, b, st.lane != nil)
	case isRTCP:
		_, _ = st.session.srv.rtcp.WriteToUDPAddrPort(b, st.rtcpTo)
	default:
		// What is lost is lost, as anywhere on the way.
		_, _ = st.session.srv.rtp.WriteToUDPAddrPort(b, st.rtpTo)
	}
}

// ntpEpoch is the Unix epoch in the seconds of NTP (RFC 5905 §6).
const ntpEpoch = 2208988800

func (st *stream) senderReport(now time.Time) []rtcp.Packet {
	s := st.session
	return []rtcp.Packet{
		&rtcp.SenderReport{
			SSRC:        st.ssrc,
			NTPTime:     uint64(now.Unix()+ntpEpoch)<<32 | uint64(now.Nanosecond())<<32/1e9,
			RTPTime:     st.mark + st.ticks(now.Sub(st.marked)),
			PacketCount: uint32(st.packets.Load()),
			OctetCount:  uint32(st.payload),
		},
		rtcp.NewCNAMESourceDescription(st.ssrc, "demo"+strconv.FormatInt(s.began.Unix(), 10)),
	}
}

func (st *stream) rtcp(packets []rtcp.Packet) {
	if b, err := rtcp.Marshal(packets); err == nil {
		st.out(b, true)
	}
}

// bye says that the stream has ended.
func (st *stream) bye(now time.Time) {
	if st.packets.Load() > 0 {
		st.rtcp(append(st.senderReport(now), &rtcp.Goodbye{Sources: []uint32{st.ssrc}}))
	}
}

func (st *stream) snapshot() Track {
	transport := "udp"
	if st.conn != nil {
		transport = "tcp"
	}
	return Track{ID: st.track.ID, Transport: transport, SSRC: st.ssrc,
		Packets: st.packets.Load(), Octets: st.octets.Load(), Reports: st.reports.Load()}
}
