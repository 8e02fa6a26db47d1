package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Server is a server to measure.
type Server struct {
	Name string // in the report; the URL's host when empty

	// URL is what the sessions play. A %d in it counts from 0 up to Config.Movies,
	// which spreads the sessions over many movies.
	URL string

	// Pids are the processes whose CPU time and memory are the server's. When
	// empty, it is the one that listens on the URL's port, if it runs here.
	Pids []int
}

// Config says what to measure. Servers and Sessions are needed.
type Config struct {
	Servers  []Server // one, or two that take turns
	Sessions []int    // the loads, one after the other
	TCP      bool     // interleaved; otherwise UDP

	Duration time.Duration // of the window that is measured; 10 s when zero
	Settle   time.Duration // between the last PLAY and the window; 2 s when zero
	Rounds   int           // of each server at each load; 1 when zero
	Rate     float64       // sessions started a second; 200 when zero
	Timeout  time.Duration // for a session to be set up; 10 s when zero

	// Search, when not zero, looks for the most sessions, up to so many, that each
	// server plays without loss or lateness (Report.Capacity): upwards from the first
	// of Sessions, then between the best and the first that was too many.
	Search  int
	MaxLate time.Duration // of 999 of 1000 frames, for it; 20 ms when zero, which nobody sees

	Movies int  // how many a %d counts; as many as there are sessions when zero
	Spread bool // sessions start at positions spread over the movie, not at its begin

	// Verify is how many pairs of sessions are fully checked: both of a pair
	// start at the same place, and what they both got must be the same, octet by
	// octet. With Reference, a URL like the servers', the second of each pair
	// plays there instead, beside those that are counted.
	Verify    int
	Reference string

	// Direct is the URL of the live stream at the server behind: one session more,
	// that is not counted, plays there. How much later the sessions get each packet
	// is the delay added.
	Direct string

	Readers int           // threads that receive; one for every two CPUs when zero
	Gather  time.Duration // between two looks at the sockets; 10 ms when zero
	GRO     bool          // UDP receive offload on our sockets

	// Limits measures the kernel's own cost in the same run.
	Limits *LimitConfig

	// Progress, if any, is told now and then how it goes.
	Progress func(string)
}

const (
	maxSessions = 100_000
	openers     = 256 // sessions set up at once, at most
	tellEvery   = 500 * time.Millisecond
	searchTries = 2 // of a load in a search: a machine may hiccup once
)

// withDefaults checks the configuration and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	if n := len(c.Servers); n != 1 && n != 2 {
		return c, fmt.Errorf("%d servers: one can be measured, or two compared", n)
	}
	if len(c.Sessions) == 0 {
		return c, errors.New("no number of sessions")
	}
	for _, n := range c.Sessions {
		if n < 1 || n > maxSessions {
			return c, fmt.Errorf("%d sessions: 1 to %d are possible", n, maxSessions)
		}
	}
	if c.Search > maxSessions {
		return c, fmt.Errorf("a search up to %d sessions: 1 to %d are possible", c.Search, maxSessions)
	}
	if c.Search < 0 || c.Rate < 0 || c.Rounds < 0 || c.Movies < 0 || c.Verify < 0 || c.Readers < 0 || c.Duration < 0 || c.Settle < 0 || c.Gather < 0 {
		return c, errors.New("a negative number or time")
	}
	c.Duration = cmp.Or(c.Duration, 10*time.Second)
	c.Settle = cmp.Or(c.Settle, 2*time.Second)
	c.Rounds = cmp.Or(c.Rounds, 1)
	c.Rate = cmp.Or(c.Rate, 200)
	c.MaxLate = cmp.Or(c.MaxLate, 20*time.Millisecond)
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.Readers = cmp.Or(c.Readers, max(1, runtime.NumCPU()/2))
	c.Gather = cmp.Or(c.Gather, 10*time.Millisecond)
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	c.Servers = append([]Server(nil), c.Servers...)
	for i := range c.Servers {
		if err := c.Servers[i].complete(); err != nil {
			return c, err
		}
	}
	for _, u := range []string{c.Reference, c.Direct} {
		if u == "" {
			continue
		}
		if _, err := parseURL(u); err != nil {
			return c, err
		}
	}
	return c, nil
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(strings.ReplaceAll(s, "%d", "0"))
	if err != nil {
		return nil, err
	}
	if u.Scheme != "rtsp" || u.Hostname() == "" {
		return nil, fmt.Errorf("%s: an rtsp://host URL is wanted", u.Redacted())
	}
	return u, nil
}

// complete checks a server and finds its name and process.
func (s *Server) complete() error {
	u, err := parseURL(s.URL)
	if err != nil {
		return err
	}
	s.Name = cmp.Or(s.Name, u.Host)
	for _, pid := range s.Pids {
		if _, err := cpuTime(pid); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	if len(s.Pids) > 0 {
		return nil
	}
	ips, err := net.LookupIP(u.Hostname())
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	port, err := net.LookupPort("tcp", cmp.Or(u.Port(), "554"))
	if err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	for _, ip := range ips {
		a, _ := netip.AddrFromSlice(ip)
		// It may well run elsewhere: then there are no figures of its CPU.
		if pid, err := listener(netip.AddrPortFrom(a.Unmap(), uint16(port))); err == nil && pid != os.Getpid() {
			s.Pids = []int{pid}
			return nil
		}
	}
	return nil
}

// Measure measures. What it found until ctx ended comes with ctx's error.
func Measure(ctx context.Context, cfg Config) (*Report, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	rep := newReport(cfg)
	if cfg.Limits != nil {
		cfg.Progress("measuring what the kernel takes")
		if rep.Limits, err = Limits(ctx, *cfg.Limits); err != nil {
			return rep, fmt.Errorf("bench: limits: %w", err)
		}
	}
	bases := make([]foundation, len(cfg.Servers))
	for i, s := range cfg.Servers {
		bases[i].resident = resident(s.Pids)
	}
	if cfg.Search > 0 {
		for i := range cfg.Servers {
			if err := search(ctx, cfg, rep, cfg.Servers[i], bases[i]); err != nil {
				return rep, fmt.Errorf("bench: %s: %w", cfg.Servers[i].Name, err)
			}
		}
		return rep, nil
	}
	for _, n := range cfg.Sessions {
		runs := make([]*tally, len(cfg.Servers))
		for i := range runs {
			runs[i] = &tally{server: cfg.Servers[i], load: n, tcp: cfg.TCP, base: bases[i]}
			for _, l := range rep.Limits {
				if l.Name == LimitShared {
					runs[i].gbps = l.Gbps
				}
			}
		}
		for range cfg.Rounds {
			for i := range runs {
				if err := playRound(ctx, cfg, runs[i]); err != nil {
					return rep, fmt.Errorf("bench: %s: %w", cfg.Servers[i].Name, err)
				}
			}
		}
		for i, t := range runs {
			rep.add(t.result())
			if bases[i].sessions == 0 {
				bases[i] = foundation{t.resident, t.sessions}
			}
		}
	}
	return rep, nil
}

// search adds runs of a server until its most sessions are known to an eighth.
func search(ctx context.Context, cfg Config, rep *Report, s Server, base foundation) error {
	good, bad := 0, cfg.Search+1
	least := cfg.Sessions[0] / 8 // below that it must be something else
	for n := min(cfg.Sessions[0], cfg.Search); bad-good > 1 && n > least && (bad > cfg.Search || bad-good > bad/8); {
		var run Run
		fine := false
		for range searchTries {
			t := &tally{server: s, load: n, tcp: cfg.TCP, base: base}
			err := playRound(ctx, cfg, t)
			if ctx.Err() != nil {
				return err
			}
			run = t.result()
			if fine = err == nil && run.fine(rep.MaxLate); fine {
				break
			}
		}
		if rep.add(run); fine {
			good = n
		} else {
			bad = n
		}
		if n = (good + bad) / 2; bad > cfg.Search {
			n = min(good*3/2+1, cfg.Search)
		}
	}
	return nil
}

// playRound plays the sessions of one server once and adds what they saw to t.
func playRound(ctx context.Context, cfg Config, t *tally) error {
	var w window
	readers := make([]*reader, cfg.Readers)
	for i := range readers {
		var err error
		if readers[i], err = newReader(cfg.Gather, cfg.GRO, &w); err != nil {
			return err
		}
	}
	leave := make(chan struct{})
	var work sync.WaitGroup
	for _, r := range readers {
		work.Go(func() { r.run(leave) })
	}
	what := fmt.Sprintf("%s, %d sessions", t.server.Name, t.load)
	sessions := openAll(ctx, cfg, t, readers, what)
	err := ctx.Err()
	if err == nil && len(sessions) > 0 {
		err = observe(ctx, cfg, t, &w, readers, what)
	}
	close(leave)
	work.Wait()
	if err == nil {
		t.take(sessions, readers)
	}
	if err == nil && len(sessions) == 0 {
		err = fmt.Errorf("no session of %d could be set up: %s", t.load, t.complaint())
	}
	return err
}

// openAll sets up the sessions, at their rate, and gives them to the readers.
func openAll(ctx context.Context, cfg Config, t *tally, readers []*reader, what string) []*session {
	var mu sync.Mutex
	var sessions []*session
	var work sync.WaitGroup
	turn := make(chan struct{}, openers)
	next := time.Now()
	told := next
	for _, p := range plans(cfg, t) {
		wait := time.NewTimer(time.Until(next))
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
		next = next.Add(time.Duration(float64(time.Second) / cfg.Rate))
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		work.Go(func() {
			defer func() { <-turn }()
			ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
			defer cancel()
			s, err := open(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.fail(err)
				return
			}
			readers[p.index%len(readers)].add(s)
			sessions = append(sessions, s)
		})
		if now := time.Now(); now.Sub(told) > tellEvery {
			told = now
			cfg.Progress(fmt.Sprintf("%s: setting up, %d", what, p.index+1))
		}
	}
	work.Wait()
	return sessions
}

// plans says what each session plays. Those of a pair come first.
func plans(cfg Config, t *tally) []plan {
	movies := cmp.Or(cfg.Movies, t.load)
	room := cfg.Settle + cfg.Duration + time.Duration(float64(t.load)/cfg.Rate*float64(time.Second)) + 2*time.Second
	var all []plan
	for i := range t.load {
		pair := i
		if cfg.Reference == "" && i < 2*cfg.Verify {
			pair = i &^ 1
		}
		p := plan{index: i, pair: -1, url: numbered(t.server.URL, pair%movies), tcp: cfg.TCP, room: room}
		if cfg.Spread {
			_, p.spread = math.Modf(float64(pair) * math.Phi) // evenly spread, however many
		}
		switch {
		case cfg.Reference == "" && i < 2*min(cfg.Verify, t.load/2):
			p.full, p.pair = true, i/2
		case cfg.Reference != "" && i < cfg.Verify:
			p.full, p.pair = true, i
			twin := p
			twin.url, twin.extra = numbered(cfg.Reference, pair%movies), true
			all = append(all, twin)
		}
		p.each = cfg.Direct != ""
		all = append(all, p)
	}
	if cfg.Direct != "" {
		all = append(all, plan{index: t.load, pair: -1, url: cfg.Direct, tcp: cfg.TCP, room: room, each: true, extra: true})
	}
	return all
}

func numbered(url string, n int) string { return strings.ReplaceAll(url, "%d", fmt.Sprint(n)) }

// observe waits for the window to pass and notes what it took of the machine.
func observe(ctx context.Context, cfg Config, t *tally, w *window, readers []*reader, what string) error {
	if err := pass(ctx, cfg.Settle, func(time.Duration) { cfg.Progress(what + ": settling") }); err != nil {
		return err
	}
	before := sample(t.server.Pids)
	from := time.Now()
	w.to.Store(from.Add(cfg.Duration).UnixNano())
	w.from.Store(from.UnixNano())
	octets := total(readers)
	err := pass(ctx, cfg.Duration, func(left time.Duration) {
		gbps := float64(total(readers)-octets) * 8 / 1e9 / time.Since(from).Seconds()
		cfg.Progress(fmt.Sprintf("%s: %.2f Gbit/s, %d s left", what, gbps, int(left.Seconds()+.5)))
	})
	if err != nil {
		return err
	}
	t.spent(before, sample(t.server.Pids))
	// What waits in the sockets still came in the window.
	return pass(ctx, 2*cfg.Gather+20*time.Millisecond, func(time.Duration) {})
}

func total(readers []*reader) uint64 {
	var n uint64
	for _, r := range readers {
		n += r.octets.Load()
	}
	return n
}

// pass lets d pass and says now and then how much is left.
func pass(ctx context.Context, d time.Duration, tell func(left time.Duration)) error {
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	until := time.Now().Add(d)
	for {
		select {
		case <-end.C:
			return nil
		case now := <-tick.C:
			tell(until.Sub(now))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
