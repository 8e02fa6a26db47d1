package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"rtspshim/bench"
)

var benchCommand = &cli.Command{
	Name:  "bench",
	Usage: "measure a server: what it delivers, when, and what it costs it",
	UsageText: "shim bench [flags] URL\n" +
		"shim bench [flags] --vs URL2 URL     two servers by turns, and the ratios\n" +
		"shim bench limit [flags]             what the kernel alone takes for the same\n\n" +
		"A %d in the URL counts: rtsp://host/movie%d.mp4 plays movie0.mp4, movie1.mp4, …",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "sessions", Aliases: []string{"n"}, Value: "1", Usage: "how many, or several loads in turn: 1,100,500"},
		&cli.IntFlag{Name: "search", Usage: "look for the most sessions, from --sessions up to `N`, without loss and with 999 of 1000 frames at most 20 ms late"},
		&cli.StringFlag{Name: "transport", Value: "udp", Usage: "udp, or tcp (interleaved)"},
		&cli.DurationFlag{Name: "duration", Value: 10 * time.Second, Usage: "time measured at each load"},
		&cli.DurationFlag{Name: "settle", Value: 2 * time.Second, Usage: "time before it, with all sessions playing"},
		&cli.IntFlag{Name: "rounds", Value: 1, Usage: "of each server at each load"},
		&cli.Float64Flag{Name: "rate", Value: 200, Usage: "sessions started a second"},
		&cli.DurationFlag{Name: "timeout", Value: 10 * time.Second, Usage: "for a session to be set up"},
		&cli.IntFlag{Name: "movies", Usage: "how many the %d counts; 0: one for each session"},
		&cli.BoolFlag{Name: "spread", Usage: "start the sessions at positions all over the movie"},
		&cli.StringFlag{Name: "pid", Usage: "the server's processes, 12,34; without it, the one that listens on the URL's port"},
		&cli.StringFlag{Name: "name", Usage: "of the server, in the report"},
		&cli.StringFlag{Name: "vs", Usage: "`URL` of a second server, measured by turns with the first"},
		&cli.StringFlag{Name: "pid2", Usage: "its processes"},
		&cli.StringFlag{Name: "name2", Usage: "its name"},
		&cli.IntFlag{Name: "verify", Usage: "`pairs` of sessions that are compared packet by packet"},
		&cli.StringFlag{Name: "reference", Usage: "`URL` that the second session of each pair plays"},
		&cli.IntFlag{Name: "readers", Usage: "threads that receive; 0: one for every two CPUs"},
		&cli.DurationFlag{Name: "gather", Value: 10 * time.Millisecond, Usage: "time between two looks at the sockets; arrival is told by the kernel"},
		&cli.BoolFlag{Name: "gro", Usage: "UDP receive offload on the bench's sockets"},
		&cli.BoolFlag{Name: "limit", Usage: "measure the limits first, and the results by them"},
		&cli.PathFlag{Name: "json", Usage: "write the report to `FILE` as JSON, - for the terminal"},
		&cli.PathFlag{Name: "svg", Usage: "draw the figures over the load into `DIR`"},
	},
	Subcommands: []*cli.Command{benchLimitCommand},
	Action:      benchAction,
}

func benchAction(c *cli.Context) error {
	cfg, err := benchConfig(c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	tell, clean := benchProgress(os.Stderr)
	cfg.Progress = tell
	report, err := bench.Measure(ctx, cfg)
	clean()
	if report == nil {
		return err
	}
	return errors.Join(err, writeReport(c, report))
}

func benchConfig(c *cli.Context) (bench.Config, error) {
	cfg := bench.Config{
		Duration: c.Duration("duration"), Settle: c.Duration("settle"), Rounds: c.Int("rounds"), Rate: c.Float64("rate"),
		Timeout: c.Duration("timeout"), Search: c.Int("search"), Movies: c.Int("movies"), Spread: c.Bool("spread"), Verify: c.Int("verify"),
		Reference: c.String("reference"), Readers: c.Int("readers"), Gather: c.Duration("gather"), GRO: c.Bool("gro"),
	}
	if c.NArg() != 1 {
		return cfg, fmt.Errorf("one URL is wanted, after the flags; there are %d arguments", c.NArg())
	}
	switch c.String("transport") {
	case "udp":
	case "tcp":
		cfg.TCP = true
	default:
		return cfg, fmt.Errorf("transport %q: udp or tcp", c.String("transport"))
	}
	var err error
	if cfg.Sessions, err = numbers(c.String("sessions")); err != nil {
		return cfg, fmt.Errorf("sessions: %w", err)
	}
	for _, s := range [][3]string{{"name", c.Args().First(), "pid"}, {"name2", c.String("vs"), "pid2"}} {
		if s[1] == "" {
			continue
		}
		pids, err := numbers(c.String(s[2]))
		if err != nil {
			return cfg, fmt.Errorf("%s: %w", s[2], err)
		}
		cfg.Servers = append(cfg.Servers, bench.Server{Name: c.String(s[0]), URL: s[1], Pids: pids})
	}
	if c.Bool("limit") {
		cfg.Limits = &bench.LimitConfig{GRO: cfg.GRO}
	}
	return cfg, nil
}

// numbers reads "1,100,500".
func numbers(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var all []int
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number from 1", f)
		}
		all = append(all, n)
	}
	return all, nil
}

func writeReport(c *cli.Context, r *bench.Report) error {
	if c.Path("json") == "-" {
		return r.WriteJSON(os.Stdout)
	}
	err := r.WriteText(os.Stdout)
	if path := c.Path("json"); path != "" {
		err = errors.Join(err, toFile(path, r.WriteJSON))
	}
	if dir := c.Path("svg"); dir != "" {
		err = errors.Join(err, os.MkdirAll(dir, 0o755))
		for _, p := range r.Plots() {
			err = errors.Join(err, toFile(filepath.Join(dir, p.Name+".svg"), p.WriteSVG))
		}
	}
	return err
}

func toFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// benchProgress shows a line that is written over, if f is a terminal, and what
// takes it away.
func benchProgress(f *os.File) (tell func(string), clean func()) {
	if s, err := f.Stat(); err != nil || s.Mode()&os.ModeCharDevice == 0 {
		return nil, func() {}
	}
	return func(s string) { fmt.Fprintf(f, "\r\x1b[K%s", s) }, func() { fmt.Fprint(f, "\r\x1b[K") }
}

var benchLimitCommand = &cli.Command{
	Name:  "limit",
	Usage: "raw loops that send RTP packets from memory, and raw disk reads: what no server can do better",
	Flags: []cli.Flag{
		&cli.DurationFlag{Name: "duration", Value: time.Second, Usage: "of each loop"},
		&cli.IntFlag{Name: "destinations", Value: 100, Usage: "sockets, or connections, of our own that receive"},
		&cli.IntFlag{Name: "packet", Value: 1412, Usage: "octets of an RTP packet"},
		&cli.BoolFlag{Name: "gro", Usage: "UDP receive offload on the sockets that receive"},
		&cli.IntFlag{Name: "segments", Value: 14, Usage: "packets of one GSO send"},
		&cli.Float64Flag{Name: "pace", Value: 1, Usage: "of the paced loop: `GBIT/S`"},
		&cli.IntFlag{Name: "paced-run", Value: 7, Usage: "packets of one GSO send of it"},
		&cli.DurationFlag{Name: "slot", Value: time.Millisecond, Usage: "how often it sends what is due"},
		&cli.PathFlag{Name: "dir", Value: os.TempDir(), Usage: "where the file to read is made and removed; empty for none"},
	},
	Action: func(c *cli.Context) error {
		ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		all, err := bench.Limits(ctx, bench.LimitConfig{Duration: c.Duration("duration"), Destinations: c.Int("destinations"),
			Packet: c.Int("packet"), Segments: c.Int("segments"), GRO: c.Bool("gro"), Dir: c.Path("dir"),
			Pace: c.Float64("pace"), PacedRun: c.Int("paced-run"), Slot: c.Duration("slot")})
		return errors.Join(err, bench.WriteLimits(os.Stdout, all))
	},
}
