package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"rtspshim/demo"
	"rtspshim/engine"
	"rtspshim/engine/hint"
	"rtspshim/intercept"
	"rtspshim/proxy"
	"rtspshim/testdata/hinted"
)

var demoCommand = &cli.Command{
	Name:  "demo",
	Usage: "show it: a server, the shim in front of it, and viewers, in one process",
	UsageText: "shim demo [--movies DIR] [--once]\n\n" +
		"Plays a movie and an endless live stream of it, directly and through the shim, over UDP and TCP,\n" +
		"and says whether both came out the same. Then it stays up for players of your own.",
	Flags: []cli.Flag{
		&cli.PathFlag{Name: "movies", Usage: "play the hinted movies of `DIR` instead of our own"},
		&cli.StringFlag{Name: "listen", Value: "127.0.0.1:8554", Usage: "address of the shim; the next best port when 8554 is taken"},
		&cli.DurationFlag{Name: "play", Value: 3 * time.Second, Usage: "how long each play is"},
		&cli.BoolFlag{Name: "once", Usage: "end after the plays; the exit status says whether all were the same"},
		&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "debug, info, warn, error"},
	},
	Action: func(c *cli.Context) error {
		ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		logger, err := newLogger(c.String("log-level"), false)
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", c.String("listen"))
		if errors.Is(err, syscall.EADDRINUSE) && !c.IsSet("listen") {
			ln, err = net.Listen("tcp", "127.0.0.1:0")
		}
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		dir, remove, err := movieFolder(c.Path("movies"))
		if err != nil {
			return errors.Join(err, ln.Close())
		}
		d := &demonstration{out: c.App.Writer, log: logger, dir: dir, length: c.Duration("play"), once: c.Bool("once")}
		return errors.Join(d.run(ctx, ln), remove())
	},
}

// movieFolder returns the folder of the movies: the one named, or one with our
// own, which remove removes.
func movieFolder(named string) (dir string, remove func() error, err error) {
	if named != "" {
		return named, func() error { return nil }, nil
	}
	if dir, err = os.MkdirTemp("", "shim-demo-"); err != nil {
		return "", nil, fmt.Errorf("folder for the movies: %w", err)
	}
	remove = func() error { return os.RemoveAll(dir) }
	if err = os.CopyFS(dir, hinted.Movies); err != nil {
		return "", nil, errors.Join(fmt.Errorf("write the movies: %w", err), remove())
	}
	return dir, remove, nil
}

// hintedMovies lists the movies of a folder that can be played, those with the
// most tracks first.
func hintedMovies(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("movies: %w", err)
	}
	var names []string
	tracks := map[string]int{}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if f, err := hint.Open(filepath.Join(dir, e.Name())); err == nil {
			if tracks[e.Name()] = len(f.HintTracks()); tracks[e.Name()] > 0 {
				names = append(names, e.Name())
			}
			_ = f.Close()
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no hinted movie in %s; make one with: ffmpeg -i MOVIE -c copy -movflags rtphint HINTED.mp4", dir)
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(tracks[b], tracks[a]) })
	return names, nil
}

// demonstration is one run of the demo.
type demonstration struct {
	out    io.Writer
	log    *slog.Logger
	dir    string // of the movies
	length time.Duration
	once   bool

	upstream *demo.Server
	shim     string // host:port
	sessions *intercept.Interceptor
}

// run starts the server and the shim, plays, and stays up.
func (d *demonstration) run(ctx context.Context, ln net.Listener) (err error) {
	movies, err := hintedMovies(d.dir)
	if err == nil {
		d.upstream, err = demo.Start(demo.Config{Movies: os.DirFS(d.dir), Logger: d.log})
	}
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer func() { err = errors.Join(err, d.upstream.Close()) }()

	ctx, stop := context.WithCancel(ctx)
	ready, served := make(chan struct{}), make(chan error, 1)
	go func() {
		cfg := proxy.Config{Upstream: &url.URL{Scheme: "rtsp", Host: d.upstream.Addr()}, Logger: d.log}
		movies := intercept.Config{Movies: intercept.Movies{Dir: d.dir}, Logger: d.log}
		served <- serve(ctx, ln, cfg, movies, engine.Config{Gather: engine.DefaultGather, Logger: d.log},
			func(i *intercept.Interceptor) { d.sessions = i; close(ready) })
	}()
	select {
	case <-ready:
	case err := <-served:
		stop()
		return err
	}
	d.shim = ln.Addr().String()
	err = d.show(ctx, movies)
	if err == nil && !d.once {
		select {
		case <-ctx.Done():
		case err := <-served:
			stop()
			return err
		}
	}
	stop()
	return errors.Join(err, <-served)
}

// show plays the first movie and prints what came of it.
func (d *demonstration) show(ctx context.Context, movies []string) error {
	d.printf("A server on %s, the shim in front of it on %s.\n", d.upstream.Addr(), d.shim)
	d.printf("Playing %s for %v, directly and through the shim, all at once.\n\n", movies[0], d.length)
	rows := []row{{path: "/" + movies[0]}, {path: "/" + movies[0], tcp: true},
		{path: "/live/" + movies[0]}, {path: "/live/" + movies[0], tcp: true}}
	var work sync.WaitGroup
	for i := range rows {
		work.Go(func() { d.play(ctx, &rows[i]) })
	}
	work.Wait()
	if ctx.Err() != nil {
		return nil //nolint:nilerr // interrupted, as it is meant to be
	}
	bad := d.table(rows)
	if !d.once {
		d.printf("\nThe shim stays up; try ffplay or VLC (Ctrl-C ends it):\n")
		w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
		for _, m := range movies {
			_, _ = fmt.Fprintf(w, "  %s\t%s\n", streamURL(d.shim, "/"+m), streamURL(d.shim, "/live/"+m))
		}
		_ = w.Flush()
	}
	if bad > 0 {
		err := fmt.Errorf("%d of %d plays through the shim differ from the direct ones", bad, len(rows))
		if d.once {
			return err
		}
		d.log.Error("demo", "err", err)
	}
	return nil
}

func streamURL(addr, path string) string {
	return (&url.URL{Scheme: "rtsp", Host: addr, Path: path}).String()
}

func (d *demonstration) printf(format string, a ...any) { _, _ = fmt.Fprintf(d.out, format, a...) }

// row is one play through the shim beside a direct one.
type row struct {
	path            string // of the URL
	tcp             bool
	direct, through demo.Recording
	by              string // how the media took their way through the shim
	upstream        uint64 // packets the upstream sent for it
	err             error  // why they are not the same
}

// play plays directly and through the shim at the same time.
func (d *demonstration) play(ctx context.Context, r *row) {
	r.by = "?"
	addrs := [...]string{d.upstream.Addr(), d.shim}
	var players [len(addrs)]*demo.Player
	var errs [len(addrs)]error
	var work sync.WaitGroup
	for i, addr := range addrs {
		work.Go(func() {
			if players[i], errs[i] = demo.OpenPlayer(streamURL(addr, r.path), r.tcp); errs[i] == nil {
				_, errs[i] = players[i].Play(0)
			}
		})
	}
	work.Wait()
	for _, p := range players {
		if p != nil {
			defer p.Close()
		}
	}
	if r.err = errors.Join(errs[:]...); r.err != nil {
		return
	}
	over := time.NewTimer(d.length) // both are playing
	defer over.Stop()
	select {
	case <-over.C:
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	r.direct, errs[0] = players[0].Await(ctx, enough)
	r.through, errs[1] = players[1].Await(ctx, enough)
	if r.err = errors.Join(errs[:]...); r.err == nil {
		r.err = r.direct.Same(r.through, 1)
	}
	d.look(r, players[1].Session())
}

// demoPatience is what a play may be longer on a busy machine, to have enough to
// compare.
const demoPatience = 10 * time.Second

func enough(r demo.Recording) bool {
	return !slices.ContainsFunc(r, func(track []demo.Packet) bool { return len(track) < 4 })
}

// look notes by which way the media of a session came.
func (d *demonstration) look(r *row, session string) {
	for _, s := range d.sessions.Status() {
		if s.ID != session {
			continue
		}
		switch r.by = s.Path; {
		case s.Took > 0:
			r.by += fmt.Sprintf(", after %.2f s", s.Took.Seconds())
		case s.Why != "":
			r.by += ": " + s.Why
		}
	}
	for _, s := range d.upstream.Sessions() {
		if s.ID == session {
			r.upstream = s.Packets
		}
	}
}

// table prints the rows and returns how many are not as they should be.
func (d *demonstration) table(rows []row) (bad int) {
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "played\tover\tpath\tpackets direct\tthrough the shim\tsent by the server\tthe same")
	for _, r := range rows {
		over, same := "udp", "yes"
		if r.tcp {
			over = "tcp"
		}
		if r.err != nil {
			bad++
			same = "NO: " + r.err.Error()
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", r.path, over, r.by, r.direct.Packets(), r.through.Packets(), r.upstream, same)
	}
	_ = w.Flush()
	return bad
}
