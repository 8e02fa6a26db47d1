package bench

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
)

const (
	agent     = "shim-bench"
	maxEarly  = 1 << 20 // octets of interleaved frames before the answer to PLAY
	maxBody   = 1 << 20
	maxMedias = 16
	readSize  = 4 << 10
)

// client is the signalling of one session until it plays.
type client struct {
	nc      net.Conn
	in      *bufio.Reader
	cseq    int
	session string
	user    *url.Userinfo
	auth    *auth.Sender
	early   []byte // interleaved frames that came before an answer
}

// response is what an RTSP server answered.
type response struct {
	status int
	header textproto.MIMEHeader
	body   string
}

// statusError is an answer other than 200.
type statusError struct {
	method string
	status int
}

func (e statusError) Error() string { return fmt.Sprintf("%s: status %d", e.method, e.status) }

// dial connects to the host of u.
func dial(ctx context.Context, u *url.URL) (*client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "554")))
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(deadline)
	}
	return &client{nc: nc, in: bufio.NewReaderSize(nc, readSize), user: u.User}, nil
}

// do sends a request, once more with credentials if asked for, and returns the
// answer, which is a 200.
func (c *client) do(method, uri string, lines ...string) (*response, error) {
	for {
		r, err := c.ask(method, uri, lines)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", method, err)
		}
		if r.status == 401 && c.auth == nil && c.user != nil {
			pass, _ := c.user.Password()
			s := &auth.Sender{WWWAuth: r.header["Www-Authenticate"], User: c.user.Username(), Pass: pass}
			if err := s.Initialize(); err != nil {
				return nil, fmt.Errorf("%s: %w", method, err)
			}
			c.auth = s
			continue
		}
		if r.status != 200 {
			return nil, statusError{method, r.status}
		}
		return r, nil
	}
}

// authorization is the header line, with its end, that method needs; "" if none.
func (c *client) authorization(method, uri string) string {
	if c.auth == nil {
		return ""
	}
	u, err := base.ParseURL(uri)
	if err != nil {
		return ""
	}
	r := base.Request{Method: base.Method(method), URL: u}
	c.auth.AddAuthorization(&r)
	return "Authorization: " + strings.Join(r.Header["Authorization"], ", ") + "\r\n"
}

func (c *client) ask(method, uri string, lines []string) (*response, error) {
	c.cseq++
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s RTSP/1.0\r\nCSeq: %d\r\nUser-Agent: %s\r\n", method, uri, c.cseq, agent)
	if c.session != "" {
		fmt.Fprintf(&b, "Session: %s\r\n", c.session)
	}
	b.WriteString(c.authorization(method, uri))
	for _, l := range lines {
		b.WriteString(l + "\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(c.nc, b.String()); err != nil {
		return nil, err
	}
	return c.answer()
}

// answer reads a response. Frames that come before it are kept.
func (c *client) answer() (*response, error) {
	for {
		b, err := c.in.Peek(1)
		if err != nil {
			return nil, err
		}
		if b[0] != '$' {
			break
		}
		head, err := c.in.Peek(4)
		if err != nil {
			return nil, err
		}
		n := 4 + int(head[2])<<8 + int(head[3])
		if len(c.early)+n > maxEarly {
			return nil, errors.New("no answer among the frames")
		}
		at := len(c.early)
		c.early = append(c.early, make([]byte, n)...)
		if _, err := io.ReadFull(c.in, c.early[at:]); err != nil {
			return nil, err
		}
	}
	text := textproto.NewReader(c.in)
	line, err := text.ReadLine()
	if err != nil {
		return nil, err
	}
	rest, ok := strings.CutPrefix(line, "RTSP/1.0 ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if !ok || err != nil {
		return nil, fmt.Errorf("not an answer: %.40q", line)
	}
	r := &response{status: status}
	if r.header, err = text.ReadMIMEHeader(); err != nil {
		return nil, err
	}
	length := 0
	if v := r.header.Get("Content-Length"); v != "" {
		if length, err = strconv.Atoi(v); err != nil || length < 0 || length > maxBody {
			return nil, fmt.Errorf("Content-Length %.20q", v)
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	r.body = string(body)
	if id, _, _ := strings.Cut(r.header.Get("Session"), ";"); id != "" {
		c.session = strings.TrimSpace(id)
	}
	return r, nil
}

// plan says what a viewer asks for.
type plan struct {
	index  int
	pair   int // of sessions to compare, -1: in none
	url    string
	tcp    bool
	spread float64       // where between 0 and the movie's length to start
	room   time.Duration // that must be left to play
	full   bool
	each   bool
	extra  bool
}

// open sets up a session that plays. Its reader has yet to be given to it.
func open(ctx context.Context, p plan) (_ *session, err error) {
	u, err := url.Parse(p.url)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	c, err := dial(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &session{index: p.index, pair: p.pair, url: p.url, tcp: p.tcp, extra: p.extra}
	defer func() {
		if err != nil {
			_ = c.nc.Close()
			s.close()
		}
	}()
	s.times.connect = time.Since(began)
	u.User = nil
	d, err := s.describe(c, u.String())
	if err != nil {
		return nil, err
	}
	s.live = d.length == 0
	if room := d.length - p.room; room > 0 {
		s.start = time.Duration(p.spread * float64(room))
	}
	began = time.Now()
	for i, m := range d.medias {
		if err := s.setup(c, i, m, p); err != nil {
			return nil, err
		}
	}
	s.times.setup = time.Since(began)
	var lines []string
	if !s.live {
		lines = append(lines, fmt.Sprintf("Range: npt=%.3f-", s.start.Seconds()))
	}
	s.times.playSent = time.Now()
	if _, err = c.do("PLAY", d.control, lines...); err != nil {
		return nil, err
	}
	s.times.play = time.Since(s.times.playSent)
	return s, s.settle(c, d.control)
}

// describe asks what there is to set up.
func (s *session) describe(c *client, uri string) (sdpInfo, error) {
	began := time.Now()
	r, err := c.do("DESCRIBE", uri, "Accept: application/sdp")
	if err != nil {
		return sdpInfo{}, err
	}
	s.times.describe = time.Since(began)
	base := cmp.Or(r.header.Get("Content-Base"), r.header.Get("Content-Location"), uri)
	d := parseSDP(r.body, base)
	if len(d.medias) == 0 || len(d.medias) > maxMedias {
		return d, fmt.Errorf("DESCRIBE: %d medias", len(d.medias))
	}
	return d, nil
}

// setup sets up one media.
func (s *session) setup(c *client, i int, m media, p plan) (err error) {
	t := &track{counter: counter{rate: m.rate, live: s.live, full: p.full, each: p.each && s.live}, kind: m.kind, channel: uint8(2 * i)}
	local, remote := addrOf(c.nc.LocalAddr()), addrOf(c.nc.RemoteAddr())
	line := fmt.Sprintf("Transport: RTP/AVP/TCP;unicast;interleaved=%d-%d", 2*i, 2*i+1)
	if !s.tcp {
		if t.pair, err = openPair(local); err != nil {
			return fmt.Errorf("UDP ports: %w", err)
		}
		line = fmt.Sprintf("Transport: RTP/AVP;unicast;client_port=%d-%d", t.pair.port, t.pair.port+1)
	}
	s.tracks = append(s.tracks, t)
	r, err := c.do("SETUP", m.control, line)
	if err != nil {
		return err
	}
	var h headers.Transport
	if err := h.Unmarshal(base.HeaderValue{r.header.Get("Transport")}); err != nil {
		return fmt.Errorf("SETUP: Transport %.80q: %w", r.header.Get("Transport"), err)
	}
	switch {
	case s.tcp && h.InterleavedIDs != nil:
		t.channel = uint8(h.InterleavedIDs[0])
	case s.tcp:
		return errors.New("SETUP: not interleaved")
	case h.ServerPorts != nil:
		t.reports = netip.AddrPortFrom(remote, uint16(h.ServerPorts[1]))
	}
	return nil
}

func addrOf(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() }

// settle takes the connection from the client: from now on nobody waits on it.
func (s *session) settle(c *client, uri string) error {
	s.session, s.uri, s.cseq = c.session, uri, c.cseq
	s.auth = map[string]string{}
	for _, m := range []string{"OPTIONS", "TEARDOWN"} {
		s.auth[m] = c.authorization(m, uri)
	}
	s.rest = c.early
	if n := c.in.Buffered(); n > 0 {
		b, _ := c.in.Peek(n)
		s.rest = append(s.rest, b...)
	}
	var err error
	s.control, err = takeConn(c.nc)
	return err
}
