package intercept

import (
	"context"
	"maps"
	"slices"
	"time"

	"rtspshim/proxy"
)

// A paused session at the upstream lives on what the shim sends in it. The
// shim does so only while the client shows life: datagrams or requests of its
// own. A client that has fallen silent is given up as the upstream would have
// done, had it been sending itself.

const (
	defaultTimeout = 60 * time.Second  // of a session that names none: RFC 2326 §12.37
	silentTimeout  = 120 * time.Second // of a client, where the session names none
	// What a live group's lead was sent before its standbys' connections were
	// closed is still on its way through a pump.
	lastWords = 15 * time.Millisecond
)

// patience is how long the upstream may take for one silent.
func patience(timeout time.Duration) time.Duration { return timeout + timeout/4 }

// keep looks after a session whose media the engine sends.
func (i *Interceptor) keep(s *session, now time.Time) {
	s.mu.Lock()
	stage, timeout, asked := s.stage, s.timeout, s.asked
	life := s.alive()
	s.mu.Unlock()
	g, leads := i.role(s)
	if stage != playing && stage != finished && stage != fanned {
		return
	}
	most, interval := patience(timeout), timeout*2/5
	if timeout == 0 {
		most, interval = silentTimeout, defaultTimeout*2/5
	}
	if leads { // the upstream looks after it; another leads before it gives it up
		if now.Sub(life) > interval && g.hasOthers(i, interval/4) {
			i.work.Go(func() { i.succeed(g) })
		}
		return
	}
	if now.Sub(life) > most {
		i.work.Go(func() {
			if _, err := i.ask(s, "TEARDOWN", ""); err != nil {
				i.log.Debug("TEARDOWN", "session", s.short(), "err", err)
			}
			i.end(s, "client silent")
		})
		return
	}
	if now.Sub(asked) > interval && life.After(asked) {
		i.work.Go(func() {
			m, err := i.ask(s, "OPTIONS", "")
			if err == nil && m.Status() == 454 { // Session Not Found
				i.end(s, "unknown to the upstream")
			}
		})
		s.mu.Lock()
		s.asked = now
		s.mu.Unlock()
	}
}

// alive is when the client last showed life; s.mu is held. An open connection
// that carries the media is life in itself: TCP would tell of its end.
func (s *session) alive() time.Time {
	last := s.lastSeen
	for _, m := range s.medias {
		if m.relay != nil {
			if _, at := m.relay.Heard(); at.After(last) {
				last = at
			}
		}
	}
	if len(s.conns) > 0 && s.onlyTCP() {
		return time.Now()
	}
	return last
}

// disconnected follows a datagram session whose connection has gone. Some
// upstreams end such a session, some go on: the one at hand is asked, by
// having it play again, unheard. One that is dead cannot say; its viewers
// play on to the end, unless configured otherwise.
func (i *Interceptor) disconnected(s *session) {
	i.work.Go(func() {
		if !s.enter(context.Background()) {
			return
		}
		defer s.leave()
		s.mu.Lock()
		gone := len(s.conns) == 0 && !s.over
		s.mu.Unlock()
		if gone && s.now() == fanned {
			i.disconnectedLive(s)
		}
		if !gone || s.now() != playing {
			return
		}
		m, err := i.ask(s, "PLAY", "Range: "+formatNPT(s.stream.Position(), s.end)+"\r\n")
		switch {
		case err != nil && i.cfg.CloseOnLoss:
			i.end(s, "upstream lost")
		case err != nil:
			i.log.Warn("upstream lost, the movie plays on", "session", s.short(), "err", err)
		case !m.OK():
			i.end(s, "connection closed: "+m.StartLine())
		default:
			i.silence(s)
		}
	})
}

// goodbye ends the engine's sending when the upstream has said that the
// stream is over. It is called while a packet is looked at, and does not wait.
func (i *Interceptor) goodbye(s *session) {
	i.work.Go(func() {
		if !s.enter(context.Background()) {
			return
		}
		defer s.leave()
		switch s.now() {
		case playing:
			s.halt()
			s.become(finished, nil, "the upstream said goodbye")
		case fanned:
			i.goodbyeLive(s)
		}
	})
}

// Keep says whether the client's connection outlives the upstream's: movies
// that the engine sends play on when the upstream has died. Where it is there
// and closed the connection, it has had its reason.
func (t *tap) Keep() bool {
	if t.cfg.CloseOnLoss {
		return false
	}
	t.mu.Lock()
	sessions := slices.Collect(maps.Keys(t.sessions))
	t.mu.Unlock()
	at := func(st stage) bool {
		return slices.ContainsFunc(sessions, func(s *session) bool { return s.now() == st })
	}
	if at(fanned) {
		time.Sleep(lastWords)
	}
	if !at(playing) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return !t.server.Alive(ctx)
}

// Alone answers for an upstream that has gone: signs of life, and the end.
func (t *tap) Alone(ex *proxy.Exchange) {
	s := t.Interceptor.session(sessionID(ex.Request))
	if s == nil {
		return
	}
	s.seen(t, ex, time.Now())
	switch ex.Method {
	case "TEARDOWN":
		t.end(s, "torn down, the upstream gone")
		ex.Answer("200 OK")
	case "OPTIONS", "GET_PARAMETER", "SET_PARAMETER": //nolint:usestdlibvars // RTSP is not HTTP
		ex.Answer("200 OK")
	}
}
