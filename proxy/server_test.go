package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// plain is a Tap that only watches.
type plain struct {
	conn     *Conn
	request  func(*Exchange)
	response func(*Exchange, *Message)
	active   bool
	keep     bool
	leaving  func()
	closed   chan struct{}
}

func (t *plain) Request(ex *Exchange) {
	if t.request != nil {
		t.request(ex)
	}
}

func (t *plain) Response(ex *Exchange, m *Message) {
	if t.response != nil {
		t.response(ex, m)
	}
}
func (t *plain) ClientFrames(f []byte) []byte   { return f }
func (t *plain) UpstreamFrames(f []byte) []byte { return f }
func (t *plain) Leaving() {
	if t.leaving != nil {
		t.leaving()
	}
}
func (t *plain) Keep() bool         { return t.keep }
func (t *plain) Alone(ex *Exchange) { t.request(ex) }
func (t *plain) Active() bool       { return t.active }
func (t *plain) Close()             { close(t.closed) }

// rig is a Server in front of an upstream that the test plays by hand.
type rig struct {
	*testing.T
	addr  string       // the shim's
	up    net.Listener // the upstream's
	taps  chan *plain
	setup func(*plain)
}

// newRig starts a Server. change may alter its configuration.
func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{T: t, taps: make(chan *plain, 64)}
	r.up = listen(t)
	u, _ := url.Parse("rtsp://" + r.up.Addr().String())
	cfg := Config{Upstream: u, Logger: slog.New(slog.DiscardHandler), Open: func(c *Conn) Tap {
		p := &plain{conn: c, closed: make(chan struct{})}
		if r.setup != nil {
			r.setup(p)
		}
		select {
		case r.taps <- p:
		default: // nobody looks
		}
		return p
	}}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if len(s.pairs) != 0 || len(s.tunnels) != 0 {
			t.Errorf("left behind: %d connections, %d tunnels", len(s.pairs), len(s.tunnels))
		}
	})
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// end is one end of a connection in a test's hands.
type end struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func newEnd(t *testing.T, c net.Conn, err error) *end {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &end{t, c, bufio.NewReader(c)}
}

func (r *rig) dial() *end {
	r.Helper()
	c, err := net.Dial("tcp", r.addr)
	return newEnd(r.T, c, err)
}

func (r *rig) accept() *end {
	r.Helper()
	c, err := r.up.Accept()
	return newEnd(r.T, c, err)
}

func (e *end) send(s string) {
	e.Helper()
	if _, err := io.WriteString(e.Conn, s); err != nil {
		e.Error(err)
	}
}

func (e *end) expect(want string) {
	e.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(e.r, got)
	if err != nil || string(got) != want {
		e.Fatalf("got %q (%v)\nwant %q", got[:n], err, want)
	}
}

func (e *end) expectEnd() {
	e.Helper()
	if b, err := io.ReadAll(e.r); err != nil || len(b) > 0 {
		e.Fatalf("got %q, %v; want the end", b, err)
	}
}

// What passes, passes byte for byte, both ways, in order.
func TestConversation(t *testing.T) {
	r := newRig(t, nil)
	client := r.dial()
	client.send("OPTIONS * RTSP/1.0\ncseq : 1\n\n")
	server := r.accept()
	server.expect("OPTIONS * RTSP/1.0\ncseq : 1\n\n")
	for _, step := range []struct{ from, what string }{
		{"server", "RTSP/1.0 200 OK\nCseq:1\nX:  y\n\n"},
		{"client", "FROB rtsp://a/%20;x RTSP/3.7\r\nCSeq: 2\r\nContent-Length: 4\r\n\r\n\x00\x01\xff$"},
		{"client", "\r\n\r\n"},
		{"client", "SETUP a RTSP/1.0\r\nCSeq: 3\r\n\r\n"},
		{"server", "OPTIONS * RTSP/1.0\r\nContent-length: 2\r\n\r\nzz"}, // the upstream asks first
		{"client", "RTSP/1.0 200 OK\r\n\r\n"},
		{"server", "RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n"},
		{"server", "RTSP/1.0 400 Bad Request\r\nCseq: \r\n\r\n"},
		{"server", "RTSP/1.0 200 OK\r\n\r\n"},
		{"server", "$\x00\x00\x03abc$\x09\x00\x00"},
		{"client", "$\x01\x00\x04rrrr"},
		{"client", "no RTSP at all\x00\x01\x02"},
		{"server", "\x00still here"},
		{"client", "DESCRIBE behind RTSP/1.0\r\n\r\n"},
	} {
		from, to := client, server
		if step.from == "server" {
			from, to = server, client
		}
		from.send(step.what)
		to.expect(step.what)
	}
	_ = server.Close()
	client.expectEnd()
}

// A request leaves in one write, however it arrived: some servers hang on a
// split head.
func TestOneWrite(t *testing.T) {
	r := newRig(t, nil)
	client := r.dial()
	request := "DESCRIBE rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 3\r\n\r\nabc"
	server := r.accept()
	for i := range request {
		client.send(request[i : i+1])
	}
	b := make([]byte, 4096)
	if n, err := server.Read(b); err != nil || string(b[:n]) != request {
		t.Fatalf("first read: %q, %v", b[:n], err)
	}
}

func TestPipelinedFlood(t *testing.T) {
	r := newRig(t, nil)
	client := r.dial()
	const n = 10_000
	go func() {
		w := bufio.NewWriter(client.Conn)
		for i := range n {
			fmt.Fprintf(w, "OPTIONS * RTSP/1.0\r\nCSeq: %d\r\n\r\n", i)
		}
		_ = w.Flush()
	}()
	server := r.accept()
	go func() {
		for i := range n {
			if _, err := fmt.Fprintf(server.Conn, "RTSP/1.0 200 OK\r\nCSeq: %d\r\n\r\n", i); err != nil {
				return
			}
			if _, err := server.r.Discard(len(fmt.Sprintf("OPTIONS * RTSP/1.0\r\nCSeq: %d\r\n\r\n", i))); err != nil {
				return
			}
		}
	}()
	for i := range n {
		client.expect(fmt.Sprintf("RTSP/1.0 200 OK\r\nCSeq: %d\r\n\r\n", i))
	}
}

// The shim's own answers wait for their turn; its own requests are nobody
// else's business.
func TestAnswerAndDo(t *testing.T) {
	r := newRig(t, nil)
	r.setup = func(p *plain) {
		p.request = func(ex *Exchange) {
			if ex.Method == "KEEP" {
				ex.Answer("453 Not Enough Bandwidth")
			}
		}
	}
	client := r.dial()
	client.send("A u RTSP/1.0\r\nCSeq: 1\r\n\r\nKEEP u RTSP/1.0\r\nCSeq: 2\r\n\r\nB u RTSP/1.0\r\nCSeq: 3\r\n\r\n")
	server := r.accept()
	server.expect("A u RTSP/1.0\r\nCSeq: 1\r\n\r\nB u RTSP/1.0\r\nCSeq: 3\r\n\r\n")
	conn := (<-r.taps).conn
	answer := make(chan *Message, 1)
	go func() {
		m, err := conn.Do(context.Background(), "PAUSE u RTSP/1.0\r\nSession: x\r\n")
		if err != nil {
			t.Error(err)
		}
		answer <- m
	}()
	server.expect("PAUSE u RTSP/1.0\r\nSession: x\r\nCSeq: 1000000001\r\n\r\n")
	server.send("RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n")
	client.expect("RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\nRTSP/1.0 453 Not Enough Bandwidth\r\nCSeq: 2\r\n\r\n")
	server.send("RTSP/1.0 200 OK\r\nCSeq: 3\r\n\r\nRTSP/1.0 299 Own\r\nCSeq: 1000000001\r\n\r\n")
	client.expect("RTSP/1.0 200 OK\r\nCSeq: 3\r\n\r\n")
	if m := <-answer; m.Status() != 299 {
		t.Errorf("answer %q", m.StartLine())
	}
	_ = server.Close()
	client.expectEnd()
	if _, err := conn.Do(context.Background(), "PAUSE u RTSP/1.0\r\n"); err == nil {
		t.Error("Do on an ended connection")
	}
}

func TestLargeBodyStreams(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.MaxBody = 10 })
	client := r.dial()
	body := strings.Repeat("x", 1<<20)
	head := "ANNOUNCE u RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 1048576\r\n\r\n"
	go client.send(head + body + "OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n")
	server := r.accept()
	server.expect(head + body + "OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n")
	big := "RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 1048576\r\n\r\n" + body + "RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n"
	go server.send(big)
	client.expect(big)
}

func TestOwnAddressOnTheWire(t *testing.T) {
	r := newRig(t, nil)
	up := r.up.Addr().String()
	client := r.dial()
	client.send("DESCRIBE rtsp://shim.test:99/a RTSP/1.0\r\nCSeq: 1\r\n\r\n")
	server := r.accept()
	server.expect("DESCRIBE rtsp://shim.test:99/a RTSP/1.0\r\nCSeq: 1\r\n\r\n")
	answer := func(addr, ip, length string) string {
		return "RTSP/1.0 200 OK\r\nCSeq: 1\r\ncontent-base: rtsp://" + addr + "/a/\r\nX-Server-IP-Address: " + ip + "\r\nX-Other: rtsp://" + up +
			"/\r\nContent-length: " + length + "\r\n\r\nv=0\r\na=control:rtsp://" + addr + "/a/1\r\n"
	}
	body := func(addr string) string { return fmt.Sprint(len("v=0\r\na=control:rtsp:///a/1\r\n") + len(addr)) }
	server.send(answer(up, "127.0.0.1", body(up)))
	client.expect(answer("shim.test:99", "127.0.0.1", body("shim.test:99")))
}

func TestRewriteHost(t *testing.T) {
	r := newRig(t, func(c *Config) { c.RewriteHost = true })
	r.dial().send("DESCRIBE rtsp://shim.test:99/a?b RTSP/1.0\r\nCSeq: 1\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n")
	r.accept().expect("DESCRIBE rtsp://" + r.up.Addr().String() + "/a?b RTSP/1.0\r\nCSeq: 1\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n")
}

func TestNotRTSP(t *testing.T) {
	r := newRig(t, nil)
	for _, first := range []string{
		"GET /modules/admin HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", "POST /x HTTP/1.0\r\n\r\nbody",
		"SOURCE /mp3 ICY/1.0\r\n\r\n", "\x16\x03\x01 TLS for the upstream", "\x00\x01\x02",
		"GET /live HTTP/1.1\r\nUpgrade: websocket\r\nX-SessionCookie: c\r\n\r\n",
	} {
		client := r.dial()
		client.send(first)
		server := r.accept()
		server.expect(first)
		server.send("\x00anything")
		client.expect("\x00anything")
		client.send("more\r\n\r\n")
		server.expect("more\r\n\r\n")
		_ = client.Close()
		server.expectEnd()
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestTunnel(t *testing.T) {
	const (
		get   = "GET /a HTTP/1.0\r\nx-sessioncookie: k\r\nAccept: application/x-rtsp-tunnelled\r\n\r\n"
		post  = "POST /a HTTP/1.0\r\nX-SessionCookie: k\r\nContent-Length: 32767\r\n\r\n"
		hello = "HTTP/1.0 200 OK\r\nContent-Type: application/x-rtsp-tunnelled\r\n\r\n"
	)
	opened := func(r *rig) (down, upDown *end) {
		down = r.dial()
		down.send(get)
		upDown = r.accept()
		upDown.expect(get)
		upDown.send(hello)
		down.expect(hello)
		return down, upDown
	}
	posted := func(r *rig) (up, upUp *end) {
		up = r.dial()
		up.send(post)
		upUp = r.accept()
		upUp.expect(post)
		return up, upUp
	}
	talk := func(down, upDown, up, upUp *end, n int) {
		t.Helper()
		request := fmt.Sprintf("OPTIONS * RTSP/1.0\r\nCSeq: %d\r\n\r\n", n)
		up.send(b64(request))
		upUp.expect(b64(request))
		answer := fmt.Sprintf("RTSP/1.0 200 OK\r\nCSeq: %d\r\n\r\n$\x00\x00\x01x", n)
		upDown.send(answer)
		down.expect(answer)
	}
	t.Run("GET first, POST opened again", func(t *testing.T) {
		r := newRig(t, nil)
		down, upDown := opened(r)
		up, upUp := posted(r)
		talk(down, upDown, up, upUp, 1)
		talk(down, upDown, up, upUp, 2)
		_ = up.Close()
		upUp.expectEnd()
		up, upUp = posted(r)
		talk(down, upDown, up, upUp, 3)
		up.send(b64("A b RTSP/1.0\r\n")) // a request in two pieces leaves as one
		up.send(b64("CSeq: 4\r\n\r\n"))
		upUp.expect(b64("A b RTSP/1.0\r\nCSeq: 4\r\n\r\n"))
		up.send("%%%%") // not base64: the upstream may judge
		upUp.expect("%%%%")
		_ = down.Close()
		upDown.expectEnd()
		_ = upDown.Close()
		up.expectEnd()
	})
	// A client goes: the upstream hears of neither half before the Tap has.
	for name, order := range map[string][2]int{"GET goes first": {0, 1}, "POST goes first": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			left, heard := make(chan struct{}), make(chan struct{})
			r.setup = func(p *plain) { p.leaving = func() { close(left); <-heard } }
			down, upDown := opened(r)
			up, upUp := posted(r)
			talk(down, upDown, up, upUp, 1)
			ends := []*end{down, up}
			for _, n := range order {
				_ = ends[n].Close()
			}
			<-left
			for _, e := range []*end{upDown, upUp} {
				_ = e.SetReadDeadline(time.Now().Add(2 * partWait))
				if _, err := e.r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the upstream hears of it too early: %v", err)
				}
				_ = e.SetReadDeadline(time.Now().Add(10 * time.Second))
			}
			close(heard)
			upDown.expectEnd()
			upUp.expectEnd()
		})
	}
	t.Run("POST first", func(t *testing.T) {
		r := newRig(t, nil)
		up, upUp := posted(r)
		up.send(b64("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"))
		down, upDown := opened(r)
		upUp.expect(b64("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"))
		upUp.send("HTTP/1.0 200 OK\r\n\r\n") // an answer to the POST itself
		up.expect("HTTP/1.0 200 OK\r\n\r\n")
		talk(down, upDown, up, upUp, 2)
	})
	t.Run("POST closed before its first answer", func(t *testing.T) {
		r := newRig(t, nil)
		down, upDown := opened(r)
		up, upUp := posted(r)
		upUp.send(hello)
		up.expect(hello)
		const request = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"
		up.send(b64(request))
		upUp.expect(b64(request))
		for range 2 {
			_ = upUp.Close()
			upUp = r.accept()
			upUp.expect(post + b64(request)) // made again, with what was sent on it
		}
		upUp.send(hello) // of which the client has had one
		talk(down, upDown, up, upUp, 2)
		_ = upUp.Close() // not before its time any more
		up.expectEnd()
	})
	t.Run("POST of announced length", func(t *testing.T) {
		r := newRig(t, nil)
		opened(r)
		const request = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"
		whole := strings.Replace(post, "32767", fmt.Sprint(len(b64(request))), 1) + b64(request)
		up := r.dial()
		up.send(whole)
		upUp := r.accept()
		upUp.expect(whole)
		upUp.send(hello)
		_ = upUp.Close()
		up.expect(hello)
		up.expectEnd() // not made again: the upstream has it all
	})
	t.Run("refused", func(t *testing.T) {
		r := newRig(t, nil)
		down := r.dial()
		down.send(get)
		upDown := r.accept()
		upDown.expect(get)
		upDown.send("HTTP/1.0 404 Not Found\r\n\r\nnone")
		down.expect("HTTP/1.0 404 Not Found\r\n\r\nnone")
	})
}

func TestUpstreamRefuses(t *testing.T) {
	r := newRig(t, nil)
	_ = r.up.Close()
	client := r.dial()
	client.send("DESCRIBE rtsp://h/a RTSP/1.0\r\nCSeq: 5\r\n\r\n")
	client.expect("RTSP/1.0 502 Bad Gateway\r\nCSeq: 5\r\nConnection: close\r\n\r\n")
	client.expectEnd()
}

func TestTooManyConnections(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.MaxConns = 1 })
	first := r.dial()
	first.send("OPTIONS * RTSP/1.0\r\n\r\n")
	server := r.accept()
	server.expect("OPTIONS * RTSP/1.0\r\n\r\n")
	second := r.dial()
	second.expect("RTSP/1.0 503 Service Unavailable\r\nConnection: close\r\n\r\n")
	second.expectEnd()
	server.send("RTSP/1.0 200 OK\r\n\r\n")
	first.expect("RTSP/1.0 200 OK\r\n\r\n")
}

func TestIdleConnection(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.IdleTimeout = 200 * time.Millisecond })
	busy := make(chan bool, 2)
	r.setup = func(p *plain) { p.active = <-busy }
	for _, active := range []bool{true, false} {
		busy <- active
		client := r.dial()
		client.send("OPTIONS * RTSP/1.0\r\n\r\n")
		r.accept().expect("OPTIONS * RTSP/1.0\r\n\r\n")
		if active {
			defer func() { // outlives the idle one
				client.send("B u RTSP/1.0\r\n\r\n")
			}()
			continue
		}
		client.expectEnd()
	}
}

// A client that only half closes still gets its answers.
func TestHalfClose(t *testing.T) {
	r := newRig(t, nil)
	client := r.dial()
	client.send("OPTIONS * RTSP/1.0\r\n\r\n")
	_ = client.Conn.(*net.TCPConn).CloseWrite()
	server := r.accept()
	server.expect("OPTIONS * RTSP/1.0\r\n\r\n")
	server.expectEnd()
	server.send("RTSP/1.0 200 OK\r\n\r\n")
	_ = server.Close()
	client.expect("RTSP/1.0 200 OK\r\n\r\n")
	client.expectEnd()
}

func TestTLS(t *testing.T) {
	cert, roots := certificate(t)
	ours := &tls.Config{Certificates: []tls.Certificate{cert}}
	theirs := &tls.Config{RootCAs: roots, ServerName: "shim.test"}
	const request, answer = "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", "RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Base: %s/\r\n\r\n"
	try := func(t *testing.T, r *rig, dial func() net.Conn, accept func() *end) {
		t.Helper()
		client := newEnd(t, dial(), nil)
		go client.send(request)
		server := accept()
		server.expect(request)
		server.send("RTSP/1.0 200 OK\r\n\r\n")
		client.expect("RTSP/1.0 200 OK\r\n\r\n")
	}
	secure := func(r *rig) func() net.Conn {
		return func() net.Conn { return tls.Client(r.dial().Conn, theirs) }
	}
	open := func(r *rig) func() net.Conn { return func() net.Conn { return r.dial().Conn } }
	acceptTLS := func(r *rig) func() *end {
		return func() *end { return newEnd(t, tls.Server(r.accept().Conn, ours), nil) }
	}
	t.Run("client", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.ClientTLS = ours })
		try(t, r, secure(r), r.accept)
		try(t, r, open(r), r.accept) // the same port speaks both
	})
	t.Run("upstream", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Upstream.Scheme, c.UpstreamTLS = "rtsps", theirs })
		try(t, r, open(r), acceptTLS(r))
	})
	t.Run("passed through", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Upstream.Scheme, c.UpstreamTLS = "rtsps", theirs })
		try(t, r, secure(r), acceptTLS(r))
	})
	t.Run("upstream not trusted", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Upstream.Scheme = "rtsps" })
		client := r.dial()
		client.send(request)
		server := acceptTLS(r)()
		_, _ = server.Read(make([]byte, 1)) // the handshake fails
		client.expect("RTSP/1.0 502 Bad Gateway\r\nCSeq: 1\r\nConnection: close\r\n\r\n")
	})
	t.Run("own address becomes rtsps", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.ClientTLS = ours })
		client := newEnd(t, secure(r)(), nil)
		client.send("DESCRIBE rtsps://shim.test/a RTSP/1.0\r\nCSeq: 1\r\n\r\n")
		server := r.accept()
		server.expect("DESCRIBE rtsps://shim.test/a RTSP/1.0\r\nCSeq: 1\r\n\r\n")
		server.send(fmt.Sprintf(answer, "rtsp://"+r.up.Addr().String()))
		client.expect(fmt.Sprintf(answer, "rtsps://shim.test"))
	})
}

// certificate makes a certificate for shim.test and a pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"shim.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// One connection's rubbish is nobody else's trouble.
func TestBadInputHarmsNobody(t *testing.T) {
	r := newRig(t, nil)
	good := r.dial()
	good.send("OPTIONS * RTSP/1.0\r\nCSeq: 0\r\n\r\n")
	server := r.accept()
	server.expect("OPTIONS * RTSP/1.0\r\nCSeq: 0\r\n\r\n")
	var sinks sync.WaitGroup
	for _, bad := range []string{
		"DESCRIBE u RTSP/1.0\r\nX: " + strings.Repeat("y", 1<<20),
		"DESCRIBE u RTSP/1.0\r\n" + strings.Repeat("X: y\r\n", 1<<18),
		"A b RTSP/1.0\r\nContent-Length: -5\r\n\r\nabc",
		"A b RTSP/1.0\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
		"A b RTSP/1.0\r\nContent-Length: 9223372036854775807\r\n\r\nabc",
		strings.Repeat("\x00", 1<<16),
		"$\x00\xff\xffshort", "RTSP/1.0 200 OK\r\n\r\n",
		strings.Repeat("\r\n", 1<<16),
	} {
		client := r.dial()
		up := r.accept()
		sinks.Go(func() {
			got, err := io.ReadAll(up.r)
			if err != nil || string(got) != bad {
				t.Errorf("%.40q: %d of %d octets arrived, %v", bad, len(got), len(bad), err)
			}
		})
		client.send(bad)
		_ = client.Close()
	}
	sinks.Wait()
	server.send("RTSP/1.0 200 OK\r\nCSeq: 0\r\n\r\n")
	good.expect("RTSP/1.0 200 OK\r\nCSeq: 0\r\n\r\n")
}

// A client that is kept when the upstream has gone is answered by the Tap.
func TestStaysAlone(t *testing.T) {
	r := newRig(t, nil)
	r.setup = func(p *plain) {
		p.keep = true
		p.request = func(ex *Exchange) {
			if ex.Method == "TEARDOWN" {
				ex.Answer("200 OK")
			}
		}
	}
	client := r.dial()
	client.send("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
	server := r.accept()
	server.expect("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
	conn := (<-r.taps).conn
	_ = server.Close()
	for !conn.alone.Load() {
		time.Sleep(time.Millisecond) // no event tells
	}
	if err := conn.WriteFrames(net.Buffers{[]byte("$\x00\x00\x01"), []byte("x")}); err != nil {
		t.Error(err)
	}
	client.expect("$\x00\x00\x01x")
	client.send("$\x01\x00\x01yPLAY u RTSP/1.0\r\nCSeq: 2\r\n\r\nTEARDOWN u RTSP/1.0\r\nCSeq: 3\r\n\r\n")
	client.expect("RTSP/1.0 503 Service Unavailable\r\nCSeq: 2\r\n\r\nRTSP/1.0 200 OK\r\nCSeq: 3\r\n\r\n")
	conn.Close()
	client.expectEnd()
}
