package intercept

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"rtspshim/engine"
	"rtspshim/proxy"
)

// Config is what an Interceptor works with.
type Config struct {
	Engine *engine.Engine
	// OrphanTimeout ends a UDP session whose RTSP connections have gone and
	// which neither side has sent anything for: the upstream has long
	// forgotten it then. Zero means 10 minutes.
	OrphanTimeout time.Duration
	Movies        Movies       // files that the engine may take over
	Logger        *slog.Logger // nil means slog.Default()
}

// Interceptor knows every session of every client and moves their media to
// the engine.
type Interceptor struct {
	cfg   Config
	log   *slog.Logger
	epoch time.Time

	mu       sync.Mutex
	sessions map[string]*session
}

// New returns an Interceptor without sessions.
func New(cfg Config) *Interceptor {
	if cfg.OrphanTimeout <= 0 {
		cfg.OrphanTimeout = 10 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Interceptor{cfg: cfg, log: cfg.Logger, epoch: time.Now(), sessions: map[string]*session{}}
}

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
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over = true
	for _, m := range s.medias {
		m.close()
	}
	i.log.Info("session ended", s.attrs(why, time.Now())...)
}

// Run looks for orphaned sessions until ctx ends.
func (i *Interceptor) Run(ctx context.Context) error {
	tick := time.NewTicker(i.cfg.OrphanTimeout / 20)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			for _, s := range i.all() {
				if s.orphanedSince(now.Add(-i.cfg.OrphanTimeout)) {
					i.end(s, "silent, connections gone")
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
func (i *Interceptor) TearDown(ctx context.Context, server *proxy.Server) {
	ctx, cancel := context.WithTimeout(ctx, tearDownTimeout)
	defer cancel()
	var work sync.WaitGroup
	for _, s := range i.all() {
		work.Go(func() {
			head, conn := s.tearDownRequest()
			var err error
			if conn != nil {
				_, err = conn.Do(ctx, head)
			} else {
				_, err = server.Once(ctx, head)
			}
			if err != nil {
				i.log.Debug("TEARDOWN at shutdown", "session", s.short(), "err", err)
			}
			i.end(s, "shutdown")
		})
	}
	work.Wait()
}
