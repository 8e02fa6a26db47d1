//go:build bench && linux

package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/internal/testbed"
)

// The suite behind `make bench`. Each scenario leaves its report in build/bench;
// the page is written from all reports there, so that one may be run alone:
//
//	go test -tags bench -run 'TestSuite/movie-udp$' -timeout 20m ./bench
//
// SHIM_BENCH_LOADS=1,100 takes the place of every scenario's loads, and
// SHIM_BENCH_DURATION=3s of its windows' length.

type scenario struct {
	name, title, about string
	loads              []int // none: four fifths of the most that most-shim found
	cfg                Config
	servers            func(t *testing.T) []Server
	disturb            func(t *testing.T) // while they play; nil for nothing
	network            bool               // the servers are on another host
}

const (
	distinct = 100  // movies of the cold scenarios
	thinMost = 4800 // thin sessions: the shim has four files open for each, of often 20,000
)

var suite = []scenario{
	{"movie-udp", "Movies, UDP, cached", "One movie of 2 Mbit/s, sessions at positions all over it.",
		[]int{1, 100, 500, 900}, Config{Spread: true, Rate: 400}, darwin, nil, false},
	{"movie-udp-net", "Movies, UDP, cached, over a network", "The same with the viewers on another host: a send ends at the device, which takes runs whole, as network cards do.",
		[]int{500, 900}, Config{Spread: true, Rate: 400, GRO: true}, darwin, nil, true},
	{"movie-tcp", "Movies, interleaved TCP, cached", "The same over TCP, where both run ahead of their time.",
		[]int{1, 200}, Config{TCP: true, Spread: true}, darwin, nil, false},
	{"movie-cold", "Movies, UDP, from disk", "Each session plays a movie of its own that nobody has read since it was written.",
		[]int{distinct}, Config{}, darwinCold, nil, false},
	{"movie-gst", "Movies of gst-rtsp-server, UDP", "gst-rtsp-server's own on-demand pipelines.",
		[]int{50}, Config{Spread: true, Rate: 25}, gst, nil, false},
	{"live-udp-mediamtx", "Live, UDP, MediaMTX", "One live stream of 5 Mbit/s.",
		[]int{200}, Config{}, mediamtx, nil, false},
	{"live-udp-gortsplib", "Live, UDP, gortsplib's server", "One live stream of 5 Mbit/s.",
		[]int{1, 200}, Config{}, gortsplibServer, nil, false},
	{"live-udp-net-mediamtx", "Live, UDP, MediaMTX, over a network", "The same with the viewers on another host.",
		[]int{200}, Config{GRO: true}, mediamtx, nil, true},
	{"live-udp-net-gortsplib", "Live, UDP, gortsplib's server, over a network", "The same with the viewers on another host.",
		[]int{200}, Config{GRO: true}, gortsplibServer, nil, true},
	{"live-tcp-net-mediamtx", "Live, interleaved TCP, MediaMTX, over a network", "The same with the viewers on another host.",
		[]int{200}, Config{TCP: true}, mediamtx, nil, true},
	{"live-tcp-net-gortsplib", "Live, interleaved TCP, gortsplib's server, over a network", "The same with the viewers on another host.",
		[]int{200}, Config{TCP: true}, gortsplibServer, nil, true},
	{"live-tcp-mediamtx", "Live, interleaved TCP, MediaMTX", "One live stream of 5 Mbit/s.",
		[]int{1, 200}, Config{TCP: true}, mediamtx, nil, false},
	{"live-tcp-gortsplib", "Live, interleaved TCP, gortsplib's server", "One live stream of 5 Mbit/s.",
		[]int{200}, Config{TCP: true}, gortsplibServer, nil, false},
	{"thin-udp", "Many thin streams, UDP", "Sound of 64 kbit/s from the server of `shim demo`: what a stream costs, rather than an octet.",
		[]int{100, 1000, thinMost}, Config{Spread: true, Rate: 800, Settle: 4 * time.Second}, thin, nil, false},
	{"set-up", "Setting up", "500 sessions a second for three seconds, thin ones.",
		[]int{1500}, Config{Spread: true, Rate: 500, Duration: 2 * time.Second}, thin, nil, false},
	{"most-darwin", "Most sessions: Darwin", "How many of 2 Mbit/s without loss and with 999 of 1000 frames at most 150 ms late: at 20 ms it would be none, since it sends in bursts 120 ms apart. Darwin ends at 1,024 open files.",
		[]int{600}, Config{Spread: true, Rate: 400, Duration: 4 * time.Second, Search: 1000, MaxLate: 150 * time.Millisecond}, first(darwin), nil, false},
	{"most-gortsplib", "Most sessions: gortsplib's server", "How many viewers of one live stream of 2 Mbit/s without loss and with 999 of 1000 frames at most 150 ms late: its publisher alone is up to 110.",
		[]int{300}, Config{Rate: 400, Duration: 4 * time.Second, Search: 2000, MaxLate: 150 * time.Millisecond}, first(gortsplibSmall), nil, false},
	{"most-shim", "Most sessions: the shim", "The same for the shim, in front of the server of `shim demo`, which has no limit of files.",
		[]int{1000}, Config{Spread: true, Rate: 400, Duration: 4 * time.Second, Search: 4000}, second(demoMovie), nil, false},
	{"most-shim-gro", "Most sessions: the shim, to viewers that take runs whole", "The same with UDP_GRO at the viewers, who share the machine and take less of it so.",
		[]int{1500}, Config{Spread: true, Rate: 400, Duration: 4 * time.Second, Search: 4500, GRO: true}, second(demoMovie), nil, false},
	{"steady", "Four fifths of that", "As many sessions as that are four fifths of the most without UDP_GRO.",
		nil, Config{Spread: true, Rate: 400}, second(demoMovie), nil, false},
	{"steady-cpu-hog", "The same with a CPU hog on every core", "As many endless loops as there are cores run beside.",
		nil, Config{Spread: true, Rate: 400}, second(demoMovie), hogCPUs, false},
	{"steady-disk-hog", "The same from disk, with a disk hog", fmt.Sprintf("%d movies that nobody has read since they were written; once all play, somebody writes to the same disk as fast as it takes it.", distinct),
		nil, Config{Spread: true, Rate: 100, Movies: distinct}, second(demoCold), hogDisk, false},
}

// inNetwork is set where a test runs in a network of its own.
const inNetwork = "SHIM_BENCH_NETWORK"

// overNetwork runs this test again in a network of its own.
func overNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNetwork+"=1")
	testbed.InNetwork(cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// host is the address that servers are started at.
var host = "127.0.0.1"

// start starts a scenario's servers, on another host where they are to be.
func (s *scenario) start(t *testing.T, cfg *Config) (all []Server) {
	if !s.network {
		return s.servers(t)
	}
	n := testbed.EnterNetwork(t)
	host, cfg.Limits.Host, cfg.Limits.Away = n.Server.String(), n.Client, n.Away
	n.There(t, func() { all = s.servers(t) })
	return all
}

func TestSuite(t *testing.T) {
	out := filepath.Join(testbed.Root(t), "build", "bench")
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range suite {
		t.Run(s.name, func(t *testing.T) {
			if s.network && os.Getenv(inNetwork) == "" {
				overNetwork(t)
				return
			}
			cfg := s.cfg
			cfg.Sessions, cfg.Duration = s.loads, cmp.Or(cfg.Duration, 5*time.Second)
			if s.loads == nil && os.Getenv("SHIM_BENCH_LOADS") == "" {
				cfg.Sessions = []int{fourFifths(t, out)}
			}
			cfg.Limits = &LimitConfig{Dir: out, Duration: 400 * time.Millisecond, FileSize: 256 << 20, GRO: cfg.GRO}
			fromEnvironment(t, &cfg)
			cfg.Servers = s.start(t, &cfg)
			if strings.HasPrefix(s.name, "live-udp-") {
				cfg.Direct = cfg.Servers[0].URL
			}
			if s.disturb != nil { // once all play: then as many as that are to go on
				cfg.Settle = 10 * time.Second
				begin := 16 // of Progress's calls, every 500 ms
				cfg.Progress = func(what string) {
					if strings.HasSuffix(what, ": settling") {
						if begin--; begin == 0 {
							s.disturb(t)
						}
					}
				}
			}
			r, err := Measure(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			log := shimLog()
			r.Commit, r.Note = commit(), told(log)
			if err := os.WriteFile(filepath.Join(out, s.name+".log"), []byte(log), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := writeFile(filepath.Join(out, s.name+".json"), r.WriteJSON); err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			if err := r.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s\n%s", s.title, &text)
		})
	}
	if os.Getenv(inNetwork) != "" {
		return
	}
	t.Run("disk", func(t *testing.T) {
		r := Report{Time: time.Now(), Commit: commit(), Note: diskThroughput(t)}
		if err := writeFile(filepath.Join(out, "disk.json"), r.WriteJSON); err != nil {
			t.Fatal(err)
		}
	})
	if err := writePage(t, out); err != nil {
		t.Fatal(err)
	}
}

// diskThroughput is what the disk scheduler's own benchmark says, which takes
// turns with raw reads.
func diskThroughput(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "test", "-run", "^$", "-bench", "^BenchmarkThroughput$", "-benchtime", "1x", "../engine/disk").CombinedOutput()
	if err != nil {
		t.Fatalf("disk: %v\n%s", err, out)
	}
	return strings.Join(regexp.MustCompile(`(raw|uring|pread) .*MiB/s.*`).FindAllString(string(out), -1), "\n")
}

func fromEnvironment(t *testing.T, cfg *Config) {
	t.Helper()
	if v := os.Getenv("SHIM_BENCH_LOADS"); v != "" {
		cfg.Sessions = nil
		for f := range strings.SplitSeq(v, ",") {
			var n int
			if _, err := fmt.Sscan(f, &n); err != nil {
				t.Fatalf("SHIM_BENCH_LOADS: %v", err)
			}
			cfg.Sessions = append(cfg.Sessions, n)
		}
	}
	if v := os.Getenv("SHIM_BENCH_DURATION"); v != "" {
		var err error
		if cfg.Duration, err = time.ParseDuration(v); err != nil {
			t.Fatalf("SHIM_BENCH_DURATION: %v", err)
		}
	}
}

// fourFifths is four fifths of the most sessions of the shim.
func fourFifths(t *testing.T, dir string) int {
	t.Helper()
	r, err := readReport(dir, "most-shim")
	if err != nil {
		t.Skip("needs the report of most-shim: ", err)
	}
	return max(1, r.Capacity(r.Runs[0].Server)*4/5)
}

// shimLog is what the shim has logged that both started last.
var shimLog = func() string { return "" }

var (
	endedLine = regexp.MustCompile(`msg="session ended" .*`)
	underrun  = regexp.MustCompile(`underruns=[1-9]`)
)

// told is what the shim says of its last sessions.
func told(log string) string {
	ended := endedLine.FindAllString(log, -1)
	if len(ended) == 0 {
		return ""
	}
	movie, live, dry := 0, 0, 0
	for _, line := range ended {
		if strings.Contains(line, " path=movie ") {
			movie++
		}
		if strings.Contains(line, " path=live ") {
			live++
		}
		if underrun.MatchString(line) {
			dry++
		}
	}
	return fmt.Sprintf("Of the last %d sessions of which the shim told: %d had a movie of the engine's, %d a live group's stream; %d an underrun.",
		len(ended), movie, live, dry)
}

// both is a server and the shim in front of it, whose costs are those of both.
func both(t *testing.T, up testbed.Upstream, path string, flags ...string) []Server {
	t.Helper()
	shim := testbed.StartShim(t, up, flags...)
	shimLog = shim.Log
	pid, err := listener(netip.MustParseAddrPort(up.Addr))
	if err != nil {
		t.Fatal(err)
	}
	return []Server{{Name: up.Name, URL: up.URL("/") + path, Pids: []int{pid}},
		{Name: "shim + " + up.Name, URL: up.At(shim.Addr).URL("/") + path, Pids: []int{shim.Pid(), pid}}}
}

func first(of func(*testing.T) []Server) func(*testing.T) []Server {
	return func(t *testing.T) []Server { return of(t)[:1] }
}

func second(of func(*testing.T) []Server) func(*testing.T) []Server {
	return func(t *testing.T) []Server { return of(t)[1:] }
}

func darwin(t *testing.T) []Server {
	dir := filepath.Dir(makeMovie(t, "movie.mp4", 2000, 90))
	return both(t, testbed.StartDSS(t, testbed.DSSOptions{MoviesFolder: dir, Host: host}).Upstream, "movie.mp4", "--movies", dir)
}

func darwinCold(t *testing.T) []Server {
	dir := coldMovies(t)
	return both(t, testbed.StartDSS(t, testbed.DSSOptions{MoviesFolder: dir, Host: host}).Upstream, "movie%d.mp4", "--movies", dir)
}

// coldMovies makes movies that are on the disk and nowhere else.
func coldMovies(t *testing.T) (dir string) {
	movie := makeMovie(t, "movie.mp4", 2000, 90)
	dir = filepath.Join(filepath.Dir(movie), "cold")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	whole, err := os.ReadFile(movie)
	if err != nil {
		t.Fatal(err)
	}
	for i := range distinct {
		if err := writeCold(filepath.Join(dir, fmt.Sprintf("movie%d.mp4", i)), whole); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// demoMovie is our demo server with the movie of 2 Mbit/s.
func demoMovie(t *testing.T) []Server {
	dir := filepath.Dir(makeMovie(t, "movie.mp4", 2000, 90))
	return both(t, testbed.Upstream{Name: "demo", Addr: testbed.StartChild(t, "demo "+dir)}, "movie.mp4", "--movies", dir)
}

func demoCold(t *testing.T) []Server {
	dir := coldMovies(t)
	return both(t, testbed.Upstream{Name: "demo", Addr: testbed.StartChild(t, "demo "+dir)}, "movie%d.mp4", "--movies", dir, "--memory", "2048")
}

func gst(t *testing.T) []Server {
	movie := makeMovie(t, "movie.mp4", 2000, 90)
	g := testbed.StartGst(t, testbed.GstOptions{Movies: []string{movie}})
	return both(t, g.Upstream, "movie.mp4", "--movies", filepath.Dir(movie))
}

func mediamtx(t *testing.T) []Server {
	up := testbed.StartMediaMTX(t, testbed.MediaMTXOptions{Host: host})
	testbed.PublishFile(t, up.URL("/live"), makeMovie(t, "live5000.mp4", 5000, 30), testbed.TCP)
	return both(t, up, "live")
}

// gortsplibServer is gortsplib's server in a process of its own.
func gortsplibServer(t *testing.T) []Server { return gortsplibLive(t, 5000) }

func gortsplibSmall(t *testing.T) []Server { return gortsplibLive(t, 2000) }

func gortsplibLive(t *testing.T, kbps int) []Server {
	up := testbed.Upstream{Name: "gortsplib", Addr: testbed.StartChild(t, "gortsplib "+host)}
	testbed.PublishFile(t, up.URL("/live"), makeMovie(t, fmt.Sprintf("live%d.mp4", kbps), kbps, 30), testbed.TCP)
	return both(t, up, "live")
}

// thin is our demo server with a movie of sound alone.
func thin(t *testing.T) []Server {
	movie := makeMovie(t, "sound.mp4", 0, 120)
	return both(t, testbed.Upstream{Name: "demo", Addr: testbed.StartChild(t, "demo "+filepath.Dir(movie))}, "sound.mp4", "--movies", filepath.Dir(movie))
}

// TestChild is a server that the suite starts.
func TestChild(t *testing.T) {
	testbed.BeChild(t, func(t *testing.T, what string) string {
		if dir, is := strings.CutPrefix(what, "demo "); is {
			s, err := demo.Start(demo.Config{Movies: os.DirFS(dir), Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s.Addr()
		}
		_, host, _ := strings.Cut(what, " ")
		return testbed.StartGortsplib(t, testbed.GortsplibOptions{Host: host}).Addr
	})
}

// hogCPUs keeps every core busy until the test ends.
func hogCPUs(t *testing.T) {
	for range runtime.NumCPU() {
		hog(t, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
	}
}

// hogDisk keeps the disk busy until the test ends.
func hogDisk(t *testing.T) {
	file := filepath.Join(testbed.Root(t), "build", "bench", "hog")
	t.Cleanup(func() { _ = os.Remove(file) })
	hog(t, "dd if=/dev/zero of='"+file+"' bs=4M count=128 oflag=direct 2>/dev/null")
}

// hog runs a command again and again until the test, or this program, ends.
func hog(t *testing.T, command string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "while kill -0 $PPID; do "+command+"; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the group: what it has started too
		_ = cmd.Wait()
	})
}

// makeMovie makes a hinted movie, once, with noise in it that keeps its rate
// up; of 0 kbit/s is one of sound alone.
func makeMovie(t *testing.T, name string, kbps, seconds int) string {
	t.Helper()
	dir := filepath.Join(testbed.Root(t), "build", "bench", "movies")
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	picture := fmt.Sprintf("testsrc2=size=640x360:rate=25:duration=%d,noise=alls=%d:allf=t", seconds, 8+kbps/500)
	sound := fmt.Sprintf("aevalsrc='0.2*sin(2*PI*(200+4*t)*t)|0.2*sin(2*PI*(300+2*t)*t)':s=44100:d=%d", seconds)
	rate := fmt.Sprintf("%dk", kbps-66)
	args := []string{"-hide_banner", "-loglevel", "error", "-y", "-f", "lavfi", "-i", sound}
	if kbps > 0 {
		args = append(args, "-f", "lavfi", "-i", picture, "-map", "1", "-map", "0", "-c:v", "libx264", "-preset", "ultrafast", "-bf", "0",
			"-g", "50", "-keyint_min", "50", "-sc_threshold", "0", "-b:v", rate, "-maxrate", rate, "-bufsize", rate, "-pix_fmt", "yuv420p")
	}
	args = append(args, "-c:a", "aac", "-b:a", "64k", "-movflags", "rtphint", path+".part.mp4")
	cmd := exec.Command(testbed.Program(t, "ffmpeg", "ffmpeg"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ffmpeg: %v\n%s", err, out)
	}
	if err := os.Rename(path+".part.mp4", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// writePage writes docs/performance.md and its pictures from the reports.
func writePage(t *testing.T, dir string) error {
	docs := filepath.Join(testbed.Root(t), "docs")
	if err := os.MkdirAll(filepath.Join(docs, "performance"), 0o755); err != nil {
		return err
	}
	return writeFile(filepath.Join(docs, "performance.md"), func(w io.Writer) error { return page(w, dir, docs) })
}

const pageHead = `# Performance

Written by ` + "`make bench`" + `, which anybody can run. Figures are comparable within one table: the servers took turns there, load by
load, on the same machine, at one time. CPU-s/GiB is CPU time of the server's processes (with the shim: of the shim and
of the server behind it) for each GiB of RTP that arrived. Over loopback the receiving half of the network stack is in it, up
to the viewer's socket, and cutting runs into packets again; over a network (two network namespaces with a link between them,
each with a processor of its own) a send ends at the device, as with a network card that cuts runs itself. *Late* is how
long after its RTP time a frame's first packet came; *frame spread* is how
long its packets took: the shim spreads big frames on purpose. *× limit* is by what the kernel takes for a raw loop
that sends the same amount from memory, flat out, in runs of 14 packets; *× paced* by what it takes for one that sends
1 Gbit/s in time: movies in runs of 7, which is a frame of 2 Mbit/s, live streams in runs of 18, a frame of 5 Mbit/s to each every
40 ms, and its sound. Nobody who keeps time can send longer ones.
` + "`shim bench --help`" + ` and the package ` + "`bench`" + ` say more.
`

func readReport(dir, name string) (r Report, err error) {
	b, err := os.ReadFile(filepath.Join(dir, name+".json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

func page(w io.Writer, dir, docs string) error {
	var errs []error
	fmt.Fprint(w, pageHead)
	reports := map[string]*Report{}
	for _, name := range append(names(), "disk") {
		r, err := readReport(dir, name)
		if err == nil {
			reports[name] = &r
		} else if !os.IsNotExist(err) { // not run: what it needs was missing
			errs = append(errs, err)
		}
	}
	writeTargets(w, reports)
	for _, s := range suite {
		r := reports[s.name]
		if r == nil {
			continue
		}
		fmt.Fprintf(w, "\n## %s\n\n%s %s, commit %s; %s; windows of %g s.\n\n", s.title, s.about, r.Time.Format("2006-01-02 15:04 MST"), r.Commit, r.Machine(), r.Duration)
		errs = append(errs, r.WriteMarkdown(w))
		fmt.Fprintf(w, "\n%s\n\n", r.Note)
		for _, p := range r.Plots() {
			if p.Name != "cost" && p.Name != "late-p999" && p.Name != "lost" || s.cfg.Search > 0 && p.Name == "cost" {
				continue
			}
			name := filepath.Join("performance", s.name+"-"+p.Name+".svg")
			errs = append(errs, writeFile(filepath.Join(docs, name), p.WriteSVG))
			fmt.Fprintf(w, "![%s](%s)\n", p.Title, name)
		}
		fmt.Fprintf(w, "\n<details><summary>the limits in the same run</summary>\n\n")
		errs = append(errs, WriteLimitsMarkdown(w, r.Limits))
		fmt.Fprintf(w, "\n</details>\n")
	}
	if r := reports["disk"]; r != nil {
		fmt.Fprintf(w, "\n## The disk\n\nThe disk scheduler kept busy, by turns with raw reads of the same files at random places; medians of six turns, then each. %s, commit %s.\n\n```\n%s\n```\n",
			r.Time.Format("2006-01-02 15:04 MST"), r.Commit, r.Note)
	}
	if b, err := os.ReadFile(filepath.Join(docs, "performance", "notes.md")); err == nil {
		fmt.Fprintf(w, "\n%s", b)
	}
	return errors.Join(errs...)
}

func names() (all []string) {
	for _, s := range suite {
		all = append(all, s.name)
	}
	return all
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
