package intercept

import (
	"context"
	"maps"
	"slices"

	"rtspshim/engine"
)

// depart takes a session whose turn the caller has out of its group. If it
// leads, another one does before. It reports whether the upstream's session
// plays.
func (i *Interceptor) depart(s *session) (plays bool) {
	g, leads := i.role(s)
	if g == nil {
		return s.now() == relayed
	}
	if leads {
		_ = g.enter(context.Background()) // promotions and joins end in bounded time
		defer g.leave()
		i.promote(g, false)
	}
	i.drop(s)
	return leads || s.held == nil
}

// drop takes a session out of its group, as it is. The client has what it was
// sent; what the upstream sends stays held back.
func (i *Interceptor) drop(s *session) {
	i.groups.mu.Lock()
	g := s.group
	if g == nil {
		i.groups.mu.Unlock()
		return
	}
	s.group = nil
	g.members = slices.DeleteFunc(g.members, func(m *session) bool { return m == s })
	lost := false
	if g.lead == s {
		g.lead, lost = nil, len(g.members) > 0
		s.setFeed(nil)
		s.source = nil
	}
	fan := i.sweep(g)
	i.groups.mu.Unlock()
	s.mu.Lock()
	member := s.member
	s.member = nil
	if s.stage == fanned {
		s.stage = idle
		if member != nil {
			s.sent.Add(member.Stats())
		}
	}
	s.mu.Unlock()
	if member != nil {
		for n, at := range member.Leave() {
			s.medias[n].watch.went(at)
		}
	}
	closeFan(fan)
	if lost {
		i.work.Go(func() { i.replace(g) })
	}
}

// handBackLive has a session's own upstream send to it again.
func (i *Interceptor) handBackLive(s *session, why string) {
	if !s.enter(context.Background()) {
		return
	}
	defer s.leave()
	if s.now() == fanned {
		i.giveUp(s, why)
		s.relayOnly = ""
		i.startLive(s)
	}
}

// Leaving has what the client's connection alone controls taken out of its
// group before the upstream hears that it has gone: another leads then, and what
// goes on without a connection, or ends, is up to the upstream's own playing.
func (t *tap) Leaving() {
	defer t.left.Store(true)
	if t.draining.Load() {
		return
	}
	t.mu.Lock()
	sessions := slices.Collect(maps.Keys(t.sessions))
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), turnTimeout)
	defer cancel()
	for _, s := range sessions {
		s.mu.Lock()
		_, mine := s.conns[t]
		goes := s.stage == fanned && mine && len(s.conns) == 1
		s.mu.Unlock()
		if !goes || !s.enter(ctx) {
			continue
		}
		switch {
		case s.now() != fanned:
		case s.onlyTCP():
			t.depart(s)
		default:
			t.giveUp(s, "connection closed")
			s.relayOnly = ""
		}
		s.leave()
	}
}

// goodbyeLive follows an upstream that has said goodbye to s. A lead's goodbye
// is for all if nobody else's upstream goes on.
func (i *Interceptor) goodbyeLive(s *session) {
	g, leads := i.role(s)
	if leads && !i.replace(g) {
		i.groups.mu.Lock()
		fan := g.fan
		i.groups.mu.Unlock()
		s.mu.Lock()
		member := s.member
		s.mu.Unlock()
		if fan != nil {
			fan.Goodbye(member)
		}
		return
	}
	i.drop(s)
}

// disconnectedLive follows a datagram session whose connection has gone: the
// upstream shows whether it still knows it.
func (i *Interceptor) disconnectedLive(s *session) {
	g, leads := i.role(s)
	if leads {
		i.groups.mu.Lock()
		alone := len(g.members) < 2
		i.groups.mu.Unlock()
		if alone {
			return // its upstream goes on or does not
		}
		i.replace(g)
	}
	// Some answer OPTIONS in whatever session.
	if why := i.replay(s, ""); why != "" {
		i.end(s, "connection closed: "+why)
		return
	}
	s.hush(true)
	i.silence(s)
}

// restore has a session's own upstream send again where a request that would
// have ended that was refused, or that resumed it was not. The caller has the
// session's turn; plays says that the upstream plays already.
func (i *Interceptor) restore(s *session, plays bool, why string) {
	if !plays {
		s.keep(true)
		if failed := i.replay(s, ""); failed != "" {
			i.log.Error("upstream does not go on", "session", s.short(), "err", failed)
		}
	}
	s.hush(false)
	s.setFeed(nil)
	for _, m := range s.medias {
		m.watch.follow()
	}
	s.pass()
	s.become(relayed, nil, why)
}

// nextLive is what comes next for the client, as far as it can be told.
func (s *session) nextLive() (next []engine.TrackState) {
	s.mu.Lock()
	member := s.member
	s.mu.Unlock()
	if member == nil { // it has just ended
		for range s.medias {
			next = append(next, engine.TrackState{Ended: true})
		}
		return next
	}
	for _, at := range member.State() {
		next = append(next, engine.TrackState{NextSeq: at.Last + 1, NextTime: at.LastTime})
	}
	return next
}
