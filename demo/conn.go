package demo

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
)

const (
	queueFrames  = 512 // messages and frames waiting to be written
	writeTimeout = 20 * time.Second
	maxChannels  = 256
)

// conn is one RTSP connection. What goes out passes a queue, so that answers
// and frames keep their order and a reader of a live stream who is slow holds
// up nobody.
type conn struct {
	srv         *Server
	nc          net.Conn
	local, peer netip.AddrPort
	queue       chan []byte
	last        chan struct{} // closed when nothing follows what is queued
	gone        chan struct{} // closed when nothing can be written any more
	lastOnce    sync.Once
	goneOnce    sync.Once

	mu       sync.Mutex
	channels []*stream // of interleaved media, two a stream; nil: free again
}

func newConn(s *Server, nc net.Conn) *conn {
	return &conn{srv: s, nc: nc, local: addrPort(nc.LocalAddr()), peer: addrPort(nc.RemoteAddr()),
		queue: make(chan []byte, queueFrames), last: make(chan struct{}), gone: make(chan struct{})}
}

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// close ends the connection at once.
func (c *conn) close() {
	c.goneOnce.Do(func() { close(c.gone) })
	_ = c.nc.Close()
}

// finish ends it when all that is queued has been written.
func (c *conn) finish() { c.lastOnce.Do(func() { close(c.last) }) }

// send queues b, which it keeps. When the queue is full it waits, or gives up.
func (c *conn) send(b []byte, wait bool) bool {
	select {
	case c.queue <- b:
		return true
	default:
	}
	if !wait {
		return false
	}
	select {
	case c.queue <- b:
		return true
	case <-c.gone:
		return false
	}
}

// write writes what is queued until the connection ends.
func (c *conn) write() {
	defer c.close()
	w := bufio.NewWriterSize(c.nc, 1<<16)
	for {
		var b []byte
		select {
		case b = <-c.queue:
		default:
			if w.Buffered() > 0 && w.Flush() != nil {
				return
			}
			select {
			case b = <-c.queue:
			case <-c.gone:
				return
			case <-c.last:
				if len(c.queue) == 0 {
					return
				}
				continue
			}
		}
		_ = c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// read serves requests until the connection ends, and with it the sessions
// whose media travel on it.
func (c *conn) read() {
	defer c.left()
	r := bufio.NewReaderSize(c.nc, 4096)
	for {
		b, err := r.Peek(1)
		if err != nil {
			c.close()
			return
		}
		switch b[0] {
		case base.InterleavedFrameMagicByte:
			var f base.InterleavedFrame
			if err = f.Unmarshal(r); err == nil {
				c.frame(&f)
			}
		case '\r', '\n':
			_, err = r.Discard(1)
		default:
			err = c.serve(r)
		}
		if err != nil {
			c.finish() // the rest of the stream cannot be understood
			_, _ = io.Copy(io.Discard, c.nc)
			return
		}
	}
}

// serve reads one message and answers it if it is a request.
func (c *conn) serve(r *bufio.Reader) error {
	if b, _ := r.Peek(5); string(b) == "RTSP/" {
		return new(base.Response).Unmarshal(r) // the server has asked nothing
	}
	req := &base.Request{}
	if err := req.Unmarshal(r); err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			c.answer(req, 400, "Connection: Close")
		}
		return err
	}
	uri := "*"
	if req.URL != nil {
		uri = req.URL.String()
	}
	faults := &c.srv.cfg.Faults
	if faults.Delay != nil {
		select {
		case <-time.After(faults.Delay(string(req.Method), uri)):
		case <-c.gone:
		}
	}
	if faults.Refuse != nil {
		if status := faults.Refuse(string(req.Method), uri); status != 0 {
			c.answer(req, status)
			return nil
		}
	}
	c.handle(req, time.Now())
	return nil
}

// answer queues a response.
func (c *conn) answer(req *base.Request, status int, lines ...string) {
	c.send(c.response(req, status, lines...), true)
}

// response makes a response with these header lines; what follows an empty one
// is the body. Header names are spelled as Darwin does.
func (c *conn) response(req *base.Request, status int, lines ...string) []byte {
	cseq := ""
	if v := req.Header["CSeq"]; len(v) > 0 {
		cseq = v[0]
	}
	var b strings.Builder
	b.WriteString("RTSP/1.0 " + strconv.Itoa(status) + " " + base.StatusMessages[base.StatusCode(status)] + "\r\n")
	b.WriteString("Server: rtspshim demo\r\nCseq: " + cseq + "\r\n")
	body := ""
	for i, l := range lines {
		if l == "" {
			body = strings.Join(lines[i+1:], "")
			break
		}
		b.WriteString(l + "\r\n")
	}
	b.WriteString("\r\n" + body)
	response := []byte(b.String())
	if edit := c.srv.cfg.Faults.Answer; edit != nil {
		response = edit(string(req.Method), response)
	}
	return response
}

// interleave gives a stream its two channels: those after the last, whatever
// was asked for, as Darwin does.
func (c *conn) interleave(st *stream) (channel int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	channel = len(c.channels)
	for i := 0; i < len(c.channels); i += 2 {
		if c.channels[i] == nil {
			c.channels[i], c.channels[i+1] = st, st
			return i, true
		}
	}
	if channel+2 > maxChannels {
		return 0, false
	}
	c.channels = append(c.channels, st, st)
	return channel, true
}

func (c *conn) release(channel int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.channels[channel], c.channels[channel+1] = nil, nil
}

// frame takes an interleaved frame from the client: its RTCP.
func (c *conn) frame(f *base.InterleavedFrame) {
	c.mu.Lock()
	var st *stream
	if f.Channel < len(c.channels) {
		st = c.channels[f.Channel]
	}
	c.mu.Unlock()
	if st != nil && f.Channel%2 == 1 {
		st.report(f.Payload, time.Now())
	}
}

// interleaved puts a packet into a frame (RFC 2326 §10.12) and queues it.
func (c *conn) interleaved(channel int, packet []byte, wait bool) bool {
	b := append(make([]byte, 0, 4+len(packet)), base.InterleavedFrameMagicByte, byte(channel))
	b = binary.BigEndian.AppendUint16(b, uint16(len(packet)))
	return c.send(append(b, packet...), wait)
}

// left forgets the connection and the sessions that cannot go on without it.
func (c *conn) left() {
	c.close()
	c.mu.Lock()
	streams := slices.Clone(c.channels)
	c.mu.Unlock()
	for _, st := range streams {
		if st != nil {
			st.session.end("connection closed")
		}
	}
	c.srv.mu.Lock()
	delete(c.srv.conns, c)
	c.srv.mu.Unlock()
}
