package intercept

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/hint"
	"rtspshim/proxy"
)

// stage is how far a session's media have moved to the engine.
type stage uint8

const (
	relayed  stage = iota // the upstream's packets go to the client
	playing               // the engine sends; the upstream is paused
	paused                // the client has paused as well
	fanned                // live: the session's group sends; the upstream is paused, or leads
	idle                  // the client has paused as well, or leaves
	finished              // the engine has sent the last packet; the upstream stands at its end too
)

func (s stage) String() string {
	return [...]string{"relay", "movie", "movie", "live", "live", "movie"}[s]
}

// takeover is a session's movie. Whoever holds the turn may change it; stage
// and stream are changed under session.mu too, for those who only look.
type takeover struct {
	turn   chan struct{} // holds a token while somebody has the turn
	stage  stage
	why    string // the reason for the last change of stage, or against one
	cancel context.CancelFunc
	took   time.Duration // from the answer to PLAY to the engine's first packet

	file     *hint.File
	stream   *engine.Stream
	tracks   []track
	base     time.Time
	early    time.Duration       // before their time that the upstream sends packets
	ahead    engine.Ahead        // over TCP
	end      time.Duration       // of the Range that plays, 0 when open
	at       []engine.TrackState // where the engine stopped
	position time.Duration       // likewise
	resumed  []rtpInfo           // what the upstream said of its first packets at the last resync
	held     *proxy.Message      // the upstream's answer to our PAUSE
	silenced time.Time           // when it came; zero while the upstream plays
	stopped  time.Time           // when the client paused
	total    engine.StreamStats  // of the streams before this one
	fed
}

// track is one Media's numbering.
type track struct {
	engine.Mapping        // as the client knows it
	upTime         uint32 // the upstream's own timestamp offset
	before         uint32 // what Mapping.Time was before the last move
	lag            uint32 // the upstream's reports' time less that of its packets
}

const (
	turnTimeout  = 2 * time.Second  // for an answer that may never come
	askTimeout   = 5 * time.Second  // for the upstream's answer to the shim
	proofTimeout = 60 * time.Second // for enough packets of every Media
	primeTimeout = 5 * time.Second  // for the first read of a movie
	needNew      = 8                // packets of each Media that prove a movie
	needKnown    = 1                // and one already proved
	feedPackets  = 256
	againAfter   = 3 * time.Second // before another try, twice that the next time
	againMost    = time.Minute
	earlyMost    = 100 * time.Millisecond
)

// enter takes the turn; false when it is not to be had in time.
func (s *session) enter(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *session) tryEnter() bool {
	select {
	case s.turn <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *session) leave() { <-s.turn }

// now is the stage. Beside whoever has the turn, the session's end may change it.
func (s *session) now() stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stage
}

// become changes the stage; the caller has the turn.
func (s *session) become(to stage, stream *engine.Stream, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stage, s.stream, s.why = to, stream, why
}

// stays notes why a session's media stay with the upstream.
func (i *Interceptor) stays(s *session, why string) {
	s.mu.Lock()
	s.why = why
	url := s.url
	s.mu.Unlock()
	i.log.Info("stays relayed", "session", s.short(), "url", url, "why", why)
}

// startProof begins to compare what the upstream sends from now on with the
// movie that the URL names. The caller has the turn.
func (i *Interceptor) startProof(s *session, url string, from, end time.Duration) {
	name := i.cfg.Movies.find(url)
	if name == "" {
		i.startLive(s)
	}
	if name == "" {
		return
	}
	why := s.relayOnly
	if s.digest && i.locked.Load() {
		why = "the upstream wants credentials for PAUSE that only the client can make"
	}
	if why != "" {
		i.stays(s, why)
	}
	if why != "" || !s.onePath() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.end = cancel, end
	feed := make(chan engine.Seen, feedPackets)
	s.setFeed(func(media int, packets [][]byte, rtcp bool, at time.Time) {
		for _, p := range packets {
			if seen, ok := engine.See(media, p, at.Sub(i.epoch)); ok && !rtcp {
				select {
				case feed <- seen:
				default: // the proof is behind; it bears gaps
				}
			}
		}
	})
	began := time.Now()
	i.work.Go(func() {
		defer cancel()
		file, err := i.prove(ctx, s, name, from, feed, began)
		if file != nil {
			_ = file.Close()
		}
		if err != nil && ctx.Err() == nil {
			i.stays(s, err.Error())
		}
	})
}

// prove runs a proof, and on success the takeover. The file it returns is to
// be closed.
func (i *Interceptor) prove(ctx context.Context, s *session, name string, from time.Duration, feed <-chan engine.Seen, began time.Time) (*hint.File, error) {
	medias := s.media()
	defer s.setFeed(nil)
	file, err := i.cfg.Engine.OpenMovie(name)
	if err != nil {
		return nil, err
	}
	key := i.proved.key(file, s.sdp)
	need := needNew
	if i.proved.has(key) {
		need = needKnown
	}
	for wait := againAfter; ; wait = min(2*wait, againMost) {
		proof, err := i.cfg.Engine.NewProof(file, len(medias), from, need)
		if err == nil {
			err = compare(ctx, proof, feed, medias[0].path == "tcp")
		}
		if err != nil {
			return file, err
		}
		if !s.enter(ctx) {
			return file, errors.New("the upstream owes an answer")
		}
		if err = ctx.Err(); err == nil {
			err = i.takeOver(ctx, s, proof, file, began, from)
		}
		s.leave()
		if err == nil {
			break
		}
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) || !i.later(ctx, s, wait, err, feed) {
			return file, err
		}
		up, _, _, _, _ := medias[0].watch.state()
		at, ok := proof.Place(0, up)
		if !ok {
			return file, err
		}
		from, began = at.Due, time.Now()
	}
	if err := i.proved.add(key); err != nil {
		i.log.Warn("proved movies not written", "err", err)
	}
	return nil, nil
}

// compare shows packets to a proof until it holds, over TCP with how far ahead of
// their time they come.
func compare(ctx context.Context, proof *engine.Proof, feed <-chan engine.Seen, ahead bool) error {
	timeout := time.NewTimer(proofTimeout)
	defer timeout.Stop()
	for {
		select {
		case seen := <-feed:
			done := proof.Packet(seen)
			if done && ahead {
				_, done = proof.Ahead()
			}
			switch {
			case proof.Why() != "":
				return errors.New(proof.Why())
			case done:
				return nil
			}
		case <-timeout.C:
			return errors.New("too few packets to prove it")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// later waits after an upstream, or a disk, that was too slow for a takeover: with
// too much to do it has less once viewers are taken over.
func (i *Interceptor) later(ctx context.Context, s *session, wait time.Duration, err error, feed <-chan engine.Seen) bool {
	i.stays(s, err.Error()+", to be tried again")
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-feed: // it has gone by
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// takeOver silences the upstream, and lets the engine go on where the relay
// stops. An upstream that cannot be silenced has changed nothing: it goes on.
func (i *Interceptor) takeOver(ctx context.Context, s *session, proof *engine.Proof, file *hint.File, began time.Time, start time.Duration) error {
	s.file = file
	i.pace(s, proof, began, start)
	was := s.tracks
	s.tracks = nil
	from := time.Duration(1<<63 - 1)
	for n, m := range s.medias {
		mapping := proof.Mapping(n)
		up, _, _, _, r := m.watch.state()
		if at, ok := proof.Place(n, up); ok {
			from = min(from, at.Due)
		}
		sh := m.watch.shifted()
		t := track{Mapping: mapping, upTime: mapping.Time}
		t.Seq, t.Time = t.Seq+sh.seq, t.Time+sh.time
		if r.fresh {
			t.lag = r.time - t.Time - file.Track(t.Track).RTPTime(r.at.Sub(s.base))
		} else if n < len(was) {
			t.lag = was[n].lag
		}
		s.tracks = append(s.tracks, t)
	}
	stream, err := i.openStream(s, from)
	if err != nil {
		return err
	}
	primed, cancel := context.WithTimeout(ctx, primeTimeout)
	defer cancel()
	if err = stream.Primed(primed); err == nil {
		err = i.pauseFirst(ctx, s)
	}
	if err != nil {
		_ = stream.Halt()
		return err
	}
	after, err := s.behind(ctx, proof, stream)
	if err == nil {
		err = i.start(s, stream, after, "same as "+file.Name)
	}
	if err != nil {
		_ = stream.Halt()
		if s.position = from; ctx.Err() == nil {
			i.handBack(s, err.Error())
		}
		return err
	}
	s.mu.Lock()
	s.took = time.Since(began)
	s.mu.Unlock()
	i.log.Info("taken over", "session", s.short(), "file", file.Name, "after", s.took.Round(time.Millisecond))
	return nil
}

// pauseFirst pauses the upstream while it is still relayed.
func (i *Interceptor) pauseFirst(ctx context.Context, s *session) error {
	if s.deaf() {
		return errors.New("the upstream has said that it closes the connection")
	}
	ctx, cancel := context.WithTimeout(ctx, turnTimeout) // a request of the client's waits no longer
	defer cancel()
	m, err := i.askIn(ctx, s, "PAUSE", "")
	switch {
	case err != nil: // it may have paused all the same
		i.work.Go(func() { _, _ = i.ask(s, "PLAY", "") })
		return fmt.Errorf("PAUSE: %w", err)
	case m.Status() == 401 && s.digest:
		i.locked.Store(true)
	}
	return s.paused(m)
}

// pace lets the engine send at the times at which the upstream does: over TCP
// as far ahead as it was seen to; over UDP as early as it ever began, which the
// few packets that prove a movie again do not show.
func (i *Interceptor) pace(s *session, proof *engine.Proof, began time.Time, start time.Duration) {
	s.base = i.epoch.Add(proof.Base())
	s.early, s.ahead = 0, engine.Ahead{}
	if s.medias[0].path != "tcp" {
		s.early = max(0, time.Duration(i.early.Load()), min(began.Add(-start).Sub(s.base), earlyMost))
		i.early.Store(int64(s.early))
		if base := began.Add(-start - s.early); base.Before(s.base) {
			s.base = base
		}
	} else if s.ahead, _ = proof.Ahead(); s.ahead.Lead > 0 {
		s.base = i.epoch.Add(proof.First())
		s.ahead.Began = s.base.Add(start)
	}
}

// behind holds the upstream's packets back, and finds the last ones that were
// passed on.
func (s *session) behind(ctx context.Context, proof *engine.Proof, stream *engine.Stream) ([]*engine.Place, error) {
	if err := s.holdBack(ctx); err != nil {
		return nil, err
	}
	after := make([]*engine.Place, len(s.medias))
	for n, m := range s.medias {
		_, last, packets, octets, _ := m.watch.state()
		at, ok := proof.Place(n, last-m.watch.shifted().seq)
		if !ok {
			return nil, fmt.Errorf("packet %d of media %d is not in the movie", last, n)
		}
		after[n] = &at
		stream.Count(n, packets, octets)
	}
	return after, nil
}

// openStream asks the engine to carry the session's movie.
func (i *Interceptor) openStream(s *session, from time.Duration) (*engine.Stream, error) {
	spec := engine.StreamSpec{File: s.file, Base: s.base, From: from, End: s.end, AsHinted: i.cfg.AsHinted}
	if s.medias[0].path == "tcp" {
		spec.TCP, spec.AsHinted, spec.Ahead = s.medias[0].tap.conn, true, s.ahead
	}
	for n, m := range s.medias {
		spec.Tracks = append(spec.Tracks, engine.StreamTrack{
			Mapping: s.tracks[n].Mapping, Relay: m.relay, RTP: m.channel[0], RTCP: m.channel[1], Report: i.report(m, s.tracks[n].lag),
		})
	}
	var stream *engine.Stream
	ready := make(chan struct{})
	spec.Done = func(err error) {
		i.work.Go(func() {
			<-ready
			i.streamDone(s, stream, err)
		})
	}
	stream, err := i.cfg.Engine.OpenStream(spec)
	close(ready)
	return stream, err
}

// roomFor says whether the engine has room for a movie that was proved before;
// of others it cannot say.
func (i *Interceptor) roomFor(s *session, url string) bool {
	name := i.cfg.Movies.find(url)
	if name == "" || s.relayOnly != "" || !s.onePath() {
		return true
	}
	file, err := i.cfg.Engine.OpenMovie(name)
	if err != nil {
		return true
	}
	defer func() { _ = file.Close() }()
	hints := file.HintTracks()
	if !i.proved.has(i.proved.key(file, s.sdp)) || len(hints) < len(s.medias) {
		return true
	}
	spec := engine.StreamSpec{File: file, Base: time.Now()}
	for n, m := range s.medias {
		if m.path == "tcp" {
			spec.TCP = m.tap.conn
		}
		spec.Tracks = append(spec.Tracks, engine.StreamTrack{Mapping: engine.Mapping{Track: hints[n].ID}, Relay: m.relay})
	}
	stream, err := i.cfg.Engine.OpenStream(spec)
	if err == nil {
		stream.Halt()
	}
	return !errors.Is(err, engine.ErrAdmission)
}

// report is the style in which the engine goes on reporting.
func (i *Interceptor) report(m *media, lag uint32) engine.Report {
	_, _, packets, octets, r := m.watch.state()
	out := engine.Report{Interval: r.interval, Clock: r.clock, Still: r.still, Lag: lag, Tail: r.tail, Packets: packets, Octets: octets}
	if out.Interval == 0 {
		out.Interval = cmp.Or(time.Duration(i.reportInterval.Load()), engine.DefaultReport)
	} else {
		i.reportInterval.Store(int64(out.Interval))
	}
	if !r.at.IsZero() {
		out.Due = max(0, out.Interval-time.Since(r.at))
	}
	return out
}

func (i *Interceptor) start(s *session, stream *engine.Stream, after []*engine.Place, why string) error {
	s.become(playing, stream, why)
	s.keep(false)
	for n, m := range s.medias {
		m.watch.count(func() (rtp, packets, octets uint32) { return stream.Counts(n) })
	}
	err := stream.Start(after)
	if err != nil {
		s.become(relayed, nil, err.Error())
	}
	return err
}
