// Package live sends the packets of one upstream session to many viewers.
//
//	Source ──▶ Group (a log of the last seconds) ──▶ Member (datagrams) …
//	                                             └─▶ Member (a connection) …
//
// The Group keeps what its Source brings in its own numbers: those of the first
// Source. Every Member stands somewhere in that log and is sent what follows,
// from the memory where it lies: as it is, if the Member's numbers are the
// Group's, otherwise behind a header of its own. One that stands behind, since
// it has just joined or reads slowly, costs no memory and holds up nobody.
//
// A session that may become a Source, or a Member, is compared with the log
// first: its packets show how it is numbered.
package live

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Media is one m= section of a live stream.
type Media struct {
	Codec string // encoding name, RFC 8866 §6.6: of use where key frames are known
	Rate  uint32 // RTP clock, ticks a second
}

// Config sets up a Group.
type Config struct {
	Medias []Media
	Smooth bool             // big frames leave over half of their interval, as far as datagrams go
	Lanes  []func()         // one for each thread that calls Send: has it called soon for that lane
	Go     func(run func()) // starts a goroutine, for Members on connections
}

// Group is a live stream and its viewers. Its methods may be called from
// anywhere but a Writer.
type Group struct {
	cfg   Config
	rates []uint32

	mu     sync.RWMutex // held to read while packets are on loan to the kernel
	log    *log
	source *Source
	before *Source // its predecessor
	bye    []byte  // the Source's last goodbye, and of which Media
	byeOf  int
	closed bool
	lanes  []*lane
	rung   time.Time // when Members on connections were last told of packets

	last atomic.Int64 // unix nanoseconds of the last packet
}

// Open makes a Group without Source or Members.
func Open(c Config) *Group {
	g := &Group{cfg: c, log: newLog(len(c.Medias), true)}
	for _, m := range c.Medias {
		g.rates = append(g.rates, m.Rate)
	}
	for _, wake := range c.Lanes {
		g.lanes = append(g.lanes, &lane{wake: wake, smooth: smoother{frames: make([]frame, len(c.Medias))}})
	}
	g.last.Store(time.Now().UnixNano())
	return g
}

// Close ends all Members where they are. When it returns, nothing more is sent
// but what a connection is being written.
func (g *Group) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.source, g.before, g.closed = nil, nil, true
	for _, l := range g.lanes {
		for _, r := range l.ranks {
			for len(r.members) > 0 {
				r.members[0].gone = true
				r.remove(r.members[0])
			}
		}
		for _, m := range slices.Concat(l.udp, l.tcp) {
			m.gone = true
		}
		l.udp, l.tcp = nil, nil
		l.ring()
	}
}

// Idle is for how long nothing has come from the Source.
func (g *Group) Idle(now time.Time) time.Duration { return now.Sub(time.Unix(0, g.last.Load())) }

// Source is one upstream session's packets: compared with the Group's log at
// first, then perhaps what the Group sends.
type Source struct {
	g    *Group
	news chan struct{} // holds one ring

	// Guarded by Group.mu.
	trial *log // until it feeds the Group
	maps  []Mapping
	ssrc  []uint32 // as it comes
	moved bool     // SSRC changed on the way
	doubt []bool   // by Media: nothing has come yet that shows how it is numbered
}

// NewSource makes a Source that is compared with the Group; with payload, it
// may become the Group's.
func (g *Group) NewSource(payload bool) *Source {
	n := len(g.cfg.Medias)
	return &Source{g: g, news: make(chan struct{}, 1), trial: newLog(n, payload), ssrc: make([]uint32, n)}
}

// News tells, with one token, of packets that have come since it was last read.
func (s *Source) News() <-chan struct{} { return s.news }

// Feed takes in packets of a Media, which came in this order. They are not kept.
func (s *Source) Feed(media int, packets [][]byte, rtcp bool, at time.Time) {
	g := s.g
	g.mu.Lock()
	switch {
	case media >= len(s.ssrc) || g.closed:
	case g.source == s || g.before == s && !rtcp && g.source.doubts(media): // its last ones may still come
		for _, p := range packets {
			g.take(s, media, p, rtcp, at)
		}
		g.tell(at)
	case s.trial != nil && !rtcp:
		for _, p := range packets {
			s.try(media, p, at)
		}
	}
	g.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// try keeps a packet for comparison. Another SSRC begins anew.
func (s *Source) try(media int, p []byte, at time.Time) {
	e, ssrc, ok := read(media, p, at)
	if !ok {
		return
	}
	if m := s.trial.medias[media]; m.started && m.ssrc != ssrc {
		s.trial = newLog(len(s.ssrc), s.trial.arena != nil)
	}
	m := s.trial.medias[media]
	m.ssrc, s.ssrc[media] = ssrc, ssrc
	if !m.started {
		m.from = e
	}
	if rate := s.g.rates[media]; rate > 0 {
		m.rush = max(m.rush, spanOf(e.time-m.from.time, rate)-at.Sub(m.from.at))
	}
	s.trial.put(e, p)
}

// take adds a packet of the Source's to the log, in the Group's numbers.
func (g *Group) take(s *Source, media int, p []byte, rtcp bool, at time.Time) {
	m := &s.maps[media]
	if rtcp {
		if len(p) > maxPacket || len(p) < 8 {
			return
		}
		p = append([]byte(nil), p...) // a few a minute
		if renumber(p, s.ssrc[media], *m, nil, nil) {
			g.bye, g.byeOf = p, media
		} else {
			g.log.put(entry{media: uint8(media), size: int32(len(p)), at: at, rtcp: true}, p)
		}
		return
	}
	e, ssrc, ok := read(media, p, at)
	if !ok {
		return
	}
	to := g.log.medias[media]
	switch {
	case !to.started: // the first one of all
		to.ssrc, s.ssrc[media], *m = ssrc, ssrc, Mapping{SSRC: ssrc}
	case s.ssrc[media] == 0:
		s.ssrc[media] = ssrc
	case ssrc != s.ssrc[media]:
		s.moved = true
		return
	}
	e.seq, e.time = e.seq+m.Seq, e.time+m.Time
	had := g.log.find(media, e.seq)
	if s.doubts(media) && to.started {
		if s.moved = had == nil && !to.fits(Mapping{}, &e, g.rates[media]); s.moved {
			return
		}
		s.doubt[media] = false
	}
	if had != nil && had.same(&e) && had.time == e.time {
		return // a predecessor brought it
	}
	put(g.log.put(e, p), e.seq, e.time, m.SSRC)
	if isKey(g.cfg.Medias[media].Codec, p) {
		to.key = to.frame
	}
	g.last.Store(at.UnixNano())
}

// doubts says whether it is not known yet where in a Media the Source begins.
func (s *Source) doubts(media int) bool { return s.doubt != nil && s.doubt[media] }

// SSRC is what a Media's packets come with.
func (s *Source) SSRC(media int) uint32 {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	return s.ssrc[media]
}

// Moved says that the Source has become another stream: another SSRC, which no
// Member knows. Its packets are no longer taken.
func (s *Source) Moved() bool {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	return s.moved
}

// Match finds how the Source's packets are numbered in the Group, if at least
// need of each Media are the same; otherwise why tells what is missing.
func (s *Source) Match(need int) (maps []Mapping, why string) {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	if s.trial == nil {
		return nil, "compared already"
	}
	return s.g.log.match(s.trial, need)
}

// InStep says whether the Source's packets, numbered so, come when the Group's do.
func (s *Source) InStep(maps []Mapping) bool {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	for n, m := range maps {
		if s.trial != nil && s.g.log.lag(s.trial, n, m) > stepMost {
			return false
		}
	}
	return true
}

// Rush is by how much more media time than time has passed, at most, since the
// first packet came for comparison: how far in the past the upstream began. past
// is the time.
func (s *Source) Rush(now time.Time) (rush, past time.Duration) {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	if s.trial == nil {
		return 0, 0
	}
	for _, m := range s.trial.medias {
		rush = max(rush, m.rush)
		if m.started {
			past = max(past, now.Sub(m.from.at))
		}
	}
	return rush, past
}

// Count is how many packets of each Media have come for comparison, at least.
func (s *Source) Count() int {
	s.g.mu.RLock()
	defer s.g.mu.RUnlock()
	least := 1 << 30
	if s.trial != nil {
		for _, m := range s.trial.medias {
			least = min(least, m.count)
		}
	}
	return least
}

// Lead makes the Source the Group's, its packets numbered by maps; nil for the
// first one, whose numbers are the Group's. What it has brought already and the
// Group has not yet follows at once, so that nothing is missing between the
// Source before and this one.
func (s *Source) Lead(maps []Mapping) {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	s.lead(maps)
}

func (s *Source) lead(maps []Mapping) {
	g := s.g
	if maps == nil {
		maps = make([]Mapping, len(s.ssrc))
	}
	trial := s.trial
	s.trial, s.maps, g.before, g.source, g.bye = nil, maps, g.source, s, nil
	last := make([]place, len(maps))
	for n, m := range g.log.medias {
		last[n] = *m
	}
	for n := trial.tail; n < trial.head && trial.arena != nil; n++ {
		e := trial.entry(n)
		if at := &last[e.media]; !at.started || int16(e.seq+maps[e.media].Seq-at.seq) > 0 {
			g.take(s, int(e.media), trial.bytes(e), false, e.at)
		}
	}
	g.tell(time.Now())
}

// recallAfter is how long a Source's first packet must have been there: those
// before it, which others bring, may still be on their way.
const recallAfter = 10 * time.Millisecond

// Recall is Lead for a Source that is back after a pause, as soon as its packets
// show that it is numbered as known.
func (s *Source) Recall(known []Mapping, now time.Time) bool {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.trial == nil || s.trial.head == s.trial.tail || now.Sub(s.trial.entry(s.trial.tail).at) < recallAfter ||
		len(known) != len(g.rates) || !g.log.recall(s.trial, known, g.rates) {
		return false
	}
	maps := make([]Mapping, len(known))
	s.doubt = make([]bool, len(known))
	for n, k := range known {
		maps[n] = Mapping{g.log.medias[n].ssrc, k.Seq, k.Time}
		s.doubt[n] = s.trial.oldest(n) == nil
	}
	s.lead(maps)
	return true
}

// Follow is Lead for a Source that has nothing in common with the Group any
// more, as the one before has gone: it goes on as it was known to be numbered
// (nil when it was not), or without a step. It returns the numbering.
func (s *Source) Follow(known []Mapping) []Mapping {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	maps := g.log.follow(s.trial, known, g.rates)
	s.lead(maps)
	return maps
}

// Goodbye passes on the goodbye that the last Source got, if it got one, to all
// but the Member that has had it.
func (g *Group) Goodbye(has *Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bye != nil {
		g.log.put(entry{media: uint8(g.byeOf), size: int32(len(g.bye)), at: time.Now(), rtcp: true}, g.bye)
		g.bye = nil
		if has != nil {
			has.since = g.log.head
		}
		g.rung = time.Time{}
		g.tell(time.Now())
	}
}

// ringLeast is between two tellings of Members on connections, so that what
// belongs together leaves in one write; the end of a frame is told at once.
const ringLeast = 5 * time.Millisecond

// tell has Members sent what is new.
func (g *Group) tell(now time.Time) {
	connections := false
	for _, l := range g.lanes {
		if l.datagrams() > 0 {
			l.wake()
		}
		connections = connections || len(l.tcp) > 0
	}
	if g.log.head == g.log.tail || !connections {
		return
	}
	last := g.log.entry(g.log.head - 1)
	if last.bits&marker == 0 && now.Sub(g.rung) < ringLeast && isKnown(g.cfg.Medias[last.media].Codec) {
		return
	}
	g.rung = now
	for _, l := range g.lanes {
		if len(l.tcp) > 0 {
			l.ring()
		}
	}
}
