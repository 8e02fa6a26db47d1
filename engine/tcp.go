package engine

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	tcpStep    = 100 * time.Millisecond // between two writes, at least
	tcpPackets = 2048                   // in one write, of one track
	frameHead  = 4                      // $, channel, length (RFC 2326 §10.12)
)

// ErrWrite says that a Stream's FrameWriter has failed: its client has gone.
var ErrWrite = errors.New("write frames")

// tcpSink sends a Stream as interleaved frames, a few large writes a second.
type tcpSink struct {
	writer FrameWriter
	bell   chan struct{} // holds one ring: look again

	frames [][]byte
	heads  []byte // of the frames
	state  []TrackState
}

func newTCPSink(w FrameWriter) *tcpSink { return &tcpSink{writer: w, bell: make(chan struct{}, 1)} }

func (t *tcpSink) head(channel uint8, size, room int) []byte {
	if cap(t.heads)-len(t.heads) < frameHead+room {
		t.heads = make([]byte, 0, 2*cap(t.heads)+1<<12) // the old one lives on in frames
	}
	n := len(t.heads)
	t.heads = append(t.heads, '$', channel, 0, 0)
	binary.BigEndian.PutUint16(t.heads[n+2:], uint16(size))
	t.heads = t.heads[:n+frameHead+room]
	return t.heads[n : n+frameHead+room]
}

func (t *tcpSink) packet(l *line) {
	h := t.head(l.RTP, 12+l.packet.Size, 12)
	l.packet.PutHeader((*[12]byte)(h[frameHead:]), l.Seq, l.Time, l.SSRC)
	t.frames = append(append(t.frames, h), l.packet.Payload...)
}

func (t *tcpSink) left(int, time.Duration) {}

func (t *tcpSink) report(l *line) {
	t.frames = append(t.frames, t.head(l.RTCP, len(l.sr), 0), l.sr)
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

// runTCP starts the goroutine that sends s.
func (e *Engine) runTCP(s *Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	s.mu.Lock()
	s.tcp.state = s.snapshot(nil)
	s.mu.Unlock()
	e.writers.Add(1)
	go s.write()
	return nil
}

// write is the goroutine of a Stream over TCP. A reader that is slow holds up
// this one alone; afterwards it has what it missed.
func (s *Stream) write() {
	defer s.e.writers.Done()
	label("stream over TCP")
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Since(s.e.start)
		wait, over := s.step(now)
		if over {
			break
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-s.tcp.bell:
		}
	}
	s.mu.Lock()
	s.leave()
	s.mu.Unlock()
}

// step writes what may leave now, and tells how long to wait then.
func (s *Stream) step(now time.Duration) (wait time.Duration, over bool) {
	t := s.tcp
	clear(t.frames)
	t.frames, t.heads = t.frames[:0], t.heads[:0]
	s.mu.Lock()
	at, again := s.run(now, now, tcpPackets, t)
	passed := s.over || s.passed() > s.source.spent
	s.mu.Unlock()
	if len(t.frames) > 0 {
		if err := t.writer.WriteFrames(net.Buffers(t.frames)); err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.over {
				s.finish(fmt.Errorf("%w: %w", ErrWrite, err))
			}
			return 0, true
		}
	}
	if s.settle(); passed {
		s.e.feeder.post(s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.state = s.snapshot(t.state)
	if !again {
		return time.Hour, s.over
	}
	return max(at-now, tcpStep), s.over
}
