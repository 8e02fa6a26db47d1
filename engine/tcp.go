package engine

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

const (
	tcpStep    = 100 * time.Millisecond // between two writes
	tcpSlot    = 20 * time.Millisecond  // at whose beginning many Streams write
	tcpPackets = 2048                   // in one write, of one track
)

// ErrWrite says that a Stream's FrameWriter has failed: its client has gone.
var ErrWrite = errors.New("write frames")

// tcpSink is what a Stream over TCP has beside others; it is guarded by its mu.
type tcpSink struct {
	writer FrameWriter
	slow   bool // a goroutine of its own writes
	state  []TrackState
}

// image is whole interleaved frames, back to back: headers made here, and the
// payload where it lies. It is a sink.
type image struct {
	pieces net.Buffers
	heads  []byte
	size   int
}

func (m *image) reset() {
	clear(m.pieces)
	m.pieces, m.heads, m.size = m.pieces[:0], m.heads[:0], 0
}

func (m *image) add(p []byte) {
	m.pieces = append(m.pieces, p)
	m.size += len(p)
}

// begin begins a frame and returns where its header is; end ends that.
func (m *image) begin(channel uint8, size int) (at int) {
	at = len(m.heads)
	m.heads = append(m.heads, '$', channel, byte(size>>8), byte(size)) // RFC 2326 §10.12
	return at
}

func (m *image) end(at int) { m.add(m.heads[at:len(m.heads):len(m.heads)]) }

func (m *image) packet(l *line) {
	at := m.begin(l.RTP, 12+l.packet.Size)
	var h [12]byte
	l.packet.PutHeader(&h, l.Seq, l.Time, l.SSRC)
	m.heads = append(m.heads, h[:]...)
	rest := l.packet.Payload
	if len(rest) > 1 && len(rest[0]) <= len(h) { // the hint's own octets, a piece less for the kernel
		m.heads = append(m.heads, rest[0]...)
		rest = rest[1:]
	}
	m.end(at)
	for _, p := range rest {
		m.add(p)
	}
}

func (m *image) left(int, time.Duration) {}

func (m *image) report(l *line) {
	at := m.begin(l.RTCP, len(l.sr))
	m.heads = append(m.heads, l.sr...)
	m.end(at)
}

// lead is how far ahead of its time a packet leaves that leaves then.
func (s *Stream) lead(at time.Duration) time.Duration {
	if s.tcp == nil {
		return 0
	}
	a := &s.spec.Ahead
	d := max(a.Lead, time.Duration(a.Growth*float64(at-a.Began.Sub(s.e.start))))
	return max(min(d, cmp.Or(a.Most, d)), tcpStep)
}

// early is when a packet leaves that has its time then: the same line, looked
// at from the other side.
func (s *Stream) early(due time.Duration) time.Duration {
	a := &s.spec.Ahead
	at := due - max(a.Lead, tcpStep)
	if a.Growth > 0 {
		began := a.Began.Sub(s.e.start)
		at = min(at, began+time.Duration(float64(due-began)/(1+a.Growth)))
	}
	if a.Most > 0 {
		at = max(at, due-a.Most)
	}
	return at
}

// write writes what may leave now, as far as the connection takes it at once; one
// that does not is left to a goroutine of its own until it has caught up. at is
// when to look again. Called under mu, on the pump's thread.
func (s *Stream) write(now time.Duration, m *image) (at time.Duration, again bool) {
	t := s.tcp
	if t.slow {
		return 0, false
	}
	m.reset()
	at, again = s.run(now, now, tcpPackets, m)
	n := 0
	if m.size > 0 {
		n = t.writer.TryFrames(m.pieces)
	}
	switch n {
	case m.size:
		t.state = s.snapshot(t.state)
		at = max(at, now+tcpStep)
		return at - at%tcpSlot, again
	case 0:
		s.leaveTo(slices.Concat(m.pieces...))
	default:
		s.leaveTo(nil) // who writes next writes the rest
	}
	return 0, false
}

// leaveTo has a goroutine write to a slow reader, these frames first, until it
// has what may leave. It holds up nobody else.
func (s *Stream) leaveTo(b []byte) {
	s.tcp.slow = true
	s.e.writers.Add(1)
	go func() {
		defer s.e.writers.Done()
		label("stream over TCP")
		for m := new(image); ; {
			err := s.tcp.writer.WriteFrames(net.Buffers{b})
			if b = s.wrote(err, m, b[:0]); len(b) == 0 {
				break
			}
		}
		s.wake()
	}()
}

// wrote follows a write to a slow reader, and appends the frames that are to be
// written next; with none, the pump has the Stream again.
func (s *Stream) wrote(err error, m *image, b []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.over {
		s.finish(fmt.Errorf("%w: %w", ErrWrite, err))
	}
	if !s.gone {
		s.tcp.state = s.snapshot(s.tcp.state)
		now := time.Since(s.e.start)
		m.reset()
		s.run(now, now, tcpPackets, m)
		for _, p := range m.pieces {
			b = append(b, p...)
		}
	}
	s.tcp.slow = len(b) > 0
	if passed := s.passed(); passed > s.source.spent { // frames are copies
		s.source.spent = passed
		s.e.feeder.post(s)
	}
	return b
}
