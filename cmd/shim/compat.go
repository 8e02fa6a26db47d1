package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"rtspshim/compat"
	"rtspshim/compat/report"
	"rtspshim/compat/script"
	"rtspshim/compat/talk"
)

var compatCommand = &cli.Command{
	Name:      "compat",
	Usage:     "say whether a shim behaves as the server behind it",
	ArgsUsage: "UPSTREAM_URL SHIM_URL",
	UsageText: "shim compat [options] rtsp://server:554/movie.mp4 rtsp://shim:8554\n\n" +
		"Holds the same conversations with both and compares everything a client can see. The path of\n" +
		"SHIM_URL may be left out. Exit status: 0 nothing different, 1 something different, 2 not compared.",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "credentials", EnvVars: []string{"SHIM_COMPAT_CREDENTIALS"}, Usage: "`USER:PASSWORD` for servers that ask"},
		&cli.StringFlag{Name: "publish", Usage: "`PATH` that may be published to; without it those points are left out"},
		&cli.StringSliceFlag{Name: "script", Usage: "one more point, from `FILE`.rtsp"},
		&cli.StringSliceFlag{Name: "only", Usage: "only points of this `NAME` (* and ? allowed) or tag"},
		&cli.StringSliceFlag{Name: "skip", Usage: "not points of this `NAME` or tag"},
		&cli.BoolFlag{Name: "slow", Usage: "time-outs and long runs too: several minutes more"},
		&cli.BoolFlag{Name: "risky", Usage: "points that are known to crash some servers, too"},
		&cli.StringSliceFlag{Name: "client", Usage: "real `PLAYER` to use: ffmpeg, gstreamer, vlc, none (default: those installed)"},
		&cli.IntFlag{Name: "parallel", Value: 4, Usage: "points at a time"},
		&cli.IntFlag{Name: "again", Value: 5, Usage: "how often a point found different is held again, at most, until it is clear; -1 for never"},
		&cli.DurationFlag{Name: "answer-timeout", Value: 3 * time.Second, Usage: "how long to wait for an answer"},
		&cli.DurationFlag{Name: "point-timeout", Value: time.Minute, Usage: "bound of one conversation, listening not counted"},
		&cli.BoolFlag{Name: "json", Usage: "write JSON instead of the table"},
		&cli.PathFlag{Name: "html", Usage: "write a page with transcripts and pictures of pacing to `FILE`"},
		&cli.BoolFlag{Name: "all", Usage: "list what is allowed, too"},
		&cli.BoolFlag{Name: "list", Usage: "list the points and stop"},
		&cli.BoolFlag{Name: "show", Usage: "print the scripts of the points chosen and stop"},
		&cli.BoolFlag{Name: "quiet", Usage: "no progress bar"},
	},
	Action: runCompat,
}

// statusNotCompared is the exit status when no verdict was reached.
const statusNotCompared = 2

func runCompat(c *cli.Context) error {
	cfg, err := compatConfig(c)
	if err != nil {
		return cli.Exit("shim compat: "+err.Error(), statusNotCompared)
	}
	if c.Bool("list") || c.Bool("show") {
		return listPoints(c.App.Writer, cfg, c.Bool("show"))
	}
	if c.NArg() != 2 {
		return cli.Exit("shim compat: want UPSTREAM_URL and SHIM_URL", statusNotCompared)
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if !c.Bool("quiet") && term.IsTerminal(int(os.Stderr.Fd())) {
		cfg.Progress = progress()
	}
	result, err := compat.Run(ctx, cfg)
	if result == nil {
		return cli.Exit("shim compat: "+err.Error(), statusNotCompared)
	}
	if err := writeCompat(c, result); err != nil {
		return cli.Exit("shim compat: "+err.Error(), statusNotCompared)
	}
	switch {
	case err != nil:
		return cli.Exit("shim compat: "+err.Error(), statusNotCompared)
	case !result.OK():
		return cli.Exit("", 1)
	}
	return nil
}

func compatConfig(c *cli.Context) (compat.Config, error) {
	cfg := compat.Config{
		Upstream: c.Args().Get(0), Shim: c.Args().Get(1),
		Publish: c.String("publish"), Only: c.StringSlice("only"), Skip: c.StringSlice("skip"), Slow: c.Bool("slow"), Risky: c.Bool("risky"),
		Parallel: c.Int("parallel"), Again: c.Int("again"),
		Bounds: talk.Bounds{Answer: c.Duration("answer-timeout"), Point: c.Duration("point-timeout")},
	}
	if cfg.Again == 0 {
		cfg.Again = -1
	}
	if text := c.String("credentials"); text != "" {
		user, password, ok := strings.Cut(text, ":")
		if !ok {
			return cfg, errors.New("--credentials: want USER:PASSWORD")
		}
		cfg.Credentials = url.UserPassword(user, password)
	}
	if c.IsSet("client") {
		cfg.Clients = []string{}
		for _, name := range c.StringSlice("client") {
			if name != "none" {
				cfg.Clients = append(cfg.Clients, name)
			}
		}
	}
	for _, file := range c.StringSlice("script") {
		text, err := os.ReadFile(file)
		if err != nil {
			return cfg, fmt.Errorf("--script: %w", err)
		}
		s, err := script.Parse(file, text)
		if err != nil {
			return cfg, fmt.Errorf("--script: %w", err)
		}
		cfg.Scripts = append(cfg.Scripts, s)
	}
	return cfg, nil
}

func listPoints(w io.Writer, cfg compat.Config, text bool) error {
	all, err := script.Points()
	if err != nil {
		return err
	}
	for _, s := range append(all, cfg.Scripts...) {
		switch {
		case !cfg.Chosen(s.Name, s.Tags):
		case text:
			fmt.Fprintf(w, "%s\n# ---- %s.rtsp\n\n", s.Text, s.Name)
		default:
			fmt.Fprintf(w, "%-20s %s\n%20s [%s]\n", s.Name, s.About, "", strings.Join(s.Tags, " "))
		}
	}
	return nil
}

// progress draws a bar on standard error.
func progress() func(done, total int, name string) {
	var bar *progressbar.ProgressBar
	return func(done, total int, name string) {
		if bar == nil {
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetWidth(30),
				progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false))
		}
		bar.Describe(fmt.Sprintf("%-20.20s", name))
		_ = bar.Set(done)
	}
}

func writeCompat(c *cli.Context, result *compat.Result) error {
	if file := c.Path("html"); file != "" {
		f, err := os.Create(file)
		if err != nil {
			return fmt.Errorf("--html: %w", err)
		}
		if err := errors.Join(report.HTML(f, result), f.Close()); err != nil {
			return fmt.Errorf("--html: %w", err)
		}
	}
	if c.Bool("json") {
		return report.JSON(c.App.Writer, result)
	}
	return report.Table(c.App.Writer, result, c.Bool("all"), term.IsTerminal(int(os.Stdout.Fd())))
}
