package engine

import (
	"errors"
	"os"
	"time"

	"rtspshim/engine/hint"
)

// line is one track of a Stream on its way: from the intervals the source has
// ready, through the Link, which says when a packet leaves, to a sink.
type line struct {
	StreamTrack
	track *hint.Track

	at     int         // the interval its next packet is in
	packet hint.Packet // the next one, if it is known
	known  bool
	ended  bool // none comes

	last         Place  // sent last
	lastTime     uint32 // its RTP timestamp, as the client knows it
	behind       bool   // there is a last one
	sent, octets uint64
	reportAt     time.Duration
	sr           []byte // the report written last
	dropped      uint64 // by the Relay, before
}

// sink is where a Stream's packets go. What it gets is on loan until it says.
type sink interface {
	packet(*line)
	left(packets int, late time.Duration) // how late the first of those given before was
	report(*line)
}

// fetch makes the line's next packet known. It is false where none is: at the
// end, or for want of data.
func (s *Stream) fetch(i int) bool {
	l := &s.lines[i]
	for !l.known && !l.ended && l.at < s.source.ready {
		at := &s.source.slots[l.at%slots]
		switch {
		case at.cycles[i].Next(&l.packet):
			l.known = !l.behind || l.last.before(&l.packet)
		case at.last:
			l.ended = true
		default:
			l.at++
		}
	}
	if l.known && l.packet.Due >= s.spec.End {
		l.ended = true
	}
	return l.known && !l.ended
}

// due is when what has that movie time leaves.
func (s *Stream) due(at time.Duration) time.Duration {
	if s.tcp == nil {
		return s.base + at
	}
	return s.early(s.base + at)
}

// leaves is the Link's rule for a packet behind n others that leave at the same
// time: it goes in the slot that it is to be sent in; and, so that small frames
// leave as one run, with others as soon as the hint has it due, up to the burst
// limit. What is beyond the limit waits for its own time: so a big frame leaves
// in bursts, evenly over its interval.
func (s *Stream) leaves(l *line, until time.Duration, n int) bool {
	if s.halting {
		return l.behind && l.packet.Sample == l.last.Sample
	}
	p := &l.packet
	return s.due(p.Send) <= until || n > 0 && s.due(p.Due) <= until
}

// send hands a line's packets that are to leave in the slot that ends at until
// to the sink, no more than limit. at is when to look again; busy that the line
// is neither at its end nor waiting for data.
func (s *Stream) send(i int, now, until time.Duration, limit int, to sink) (at time.Duration, busy bool) {
	l := &s.lines[i]
	n, late := 0, time.Duration(0)
	for ; s.fetch(i); n++ {
		if n == limit {
			at = max(now+wheelTick, s.due(l.packet.Send))
			if s.halting {
				at = now + wheelTick
			}
			break
		}
		if !s.leaves(l, until, n) {
			at = s.due(l.packet.Send)
			break
		}
		if n == 0 {
			late = max(0, now-s.base-l.packet.Send)
		}
		to.packet(l)
		l.last, l.behind, l.known = placeOf(&l.packet), true, false
		l.lastTime = l.packet.Time + l.Time
		l.sent++
		l.octets += uint64(l.packet.Size)
	}
	if n > 0 {
		s.late.Add(late, n)
		to.left(n, late)
		s.report(l, now, to)
	}
	busy = l.known && !l.ended
	if s.halting && busy && n < limit {
		busy = false // at the end of its sample
	}
	return at, busy
}

// run sends what is to leave in the slot that ends at until. at is when to look
// again; again is false when only new data, or nothing, brings it on. Called
// under mu.
func (s *Stream) run(now, until time.Duration, limit int, to sink) (at time.Duration, again bool) {
	if s.over {
		return 0, false
	}
	at, s.dry = 1<<63-1, false
	left := false
	for i := range s.lines {
		next, busy := s.send(i, now, until, limit, to)
		if busy {
			at, again = min(at, next), true
		}
		if l := &s.lines[i]; !l.ended && !l.known {
			s.dry = s.dry || !s.halting || l.behind
		}
		left = left || !s.lines[i].ended
	}
	switch {
	case s.halting && !again && (!s.dry || s.source.broken != nil):
		s.finish(nil)
	case !left:
		s.finish(nil)
	case s.dry && !again && s.source.broken != nil:
		s.finish(s.source.broken)
	default:
		return at, again
	}
	return 0, false
}

// passed is the number of intervals that no line needs any more.
func (s *Stream) passed() int {
	n := s.source.ready
	for i := range s.lines {
		if l := &s.lines[i]; !l.ended {
			n = min(n, l.at)
		}
	}
	return n
}

// snapshot writes the lines' states over all. Called under mu.
func (s *Stream) snapshot(all []TrackState) []TrackState {
	all = all[:0]
	for i := range s.lines {
		if !s.gone { // otherwise the data may be another's
			s.fetch(i)
		}
		l := &s.lines[i]
		t := TrackState{Sent: l.sent, Octets: l.octets, Last: l.last, LastSeq: l.last.Seq + l.Seq, LastTime: l.lastTime, Ended: l.ended}
		t.asked = !l.known && !l.ended
		t.behind = t.asked && l.behind
		if l.known {
			t.Next, t.NextSeq, t.NextTime = placeOf(&l.packet), l.packet.Seq+l.Seq, l.packet.Time+l.Time
		}
		all = append(all, t)
	}
	return all
}

// resolve finds out what comes next where the data in memory do not tell.
func (s *Stream) resolve(i int, t *TrackState) {
	m := s.spec.Tracks[i].Mapping
	var last *Place
	if t.behind {
		last = &t.Last
	}
	t.asked, t.behind = false, false
	first, err := behind(s.spec.File, m.Track, s.spec.AsHinted, s.spec.From, last)
	if errors.Is(err, os.ErrClosed) {
		return // the session is over, and asks no more
	}
	if err != nil {
		s.e.log.Warn("engine: state of a stream", "file", s.spec.File.Name, "err", err)
		return
	}
	t.Ended = !first.OK || first.Due >= s.spec.End
	if first.OK {
		t.Next, t.NextSeq, t.NextTime = first.Place, first.Seq+m.Seq, first.Time+m.Time
	}
}
