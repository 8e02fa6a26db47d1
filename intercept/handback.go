package intercept

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rtspshim/engine"
	"rtspshim/proxy"
)

// How a session that was taken over goes between the engine and the upstream: one is
// stopped, the other goes on, in the client's numbers.

// silence pauses the upstream and keeps its answer for the client's own
// PAUSE. An upstream that refuses goes on sending to nobody.
func (i *Interceptor) silence(s *session) {
	if err := i.pause(s); err != nil {
		i.log.Warn("upstream cannot be paused, it goes on sending to nobody", "session", s.short(), "err", err)
	}
}

func (i *Interceptor) pause(s *session) error {
	s.held, s.silenced = nil, time.Time{}
	m, err := i.ask(s, "PAUSE", "")
	if err != nil {
		return err
	}
	return s.paused(m)
}

var errNoPause = errors.New("the upstream does not pause")

// paused notes the upstream's answer to PAUSE.
func (s *session) paused(m *proxy.Message) error {
	switch {
	case m.Status() == 454: // Session Not Found: that may be its own trouble
		return errors.New(m.StartLine())
	case !m.OK():
		return fmt.Errorf("%w: %s", errNoPause, m.StartLine())
	}
	s.held, s.silenced = m, time.Now()
	return nil
}

// resync makes the upstream play from where the engine stands, unheard, and
// learns its timestamp offsets anew.
func (i *Interceptor) resync(s *session, at time.Duration) error {
	m, err := i.ask(s, "PLAY", "Range: "+formatNPT(at, s.end)+"\r\n")
	if err == nil && !m.OK() {
		err = errors.New(m.StartLine())
	}
	s.held, s.silenced = nil, time.Time{}
	if err != nil {
		return err
	}
	firsts, earlier, err := i.firsts(s, at)
	if err != nil {
		return err
	}
	s.resumed = infos(s, m)
	i.log.Debug("upstream plays again, unheard", "session", s.short(), "at", at, "rtp_info", m.Get("RTP-Info"))
	for _, ref := range [][]engine.First{firsts, earlier} {
		if _, ups, ok := s.advance(ref, firsts, earlier, s.resumed); ok {
			for n := range s.tracks {
				s.tracks[n].upTime = ups[n]
			}
			break
		}
	}
	return nil
}

// firsts are the packets that a server may begin with at a time: those of the
// samples it falls in, and those of the samples just before, into which it may
// be rounded.
func (i *Interceptor) firsts(s *session, at time.Duration) (firsts, earlier []engine.First, err error) {
	if firsts, err = i.cfg.Engine.Firsts(s.file, s.trackIDs(), at); err == nil {
		earlier, err = i.cfg.Engine.Firsts(s.file, s.trackIDs(), max(0, at-edge))
	}
	return firsts, earlier, err
}

// halt stops the engine and notes where. Whoever halts it says what is next; if
// nobody comes to that, since a connection ended first, the session is paused.
func (s *session) halt() {
	s.position = s.stream.Position()
	s.at = s.stream.Halt()
	s.mu.Lock()
	s.total.Add(s.stream.Stats())
	s.stage, s.stream = paused, nil
	s.mu.Unlock()
	for n, m := range s.medias {
		m.watch.sent(s.at[n])
	}
}

// goOn lets the engine continue where it was halted, with the packets due
// from now on.
func (i *Interceptor) goOn(s *session, why string) error {
	stream, err := i.openStream(s, s.position)
	if err != nil {
		return err
	}
	after := make([]*engine.Place, len(s.at))
	for n := range s.at {
		after[n] = &s.at[n].Last
	}
	return i.start(s, stream, after, why)
}

// streamDone follows a stream that has ended by itself.
func (i *Interceptor) streamDone(s *session, stream *engine.Stream, err error) {
	if !s.enter(context.Background()) {
		return
	}
	defer s.leave()
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	if over || s.stream != stream || s.now() != playing || errors.Is(err, engine.ErrWrite) {
		return // the session has ended, or does with its connection
	}
	s.halt()
	if err == nil {
		// The upstream goes through the end by itself, as it would have: what
		// it does then (a goodbye, a close, nothing) reaches the client.
		s.become(finished, nil, "end of the movie")
		if err = i.resync(s, s.lastDue()); err != nil {
			i.log.Info("upstream at the end of the movie", "session", s.short(), "err", err)
			if tap := s.medias[0].tap; tap.conn.Alone() { // nobody is left to say what comes after
				tap.conn.Close()
			}
		}
		return
	}
	i.log.Error("movie broke off, the upstream goes on", "session", s.short(), "file", s.file.Name, "err", err)
	i.handBack(s, err.Error())
}

// handBack lets the upstream go on from where the engine stopped, in the
// client's numbers. That it will add the time it was paused, and leave no number
// out, is a guess, which its answer corrects: packets that overtake it are kept.
func (i *Interceptor) handBack(s *session, why string) {
	paused := time.Duration(0)
	if !s.silenced.IsZero() {
		paused = time.Since(s.silenced)
	}
	for n, m := range s.medias {
		t := &s.tracks[n]
		m.watch.shiftTo(t.Time - t.upTime - uint32(int64(paused)*int64(s.rate(n))/int64(time.Second)))
	}
	s.keep(true)
	defer s.pass()
	s.become(relayed, nil, why)
	if err := i.resync(s, s.position); err != nil {
		i.log.Error("upstream does not go on", "session", s.short(), "err", err)
		return
	}
	for n, m := range s.medias {
		m.watch.retime(s.tracks[n].Time - s.tracks[n].upTime)
		if e := s.resumed[n]; e.whole && e.seq != 0 {
			m.watch.next(e.seq)
		}
	}
}

// holdBack keeps the upstream's packets from the client and returns when it
// is certain which was the last one passed on.
func (s *session) holdBack(ctx context.Context) error {
	hold := func() {
		for _, m := range s.medias {
			m.watch.hold()
		}
	}
	if s.medias[0].path == "tcp" {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return s.medias[0].tap.conn.Between(ctx, hold)
	}
	hold()
	for _, m := range s.medias {
		m.relay.Sync()
		m.relay.Mute(true) // its reports too; the watch lets none through any more
	}
	return nil
}

// keep keeps what is held back from now on, for pass.
func (s *session) keep(on bool) {
	for _, m := range s.medias {
		m.watch.keep(on)
	}
}

// pass lets the upstream's packets through again.
func (s *session) pass() {
	for _, m := range s.medias {
		m.watch.pass(m.send)
		if m.relay != nil {
			m.relay.Mute(false)
		}
	}
}

// lastDue is when the last packet sent was due.
func (s *session) lastDue() (due time.Duration) {
	for _, t := range s.at {
		due = max(due, t.Last.Due)
	}
	return due
}
