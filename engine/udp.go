package engine

import (
	"time"

	"rtspshim/engine/relay"
	"rtspshim/engine/wire"
)

// headers is how many RTP headers a pump has at hand. A Batch holds fewer
// pieces, and sends them before it takes more.
const headers = 8192

// turnStreams is how many Streams send before what they sent is handed to the
// kernel and the clock is read again: as many runs as one system call takes.
const turnStreams = 64

// udpSink is the part of a pump that sends Streams. It is a sink for the Stream
// whose turn it is.
type udpSink struct {
	wheel   wheel
	all     map[*Stream]struct{}
	busy    int       // Streams that had this turn
	turn    []*Stream // of them, those to be settled
	limit   int       // packets back to back
	slot    time.Duration
	batch   *wire.Batch
	late    wire.Histogram
	headers [][28]byte
	header  int
	image   image // of a Stream over TCP

	line *line // that sends now
	conn wire.Conn
	dest *wire.Dest
}

func (u *udpSink) init(b *wire.Batch, limit int, slot time.Duration) {
	u.all = map[*Stream]struct{}{}
	u.batch, u.limit, u.slot = b, limit, slot
	u.headers = make([][28]byte, headers)
}

// packet sends a line's next packet: its header built here, its payload from
// where it lies.
func (u *udpSink) packet(l *line) {
	if u.line != l {
		u.line = l
		u.conn, u.dest = l.Relay.Outlet(relay.RTP)
	}
	if u.dest == nil {
		return
	}
	h := &u.headers[u.header]
	u.header = (u.header + 1) % headers
	l.packet.PutHeader((*[12]byte)(h[:]), l.Seq, l.Time, l.SSRC)
	n, rest := 12, l.packet.Payload
	if len(rest) > 1 && len(rest[0]) <= len(h)-n { // the hint's own octets, a piece less for the kernel
		n += copy(h[n:], rest[0])
		rest = rest[1:]
	}
	u.batch.AddPacket(u.conn, u.dest, h[:n], rest, 12+l.packet.Size)
}

func (u *udpSink) left(packets int, late time.Duration) { u.late.Add(late, packets) }

// report sends a line's report.
func (u *udpSink) report(l *line) {
	if conn, dest := l.Relay.Outlet(relay.RTCP); dest != nil {
		u.batch.Add(conn, dest, l.sr)
	}
}

// streams sends what is due of some Streams; the wheel knows of the others. Time
// is cut into slots: what is due in one leaves together at its beginning, up to a
// slot early. So many Streams share a system call and a wake-up, and their
// packets find the kernel's caches warm.
func (u *udpSink) streams(now time.Duration) {
	u.wheel.advance(now)
	u.line = nil
	until := (now/u.slot+1)*u.slot - 1
	for u.busy = 0; u.busy < turnStreams; {
		s := u.wheel.pop()
		if s == nil {
			break
		}
		u.busy++
		s.mu.Lock()
		var at time.Duration
		var again, slow bool
		if s.tcp != nil {
			at, again = s.write(now, &u.image)
			slow = s.tcp.slow
		} else {
			at, again = s.run(now, until, u.limit, u)
		}
		if !slow && (s.over || s.passed() > s.source.spent) {
			u.turn = append(u.turn, s)
		}
		s.mu.Unlock()
		if again {
			if at > until {
				at -= at % u.slot
			}
			u.wheel.add(s, at)
		}
	}
}

// settle follows the Batch's Flush: nothing that was sent is needed any more.
func (u *udpSink) settle() {
	if len(u.turn) == 0 {
		return
	}
	for _, s := range u.turn {
		if s.settle() {
			u.end(s)
		}
	}
	u.turn[0].e.feeder.post(u.turn...)
	clear(u.turn)
	u.turn = u.turn[:0]
}

func (u *udpSink) end(s *Stream) {
	if _, has := u.all[s]; !has {
		return
	}
	delete(u.all, s)
	u.wheel.remove(s)
	s.mu.Lock()
	s.leave()
	s.mu.Unlock()
}

// abandon ends all Streams where they are.
func (u *udpSink) abandon() {
	for s := range u.all {
		s.abandon()
		u.end(s)
	}
}

// abandon ends the Stream when the Engine does.
func (s *Stream) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.finish(ErrClosed)
	}
}

// settle lets go of the intervals that have been sent, for the feeder to give
// back, and tells whether the Stream is over.
func (s *Stream) settle() (over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.source.spent = max(s.source.spent, s.passed())
	return s.over
}

// start begins to send s.
func (p *pump) start(s *Stream) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return ErrClosed
	}
	p.started = append(p.started, s)
	p.poller.Wake()
	return nil
}

// wake has s come by at once, if it is playing.
func (p *pump) wake(s *Stream) {
	p.mu.Lock()
	p.woken = append(p.woken, s)
	p.mu.Unlock()
	p.poller.Wake()
}

// admit takes in what others asked for between two ticks.
func (u *udpSink) admit(started, woken []*Stream) {
	for _, s := range started {
		u.all[s] = struct{}{}
		u.wheel.now(s)
	}
	for _, s := range woken {
		if _, has := u.all[s]; has {
			u.wheel.now(s)
		}
	}
}
