package intercept

import (
	"context"
	"errors"
	"slices"
	"time"

	"rtspshim/engine/live"
)

// join compares a session's packets with its group's and, when they are the
// same, has it fed by the group and paused at the upstream. It returns why it
// could not.
func (i *Interceptor) join(ctx context.Context, s *session, g *group) (why string) {
	var fan *live.Group
	var src *live.Source
	var maps []live.Mapping
	defer func() {
		s.endInstant()
		i.groups.mu.Lock()
		defer i.groups.mu.Unlock()
		if s.source == nil {
			s.setFeed(nil)
		}
	}()
	began := time.Now()
	for {
		if i.adopt(ctx, g, s) {
			return ""
		}
		if time.Since(began) > instantWait {
			s.endInstant()
		}
		if now := i.fanOf(g); now == nil {
			return "too many live streams"
		} else if now != fan {
			fan, src = now, now.NewSource(false)
			s.setFeed(src.Feed)
		}
		if fan.Idle(time.Now()) > stallAfter && src.Count() >= needLift {
			i.retire(g)
			if s.enter(ctx) {
				defer s.leave()
				if ctx.Err() == nil {
					s.setFeed(nil)
					i.startLive(s)
				}
			}
			return ""
		}
		if rush, _ := src.Rush(time.Now()); rush > rushMost {
			return i.refuse(g, "each viewer begins at another place in the past, and none could step in for another")
		}
		if maps, why = i.compare(g, src); why == "" {
			break
		}
		select {
		case <-src.News():
			time.Sleep(joinPause) // a comparison is not free
		case <-time.After(instantWait):
		case <-ctx.Done():
		}
		if ctx.Err() == context.Canceled {
			return ""
		} else if ctx.Err() != nil {
			return why
		}
	}
	if !s.enter(ctx) {
		return ""
	}
	defer s.leave()
	if !g.enter(ctx) {
		return ""
	}
	defer g.leave()
	if ctx.Err() != nil { // both had come; the turn is given back all the same
		return ""
	}
	if !i.fanLead(g, fan) {
		return "the one to follow has gone"
	}
	s.hush(true)
	if err := i.pause(s); err != nil {
		s.hush(false)
		if errors.Is(err, errNoPause) {
			return i.refuse(g, err.Error())
		}
		return err.Error()
	}
	s.setFeed(nil)
	if err := i.fan(g, s, maps, src); err != nil {
		i.restore(s, false, err.Error())
		return err.Error()
	}
	i.log.Info("live, joined", "session", s.short(), "url", s.url)
	return ""
}

// compare finds how a session's packets are numbered in its group, or why it
// cannot join yet.
func (i *Interceptor) compare(g *group, src *live.Source) (maps []live.Mapping, why string) {
	_, past := src.Rush(time.Now())
	maps, why = src.Match(i.needed(g))
	switch {
	case why != "":
		return nil, why
	case !src.InStep(maps):
		return nil, "packets come at another time than the other viewers'"
	case past < rushLook && !i.known(g):
		return nil, "not long enough to see where it begins"
	}
	return maps, ""
}

// refuse has nobody join the group any more.
func (i *Interceptor) refuse(g *group, why string) string {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	g.refused, g.refusedAt = why, time.Now()
	return why
}

// known says whether somebody has been seen to get what the group gets.
func (i *Interceptor) known(g *group) bool {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	return g.joined
}

// needed is how many packets of each Media must be the same.
func (i *Interceptor) needed(g *group) int {
	if i.known(g) {
		return needLift
	}
	return needNew
}

// adopt makes s the lead of a group that has lost its own before anybody had
// joined.
func (i *Interceptor) adopt(ctx context.Context, g *group, s *session) bool {
	i.groups.mu.Lock()
	if g.lead != nil || len(g.members) > 0 || ctx.Err() != nil || i.groups.list[g.key] != g {
		i.groups.mu.Unlock()
		return false
	}
	fan := g.fan
	g.fan, g.lead, s.group = nil, s, g
	i.groups.mu.Unlock()
	closeFan(fan)
	return true
}

// fanLead makes the lead a member like all others, so that whoever reads
// slowly or leaves is like all others, too.
func (i *Interceptor) fanLead(g *group, fan *live.Group) bool {
	i.groups.mu.Lock()
	lead, fits := g.lead, g.fan == fan && g.lead != nil && g.lead.source != nil
	var known []live.Mapping
	var src *live.Source
	if fits { // it may leave at any time, and has neither then
		known, src = lead.known, lead.source
	}
	i.groups.mu.Unlock()
	if fits && lead.now() != fanned {
		return i.fan(g, lead, known, src) == nil
	}
	return fits
}

// fan has the group send to s, behind the last packet that the upstream itself
// has brought to the client. maps makes the upstream's numbers the group's.
func (i *Interceptor) fan(g *group, s *session, maps []live.Mapping, src *live.Source) error {
	ctx, cancel := context.WithTimeout(context.Background(), turnTimeout)
	defer cancel()
	if err := s.holdBack(ctx); err != nil {
		s.pass()
		return err
	}
	spec := live.MemberSpec{Begin: s.beginInstant(maps)}
	if s.medias[0].path == "tcp" {
		spec.TCP = s.medias[0].tap.conn
	}
	for n, m := range s.medias {
		_, last, packets, octets, _ := m.watch.state()
		sh := m.watch.shifted()
		to := live.MemberMedia{
			Mapping: live.Mapping{SSRC: src.SSRC(n), Seq: sh.seq - maps[n].Seq, Time: sh.time - maps[n].Time},
			Last:    last, Packets: packets, Octets: octets, RTP: m.channel[0], RTCP: m.channel[1],
		}
		if m.relay != nil {
			to.Outlet = m.relay
		}
		spec.Medias = append(spec.Medias, to)
	}
	member := g.fan.Join(spec)
	s.mu.Lock()
	s.stage, s.member, s.why = fanned, member, "same as the other viewers'"
	over := s.over
	s.mu.Unlock()
	s.known = maps
	i.groups.mu.Lock()
	s.group = g
	g.members = append(g.members, s)
	g.joined, g.alike = true, !slices.ContainsFunc(maps, func(m live.Mapping) bool { return m.Seq != 0 || m.Time != 0 })
	i.groups.mu.Unlock()
	if over {
		i.drop(s)
	}
	return nil
}
