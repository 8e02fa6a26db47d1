package live

import (
	"slices"
	"time"

	"rtspshim/engine/wire"
)

// lane is the Members that one thread sends to, by datagrams, or one goroutine,
// on connections: so a Group may have as many processors as there are.
type lane struct {
	wake     func()        // has Send called soon, on its thread
	ranks    []*rank       // of those by datagrams who are in step,
	udp, tcp []*Member     // and all others
	bell     chan struct{} // holds one ring, for writeAll; nil before the first Member of tcp
	smooth   smoother
	headers  [][rtpHeader]byte // of what a Batch holds; made when first needed
	header   int               // the next one
}

const (
	// laneMost is how many Members a lane has before another one is begun: as
	// many sends as a system call takes. Fewer are not worth a thread's waking.
	laneMost = 64

	sendTurn = 64 // Members sent to before whoever brings packets has the lock

	// sendHeaders is how many headers a lane has at hand. A Batch holds fewer
	// pieces, and sends them before it takes more.
	sendHeaders = 8192
)

// lane is where another Member belongs: in the first lane that is not full, or
// else in the one with the fewest.
func (g *Group) lane() *lane {
	best := g.lanes[0]
	for _, l := range g.lanes {
		if n := l.members(); n < laneMost {
			return l
		} else if n < best.members() {
			best = l
		}
	}
	return best
}

func (l *lane) add(m *Member) {
	if !m.tcp {
		l.udp = append(l.udp, m)
		l.wake()
		return
	}
	if l.bell == nil {
		l.bell = make(chan struct{}, 1)
		m.g.cfg.Go(func() { m.g.writeAll(l) })
	}
	l.tcp = append(l.tcp, m)
	l.ring()
}

// remove takes a Member out; who sends meanwhile goes through the list as it was.
func (l *lane) remove(m *Member) {
	if m.rank != nil {
		m.rank.remove(m)
		return
	}
	of := &l.udp
	if m.tcp {
		of = &l.tcp
	}
	at := slices.Index(*of, m)
	*of = slices.Concat((*of)[:at], (*of)[at+1:])
}

func (l *lane) members() int { return l.datagrams() + len(l.tcp) }

// datagrams is how many Members take datagrams.
func (l *lane) datagrams() int {
	n := len(l.udp)
	for _, r := range l.ranks {
		n += len(r.members)
	}
	return n
}

// nextHeader is memory for a header, good until the Batch has been sent.
func (l *lane) nextHeader() []byte {
	if l.headers == nil {
		l.headers = make([][rtpHeader]byte, sendHeaders)
	}
	h := l.headers[l.header][:]
	l.header = (l.header + 1) % sendHeaders
	return h
}

func (l *lane) ring() {
	select {
	case l.bell <- struct{}{}:
	default: // rung already, or nobody is there
	}
}

// Send sends to all Members of a lane whose datagrams go through out what they
// have not had yet, and may have now. A lane's is called by one thread. It
// returns when there is more to send, zero if nothing is left.
func (g *Group) Send(lane int, out *wire.Batch, now time.Time) (next time.Time) {
	g.mu.RLock()
	defer func() { g.mu.RUnlock() }()
	defer out.Flush() // the log does not move before
	l := g.lanes[lane]
	open, next := g.ripe(now)
	if g.cfg.Smooth {
		next = l.smooth.release(g.log, g.rates, now)
		open = l.smooth.open
	}
	soonest := func(at time.Time) {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, r := range l.ranks {
		soonest(r.send(l, out, open, now))
	}
	for n, m := range l.udp {
		if n%sendTurn == sendTurn-1 {
			out.Flush()
			g.mu.RUnlock()
			g.mu.RLock()
		}
		if m.gone {
			continue // since the lock was let go
		}
		if m.at < g.log.tail {
			m.dropped.Add(g.log.tail - m.at)
			m.at = g.log.tail
		}
		soonest(m.send(out, open, now))
	}
	l.fallIn(g, now)
	return next
}
