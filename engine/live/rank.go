package live

import (
	"slices"
	"time"

	"rtspshim/engine/wire"
)

// rank is Members of a lane who are in step: they take datagrams from the same
// sockets, see the Group's own numbers, and stand at the same place in the log. Each
// run is listed once for all of them, and what they were sent is counted once: a
// send needs nothing of a Member but its address, and those lie side by side.
type rank struct {
	g       *Group
	at      uint64 // of the log, sent next
	conns   []wire.Conn
	members []*Member
	fans    []*wire.Fan // by Media
	total   []sum       // what each was sent, by Media
	counted time.Time   // when that was last put down for all
	dirty   bool        // something has been sent since

	// The run on its way.
	media int
	run   sum
	next  int // of members, sent it next
}

// countEvery is how long a rank's Members may wait to be told what they were sent.
const countEvery = 10 * time.Second

// steps says whether a Member may stand in a rank: it is sent all Medias, and the
// kernel takes runs for it.
func (m *Member) steps() bool {
	if !m.plain || m.pace != nil || m.at < m.since+joined {
		return false
	}
	for _, via := range m.via {
		if via[0].dest == nil || via[0].dest.Limited() {
			return false
		}
	}
	return true
}

// fallIn moves a lane's Members who are in step into ranks.
func (l *lane) fallIn(g *Group, now time.Time) {
	var stay []*Member
	for n, m := range l.udp {
		if m.gone || !m.steps() || !l.rank(g, m, now).add(m) {
			if stay != nil {
				stay = append(stay, m)
			}
		} else if stay == nil {
			stay = append(make([]*Member, 0, len(l.udp)), l.udp[:n]...)
		}
	}
	if stay != nil {
		l.udp = stay
	}
}

// rank is the one of the Member's sockets, which may be elsewhere in the log.
func (l *lane) rank(g *Group, m *Member, now time.Time) *rank {
	conns := make([]wire.Conn, len(m.via))
	for n, via := range m.via {
		conns[n] = via[0].conn
	}
	for _, r := range l.ranks {
		if slices.Equal(r.conns, conns) {
			return r
		}
	}
	r := &rank{g: g, at: m.at, conns: conns, fans: make([]*wire.Fan, len(conns)), total: make([]sum, len(conns)), counted: now}
	for n, c := range conns {
		r.fans[n] = wire.NewFan(c)
	}
	l.ranks = append(l.ranks, r)
	return r
}

// add takes a Member in if it is in step.
func (r *rank) add(m *Member) bool {
	if len(r.members) == 0 {
		r.at = m.at
	}
	if m.at != r.at {
		return false
	}
	r.members = append(r.members, m)
	for n, f := range r.fans {
		f.Add(m.via[n][0].dest)
	}
	m.rank, m.counted = r, slices.Clone(r.total)
	return true
}

// remove takes a Member out, with all that it was sent put down.
func (r *rank) remove(m *Member) {
	i := slices.Index(r.members, m)
	r.count(i)
	r.members = slices.Delete(r.members, i, i+1)
	for _, f := range r.fans {
		f.Remove(i)
	}
	if i < r.next {
		r.next--
	}
	m.rank = nil
}

// count puts down what the i-th Member was sent.
func (r *rank) count(i int) {
	m := r.members[i]
	m.at = r.at
	for n := range r.total {
		to := r.total[n]
		if i < r.next && n == r.media {
			to.add(r.run)
		}
		was := m.counted[n]
		if packets, octets := to.count-was.count, to.octets-was.octets; packets > 0 {
			m.sent(n, to.seq, to.time, packets, octets)
			m.via[n][0].dest.Sent(packets, octets+packets*rtpHeader)
			m.counted[n] = to
		}
	}
}

// countAll puts down what all were sent, and takes those out whom the kernel
// would not take a run for.
func (r *rank) countAll(l *lane, now time.Time) {
	r.counted, r.dirty = now, false
	for i := len(r.members) - 1; i >= 0; i-- {
		r.count(i)
		if m := r.members[i]; !m.steps() {
			r.remove(m)
			l.udp = append(slices.Clone(l.udp), m)
		}
	}
}

// send sends a burst and tells when there is more.
func (r *rank) send(lane *lane, out *wire.Batch, open uint64, now time.Time) (next time.Time) {
	l := r.g.log
	for left := burstFor(open - min(r.at, open)); r.at < open && len(r.members) > 0; {
		if r.at < l.tail { // it may move while a run is sent
			r.lose(l.tail)
			continue
		}
		if left <= 0 {
			next = now.Add(burstGap)
			break
		}
		e := l.entry(r.at)
		if e.rtcp {
			r.report(out, e)
			r.at++
			continue
		}
		count := r.sendRun(lane, out, e, open, left)
		r.at += uint64(count)
		left -= count
	}
	if r.dirty {
		if at := r.counted.Add(countEvery); !at.After(now) {
			r.countAll(lane, now)
		} else if next.IsZero() {
			next = at
		}
	}
	return next
}

// lose goes on at a place in the log, without what lies before.
func (r *rank) lose(at uint64) {
	for _, m := range r.members {
		m.dropped.Add(at - r.at)
	}
	r.at = at
}

// report sends a report, which is each viewer's own.
func (r *rank) report(out *wire.Batch, e *entry) {
	for i, m := range r.members {
		via := &m.via[e.media][1]
		if via.dest == nil || !m.wants(r.at, e) {
			continue
		}
		r.count(i)
		p := make([]byte, e.size)
		m.report(e, p)
		out.Add(via.conn, via.dest, p)
	}
}

// sendRun sends the run that begins with an entry and returns how many packets it
// has.
func (r *rank) sendRun(lane *lane, out *wire.Batch, e *entry, open uint64, most int) int {
	l := r.g.log
	count, octets := l.run(r.at, open, most, nil)
	last := l.entry(r.at + uint64(count) - 1)
	data := l.arena[e.pos%logBytes : last.pos%logBytes+uint64(last.size)]
	r.media, r.run = int(e.media), sum{count, octets - count*rtpHeader, last.seq, last.time}
	fan, size := r.fans[e.media], int(e.size)
	for r.next < len(r.members) {
		to := min(r.next+sendTurn, len(r.members))
		out.SendFan(fan, r.next, to, data, size)
		if r.next = to; to == len(r.members) {
			break
		}
		out.Flush()
		r.g.mu.RUnlock()
		r.g.mu.RLock()
		if r.at < l.tail { // others' packets lie there now
			r.leaveOut(lane)
		}
	}
	r.total[r.media].add(r.run)
	r.next, r.dirty = 0, true
	return count
}

// leaveOut has the Members to whom the run at hand has not been sent go on by
// themselves.
func (r *rank) leaveOut(lane *lane) {
	for len(r.members) > r.next {
		m := r.members[len(r.members)-1]
		r.remove(m)
		lane.udp = append(slices.Clone(lane.udp), m)
	}
}
