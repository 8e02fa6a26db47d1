package demo

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"rtspshim/engine/hint"
)

// live is a movie that plays for ever, for whoever is there. It starts with
// its first reader and goes on when all have left, until the server is closed.
type live struct {
	srv    *Server
	movie  *movie
	length time.Duration
	began  time.Time

	mu      sync.Mutex // taken after a session's
	lanes   []*liveLane
	readers map[*session]bool // those playing; true while they are to have what is kept
	kept    []sent            // in the last Config.LiveBehind
}

// sent is a packet as a liveLane has sent it.
type sent struct {
	due    time.Duration // from the beginning
	track  uint32
	packet hint.Packet
	seq    uint16
	time   uint32
}

// liveLane is one track of a live stream. Its next packet has its hinted
// numbers; seq and time are the offsets of those of the stream.
type liveLane struct {
	lane
	ssrc  uint32
	seq   uint16
	time  uint32
	first uint32 // time of the first round
	loops int64
}

// liveStream returns the live stream of a movie, which it starts.
func (s *Server) liveStream(name string) (*live, error) {
	s.mu.Lock()
	l, n := s.lives[name], len(s.lives)
	s.mu.Unlock()
	if l != nil {
		return l, nil
	}
	if n >= maxMovies {
		return nil, errors.New("too many live streams")
	}
	m, err := openMovie(s.cfg.Movies, name)
	if err != nil {
		return nil, err
	}
	l = &live{srv: s, movie: m, length: max(m.Duration, time.Second), began: time.Now(), readers: map[*session]bool{}}
	for _, t := range m.HintTracks() {
		lane := &liveLane{lane: lane{movie: m, track: t}, ssrc: rand.Uint32(), seq: uint16(rand.Uint32()), first: rand.Uint32()}
		lane.time = lane.first
		if err := lane.seek(0); err != nil {
			_ = m.Close()
			return nil, err
		}
		l.lanes = append(l.lanes, lane)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if there := s.lives[name]; there != nil || s.closed {
		_ = m.Close()
		return there, nil
	}
	s.lives[name] = l
	s.work.Go(l.run)
	return l, nil
}

// run sends until the server is closed.
func (l *live) run() {
	defer func() { _ = l.movie.Close() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.srv.ctx.Done():
			return
		case now := <-timer.C:
			timer.Reset(l.step(now))
		}
	}
}

// due is when the lane's next packet is, from the beginning.
func (l *live) due(t *liveLane) time.Duration { return time.Duration(t.loops)*l.length + t.next.Due }

// step sends what is due and returns how long nothing more will be.
func (l *live) step(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, fresh := range l.readers {
		if fresh {
			l.readers[s] = false
			for _, k := range l.kept {
				l.send(s, now, k)
			}
		}
	}
	for {
		var next *liveLane
		for _, t := range l.lanes {
			if t.more && (next == nil || l.due(t) < l.due(next)) {
				next = t
			}
		}
		if next == nil {
			return l.length // all are broken, and said so
		}
		if wait := l.due(next) - now.Sub(l.began); wait > 0 {
			return wait
		}
		k := sent{l.due(next), next.track.ID, next.next, next.seq, next.time}
		for s := range l.readers {
			l.send(s, now, k)
		}
		l.keep(k)
		l.forward(next)
	}
}

func (l *live) send(s *session, now time.Time, k sent) {
	for _, st := range s.streams {
		if st.track.ID == k.track {
			st.send(now, &k.packet, k.seq, k.time, 0)
		}
	}
}

// keep keeps a packet for those who come later.
func (l *live) keep(k sent) {
	behind := l.srv.cfg.LiveBehind
	if behind <= 0 {
		return
	}
	k.packet.Payload = [][]byte{slices.Concat(k.packet.Payload...)}
	l.kept = append(l.kept, k)
	for l.kept[0].due < k.due-behind {
		l.kept = l.kept[1:]
	}
}

// forward goes on to the next packet of a lane; after the last comes the first,
// whose numbers go on.
func (l *live) forward(t *liveLane) {
	last := t.next.Seq + t.seq
	err := t.advance()
	if err == nil && !t.more {
		t.loops++
		if err = t.seek(0); t.more {
			t.seq = last + 1 - t.next.Seq
			t.time = t.first + ticks(t.track, time.Duration(t.loops)*l.length)
		}
	}
	if err != nil {
		t.more = false
		l.srv.log.Error("demo: live stream", "err", err)
	}
}

// lane returns the lane of a track, nil when there is none.
func (l *live) lane(id uint32) *liveLane {
	for _, t := range l.lanes {
		if t.track.ID == id {
			return t
		}
	}
	return nil
}

// next returns the numbers of the next packet of a track; l.mu is held.
func (l *live) next(id uint32) (seq uint16, ts uint32) {
	t := l.lane(id)
	return t.next.Seq + t.seq, t.next.Time + t.time
}
