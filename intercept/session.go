package intercept

import (
	"cmp"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/engine/relay"
	"rtspshim/proxy"
)

// session is one RTSP session of a client, as the upstream named it. It
// belongs to no connection: it may be controlled from any that names it.
type session struct {
	id     string
	client netip.Addr
	began  time.Time

	mu       sync.Mutex
	url      string // what the last PLAY or RECORD named: the whole of it
	record   bool
	medias   []*media
	conns    map[*tap]struct{} // open connections it was controlled from
	last     *tap              // the latest of them
	basic    string            // Basic credentials, good for any request
	digest   bool              // others, good for one
	lastSeen time.Time         // of RTSP about it
	over     bool

	sdp       string        // of the DESCRIBE before the SETUP
	relayOnly string        // what was negotiated that the engine does not carry
	timeout   time.Duration // the Session header's, 0 when it says none
	asked     time.Time     // when the shim last asked something of the upstream
	lookAt    time.Time     // Run's own: when to see whether somebody is there
	takeover
}

// media is one Media of a session, set up.
type media struct {
	url      string // its SETUP's request-URI
	tap      *tap   // its SETUP's connection
	path     string // how its packets travel: "udp", "tcp", "multicast"
	relay    *relay.Relay
	channels *counters // tcp only
	channel  [2]uint8  // tcp only: RTP, RTCP
	watch    *watch
}

// send passes RTP packets on to the client.
func (m *media) send(packets [][]byte) {
	switch m.path {
	case "udp":
		for _, p := range packets {
			m.relay.Send(relay.RTP, p)
		}
	case "tcp":
		frames := make(net.Buffers, 0, 2*len(packets))
		for _, p := range packets {
			head := []byte{'$', m.channel[relay.RTP], 0, 0}
			binary.BigEndian.PutUint16(head[2:], uint16(len(p)))
			frames = append(frames, head, p)
		}
		_ = m.tap.conn.WriteFrames(frames) // an error ends the connection anyway
	}
}

// counters count a Media's interleaved frames.
type counters struct{ packets, octets atomic.Uint64 }

// sessionID is a Session header's value without its parameters
// (RFC 2326 §12.37).
func sessionID(m *proxy.Message) string {
	id, _, _ := strings.Cut(m.Get("Session"), ";")
	return strings.TrimSpace(id)
}

// setUp adds a Media, in place of an earlier one of the same URL, with the
// session's timeout that its answer names and why only a relay can carry it, if so.
func (s *session) setUp(m *media, timeout, relayOnly string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		m.close()
		return
	}
	if relayOnly != "" {
		s.relayOnly = relayOnly
	}
	if n, err := strconv.Atoi(timeout); err == nil && n > 0 {
		s.timeout = time.Duration(n) * time.Second
	}
	for i, was := range s.medias {
		if was.url == m.url {
			was.close()
			s.medias[i] = m
			return
		}
	}
	s.medias = append(s.medias, m)
}

// tearDown takes out the Media that url names, if it is one of several, and
// otherwise reports that it names them all.
func (s *session) tearDown(url string) (one *media, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range s.medias {
		if m.url == url && len(s.medias) > 1 {
			s.medias = slices.Delete(s.medias, i, i+1)
			return m, false
		}
	}
	return nil, true
}

func (m *media) close() {
	if m.relay != nil {
		_ = m.relay.Close()
	}
}

// media are those set up, in the order of their SETUPs.
func (s *session) media() []*media {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.medias)
}

// onePath says whether all media travel alike, in a way the engine knows.
func (s *session) onePath() bool {
	for _, m := range s.medias {
		if m.path != s.medias[0].path || m.path != "tcp" && m.relay == nil {
			return false
		}
	}
	return len(s.medias) > 0
}

// onlyTCP says whether the session's media live on a connection.
func (s *session) onlyTCP() bool {
	for _, m := range s.medias {
		if m.path != "tcp" {
			return false
		}
	}
	return true
}

// seen notes RTSP about the session on a connection.
func (s *session) seen(t *tap, ex *proxy.Exchange, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[t], s.last, s.lastSeen = struct{}{}, t, now
	if auth := ex.Request.Get("Authorization"); strings.HasPrefix(auth, "Basic ") {
		s.basic = auth
	} else if auth != "" {
		s.digest = true
	}
}

// on says whether the session was controlled from that connection.
func (s *session) on(t *tap) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, on := s.conns[t]
	return on
}

// plays notes what a PLAY or RECORD named.
func (s *session) plays(url string, record bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.url, s.record = url, record
}

// left notes the end of a connection and reports whether the session ended
// with it: its media have travelled on it.
func (s *session) left(t *tap) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, t)
	if s.last == t {
		s.last = nil
	}
	return len(s.conns) == 0 && s.onlyTCP()
}

// lookEvery is how long may pass between two looks whether somebody is there.
func (s *session) lookEvery(most time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(most, cmp.Or(s.timeout, defaultTimeout)) / 20
}

// orphaned says whether the session has had no connection, no packet and no
// request for so long, or for as long as the upstream itself waits.
func (s *session) orphaned(now time.Time, most time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timeout > 0 {
		most = min(most, patience(s.timeout))
	}
	then := now.Add(-most)
	if len(s.conns) > 0 || s.lastSeen.After(then) {
		return false
	}
	for _, m := range s.medias {
		if m.relay == nil {
			continue
		}
		if up, client := m.relay.Heard(); up.After(then) || client.After(then) {
			return false
		}
	}
	return true
}

// request is the head of a request for the whole session, and a connection to
// send it on, if one is left. Digest credentials cannot be made for it, Basic
// ones serve again.
func (s *session) request(method, headers string) (head string, conn *proxy.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	url := s.url
	if url == "" && len(s.medias) > 0 {
		url = s.medias[0].url
	}
	head = method + " " + url + " RTSP/1.0\r\nSession: " + s.id + "\r\n" + headers
	if s.basic != "" {
		head += "Authorization: " + s.basic + "\r\n"
	}
	s.asked = time.Now()
	for t := range s.conns {
		if !t.unheard() && (conn == nil || t == s.last) {
			conn = t.conn
		}
	}
	return head, conn
}

// deaf says whether the upstream may no longer listen on the session's
// connection.
func (s *session) deaf() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last != nil && s.last.closing.Load()
}

// short names the session in the log; the whole id would let a reader of the
// log control it.
func (s *session) short() string { return s.id[:min(len(s.id), 6)] + "…" }
