package intercept

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/live"
	"rtspshim/engine/relay"
)

// watch follows what the upstream sends for one Media on its way to the
// client: on the pump's thread for datagrams, on the connection's for
// interleaved frames. It feeds a proof under way, knows exactly what was
// passed on, and holds the upstream's packets back once the engine sends.
type watch struct {
	index int // of the Media in its session

	mu      sync.Mutex
	feed    feed                             // whoever else looks at the packets
	held    bool                             // packets are held back
	kept    *kept                            // of those, while a PLAY is on its way; nil otherwise
	seen    bool                             // something came: up and ssrc hold
	passed  bool                             // something was passed on: last holds
	up      uint16                           // sequence number of the upstream's last packet
	ssrc    uint32                           // of the upstream's last packet
	last    uint16                           // of the last one passed on, as the client knows it
	times   [16]uint32                       // timestamps of the latest ones passed on, likewise: packet n's is times[n%16]
	halted  uint16                           // last, when the engine stopped
	packets uint32                           // passed on
	octets  uint32                           // of payload, RFC 3550 §6.4.1
	beyond  struct{ packets, octets uint32 } // what the upstream's reports count that was not: it counts for all, or for others
	again   bool                             // the next packet follows the last one, if it is not later anyway
	shift   shift                            // added to what is passed on
	report  report
	senders [][]byte                             // scratch
	counts  func() (rtp, packets, octets uint32) // for reports, while the engine sends
	bye     func()                               // called once when the upstream says goodbye
}

// feed is shown a Media's packets as they come from the upstream, which are on
// loan.
type feed func(media int, packets [][]byte, rtcp bool, at time.Time)

// shift is what a client's numbers have run ahead of the upstream's.
type shift struct {
	seq  uint16
	time uint32
}

// report is the style of the upstream's sender reports.
type report struct {
	fresh    bool          // the last one came after the last PLAY
	at       time.Time     // arrival of the last one
	time     uint32        // RTP timestamp in it, as the client knows it
	still    bool          // which is that of a packet, and does not go on with the clock
	clock    time.Duration // the upstream's NTP clock less ours
	interval time.Duration // between the last two
	tail     []byte        // what follows the SR in the compound
}

// burst looks at packets that came from the upstream. It returns false when
// they are not to be passed on; it may edit them.
func (w *watch) burst(packets [][]byte, at time.Time) (pass bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.feed != nil {
		w.feed(w.index, packets, false, at)
	}
	for _, p := range packets {
		if len(p) < 12 || p[0]>>6 != 2 {
			continue
		}
		seq := binary.BigEndian.Uint16(p[2:])
		if !w.seen || int16(seq-w.up) > 0 {
			w.up, w.seen = seq, true
		}
		w.ssrc = binary.BigEndian.Uint32(p[8:])
		if w.held {
			w.kept.add(p)
			continue
		}
		w.renumber(p)
	}
	return !w.held
}

// renumber edits a packet that is passed on, and counts it.
func (w *watch) renumber(p []byte) {
	seq := binary.BigEndian.Uint16(p[2:])
	if w.again {
		w.followOn(seq)
	}
	seq, time := seq+w.shift.seq, binary.BigEndian.Uint32(p[4:])+w.shift.time
	binary.BigEndian.PutUint16(p[2:], seq)
	binary.BigEndian.PutUint32(p[4:], time)
	if !w.passed || int16(seq-w.last) > 0 {
		w.last, w.passed = seq, true
	}
	if time == w.report.time && !w.report.at.IsZero() { // the report overtook it
		w.report.still = true
	}
	w.times[w.packets%uint32(len(w.times))] = time
	w.packets++
	w.octets += uint32(len(p) - 12)
}

// kept is copies of packets that may have overtaken the answer to a PLAY: over
// UDP nothing holds them behind it, and some servers send them first over TCP.
type kept struct {
	packets [][]byte
	octets  int
}

const maxKept = 1 << 20 // octets of a Media; what a server sends at once is less

func (k *kept) add(p []byte) {
	if k != nil && k.octets+len(p) <= maxKept {
		k.packets = append(k.packets, bytes.Clone(p))
		k.octets += len(p)
	}
}

// keep has packets that are held back from now on kept until pass, or until it
// is certain that nobody wants them.
func (w *watch) keep(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kept = nil; on && w.held {
		w.kept = &kept{}
	}
}

// pass lets packets through again, after send has had those that were kept.
func (w *watch) pass(send func(packets [][]byte)) {
	for {
		w.mu.Lock()
		if w.kept == nil || len(w.kept.packets) == 0 {
			w.held, w.kept = false, nil
			w.mu.Unlock()
			return
		}
		packets := w.kept.packets
		w.kept = &kept{}
		for _, p := range packets {
			w.renumber(p)
		}
		w.mu.Unlock()
		send(packets)
	}
}

const (
	packetSR  = 200 // RFC 3550 §12.1
	packetBye = 203
	ntpEpoch  = 2208988800 // 1970 in NTP seconds
	maxTail   = 512

	onTheirWay = 64 // packets that a report overtakes, or that overtake it, at most
)

// rtcp looks at a compound packet of the upstream's. While packets are held
// back so are its reports, which would contradict the engine's; a goodbye is
// passed on.
func (w *watch) rtcp(p []byte, at time.Time) (pass bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.feed != nil {
		w.feed(w.index, [][]byte{p}, true, at)
	}
	bye, senders := false, w.senders[:0]
	for rest := p; len(rest) >= 4; {
		n := 4 * (int(binary.BigEndian.Uint16(rest[2:])) + 1)
		if n > len(rest) {
			break
		}
		switch {
		case rest[1] == packetBye:
			bye = bye || w.leaves(rest[:n])
		case rest[1] == packetSR && n >= 28:
			senders = append(senders, rest)
		}
		rest = rest[n:]
	}
	w.senders = senders
	if !w.held {
		for _, sr := range senders {
			w.sender(sr, at, bye)
		}
	} else if bye && w.counts != nil { // what comes with the goodbye must fit what the engine sent
		for _, sr := range senders {
			rtp, packets, octets := w.counts()
			binary.BigEndian.PutUint32(sr[16:], rtp)
			binary.BigEndian.PutUint32(sr[20:], packets)
			binary.BigEndian.PutUint32(sr[24:], octets)
		}
	}
	if bye && w.bye != nil {
		w.bye()
		w.bye = nil
	}
	return bye || !w.held
}

// leaves says whether a goodbye (RFC 3550 §6.6) is of who sends the Media. One of
// others alone was meant for a session that had the port before: Darwin says it
// late.
func (w *watch) leaves(bye []byte) bool {
	sources := bye[4:min(len(bye), 4+4*int(bye[0]&0x1f))]
	for at := 0; w.seen && at < len(sources); at += 4 {
		if binary.BigEndian.Uint32(sources[at:]) == w.ssrc {
			return true
		}
	}
	return !w.seen || len(sources) == 0
}

// sender learns from a sender report, and shifts it as the packets are. How often
// the upstream sends them is told by two of one PLAY, neither of which is its last.
func (w *watch) sender(p []byte, at time.Time, last bool) {
	n := 4 * (int(binary.BigEndian.Uint16(p[2:])) + 1)
	ntp := time.Unix(int64(binary.BigEndian.Uint32(p[8:]))-ntpEpoch, int64(binary.BigEndian.Uint32(p[12:]))*1e9>>32)
	if w.report.fresh && !last {
		w.report.interval = at.Sub(w.report.at)
	}
	w.report.at, w.report.clock, w.report.fresh = at, ntp.Sub(at), true
	if tail := p[n:]; len(tail) <= maxTail {
		w.report.tail = append(w.report.tail[:0], tail...)
	}
	w.report.time = binary.BigEndian.Uint32(p[16:]) + w.shift.time
	// Others of a burst may have overtaken it.
	engine := w.shift != (shift{}) // it has sent some of the packets
	if n := uint32(len(w.times)); !engine {
		w.report.still = slices.Contains(w.times[:min(w.packets, n)], w.report.time)
	} else if w.report.still && w.packets > 0 {
		w.report.time = w.times[(w.packets-1)%n]
	}
	binary.BigEndian.PutUint32(p[16:], w.report.time)
	if engine {
		binary.BigEndian.PutUint32(p[20:], w.packets+w.beyond.packets)
		binary.BigEndian.PutUint32(p[24:], w.octets+w.beyond.octets)
	} else if more := binary.BigEndian.Uint32(p[20:]) - w.packets; more+onTheirWay > 2*onTheirWay {
		w.beyond.packets, w.beyond.octets = more, binary.BigEndian.Uint32(p[24:])-w.octets
	}
}

// observe ties the watch to a relay.
func (w *watch) observe(r *relay.Relay) {
	r.Observe(func(b relay.Burst) {
		switch {
		case b.FromClient:
		case b.RTCP:
			for _, p := range b.Packets {
				w.rtcp(p, b.At)
			}
		default:
			r.Mute(!w.burst(b.Packets, b.At))
		}
	})
}

// hold holds packets back until pass.
func (w *watch) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = true
}

// setFeed shows the packets of all Medias to feed from now on; nil ends it.
func (s *session) setFeed(to feed) {
	for n, m := range s.media() {
		m.watch.mu.Lock()
		m.watch.index, m.watch.feed = n, to
		m.watch.mu.Unlock()
	}
}

// state is a snapshot; packets and octets are what reports count.
func (w *watch) state() (up, last uint16, packets, octets uint32, r report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up, w.last, w.packets + w.beyond.packets, w.octets + w.beyond.octets, w.report
}

// shifted is what is added to the upstream's numbers.
func (w *watch) shifted() shift {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shift
}

// shiftTo has the upstream's next packet follow the client's last one, its
// timestamp moved by so much.
func (w *watch) shiftTo(time uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	up := w.up
	if w.kept != nil && len(w.kept.packets) > 0 {
		up = binary.BigEndian.Uint16(w.kept.packets[0][2:]) - 1
	}
	w.shift = shift{w.last - up, time}
}

// follow has the upstream's next packet, whose numbers are not known yet, follow
// the client's last one.
func (w *watch) follow() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.again = true
}

// followFrom is follow for a packet whose number has been told.
func (w *watch) followFrom(seq uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followOn(seq)
}

// followOn leaves numbers alone that have gone on by themselves.
func (w *watch) followOn(seq uint16) {
	w.again = false
	if w.passed && int16(seq+w.shift.seq-w.last) <= 0 {
		w.shift.seq = w.last + 1 - seq
	}
}

// retime corrects by how much timestamps are moved.
func (w *watch) retime(time uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shift.time = time
}

// next has the upstream's packet of that number follow the last one, unless
// one has come already. Kept ones before it are of another PLAY.
func (w *watch) next(seq uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kept != nil {
		w.kept.packets = slices.DeleteFunc(w.kept.packets, func(p []byte) bool {
			return int16(binary.BigEndian.Uint16(p[2:])-seq) < 0
		})
	}
	if w.last == w.halted {
		w.shift.seq = w.last + 1 - seq
	}
}

// went notes what a group has sent in the relay's place.
func (w *watch) went(at live.MemberMedia) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last, w.packets, w.octets = at.Last, at.Packets-w.beyond.packets, at.Octets-w.beyond.octets
}

// moves has the upstream's reports so far count no more: they are of another
// place in the movie.
func (w *watch) moves() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report.fresh = false
}

// count has reports that pass while packets are held back say what the engine
// says.
func (w *watch) count(counts func() (rtp, packets, octets uint32)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts = counts
}

// sent notes what the engine has sent in the relay's place.
func (w *watch) sent(t engine.TrackState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last, w.halted = t.LastSeq, t.LastSeq
	w.packets += uint32(t.Sent)
	if t.Sent > 0 {
		w.times[(w.packets-1)%uint32(len(w.times))] = t.LastTime
	}
	w.octets += uint32(t.Octets)
}
