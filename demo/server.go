package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"
)

// Config says what a Server serves and how. Only Movies is needed.
type Config struct {
	// Addr is the host and port to listen on; "127.0.0.1:0" when empty.
	Addr string

	// Movies holds the hinted movies: os.DirFS, an embed.FS, an fstest.MapFS.
	// Its files must be io.ReaderAts, as those three's are. The movie "a.mp4" is
	// served at /a.mp4, and in an endless loop at /live/a.mp4.
	Movies fs.FS

	// Timeout ends a session that shows no life: no RTSP request, no RTCP. 60 s
	// when zero.
	Timeout time.Duration

	// TCPLead is how far packets over TCP run ahead of their time at most: at
	// once by about a second, then more and more. Darwin's 25 s when zero, none
	// when negative. Live streams cannot run ahead.
	TCPLead time.Duration

	// ReportInterval is the time between sender reports; 7 s when zero.
	ReportInterval time.Duration

	// ByeAtEnd sends an RTCP BYE at the end of a movie. Otherwise there is
	// silence. The session stays in either case.
	ByeAtEnd bool

	// PausedNeedsRTSP lets paused sessions live on RTSP requests alone, as
	// MediaMTX and gst-rtsp-server do. Otherwise RTCP is as good.
	PausedNeedsRTSP bool

	// LiveApart gives each reader of a live stream its own SSRC and numbers.
	// Otherwise all see the same packets, as with MediaMTX.
	LiveApart bool

	// LiveBehind has each reader of a live stream begin so far in the past, with
	// all at once that has been sent since: much as with Darwin's reflector.
	LiveBehind time.Duration

	// MaxSessions is how many sessions there may be; the next gets 453. 10,000
	// when zero.
	MaxSessions int

	Faults Faults
	Logger *slog.Logger // nil is slog.Default()
}

// Faults are what a test makes the server do wrong; all are nil or false on a
// good server. The functions are called from many goroutines.
type Faults struct {
	// Refuse returns the status to refuse a request with, 0 to serve it.
	Refuse func(method, uri string) int

	// Delay is how long a request waits before it is looked at. Packets flow on.
	Delay func(method, uri string) time.Duration

	// Late is how long the answer to a PLAY waits while its packets flow.
	Late func(uri string) time.Duration

	// Answer may change the bytes of a response.
	Answer func(method string, response []byte) []byte

	// Packet may change an RTP packet, the n-th (from 0) of its session; when
	// it returns nil the packet is lost. The bytes are on loan for the call.
	Packet func(session string, track uint32, n uint64, packet []byte) []byte

	// IgnorePause answers PAUSE and goes on sending.
	IgnorePause bool

	// NoGoodbye ends sessions without a BYE, as a server that is killed does.
	NoGoodbye bool
}

// FlipAfter is a Faults.Packet that flips the last payload byte of every
// packet of a session from the n-th (from 0) on.
func FlipAfter(n uint64) func(string, uint32, uint64, []byte) []byte {
	return func(_ string, _ uint32, at uint64, packet []byte) []byte {
		if at >= n {
			packet[len(packet)-1] ^= 0xff
		}
		return packet
	}
}

const (
	maxConns    = 20_000
	maxMovies   = 256 // live at once
	portTries   = 100
	rtcpLargest = 1500
)

// Server is a running server.
type Server struct {
	cfg       Config
	log       *slog.Logger
	listener  net.Listener
	rtp, rtcp *net.UDPConn
	ctx       context.Context
	cancel    context.CancelFunc
	work      sync.WaitGroup
	sent      atomic.Uint64

	mu       sync.Mutex // of what follows; taken last, for short
	closed   bool
	conns    map[*conn]struct{}
	sessions map[string]*session
	opened   uint64
	byRTCP   map[netip.AddrPort]*stream // where receiver reports come from
	lives    map[string]*live
}

// Start starts a server, which then listens.
func Start(cfg Config) (*Server, error) {
	cfg.Addr = cmp.Or(cfg.Addr, "127.0.0.1:0")
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	cfg.TCPLead = cmp.Or(cfg.TCPLead, 25*time.Second)
	cfg.ReportInterval = cmp.Or(cfg.ReportInterval, 7*time.Second)
	cfg.MaxSessions = cmp.Or(cfg.MaxSessions, 10_000)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Movies == nil {
		return nil, errors.New("demo: no movies named")
	}
	s := &Server{cfg: cfg, log: cfg.Logger, conns: map[*conn]struct{}{}, sessions: map[string]*session{},
		byRTCP: map[netip.AddrPort]*stream{}, lives: map[string]*live{}}
	var err error
	if s.listener, err = net.Listen("tcp", cfg.Addr); err != nil {
		return nil, fmt.Errorf("demo: listen: %w", err)
	}
	if s.rtp, s.rtcp, err = listenPair(s.listener.Addr().(*net.TCPAddr).IP); err != nil {
		_ = s.listener.Close()
		return nil, fmt.Errorf("demo: UDP ports: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.work.Go(s.accept)
	s.work.Go(s.readRTCP)
	s.work.Go(s.sweep)
	return s, nil
}

// listenPair opens an even port of ip and the odd one above it (RFC 3550 §11).
func listenPair(ip net.IP) (even, odd *net.UDPConn, err error) {
	for range portTries {
		if even, err = net.ListenUDP("udp", &net.UDPAddr{IP: ip}); err != nil {
			return nil, nil, err
		}
		port := even.LocalAddr().(*net.UDPAddr).Port
		if port%2 == 0 {
			if odd, err = net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: port + 1}); err == nil {
				return even, odd, nil
			}
		}
		_ = even.Close()
	}
	return nil, nil, cmp.Or(err, errors.New("no free pair"))
}

// Addr is the host and port the server listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL is the URL of a path ("/a.mp4").
func (s *Server) URL(path string) string { return "rtsp://" + s.Addr() + path }

// Close ends all sessions, with a BYE, and returns when everything has ended.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	conns, sessions := keys(s.conns), values(s.sessions)
	s.mu.Unlock()
	s.cancel()
	for _, c := range conns {
		c.close() // first: nobody waits for a slow reader then
	}
	for _, x := range sessions {
		x.end("server closed")
	}
	err := errors.Join(s.listener.Close(), s.rtp.Close(), s.rtcp.Close())
	s.work.Wait()
	return err
}

func keys[K comparable, V any](m map[K]V) []K {
	var all []K
	for k := range m {
		all = append(all, k)
	}
	return all
}

func values[K comparable, V any](m map[K]V) []V {
	var all []V
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// accept takes connections until the listener is closed.
func (s *Server) accept() {
	for {
		nc, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("demo: accept", "err", err)
			select {
			case <-time.After(50 * time.Millisecond): // out of files, most likely
			case <-s.ctx.Done():
				return
			}
			continue
		}
		c := newConn(s, nc)
		s.mu.Lock()
		ok := !s.closed && len(s.conns) < maxConns
		if ok {
			s.conns[c] = struct{}{}
			s.work.Go(c.read)
			s.work.Go(c.write)
		}
		s.mu.Unlock()
		if !ok {
			_ = nc.Close()
		}
	}
}

// readRTCP takes receiver reports as signs of life.
func (s *Server) readRTCP() {
	b := make([]byte, rtcpLargest)
	for {
		n, from, err := s.rtcp.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // ICMP about another packet
		}
		s.mu.Lock()
		st := s.byRTCP[netip.AddrPortFrom(from.Addr().Unmap(), from.Port())]
		s.mu.Unlock()
		if st != nil {
			st.report(b[:n], time.Now())
		}
	}
}

// report takes RTCP from the reader; what is not RTCP opens holes in a NAT.
func (st *stream) report(b []byte, now time.Time) {
	if _, err := rtcp.Unmarshal(b); err != nil {
		return
	}
	st.reports.Add(1)
	if !st.session.srv.cfg.PausedNeedsRTSP || st.session.state.Load() == playing {
		st.session.touch(now)
	}
}

// sweep ends sessions that show no life.
func (s *Server) sweep() {
	tick := time.NewTicker(max(s.cfg.Timeout/20, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			s.mu.Lock()
			sessions := values(s.sessions)
			s.mu.Unlock()
			for _, x := range sessions {
				if now.UnixNano()-x.seen.Load() > int64(s.cfg.Timeout) {
					x.end("timed out")
					x.control.Load().close()
				}
			}
		}
	}
}

// session finds a session by its ID.
func (s *Server) session(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

// Track is one track of a session, set up.
type Track struct {
	ID        uint32 // of the hint track
	Transport string // "udp" or "tcp"
	SSRC      uint32
	Packets   uint64 // RTP, sent
	Octets    uint64 // of RTP, headers included
	Reports   uint64 // RTCP packets received
}

// Session is what the server knows of one session.
type Session struct {
	ID      string
	Path    string // of the movie: "/a.mp4", "/live/a.mp4"
	State   string // "ready", "playing" or "paused"
	Packets uint64 // RTP, sent, of all tracks that were ever set up
	Last    time.Time
	Tracks  []Track

	// Requests counts the requests in the session, by method.
	Requests map[string]int
}

// Sessions returns the sessions there are, the oldest first.
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	sessions := values(s.sessions)
	s.mu.Unlock()
	slices.SortFunc(sessions, func(a, b *session) int { return cmp.Compare(a.number, b.number) })
	all := make([]Session, len(sessions))
	for i, x := range sessions {
		all[i] = x.snapshot()
	}
	return all
}

// Sent is the number of RTP packets sent by all sessions, past ones included.
func (s *Server) Sent() uint64 { return s.sent.Load() }

// Opened is the number of sessions there have been.
func (s *Server) Opened() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

func addrPortUDP(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }
