package testbed

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtp"
)

// GortsplibOptions says how gortsplib's server shall be. The zero value is on
// 127.0.0.1, over UDP and TCP, open to anybody.
type GortsplibOptions struct {
	Host        string // address to listen on; 127.0.0.1
	Auth        Auth   // asked of readers and publishers alike
	TLS         bool   // rtsps, with plain RTP interleaved in it; implies NoUDP
	SRTP        bool   // rtsps, with SRTP (keys in MIKEY), as the library does by itself; implies NoUDP
	NoUDP       bool   // interleaved TCP only
	Multicast   bool   // offer multicast too
	IdleTimeout time.Duration
	WriteQueue  int                             // packets that may wait for each reader, a power of two; 256
	Listen      func(net.Listener) net.Listener // put between the server and its listener; nil: nothing
}

// Gortsplib is a running server of gortsplib, in this process. Any path may be
// published (ANNOUNCE/RECORD) and is then read by whoever asks for it, until its
// publisher goes.
type Gortsplib struct {
	Upstream
	server  *gortsplib.Server
	auth    bool
	mu      sync.Mutex
	paths   map[string]*gortsplibPath
	changed chan struct{} // closed and replaced at each change of paths and counts
	opened  int
	closed  int

	tornDown int // of the closed ones, by TEARDOWN
}

type gortsplibPath struct {
	stream    *gortsplib.ServerStream
	publisher *gortsplib.ServerSession // nil: packets written by the test
	recording bool
}

// StartGortsplib starts gortsplib's server and returns when it listens.
func StartGortsplib(tb testing.TB, o GortsplibOptions) *Gortsplib {
	tb.Helper()
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(o.Host, "0"))
	if err != nil {
		tb.Fatalf("gortsplib: %v", err)
	}
	if o.Listen != nil {
		listener = o.Listen(listener)
	}
	g := &Gortsplib{
		Upstream: Upstream{Name: "gortsplib", Addr: listener.Addr().String(), TLS: o.TLS || o.SRTP, Auth: o.Auth},
		auth:     o.Auth != NoAuth,
		paths:    make(map[string]*gortsplibPath),
		changed:  make(chan struct{}),
	}
	g.server = &gortsplib.Server{
		Handler:     &gortsplibHandler{g},
		RTSPAddress: g.Addr,
		IdleTimeout: o.IdleTimeout,

		WriteQueueSize: o.WriteQueue,
		// Bound here already, so that no other program can take the port between.
		Listen: func(string, string) (net.Listener, error) { return listener, nil },
	}
	switch o.Auth {
	case Basic:
		g.server.AuthMethods = []auth.VerifyMethod{auth.VerifyMethodBasic}
	case DigestMD5:
		g.server.AuthMethods = []auth.VerifyMethod{auth.VerifyMethodDigestMD5}
	case DigestSHA256:
		g.server.AuthMethods = []auth.VerifyMethod{auth.VerifyMethodDigestSHA256}
	}
	switch {
	case o.SRTP:
		g.server.TLSConfig = TLSConfig(tb)
	case o.TLS:
		// Told of the certificate the library would offer SRTP alone, which ffmpeg cannot play.
		listener = tls.NewListener(listener, TLSConfig(tb))
	}
	if !o.NoUDP && !o.TLS && !o.SRTP {
		g.offerUDP(tb, o)
	}
	if err := g.server.Start(); err != nil {
		tb.Fatalf("gortsplib: %v", err)
	}
	tb.Cleanup(func() {
		g.server.Close()
		if err := g.server.Wait(); err != nil && !errors.As(err, &liberrors.ErrServerTerminated{}) {
			tb.Errorf("gortsplib: %v", err)
		}
	})
	return g
}

// offerUDP gives the server a pair of UDP ports and, if asked, multicast.
func (g *Gortsplib) offerUDP(tb testing.TB, o GortsplibOptions) {
	tb.Helper()
	rtpConn, rtcpConn := UDPPair(tb, o.Host)
	g.server.UDPRTPAddress = rtpConn.LocalAddr().String()
	g.server.UDPRTCPAddress = rtcpConn.LocalAddr().String()
	g.server.UDPReadBufferSize = 1 << 20
	if o.Multicast {
		a, b := UDPPair(tb, o.Host)
		g.server.MulticastIPRange = "224.1.0.0/16"
		g.server.MulticastRTPPort = a.LocalAddr().(*net.UDPAddr).Port
		g.server.MulticastRTCPPort = b.LocalAddr().(*net.UDPAddr).Port
		for _, conn := range []*net.UDPConn{a, b} {
			if err := conn.Close(); err != nil {
				tb.Fatalf("gortsplib: %v", err)
			}
		}
	}
	given := map[string]net.PacketConn{
		g.server.UDPRTPAddress:  rtpConn,
		g.server.UDPRTCPAddress: rtcpConn,
	}
	g.server.ListenPacket = func(network, address string) (net.PacketConn, error) {
		if conn := given[address]; conn != nil {
			delete(given, address)
			return conn, nil
		}
		return net.ListenPacket(network, address)
	}
}

// Publish offers desc at path ("/x") and returns the stream, into which the test
// writes packets.
func (g *Gortsplib) Publish(tb testing.TB, path string, desc *description.Session) *gortsplib.ServerStream {
	tb.Helper()
	stream := &gortsplib.ServerStream{Server: g.server, Desc: desc}
	if err := stream.Initialize(); err != nil {
		tb.Fatalf("gortsplib: %s: %v", path, err)
	}
	if !g.add(path, &gortsplibPath{stream: stream, recording: true}) {
		stream.Close()
		tb.Fatalf("gortsplib: %s is published already", path)
	}
	return stream
}

// AwaitPublished returns once path ("/x") is being recorded, so that a reader
// finds it.
func (g *Gortsplib) AwaitPublished(tb testing.TB, path string) {
	tb.Helper()
	g.await(tb, "publisher of "+path, func() bool {
		p := g.paths[path]
		return p != nil && p.recording
	})
}

// AwaitSessions returns once the server has exactly n sessions, readers and
// publishers together.
func (g *Gortsplib) AwaitSessions(tb testing.TB, n int) {
	tb.Helper()
	g.await(tb, fmt.Sprintf("%d sessions", n), func() bool { return g.opened-g.closed == n })
}

// TornDown is how many sessions were ended by a TEARDOWN so far.
func (g *Gortsplib) TornDown() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tornDown
}

// await returns once met, called with g.mu held, says so.
func (g *Gortsplib) await(tb testing.TB, what string, met func() bool) {
	tb.Helper()
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	for {
		g.mu.Lock()
		ok, changed := met(), g.changed
		g.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			tb.Fatalf("gortsplib: no %s in %v", what, readyTimeout)
		}
	}
}

// note tells who waits that something changed; g.mu is held.
func (g *Gortsplib) note() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// Sent is how many octets the server has sent to the readers of path ("/x").
func (g *Gortsplib) Sent(path string) uint64 {
	if s := g.stream(path); s != nil {
		return s.Stats().OutboundBytes
	}
	return 0
}

func (g *Gortsplib) add(path string, p *gortsplibPath) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paths[path] != nil {
		return false
	}
	g.paths[path] = p
	g.note()
	return true
}

func (g *Gortsplib) stream(path string) *gortsplib.ServerStream {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.paths[strings.TrimSuffix(path, "/")]; p != nil {
		return p.stream
	}
	return nil
}

// gortsplibHandler is what the library calls; it keeps those methods out of
// Gortsplib's own.
type gortsplibHandler struct{ g *Gortsplib }

// The library adds headers to the answer it is given: never give one twice.
func answerOK() *base.Response       { return &base.Response{StatusCode: base.StatusOK} }
func answerNotFound() *base.Response { return &base.Response{StatusCode: base.StatusNotFound} }

func (h *gortsplibHandler) refuses(conn *gortsplib.ServerConn, req *base.Request) bool {
	return h.g.auth && !conn.VerifyCredentials(req, User, Pass)
}

func (h *gortsplibHandler) unauthorized() (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusUnauthorized}, liberrors.ErrServerAuth{}
}

// OnSessionOpen counts.
func (h *gortsplibHandler) OnSessionOpen(*gortsplib.ServerHandlerOnSessionOpenCtx) {
	h.g.mu.Lock()
	defer h.g.mu.Unlock()
	h.g.opened++
	h.g.note()
}

// OnSessionClose counts, and takes down what the session published.
func (h *gortsplibHandler) OnSessionClose(ctx *gortsplib.ServerHandlerOnSessionCloseCtx) {
	h.g.mu.Lock()
	defer h.g.mu.Unlock()
	h.g.closed++
	if errors.As(ctx.Error, &liberrors.ErrServerSessionTornDown{}) {
		h.g.tornDown++
	}
	for path, p := range h.g.paths {
		if p.publisher == ctx.Session {
			p.stream.Close()
			delete(h.g.paths, path)
		}
	}
	h.g.note()
}

// OnDescribe answers with the published description.
func (h *gortsplibHandler) OnDescribe(ctx *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if h.refuses(ctx.Conn, ctx.Request) {
		res, err := h.unauthorized()
		return res, nil, err
	}
	stream := h.g.stream(ctx.Path)
	if stream == nil {
		return answerNotFound(), nil, nil
	}
	return answerOK(), stream, nil
}

// OnAnnounce takes a publisher, one for each path.
func (h *gortsplibHandler) OnAnnounce(ctx *gortsplib.ServerHandlerOnAnnounceCtx) (*base.Response, error) {
	if h.refuses(ctx.Conn, ctx.Request) {
		return h.unauthorized()
	}
	stream := &gortsplib.ServerStream{Server: h.g.server, Desc: ctx.Description}
	if err := stream.Initialize(); err != nil {
		return &base.Response{StatusCode: base.StatusBadRequest}, err
	}
	if !h.g.add(ctx.Path, &gortsplibPath{stream: stream, publisher: ctx.Session}) {
		stream.Close()
		return &base.Response{StatusCode: base.StatusForbidden}, errors.New("the path is published already")
	}
	return answerOK(), nil
}

// OnSetup is called for readers and publishers.
func (h *gortsplibHandler) OnSetup(ctx *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if ctx.Session.State() == gortsplib.ServerSessionStatePreRecord {
		return answerOK(), nil, nil
	}
	if h.refuses(ctx.Conn, ctx.Request) {
		res, err := h.unauthorized()
		return res, nil, err
	}
	stream := h.g.stream(ctx.Path)
	if stream == nil {
		return answerNotFound(), nil, nil
	}
	return answerOK(), stream, nil
}

// OnPlay has nothing to add.
func (h *gortsplibHandler) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	return answerOK(), nil
}

// OnPause has nothing to add.
func (h *gortsplibHandler) OnPause(*gortsplib.ServerHandlerOnPauseCtx) (*base.Response, error) {
	return answerOK(), nil
}

// OnGetParameter answers the keep-alive of clients.
func (h *gortsplibHandler) OnGetParameter(*gortsplib.ServerHandlerOnGetParameterCtx) (*base.Response, error) {
	return answerOK(), nil
}

// OnRecord lets the publisher's packets through to the readers.
func (h *gortsplibHandler) OnRecord(ctx *gortsplib.ServerHandlerOnRecordCtx) (*base.Response, error) {
	stream := h.g.stream(ctx.Path)
	if stream == nil {
		return answerNotFound(), nil
	}
	ctx.Session.OnPacketRTPAny(func(media *description.Media, _ format.Format, packet *rtp.Packet) {
		// An error here is a reader too slow or gone: its own affair, and it shows
		// in the frames that reader reports.
		_ = stream.WritePacketRTP(media, packet)
	})
	h.g.mu.Lock()
	defer h.g.mu.Unlock()
	if p := h.g.paths[strings.TrimSuffix(ctx.Path, "/")]; p != nil {
		p.recording = true
		h.g.note()
	}
	return answerOK(), nil
}
