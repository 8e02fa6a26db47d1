package talk

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/auth"
)

// inboxLength bounds the messages a server may send before they are looked at.
const inboxLength = 256

// arrival is a message with the time it came.
type arrival struct {
	message *Message
	at      time.Duration
	order   int
}

// conn is one client of a script: an RTSP connection, and what is known of the
// session on it.
type conn struct {
	name   string
	talk   *talk
	socket net.Conn // requests and, without a tunnel, answers
	get    net.Conn // answers, over an HTTP tunnel
	inbox  chan arrival
	gone   chan struct{} // closed when the reader ended
	why    error         // valid once gone is closed
	left   bool          // we closed it ourselves
	order  atomic.Int64  // frames and messages read

	cseq      int
	session   string
	sender    *auth.Sender
	authorise string // auto, none, wrong
	held      []*Exchange
	holding   bool
	last      *Message // the server's request not answered yet

	base     string // aggregate control URL
	modified string
	medias   []media
	udp      map[int]*pair
	sending  map[int]*Track // tracks set up to publish
	channels map[int]*Track // interleaved, by RTP channel; guarded by talk.mutex
}

func (t *talk) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: t.bounds.Answer}
	if t.url.Scheme == "rtsps" {
		// The certificate names the upstream, whoever answers; what is
		// compared is the conversation inside.
		return (&tls.Dialer{NetDialer: &d, Config: &tls.Config{InsecureSkipVerify: true}}).
			DialContext(ctx, "tcp", t.peer)
	}
	return d.DialContext(ctx, "tcp", t.peer)
}

func (t *talk) newConn(ctx context.Context, name string) (*conn, error) {
	socket, err := t.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", t.peer, err)
	}
	c := &conn{name: name, talk: t, socket: socket, authorise: "auto",
		inbox: make(chan arrival, inboxLength), gone: make(chan struct{}),
		udp: map[int]*pair{}, channels: map[int]*Track{}, sending: map[int]*Track{}}
	return c, nil
}

// startReader begins to read; close ends it.
func (c *conn) startReader() {
	from := c.socket
	if c.get != nil {
		from = c.get
	}
	go c.reader(from)
}

func (c *conn) reader(from net.Conn) {
	defer close(c.gone)
	r := bufio.NewReaderSize(from, 64<<10)
	for {
		m, f, err := next(r)
		at, order := c.talk.now(), int(c.order.Add(1))
		if f != nil {
			c.frame(f, at, order)
		}
		if m != nil {
			select {
			case c.inbox <- arrival{m, at, order}:
			default: // a flood; what was kept shows it
			}
		}
		if err != nil {
			c.why = err
			return
		}
	}
}

// frame files an interleaved packet under its track.
func (c *conn) frame(f *frame, at time.Duration, order int) {
	c.talk.mutex.Lock()
	defer c.talk.mutex.Unlock()
	t := c.channels[f.channel&^1]
	if t == nil {
		t = &Track{Conn: c.name, Kind: fmt.Sprintf("channel %d", f.channel&^1)}
		c.channels[f.channel&^1] = t
		c.talk.recording.Tracks = append(c.talk.recording.Tracks, t)
	}
	if f.channel&1 == 0 {
		t.addRTP(f.payload, at, order, 0)
	} else {
		t.addRTCP(f.payload, at, order, 0)
	}
}

// put writes signalling, in one write, through the tunnel if there is one.
func (c *conn) put(b []byte) error {
	if c.get != nil {
		b = []byte(base64.StdEncoding.EncodeToString(b))
	}
	_ = c.socket.SetWriteDeadline(time.Now().Add(c.talk.bounds.Answer))
	_, err := c.socket.Write(b)
	return err
}

// tunnel turns the connection into QuickTime's HTTP pair: answers come on a
// GET, requests leave base64 encoded on a POST.
func (c *conn) tunnel(ctx context.Context) error {
	var random [11]byte
	rand.Read(random[:])
	cookie := hex.EncodeToString(random[:])
	path := c.talk.url.RequestURI()
	get := fmt.Sprintf("GET %s HTTP/1.0\r\nUser-Agent: shim compat\r\nx-sessioncookie: %s\r\n"+
		"Accept: application/x-rtsp-tunnelled\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\r\n", path, cookie)
	if _, err := io.WriteString(c.socket, get); err != nil {
		return fmt.Errorf("GET: %w", err)
	}
	c.startReader()
	e := &Exchange{Title: "GET (tunnel)", Method: "GET", Sent: []byte(get)}
	c.await(e)
	c.talk.record(e, c)
	if e.Status() != 200 {
		return nil // compared, and the rest of the script will be met with silence
	}
	post, err := c.talk.dial(ctx)
	if err != nil {
		return fmt.Errorf("POST: %w", err)
	}
	c.get, c.socket = c.socket, post
	_, err = fmt.Fprintf(post, "POST %s HTTP/1.0\r\nUser-Agent: shim compat\r\nx-sessioncookie: %s\r\n"+
		"Content-Type: application/x-rtsp-tunnelled\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"+
		"Content-Length: 32767\r\nExpires: Sun, 9 Jan 1972 00:00:00 GMT\r\n\r\n", path, cookie)
	return err
}

// await fills in the answer to e.
func (c *conn) await(e *Exchange) {
	timer := time.NewTimer(c.talk.bounds.Answer)
	defer timer.Stop()
	for {
		select {
		case a := <-c.inbox:
			if a.message.Request() {
				c.unasked(a)
				continue
			}
			c.answered(e, a)
			return
		case <-c.gone:
			select { // what came before the end counts
			case a := <-c.inbox:
				c.answered(e, a)
			default:
				e.Outcome, e.At = Closed, c.talk.now()
			}
			return
		case <-timer.C:
			e.Outcome, e.At = Silent, c.talk.now()
			return
		case <-c.talk.ctx.Done():
			e.Outcome, e.At = Silent, c.talk.now()
			return
		}
	}
}

func (c *conn) answered(e *Exchange, a arrival) {
	e.Answer, e.At, e.Order, e.Outcome = a.message, a.at, a.order, Answered
}

// unasked records what the server said of its own accord.
func (c *conn) unasked(a arrival) {
	c.last = a.message
	e := &Exchange{Title: "unasked: " + a.message.First, Answer: a.message, At: a.at, SentAt: a.at,
		Order: a.order, Outcome: Unasked}
	c.talk.record(e, c)
}

// drain records whatever lies in the inbox.
func (c *conn) drain() {
	for {
		select {
		case a := <-c.inbox:
			c.unasked(a)
		default:
			return
		}
	}
}

// state says how the connection stands.
func (c *conn) state() End {
	select {
	case <-c.gone:
		why := c.why
		if errors.Is(why, io.EOF) {
			why = nil
		}
		end := End{Conn: c.name, State: "closed"}
		if c.left {
			end.State = "left"
		} else if why != nil {
			end.Why = why.Error()
		}
		return end
	default:
		return End{Conn: c.name, State: "open"}
	}
}

// close ends the connection and waits for its reader.
func (c *conn) close() {
	select {
	case <-c.gone:
	default:
		c.left = true
	}
	_ = c.socket.Close()
	if c.get != nil {
		_ = c.get.Close()
	}
	<-c.gone
	for _, p := range c.udp {
		p.close()
	}
}
