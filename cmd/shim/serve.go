package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/urfave/cli/v2/altsrc"

	"rtspshim/engine"
	"rtspshim/intercept"
	"rtspshim/proxy"
)

// serveFlags stand on the command line, in the environment or in the YAML file.
var serveFlags = []cli.Flag{
	altsrc.NewStringFlag(&cli.StringFlag{Name: "upstream", EnvVars: []string{"SHIM_UPSTREAM"}, Usage: "the server to stand in front of: rtsp://host[:port] or rtsps://host[:port]"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "listen", EnvVars: []string{"SHIM_LISTEN"}, Value: ":8554", Usage: "address clients connect to"}),
	altsrc.NewIntFlag(&cli.IntFlag{Name: "udp-port", EnvVars: []string{"SHIM_UDP_PORT"}, Usage: "first (even) port of the pair that sends media to clients; 0 takes a free pair"}),
	altsrc.NewBoolFlag(&cli.BoolFlag{Name: "rewrite-host", EnvVars: []string{"SHIM_REWRITE_HOST"}, Usage: "put the upstream's address into request-URIs, for servers that insist; Digest may then fail"}),
	altsrc.NewPathFlag(&cli.PathFlag{Name: "tls-cert", EnvVars: []string{"SHIM_TLS_CERT"}, Usage: "certificate (PEM) for rtsps clients, who use the same port; without one TLS is passed through unread"}),
	altsrc.NewPathFlag(&cli.PathFlag{Name: "tls-key", EnvVars: []string{"SHIM_TLS_KEY"}, Usage: "its private key (PEM)"}),
	altsrc.NewPathFlag(&cli.PathFlag{Name: "upstream-ca", EnvVars: []string{"SHIM_UPSTREAM_CA"}, Usage: "certificates (PEM) to trust for an rtsps upstream, instead of the system's"}),
	altsrc.NewBoolFlag(&cli.BoolFlag{Name: "upstream-insecure", EnvVars: []string{"SHIM_UPSTREAM_INSECURE"}, Usage: "do not verify an rtsps upstream's certificate"}),
	altsrc.NewIntFlag(&cli.IntFlag{Name: "max-connections", EnvVars: []string{"SHIM_MAX_CONNECTIONS"}, Value: 10_000, Usage: "client connections at once"}),
	altsrc.NewDurationFlag(&cli.DurationFlag{Name: "idle-timeout", EnvVars: []string{"SHIM_IDLE_TIMEOUT"}, Value: 5 * time.Minute, Usage: "life of a silent connection without a session"}),
	altsrc.NewPathFlag(&cli.PathFlag{Name: "movies", EnvVars: []string{"SHIM_MOVIES"}, Usage: "folder of the hinted movies that the upstream serves; the engine takes them over: `DIR`"}),
	altsrc.NewStringSliceFlag(&cli.StringSliceFlag{Name: "map", EnvVars: []string{"SHIM_MAP"}, Usage: "movie file of URLs whose path matches, tried before --movies; * in FILE is the path: `PATTERN=FILE`"}),
	altsrc.NewBoolFlag(&cli.BoolFlag{Name: "as-hinted", EnvVars: []string{"SHIM_AS_HINTED"}, Usage: "send movies at the times their hints say, bunched or not"}),
	altsrc.NewPathFlag(&cli.PathFlag{Name: "proved", EnvVars: []string{"SHIM_PROVED"}, Usage: "remember in `FILE` which movies the upstream has been seen to send"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "live", EnvVars: []string{"SHIM_LIVE"}, Value: "auto", Usage: "let the viewers of a live stream share one upstream session, where they are seen to get the same: auto, off"}),
	altsrc.NewBoolFlag(&cli.BoolFlag{Name: "smooth", EnvVars: []string{"SHIM_SMOOTH"}, Usage: "live: spread big frames over half of the time between two, for viewers over UDP"}),
	altsrc.NewBoolFlag(&cli.BoolFlag{Name: "instant", EnvVars: []string{"SHIM_INSTANT"}, Usage: "live: a viewer who joins others begins with the newest key frame, and catches up; the upstream begins with what comes next"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "on-upstream-loss", EnvVars: []string{"SHIM_ON_UPSTREAM_LOSS"}, Value: "play", Usage: "what movies do when the upstream dies: play, close"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "overload", EnvVars: []string{"SHIM_OVERLOAD"}, Value: "relay", Usage: "movies that the engine has no room for: relay, refuse (453)"}),
	altsrc.NewInt64Flag(&cli.Int64Flag{Name: "memory", EnvVars: []string{"SHIM_MEMORY"}, Value: 256, Usage: "for movie data, taken at the start where --movies or --map is given: `MIB`"}),
	altsrc.NewInt64Flag(&cli.Int64Flag{Name: "bandwidth", EnvVars: []string{"SHIM_BANDWIDTH"}, Usage: "of the network, that movies may take; 0 is without limit: `MBIT/S`"}),
	altsrc.NewInt64Flag(&cli.Int64Flag{Name: "disk-bandwidth", EnvVars: []string{"SHIM_DISK_BANDWIDTH"}, Usage: "of the disk, that movies may take; 0 is without limit, -1 measures it at the start: `MB/S`"}),
	altsrc.NewDurationFlag(&cli.DurationFlag{Name: "cycle", EnvVars: []string{"SHIM_CYCLE"}, Value: time.Second, Usage: "of the disk: what is read in one is sent in the next"}),
	altsrc.NewIntFlag(&cli.IntFlag{Name: "burst", EnvVars: []string{"SHIM_BURST"}, Value: 16, Usage: "packets of a movie's track that may leave back to back"}),
	altsrc.NewDurationFlag(&cli.DurationFlag{Name: "slot", EnvVars: []string{"SHIM_SLOT"}, Value: engine.DefaultSlot, Usage: "what is due in so long a time leaves at its beginning, in fewer system calls"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "io-uring", EnvVars: []string{"SHIM_IO_URING"}, Value: "auto", Usage: "read movies through io_uring: auto, on, off"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "o-direct", EnvVars: []string{"SHIM_O_DIRECT"}, Value: "auto", Usage: "read movies past the page cache: auto, on, off"}),
	altsrc.NewIntFlag(&cli.IntFlag{Name: "pumps", EnvVars: []string{"SHIM_PUMPS"}, Usage: "sending threads; 0 leaves room for signalling"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "gso", EnvVars: []string{"SHIM_GSO"}, Value: "auto", Usage: "UDP segmentation offload when sending: auto, on, off"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "gro", EnvVars: []string{"SHIM_GRO"}, Value: "auto", Usage: "UDP receive offload: auto, on, off"}),
	altsrc.NewStringFlag(&cli.StringFlag{Name: "log-level", EnvVars: []string{"SHIM_LOG_LEVEL"}, Value: "info", Usage: "debug, info, warn, error"}),
	altsrc.NewBoolFlag(&cli.BoolFlag{Name: "log-json", EnvVars: []string{"SHIM_LOG_JSON"}, Usage: "log JSON lines"}),
	altsrc.NewPathFlag(&cli.PathFlag{Name: "profile", EnvVars: []string{"SHIM_PROFILE"}, Usage: "write a CPU profile of the whole run, for go tool pprof: `FILE`"}),
	&cli.PathFlag{Name: "config", EnvVars: []string{"SHIM_CONFIG"}, Usage: "YAML file with any of these, by name: `FILE`"},
}

var serveCommand = &cli.Command{
	Name:  "serve",
	Usage: "stand in front of an RTSP server and carry its clients",
	UsageText: "shim serve --upstream rtsp://host:port [--listen :8554] [...]\n\n" +
		"A flag wins over its environment variable, that over the YAML file.",
	Flags: serveFlags,
	Before: altsrc.InitInputSourceWithContext(serveFlags, func(c *cli.Context) (altsrc.InputSourceContext, error) {
		if c.Path("config") == "" {
			return altsrc.NewMapInputSource("", map[any]any{}), nil
		}
		return altsrc.NewYamlSourceFromFile(c.Path("config"))
	}),
	Action: func(c *cli.Context) error {
		ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		logger, err := newLogger(c.String("log-level"), c.Bool("log-json"))
		if err != nil {
			return err
		}
		cfg, err := proxyConfig(c, logger)
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", c.String("listen"))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		ecfg, err := engineConfig(c, logger)
		if err != nil {
			return err
		}
		icfg, err := interceptConfig(c, logger)
		if err != nil {
			return err
		}
		return profiled(c.Path("profile"), func() error { return serve(ctx, ln, cfg, icfg, ecfg, nil) })
	},
}

// serve carries the clients of ln until ctx ends. When watch is not nil, it is
// given the sessions before the first client.
func serve(ctx context.Context, ln net.Listener, cfg proxy.Config, icfg intercept.Config, ecfg engine.Config,
	watch func(*intercept.Interceptor)) error {
	ecfg.Pumps = cmp.Or(ecfg.Pumps, max(1, runtime.GOMAXPROCS(0)-1))
	// A thread that sleeps in a system call keeps its processor, as Go's scheduler
	// calls it, until somebody notices, up to 10 ms later. So there are as many more
	// as there are such threads: the pumps, the disk's, and one that opens or reads a
	// file. A pump then finds one at once, and the kernel says who runs.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + ecfg.Pumps + 2))
	e, err := engine.Open(ecfg)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	defer func() { _ = e.Close() }()
	icfg.Engine = e
	sessions, err := intercept.New(icfg)
	if err != nil {
		return err
	}
	if watch != nil {
		watch(sessions)
	}
	defer sessions.Close()
	cfg.Open, cfg.Drain = sessions.Open, sessions.TearDown
	server, err := proxy.New(cfg)
	if err != nil {
		return err
	}
	sessions.Front(server)
	runCtx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { _ = sessions.Run(runCtx) })
	work.Go(func() { reportOnSignal(runCtx, sessions) })
	work.Go(func() { tendHeap(runCtx) })
	cfg.Logger.Info("serving", "listen", ln.Addr().String(), "upstream", cfg.Upstream.Redacted(), "tls", cfg.ClientTLS != nil)
	err = server.Serve(ctx, ln)
	cancel()
	work.Wait()
	cfg.Logger.Info("stopped")
	return err
}

// profiled writes a CPU profile of run to a file, if one is named.
func profiled(name string, run func() error) error {
	if name == "" {
		return run()
	}
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	err = pprof.StartCPUProfile(f)
	if err == nil {
		err = run()
		pprof.StopCPUProfile()
	}
	return errors.Join(err, f.Close())
}

// reportOnSignal logs a line about every session at each SIGUSR1.
func reportOnSignal(ctx context.Context, sessions *intercept.Interceptor) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	defer signal.Stop(signals)
	for {
		select {
		case <-signals:
			sessions.Report()
		case <-ctx.Done():
			return
		}
	}
}

func newLogger(level string, json bool) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level: %w", err)
	}
	o := &slog.HandlerOptions{Level: l}
	if json {
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
}

func proxyConfig(c *cli.Context, logger *slog.Logger) (proxy.Config, error) {
	if c.String("upstream") == "" {
		return proxy.Config{}, fmt.Errorf("name the server to stand in front of: --upstream rtsp://host:port")
	}
	u, err := url.Parse(c.String("upstream"))
	if err != nil {
		return proxy.Config{}, fmt.Errorf("upstream: %w", err)
	}
	cfg := proxy.Config{
		Upstream:    u,
		RewriteHost: c.Bool("rewrite-host"),
		Limits:      proxy.Limits{MaxConns: c.Int("max-connections"), IdleTimeout: c.Duration("idle-timeout")},
		Logger:      logger,
	}
	if c.Path("tls-cert") != "" || c.Path("tls-key") != "" {
		cert, err := tls.LoadX509KeyPair(c.Path("tls-cert"), c.Path("tls-key"))
		if err != nil {
			return cfg, fmt.Errorf("tls-cert, tls-key: %w", err)
		}
		cfg.ClientTLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if u.Scheme == "rtsps" {
		cfg.UpstreamTLS = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Bool("upstream-insecure")} //nolint:gosec // the user's choice
		if ca := c.Path("upstream-ca"); ca != "" {
			pem, err := os.ReadFile(ca)
			if err != nil {
				return cfg, fmt.Errorf("upstream-ca: %w", err)
			}
			cfg.UpstreamTLS.RootCAs = x509.NewCertPool()
			if !cfg.UpstreamTLS.RootCAs.AppendCertsFromPEM(pem) {
				return cfg, fmt.Errorf("upstream-ca: no certificate in %s", ca)
			}
		}
	}
	return cfg, nil
}

func interceptConfig(c *cli.Context, logger *slog.Logger) (intercept.Config, error) {
	cfg := intercept.Config{AsHinted: c.Bool("as-hinted"), Proved: c.Path("proved"), Logger: logger}
	cfg.Movies.Dir = c.Path("movies")
	switch v := c.String("overload"); v {
	case "relay", "refuse":
		cfg.Refuse = v == "refuse"
	default:
		return cfg, fmt.Errorf("overload: %q is neither relay nor refuse", v)
	}
	for _, rule := range c.StringSlice("map") {
		r, err := intercept.ParseMovieRule(rule)
		if err != nil {
			return cfg, fmt.Errorf("map: %w", err)
		}
		cfg.Movies.Map = append(cfg.Movies.Map, r)
	}
	switch v := c.String("live"); v {
	case "auto", "off":
		cfg.Live = v == "auto"
	default:
		return cfg, fmt.Errorf("live: %q is neither auto nor off", v)
	}
	cfg.Smooth, cfg.Instant = c.Bool("smooth"), c.Bool("instant")
	switch v := c.String("on-upstream-loss"); v {
	case "play", "close":
		cfg.CloseOnLoss = v == "close"
	default:
		return cfg, fmt.Errorf("on-upstream-loss: %q is neither play nor close", v)
	}
	return cfg, nil
}

func engineConfig(c *cli.Context, logger *slog.Logger) (engine.Config, error) {
	cfg := engine.Config{
		UDPPort: c.Int("udp-port"), Pumps: c.Int("pumps"), Gather: engine.DefaultGather, CycleTime: c.Duration("cycle"),
		Memory: c.Int64("memory") << 20, Bandwidth: c.Int64("bandwidth") * 1e6, DiskBandwidth: c.Int64("disk-bandwidth") * 1e6,
		BurstLimit: c.Int("burst"), Slot: c.Duration("slot"), Logger: logger,
	}
	for name, mode := range map[string]encoding.TextUnmarshaler{"gso": &cfg.GSO, "gro": &cfg.GRO, "io-uring": &cfg.Uring, "o-direct": &cfg.Direct} {
		if err := mode.UnmarshalText([]byte(c.String(name))); err != nil {
			return cfg, fmt.Errorf("%s: %w", name, err)
		}
	}
	if cfg.DiskBandwidth < 0 {
		var err error
		if cfg.DiskBandwidth, cfg.DiskOverhead, err = engine.MeasureDisk(c.Path("movies")); err != nil {
			return cfg, fmt.Errorf("disk-bandwidth: %w", err)
		}
		logger.Info("disk measured", "bandwidth", cfg.DiskBandwidth, "overhead", cfg.DiskOverhead)
	}
	return cfg, nil
}
