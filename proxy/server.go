package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"
)

// Limits bound what an outsider can make the shim hold. Zero fields take the
// defaults in parentheses.
type Limits struct {
	MaxHead        int           // octets of a message's head (64 KiB); larger ones are passed on unread
	MaxBody        int           // octets of a body held for editing (256 KiB); larger ones stream through
	MaxConns       int           // client connections at once (10,000); the next is answered 503
	PartialTimeout time.Duration // wait for the rest of a message (30 s), then it is passed on as it is
	IdleTimeout    time.Duration // life of a silent connection without a session (5 min)
	DialTimeout    time.Duration // wait for the upstream's connection (10 s)
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.MaxHead, 64<<10)
	def(&l.MaxBody, 256<<10)
	def(&l.MaxConns, 10_000)
	wait(&l.PartialTimeout, 30*time.Second)
	wait(&l.IdleTimeout, 5*time.Minute)
	wait(&l.DialTimeout, 10*time.Second)
	return l
}

// Config says what a Server stands in front of, and how.
type Config struct {
	Upstream    *url.URL    // rtsp://host[:port] or rtsps://host[:port]; the rest is ignored
	UpstreamTLS *tls.Config // for an rtsps upstream; nil means the system's roots
	ClientTLS   *tls.Config // certificate for clients that come with TLS, on the same port; nil passes TLS through unread
	RewriteHost bool        // put the upstream's address into request-URIs; breaks Digest at servers that compare them
	Open        func(*Conn) Tap
	Drain       func(context.Context) // called at the end of Serve, before the connections are closed; may be nil
	Limits      Limits
	Logger      *slog.Logger // nil means slog.Default()
}

// Server accepts clients and makes one upstream connection for each of their
// connections.
type Server struct {
	cfg      Config
	upstream string // host:port to dial
	log      *slog.Logger

	mu      sync.Mutex
	pairs   map[*pair]struct{}
	tunnels map[string]*tunnel
	work    sync.WaitGroup
}

// New checks cfg.
func New(cfg Config) (*Server, error) {
	u := cfg.Upstream
	if u == nil || u.Hostname() == "" || (u.Scheme != "rtsp" && u.Scheme != "rtsps") {
		return nil, fmt.Errorf("upstream %v: want rtsp://host[:port] or rtsps://host[:port]", u)
	}
	if cfg.Open == nil {
		return nil, errors.New("proxy: Config.Open is missing")
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{cfg: cfg, log: cfg.Logger, pairs: map[*pair]struct{}{}, tunnels: map[string]*tunnel{}}
	port := u.Port()
	if port == "" {
		port = defaultPort(u.Scheme)
	}
	s.upstream = net.JoinHostPort(u.Hostname(), port)
	return s, nil
}

// defaultPort is the port of a URL that names none: RFC 2326 §3.2, and 322
// for rtsps.
func defaultPort(scheme string) string {
	if scheme == "rtsps" {
		return "322"
	}
	return "554"
}

// Serve accepts from ln until ctx ends; it then closes ln, drains, closes
// every connection and returns when the last one has gone.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.work.Go(func() { s.sweep(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var err error
	for {
		var client net.Conn
		if client, err = ln.Accept(); err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				break
			}
			s.log.Warn("accept", "err", err) // out of files, say: it may pass
			pause(ctx, 50*time.Millisecond)
			continue
		}
		p := &pair{accepted: client, client: client, log: s.log.With("client", client.RemoteAddr().String())}
		if !s.add(p) {
			p.log.Warn("too many connections, refused", "limit", s.cfg.Limits.MaxConns)
			_ = client.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(client, "RTSP/1.0 503 Service Unavailable\r\nConnection: close\r\n\r\n")
			_ = client.Close()
			continue
		}
		s.work.Go(func() {
			defer s.remove(p)
			s.serve(ctx, p)
		})
	}
	if ctx.Err() != nil {
		err = nil
	}
	if s.cfg.Drain != nil {
		s.cfg.Drain(context.WithoutCancel(ctx))
	}
	cancel()
	s.closeAll()
	s.work.Wait()
	return err
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pair is a client's connection and the upstream connection made for it.
type pair struct {
	accepted net.Conn // as accepted and
	dialled  net.Conn // as dialled; what is closed, under Server.mu
	client   net.Conn // the same, behind what was read of it or its TLS
	upstream net.Conn
	log      *slog.Logger
	conn     *Conn // the conversation it belongs to, once known; under Server.mu
}

func (s *Server) add(p *pair) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pairs) >= s.cfg.Limits.MaxConns {
		return false
	}
	s.pairs[p] = struct{}{}
	return true
}

func (s *Server) remove(p *pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pairs, p)
	p.close()
}

// close closes both connections; Server.mu is held.
func (p *pair) close() {
	_ = p.accepted.Close()
	if p.dialled != nil {
		_ = p.dialled.Close()
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.pairs {
		p.close()
	}
}

// sweep closes connections that have been silent for IdleTimeout and on
// which no session hangs.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(max(s.cfg.Limits.IdleTimeout/20, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			before := now.Add(-s.cfg.Limits.IdleTimeout).UnixNano()
			s.mu.Lock()
			for p := range s.pairs {
				c := p.conn
				if c == nil {
					continue
				}
				active := c.lastActive.Load()
				switch {
				case active < before && !c.tap.Active():
					c.log.Info("connection idle, closed", "timeout", s.cfg.Limits.IdleTimeout)
				case c.half.Load() && active < now.Add(-lingerAfterEnd).UnixNano():
					c.log.Debug("connection half closed and silent, closed", "timeout", lingerAfterEnd)
				default:
					continue
				}
				c.end()
			}
			s.mu.Unlock()
		}
	}
}

// sniffed is a connection of which the first octets were read to be looked at.
type sniffed struct {
	net.Conn
	first []byte // of them, what nobody else has read yet
}

// lookedAt is a connection whose first octets were read through r.
func lookedAt(c net.Conn, r *bufio.Reader) *sniffed {
	first, _ := r.Peek(r.Buffered())
	return &sniffed{Conn: c, first: bytes.Clone(first)}
}

func (c *sniffed) Read(b []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.first)
	if c.first = c.first[n:]; len(c.first) == 0 {
		c.first = nil
	}
	return n, nil
}

// CloseWrite passes a half-close on to the connection below.
func (c *sniffed) CloseWrite() error { closeWrite(c.Conn); return nil }

// serve finds out what the client speaks and carries it.
func (s *Server) serve(ctx context.Context, p *pair) {
	secure, first := s.prepare(ctx, p)
	switch {
	case first == nil:
	case isRTSP(first):
		s.carry(p, secure)
	case bytes.HasPrefix(first, []byte("GET ")) || bytes.HasPrefix(first, []byte("POST ")):
		s.carryHTTP(ctx, p, secure)
	default:
		s.splice(p)
	}
}

// prepare looks at the client's first line and dials the upstream meanwhile. It
// returns no line when there is nothing to carry.
func (s *Server) prepare(ctx context.Context, p *pair) (secure bool, first []byte) {
	limits := s.cfg.Limits
	dialed := make(chan error, 1)
	s.work.Go(func() {
		up, err := (&net.Dialer{Timeout: limits.DialTimeout}).DialContext(ctx, "tcp", s.upstream)
		if err == nil {
			s.mu.Lock()
			p.dialled, p.upstream = up, up
			s.mu.Unlock()
		}
		dialed <- err
	})
	secure, first, err := s.sniff(p)
	if dialErr := <-dialed; dialErr != nil {
		p.log.Error("upstream does not answer", "upstream", s.upstream, "err", dialErr)
		s.refuse(p, first)
		return secure, nil
	}
	if err != nil {
		if !isEnd(err) {
			p.log.Info("nothing to carry", "err", err)
		}
		return secure, nil
	}
	if s.cfg.Upstream.Scheme == "rtsps" && first[0] != tlsHandshake {
		t := tls.Client(p.upstream, s.upstreamTLS())
		if err := t.HandshakeContext(ctx); err != nil {
			p.log.Error("TLS to the upstream", "upstream", s.upstream, "err", err)
			s.refuse(p, first)
			return secure, nil
		}
		p.upstream = t
	}
	return secure, first
}

const tlsHandshake = 0x16 // RFC 8446 §5.1, the first octet of a TLS connection

// sniff looks at the client's first line, behind its TLS handshake where
// there is one and we hold a certificate, without taking it.
func (s *Server) sniff(p *pair) (secure bool, first []byte, err error) {
	deadline := time.Now().Add(s.cfg.Limits.IdleTimeout)
	_ = p.client.SetReadDeadline(deadline)
	for {
		r := bufio.NewReaderSize(p.client, 1024)
		if first, err = r.Peek(1); err != nil {
			return secure, nil, err
		}
		if first[0] == tlsHandshake && s.cfg.ClientTLS != nil && !secure {
			_ = p.client.SetReadDeadline(time.Now().Add(s.cfg.Limits.PartialTimeout))
			t := tls.Server(lookedAt(p.client, r), s.cfg.ClientTLS)
			if err := t.Handshake(); err != nil {
				return true, nil, fmt.Errorf("TLS: %w", err)
			}
			p.client, secure = t, true
			continue
		}
		_ = p.client.SetReadDeadline(time.Now().Add(s.cfg.Limits.PartialTimeout))
		first = peekLine(r)
		p.client = lookedAt(p.client, r)
		return secure, first, p.client.SetReadDeadline(time.Time{})
	}
}

// peekLine waits for the first line, a full buffer or the reader's deadline,
// whichever comes first, and returns what is there.
func peekLine(r *bufio.Reader) []byte {
	for n := 1; ; n++ {
		b, err := r.Peek(max(n, r.Buffered()))
		n = len(b)
		if err != nil || bytes.IndexByte(b, '\n') >= 0 || !plausibleStart(b) {
			return b
		}
	}
}

// isRTSP says whether a connection that begins so speaks RTSP: a request or
// status line, an interleaved frame, or line ends before them. Anything that
// names HTTP, or has no second word, does not.
func isRTSP(first []byte) bool {
	switch first[0] {
	case '$', '\r', '\n':
		return true
	}
	line, _, _ := bytes.Cut(first, []byte("\n"))
	if !plausibleStart(line) || bytes.Contains(line, []byte(" HTTP/")) || bytes.Contains(line, []byte(" ICY/")) {
		return false
	}
	return len(bytes.Fields(line)) > 1
}

// refuse answers a client whose upstream cannot be reached.
func (s *Server) refuse(p *pair, first []byte) {
	if len(first) == 0 || !isRTSP(first) {
		return
	}
	_ = p.client.SetDeadline(time.Now().Add(time.Second))
	cseq := ""
	if e, err := NewReader(p.client, s.cfg.Limits, nil).Next(); err == nil && e.Kind == KindMessage {
		cseq = "CSeq: " + e.Message.Get("CSeq") + "\r\n"
	}
	_, _ = io.WriteString(p.client, "RTSP/1.0 502 Bad Gateway\r\n"+cseq+"Connection: close\r\n\r\n")
}

// dial connects to the upstream as configured.
func (s *Server) dial(ctx context.Context) (net.Conn, error) {
	d := &net.Dialer{Timeout: s.cfg.Limits.DialTimeout}
	if s.cfg.Upstream.Scheme == "rtsps" {
		return (&tls.Dialer{NetDialer: d, Config: s.upstreamTLS()}).DialContext(ctx, "tcp", s.upstream)
	}
	return d.DialContext(ctx, "tcp", s.upstream)
}

func (s *Server) upstreamTLS() *tls.Config {
	cfg := s.cfg.UpstreamTLS.Clone()
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		cfg.ServerName = s.cfg.Upstream.Hostname()
	}
	return cfg
}

func (s *Server) newConn(p *pair, secure bool) *Conn {
	c := &Conn{client: p.client, upstream: p.upstream, log: p.log, server: s, secure: secure, over: make(chan struct{})}
	c.exchanges.init()
	c.touch()
	c.tap = s.cfg.Open(c)
	s.mu.Lock()
	p.conn = c
	s.mu.Unlock()
	return c
}

// carry runs an RTSP conversation on one connection pair.
func (s *Server) carry(p *pair, secure bool) {
	c := s.newConn(p, secure)
	c.toClient.w, c.toUpstream.w = p.client, p.upstream
	client, upstream := s.readers(p)
	s.run(c, func() error {
		return c.leaving(c.fromClient(client, p.client))
	}, func() error {
		err := c.fromUpstream(upstream)
		if c.tap.Keep() {
			c.stay()
		}
		return err
	})
	c.exchanges.close()
	c.tap.Close()
}

// readers is not part of carry, nor prepare of serve, since what these have on
// their stack lasts as long as the connection does.
//
//go:noinline
func (s *Server) readers(p *pair) (client, upstream *Reader) {
	return NewReader(p.client, s.cfg.Limits, p.client.SetReadDeadline), NewReader(p.upstream, s.cfg.Limits, nil)
}

// splice passes both directions on unread.
func (s *Server) splice(p *pair) {
	p.log.Debug("not RTSP, passed on as it is")
	c := s.newConn(p, false)
	s.run(c, func() error { return copyRaw(p.upstream, p.client, c.touch) },
		func() error { return copyRaw(p.client, p.upstream, c.touch) })
	c.tap.Close()
}

// run carries both directions of a connection pair. An end of stream is
// passed on; an error ends both.
func (s *Server) run(c *Conn, up, down func() error) {
	done := make(chan struct{})
	go func() {
		s.finish(c, "client", c.upstream, up())
		close(done)
	}()
	s.finish(c, "upstream", c.client, down())
	<-done
	c.end()
}

// lingerAfterEnd is how long a connection of which one side has ended may be
// silent.
const lingerAfterEnd = 30 * time.Second

func (s *Server) finish(c *Conn, from string, to net.Conn, err error) {
	if errors.Is(err, io.EOF) {
		c.half.Store(true)
		closeWrite(to)
		return
	}
	if !isEnd(err) {
		c.log.Debug("connection broke", "from", from, "err", err)
	}
	c.end()
}
