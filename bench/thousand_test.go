//go:build bench && linux

package bench

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

const thousand = 1000

// TestThousand plays a thousand movies of 2 Mbit/s at once and holds the shim to
// what is said of it: nothing lost, no underrun, a thousandth of the packets
// later than 10 ms at most, as the viewers see it by the kernel's time stamps.
// Server and viewers share the machine: where it has more than two cores,
// `taskset -c 0,1` tells what two can do.
func TestThousand(t *testing.T) {
	t.Run("one movie", func(t *testing.T) {
		movie := makeMovie(t, "movie.mp4", 2000, 90)
		holdsThousand(t, filepath.Dir(movie), "movie.mp4", Config{Spread: true})
	})
	t.Run("a movie each, from disk", func(t *testing.T) {
		whole, err := os.ReadFile(makeMovie(t, "short.mp4", 2000, 30))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(testbed.Root(t), "build", "bench", "thousand")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		for i := range thousand {
			if err := writeCold(filepath.Join(dir, fmt.Sprintf("movie%d.mp4", i)), whole); err != nil {
				t.Fatal(err)
			}
		}
		holdsThousand(t, dir, "movie%d.mp4", Config{}, "--memory", "1024")
	})
}

var engineTotals = regexp.MustCompile(`msg=engine .*streams=(\d+) .*underruns=(\d+) `)

func holdsThousand(t *testing.T, dir, path string, cfg Config, flags ...string) {
	up := testbed.Upstream{Name: "demo", Addr: testbed.StartChild(t, "demo "+dir)}
	shim := testbed.StartShim(t, up, append([]string{"--movies", dir}, flags...)...)
	pid, err := listener(netip.MustParseAddrPort(up.Addr))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Servers = []Server{{Name: "shim + demo", URL: up.At(shim.Addr).URL("/") + path, Pids: []int{shim.Pid(), pid}}}
	cfg.Sessions, cfg.Duration, cfg.Rate = []int{thousand}, 8*time.Second, 100
	fromEnvironment(t, &cfg)
	var streams, underruns string
	asked := false
	cfg.Progress = func(what string) { // while they play
		if strings.HasSuffix(what, ", 2 s left") && !asked {
			asked = true
			_ = syscall.Kill(shim.Pid(), syscall.SIGUSR1)
		}
		if m := engineTotals.FindStringSubmatch(shim.Log()); m != nil {
			streams, underruns = m[1], m[2]
		}
	}
	r, err := Measure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	run := r.Runs[0]
	t.Logf("%d sessions, %.2f Gbit/s, %d packets; late p50 %.2f ms, p99 %.2f, p99.9 %.2f, max %.2f; the engine: %s streams, %s underruns; CPU: servers %.1f s, viewers %.1f s, machine %.1f of %g s × %d",
		run.Sessions, run.Gbps, run.Packets, run.Late.P50, run.Late.P99, run.Late.P999, run.Late.Max, streams, underruns,
		run.CPU, run.SelfCPU, run.MachineCPU, run.Seconds, r.Cores)
	for what, n := range map[string]uint64{"lost": run.Lost, "reordered": run.Reordered, "duplicate": run.Duplicate,
		"foreign": run.Foreign, "changes of SSRC": run.Sources, "silent": uint64(run.Silent), "broken": uint64(run.Broken),
		"not set up": uint64(run.Failed), "without time stamp": run.Timeless} {
		if n > 0 {
			t.Errorf("%s: %d (%d of the lost in the viewers' own sockets)", what, n, run.Dropped)
		}
	}
	if want := fmt.Sprint(cfg.Sessions[0]); streams != want || underruns != "0" {
		t.Errorf("the engine has %s streams, %s underruns; want %s and none\n%s", cmp.Or(streams, "no"), underruns, want, shim.Log())
	}
	if run.Late.P999 > 10 {
		t.Errorf("p99.9 of the frames came %.2f ms late", run.Late.P999)
	}
}
