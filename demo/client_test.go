package demo_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	rtspconn "github.com/bluenviron/gortsplib/v5/pkg/conn"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"rtspshim/demo"
	"rtspshim/internal/testbed"
)

// patience is how long a test waits for what must come.
const patience = 5 * time.Second

// start starts a server of the movies of testdata/hinted.
func start(t *testing.T, cfg demo.Config) *demo.Server {
	t.Helper()
	if cfg.Movies == nil {
		cfg.Movies = os.DirFS(testbed.Root(t) + "/testdata/hinted")
	}
	s, err := demo.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// client writes requests itself, so that nothing stands between the test and
// the server.
type client struct {
	t       *testing.T
	nc      net.Conn
	in      *rtspconn.Conn
	cseq    int
	session string
	frames  []base.InterleavedFrame // that came between answers
}

func dial(t *testing.T, s *demo.Server) *client {
	t.Helper()
	nc, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &client{t: t, nc: nc, in: rtspconn.NewConn(bufio.NewReader(nc), nc)}
}

// do sends a request and returns the answer.
func (c *client) do(method, url string, lines ...string) *base.Response {
	c.t.Helper()
	c.cseq++
	if c.session != "" {
		lines = append(lines, "Session: "+c.session)
	}
	lines = append([]string{method + " " + url + " RTSP/1.0", "CSeq: " + strconv.Itoa(c.cseq)}, lines...)
	if _, err := c.nc.Write([]byte(strings.Join(lines, "\r\n") + "\r\n\r\n")); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	for {
		switch m := c.read().(type) {
		case *base.InterleavedFrame:
			c.frames = append(c.frames, *m)
		case *base.Response:
			if got := m.Header["CSeq"]; len(got) != 1 || got[0] != strconv.Itoa(c.cseq) {
				c.t.Fatalf("%s: CSeq %v, want %d", method, got, c.cseq)
			}
			return m
		}
	}
}

func (c *client) read() any {
	c.t.Helper()
	if err := c.nc.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	m, err := c.in.Read()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return m
}

// ok is do for what must succeed.
func (c *client) ok(method, url string, lines ...string) *base.Response {
	c.t.Helper()
	res := c.do(method, url, lines...)
	if res.StatusCode != base.StatusOK {
		c.t.Fatalf("%s %s: %d %s", method, url, res.StatusCode, res.StatusMessage)
	}
	return res
}

// udpTrack is one track set up over UDP.
type udpTrack struct {
	t         *testing.T
	rtp, rtcp *net.UDPConn
	transport headers.Transport
}

// setup sets a track up over UDP.
func (c *client) setup(url string) *udpTrack {
	c.t.Helper()
	u := &udpTrack{t: c.t}
	u.rtp, u.rtcp = testbed.UDPPair(c.t, "127.0.0.1")
	c.t.Cleanup(func() { _, _ = u.rtp.Close(), u.rtcp.Close() })
	port := u.rtp.LocalAddr().(*net.UDPAddr).Port
	res := c.ok("SETUP", url, fmt.Sprintf("Transport: RTP/AVP;unicast;client_port=%d-%d", port, port+1))
	if err := u.transport.Unmarshal(res.Header["Transport"]); err != nil {
		c.t.Fatal(err)
	}
	c.join(res)
	return u
}

// join notes the session an answer names.
func (c *client) join(res *base.Response) {
	c.t.Helper()
	var s headers.Session
	if err := s.Unmarshal(res.Header["Session"]); err != nil {
		c.t.Fatal(err)
	}
	c.session = s.Session
}

// next receives a packet of the track.
func (u *udpTrack) next() *rtp.Packet {
	u.t.Helper()
	p := u.within(patience)
	if p == nil {
		u.t.Fatalf("no packet in %v", patience)
	}
	return p
}

// within receives a packet of the track, nil when none comes in time.
func (u *udpTrack) within(d time.Duration) *rtp.Packet {
	u.t.Helper()
	b := make([]byte, 2000)
	if err := u.rtp.SetReadDeadline(time.Now().Add(d)); err != nil {
		u.t.Fatal(err)
	}
	n, err := u.rtp.Read(b)
	if err != nil {
		return nil
	}
	p := &rtp.Packet{}
	if err := p.Unmarshal(b[:n]); err != nil {
		u.t.Fatal(err)
	}
	if u.transport.SSRC == nil || p.SSRC != *u.transport.SSRC {
		u.t.Errorf("packet of SSRC %08X, Transport %v", p.SSRC, u.transport.SSRC)
	}
	return p
}

// drain takes the packets that are there and returns the last.
func (u *udpTrack) drain() *rtp.Packet {
	u.t.Helper()
	var last *rtp.Packet
	for {
		p := u.within(time.Millisecond)
		if p == nil {
			return last
		}
		last = p
	}
}

// report receives a compound RTCP packet.
func (u *udpTrack) report() []rtcp.Packet {
	u.t.Helper()
	b := make([]byte, 2000)
	if err := u.rtcp.SetReadDeadline(time.Now().Add(patience)); err != nil {
		u.t.Fatal(err)
	}
	n, err := u.rtcp.Read(b)
	if err != nil {
		u.t.Fatalf("RTCP: %v", err)
	}
	all, err := rtcp.Unmarshal(b[:n])
	if err != nil {
		u.t.Fatal(err)
	}
	return all
}

// sendReport sends a receiver report.
func (u *udpTrack) sendReport() {
	u.t.Helper()
	b, err := (&rtcp.ReceiverReport{SSRC: 1}).Marshal()
	if err != nil {
		u.t.Fatal(err)
	}
	to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: u.transport.ServerPorts[1]}
	if _, err := u.rtcp.WriteToUDP(b, to); err != nil {
		u.t.Fatal(err)
	}
}

// info reads an answer's RTP-Info.
func (c *client) info(res *base.Response) headers.RTPInfo {
	c.t.Helper()
	var info headers.RTPInfo
	if err := info.Unmarshal(res.Header["RTP-Info"]); err != nil {
		c.t.Fatalf("RTP-Info: %v", err)
	}
	return info
}

func hash(payload []byte) [sha256.Size]byte { return sha256.Sum256(payload) }

// is says whether a packet is the one an RTP-Info names.
func is(t *testing.T, what string, p *rtp.Packet, e *headers.RTPInfoEntry) {
	t.Helper()
	if p.SequenceNumber != *e.SequenceNumber || p.Timestamp != *e.Timestamp {
		t.Errorf("%s: packet %d at %d, RTP-Info %d at %d", what, p.SequenceNumber, p.Timestamp, *e.SequenceNumber, *e.Timestamp)
	}
}
