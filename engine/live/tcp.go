package live

import (
	"net"
	"slices"
	"time"
)

// Writer takes whole interleaved frames.
type Writer interface {
	// WriteFrames writes frames, and waits for a slow connection.
	WriteFrames(frames net.Buffers) error
	// TryFrames writes what the connection takes at once, and returns how many
	// octets: none where it would have to wait for others. What is missing of
	// them follows before anything else, with the next WriteFrames at the latest.
	TryFrames(frames net.Buffers) int
}

const (
	writeBytes = 128 << 10               // in one write to a connection, about
	lagMost    = 1500 * time.Millisecond // behind which a connection is slow
	frameHead  = 4                       // $, channel, length (RFC 2326 §10.12)
	lockTurn   = 32                      // Members written to before others have the lock
)

// round is one turn of writing to all Members on connections, and its memory.
// Those who stand at the same place and see the Group's own numbers on the same
// channels are all written the same octets.
type round struct {
	image    []byte
	from, to uint64 // of the log; none where equal
	mixed    bool   // with reports, which are each viewer's own
	channels [][2]uint8
	sums     []sum
	own      []byte // for one who needs other octets
	pieces   net.Buffers
}

// sum is so many packets of a Media.
type sum struct {
	count, octets int    // octets of payload
	seq           uint16 // the highest
	time          uint32 // its timestamp
}

// add adds those that come next.
func (s *sum) add(o sum) {
	if s.count == 0 || int16(o.seq-s.seq) > 0 {
		s.seq, s.time = o.seq, o.time
	}
	s.count += o.count
	s.octets += o.octets
}

// make makes the image of what m has not had yet.
func (r *round) make(m *Member) {
	l := m.g.log
	r.from, r.to, r.mixed, r.image = m.at, m.at, false, r.image[:0]
	r.channels, r.sums = m.channels, append(r.sums[:0], make([]sum, len(m.channels))...)
	for ; r.to < l.head && len(r.image) < writeBytes; r.to++ {
		e := l.entry(r.to)
		if e.rtcp {
			r.mixed = true
			continue
		}
		r.sums[e.media].add(sum{1, int(e.size) - rtpHeader, e.seq, e.time})
		r.image = appendFrame(r.image, m.channels[e.media][0], l.bytes(e))
	}
}

// write writes what m's connection takes at once.
func (r *round) write(m *Member, b []byte) int {
	r.pieces = append(r.pieces[:0], b)
	return m.spec.TCP.TryFrames(r.pieces)
}

func appendFrame(b []byte, channel uint8, p []byte) []byte {
	return append(append(b, '$', channel, byte(len(p)>>8), byte(len(p))), p...)
}

// writeAll is the goroutine that writes to a lane's Members on connections, as
// far as they take what they are given at once. One that does not is left to a
// goroutine of its own until it has caught up.
func (g *Group) writeAll(l *lane) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var r round
	for {
		select {
		case <-l.bell:
		case <-timer.C:
		}
		next, over := g.writeRound(l, &r, time.Now())
		if over {
			return
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

func (g *Group) writeRound(l *lane, r *round, now time.Time) (next time.Time, over bool) {
	g.mu.RLock()
	defer func() { g.mu.RUnlock() }()
	r.from, r.to = 0, 0
	for n, m := range l.tcp {
		if n%lockTurn == lockTurn-1 {
			g.mu.RUnlock() // whoever brings packets must not wait for long
			g.mu.RLock()
		}
		if at := m.try(r, now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next, g.closed
}

// try writes what the Member has not had yet and tells when there is more, if
// that is to wait.
func (m *Member) try(r *round, now time.Time) (next time.Time) {
	l := m.g.log
	if m.gone || m.slow.Load() || m.at == l.head {
		return next
	}
	if m.plain && m.pace == nil && m.at >= max(l.tail, m.since+joined) {
		if r.from == r.to {
			r.make(m)
		}
		if m.at == r.from && !r.mixed && slices.Equal(r.channels, m.channels) {
			m.tryImage(r)
			return next
		}
	}
	for {
		if r.own, next = m.gather(r.own[:0], now); len(r.own) == 0 {
			return next
		}
		switch n := r.write(m, r.own); {
		case n == 0:
			m.leaveTo(slices.Clone(r.own))
			return time.Time{}
		case n < len(r.own):
			m.leaveTo(nil)
			return time.Time{}
		}
	}
}

func (m *Member) tryImage(r *round) {
	n := r.write(m, r.image)
	if n > 0 {
		m.at = r.to
		for media, s := range r.sums {
			if s.count > 0 {
				m.sent(media, s.seq, s.time, s.count, s.octets)
			}
		}
	}
	if n < len(r.image) {
		m.leaveTo(nil)
	}
}

// leaveTo has a goroutine of its own write to the Member until it has caught
// up, these frames first.
func (m *Member) leaveTo(first []byte) {
	done := make(chan struct{})
	m.done = done
	m.slow.Store(true)
	m.g.cfg.Go(func() {
		defer close(done)
		for b := first; ; {
			if m.spec.TCP.WriteFrames(net.Buffers{b}) != nil {
				return // the connection ends, and the session knows
			}
			if b, _ = m.more(b[:0]); len(b) == 0 {
				break
			}
		}
		m.slow.Store(false)
		m.lane.ring()
	})
}

// more is gather for the Member's own goroutine.
func (m *Member) more(b []byte) ([]byte, time.Time) {
	m.g.mu.RLock()
	defer m.g.mu.RUnlock()
	return m.gather(b, time.Now())
}

// gather appends what is to be written next, and tells when there is more if
// that is to wait. The Group's lock is held to read.
func (m *Member) gather(b []byte, now time.Time) (_ []byte, next time.Time) {
	l := m.g.log
	if m.gone {
		return b, next
	}
	if m.at < l.tail {
		m.pace = nil
	}
	if m.pace == nil {
		m.catchUp()
	}
	for ; m.at < l.head && len(b) < writeBytes; m.at++ {
		e := l.entry(m.at)
		if !m.wants(m.at, e) || m.leaveOut(e) {
			continue
		}
		if m.pace != nil {
			if at := m.pace.due(e.at); at.After(now) {
				return b, at
			}
		}
		to := &m.spec.Medias[e.media]
		channel := to.RTP
		if e.rtcp {
			channel = to.RTCP
		}
		b = appendFrame(b, channel, l.bytes(e))
		p := b[len(b)-int(e.size):]
		if e.rtcp {
			m.report(e, p)
			continue
		}
		put(p, e.seq+to.Seq, e.time+to.Time, to.SSRC)
		m.sent(int(e.media), e.seq, e.time, 1, len(p)-rtpHeader)
	}
	if m.at == l.head {
		m.pace = nil
	}
	return b, next
}

// catchUp lets a connection that is slow lose whole frames of every Media whose
// key frames are known, and all that is out of the log.
func (m *Member) catchUp() {
	l := m.g.log
	slow := m.at < l.tail
	if slow {
		m.dropped.Add(l.tail - m.at)
		m.at = l.tail
	}
	if m.at < l.head {
		e := l.entry(m.at)
		slow = slow || l.entry(l.head-1).at.Sub(e.at) > lagMost || l.pos-e.pos > logBytes/2
	}
	if !slow {
		return
	}
	for n := range m.lost {
		m.lost[n] = isKnown(m.g.cfg.Medias[n].Codec)
	}
}

// leaveOut drops the packets of a Media up to the newest key frame, from the
// next frame on.
func (m *Member) leaveOut(e *entry) bool {
	if !m.lost[e.media] || e.rtcp {
		return false
	}
	at, to := m.g.log.medias[e.media], &m.spec.Medias[e.media]
	if e.time+to.Time == to.LastTime { // the rest of a frame that is begun
		return false
	}
	if at.key == 0 || m.at+1 < at.key {
		m.dropped.Add(1)
		return true
	}
	m.lost[e.media] = false
	return false
}
