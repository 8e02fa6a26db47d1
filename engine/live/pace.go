package live

import "time"

const (
	burst     = 44               // packets that a viewer is sent back to back: as many of Ethernet's size leave in one send
	burstGap  = time.Millisecond // before more of them
	smoothRun = 16               // packets of a big frame that leave together when it is spread
	smoothLag = 1024             // packets held back, at most
	everyMost = 100 * time.Millisecond
)

// burstFor is how many packets may leave back to back for one who has so many
// to come: a stream is never held up by the limit.
func burstFor(left uint64) int { return max(burst, int(min(left, logPackets))/8) }

// ripen is how long a frame that is still coming is waited for behind its first
// packet, so that it leaves in one send.
const ripen = time.Millisecond

// ripe is the place in the log up to which datagrams may leave now: all of it, but
// for a frame that is still coming, unless that fills a send; then next is when it is
// no longer waited for.
func (g *Group) ripe(now time.Time) (open uint64, next time.Time) {
	l := g.log
	open = l.head
	for open > l.tail && l.head-open < burst {
		if e := l.entry(open - 1); e.rtcp || e.bits&marker != 0 || !isKnown(g.cfg.Medias[e.media].Codec) {
			break
		}
		open--
	}
	if held := l.head - open; held > 0 && held < burst {
		if at := l.entry(open).at.Add(ripen); at.After(now) {
			return open, at
		}
	}
	return l.head, time.Time{}
}

// spread is when the k-th of a frame's n packets leaves behind the first one,
// if frames come at that interval: over half of it, in runs.
func spread(k, n int, every time.Duration) time.Duration {
	return every / 2 * time.Duration(k/smoothRun*smoothRun) / time.Duration(max(n, 1))
}

// smoother lets a log's big frames go bit by bit. What lies between a frame's
// packets, as sound does, waits with them.
type smoother struct {
	open   uint64 // the place in the log up to which packets may leave
	frames []frame
}

// frame is the one of a Media that is being let go.
type frame struct {
	begun bool
	time  uint32
	at    time.Time     // when it came
	sent  int           // packets let go
	every time.Duration // between frames, about
}

func (f *frame) next(e *entry, rate uint32) {
	if f.begun {
		step := time.Duration(int64(int32(e.time-f.time))) * time.Second / time.Duration(max(rate, 1))
		step = min(step.Abs(), everyMost) // frames that others are predicted from come before those
		if f.every == 0 || step < f.every {
			f.every = step
		}
		f.every += (step - f.every) / 16
	}
	f.begun, f.time, f.at, f.sent = true, e.time, e.at, 0
}

// release lets go what may leave now. It returns when more may, zero if nothing
// is held.
func (s *smoother) release(l *log, rates []uint32, now time.Time) (next time.Time) {
	for s.open = max(s.open, l.tail); s.open < l.head; s.open++ {
		e := l.entry(s.open)
		if e.rtcp {
			continue
		}
		f := &s.frames[e.media]
		if !f.begun || e.time != f.time {
			f.next(e, rates[e.media])
		}
		if f.sent >= smoothRun {
			at := f.at.Add(spread(f.sent, f.sent+l.rest(s.open), f.every))
			if at.After(now) && l.head-s.open < smoothLag {
				return at
			}
		}
		f.sent++
	}
	return time.Time{}
}

// rest is how many packets of the frame at that place have come, from there on.
func (l *log) rest(at uint64) (n int) {
	first := l.entry(at)
	for ; at < l.head; at++ {
		if e := l.entry(at); e.media == first.media && !e.rtcp && e.time == first.time {
			n++
		}
	}
	return n
}

// Begin is where a viewer may begin who has had nothing: the newest key frame.
type Begin struct {
	Firsts []First // by Media
	Key    int     // whose key frame it is
	at     uint64
}

// First is the first packet of a Media, in the Group's numbers.
type First struct {
	Seq  uint16
	Time uint32
}

// Begin finds the newest key frame; nil when there is none.
func (g *Group) Begin() *Begin {
	g.mu.RLock()
	defer g.mu.RUnlock()
	l := g.log
	for n, m := range l.medias {
		if m.key == 0 || m.key <= l.tail {
			continue
		}
		b := &Begin{Key: n, at: m.key - 1}
		for n, m := range l.medias {
			first := First{m.seq + 1, m.time} // none yet: the one that comes
			for at := b.at; at < l.head; at++ {
				if e := l.entry(at); int(e.media) == n && !e.rtcp {
					first = First{e.seq, e.time}
					break
				}
			}
			b.Firsts = append(b.Firsts, first)
		}
		return b
	}
	return nil
}

// pace has a viewer who begins in the past catch up with the stream: four
// fifths of a second for each second of it.
type pace struct{ from, began time.Time }

// due is when what came at that time may leave.
func (p *pace) due(at time.Time) time.Time { return p.began.Add(at.Sub(p.from) * 4 / 5) }
