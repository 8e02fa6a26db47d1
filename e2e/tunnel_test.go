package e2e

import (
	"bytes"
	"encoding/base64"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

const (
	tunnelGet  = "GET /live HTTP/1.0\r\nX-Sessioncookie: k\r\nAccept: application/x-rtsp-tunnelled\r\n\r\n"
	tunnelPost = "POST /live HTTP/1.0\r\nX-Sessioncookie: k\r\nContent-Type: application/x-rtsp-tunnelled\r\nContent-Length: 32767\r\n\r\n"
)

// lateGets makes of a server one that sleeps on, as on a busy machine any may,
// between its answer to a tunnel's GET and its next step, until a POST is closed.
type lateGets struct {
	net.Listener
	posted sync.Once
	closed chan struct{} // with the first POST
}

func (l *lateGets) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &lateGet{Conn: c, l: l}, err
}

// RemoteAddr and the like are those of the connection below.
type lateGet struct {
	net.Conn
	l    *lateGets
	head []byte // the first octets read, up to four
}

func (c *lateGet) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.head = append(c.head, b[:min(n, 4-len(c.head))]...)
	return n, err
}

func (c *lateGet) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if bytes.HasPrefix(b, []byte("HTTP/")) && string(c.head) == "GET " {
		<-c.l.closed
	}
	return n, err
}

func (c *lateGet) Close() error {
	err := c.Conn.Close()
	if string(c.head) == "POST" {
		c.l.posted.Do(func() { close(c.l.closed) })
	}
	return err
}

// TestTunnelOvertaken is why tunnels to gortsplib's server (5.6, MediaMTX
// 1.20 alike) fail now and then, whoever the client is: it answers a GET before
// it puts it where a POST looks for it, so that the POST of a quick client
// may find none. It is answered 200 and closed, and 5 s later the GET is.
// Directly that loses the tunnel; through the shim the POST is made again.
func TestTunnelOvertaken(t *testing.T) {
	t.Parallel()
	for _, through := range []bool{false, true} {
		late := &lateGets{closed: make(chan struct{})}
		up := testbed.StartGortsplib(t, testbed.GortsplibOptions{NoUDP: true, Listen: func(ln net.Listener) net.Listener {
			late.Listener = ln
			return late
		}})
		addr := up.Addr
		if through {
			addr = testbed.StartShim(t, up.Upstream).Addr
		}
		down := dialRaw(t, addr)
		down.send(tunnelGet)
		if answer := down.next(5 * time.Second); !strings.HasPrefix(answer, "HTTP/1.0 200") {
			t.Fatalf("GET: %q", answer)
		}
		post := dialRaw(t, addr)
		post.send(tunnelPost + base64.StdEncoding.EncodeToString([]byte("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")))
		if answer := post.next(5 * time.Second); !strings.HasPrefix(answer, "HTTP/1.0 200") {
			t.Errorf("POST: %q", answer)
		}
		if through {
			if answer := down.next(5 * time.Second); !strings.HasPrefix(answer, "RTSP/1.0 200") {
				t.Errorf("OPTIONS through the shim: %q", answer)
			}
		} else if answer := post.next(5 * time.Second); answer != closed {
			t.Errorf("behind the POST: %q", answer)
		}
	}
}

// TestTunnelDeaf is why gortsplib's client cannot tunnel to two servers: it
// announces a body with its GET, for which gst-rtsp-server 1.22 waits, and it
// speaks HTTP/1.1, upon which Darwin closes.
func TestTunnelDeaf(t *testing.T) {
	t.Parallel()
	get := strings.Replace(tunnelGet, "1.0", "1.1", 1)
	t.Run("gst", func(t *testing.T) {
		t.Parallel()
		c := dialRaw(t, testbed.StartGst(t, testbed.GstOptions{}).Addr)
		c.send(strings.Replace(get, "\r\n\r\n", "\r\nContent-Length: 30000\r\n\r\n", 1))
		c.send(strings.Repeat("x", 29999))
		if answer := c.next(300 * time.Millisecond); answer != silence {
			t.Errorf("with a body not quite there: %q", answer)
		}
		c.send("x")
		if answer := c.next(5 * time.Second); !strings.HasPrefix(answer, "HTTP/1.1 200") {
			t.Errorf("with its body: %q", answer)
		}
	})
	t.Run("dss", func(t *testing.T) {
		t.Parallel()
		addr := testbed.StartDSS(t, testbed.DSSOptions{}).Addr
		for request, want := range map[string]string{get: closed, tunnelGet: "HTTP/1.0 200"} {
			c := dialRaw(t, addr)
			c.send(request)
			if answer := c.next(5 * time.Second); !strings.HasPrefix(answer, want) {
				t.Errorf("to %q: %q", request, answer)
			}
		}
	})
}
