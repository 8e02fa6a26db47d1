package intercept

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/engine"
	"rtspshim/proxy"
)

// Config is what an Interceptor works with.
type Config struct {
	Engine *engine.Engine
	// OrphanTimeout ends a UDP session whose RTSP connections have gone and
	// which neither side has sent anything for: the upstream has long
	// forgotten it then. Zero means 10 minutes; where the upstream names a
	// time-out of its own, that is waited for at most.
	OrphanTimeout time.Duration
	Movies        Movies       // files that the engine may take over; none means that all is relayed
	AsHinted      bool         // movies are sent at the times their hints say, bunched or not
	Live          bool         // viewers of one live stream share one upstream session
	Smooth        bool         // live: big frames are spread over half of their interval, for viewers over UDP
	Instant       bool         // live: a viewer begins with the newest key frame, unlike at the upstream
	Proved        string       // file that remembers which movies were proved; "" keeps none
	Refuse        bool         // a movie that the engine has no room for is refused with 453; otherwise it stays relayed
	CloseOnLoss   bool         // when the upstream dies, movies end; otherwise they play on to their end
	Logger        *slog.Logger // nil means slog.Default()
}

// Interceptor knows every session of every client and moves their media to
// the engine.
type Interceptor struct {
	cfg   Config
	log   *slog.Logger
	epoch time.Time

	proved  *proved
	server  *proxy.Server
	work    sync.WaitGroup // proofs, and what follows the engine
	closing chan struct{}  // closed by Close

	groups   groups
	draining atomic.Bool  // sessions are being torn down
	locked   atomic.Bool  // the upstream has refused a PAUSE without Digest credentials
	early    atomic.Int64 // nanoseconds before their time that the upstream sends datagrams, as seen so far

	reportInterval atomic.Int64 // nanoseconds between sender reports, as last seen

	mu       sync.Mutex
	sessions map[string]*session
}

// New returns an Interceptor without sessions. It fails when the file of
// proved movies cannot be read, or there is no memory for movies.
func New(cfg Config) (*Interceptor, error) {
	if cfg.OrphanTimeout <= 0 {
		cfg.OrphanTimeout = 10 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	p, err := openProved(cfg.Proved)
	if err == nil && cfg.Movies.any() {
		err = cfg.Engine.OpenDisk() // now, lest the first viewer waits for it
	}
	return &Interceptor{cfg: cfg, log: cfg.Logger, epoch: time.Now(), proved: p, closing: make(chan struct{}), sessions: map[string]*session{},
		groups: groups{list: map[string]*group{}}}, err
}

// takes says whether media may move to the engine at all.
func (i *Interceptor) takes() bool { return i.cfg.Movies.any() || i.cfg.Live }

// Front names the server that the Interceptor works behind; before Serve.
func (i *Interceptor) Front(server *proxy.Server) { i.server = server }

// Sessions is the number of sessions now known.
func (i *Interceptor) Sessions() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.sessions)
}

func (i *Interceptor) session(id string) *session {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.sessions[id]
}

// admit finds the session that a SETUP's answer names, or makes it.
func (i *Interceptor) admit(id string, t *tap) *session {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.sessions[id]
	if s == nil {
		s = &session{id: id, client: t.conn.Client().Addr(), began: time.Now(), conns: map[*tap]struct{}{}}
		s.turn = make(chan struct{}, 1)
		s.sdp = t.sdp
		i.sessions[id] = s
	}
	return s
}

// end forgets a session and closes its relays.
func (i *Interceptor) end(s *session, why string) {
	i.mu.Lock()
	if i.sessions[s.id] == s {
		delete(i.sessions, s.id)
	}
	i.mu.Unlock()
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	s.over = true
	cancel, stream := s.cancel, s.stream
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if stream != nil {
		_ = stream.Halt()
	}
	i.drop(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	i.log.Info("session ended", append(s.attrs(time.Now()), "why", why)...)
	i.closeMedias(s.medias)
	if s.file != nil {
		_ = s.file.Close()
	}
}

// goodbyeTime is how long relays outlive their session: the upstream's
// goodbye may come behind its answer to TEARDOWN.
const goodbyeTime = 300 * time.Millisecond

// closeMedias closes relays once the upstream's goodbye has had its time.
func (i *Interceptor) closeMedias(medias []*media) {
	for _, m := range medias {
		m.watch.hold()
		if m.relay != nil {
			m.relay.Mute(true) // but for the goodbye
			m.relay.Release()  // the client may take the ports again at once
		}
	}
	i.work.Go(func() {
		timer := time.NewTimer(goodbyeTime)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-i.closing:
		}
		for _, m := range medias {
			m.close()
		}
	})
}

// Run keeps the shadows of living clients alive and ends the sessions of dead
// ones, until ctx ends.
func (i *Interceptor) Run(ctx context.Context) error {
	tick := time.NewTicker(min(i.cfg.OrphanTimeout/20, time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			i.watchLive(now)
			for _, s := range i.all() {
				if now.Before(s.lookAt) {
					continue
				}
				s.lookAt = now.Add(s.lookEvery(i.cfg.OrphanTimeout))
				if s.orphaned(now, i.cfg.OrphanTimeout) {
					i.end(s, "silent, connections gone")
				} else {
					i.keep(s, now)
				}
			}
		}
	}
}

func (i *Interceptor) all() []*session {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := make([]*session, 0, len(i.sessions))
	for _, s := range i.sessions {
		all = append(all, s)
	}
	return all
}

// tearDownTimeout bounds the goodbye to the upstream.
const tearDownTimeout = 2 * time.Second

// TearDown ends every session at the upstream: on a connection it was
// controlled from, or on a new one where all are gone.
func (i *Interceptor) TearDown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tearDownTimeout)
	defer cancel()
	i.draining.Store(true)
	var goodbyes sync.WaitGroup
	for _, s := range i.all() {
		goodbyes.Go(func() {
			if _, err := i.askIn(ctx, s, "TEARDOWN", ""); err != nil {
				i.log.Debug("TEARDOWN at shutdown", "session", s.short(), "err", err)
			}
			i.end(s, "shutdown")
		})
	}
	goodbyes.Wait()
}

// Close waits for everything the Interceptor has begun; after Serve.
func (i *Interceptor) Close() {
	close(i.closing)
	i.work.Wait()
}

// ask sends the upstream a request of the shim's own in a session.
func (i *Interceptor) ask(s *session, method, headers string) (*proxy.Message, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	return i.askIn(ctx, s, method, headers)
}

func (i *Interceptor) askIn(ctx context.Context, s *session, method, headers string) (*proxy.Message, error) {
	head, conn := s.request(method, headers)
	if conn != nil {
		return conn.Do(ctx, head)
	}
	return i.server.Once(ctx, head)
}
