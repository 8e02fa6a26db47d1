package intercept

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rtspshim/engine"
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
	fan     *live.Group // nil while the lead is alone
	lead    *session    // nil when it has gone and none took its place
	members []*session  // sent to by fan, the longest first; the lead is one as soon as there is another
	waiting int         // sessions being compared
	told    bool        // why one could not join was logged
	refused string      // why none can join
	tried   time.Time   // when the last promotion ended
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
}

const (
	maxFans     = 64               // streams fanned out at once, of 4 MiB each
	joinTimeout = 15 * time.Second // to be compared in
	joinPause   = 50 * time.Millisecond
	liftTimeout = 3 * time.Second // for a standby to bring packets
	liftCandour = 250 * time.Millisecond
	needLift    = 3 // packets that find again what was matched before
	stallAfter  = 2 * time.Second
	stallAgain  = 10 * time.Second
)

// liveKey names the stream that a session plays: the URL's path and query, the
// Medias set up, and the SDP but for what differs from one DESCRIBE to another.
// It is empty when that is not known, or no live stream.
func (s *session) liveKey() string {
	u, err := url.Parse(s.url)
	if err != nil || s.sdp == "" || s.relayOnly != "" || s.record || !s.onePath() {
		return ""
	}
	var key strings.Builder
	key.WriteString(strings.TrimSuffix(u.EscapedPath(), "/") + "?" + u.RawQuery)
	for _, m := range s.medias {
		key.WriteString("\n" + lastPart(m.url))
	}
	for line := range strings.Lines(s.sdp) {
		switch {
		case strings.HasPrefix(line, "o="), strings.HasPrefix(line, "c="):
			continue
		case strings.HasPrefix(line, "a=range:"):
			_, end, ok := strings.Cut(strings.TrimSpace(line), "-")
			if !strings.HasPrefix(line, "a=range:npt=") || !ok || end != "" {
				return "" // it has an end, or a clock's time
			}
			continue
		}
		key.WriteString("\n" + strings.TrimSpace(line))
	}
	return key.String()
}

// liveMedias are the session's Medias as their SDP describes them.
func (s *session) liveMedias() []live.Media {
	medias := make([]live.Media, len(s.medias))
	sections := strings.Split("\n"+strings.ReplaceAll(s.sdp, "\r", ""), "\nm=")
	for n, m := range s.medias {
		medias[n].Rate = 90000
		for _, section := range sections[1:] {
			if _, control, ok := strings.Cut(section, "\na=control:"); !ok ||
				lastPart(strings.SplitN(control, "\n", 2)[0]) != lastPart(m.url) && len(sections) > 2 {
				continue
			}
			_, rtpmap, _ := strings.Cut(section, "\na=rtpmap:")
			_, coding, _ := strings.Cut(strings.SplitN(rtpmap, "\n", 2)[0], " ")
			name, rate, _ := strings.Cut(coding, "/")
			rate, _, _ = strings.Cut(rate, "/")
			medias[n].Codec = strings.ToUpper(name)
			if r, err := strconv.ParseUint(strings.TrimSpace(rate), 10, 32); err == nil {
				medias[n].Rate = uint32(r)
			}
		}
	}
	return medias
}

// startLive has a session that begins to play lead its group, or tries to join
// it. The caller has the session's turn.
func (i *Interceptor) startLive(s *session) {
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
		g.lead, s.group = s, g
		return
	case g.refused != "":
		return
	}
	g.waiting++
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	s.cancel = cancel
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

// sweep forgets what a group needs no more, and returns what is to be closed
// once groups.mu, which the caller holds, is free.
func (i *Interceptor) sweep(g *group) (fan *live.Group) {
	if g.waiting > 0 || len(g.members) > 0 {
		return nil
	}
	fan, g.fan = g.fan, nil
	if g.lead == nil && i.groups.list[g.key] == g {
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
	fan, err := i.cfg.Engine.OpenGroup(g.lead.liveMedias())
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

// join compares a session's packets with its group's and, when they are the
// same, has it fed by the group and paused at the upstream. It returns why it
// could not.
func (i *Interceptor) join(ctx context.Context, s *session, g *group) (why string) {
	var fan *live.Group
	var src *live.Source
	var maps []live.Mapping
	defer func() {
		if s.source == nil {
			s.setFeed(nil)
		}
	}()
	for {
		if i.adopt(ctx, g, s) {
			return ""
		}
		if now := i.fanOf(g); now == nil {
			return "too many live streams"
		} else if now != fan {
			fan, src = now, now.NewSource(false)
			s.setFeed(src.Feed)
		}
		if maps, why = src.Match(needNew); why == "" {
			break
		}
		select {
		case <-src.News():
			time.Sleep(joinPause) // a comparison is not free
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
	if !g.enter(ctx) || ctx.Err() != nil {
		return ""
	}
	defer g.leave()
	if !i.fanLead(g, fan) {
		return "the one to follow has gone"
	}
	s.hush(true)
	if err := i.pause(s); err != nil {
		s.hush(false)
		i.groups.mu.Lock()
		defer i.groups.mu.Unlock()
		g.refused = "the upstream does not pause: " + err.Error()
		return g.refused
	}
	s.setFeed(nil)
	if err := i.fan(g, s, maps, src); err != nil {
		i.restore(s, false, err.Error())
		return err.Error()
	}
	i.log.Info("live, joined", "session", s.short(), "url", s.url)
	return ""
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
	lead := g.lead
	fits := g.fan == fan && lead != nil
	i.groups.mu.Unlock()
	if fits && lead.now() != fanned {
		return i.fan(g, lead, lead.known, lead.source) == nil
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
	var spec live.MemberSpec
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
	i.groups.mu.Unlock()
	if over {
		i.drop(s)
	}
	return nil
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
			select {
			case m.turn <- struct{}{}:
				return m, false
			default:
				busy = true
			}
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
	timer := time.NewTicker(liftCandour / 10)
	defer timer.Stop()
	for began := time.Now(); ; {
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
		old.setFeed(nil)
		old.source = nil
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

// watchLive looks after the groups: one that brings nothing gets another lead,
// and one that has become another stream is given back to the upstream.
func (i *Interceptor) watchLive(now time.Time) {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	for _, g := range i.groups.list {
		switch {
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

// handBackLive has a session's own upstream send to it again.
func (i *Interceptor) handBackLive(s *session, why string) {
	if !s.enter(context.Background()) {
		return
	}
	defer s.leave()
	if s.now() == fanned {
		i.giveUp(s, why)
		s.relayOnly = ""
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
		if fan != nil {
			fan.Goodbye()
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
	m, err := i.ask(s, "OPTIONS", "")
	switch {
	case err != nil:
		i.end(s, "upstream lost")
	case !m.OK():
		i.end(s, "connection closed: "+m.StartLine())
	case leads:
		i.silence(s)
	}
}

// restore has a session's own upstream send again where a request that would
// have ended that was refused, or that resumed it was not. The caller has the
// session's turn; plays says that the upstream plays already.
func (i *Interceptor) restore(s *session, plays bool, why string) {
	if !plays {
		if failed := i.replay(s, ""); failed != "" {
			i.log.Error("upstream does not go on", "session", s.short(), "err", failed)
		}
	}
	s.hush(false)
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

// hasOthers says whether the group has viewers beside its lead, and has not
// just been asked to replace it.
func (g *group) hasOthers(i *Interceptor) bool {
	i.groups.mu.Lock()
	defer i.groups.mu.Unlock()
	now := time.Now()
	if len(g.members) < 2 || now.Sub(g.tried) < stallAgain {
		return false
	}
	g.tried = now
	return true
}
