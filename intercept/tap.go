package intercept

import (
	"encoding/binary"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/proxy"
)

// tap is one connection's part of the Interceptor.
type tap struct {
	*Interceptor
	conn *proxy.Conn

	mu       sync.Mutex
	sessions map[*session]struct{} // controlled from this connection
	controls map[*control]struct{} // of the client's, under way

	sdp      string        // of the last DESCRIBE; upstream side only
	channels *[256]channel // interleaved Media by channel; upstream side only
	heard    atomic.Int64  // unix nanoseconds of the client's last frame
	hushed   atomic.Bool   // the client's frames are kept from the upstream
	closing  atomic.Bool   // the upstream has said so: Darwin answers nothing any more, and plays on
	left     atomic.Bool   // the client's stream has ended, and so has the one to the upstream
}

// unheard says whether the upstream may not hear requests on this connection.
func (t *tap) unheard() bool { return t.closing.Load() || t.left.Load() }

// Open watches a new connection.
func (i *Interceptor) Open(c *proxy.Conn) proxy.Tap {
	return &tap{Interceptor: i, conn: c, sessions: map[*session]struct{}{}, controls: map[*control]struct{}{}}
}

// Request catches what changes a session's media; the rest is noted when it
// is answered.
func (t *tap) Request(ex *proxy.Exchange) {
	switch ex.Method {
	case "SETUP":
		t.requestSetup(ex)
	case "PLAY", "PAUSE", "TEARDOWN":
		t.requestControl(ex)
	}
}

// Response brings the sessions up to what the upstream says.
func (t *tap) Response(ex *proxy.Exchange, m *proxy.Message) {
	if strings.EqualFold(m.Get("Connection"), "close") {
		t.closing.Store(true)
	}
	if ex == nil {
		return
	}
	switch {
	case ex.Method == "SETUP":
		t.answerSetup(ex, m)
		return
	case ex.Method == "DESCRIBE" && m.OK() && t.takes():
		t.sdp = string(m.Body())
		return
	}
	if c, ok := ex.Value.(*control); ok {
		if ex.Method == "PLAY" && m.OK() {
			c.s.plays(ex.URI, false)
		}
		t.answerControl(c, ex, m)
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
	switch ex.Method {
	case "PLAY", "RECORD":
		s.plays(ex.URI, ex.Method == "RECORD")
	case "TEARDOWN":
		if one, all := s.tearDown(ex.URI); all {
			t.detach(s)
			t.end(s, "torn down")
		} else {
			t.closeMedias([]*media{one})
		}
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
	controls := t.controls
	t.controls = nil
	t.mu.Unlock()
	for c := range controls {
		c.s.leave()
	}
	for s := range sessions {
		if s.left(t) {
			t.end(s, "connection closed")
		} else {
			t.disconnected(s)
		}
	}
}

// ClientFrames passes on what the client sends interleaved.
func (t *tap) ClientFrames(frames []byte) []byte {
	t.heard.Store(time.Now().UnixNano())
	if t.hushed.Load() {
		return frames[:0]
	}
	return frames
}

// UpstreamFrames counts the frames of each Media and drops those that are
// held back.
func (t *tap) UpstreamFrames(frames []byte) []byte {
	if t.channels == nil {
		return frames
	}
	now := time.Now()
	kept := 0 // frames[:kept] is passed on
	for at := 0; len(frames)-at >= 4; {
		end := min(at+4+int(binary.BigEndian.Uint16(frames[at+2:])), len(frames))
		if t.channels[frames[at+1]].pass(frames[at+4:end], now) {
			kept += copy(frames[kept:], frames[at:end])
		}
		at = end
	}
	return frames[:kept]
}

// channel is what travels on one interleaved channel.
type channel struct {
	count *counters // nil: nothing we know
	watch *watch
	rtcp  bool
}

func (c *channel) pass(packet []byte, now time.Time) bool {
	if c.count == nil {
		return true
	}
	c.count.packets.Add(1)
	c.count.octets.Add(uint64(len(packet)))
	if c.rtcp {
		return c.watch.rtcp(packet, now)
	}
	return c.watch.burst([][]byte{packet}, now)
}
