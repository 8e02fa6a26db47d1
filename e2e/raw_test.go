package e2e

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// raw is an RTSP connection of which the test writes every octet itself.
type raw struct {
	testing.TB
	net.Conn
	r      *bufio.Reader
	frames int // interleaved frames skipped so far
}

func dialRaw(tb testing.TB, addr string) *raw {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return newRaw(tb, c)
}

func newRaw(tb testing.TB, c net.Conn) *raw {
	return &raw{TB: tb, Conn: c, r: bufio.NewReader(c)}
}

// send writes; that the other side has closed shows in what is read next.
func (c *raw) send(s string) { _, _ = io.WriteString(c.Conn, s) }

// What next returns where no message comes.
const (
	closed  = "<closed>"
	silence = "<silence>"
)

// next returns the next message, head and body, as it came. Interleaved frames
// before it are skipped and counted.
func (c *raw) next(wait time.Duration) string {
	c.Helper()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return closed
	}
	var head strings.Builder
	length := 0
	for {
		if head.Len() == 0 {
			if b, err := c.r.Peek(1); err == nil && b[0] == '$' {
				if err := c.skipFrame(); err != nil {
					return c.why(err)
				}
				continue
			}
		}
		line, err := c.r.ReadString('\n')
		head.WriteString(line)
		if err != nil {
			if head.Len() > 0 {
				return head.String() + c.why(err)
			}
			return c.why(err)
		}
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Content-Length") {
			length, _ = strconv.Atoi(strings.TrimSpace(value))
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	body := make([]byte, length)
	n, err := io.ReadFull(c.r, body)
	if err != nil {
		return head.String() + string(body[:n]) + c.why(err)
	}
	return head.String() + string(body)
}

func (c *raw) why(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return silence
	}
	return closed
}

func (c *raw) skipFrame() error {
	head, err := c.r.Peek(4)
	if err != nil {
		return err
	}
	_, err = c.r.Discard(4 + int(head[2])<<8 + int(head[3]))
	c.frames++
	return err
}

// header is the value of a message's first header of that name.
func header(message, name string) string {
	for line := range strings.SplitSeq(message, "\n") {
		if n, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(n, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// sessionOf is the session that an answer names.
func sessionOf(message string) string {
	id, _, _ := strings.Cut(header(message, "Session"), ";")
	return id
}
