package proxy

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// RTSP over HTTP, as QuickTime does it: answers and media come down a GET,
// requests go up a POST in base64; the same x-sessioncookie ties them
// together, and the POST may be closed and opened again. The shim mirrors
// every GET and POST to the upstream on a connection of its own, heads as
// they came, and reads the RTSP inside.

const cookieHeader = "X-Sessioncookie"

// tunnel is a GET and the POSTs of the same cookie.
type tunnel struct {
	up   chan struct{} // closed once conn is set
	conn *Conn         // the conversation, run by the GET
	refs int           // halves that know the tunnel; the last one forgets it

	mu    sync.Mutex
	posts map[*pair]struct{}
	over  bool
}

// tunnel returns the tunnel of that cookie, made by whichever half comes
// first.
func (s *Server) tunnel(cookie string) *tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enter(cookie)
}

func (s *Server) enter(cookie string) *tunnel {
	t := s.tunnels[cookie]
	if t == nil {
		t = &tunnel{up: make(chan struct{}), posts: map[*pair]struct{}{}}
		s.tunnels[cookie] = t
	}
	t.refs++
	return t
}

// claim makes c the conversation of the cookie's tunnel, and returns nil when
// it has one already. Some upstreams answer a GET only once they have read
// something on its POST, so its conversation begins before the answer. anew,
// set once the upstream has let a further GET in, starts a new tunnel.
func (s *Server) claim(cookie string, c *Conn, anew bool) *tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tunnels[cookie]; t != nil && t.conn != nil {
		if !anew {
			return nil
		}
		delete(s.tunnels, cookie)
	}
	t := s.enter(cookie)
	t.conn = c
	close(t.up)
	return t
}

func (s *Server) leave(t *tunnel, cookie string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.refs--; t.refs == 0 && s.tunnels[cookie] == t {
		delete(s.tunnels, cookie)
	}
}

// carryHTTP carries a connection that begins with an HTTP GET or POST: half a
// tunnel, or something of the upstream's own that is passed on unread.
func (s *Server) carryHTTP(ctx context.Context, p *pair, secure bool) {
	r := NewReader(p.client, s.cfg.Limits, p.client.SetReadDeadline)
	e, err := r.head()
	if err != nil {
		return
	}
	first := e.Bytes
	if e.Kind == KindMessage {
		first = e.Message.Bytes()
	}
	if _, err := p.upstream.Write(first); err != nil {
		return
	}
	// What was read behind the head belongs to the body.
	p.client = &sniffed{Conn: p.client, first: bytes.Clone(r.Buffered())}
	if e.Kind != KindMessage || !e.Message.Has(cookieHeader) || e.Message.Has("Upgrade") {
		s.splice(p)
		return
	}
	cookie := e.Message.Get(cookieHeader)
	p.log = p.log.With("tunnel", e.Message.Method())
	if e.Message.Method() == "GET" {
		s.carryGet(p, cookie, e.Message.URI(), secure)
	} else {
		s.carryPost(ctx, p, cookie, e.Message)
	}
}

// carryGet runs the conversation of a tunnel.
func (s *Server) carryGet(p *pair, cookie, uri string, secure bool) {
	c := s.newConn(p, secure)
	c.toClient.w = p.client
	t := s.claim(cookie, c, false)
	s.run(c, func() error { return c.leaving(copyRaw(p.upstream, p.client, c.touch)) }, func() error {
		r := NewReader(p.upstream, s.cfg.Limits, nil)
		e, err := r.head()
		if err != nil {
			return err
		}
		if e.Kind != KindMessage || !e.Message.OK() { // no tunnel
			first := e.Bytes
			if e.Kind == KindMessage {
				first = e.Message.Bytes()
			}
			if err := c.toClient.write(append(first, r.Buffered()...)); err != nil {
				return err
			}
			return copyRaw(p.client, p.upstream, c.touch)
		}
		if t == nil {
			t = s.claim(cookie, c, true)
		}
		c.ownAddress(e.Message, uri)
		if err := c.toClient.write(e.Message.Bytes()); err != nil {
			return err
		}
		return c.fromUpstream(r)
	})
	if t != nil {
		t.end()
		s.leave(t, cookie)
	}
	c.exchanges.close()
	c.tap.Close()
}

// end closes the POSTs with their GET.
func (t *tunnel) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	for p := range t.posts {
		_ = p.client.Close()
		_ = p.upstream.Close()
	}
}

// join ties a POST's life to the tunnel's.
func (t *tunnel) join(p *pair) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.posts[p] = struct{}{}
	return !t.over
}

// partWait is how long a POST's end is kept from the upstream. A client that
// goes closes its GET as well, and the Tap is to know before an upstream for
// which a POST's end is the tunnel's.
const partWait = 20 * time.Millisecond

// part ends a POST to the upstream.
func (t *tunnel) part(p *pair) {
	select {
	case <-t.conn.over:
	case <-time.After(partWait):
	}
	t.conn.going.Lock()
	defer t.conn.going.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.posts, p)
	_ = p.upstream.Close()
}

// turn gives a POST that goes on another connection to the upstream.
func (t *tunnel) turn(p *pair, up net.Conn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = p.upstream.Close()
	p.upstream = up
	if t.over {
		return errors.Join(ErrEnded, up.Close())
	}
	return nil
}

// carryPost feeds a POST's requests into its tunnel's conversation. What the
// upstream says on the POST, if anything, goes back as it is.
func (s *Server) carryPost(ctx context.Context, p *pair, cookie string, head *Message) {
	t := s.tunnel(cookie)
	defer s.leave(t, cookie)
	select {
	case <-t.up:
	case <-ctx.Done():
		return
	case <-time.After(s.cfg.Limits.PartialTimeout):
		p.log.Debug("no GET for this POST, passed on as it is")
		s.splice(p)
		return
	}
	if !t.join(p) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := t.conn
	room, _ := head.contentLength()
	up := &post{to: p.upstream, tunnel: c, sent: bytes.Clone(head.Bytes()), room: min(int(room), s.cfg.Limits.MaxHead)}
	c.toUpstream.use(base64Writer{up})
	down := make(chan struct{})
	go func() {
		defer close(down)
		s.fromPost(ctx, t, p, up)
		_ = p.client.Close()
	}()
	in := &base64Reader{src: p.client}
	err := c.fromClient(NewReader(in, s.cfg.Limits, p.client.SetReadDeadline), in)
	if errors.Is(err, errNotBase64) {
		p.log.Info("POST is not base64 any more, passed on as it is")
		if _, err = up.Write(in.rest()); err == nil {
			err = copyRaw(up, p.client, c.touch)
		}
	}
	if !isEnd(err) {
		p.log.Debug("connection broke", "err", err)
	}
	cancel()
	t.part(p)
	<-down
}

// post is the way to a POST of the upstream's. It keeps what it sent as long as
// the POST may have to be made again: the upstream has not said anything in the
// tunnel, and has not got all that was announced.
type post struct {
	mu     sync.Mutex
	to     net.Conn
	tunnel *Conn
	sent   []byte // the head and what followed; nil: not kept
	room   int    // octets that may follow
}

func (w *post) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.room -= len(b); w.room > 0 && w.fresh() {
		w.sent = append(w.sent, b...)
	} else {
		w.sent = nil
	}
	return w.to.Write(b)
}

// fresh says whether the POST may be made again; w.mu is held.
func (w *post) fresh() bool { return w.sent != nil && w.tunnel.bytesDown.Load() == 0 }

// again makes the POST again on a connection of its own.
func (w *post) again(dial func() (net.Conn, error)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.fresh() {
		return ErrEnded
	}
	to, err := dial()
	if err != nil {
		return err
	}
	w.to = to
	_, err = to.Write(w.sent)
	return err
}

// The waits before a POST is made again: from the first they double up to the last.
const firstRepost, lastRepost = 10 * time.Millisecond, 640 * time.Millisecond

// fromPost passes on what the upstream says on a POST. A POST closed before its
// time is made again, which its client may do, too: gortsplib's server answers a
// GET before it can find it, and closes the POST that comes in between.
func (s *Server) fromPost(ctx context.Context, t *tunnel, p *pair, up *post) {
	answer := io.Writer(p.client) // to whom goes the first alone
	for wait := firstRepost; ; wait *= 2 {
		_ = copyRaw(answer, p.upstream, func() { up.tunnel.touch(); answer = io.Discard })
		if wait > lastRepost || up.tunnel.bytesDown.Load() > 0 {
			return
		}
		pause(ctx, wait)
		if err := up.again(func() (net.Conn, error) {
			conn, err := s.dial(ctx)
			if err != nil {
				return nil, err
			}
			s.mu.Lock()
			p.dialled = conn
			s.mu.Unlock()
			return conn, t.turn(p, conn)
		}); err != nil || ctx.Err() != nil {
			return
		}
		p.log.Info("upstream closed the POST before its first answer, made again", "after", wait)
	}
}

// use makes w the way out, in place of a former one.
func (w *writer) use(to io.Writer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.w, w.closed = to, false
}

// base64Writer encodes each write by itself, padded, as clients do for each
// request.
type base64Writer struct{ w io.Writer }

func (w base64Writer) Write(b []byte) (int, error) {
	if _, err := w.w.Write(base64.StdEncoding.AppendEncode(nil, b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

var errNotBase64 = errors.New("not base64")

// base64Reader decodes a stream of base64 in which padding may occur anywhere
// between groups of four, and white space anywhere.
type base64Reader struct {
	src  io.Reader
	raw  [1024]byte // raw[lo:hi] is read, not decoded
	lo   int
	hi   int
	last [3]byte // last[:left] is a group decoded for too small a buffer
	left int
}

// Read decodes what is there, at least one group.
func (r *base64Reader) Read(b []byte) (int, error) {
	if len(b) < len(r.last) {
		if r.left == 0 {
			n, err := r.Read(r.last[:])
			if err != nil {
				return 0, err
			}
			r.left = n
		}
		n := copy(b, r.last[:r.left])
		r.left = copy(r.last[:], r.last[n:r.left])
		return n, nil
	}
	if r.left > 0 {
		n := copy(b, r.last[:r.left])
		r.left = 0
		return n, nil
	}
	for {
		n, err := r.decode(b)
		if n > 0 || err != nil {
			return n, err
		}
		r.hi = copy(r.raw[:], r.raw[r.lo:r.hi])
		r.lo = 0
		m, err := r.src.Read(r.raw[r.hi:])
		r.hi += m
		if m == 0 {
			if errors.Is(err, io.EOF) && r.hi > 0 {
				return 0, fmt.Errorf("%w: ends inside a group", errNotBase64)
			}
			return 0, err
		}
	}
}

// decode takes whole groups of four from raw into b.
func (r *base64Reader) decode(b []byte) (n int, err error) {
	var group [4]byte
	for len(b)-n >= 3 {
		k, at := 0, r.lo
		for ; k < 4 && at < r.hi; at++ {
			if c := r.raw[at]; !isSpace(c) {
				group[k] = c
				k++
			}
		}
		if k == 0 {
			r.lo = at // only white space
		}
		if k < 4 {
			if at-r.lo == len(r.raw) { // white space fills the buffer inside a group
				r.lo, r.hi = 0, copy(r.raw[:], group[:k])
			}
			return n, nil
		}
		m, bad := base64.StdEncoding.Decode(b[n:], group[:])
		if bad != nil {
			if n > 0 {
				return n, nil // the error is found again
			}
			return 0, fmt.Errorf("%w: %q", errNotBase64, group[:])
		}
		n += m
		r.lo = at
	}
	return n, nil
}

// rest is what was read and could not be decoded.
func (r *base64Reader) rest() []byte { return r.raw[r.lo:r.hi] }
