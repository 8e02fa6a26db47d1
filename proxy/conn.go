package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Tap watches one conversation. The proxy calls Request and ClientFrames one
// at a time, in the order of the client's stream; Response and UpstreamFrames
// likewise in the order of the upstream's; the two sides run concurrently.
type Tap interface {
	// Request sees a request before it goes upstream. It may edit
	// ex.Request, or keep it from the upstream with ex.Answer.
	Request(ex *Exchange)
	// Response sees the upstream's answer before it goes to the client, and
	// may edit it. ex is nil where it answers no known request.
	Response(ex *Exchange, m *Message)
	// ClientFrames and UpstreamFrames see whole interleaved frames, on loan
	// until the next call, and return those to pass on: all, none, or some
	// moved together in place.
	ClientFrames(frames []byte) []byte
	UpstreamFrames(frames []byte) []byte
	// Active says whether sessions hang on this connection: an idle one
	// without is closed.
	Active() bool
	// Leaving is called when the client's stream has ended, before the upstream,
	// whose own goes on, hears of it.
	Leaving()
	// Keep is asked when the upstream's stream has ended: whether the client's
	// connection lives on without. Its requests then go to Alone, which
	// answers them; what it leaves unanswered is refused.
	Keep() bool
	Alone(ex *Exchange)
	// Close is called once, when the conversation has ended.
	Close()
}

// Conn is one RTSP conversation: a client's connection and the upstream
// connection made for it alone (two of each in a tunnel, see tunnel.go).
type Conn struct {
	client   net.Conn
	upstream net.Conn
	log      *slog.Logger
	server   *Server
	tap      Tap
	secure   bool // the client came over TLS

	toClient, toUpstream writer
	exchanges            exchanges
	inserted             atomic.Uint32 // requests sent by Do
	lastActive           atomic.Int64  // unix nanoseconds
	bytesDown, bytesUp   atomic.Int64  // passed to the client, to the upstream
	half                 atomic.Bool   // one side has ended its stream
	turn                 sync.Mutex    // one Element from the client at a time, also from two POSTs
	down                 sync.Mutex    // held while an Element from the upstream is passed on
	alone                atomic.Bool   // the upstream has gone, the client stays
	ended                sync.Once
	going                sync.Mutex    // held while the Tap is told that the client leaves
	over                 chan struct{} // closed at the end
}

// Client is the client's address.
func (c *Conn) Client() netip.AddrPort { return addrPort(c.client.RemoteAddr()) }

// ClientLocal is the shim's address as the client knows it.
func (c *Conn) ClientLocal() netip.AddrPort { return addrPort(c.client.LocalAddr()) }

// Upstream is the upstream's address.
func (c *Conn) Upstream() netip.AddrPort { return addrPort(c.upstream.RemoteAddr()) }

// UpstreamLocal is the shim's address as the upstream knows it.
func (c *Conn) UpstreamLocal() netip.AddrPort { return addrPort(c.upstream.LocalAddr()) }

// Log carries the connection's attributes.
func (c *Conn) Log() *slog.Logger { return c.log }

// Bytes are the octets passed to the client and to the upstream so far.
func (c *Conn) Bytes() (toClient, toUpstream int64) { return c.bytesDown.Load(), c.bytesUp.Load() }

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// writer is one side's writing end. Each call of write leaves in one piece;
// a message whose body is passed on as it arrives holds the end until it is
// through.
type writer struct {
	mu     sync.Mutex
	w      io.Writer
	held   bool // by a body on its way, or for good by an opaque stream
	closed bool
	try    trial
}

// write belongs to the one goroutine that passes this direction on.
func (w *writer) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if !w.held {
		w.mu.Lock()
		defer w.mu.Unlock()
	}
	return w.put(b)
}

// put writes, behind what is owed; the end is the caller's.
func (w *writer) put(b []byte) error {
	if w.w == nil {
		return ErrEnded
	}
	if owed := w.try.owed; len(owed) > 0 {
		w.try.owed = nil
		if _, err := w.w.Write(owed); err != nil {
			return err
		}
	}
	if len(b) == 0 {
		return nil
	}
	_, err := w.w.Write(b)
	return err
}

// hold keeps everybody else from writing until release.
func (w *writer) hold() {
	if !w.held {
		w.mu.Lock()
		w.held = true
	}
}

func (w *writer) release() {
	if w.held {
		w.held = false
		w.mu.Unlock()
	}
}

// insert writes a message of the shim's own between those passed on.
func (w *writer) insert(b []byte) error {
	return w.inTurn(func() []byte { return b })
}

// inTurn writes what gather returns, gathered while nobody else can write.
func (w *writer) inTurn(gather func() []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := gather()
	if len(b) == 0 {
		return nil
	}
	if w.closed {
		return ErrEnded
	}
	return w.put(b)
}

// WriteFrames sends whole interleaved frames of the shim's own to the client,
// between whatever else goes there. It waits for a slow client.
func (c *Conn) WriteFrames(frames net.Buffers) error {
	w := &c.toClient
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.w == nil || w.closed {
		return ErrEnded
	}
	n := 0
	for _, f := range frames {
		n += len(f)
	}
	c.bytesDown.Add(int64(n))
	if tcp := below(c.client); tcp != nil {
		if err := w.put(nil); err != nil {
			return err
		}
		_, err := frames.WriteTo(tcp)
		return err
	}
	return w.put(slices.Concat(frames...)) // a write each would be a TLS record each
}

// below is the TCP connection under a client's, nil when it is encrypted.
func below(c net.Conn) *net.TCPConn {
	for {
		switch under := c.(type) {
		case *net.TCPConn:
			return under
		case *sniffed:
			c = under.Conn
		default:
			return nil
		}
	}
}

func (c *Conn) touch() { c.lastActive.Store(time.Now().UnixNano()) }

// Alone says whether the upstream has gone and the client stays.
func (c *Conn) Alone() bool { return c.alone.Load() }

// Close ends the conversation.
func (c *Conn) Close() { c.end() }

// end closes both sides, once; the loops then come to their ends.
func (c *Conn) end() {
	c.ended.Do(func() {
		close(c.over)
		c.exchanges.close()
		_ = c.client.Close()
		_ = c.upstream.Close()
	})
}

// leaving tells the Tap that the client's stream has ended, with err.
func (c *Conn) leaving(err error) error {
	c.going.Lock()
	defer c.going.Unlock()
	if !c.half.Load() && !c.isOver() {
		c.tap.Leaving()
	}
	return err
}

func (c *Conn) isOver() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// fromClient passes the client's stream on until it ends.
func (c *Conn) fromClient(r *Reader, raw io.Reader) error {
	defer c.toUpstream.release()
	for {
		e, err := r.Next()
		if err != nil {
			return err
		}
		c.touch()
		c.bytesUp.Add(int64(len(e.Bytes)))
		if e.Kind == KindOpaque {
			return c.opaque("client", &c.toUpstream, e.Bytes, r, raw)
		}
		if err := c.clientElement(e, r.more == 0); errors.Is(err, ErrEnded) {
			return err
		} else if err != nil { // the upstream's side tells of its end
			c.broke(err)
		}
	}
}

// broke is not part of fromClient, which is on its goroutine's stack for as long
// as the connection lasts.
//
//go:noinline
func (c *Conn) broke(err error) { c.log.Debug("connection broke", "to", "upstream", "err", err) }

func (c *Conn) clientElement(e Element, whole bool) (err error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	switch e.Kind {
	case KindMessage:
		return c.clientMessage(e.Message)
	case KindFrames:
		return c.toUpstream.write(c.tap.ClientFrames(e.Bytes))
	}
	err = c.toUpstream.write(e.Bytes)
	if e.Kind == KindBody && whole {
		c.toUpstream.release()
	}
	return err
}

func (c *Conn) clientMessage(m *Message) error {
	c.bytesUp.Add(int64(len(m.head) + len(m.body)))
	if m.IsResponse() { // to a request of the upstream's
		return c.passMessage(&c.toUpstream, m)
	}
	ex := &Exchange{Request: m, Method: m.Method(), URI: m.URI(), cseq: m.Get("CSeq")}
	if c.alone.Load() {
		if c.tap.Alone(ex); ex.answer == nil {
			ex.Answer("503 Service Unavailable")
		}
		return c.toClient.insert(ex.answer)
	}
	c.tap.Request(ex)
	if ex.answer == nil && c.server.cfg.RewriteHost {
		c.server.ownURI(m)
	}
	if !c.exchanges.push(ex, time.Now) {
		return ErrEnded
	}
	if ex.answer != nil {
		return c.answerTurn()
	}
	return c.passMessage(&c.toUpstream, m)
}

// answerTurn sends the shim's own answers that await no other.
func (c *Conn) answerTurn() error {
	return c.toClient.inTurn(func() []byte {
		_, due := c.exchanges.done(nil)
		return due
	})
}

// passMessage writes a message, and holds the writer for the rest of its body.
func (c *Conn) passMessage(w *writer, m *Message) error {
	if !m.Whole() {
		w.hold()
	}
	return w.write(m.Bytes())
}

// fromUpstream passes the upstream's stream on until it ends.
func (c *Conn) fromUpstream(r *Reader) error {
	defer c.toClient.release()
	defer c.exchanges.close() // no answer comes any more
	for {
		e, err := r.Next()
		if err != nil {
			return err
		}
		c.touch()
		c.bytesDown.Add(int64(len(e.Bytes)))
		if e.Kind == KindOpaque {
			return c.opaque("upstream", &c.toClient, e.Bytes, r, c.upstream)
		}
		if err := c.upstreamElement(e, r.more == 0); err != nil {
			return err
		}
	}
}

func (c *Conn) upstreamElement(e Element, whole bool) (err error) {
	c.down.Lock()
	defer c.down.Unlock()
	switch e.Kind {
	case KindMessage:
		return c.upstreamMessage(e.Message)
	case KindFrames:
		return c.toClient.write(c.tap.UpstreamFrames(e.Bytes))
	}
	err = c.toClient.write(e.Bytes)
	if e.Kind == KindBody && whole {
		c.toClient.release()
	}
	return err
}

// Between calls fn at a moment at which everything that came from the upstream
// so far has been passed on, and nothing comes. It fails where a slow client
// leaves no such moment before ctx ends. It must not be called from a Tap's
// Response or UpstreamFrames.
func (c *Conn) Between(ctx context.Context, fn func()) error {
	for !c.down.TryLock() {
		if pause(ctx, time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	defer c.down.Unlock()
	fn()
	return nil
}

func (c *Conn) upstreamMessage(m *Message) error {
	c.bytesDown.Add(int64(len(m.head) + len(m.body)))
	if !m.IsResponse() { // the upstream asks the client
		c.ownAddress(m, "")
		return c.passMessage(&c.toClient, m)
	}
	ex := c.exchanges.find(m)
	if m.Status()/100 == 1 { // RFC 2326 §7.1.1: the answer is still to come
		return c.passMessage(&c.toClient, m)
	}
	if ex != nil && ex.own != nil {
		ex.own <- m
		return c.toClient.inTurn(func() []byte {
			before, after := c.exchanges.done(ex)
			return append(before, after...)
		})
	}
	uri := ""
	if ex != nil {
		uri = ex.URI
	}
	c.tap.Response(ex, m)
	c.ownAddress(m, uri)
	if ex != nil && ex.Then != nil {
		defer ex.Then()
	}
	if !m.Whole() {
		c.exchanges.done(ex)
		return c.passMessage(&c.toClient, m)
	}
	return c.toClient.inTurn(func() []byte {
		before, after := c.exchanges.done(ex)
		return append(append(before, m.Bytes()...), after...)
	})
}

// stay keeps the client's connection, the upstream gone, until it ends.
func (c *Conn) stay() {
	c.toUpstream.use(io.Discard)
	c.alone.Store(true)
	c.log.Warn("upstream gone, the client stays")
	<-c.over
}

// opaque passes on, as they are, bytes that have no frame we know. Nothing
// can be inserted behind them any more.
func (c *Conn) opaque(from string, w *writer, first []byte, r *Reader, raw io.Reader) error {
	c.log.Info("stream is not RTSP any more, passed on as it is", "from", from, "octets", len(first))
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	if err := w.write(first); err != nil {
		return err
	}
	if err := w.write(r.Buffered()); err != nil {
		return err
	}
	return copyRaw(w.w, raw, c.touch)
}

// copyRaw passes bytes on until src ends.
func copyRaw(dst io.Writer, src io.Reader, touch func()) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			touch()
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// closeWrite passes an end of stream on to the other side.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
}

// isEnd says whether an error of a copying loop is only the end of the
// connection.
func isEnd(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, ErrEnded)
}
