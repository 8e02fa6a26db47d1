package bench

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/pion/rtcp"
)

const (
	reportEvery    = 5 * time.Second // RTCP receiver reports
	keepAliveEvery = 20 * time.Second
)

// session is one viewer. It is built by the goroutine that sets it up, and
// belongs to a reader from then on until that has ended.
type session struct {
	index   int
	pair    int
	url     string
	start   time.Duration // in the movie
	tcp     bool
	live    bool
	extra   bool // not among those counted: only to compare with
	tracks  []*track
	control *control
	session string
	auth    map[string]string // Authorization lines for the requests to come, by method
	uri     string            // of those requests
	cseq    int
	times   setupTimes

	rest []byte // of what came over TCP, the beginning of something

	reported time.Time // RTCP
	asked    time.Time // OPTIONS
	leaving  bool      // said TEARDOWN
	gone     bool      // it was answered, or the connection is over
	broken   bool      // the connection ended, or the server said BYE, before we left
}

// setupTimes are how long each step took; first is from sending PLAY to the
// first RTP packet.
type setupTimes struct {
	connect, describe, setup, play time.Duration
	playSent                       time.Time
}

// track is one media of a session.
type track struct {
	counter
	kind    string
	channel uint8          // of RTP, over TCP
	pair    *udpPair       // nil over TCP
	reports netip.AddrPort // where receiver reports go, over UDP
}

// rtcp looks at a track's RTCP for a goodbye (RFC 3550 §6.6). One of another
// SSRC was meant for a session that had this port before.
func (s *session) rtcp(t *track, b []byte) {
	for len(b) >= 4 && b[0]>>6 == 2 {
		n := 4 * (1 + int(binary.BigEndian.Uint16(b[2:])))
		if b[1] == 203 && len(b) >= 8 && t.origin != 0 && binary.BigEndian.Uint32(b[4:]) == t.clock {
			s.broken = s.broken || !s.leaving
		}
		if n > len(b) {
			return
		}
		b = b[n:]
	}
}

// frame takes an interleaved frame.
func (s *session) frame(channel uint8, b []byte, at int64, w *window) {
	for _, t := range s.tracks {
		switch channel {
		case t.channel:
			t.packet(b, len(b), at, w)
			return
		case t.channel + 1:
			s.rtcp(t, b)
			return
		}
	}
}

// stream takes what came on the RTSP connection, the rest of last time first,
// and keeps the new rest. An error means that it cannot be read on.
func (s *session) stream(b []byte, at int64, w *window) error {
	rest, err := deframe(b, func(channel uint8, payload []byte) { s.frame(channel, payload, at, w) },
		func([]byte) { s.gone = s.gone || s.leaving })
	s.rest = append(s.rest[:0], rest...)
	return err
}

// over notes that the connection has ended.
func (s *session) over() {
	s.gone = true
	s.broken = s.broken || !s.leaving
}

// request is a request in the session, which nobody waits to see answered.
func (s *session) request(method string) []byte {
	s.cseq++
	auth := s.auth[method]
	return fmt.Appendf(nil, "%s %s RTSP/1.0\r\nCSeq: %d\r\nUser-Agent: %s\r\nSession: %s\r\n%s\r\n",
		method, s.uri, s.cseq, agent, s.session, auth)
}

// tend keeps the session alive: receiver reports and, now and then, OPTIONS.
func (s *session) tend(now time.Time) {
	if now.Sub(s.reported) >= reportEvery {
		s.reported = now
		for _, t := range s.tracks {
			b := t.report(uint32(s.index)<<8 | 0x62)
			if t.pair != nil {
				t.pair.sendRTCP(b, t.reports)
			} else {
				s.control.write(append([]byte{'$', t.channel + 1, byte(len(b) >> 8), byte(len(b))}, b...))
			}
		}
	}
	if s.asked.IsZero() {
		s.asked = now
	}
	if now.Sub(s.asked) >= keepAliveEvery {
		s.asked = now
		s.control.write(s.request("OPTIONS"))
	}
}

// leave says TEARDOWN.
func (s *session) leave() {
	if s.leaving {
		return
	}
	s.leaving = true
	if s.session == "" { // of a limit
		s.gone = true
		return
	}
	s.control.write(s.request("TEARDOWN"))
}

// close gives the sockets back.
func (s *session) close() {
	if s.control != nil {
		s.control.close()
	}
	for _, t := range s.tracks {
		if t.pair != nil {
			t.pair.close()
		}
	}
}

// report is a receiver report (RFC 3550 §6.4.2) from the given SSRC.
func (t *track) report(ssrc uint32) []byte {
	rr := &rtcp.ReceiverReport{SSRC: ssrc}
	if t.base != 0 {
		rr.Reports = []rtcp.ReceptionReport{{SSRC: t.ssrc, LastSequenceNumber: t.high, TotalLost: uint32(min(t.lost(), 1<<24-1))}}
	}
	b, err := rtcp.Marshal([]rtcp.Packet{rr, &rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{
		Source: ssrc, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: agent}}}}}})
	if err != nil {
		return nil // what is in it is bounded above
	}
	return b
}

// count is how many RTP packets came, of all tracks.
func (s *session) count() uint64 {
	var n uint64
	for _, t := range s.tracks {
		n += t.all
	}
	return n
}
