package intercept

import (
	"context"
	"slices"
	"sync"
	"time"

	"rtspshim/engine/live"
)

// A group is the sessions that play one live stream. One of them leads: its
// upstream session plays, and what it brings is sent to all. The others have
// been seen to get the same packets, and are paused at the upstream.
//
// Session turns come before the group's turn. A session's stage and member
// change under its own turn or, while it is in a group, under the group's.
type group struct {
	key  string
	turn chan struct{} // holds a token while somebody changes the lead, or joins

	// Guarded by groups.mu.
	fan       *live.Group // nil while the lead is alone
	lead      *session    // nil when it has gone and none took its place
	members   []*session  // sent to by fan, the longest first; the lead is one as soon as there is another
	waiting   int         // sessions being compared
	told      bool        // why one could not join was logged
	refused   string      // why none can join
	refusedAt time.Time   // when it was found: it is kept in mind for refusedFor, if nobody is left
	joined    bool        // somebody has been seen to get the same
	alike     bool        // the last one had the group's own numbers
	tried     time.Time   // when the last promotion ended
}

// groups are all of them, by key.
type groups struct {
	mu   sync.Mutex
	list map[string]*group
}

// fed is a session's part in a group. member is changed under session.mu, too.
type fed struct {
	group  *group       // guarded by groups.mu; nil when it is in none
	source *live.Source // while it leads; likewise
	member *live.Member
	known  []live.Mapping   // its upstream's numbers to the group's, as last seen
	sent   live.MemberStats // by members before this one
	start  *instant         // while it is to begin in the past; guarded by session.mu
}

const (
	maxFans     = 64               // streams fanned out at once, of 4 MiB each
	joinTimeout = 15 * time.Second // to be compared in
	joinPause   = 50 * time.Millisecond
	liftTimeout = 3 * time.Second // for a standby to bring packets
	liftCandour = 250 * time.Millisecond
	liftLook    = 10 * time.Millisecond  // between two comparisons
	needLift    = 3                      // packets that find again what was matched before
	rushMost    = 600 * time.Millisecond // of media that an upstream sends at once to who begins: sound comes in bunches
	rushLook    = 500 * time.Millisecond // to see it, until somebody has been seen to get what others get
	refusedFor  = 10 * time.Minute
	stallAfter  = 2 * time.Second
	stallAgain  = 10 * time.Second
)

// startLive has a session that begins to play lead its group, or tries to join
// it. The caller has the session's turn.
func (i *Interceptor) startLive(s *session) {
	joins := false
	defer func() {
		if !joins {
			s.endInstant()
		}
	}()
	key := s.liveKey()
	if key == "" || !i.cfg.Live {
		return
	}
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	if s.group != nil {
		return
	}
	g := i.groups.list[key]
	if g == nil {
		g = &group{key: key, turn: make(chan struct{}, 1)}
		i.groups.list[key] = g
	}
	switch {
	case g.lead == nil && len(g.members) == 0:
		stale := g.fan // of a stream that has ended, or become another
		g.fan, g.lead, s.group = nil, s, g
		i.work.Go(func() {
			closeFan(stale)
			if i.cfg.Instant {
				i.fanOf(g)
			}
		})
		return
	case g.refused != "":
		return
	}
	joins = true
	g.waiting++
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	s.cancel = func() { cancel(); s.endInstant() }
	i.work.Go(func() {
		defer cancel()
		why := i.join(ctx, s, g)
		i.groups.mu.Lock()
		g.waiting--
		fan, told := i.sweep(g), g.told
		g.told = told || why != ""
		i.groups.mu.Unlock()
		closeFan(fan)
		if why != "" && !told {
			i.stays(s, why)
		}
	})
}

// retire has others who play the stream form a group of their own: this one's
// lead brings nothing, and their own upstream sessions do.
func (i *Interceptor) retire(g *group) {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	if i.groups.list[g.key] == g {
		delete(i.groups.list, g.key)
	}
}

// sweep forgets what a group needs no more, and returns what is to be closed
// once groups.mu, which the caller holds, is free.
func (i *Interceptor) sweep(g *group) (fan *live.Group) {
	if g.waiting > 0 || len(g.members) > 0 || i.cfg.Instant && g.lead != nil {
		return nil
	}
	fan, g.fan = g.fan, nil
	if g.lead == nil && i.groups.list[g.key] == g && time.Since(g.refusedAt) > refusedFor {
		delete(i.groups.list, g.key)
	} else if g.lead != nil {
		g.lead.setFeed(nil)
		g.lead.source = nil
	}
	return fan
}

func closeFan(fan *live.Group) {
	if fan != nil {
		fan.Close()
	}
}

// fanOf opens a group's fan, if it is not yet, fed by its lead.
func (i *Interceptor) fanOf(g *group) *live.Group {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	if g.fan != nil || g.lead == nil {
		return g.fan
	}
	n := 0
	for _, other := range i.groups.list {
		if other.fan != nil {
			n++
		}
	}
	if n >= maxFans {
		return nil
	}
	fan, err := i.cfg.Engine.OpenGroup(g.lead.liveMedias(), i.cfg.Smooth)
	if err != nil {
		return nil
	}
	g.fan = fan
	i.leadFirst(g, g.lead)
	return fan
}

// leadFirst makes s the first to feed its group; groups.mu is held.
func (i *Interceptor) leadFirst(g *group, s *session) {
	s.group, g.lead, s.source = g, s, g.fan.NewSource(false)
	s.source.Lead(nil)
	s.known = make([]live.Mapping, len(s.medias))
	s.setFeed(s.source.Feed)
}

func (g *group) enter(ctx context.Context) bool {
	select {
	case g.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g *group) leave() { <-g.turn }

// role is a session's part: its group, nil when it has none, and whether it leads.
func (i *Interceptor) role(s *session) (g *group, leads bool) {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	return s.group, s.group != nil && s.group.lead == s
}

// watchLive looks after the groups: one that brings nothing gets another lead,
// and one that has become another stream is given back to the upstream.
func (i *Interceptor) watchLive(now time.Time) {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	for _, g := range i.groups.list {
		switch {
		case g.lead == nil && g.fan == nil && g.waiting == 0 && len(g.members) == 0 && now.Sub(g.refusedAt) > refusedFor:
			delete(i.groups.list, g.key)
		case g.fan == nil || len(g.members) == 0:
		case g.lead != nil && g.lead.source != nil && g.lead.source.Moved():
			g.lead.setFeed(nil)
			g.lead.source, g.lead = nil, nil
			for _, s := range slices.Clone(g.members) {
				i.work.Go(func() { i.handBackLive(s, "the stream has changed") })
			}
		case g.fan.Idle(now) > stallAfter && now.Sub(g.tried) > stallAgain:
			g.tried = now
			i.work.Go(func() { i.succeed(g) })
		}
	}
}

// hasOthers says whether the group has viewers beside its lead, and got or was asked
// for another one longer ago than that.
func (g *group) hasOthers(i *Interceptor, ago time.Duration) bool {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	now := time.Now()
	if len(g.members) < 2 || now.Sub(g.tried) < min(ago, stallAgain) {
		return false
	}
	g.tried = now
	return true
}
