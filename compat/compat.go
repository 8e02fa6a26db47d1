// Package compat says whether a shim behaves as the server behind it. The
// same scripted conversations are held with both, and everything a client can
// see is compared: signalling byte for byte, packets one by one, and when
// they came. It judges from outside, with gortsplib and pion, and shares no
// code with what it judges.
//
//	script   the conversations, one readable file each
//	talk     holds one and records what is seen
//	judge    compares recordings: same, allowed (and by which rule), different
//	report   the table, JSON and HTML
//
// Every point is held three times at once: twice with the upstream and once
// with the shim. What differs between the two direct runs varies by itself
// and cannot count. A point found different is held again, alone on the
// machine, before it is reported.
package compat

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"rtspshim/compat/judge"
	"rtspshim/compat/script"
	"rtspshim/compat/talk"
)

// Config says what to compare. Zeros are useful; Upstream and Shim must be set.
type Config struct {
	Upstream string // rtsp:// or rtsps:// URL of a stream, served directly
	Shim     string // the same stream through the shim; the path may be left out

	Credentials *url.Userinfo
	Publish     string // path that may be published to, "" leaves those points out

	Scripts  []*script.Script // the user's own, besides the built-in points
	Only     []string         // names (with * and ?) or tags; empty: all
	Skip     []string
	Slow     bool     // time-outs and long runs too: minutes
	Risky    bool     // points that are known to crash some servers, too
	Clients  []string // of "ffmpeg", "gstreamer", "vlc"; nil: those installed
	Parallel int      // points at a time; 4
	Again    int      // how often a point found different is held again, at most: until it is clear; 5, negative: never
	Bounds   talk.Bounds

	Progress func(done, total int, name string) // may be nil; called from one goroutine at a time
}

// Point is one compared conversation.
type Point struct {
	Name     string          `json:"name"`
	About    string          `json:"about"`
	Tags     []string        `json:"tags"`
	Verdict  judge.Verdict   `json:"verdict"`
	Note     string          `json:"note,omitempty"` // why it was not run
	Findings []judge.Finding `json:"findings,omitempty"`
	Rounds   int             `json:"rounds"`
	Seconds  float64         `json:"seconds"`

	Script string          `json:"-"`
	Direct *talk.Recording `json:"-"` // of the last round
	Shim   *talk.Recording `json:"-"`
}

// Result of a comparison.
type Result struct {
	Upstream string    `json:"upstream"`
	Shim     string    `json:"shim"`
	Kind     string    `json:"kind"` // movie or live
	Server   string    `json:"server"`
	Began    time.Time `json:"began"`
	Seconds  float64   `json:"seconds"`
	Machine  []string  `json:"machine"`
	Points   []Point   `json:"points"`
}

// Count is the number of points with that verdict.
func (r *Result) Count(v judge.Verdict) int {
	n := 0
	for _, p := range r.Points {
		if p.Verdict == v {
			n++
		}
	}
	return n
}

// OK says that nothing was different, and that something was compared.
func (r *Result) OK() bool {
	return r.Count(judge.Different) == 0 && r.Count(judge.Same)+r.Count(judge.Allowed) > 0
}

// run is a comparison under way.
type run struct {
	Config
	upstream, shim talk.Target
	kind           string
	alone          sync.RWMutex // held for writing by what must have the machine to itself
	progress       sync.Mutex
	done, total    int
	lost           error // the upstream could not be talked to
	gone           bool  // ... and not any more: no use to go on
	holding        sync.WaitGroup
}

// lose notes at which point the upstream was first found gone, and whether it
// has gone for good.
func (r *run) lose(ctx context.Context, point, why string) {
	_, _, err := r.describe(ctx, r.upstream)
	r.progress.Lock()
	defer r.progress.Unlock()
	if r.lost == nil {
		r.lost = fmt.Errorf("the upstream stopped answering at %s: %s", point, why)
	}
	r.gone = r.gone || err != nil
}

// Run compares. The error is for a configuration that makes no sense or an
// upstream that cannot be reached, or not any more (then with the Result so
// far); what the shim does wrong is in the Result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	r := &run{Config: cfg}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	result := &Result{Upstream: r.upstream.URL, Shim: r.shim.URL, Began: time.Now(), Machine: machine()}
	holding, letGo := context.WithCancel(ctx)
	defer r.holding.Wait()
	defer letGo()
	if err := r.look(holding, result); err != nil {
		return nil, err
	}
	scripts, err := script.Points()
	if err != nil {
		return nil, fmt.Errorf("built-in points: %w", err)
	}
	jobs := r.conversations(append(scripts, cfg.Scripts...))
	jobs = append(jobs, r.players()...)
	result.Points = r.all(ctx, jobs)
	result.Seconds = time.Since(result.Began).Seconds()
	return result, errors.Join(ctx.Err(), r.lost)
}

func (r *run) prepare() error {
	if r.Parallel <= 0 {
		r.Parallel = 4
	}
	if r.Again == 0 {
		r.Again = 5
	}
	up, err := checkURL("upstream", r.Upstream)
	if err != nil {
		return err
	}
	shim, err := checkURL("shim", r.Shim)
	if err != nil {
		return err
	}
	if strings.Trim(shim.Path, "/") == "" {
		shim.Path, shim.RawQuery = up.Path, up.RawQuery
	}
	if r.Credentials == nil {
		r.Credentials = up.User
	}
	up.User, shim.User = nil, nil
	r.upstream = talk.Target{URL: up.String(), User: r.Credentials, Publish: r.publishURL(up)}
	r.shim = talk.Target{URL: shim.String(), User: r.Credentials, Publish: r.publishURL(shim)}
	return nil
}

func checkURL(what, text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s URL: %w", what, err)
	}
	if u.Scheme != "rtsp" && u.Scheme != "rtsps" || u.Host == "" {
		return nil, fmt.Errorf("%s URL %q: want rtsp://host:port/path", what, text)
	}
	return u, nil
}

func (r *run) publishURL(at *url.URL) string {
	if r.Publish == "" {
		return ""
	}
	u := *at
	u.Path, u.RawQuery = "/"+strings.TrimPrefix(r.Publish, "/"), ""
	return u.String()
}

// look asks the upstream what the stream is.
func (r *run) look(ctx context.Context, result *Result) error {
	last, duration, err := r.describe(ctx, r.upstream)
	if err != nil {
		return err
	}
	if last.Status() != 200 {
		return fmt.Errorf("upstream: DESCRIBE %s: %s", r.upstream.URL, outcome(last))
	}
	result.Server = last.Answer.Value("Server")
	r.kind = "live"
	if duration > 0 {
		r.kind = "movie"
	}
	result.Kind = r.kind
	if r.kind == "live" {
		return r.sameName(ctx)
	}
	return nil
}

// sameName lets direct runs name a live stream as it is named through the shim,
// if the upstream does not mind: gst-rtsp-server shares a stream only among those
// who call it by the same host and port, and what is live must be the same
// stream to be compared. The shim's clients call it by the shim's; a shim that
// rewrites hosts, by the upstream's. It is held from then on until ctx ends.
func (r *run) sameName(ctx context.Context) error {
	named := r.upstream
	u, err := url.Parse(r.upstream.URL)
	if err != nil {
		return err
	}
	named.URL, named.Publish, named.Connect = r.shim.URL, r.shim.Publish, u.Host
	if u.Port() == "" {
		named.Connect += map[bool]string{true: ":322", false: ":554"}[u.Scheme == "rtsps"]
	}
	if shim, err := url.Parse(r.shim.URL); err != nil || shim.Scheme != u.Scheme || shim.Path != u.Path {
		named = r.upstream
	}
	r.holding.Go(func() { r.hold(ctx, named) }) // first: the one below lets go of it
	last, _, err := r.describe(ctx, named)
	if err != nil {
		return err
	}
	if last.Status() == 200 && r.isShims(ctx, named) {
		r.upstream = named
		return nil
	}
	r.holding.Go(func() { r.hold(ctx, r.upstream) })
	if last.Status() == 200 && !r.isShims(ctx, r.upstream) {
		r.upstream = named // neither is: as the shim's clients do
	}
	return nil
}

// sameTries is how often a stream is looked at that changes from one answer to
// the next: it is made anew for each, until it is held.
const sameTries = 5

// isShims says whether the stream that direct runs get by this name is the shim's:
// whether it is described by the same lines, o= aside (RFC 8866 5.2).
func (r *run) isShims(ctx context.Context, t talk.Target) bool {
	for range sameTries {
		var lines [3]string
		for i, t := range []talk.Target{t, r.shim, t} {
			last, _, err := r.describe(ctx, t)
			if err != nil || last.Status() != 200 {
				return false
			}
			for line := range strings.Lines(string(last.Answer.Body)) {
				if !strings.HasPrefix(line, "o=") {
					lines[i] += line
				}
			}
		}
		if lines[0] == lines[2] {
			return lines[0] == lines[1]
		}
	}
	return false
}

// hold keeps a live stream at hand. Some upstreams make it for the first who
// asks and take it down behind the last: points would be held with one being
// made or, as gst-rtsp-server 1.22 does when somebody comes meanwhile, crash it.
func (r *run) hold(ctx context.Context, t talk.Target) {
	const often = "> DESCRIBE {url}\n> Accept: application/sdp\nagain 200\nlisten 10s\n> OPTIONS {url}\ndone\n"
	if s, err := script.Parse("hold", []byte(often)); err == nil {
		talk.Run(ctx, s, t, r.Bounds)
	}
}

// describe returns the answer to a DESCRIBE and the duration of the movie.
func (r *run) describe(ctx context.Context, t talk.Target) (*talk.Exchange, float64, error) {
	s, err := script.Parse("look", []byte("> DESCRIBE {url}\n> Accept: application/sdp\n"))
	if err != nil {
		return nil, 0, err
	}
	rec := talk.Run(ctx, s, t, r.Bounds)
	if rec.Failure != "" {
		return nil, 0, fmt.Errorf("upstream: %s", rec.Failure)
	}
	return rec.Exchanges[len(rec.Exchanges)-1], rec.Duration, nil
}

func outcome(e *talk.Exchange) string {
	if e.Answer != nil {
		return e.Answer.First
	}
	return string(e.Outcome)
}

// job is a point to be compared.
type job struct {
	point Point
	alone bool
	run   func(ctx context.Context, p *Point)
}

// conversations makes jobs of scripts, those not chosen left out and those
// that cannot be held marked.
func (r *run) conversations(scripts []*script.Script) []job {
	var jobs []job
	for _, s := range scripts {
		if !r.Chosen(s.Name, s.Tags) {
			continue
		}
		j := job{alone: s.Has("alone"), point: Point{Name: s.Name, About: s.About, Tags: s.Tags, Script: s.Text, Verdict: judge.NotRun}}
		switch {
		case (s.Has("movie") || s.Has("live")) && !s.Has(r.kind):
			continue
		case s.Has("slow") && !r.Slow && !slices.Contains(r.Only, s.Name):
			j.point.Note = "takes minutes: --slow"
		case (s.Has("risky") || s.Has("risky-"+r.kind)) && !r.Risky && !slices.Contains(r.Only, s.Name):
			j.point.Note = "is known to crash some servers: --risky"
		case s.Has("auth") && r.Credentials == nil:
			j.point.Note = "needs --credentials"
		case s.Has("publish") && r.Publish == "":
			j.point.Note = "needs --publish"
		default:
			j.run = func(ctx context.Context, p *Point) { r.converse(ctx, s, p) }
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// Chosen says whether a point is among those to be compared.
func (r *Config) Chosen(name string, tags []string) bool {
	match := func(list []string) bool {
		return slices.ContainsFunc(list, func(pattern string) bool {
			return slices.Contains(tags, pattern) || matches(pattern, name)
		})
	}
	return (len(r.Only) == 0 || match(r.Only)) && !match(r.Skip)
}

// all runs the jobs: those that may share the machine side by side, then the
// others one by one. Points come back in the order of the jobs.
func (r *run) all(ctx context.Context, jobs []job) []Point {
	r.total = len(jobs)
	var group sync.WaitGroup
	tokens := make(chan struct{}, r.Parallel)
	for i := range jobs {
		if jobs[i].alone || jobs[i].run == nil {
			continue
		}
		tokens <- struct{}{}
		group.Go(func() {
			r.one(ctx, &jobs[i])
			<-tokens
		})
	}
	group.Wait()
	for i := range jobs {
		if jobs[i].alone || jobs[i].run == nil {
			r.one(ctx, &jobs[i])
		}
	}
	points := make([]Point, len(jobs))
	for i := range jobs {
		points[i] = jobs[i].point
	}
	return points
}

func (r *run) one(ctx context.Context, j *job) {
	r.progress.Lock()
	gone := r.gone
	r.progress.Unlock()
	switch {
	case j.run == nil:
	case ctx.Err() != nil:
		j.point.Note = "interrupted"
	case gone:
		j.point.Note = "the upstream had stopped answering"
	default:
		began := time.Now()
		j.run(ctx, &j.point)
		j.point.Seconds = time.Since(began).Seconds()
	}
	r.progress.Lock()
	defer r.progress.Unlock()
	r.done++
	if r.Progress != nil {
		r.Progress(r.done, r.total, j.point.Name)
	}
}

// converse holds one point and judges it.
func (r *run) converse(ctx context.Context, s *script.Script, p *Point) {
	r.alone.RLock()
	rounds := []judge.Round{r.round(ctx, s, 0, 0)}
	r.alone.RUnlock()
	findings := judge.Judge(rounds)
	for len(rounds) <= r.Again && !judge.Settled(findings, len(rounds)) && ctx.Err() == nil {
		r.alone.Lock()
		rounds = append(rounds, r.round(ctx, s, late, len(rounds)))
		r.alone.Unlock()
		findings = judge.Judge(rounds)
	}
	last := rounds[len(rounds)-1]
	if a, b := last.Direct[0].Failure, last.Direct[1].Failure; a != "" && b != "" {
		p.Note = "with the upstream: " + a
		r.lose(ctx, p.Name, a)
		return
	}
	p.Rounds, p.Findings, p.Direct, p.Shim = len(rounds), findings, last.Direct[0], last.Shim
	p.Verdict = judge.Worst(findings)
	if ctx.Err() != nil {
		p.Verdict, p.Note, p.Findings = judge.NotRun, "interrupted", nil
	}
}

// late is how much longer requests take to the upstream in one of two direct runs
// of a round held again. A request on its way through anything arrives that much
// later, and may meet the server on the other side of its next packet: what
// depends on so little is nobody's doing.
const late = 2 * time.Millisecond

// round holds the conversation with the upstream, the shim and the upstream
// again, late by so much: at the same time, or one after the other if they would
// disturb each other. Who goes first takes turns: a server that loses a packet of
// the last of three who pause at once would always lose the same one's.
func (r *run) round(ctx context.Context, s *script.Script, late time.Duration, turn int) judge.Round {
	targets := []talk.Target{r.upstream, r.shim, r.upstream}
	targets[2].Late = late
	recs := make([]*talk.Recording, len(targets))
	if s.Has("alone") {
		for n := range targets {
			i := (n + turn) % len(targets)
			recs[i] = talk.Run(ctx, s, targets[i], r.Bounds)
		}
	} else {
		var group sync.WaitGroup
		for n := range targets {
			i := (n + turn) % len(targets)
			group.Go(func() { recs[i] = talk.Run(ctx, s, targets[i], r.Bounds) })
		}
		group.Wait()
	}
	return judge.Round{Direct: []*talk.Recording{recs[0], recs[2]}, Shim: recs[1]}
}
