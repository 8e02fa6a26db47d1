package talk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
)

// Limits on what a server may send, hostile ones included.
const (
	maxHead = 64 << 10
	maxBody = 1 << 20
)

var errTooLong = errors.New("message too long")

// Field is one header line as it stood on the wire.
type Field struct {
	Name  string // before the colon, as spelt
	Value string // after it, outer blanks removed
	Line  string // all of it, without the line end
}

// Message is an RTSP (or HTTP) message. It is cut at the blank line and by
// Content-Length only, so that what no library reads is still compared;
// whether gortsplib reads it is a fact of its own.
type Message struct {
	Raw    []byte
	First  string // request or status line
	Fields []Field
	Body   []byte
	Bare   bool   // some line ended in LF without CR
	Cut    bool   // the connection ended inside it
	Read   string // gortsplib's error, "" if it reads the message
}

// Request says whether the message is a request of the server's own.
func (m *Message) Request() bool {
	return !strings.HasPrefix(m.First, "RTSP/") && !strings.HasPrefix(m.First, "HTTP/")
}

// Status is the code in the status line, 0 if there is none.
func (m *Message) Status() int {
	if words := strings.Fields(m.First); len(words) > 1 && !m.Request() {
		code, _ := strconv.Atoi(words[1])
		return code
	}
	return 0
}

// Values returns the values of every line with that name, any case.
func (m *Message) Values(name string) base.HeaderValue {
	var all base.HeaderValue
	for _, f := range m.Fields {
		if strings.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return all
}

// Value returns the first value of that name, "" if there is none.
func (m *Message) Value(name string) string {
	if all := m.Values(name); len(all) > 0 {
		return all[0]
	}
	return ""
}

// ParseMessage takes a whole message apart; it never fails.
func ParseMessage(raw []byte) *Message {
	m := &Message{Raw: raw}
	rest := raw
	for lines := 0; len(rest) > 0; lines++ {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		rest = after
		text, cr := strings.CutSuffix(string(line), "\r")
		m.Bare = m.Bare || !cr
		if text == "" {
			if m.First == "" {
				continue // blank lines before a message, RFC 2326 4.1
			}
			break
		}
		if m.First == "" {
			m.First = text
			continue
		}
		name, value, _ := strings.Cut(text, ":")
		m.Fields = append(m.Fields, Field{Name: name, Value: strings.TrimSpace(value), Line: text})
	}
	m.Body = rest
	if strings.HasPrefix(m.First, "RTSP/") {
		var res base.Response
		if err := res.Unmarshal(bufio.NewReader(bytes.NewReader(raw))); err != nil {
			m.Read = err.Error()
		}
	}
	return m
}

// frame is one $-framed packet (RFC 2326 10.12).
type frame struct {
	channel int
	payload []byte
}

// next reads a message or a frame. Bytes that came before an error are
// returned as a message marked Cut.
func next(r *bufio.Reader) (*Message, *frame, error) {
	first, err := r.Peek(1)
	if err != nil {
		return nil, nil, err
	}
	if first[0] == '$' {
		f, err := nextFrame(r)
		return nil, f, err
	}
	head, err := readHead(r)
	if err != nil {
		if len(head) == 0 {
			return nil, nil, err
		}
		m := ParseMessage(head)
		m.Cut = true
		return m, nil, err
	}
	m := ParseMessage(head)
	n, err := bodyLength(m)
	if err == nil && n > 0 {
		body := make([]byte, n)
		var got int
		got, err = io.ReadFull(r, body)
		m = ParseMessage(append(head, body[:got]...))
	}
	m.Cut = err != nil
	return m, nil, err
}

func nextFrame(r *bufio.Reader) (*frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	f := &frame{channel: int(head[1]), payload: make([]byte, int(head[2])<<8|int(head[3]))}
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return nil, err
	}
	return f, nil
}

// readHead reads to the blank line that ends a header.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	text := false
	for {
		line, err := r.ReadSlice('\n')
		head = append(head, line...)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return head, err
		}
		if len(head) > maxHead {
			return head[:maxHead], errTooLong
		}
		blank := len(bytes.TrimRight(line, "\r\n")) == 0
		if blank && text {
			return head, nil
		}
		text = text || !blank
	}
}

func bodyLength(m *Message) (int, error) {
	text := m.Value("Content-Length")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, nil //nolint:nilerr // the text itself is compared
	}
	if n > maxBody {
		return 0, fmt.Errorf("body of %d bytes: %w", n, errTooLong)
	}
	return n, nil
}
