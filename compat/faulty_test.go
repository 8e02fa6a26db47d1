package compat_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fault is one thing a proxy does wrong. Nil hooks do nothing.
type fault struct {
	name  string
	point string // where it must be found
	want  string // in "where: what" of a finding
	live  bool

	answer  func(method string, raw []byte) []byte // nil: swallowed
	request func(method string, raw []byte) []byte
	packet  func(l *lane, rtcp bool, pkt []byte) [][]byte
	wait    time.Duration // before every answer
	delay   time.Duration // of all media
	bunch   time.Duration // media leaves at multiples of this only
	close   string        // the connection is closed after the answer to this
	linger  bool          // media goes on after PAUSE
	stray   bool          // media leaves from another port than announced
	extra   string        // said by the server of itself after the first answer
}

// lane is one track on its way to the client.
type lane struct {
	n, reports int // packets seen
	last       []byte
	held       [][]byte
	plays      int
	skip       int
}

// faulty is a small RTSP proxy, made for the tests alone, that passes
// everything on unchanged but for its fault.
type faulty struct {
	fault    fault
	upstream string
	listener net.Listener
	group    sync.WaitGroup
	closing  chan struct{}
}

func startFaulty(t *testing.T, upstream string, f fault) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faulty{fault: f, upstream: upstream, listener: l, closing: make(chan struct{})}
	p.group.Add(1)
	go p.accept()
	t.Cleanup(func() {
		close(p.closing)
		_ = l.Close()
		p.group.Wait()
	})
	return "rtsp://" + l.Addr().String()
}

func (p *faulty) accept() {
	defer p.group.Done()
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.serve(c) })
	}
}

// hop is one client's connection through the proxy.
type hop struct {
	*faulty
	client, server net.Conn
	mutex          sync.Mutex // everything below, and writes to the client
	asked          []string   // methods not answered yet
	setups         []*relay
	relays         []*relay
	lanes          map[int]*lane // interleaved, by RTP channel
	answered       int
}

func (p *faulty) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", p.upstream)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	h := &hop{faulty: p, client: c, server: s, lanes: map[int]*lane{}}
	var both sync.WaitGroup
	both.Go(func() { h.requests(); _ = s.(*net.TCPConn).CloseWrite() })
	both.Go(func() { h.answers(); _ = c.Close() })
	over := make(chan struct{})
	go func() { both.Wait(); close(over) }()
	select {
	case <-over:
	case <-p.closing:
		_ = c.Close()
		_ = s.Close()
		<-over
	}
	for _, r := range h.relays {
		r.close()
	}
}

// unit reads a frame or a message; whatever it does not understand it returns
// byte by byte as it came.
func unit(r *bufio.Reader) (raw []byte, frame bool, err error) {
	b, err := r.Peek(1)
	if err != nil {
		return nil, false, err
	}
	if b[0] == '$' {
		head, err := r.Peek(4)
		if err != nil {
			return nil, false, err
		}
		raw = make([]byte, 4+int(head[2])<<8+int(head[3]))
		_, err = io.ReadFull(r, raw)
		return raw, true, err
	}
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		raw = append(raw, line...)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return raw, false, err
		}
		if v, ok := strings.CutPrefix(strings.ToLower(string(line)), "content-length:"); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(v))
		}
		if len(bytes.TrimSpace(line)) == 0 && len(bytes.TrimSpace(raw)) > 0 {
			break
		}
	}
	if length > 0 {
		body := make([]byte, length)
		n, err := io.ReadFull(r, body)
		return append(raw, body[:n]...), false, err
	}
	return raw, false, nil
}

var (
	clientPort = regexp.MustCompile(`client_port=(\d+)-(\d+)`)
	serverPort = regexp.MustCompile(`server_port=(\d+)-(\d+)`)
)

func (h *hop) requests() {
	r := bufio.NewReaderSize(h.client, 64<<10)
	for {
		raw, frame, err := unit(r)
		if !frame && len(raw) > 0 {
			method, _, _ := strings.Cut(strings.TrimSpace(string(raw)), " ")
			h.mutex.Lock()
			h.asked = append(h.asked, method)
			if method == "SETUP" {
				raw = h.setup(raw)
			}
			h.mutex.Unlock()
			if f := h.fault.request; f != nil {
				raw = f(method, raw)
			}
		}
		if len(raw) > 0 {
			_, _ = h.server.Write(raw)
		}
		if err != nil {
			return
		}
	}
}

// setup puts the proxy's ports in place of the client's.
func (h *hop) setup(raw []byte) []byte {
	var r *relay
	if m := clientPort.FindSubmatch(raw); m != nil {
		port, _ := strconv.Atoi(string(m[1]))
		if r = newRelay(h, port); r != nil {
			h.relays = append(h.relays, r)
			raw = bytes.Replace(raw, m[0], fmt.Appendf(nil, "client_port=%d-%d", r.inPort, r.inPort+1), 1)
			r.asked = string(m[0])
		}
	}
	h.setups = append(h.setups, r)
	return raw
}

func (h *hop) answers() {
	r := bufio.NewReaderSize(h.server, 64<<10)
	for {
		raw, frame, err := unit(r)
		switch {
		case frame:
			h.frame(raw)
		case len(raw) > 0:
			if !h.answer(raw) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// answer passes an answer on; false if the connection is to be closed.
func (h *hop) answer(raw []byte) bool {
	h.mutex.Lock()
	method := ""
	if len(h.asked) > 0 {
		method, h.asked = h.asked[0], h.asked[1:]
	}
	if method == "SETUP" && len(h.setups) > 0 {
		r := h.setups[0]
		h.setups = h.setups[1:]
		if r != nil {
			raw = r.answered(raw)
		}
	}
	if method == "PLAY" {
		for _, r := range h.relays {
			r.lane.plays++
		}
		for _, l := range h.lanes {
			l.plays++
		}
	}
	h.answered++
	said := h.answered
	h.mutex.Unlock()
	if f := h.fault.answer; f != nil {
		if raw = f(method, raw); raw == nil {
			return true
		}
	}
	time.Sleep(h.fault.wait)
	h.mutex.Lock()
	defer h.mutex.Unlock()
	_, _ = h.client.Write(raw)
	if h.fault.extra != "" && said == 1 {
		_, _ = io.WriteString(h.client, h.fault.extra)
	}
	if h.fault.linger && method == "PAUSE" {
		for _, r := range h.relays {
			r.linger()
		}
	}
	return h.fault.close == "" || h.fault.close != method
}

func (h *hop) frame(raw []byte) {
	channel := int(raw[1])
	l := h.lanes[channel&^1]
	if l == nil {
		l = &lane{plays: 1}
		h.lanes[channel&^1] = l
	}
	h.hold()
	for _, pkt := range h.through(l, channel&1 == 1, raw[4:]) {
		head := []byte{'$', raw[1], byte(len(pkt) >> 8), byte(len(pkt))}
		h.mutex.Lock()
		_, _ = h.client.Write(append(head, pkt...))
		h.mutex.Unlock()
	}
}

// hold waits as the fault asks.
func (h *hop) hold() {
	if b := h.fault.bunch; b > 0 {
		now := time.Now()
		time.Sleep(now.Truncate(b).Add(b).Sub(now))
	}
}

func (h *hop) through(l *lane, rtcp bool, pkt []byte) [][]byte {
	if rtcp {
		l.reports++
	} else {
		l.n++
	}
	if h.fault.packet == nil {
		return [][]byte{pkt}
	}
	return h.fault.packet(l, rtcp, bytes.Clone(pkt))
}

// relay carries one track's datagrams both ways.
type relay struct {
	hop     *hop
	lane    *lane
	in, out [2]*net.UDPConn // towards the server, towards the client
	stray   *net.UDPConn
	inPort  int
	asked   string
	client  [2]*net.UDPAddr
	server  [2]*net.UDPAddr
	sent    [][]byte
	group   sync.WaitGroup
	queue   chan late
}

type late struct {
	at  time.Time
	pkt []byte
	k   int
}

func udpPair() (pair [2]*net.UDPConn, port int) {
	for range 100 {
		a, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return pair, 0
		}
		port = a.LocalAddr().(*net.UDPAddr).Port
		if port%2 == 0 {
			if b, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port + 1}); err == nil {
				_ = a.SetReadBuffer(4 << 20)
				return [2]*net.UDPConn{a, b}, port
			}
		}
		_ = a.Close()
	}
	return pair, 0
}

func newRelay(h *hop, port int) *relay {
	r := &relay{hop: h, lane: &lane{}, queue: make(chan late, 10000)}
	outPort := 0
	if r.in, r.inPort = udpPair(); r.inPort == 0 {
		return nil
	}
	if r.out, outPort = udpPair(); outPort == 0 {
		return nil
	}
	stray, _ := udpPair()
	r.stray = stray[0]
	_ = stray[1].Close()
	for k := range 2 {
		r.client[k] = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port + k}
		r.group.Go(func() { r.down(k) })
		r.group.Go(func() { r.up(k) })
	}
	r.group.Go(r.later)
	return r
}

// answered notes the server's ports and puts ours in their place.
func (r *relay) answered(raw []byte) []byte {
	if m := serverPort.FindSubmatch(raw); m != nil {
		for k := range 2 {
			port, _ := strconv.Atoi(string(m[k+1]))
			r.server[k] = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
		}
		port := r.out[0].LocalAddr().(*net.UDPAddr).Port
		raw = bytes.Replace(raw, m[0], fmt.Appendf(nil, "server_port=%d-%d", port, port+1), 1)
	}
	return bytes.Replace(raw, fmt.Appendf(nil, "client_port=%d-%d", r.inPort, r.inPort+1), []byte(r.asked), 1)
}

func (r *relay) down(k int) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := r.in[k].ReadFromUDP(buf)
		if err != nil {
			return
		}
		r.hop.mutex.Lock()
		out := r.hop.through(r.lane, k == 1, buf[:n])
		r.hop.mutex.Unlock()
		for _, pkt := range out {
			at := time.Now().Add(r.hop.fault.delay)
			if b := r.hop.fault.bunch; b > 0 {
				at = at.Truncate(b).Add(b)
			}
			if r.hop.fault.delay == 0 && r.hop.fault.bunch == 0 {
				r.send(k, pkt)
				continue
			}
			r.queue <- late{at, bytes.Clone(pkt), k}
		}
	}
}

// later sends what is to leave later.
func (r *relay) later() {
	for l := range r.queue {
		time.Sleep(time.Until(l.at))
		r.send(l.k, l.pkt)
	}
}

func (r *relay) send(k int, pkt []byte) {
	socket := r.out[k]
	if r.hop.fault.stray && k == 0 {
		socket = r.stray
	}
	_, _ = socket.WriteToUDP(pkt, r.client[k])
	if r.hop.fault.linger && k == 0 {
		r.hop.mutex.Lock()
		r.sent = append(r.sent, bytes.Clone(pkt))
		r.hop.mutex.Unlock()
	}
}

// linger repeats old packets as if the pause had not been heard of.
func (r *relay) linger() {
	for i, pkt := range r.sent[max(0, len(r.sent)-20):] {
		time.AfterFunc(time.Duration(i)*15*time.Millisecond, func() { _, _ = r.out[0].WriteToUDP(pkt, r.client[0]) })
	}
}

func (r *relay) up(k int) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := r.out[k].ReadFromUDP(buf)
		if err != nil {
			return
		}
		r.hop.mutex.Lock()
		server := r.server[k]
		r.hop.mutex.Unlock()
		if server != nil {
			_, _ = r.in[k].WriteToUDP(buf[:n], server)
		}
	}
}

func (r *relay) close() {
	for k := range 2 {
		_ = r.in[k].Close()
		_ = r.out[k].Close()
	}
	_ = r.stray.Close()
	// down() ends with its socket, and only it writes to the queue
	go func() { time.Sleep(time.Second); close(r.queue) }()
	r.group.Wait()
}
