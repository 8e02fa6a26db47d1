package proxy

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// Message is one RTSP (or HTTP, in a tunnel's opening) request or response:
// its bytes exactly as they arrived, and an index into them. An edit replaces
// one value and leaves every other byte alone, so header order, case,
// spelling, line ends and unknown headers survive.
//
// A Message owns its bytes; it is not safe for concurrent use.
type Message struct {
	head   []byte // start line up to and with the blank line
	body   []byte // the body, as far as it is held
	more   int64  // body octets that follow on the stream, not held
	start  int    // end of the start line, its line end excluded
	fields []field
}

// field is one header line; a folded line (RFC 2326 §15.1, LWS) belongs to
// the field it continues.
type field struct {
	nameLo, nameHi   int
	valueLo, valueHi int // surrounding white space excluded
}

// newMessage indexes head, which must end with its blank line and is kept.
func newMessage(head []byte) *Message {
	m := &Message{head: head}
	m.index()
	return m
}

// ParseMessage makes a Message of one whole RTSP message: a head that ends
// with a blank line, and whatever follows it as the body. It is nil when
// there is no blank line.
func ParseMessage(b []byte) *Message {
	end := headEnd(b, 0)
	if end < 0 {
		return nil
	}
	m := newMessage(bytes.Clone(b[:end]))
	m.body = bytes.Clone(b[end:])
	return m
}

func (m *Message) index() {
	m.fields = m.fields[:0]
	first := true
	for at := 0; at < len(m.head); {
		next := len(m.head)
		if i := bytes.IndexByte(m.head[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		end := next
		for end > at && (m.head[end-1] == '\n' || m.head[end-1] == '\r') {
			end--
		}
		switch {
		case first:
			m.start, first = end, false
		case end == at: // the blank line
		case m.head[at] == ' ' || m.head[at] == '\t':
			if n := len(m.fields); n > 0 {
				f := &m.fields[n-1]
				f.valueLo = trimLeft(m.head, f.valueLo, end)
				f.valueHi = trimRight(m.head, f.valueLo, end)
			}
		default:
			if c := bytes.IndexByte(m.head[at:end], ':'); c >= 0 {
				f := field{nameLo: at, nameHi: trimRight(m.head, at, at+c)}
				f.valueLo = trimLeft(m.head, at+c+1, end)
				f.valueHi = trimRight(m.head, f.valueLo, end)
				m.fields = append(m.fields, f)
			}
		}
		at = next
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func trimLeft(b []byte, lo, hi int) int {
	for lo < hi && isSpace(b[lo]) {
		lo++
	}
	return lo
}

func trimRight(b []byte, lo, hi int) int {
	for hi > lo && isSpace(b[hi-1]) {
		hi--
	}
	return hi
}

// headEnd returns the offset behind the blank line that ends the head at the
// start of b, looking from offset from on, or -1. Lines end with CRLF or LF.
func headEnd(b []byte, from int) int {
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return -1
		}
		from += i + 1
		switch {
		case from < len(b) && b[from] == '\n':
			return from + 1
		case from+1 < len(b) && b[from] == '\r' && b[from+1] == '\n':
			return from + 2
		}
	}
}

// word returns the n-th (from 0) blank-separated word of the start line.
func (m *Message) word(n int) (lo, hi int) {
	at := 0
	for ; ; n-- {
		lo = trimLeft(m.head, at, m.start)
		for hi = lo; hi < m.start && !isSpace(m.head[hi]); hi++ {
		}
		if n == 0 || lo == hi {
			return lo, hi
		}
		at = hi
	}
}

func (m *Message) wordString(n int) string {
	lo, hi := m.word(n)
	return string(m.head[lo:hi])
}

// StartLine is the request or status line without its line end.
func (m *Message) StartLine() string { return string(m.head[:m.start]) }

// IsResponse says whether the start line is a status line.
func (m *Message) IsResponse() bool {
	return bytes.HasPrefix(m.head, []byte("RTSP/")) || bytes.HasPrefix(m.head, []byte("HTTP/"))
}

// Method is a request's method as it was spelled; methods are case-sensitive.
func (m *Message) Method() string { return m.wordString(0) }

// URI is a request's request-URI as it was spelled.
func (m *Message) URI() string { return m.wordString(1) }

// Version is a request's protocol version ("RTSP/1.0"), empty when absent.
func (m *Message) Version() string { return m.wordString(2) }

// Status is a response's status code, 0 when it is not a number.
func (m *Message) Status() int {
	n, err := strconv.Atoi(m.wordString(1))
	if err != nil {
		return 0
	}
	return n
}

// OK says whether a response is a 2xx.
func (m *Message) OK() bool { return m.Status()/100 == 2 }

func (m *Message) find(name string) int {
	for i, f := range m.fields {
		if f.nameHi-f.nameLo == len(name) && strings.EqualFold(string(m.head[f.nameLo:f.nameHi]), name) {
			return i
		}
	}
	return -1
}

// Has says whether the header is there, whatever its value.
func (m *Message) Has(name string) bool { return m.find(name) >= 0 }

// Get returns the value of the first header of that name, in any case of
// letters, without surrounding white space; empty when absent.
func (m *Message) Get(name string) string {
	i := m.find(name)
	if i < 0 {
		return ""
	}
	return string(m.head[m.fields[i].valueLo:m.fields[i].valueHi])
}

// Edit replaces the value of every header of that name by what edit makes of
// it. Where edit returns its argument, nothing is touched.
func (m *Message) Edit(name string, edit func(value string) string) {
	for i := range m.fields {
		f := m.fields[i]
		if !strings.EqualFold(string(m.head[f.nameLo:f.nameHi]), name) {
			continue
		}
		was := string(m.head[f.valueLo:f.valueHi])
		if is := edit(was); is != was {
			m.replace(f.valueLo, f.valueHi, is)
		}
	}
}

// Set replaces the value of the first header of that name and reports
// whether there is one.
func (m *Message) Set(name, value string) bool {
	i := m.find(name)
	if i >= 0 {
		m.replace(m.fields[i].valueLo, m.fields[i].valueHi, value)
	}
	return i >= 0
}

// Add appends a header behind all others, with the line end that the start
// line has.
func (m *Message) Add(name, value string) {
	end := "\n"
	if m.start < len(m.head) && m.head[m.start] == '\r' {
		end = "\r\n"
	}
	blank := len(m.head) - 1 // the last line is empty
	if blank > 0 && m.head[blank-1] == '\r' {
		blank--
	}
	m.head = slices.Insert(m.head, blank, []byte(oneLine(name+": "+value)+end)...)
	m.index()
}

// SetURI replaces a request's request-URI.
func (m *Message) SetURI(uri string) {
	lo, hi := m.word(1)
	m.replace(lo, hi, uri)
}

// oneLine drops CR and LF, so that a value cannot smuggle in a line.
func oneLine(s string) string {
	if !strings.ContainsAny(s, "\r\n") {
		return s
	}
	return strings.NewReplacer("\r", "", "\n", "").Replace(s)
}

// replace puts s in the place of head[lo:hi].
func (m *Message) replace(lo, hi int, s string) {
	s = oneLine(s)
	head := make([]byte, 0, len(m.head)+len(s)-(hi-lo))
	head = append(head, m.head[:lo]...)
	head = append(head, s...)
	m.head = append(head, m.head[hi:]...)
	m.index()
}

// Body is the body; on loan until the next SetBody. It is empty when the body
// was too large to be held (Whole says so).
func (m *Message) Body() []byte { return m.body }

// Whole says whether the Message holds all of its body.
func (m *Message) Whole() bool { return m.more == 0 }

// SetBody replaces the body, and the value of Content-Length when the length
// changes.
func (m *Message) SetBody(b []byte) {
	if len(b) != len(m.body) {
		m.Set("Content-Length", strconv.Itoa(len(b)))
	}
	m.body = b
}

// Bytes is the message as it goes on the wire, in one piece.
func (m *Message) Bytes() []byte {
	return append(append(make([]byte, 0, len(m.head)+len(m.body)), m.head...), m.body...)
}

// contentLength reads the announced body length (RFC 2326 §12.14): 0 when
// there is none, ok false when it is no length or two headers disagree.
func (m *Message) contentLength() (n int64, ok bool) {
	seen := false
	for _, f := range m.fields {
		if !strings.EqualFold(string(m.head[f.nameLo:f.nameHi]), "Content-Length") {
			continue
		}
		v, err := strconv.ParseUint(string(m.head[f.valueLo:f.valueHi]), 10, 63)
		if err != nil || seen && int64(v) != n {
			return 0, false
		}
		n, seen = int64(v), true
	}
	return n, true
}
