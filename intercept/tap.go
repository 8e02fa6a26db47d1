package intercept

import (
	"encoding/binary"
	"sync"
	"time"

	"rtspshim/proxy"
)

// tap is one connection's part of the Interceptor.
type tap struct {
	*Interceptor
	conn *proxy.Conn

	mu       sync.Mutex
	sessions map[*session]struct{} // controlled from this connection

	channels *[256]*counters // interleaved Media by channel; upstream side only
}

// Open watches a new connection.
func (i *Interceptor) Open(c *proxy.Conn) proxy.Tap {
	return &tap{Interceptor: i, conn: c, sessions: map[*session]struct{}{}}
}

// Request catches SETUP; the rest is noted when it is answered.
func (t *tap) Request(ex *proxy.Exchange) {
	if ex.Method == "SETUP" {
		t.requestSetup(ex)
	}
}

// Response brings the sessions up to what the upstream says.
func (t *tap) Response(ex *proxy.Exchange, m *proxy.Message) {
	if ex == nil {
		return
	}
	if ex.Method == "SETUP" {
		t.answerSetup(ex, m)
		return
	}
	s := t.Interceptor.session(sessionID(ex.Request))
	if s == nil {
		return
	}
	switch {
	case m.Status() == 454: // Session Not Found, unless it is another connection's alone
		if s.left(t) || t.detach(s) {
			t.end(s, "unknown to the upstream")
		}
		return
	case !m.OK():
		return
	}
	t.attach(s, ex)
	switch {
	case ex.Method == "PLAY" || ex.Method == "RECORD":
		s.mu.Lock()
		s.url, s.record = ex.URI, ex.Method == "RECORD"
		s.mu.Unlock()
	case ex.Method == "TEARDOWN" && s.tearDown(ex.URI):
		t.detach(s)
		t.end(s, "torn down")
	}
}

func (t *tap) attach(s *session, ex *proxy.Exchange) {
	s.seen(t, ex, time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions[s] = struct{}{}
}

// detach takes a session off the connection and says whether it was on it.
func (t *tap) detach(s *session) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, was := t.sessions[s]
	delete(t.sessions, s)
	return was
}

// Active says whether sessions hang on the connection.
func (t *tap) Active() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.sessions) > 0
}

// Close leaves the connection's sessions to others, or ends them.
func (t *tap) Close() {
	t.mu.Lock()
	sessions := t.sessions
	t.sessions = nil
	t.mu.Unlock()
	for s := range sessions {
		if s.left(t) {
			t.end(s, "connection closed")
		}
	}
}

// ClientFrames passes on what the client sends interleaved.
func (t *tap) ClientFrames([]byte) bool { return true }

// UpstreamFrames counts the frames of each Media.
func (t *tap) UpstreamFrames(frames []byte) bool {
	if t.channels == nil {
		return true
	}
	for len(frames) >= 4 {
		n := int(binary.BigEndian.Uint16(frames[2:]))
		if c := t.channels[frames[1]]; c != nil {
			c.packets.Add(1)
			c.octets.Add(uint64(n))
		}
		frames = frames[min(4+n, len(frames)):]
	}
	return true
}
