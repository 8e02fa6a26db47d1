package proxy

import (
	"errors"
	"io"
	"os"
	"time"
)

// Kind says what an Element is.
type Kind uint8

// The kinds of Element.
const (
	KindMessage Kind = iota // a request or response, in Message
	KindFrames              // one or more whole interleaved frames, in Bytes
	KindBlank               // line ends between messages, in Bytes
	KindBody                // a piece of the last message's unheld body, in Bytes
	KindOpaque              // what comes from here on has no frame we know; Bytes is its start
)

// Element is one piece of an RTSP byte stream. All Elements' bytes in order
// are the stream: nothing is lost between them.
type Element struct {
	Kind    Kind
	Message *Message
	Bytes   []byte // on loan until the next call of Next
}

const (
	frameHead   = 4       // '$', channel, 16-bit length: RFC 2326 §10.12
	firstBuffer = 2 << 10 // octets a Reader starts with
)

// A Reader cuts one direction of an RTSP connection into Elements. It holds
// at most one head of MaxHead and one body of MaxBody octets.
type Reader struct {
	src     io.Reader
	buf     []byte
	lo, hi  int   // buf[lo:hi] is read but not returned
	scanned int   // octets behind lo already looked at
	end     int   // length of the head at lo, once its end is there
	more    int64 // unheld body octets to come
	limits  Limits
	stale   func(time.Time) error // sets src's read deadline; may be nil
	bare    bool                  // messages are cut without their bodies
}

// NewReader reads from src. setDeadline, when not nil, sets src's read
// deadline: half a head that waits longer than PartialTimeout is passed on
// as it is (KindOpaque).
func NewReader(src io.Reader, limits Limits, setDeadline func(time.Time) error) *Reader {
	return &Reader{src: src, limits: limits.withDefaults(), stale: setDeadline}
}

// head returns the first Element, a message's head without its body.
func (r *Reader) head() (Element, error) {
	r.bare = true
	defer func() { r.bare = false }()
	return r.Next()
}

// fill reads at least one octet more, growing the buffer when it is full.
func (r *Reader) fill() error {
	if r.lo == r.hi {
		r.lo, r.hi = 0, 0
	}
	if r.hi == len(r.buf) {
		if r.lo > 0 {
			r.hi = copy(r.buf, r.buf[r.lo:r.hi])
			r.lo = 0
		}
		if r.hi > len(r.buf)/2 || len(r.buf) == 0 {
			buf := make([]byte, max(firstBuffer, 2*len(r.buf)))
			copy(buf, r.buf[:r.hi])
			r.buf = buf
		}
	}
	n, err := r.src.Read(r.buf[r.hi:])
	r.hi += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// take returns the next n octets, on loan until the next fill.
func (r *Reader) take(n int) []byte {
	b := r.buf[r.lo : r.lo+n : r.lo+n]
	r.lo += n
	r.scanned, r.end = 0, 0
	return b
}

// Next returns the next Element. At the end of the stream it returns io.EOF;
// what was left unfinished there comes first, as KindOpaque.
func (r *Reader) Next() (Element, error) {
	for {
		if r.hi > r.lo {
			if e, ok := r.cut(); ok {
				return e, nil
			}
		}
		partial := r.hi > r.lo && r.more == 0 && r.buf[r.lo] != '$'
		if partial && r.stale != nil && r.scanned == 0 {
			_ = r.stale(time.Now().Add(r.limits.PartialTimeout))
		}
		r.scanned = r.hi - r.lo
		err := r.fill()
		if err == nil {
			continue
		}
		if r.hi > r.lo && (partial || !errors.Is(err, os.ErrDeadlineExceeded)) {
			return r.opaque(), nil
		}
		return Element{}, err
	}
}

// opaque gives up on framing: everything read goes out as it is.
func (r *Reader) opaque() Element {
	r.settle()
	return Element{Kind: KindOpaque, Bytes: r.take(r.hi - r.lo)}
}

// settle ends the wait for the rest of a head.
func (r *Reader) settle() {
	if r.stale != nil {
		_ = r.stale(time.Time{})
	}
}

// cut takes an Element from what is buffered; ok is false when more has to be
// read first.
func (r *Reader) cut() (e Element, ok bool) {
	b := r.buf[r.lo:r.hi]
	switch {
	case r.more > 0:
		n := int(min(r.more, int64(len(b))))
		r.more -= int64(n)
		return Element{Kind: KindBody, Bytes: r.take(n)}, true
	case b[0] == '$':
		n := wholeFrames(b)
		return Element{Kind: KindFrames, Bytes: r.take(n)}, n > 0
	case b[0] == '\r' || b[0] == '\n':
		n := 1
		for n < len(b) && (b[n] == '\r' || b[n] == '\n') {
			n++
		}
		return Element{Kind: KindBlank, Bytes: r.take(n)}, true
	}
	return r.cutMessage(b)
}

func (r *Reader) cutMessage(b []byte) (e Element, ok bool) {
	if !plausibleStart(b) {
		return r.opaque(), true
	}
	if r.end <= 0 {
		r.end = headEnd(b, max(0, r.scanned-3))
	}
	end := r.end
	if end < 0 || end > r.limits.MaxHead {
		if len(b) > r.limits.MaxHead {
			return r.opaque(), true
		}
		return Element{}, false
	}
	m := newMessage(append([]byte(nil), b[:end]...))
	n, known := m.contentLength()
	switch {
	case r.bare:
		n = 0
	case !known: // the body's end cannot be told, so nothing behind it can
		return r.opaque(), true
	case n > int64(r.limits.MaxBody):
		m.more, r.more = n, n
		n = 0
	case int64(len(b)-end) < n:
		return Element{}, false
	}
	if n > 0 {
		m.body = append([]byte(nil), b[end:end+int(n)]...)
	}
	r.take(end + int(n))
	r.settle()
	return Element{Kind: KindMessage, Message: m}, true
}

// Buffered is what was read beyond the last Element, on loan until the next
// call of Next.
func (r *Reader) Buffered() []byte { return r.buf[r.lo:r.hi] }

// wholeFrames returns the length of the whole frames at the start of b, at
// most 64 KiB or one frame.
func wholeFrames(b []byte) int {
	n := 0
	for len(b)-n >= frameHead && b[n] == '$' {
		end := n + frameHead + int(b[n+2])<<8 + int(b[n+3])
		if end > len(b) {
			break
		}
		n = end
	}
	return n
}

// plausibleStart says whether b can begin with a start line: a token
// character first (RFC 2326 §15.1) and no control character up to the line
// end.
func plausibleStart(b []byte) bool {
	c := b[0]
	if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '_' && c != '-' && (c < '0' || c > '9') {
		return false
	}
	for _, c := range b {
		if c == '\r' || c == '\n' {
			return true
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
