package intercept

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/proxy"
)

// shim runs the whole of it in this process, in front of an upstream.
func shim(t *testing.T, upstream string, ecfg engine.Config, cfg Config) (addr string, i *Interceptor) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ecfg.Logger, ecfg.Gather, ecfg.Memory = log, engine.DefaultGather, 16<<20
	e, err := engine.Open(ecfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Engine, cfg.Logger = e, log
	i, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	server, err := proxy.New(proxy.Config{Upstream: u, Open: i.Open, Drain: i.TearDown, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	i.Front(server)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = i.Run(ctx) })
	work.Go(func() {
		if err := server.Serve(ctx, ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		work.Wait()
		i.Close()
		if err := e.Close(); err != nil {
			t.Errorf("engine: %v", err)
		}
		if n := i.Sessions(); n != 0 {
			t.Errorf("%d sessions left", n)
		}
	})
	return ln.Addr().String(), i
}

type testWriter struct{ *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// seenPacket is an RTP packet as it came, in the order in which it came.
type seenPacket struct {
	seq  uint16
	time uint32
	ssrc uint32
	bits uint16
	sum  [sha256.Size]byte
	at   time.Time
}

// viewer is a client that shows everything that it gets: nothing is put in
// order, nothing dropped.
type viewer struct {
	*testing.T
	conn     net.Conn
	r        *bufio.Reader
	url      string
	session  string
	controls []string
	tcp      bool
	cseq     int
	answers  chan answer
	work     sync.WaitGroup

	mu    sync.Mutex
	got   [][]seenPacket // by Media
	head  [][][]byte     // likewise: the first packets as they came
	rtcp  [][][]byte
	udp   []*net.UDPConn
	news  chan struct{}
	ended error
}

type answer struct {
	status int
	header textproto.MIMEHeader
	body   string
}

// dialViewer connects, and sets up nothing.
func dialViewer(t *testing.T, addr, path string, tcp bool) *viewer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	v := &viewer{T: t, conn: conn, r: bufio.NewReader(conn), url: "rtsp://" + addr + path, tcp: tcp,
		answers: make(chan answer, 8), news: make(chan struct{})}
	v.work.Go(v.read)
	t.Cleanup(func() {
		_ = conn.Close()
		for _, c := range v.udp {
			_ = c.Close()
		}
		v.work.Wait()
	})
	return v
}

// newViewer sets up all tracks of a URL.
func newViewer(t *testing.T, addr, path string, tcp bool) *viewer {
	t.Helper()
	return newViewerOf(t, addr, path, tcp, 99)
}

// newViewerOf sets up the first tracks.
func newViewerOf(t *testing.T, addr, path string, tcp bool, most int) *viewer {
	t.Helper()
	v := dialViewer(t, addr, path, tcp)
	d := v.must("DESCRIBE", v.url, "Accept: application/sdp")
	_, medias, _ := strings.Cut(d.body, "\nm=")
	for line := range strings.Lines(medias) {
		if c, ok := strings.CutPrefix(strings.TrimSpace(line), "a=control:"); ok {
			v.controls = append(v.controls, v.url+"/"+c)
		}
	}
	v.controls = v.controls[:min(most, len(v.controls))]
	v.head = make([][][]byte, len(v.controls))
	v.got, v.rtcp = make([][]seenPacket, len(v.controls)), make([][][]byte, len(v.controls))
	for n, control := range v.controls {
		transport := fmt.Sprintf("RTP/AVP/TCP;unicast;interleaved=%d-%d", 2*n, 2*n+1)
		if !tcp {
			rtp, rtcp := udpPair(t)
			v.udp = append(v.udp, rtp, rtcp)
			port := rtp.LocalAddr().(*net.UDPAddr).Port
			transport = fmt.Sprintf("RTP/AVP;unicast;client_port=%d-%d", port, port+1)
		}
		a := v.must("SETUP", control, "Transport: "+transport)
		v.session, _, _ = strings.Cut(a.header.Get("Session"), ";")
		if !tcp {
			from, rtp, rtcp := portsOf(t, a), v.udp[2*n], v.udp[2*n+1]
			v.work.Go(func() { v.datagrams(n, rtp, from, false) })
			v.work.Go(func() { v.datagrams(n, rtcp, from+1, true) })
		}
	}
	return v
}

func udpPair(t *testing.T) (rtp, rtcp *net.UDPConn) {
	t.Helper()
	for range 100 {
		a, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		port := a.LocalAddr().(*net.UDPAddr).Port
		if b, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port + 1}); err == nil && port%2 == 0 {
			_ = a.SetReadBuffer(4 << 20)
			return a, b
		} else if err == nil {
			_ = b.Close()
		}
		_ = a.Close()
	}
	t.Fatal("no pair of ports")
	return nil, nil
}

func (v *viewer) do(method, url string, headers ...string) answer {
	v.Helper()
	v.send(method, url, headers...)
	select {
	case a := <-v.answers:
		if got := a.header.Get("Cseq"); got != strconv.Itoa(v.cseq) {
			v.Fatalf("%s: CSeq %q answered, %d asked", method, got, v.cseq)
		}
		return a
	case <-time.After(10 * time.Second):
		v.Fatalf("%s is not answered", method)
		return answer{}
	}
}

// send sends a request and awaits no answer.
func (v *viewer) send(method, url string, headers ...string) {
	v.Helper()
	v.cseq++
	if v.session != "" {
		headers = append(headers, "Session: "+v.session)
	}
	request := fmt.Sprintf("%s %s RTSP/1.0\r\nCSeq: %d\r\n%s\r\n", method, url, v.cseq, strings.Join(append(headers, ""), "\r\n"))
	if _, err := io.WriteString(v.conn, request); err != nil {
		v.Fatalf("%s: %v", method, err)
	}
}

func (v *viewer) must(method, url string, headers ...string) answer {
	v.Helper()
	a := v.do(method, url, headers...)
	if a.status != 200 {
		v.Fatalf("%s %s: status %d", method, url, a.status)
	}
	return a
}

// read takes answers and frames off the connection.
func (v *viewer) read() {
	err := v.readAll()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = err
	close(v.news)
	v.news = make(chan struct{})
}

func (v *viewer) readAll() error {
	for {
		first, err := v.r.Peek(1)
		if err != nil {
			return err
		}
		if first[0] == '$' {
			head := make([]byte, 4)
			if _, err := io.ReadFull(v.r, head); err != nil {
				return err
			}
			b := make([]byte, binary.BigEndian.Uint16(head[2:]))
			if _, err := io.ReadFull(v.r, b); err != nil {
				return err
			}
			v.packet(int(head[1])/2, b, head[1]%2 == 1)
			continue
		}
		tp := textproto.NewReader(v.r)
		line, err := tp.ReadLine()
		if err != nil {
			return err
		}
		var a answer
		if _, err := fmt.Sscanf(line, "RTSP/1.0 %d", &a.status); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		if a.header, err = tp.ReadMIMEHeader(); err != nil {
			return err
		}
		n, _ := strconv.Atoi(a.header.Get("Content-Length"))
		body := make([]byte, n)
		if _, err := io.ReadFull(v.r, body); err != nil {
			return err
		}
		a.body = string(body)
		v.answers <- a
	}
}

// portsOf is the first of the server ports that an answer to SETUP tells.
func portsOf(t *testing.T, a answer) (port uint16) {
	t.Helper()
	_, ports, _ := strings.Cut(a.header.Get("Transport"), "server_port=")
	if _, err := fmt.Sscanf(ports, "%d-", &port); err != nil {
		t.Fatalf("Transport: %s: %v", a.header.Get("Transport"), err)
	}
	return port
}

// datagrams takes those from one port: others are for who had ours before, in
// another test.
func (v *viewer) datagrams(media int, c *net.UDPConn, from uint16, report bool) {
	b := make([]byte, 65536)
	for {
		n, sender, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && sender.Port() == from {
			v.packet(media, b[:n], report)
		}
	}
}

func (v *viewer) packet(media int, b []byte, report bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if report {
		v.rtcp[media] = append(v.rtcp[media], append([]byte(nil), b...))
	} else {
		if len(v.head[media]) < 64 {
			v.head[media] = append(v.head[media], append([]byte(nil), b...))
		}
		v.got[media] = append(v.got[media], seenPacket{
			seq: binary.BigEndian.Uint16(b[2:]), time: binary.BigEndian.Uint32(b[4:]), ssrc: binary.BigEndian.Uint32(b[8:]),
			bits: binary.BigEndian.Uint16(b), sum: sha256.Sum256(b[12:]), at: time.Now(),
		})
	}
	close(v.news)
	v.news = make(chan struct{})
}

// await waits until done, which sees the packets of each Media.
func (v *viewer) await(what string, done func(got [][]seenPacket) bool) {
	v.Helper()
	timeout := time.After(30 * time.Second)
	for {
		v.mu.Lock()
		ok, news, ended := done(v.got), v.news, v.ended
		v.mu.Unlock()
		if ok {
			return
		}
		if ended != nil && v.tcp {
			v.Fatalf("waiting for %s: %v", what, ended)
		}
		select {
		case <-news:
		case <-timeout:
			v.Fatalf("waited too long for %s", what)
		}
	}
}

// awaitEnd waits for the end of the connection.
func (v *viewer) awaitEnd() {
	v.Helper()
	timeout := time.After(30 * time.Second)
	for {
		v.mu.Lock()
		ended, news := v.ended, v.news
		v.mu.Unlock()
		if ended != nil {
			return
		}
		select {
		case <-news:
		case <-timeout:
			v.Fatal("the connection stays")
		}
	}
}

// count is how many packets each Media has.
func (v *viewer) count() (n []int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.got {
		n = append(n, len(m))
	}
	return n
}

// more waits for so many packets more of every Media.
func (v *viewer) more(n int) {
	v.Helper()
	base := v.count()
	v.await(fmt.Sprintf("%d packets more", n), func(got [][]seenPacket) bool {
		for m := range got {
			if len(got[m]) < base[m]+n {
				return false
			}
		}
		return true
	})
}

func (v *viewer) recorded() [][]seenPacket {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([][]seenPacket, len(v.got))
	for i := range v.got {
		out[i] = append([]seenPacket(nil), v.got[i]...)
	}
	return out
}

// unbroken fails on a gap, a duplicate, a step back or a change of SSRC, from
// each Media's packet first[m] on.
func (v *viewer) unbroken(first []int) {
	v.Helper()
	for m, list := range v.recorded() {
		for i := first[m] + 1; i < len(list); i++ {
			if list[i].seq != list[i-1].seq+1 || list[i].ssrc != list[i-1].ssrc {
				v.Errorf("media %d: packet %d of %d has sequence number %d (%x) behind %d (%x)", m, i, len(list), list[i].seq, list[i].ssrc, list[i-1].seq, list[i-1].ssrc)
				for j := max(0, i-4); j < min(i+6, len(list)); j++ {
					v.Logf("  %d: sequence number %d, timestamp %d, at %v", j, list[j].seq, list[j].time, list[j].at.Sub(list[0].at))
				}
				break
			}
		}
	}
}

// sameAs fails unless the packets from first[m] on are those that direct got
// from its packet at[m] on: payload, marker, payload type, and with steps the
// steps of the timestamps.
func (v *viewer) sameAs(direct *viewer, first, at []int, steps bool, least int) {
	v.Helper()
	theirs := direct.recorded()
	for m, list := range v.recorded() {
		a, b := list[first[m]:], theirs[m][at[m]:]
		n := min(len(a), len(b))
		if n < least {
			v.Errorf("media %d: only %d packets to compare", m, n)
			continue
		}
		for i := range n {
			if a[i].sum != b[i].sum || a[i].bits != b[i].bits || steps && a[i].time-a[0].time != b[i].time-b[0].time {
				v.Errorf("media %d: packet %d of %d is another than directly", m, i, n)
				break
			}
		}
	}
}
