package intercept

import (
	"context"
	"time"

	"rtspshim/engine"
	"rtspshim/proxy"
)

// control is a PLAY, PAUSE or TEARDOWN of the client's on its way. From its
// request to its answer it has the session's turn, so that nothing else
// changes what the session plays.
type control struct {
	s      *session
	moves  bool // a PLAY to the paused upstream, from where the client wants
	pings  bool // a PLAY while the engine plays
	plays  bool // whether a live session's upstream did, before it
	halted bool // the engine was stopped for it, and goes on if it is refused
	url    string
	rng    string // the Range that went up
}

// requestControl prepares the session for what the client wants of it.
func (t *tap) requestControl(ex *proxy.Exchange) {
	s := t.Interceptor.session(sessionID(ex.Request))
	if s == nil || !t.takes() || t.closing.Load() {
		return
	}
	if !s.enter(context.Background()) {
		t.stays(s, "the upstream owes an answer")
		return
	}
	c := &control{s: s, url: ex.URI}
	ex.Value = c
	t.hold(c)
	if s.on(t) { // others show whether they may, by the upstream's answer
		s.seen(t, ex, time.Now())
	}
	if s.cancel != nil { // a proof under way: what it looks at ends here
		s.cancel()
		s.cancel = nil
	}
	switch ex.Method {
	case "PLAY":
		c.requestPlay(t, ex)
	case "PAUSE":
		c.requestPause(t, ex)
	case "TEARDOWN":
		if s.isOne(ex.URI) {
			t.giveUp(s, "one of several tracks was torn down")
		} else {
			c.plays = t.depart(s)
			if s.now() == playing { // what the upstream says at the end is of the last packet
				s.halt()
				c.halted = true
			}
		}
	}
}

const setUpAgain = "set up again while it played"

// requestAgain prepares a session for a further SETUP, which the engine's
// stream could not follow. It returns nil where there is no session yet, or
// none on this connection.
func (t *tap) requestAgain(ex *proxy.Exchange) *control {
	s := t.Interceptor.session(sessionID(ex.Request))
	if s == nil || !s.on(t) || !s.enter(context.Background()) {
		return nil
	}
	c := &control{s: s}
	t.hold(c)
	t.giveUp(s, setUpAgain)
	return c
}

// giveUp hands a session's media back to the upstream for good. The caller
// has the turn.
func (i *Interceptor) giveUp(s *session, why string) {
	plays := i.depart(s)
	switch s.now() {
	case relayed:
		return
	case playing:
		s.halt()
		i.handBack(s, why)
	case idle:
		i.restore(s, plays, why)
	default:
		for n, m := range s.medias {
			m.watch.shiftTo(s.tracks[n].Time - s.tracks[n].upTime)
		}
		s.pass()
		s.become(relayed, nil, why)
	}
	s.relayOnly = why
}

// isOne says whether url names one Media of several.
func (s *session) isOne(url string) bool {
	for _, m := range s.medias {
		if m.url == url {
			return len(s.medias) > 1
		}
	}
	return false
}

func (c *control) requestPlay(t *tap, ex *proxy.Exchange) {
	s, m := c.s, ex.Request
	for _, md := range s.medias {
		md.watch.moves()
	}
	c.rng = m.Get("Range")
	switch s.now() {
	case playing:
		if c.rng == "" && !m.Has("Scale") && !m.Has("Speed") {
			c.pings = true
			if err := t.resync(s, s.stream.Position()); err != nil {
				t.log.Info("upstream before PLAY", "session", s.short(), "err", err)
			}
			return
		}
		s.halt()
		c.halted, c.moves = true, true
	case paused:
		c.moves = true
	case fanned:
		if _, leads := t.role(s); !leads {
			c.pings = true
			t.replay(s, "")
		}
		return
	case finished:
		c.moves = true // a PLAY without Range means what the upstream says
		s.keep(true)
		return
	case idle:
		s.keep(true)
		return
	default:
		if t.cfg.Refuse && !t.roomFor(s, ex.URI) {
			t.log.Warn("refused, no room for another movie", "session", s.short(), "url", ex.URI)
			ex.Answer("453 Not Enough Bandwidth")
			t.release(c)
			return
		}
		t.readyInstant(s, ex.URI)
		return
	}
	s.keep(true)
	if c.rng == "" {
		c.rng = formatNPT(s.position, s.end)
		m.Add("Range", c.rng)
	}
}

func (c *control) requestPause(t *tap, ex *proxy.Exchange) {
	s := c.s
	switch s.now() {
	case playing:
		s.halt()
		s.stopped = time.Now()
	default:
		c.plays = t.depart(s)
		if s.now() != idle || c.plays {
			return
		}
	}
	if s.held == nil { // the upstream plays: it answers for itself
		s.silenced = s.stopped
		return
	}
	s.held.Set("CSeq", ex.CSeq())
	ex.AnswerRaw(s.held.Bytes())
	t.release(c)
}

// answerControl follows the upstream's answer, and corrects what it says
// about packets that come from the engine.
func (t *tap) answerControl(c *control, ex *proxy.Exchange, m *proxy.Message) {
	release := true
	defer func() {
		if release {
			t.release(c)
		}
	}()
	s := c.s
	if !m.OK() {
		s.endInstant()
	}
	if ex.Method != "PLAY" {
		if c.halted && !m.OK() {
			release = t.resume(c)
		}
		if s.now() == idle && !m.OK() { // it goes on playing
			release = false
			why := m.StartLine()
			t.work.Go(func() {
				defer t.release(c)
				t.restore(s, c.plays, why)
				t.startLive(s)
			})
		}
		return
	}
	switch {
	case s.now() == idle && m.OK():
		s.followInfo(m)
		t.restore(s, true, "")
		t.startLive(s)
	case s.now() == idle:
	case s.now() == fanned && !c.pings:
		s.correct(m, s.nextLive())
	case c.pings:
		if m.OK() && s.now() == fanned {
			s.correct(m, s.nextLive())
		} else if m.OK() {
			s.correct(m, s.stream.State())
		}
		release = false
		t.work.Go(func() { // the answer to PAUSE comes in behind this one
			defer t.release(c)
			s.hush(s.now() == fanned)
			t.silence(s)
		})
	case !m.OK():
		if c.halted {
			release = t.resume(c)
		}
	case c.moves:
		release = t.moved(c, ex, m)
	default:
		t.startInstant(s, m)
		start, end := playRange(c.rng, m)
		if why := altered(m); why != "" {
			t.stays(s, why)
			return
		}
		t.startProof(s, c.url, start, end)
	}
}

// playRange is what an answered PLAY plays: the answer's Range where it has
// one, the request's otherwise.
func playRange(asked string, m *proxy.Message) (start, end time.Duration) {
	start, end, now, ok := parseNPT(m.Get("Range"))
	if !ok || now {
		start, end, _, _ = parseNPT(asked)
	}
	return start, end
}

// altered says why an answer promises other packets than the movie's own.
func altered(m *proxy.Message) string {
	for _, name := range []string{"Scale", "Speed"} {
		switch v := m.Get(name); v {
		case "", "1", "1.0", "1.00", "1.000", "1.000000":
		default:
			return name + ": " + v
		}
	}
	return ""
}

// moved lets the engine play from where a PLAY to the paused upstream has
// moved the session. What the answer says about the first packets shows
// whether the upstream means the same ones; if it does not, the upstream is
// relayed and has to be proved again. It reports whether the control's turn
// is over.
func (t *tap) moved(c *control, ex *proxy.Exchange, m *proxy.Message) bool {
	s := c.s
	start, end := playRange(c.rng, m)
	if s.now() == finished && m.Get("RTP-Info") == "" {
		s.keep(false)
		return true // nothing plays
	}
	why := altered(m)
	if why == "" {
		firsts, earlier, err := t.firsts(s, start)
		if err == nil && s.renumber(firsts, earlier, infos(s, m), c.halted) {
			s.ahead.Began = time.Now()
			s.base, s.end = s.ahead.Began.Add(-start-s.early), endIn(end, s.file.Duration)
			if t.playOn(c, ex, m, start, firsts) {
				return false
			}
			why = "the engine has no room"
		} else {
			why = "the answer to PLAY does not name the movie's packets"
		}
	}
	t.log.Info("moved, to be proved again", "session", s.short(), "why", why, "range", m.Get("Range"), "rtp_info", m.Get("RTP-Info"))
	// The relay goes on in the client's numbers.
	for n, md := range s.medias {
		md.watch.shiftTo(s.tracks[n].Time - s.tracks[n].upTime)
	}
	for n, e := range infos(s, m) {
		if e.whole && e.seq != 0 {
			s.medias[n].watch.next(e.seq)
		}
	}
	s.pass()
	s.become(relayed, nil, why)
	s.shiftInfo(m)
	if altered(m) == "" {
		t.startProof(s, c.url, start, end)
	} else {
		t.stays(s, why)
	}
	return true
}

// edge is how near to a sample's begin a start may be for its own server to
// round it into the sample before.
const edge = time.Millisecond

// playOn prepares the engine, corrects the answer, and has the engine start and
// the upstream be silenced once the client has that.
func (t *tap) playOn(c *control, ex *proxy.Exchange, m *proxy.Message, start time.Duration, firsts []engine.First) bool {
	s := c.s
	resumed := !c.halted && s.now() == paused && start == s.position.Truncate(time.Microsecond)
	after := make([]*engine.Place, len(s.medias))
	next := make([]engine.TrackState, len(s.medias))
	for n := range s.medias {
		tr, at := &s.tracks[n], &s.at[n]
		switch {
		case resumed: // exactly the next packet, as the upstream would have gone on
			after[n] = &at.Last
			next[n] = engine.TrackState{NextSeq: at.NextSeq, NextTime: at.NextTime + tr.Time - tr.before, Ended: at.Ended}
		case firsts[n].OK:
			tr.Seq = at.LastSeq + 1 - firsts[n].Seq
			after[n] = &engine.Place{Sample: firsts[n].Sample, Seq: firsts[n].Seq - 1, Due: firsts[n].Due}
			next[n] = engine.TrackState{NextSeq: at.LastSeq + 1, NextTime: firsts[n].Time + tr.Time}
		default:
			next[n].Ended = true
		}
	}
	stream, err := t.openStream(s, max(0, start-edge))
	if err != nil {
		t.log.Warn("no room to go on", "session", s.short(), "err", err)
		return false
	}
	s.correct(m, next)
	ex.Then = func() {
		err := t.start(s, stream, after, s.why)
		t.work.Go(func() {
			defer t.release(c)
			if err != nil {
				t.handBack(s, err.Error())
				return
			}
			t.silence(s)
		})
	}
	return true
}

// endIn is a Range's end as the engine wants it: none where it is the movie's.
func endIn(end, movie time.Duration) time.Duration {
	if end >= movie {
		return 0
	}
	return end
}

// renumber finds the timestamp offsets after a move: the upstream's answer
// gives its own, and they count only if all Medias moved by the same time. A
// start on the edge of a sample is rounded by servers, one track this way and
// one the other: each may begin with either of two packets, of which the right
// one is left in firsts. An upstream that adds the time it was paused has been
// paused longer than the client knows; the client gets what it would have seen.
func (s *session) renumber(firsts, earlier []engine.First, answered []rtpInfo, wasPlaying bool) bool {
	for _, ref := range [][]engine.First{firsts, earlier} {
		advance, ups, ok := s.advance(ref, firsts, earlier, answered)
		if !ok {
			continue
		}
		now, extra := time.Now(), time.Duration(0)
		if upPaused := now.Sub(s.silenced); !s.silenced.IsZero() && advance > 0 && (advance-upPaused).Abs() < 250*time.Millisecond {
			extra = upPaused // while the engine played on
			if !wasPlaying {
				extra = s.stopped.Sub(s.silenced)
			}
		}
		for n := range s.tracks {
			tr := &s.tracks[n]
			tr.before = tr.Time
			tr.Time += ups[n] - tr.upTime - uint32(int64(extra)*int64(s.rate(n))/int64(time.Second))
			tr.upTime = ups[n]
		}
		return true
	}
	return false
}

// advance is by how much the upstream's timestamps moved, if all tracks say the
// same, each beginning with one of its two packets. ref gives the first track's.
func (s *session) advance(ref, firsts, earlier []engine.First, answered []rtpInfo) (by time.Duration, ups []uint32, ok bool) {
	ups = make([]uint32, len(s.tracks))
	for n, tr := range s.tracks {
		if e := answered[n]; !firsts[n].OK || e.whole && e.seq == 0 && e.rtptime == 0 {
			continue // nothing is left of it: Darwin then says 0 and 0
		} else if !e.whole {
			return 0, nil, false
		}
		choices := []engine.First{firsts[n], earlier[n]}
		if !ok {
			choices = []engine.First{ref[n]}
		}
		fits := false
		for _, c := range choices {
			ups[n] = answered[n].rtptime - c.Time
			moved := ticks(int32(ups[n]-tr.upTime), s.rate(n))
			if fits = !ok || (moved-by).Abs() < 5*time.Millisecond; fits {
				by, ok, firsts[n] = moved, true, c
				break
			}
		}
		if !fits {
			return 0, nil, false
		}
	}
	for n, tr := range s.tracks { // a track that said nothing moved with the others
		if ups[n] == 0 {
			ups[n] = tr.upTime + uint32(int64(by)*int64(s.rate(n))/int64(time.Second))
		}
	}
	return by, ups, ok
}

func ticks(n int32, rate uint32) time.Duration {
	return time.Duration(int64(n) * int64(time.Second) / int64(rate))
}

// rate is a track's RTP ticks a second.
func (s *session) rate(n int) uint32 {
	if t := s.file.Track(s.tracks[n].Track); t != nil && t.RTPScale > 0 {
		return t.RTPScale
	}
	return 1
}

func (s *session) trackIDs() (ids []uint32) {
	for _, t := range s.tracks {
		ids = append(ids, t.Track)
	}
	return ids
}

// infos are the RTP-Info entries of an answer, by Media.
func infos(s *session, m *proxy.Message) []rtpInfo {
	list := make([]rtpInfo, len(s.medias))
	m.Edit("RTP-Info", func(value string) string {
		return editRTPInfo(value, func(e *rtpInfo) {
			if n := s.named(e.url); n >= 0 {
				list[n] = *e
			}
		})
	})
	return list
}

// named is the Media that an RTP-Info entry is about, -1 for none: the SETUP's
// URL, or the track's name at its end.
func (s *session) named(url string) int {
	for n, m := range s.medias {
		if m.url == url || lastPart(m.url) == lastPart(url) {
			return n
		}
	}
	return -1
}

// correct makes an answer's RTP-Info name the packets that come next from
// the engine.
func (s *session) correct(m *proxy.Message, next []engine.TrackState) {
	m.Edit("RTP-Info", func(value string) string {
		return editRTPInfo(value, func(e *rtpInfo) {
			if n := s.named(e.url); n >= 0 && !next[n].Ended {
				e.seq, e.rtptime = next[n].NextSeq, next[n].NextTime
			}
		})
	})
}

// followInfo has the packets that an answer announces follow the client's last
// ones, and the answer say so.
func (s *session) followInfo(m *proxy.Message) {
	for n, e := range infos(s, m) {
		if e.whole {
			s.medias[n].watch.followFrom(e.seq)
		}
	}
	s.shiftInfo(m)
}

// shiftInfo makes an answer's RTP-Info fit packets that are shifted.
func (s *session) shiftInfo(m *proxy.Message) {
	m.Edit("RTP-Info", func(value string) string {
		return editRTPInfo(value, func(e *rtpInfo) {
			if n := s.named(e.url); n >= 0 {
				sh := s.medias[n].watch.shifted()
				e.seq, e.rtptime = e.seq+sh.seq, e.rtptime+sh.time
			}
		})
	})
}

// resume lets the engine go on that was halted for a request which was refused.
// Where it has no room any more the upstream does, off the goroutine that reads its
// answers. It reports whether the control's turn is over.
func (t *tap) resume(c *control) bool {
	err := t.goOn(c.s, c.s.why)
	if err != nil {
		t.work.Go(func() {
			defer t.release(c)
			t.handBack(c.s, err.Error())
		})
	}
	return err == nil
}

// hold and release keep the connection's controls, whose turns end with it.
func (t *tap) hold(c *control) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.controls != nil {
		t.controls[c] = struct{}{}
	}
}

func (t *tap) release(c *control) {
	if c == nil {
		return
	}
	t.mu.Lock()
	_, held := t.controls[c]
	delete(t.controls, c)
	t.mu.Unlock()
	if held {
		c.s.leave()
	}
}
