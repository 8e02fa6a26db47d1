package intercept

import (
	"context"
	"time"
)

// replace finds a lead for a group whose own has gone.
func (i *Interceptor) replace(g *group) bool {
	_ = g.enter(context.Background())
	defer g.leave()
	return !i.draining.Load() && i.promote(g, true)
}

// promote has another session lead: its upstream plays again, its packets are
// found among the last ones sent, and the group goes on with them. The caller
// has the group's turn. lost says that the lead may bring nothing any more.
func (i *Interceptor) promote(g *group, lost bool) bool {
	began, tried := time.Now(), map[*session]bool{}
	defer func() {
		i.groups.mu.Lock()
		g.tried = time.Now()
		i.groups.mu.Unlock()
	}()
	for {
		b, busy := i.candidate(g, tried)
		switch {
		case b == nil && busy && time.Since(began) < turnTimeout:
			time.Sleep(2 * time.Millisecond)
			continue
		case b == nil:
			return false
		case time.Since(began) > liftTimeout: // somebody's request waits
			b.leave()
			return false
		}
		tried[b] = true
		err := i.lift(g, b, lost)
		b.leave()
		if err == "" {
			i.log.Info("live, leads now", "session", b.short(), "url", b.url, "after", time.Since(began).Round(time.Millisecond))
			return true
		}
		i.log.Info("live, cannot lead", "session", b.short(), "url", b.url, "why", err)
	}
}

// candidate is a standby that has not been tried, with its turn; busy says that
// there are some whose turn is taken. Datagram sessions come first: many
// upstreams go on sending to those when their connection breaks. Those without
// a connection may be dead, and come last.
func (i *Interceptor) candidate(g *group, tried map[*session]bool) (b *session, busy bool) {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	for rank := range 3 {
		for _, m := range g.members {
			if m == g.lead || tried[m] || m.rank() != rank {
				continue
			}
			if m.tryEnter() {
				return m, false
			}
			busy = true
		}
	}
	return nil, busy
}

// rank tells how good a lead the session would make, 0 the best.
func (s *session) rank() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.conns) == 0:
		return 2
	case s.onlyTCP():
		return 1
	}
	return 0
}

// lift makes b the lead; its turn and the group's are the caller's.
func (i *Interceptor) lift(g *group, b *session, lost bool) (why string) {
	i.groups.mu.Lock()
	fan, here := g.fan, b.group == g
	i.groups.mu.Unlock()
	if fan == nil || !here {
		return "it has left"
	}
	src := fan.NewSource(true)
	b.setFeed(src.Feed)
	if why = i.replay(b, ""); why != "" {
		b.setFeed(nil)
		return why
	}
	timer := time.NewTicker(liftLook)
	defer timer.Stop()
	for began := time.Now(); !src.Recall(b.known, time.Now()); {
		maps, why := src.Match(needLift)
		if why == "" {
			src.Lead(maps)
			b.known = maps
			break
		}
		if past := time.Since(began); lost && past > liftCandour && src.Count() >= needLift && fan.Idle(time.Now()) > liftCandour {
			b.known = src.Follow(b.known)
			break
		} else if past > liftTimeout {
			b.setFeed(nil)
			b.hush(true)
			i.silence(b)
			return why
		}
		select {
		case <-src.News():
		case <-timer.C:
		}
	}
	i.groups.mu.Lock()
	old := g.lead
	g.lead, b.source = b, src
	if old != nil {
		old.source = nil // but it still feeds what is on its way
	}
	i.groups.mu.Unlock()
	return ""
}

// replay has the upstream of a paused session play again.
func (i *Interceptor) replay(s *session, headers string) (why string) {
	m, err := i.ask(s, "PLAY", headers)
	s.held, s.silenced = nil, time.Time{}
	switch {
	case err != nil:
		return err.Error()
	case !m.OK():
		if m.Status() == 454 { // Session Not Found
			i.work.Go(func() { i.end(s, "unknown to the upstream") })
		}
		return m.StartLine()
	}
	s.hush(false)
	return ""
}

// hush keeps a client's interleaved reports from the upstream while that is
// paused unknown to the client: some close the connection for them.
func (s *session) hush(on bool) {
	for _, m := range s.media() {
		if m.path == "tcp" {
			m.tap.hushed.Store(on)
		}
	}
}

// succeed replaces a lead that stays as one of the viewers.
func (i *Interceptor) succeed(g *group) bool {
	i.groups.mu.Lock()
	old := g.lead
	i.groups.mu.Unlock()
	if !i.replace(g) {
		return false
	}
	if old != nil && old.enter(context.Background()) {
		defer old.leave()
		if g, leads := i.role(old); g != nil && !leads {
			old.hush(true)
			i.silence(old)
		}
	}
	return true
}
