package live

import (
	"slices"
	"sync/atomic"
	"time"

	"rtspshim/engine/wire"
)

// Outlet is where a Member's datagrams of a Media go, RTP (0) or RTCP (1): the
// same as long as the Member is one.
type Outlet interface {
	Outlet(kind int) (wire.Conn, *wire.Dest)
}

// MemberSpec describes a viewer.
type MemberSpec struct {
	Medias []MemberMedia // in the order of the Group's
	TCP    Writer        // nil for datagrams
	Begin  *Begin        // in the past; nil for the present
}

// MemberMedia is a viewer's view of one Media.
type MemberMedia struct {
	Mapping                // the Group's numbers to the viewer's
	Last            uint16 // packet the viewer has, in its own numbers
	LastTime        uint32 // its timestamp
	Packets, Octets uint32 // sent before, for the reports
	Outlet          Outlet // datagrams
	RTP, RTCP       uint8  // channels, on a connection
}

// MemberStats counts what a Member was sent.
type MemberStats struct {
	Packets, Octets uint64 // RTP; octets of payload
	Dropped         uint64 // packets a slow connection had to do without
}

// Add sums up.
func (a *MemberStats) Add(b MemberStats) {
	a.Packets, a.Octets, a.Dropped = a.Packets+b.Packets, a.Octets+b.Octets, a.Dropped+b.Dropped
}

// Member is a viewer fed by a Group.
type Member struct {
	g    *Group
	lane *lane
	spec MemberSpec
	tcp  bool

	// Of whoever sends, Send, writeAll or the Member's goroutine, under Group.mu.
	same    []bool // by Media: the Group's own numbers
	lost    []bool // by Media: until its next key frame
	at      uint64 // of the log, sent next
	since   uint64 // where the log stood when it joined
	pace    *pace  // while it catches up
	rank    *rank  // the one it stands in, if any
	counted []sum  // by Media: what of the rank's is put down
	via     [][2]via

	packets, octets, dropped atomic.Uint64

	gone bool // likewise

	// Connections.
	plain    bool          // sees the Group's own numbers
	channels [][2]uint8    // by Media
	slow     atomic.Bool   // a goroutine of its own is what sends
	done     chan struct{} // closed when the last one has ended
}

// via is an Outlet's answer.
type via struct {
	conn wire.Conn
	dest *wire.Dest
}

// Join adds a viewer, who is sent what follows the last packets it has.
func (g *Group) Join(spec MemberSpec) *Member {
	n := len(spec.Medias)
	m := &Member{g: g, spec: spec, tcp: spec.TCP != nil, same: make([]bool, n), lost: make([]bool, n), via: make([][2]via, n), plain: true, done: make(chan struct{})}
	close(m.done)
	g.mu.Lock()
	defer g.mu.Unlock()
	m.at, m.since = g.log.head, g.log.head
	if b := spec.Begin; b != nil && b.at >= g.log.tail {
		m.at, m.pace = b.at, &pace{from: g.log.entry(b.at).at, began: time.Now()}
	}
	for n := range spec.Medias {
		to := &spec.Medias[n]
		m.channels = append(m.channels, [2]uint8{to.RTP, to.RTCP})
		m.same[n] = to.Seq == 0 && to.Time == 0 && to.SSRC == g.log.medias[n].ssrc
		m.plain = m.plain && m.same[n]
		if at := g.log.behind(n, to.Last-to.Seq); at > 0 {
			m.at = min(m.at, at)
		}
		if to.Outlet != nil {
			for kind := range m.via[n] {
				m.via[n][kind].conn, m.via[n][kind].dest = to.Outlet.Outlet(kind)
			}
		}
	}
	if g.closed {
		m.gone = true
		return m
	}
	m.lane = g.lane()
	m.lane.add(m)
	return m
}

// leaveWait is how long Leave waits for a connection that does not take what it
// is being written.
const leaveWait = 500 * time.Millisecond

// Leave ends a Member. When it returns, nothing more is sent but what a
// connection has been too slow to take. It returns the last packets sent, in
// the viewer's numbers.
func (m *Member) Leave() []MemberMedia {
	g := m.g
	g.mu.Lock()
	if !m.gone {
		m.lane.remove(m)
		m.gone = true
	}
	done := m.done
	g.mu.Unlock()
	timer := time.NewTimer(leaveWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	return m.State()
}

// State is where the viewer stands.
func (m *Member) State() []MemberMedia {
	m.g.mu.Lock() // Send holds it to read
	defer m.g.mu.Unlock()
	m.settle()
	return append([]MemberMedia(nil), m.spec.Medias...)
}

// Stats returns the counters as they are now.
func (m *Member) Stats() MemberStats {
	m.g.mu.Lock()
	m.settle()
	m.g.mu.Unlock()
	return MemberStats{m.packets.Load(), m.octets.Load(), m.dropped.Load()}
}

// settle puts down what the Member was sent with others.
func (m *Member) settle() {
	if m.rank != nil {
		m.rank.count(slices.Index(m.rank.members, m))
	}
}

// joined is how many packets may come before what a new Member has already is
// certain to be past.
const joined = 1024

// wants says whether the n-th packet of the log is for the viewer.
func (m *Member) wants(n uint64, e *entry) bool {
	to := &m.spec.Medias[e.media]
	if e.rtcp {
		return n >= m.since
	}
	return n >= m.since+joined || int16(e.seq+to.Seq-to.Last) > 0
}

// sent notes packets on their way, up to that one of the Group's.
func (m *Member) sent(media int, seq uint16, time uint32, count, octets int) {
	to := &m.spec.Medias[media]
	if seq := seq + to.Seq; int16(seq-to.Last) > 0 {
		to.Last, to.LastTime = seq, time+to.Time
	}
	to.Packets += uint32(count)
	to.Octets += uint32(octets)
	m.packets.Add(uint64(count))
	m.octets.Add(uint64(octets))
}

// report is an RTCP packet of the log as the viewer is to see it.
func (m *Member) report(e *entry, p []byte) {
	to := &m.spec.Medias[e.media]
	copy(p, m.g.log.bytes(e))
	renumber(p, m.g.log.medias[e.media].ssrc, to.Mapping, &to.Packets, &to.Octets)
}

// send sends a burst and tells when there is more.
func (m *Member) send(out *wire.Batch, open uint64, now time.Time) (next time.Time) {
	if m.at >= open {
		return next
	}
	l := m.g.log
	for left := burstFor(open - m.at); m.at < open; {
		e := l.entry(m.at)
		if !m.wants(m.at, e) {
			m.at++
			continue
		}
		if left <= 0 {
			return now.Add(burstGap)
		}
		if m.pace != nil {
			if at := m.pace.due(e.at); at.After(now) {
				return at
			}
		}
		to := &m.spec.Medias[e.media]
		via := &m.via[e.media][kindOf(e)]
		switch {
		case via.dest == nil:
			m.at++
		case e.rtcp:
			p := make([]byte, e.size)
			m.report(e, p)
			out.Add(via.conn, via.dest, p)
			m.at++
		case m.same[e.media]:
			count, octets := l.run(m.at, open, left, m)
			size := int(e.size)
			last := l.entry(m.at + uint64(count) - 1)
			out.AddRun(via.conn, via.dest, l.arena[e.pos%logBytes:last.pos%logBytes+uint64(last.size)], size)
			m.sent(int(e.media), last.seq, last.time, count, octets-count*rtpHeader)
			m.at += uint64(count)
			left -= count
		default:
			h := m.lane.nextHeader()
			p := l.bytes(e)
			h[0], h[1] = p[0], p[1]
			put(h, e.seq+to.Seq, e.time+to.Time, to.SSRC)
			out.Add(via.conn, via.dest, h, p[rtpHeader:])
			m.sent(int(e.media), e.seq, e.time, 1, len(p)-rtpHeader)
			m.at++
			left--
		}
	}
	if m.at == l.head {
		m.pace = nil // it has caught up
	}
	return next
}

// kindOf is an entry's Outlet.
func kindOf(e *entry) int {
	if e.rtcp {
		return 1
	}
	return 0
}
