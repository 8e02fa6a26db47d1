package demo

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	ready int32 = iota
	playing
	paused
)

var stateNames = [...]string{"ready", "playing", "paused"}

// tcpPoll is how often a stream ahead of its time looks how far it may be.
const tcpPoll = 100 * time.Millisecond

// session is one RTSP session. It belongs to no connection.
type session struct {
	srv    *Server
	id     string
	number uint64
	path   string // of the movie
	movie  *movie
	live   *live // nil: on demand
	began  time.Time

	seen    atomic.Int64 // last sign of life, Unix ns
	sentAt  atomic.Int64 // last packet, Unix ns
	packets atomic.Uint64
	state   atomic.Int32
	control atomic.Pointer[conn] // the last it was controlled from

	wake chan struct{} // something for run to look at
	done chan struct{} // closed at the end

	mu      sync.Mutex // see lock
	streams []*stream  // changed under look also
	over    bool
	from    time.Duration // of the movie, at begun
	until   time.Duration // end of the Range asked for, negative: of the movie
	begun   time.Time
	stopped time.Time // when paused
	ended   bool      // said BYE at the end

	look     sync.Mutex // of what snapshot reads; taken last, for short
	requests map[string]int
}

// lock takes what is held while packets of the session are sent: who has it
// knows that none are being sent.
func (s *session) lock() {
	s.mu.Lock()
	if s.live != nil {
		s.live.mu.Lock()
	}
}

func (s *session) unlock() {
	if s.live != nil {
		s.live.mu.Unlock()
	}
	s.mu.Unlock()
}

func (s *session) touch(now time.Time) { s.seen.Store(now.UnixNano()) }

// request notes a request in the session.
func (s *session) request(c *conn, method string, now time.Time) {
	s.touch(now)
	s.control.Store(c)
	s.look.Lock()
	defer s.look.Unlock()
	s.requests[method]++
}

// poke makes run look again.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends a movie's packets when they are due, until the session ends.
func (s *session) run() {
	defer func() { _ = s.movie.Close() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-s.wake:
		case <-timer.C:
		}
		if wait := s.step(time.Now()); wait > 0 {
			timer.Reset(wait)
		}
	}
}

// step sends what is due and returns how long nothing more will be, 0 for ever.
func (s *session) step(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.state.Load() == playing && !s.over {
		st, wait := s.nextDue(now)
		switch {
		case st == nil: // the movie has ended: silence
			if s.srv.cfg.ByeAtEnd && !s.ended {
				s.ended = true
				s.bye(now)
			}
			return 0
		case wait > 0:
			return wait
		case s.until >= 0 && st.lane.next.Due >= s.until:
			s.halt(now)
			return 0
		}
		st.send(now, &st.lane.next, 0, 0, st.lane.next.Due-s.position(now))
		s.check(st.lane.advance())
	}
	return 0
}

// position is where in the movie a reader is who plays in real time.
func (s *session) position(now time.Time) time.Duration { return s.from + now.Sub(s.begun) }

// nextDue returns the stream to send next, and how long to wait until then.
func (s *session) nextDue(now time.Time) (next *stream, wait time.Duration) {
	at := s.position(now)
	for _, st := range s.streams {
		if !st.lane.more {
			continue
		}
		w := max(0, st.lane.next.Due-at-st.lead(now.Sub(s.begun)))
		if st.conn != nil {
			w = min(w, tcpPoll) // the lead grows
		}
		if next == nil || w < wait || w == wait && st.lane.next.Due < next.lane.next.Due {
			next, wait = st, w
		}
	}
	return next, wait
}

// check logs what ended a lane early.
func (s *session) check(err error) {
	if err != nil {
		s.srv.log.Error("demo: movie", "path", s.path, "err", err)
	}
}

// halt stops sending.
func (s *session) halt(now time.Time) {
	s.state.Store(paused)
	s.stopped = now
	if s.live != nil {
		delete(s.live.readers, s)
	} else if at, more := s.reached(); more {
		s.from = at
	}
}

// play starts, or goes on, at a position; nil is the one reached.
func (s *session) play(now time.Time, from *time.Duration, until time.Duration) {
	if s.state.Load() == paused {
		for _, st := range s.streams {
			st.time += st.ticks(now.Sub(s.stopped))
		}
	}
	if from == nil && s.state.Load() == paused {
		// At the end of the movie it begins anew.
		if at, more := s.reached(); more {
			s.from = at
		} else {
			from = new(time.Duration)
		}
	}
	if from != nil || s.state.Load() == ready {
		if from == nil {
			from = new(time.Duration)
		}
		s.seek(*from)
	}
	s.until, s.begun, s.ended = until, now, false
	s.state.Store(playing)
}

// seek goes to a position; sequence numbers go on from the last one sent.
func (s *session) seek(at time.Duration) {
	s.from = at
	for _, st := range s.streams {
		s.check(st.lane.seek(at))
		if st.lane.more {
			st.seq = st.last + 1 - st.lane.next.Seq
		}
	}
}

// reached is when the next packet is due; false at the end of all tracks.
func (s *session) reached() (at time.Duration, more bool) {
	for _, st := range s.streams {
		if st.lane.more && (!more || st.lane.next.Due < at) {
			at, more = st.lane.next.Due, true
		}
	}
	return at, more
}

// rtpInfo is the header (RFC 2326 §12.33) that names the next packet of every
// track, in the order of SETUP; zeros where none is left.
func (s *session) rtpInfo(url string) string {
	var all []string
	for _, st := range s.streams {
		var seq uint16
		var ts uint32
		if s.live != nil {
			seq, ts = s.live.next(st.track.ID)
			seq, ts = seq+st.seq, ts+st.time
		} else if st.lane.more {
			seq, ts = st.lane.next.Seq+st.seq, st.lane.next.Time+st.time
		}
		all = append(all, fmt.Sprintf("url=%s/%s;seq=%d;rtptime=%d", strings.TrimSuffix(url, "/"), st.control, seq, ts))
	}
	return "RTP-Info: " + strings.Join(all, ",")
}

// bye says goodbye on all streams.
func (s *session) bye(now time.Time) {
	for _, st := range s.streams {
		st.bye(now)
	}
}

// drop takes a stream out of the locked session.
func (s *session) drop(st *stream) {
	s.look.Lock()
	s.streams = slices.DeleteFunc(slices.Clone(s.streams), func(o *stream) bool { return o == st })
	s.look.Unlock()
	if st.conn != nil {
		st.conn.release(st.channel)
		return
	}
	s.srv.mu.Lock()
	delete(s.srv.byRTCP, st.rtcpTo)
	s.srv.mu.Unlock()
}

// end ends the session, with a BYE to those who listen over UDP.
func (s *session) end(why string) {
	s.lock()
	defer s.unlock()
	if s.over {
		return
	}
	s.over = true
	if s.live != nil {
		delete(s.live.readers, s)
	}
	for _, st := range s.streams {
		if st.conn == nil && !s.srv.cfg.Faults.NoGoodbye {
			st.bye(time.Now())
		}
		s.drop(st)
	}
	s.srv.mu.Lock()
	delete(s.srv.sessions, s.id)
	s.srv.mu.Unlock()
	close(s.done)
	s.srv.log.Debug("demo: session ended", "path", s.path, "packets", s.packets.Load(), "why", why)
}

func (s *session) snapshot() Session {
	x := Session{ID: s.id, Path: s.path, State: stateNames[s.state.Load()], Packets: s.packets.Load()}
	if at := s.sentAt.Load(); at != 0 {
		x.Last = time.Unix(0, at)
	}
	s.look.Lock()
	defer s.look.Unlock()
	x.Requests = maps.Clone(s.requests)
	for _, st := range s.streams {
		x.Tracks = append(x.Tracks, st.snapshot())
	}
	return x
}
