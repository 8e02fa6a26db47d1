//go:build bench && linux

package bench

import (
	"fmt"
	"io"
	"strings"
)

// target is a figure to be reached, and how to find it in the reports; ok is
// false when a report that it needs is missing.
type target struct {
	what, want string
	of         func(all reports) (figure string, met, ok bool)
}

type reports map[string]*Report

// run is the run of a report's server at a load: server 0 is the upstream
// itself, 1 the shim in front of it; load 0 the highest.
func (all reports) run(name string, server, load int) *Run {
	r := all[name]
	if r == nil {
		return nil
	}
	var found *Run
	for i := range r.Runs {
		run := &r.Runs[i]
		if strings.HasPrefix(run.Server, "shim + ") == (server == 1) && (load == run.Load || load == 0 && (found == nil || run.Load > found.Load)) {
			found = run
		}
	}
	return found
}

func (all reports) limit(report, name string) float64 {
	if r := all[report]; r != nil {
		for _, l := range r.Limits {
			if l.Name == name {
				return l.Cost
			}
		}
	}
	return 0
}

func (all reports) most(name string) int {
	r := all[name]
	if r == nil || len(r.Runs) == 0 {
		return 0
	}
	return r.Capacity(r.Runs[0].Server)
}

// alone is what the shim itself spends, without the server behind it.
func alone(r *Run) float64 {
	if len(r.Processes) == 0 || r.Bytes == 0 {
		return 0
	}
	return r.Processes[0].CPU / (float64(r.Bytes) / (1 << 30))
}

// byLimit compares the shim's own cost with a raw loop's.
func byLimit(report string, load int, limit string, most float64) func(all reports) (string, bool, bool) {
	return func(all reports) (string, bool, bool) {
		r, by := all.run(report, 1, load), all.limit(report, limit)
		if r == nil || by == 0 {
			return "", false, false
		}
		x := alone(r) / by
		text := fmt.Sprintf("%s × (%s CPU-s/GiB; with the server behind it %s)", short(x), short(alone(r)), short(r.Cost))
		if paced := all.limit(report, pacedOf(r.Live)); limit != LimitTCP && limit != pacedOf(r.Live) && paced > 0 {
			text += fmt.Sprintf("; %s × the paced loop", short(alone(r)/paced))
		}
		return text, x <= most, true
	}
}

// byServer compares the cost of a server alone, of one report, with that of the
// shim and the server behind it, of another or the same.
func byServer(direct string, load int, shim string, shimLoad int, least float64) func(all reports) (string, bool, bool) {
	return func(all reports) (string, bool, bool) {
		a, b := all.run(direct, 0, load), all.run(shim, 1, shimLoad)
		if a == nil || b == nil || b.Cost == 0 {
			return "", false, false
		}
		return fmt.Sprintf("1/%s (%s against %s CPU-s/GiB); the shim alone 1/%s", short(a.Cost/b.Cost), short(b.Cost), short(a.Cost), short(a.Cost/alone(b))),
			a.Cost/b.Cost >= least, true
	}
}

// aloneBy compares the shim's own cost with a server's that has all viewers.
func aloneBy(report string, load int, least float64) func(all reports) (string, bool, bool) {
	return func(all reports) (string, bool, bool) {
		a, b := all.run(report, 0, load), all.run(report, 1, load)
		if a == nil || b == nil || alone(b) == 0 {
			return "", false, false
		}
		return fmt.Sprintf("1/%s (%s against %s CPU-s/GiB); with the server behind it 1/%s", short(a.Cost/alone(b)), short(alone(b)), short(a.Cost), short(a.Cost/b.Cost)),
			a.Cost/alone(b) >= least, true
	}
}

// delay looks at how much later than one reader at the server behind the viewers
// get each packet.
func delay(report string) func(all reports) (string, bool, bool) {
	return func(all reports) (string, bool, bool) {
		a, b := all.run(report, 0, 200), all.run(report, 1, 200)
		if a == nil || b == nil || b.Added.N == 0 {
			return "", false, false
		}
		return fmt.Sprintf("%s ms (%s in the middle); the server's own viewers get them %s later (%s), a raw loop that begins at once takes %s",
			short(b.Added.P99), short(b.Added.P50), short(a.Added.P99), short(a.Added.P50), short(b.Raw.P99)), b.Added.P99 <= 2, true
	}
}

// punctual looks at the lateness of 999 of 1000 frames.
func punctual(report string, most float64) func(all reports) (string, bool, bool) {
	return func(all reports) (string, bool, bool) {
		r := all.run(report, 1, 0)
		if r == nil {
			return "", false, false
		}
		return fmt.Sprintf("%s ms at %d sessions, %s lost", short(r.Late.P999), r.Sessions, share(r.Lost, r.Packets+r.Lost)), r.Late.P999 <= most && r.Lost == 0, true
	}
}

var targets = []target{
	{"movie, UDP, cached, 2 Mbit/s × 500: cost", "≤ 1.3 × limit", byLimit("movie-udp", 500, LimitGathered, 1.3)},
	{"the same by Darwin's own", "≤ 1/6", byServer("movie-udp", 500, "movie-udp", 500, 6)},
	{"the same by Darwin's own, over a network", "≤ 1/6", byServer("movie-udp-net", 500, "movie-udp-net", 500, 6)},
	{"the same by gst-rtsp-server's own on-demand", "≤ 1/20", byServer("movie-gst", 50, "movie-udp", 500, 20)},
	{"movie, UDP, cold, distinct files: cost", "≤ 1.6 × limit", byLimit("movie-cold", distinct, LimitGathered, 1.6)},
	{"the disk, 1 MB to each stream a cycle", "≥ 85 % of raw O_DIRECT", func(all reports) (string, bool, bool) {
		r := all["disk"]
		if r == nil {
			return "", false, false
		}
		var name string
		var share int
		for line := range strings.Lines(r.Note) {
			if name, _, _ = strings.Cut(line, "  "); name == "uring direct, 1 MB" {
				if _, err := fmt.Sscanf(line[strings.Index(line, "CPU-s/GiB")+len("CPU-s/GiB"):], "%d", &share); err != nil {
					return "", false, false
				}
			}
		}
		return fmt.Sprintf("%d %%", share), share >= 85, share > 0
	}},
	{"live, UDP, 5 Mbit/s × 200: cost", "≤ 1.3 × limit", byLimit("live-udp-gortsplib", 200, LimitShared, 1.3)},
	{"the same by MediaMTX's own", "≤ 1/8", byServer("live-udp-mediamtx", 200, "live-udp-mediamtx", 200, 8)},
	{"the same by gortsplib's own", "≤ 1/8", byServer("live-udp-gortsplib", 200, "live-udp-gortsplib", 200, 8)},
	{"the same over a network: cost", "≤ 1.3 × limit", byLimit("live-udp-net-gortsplib", 200, LimitShared, 1.3)},
	{"the same by a raw loop that fans the stream out in time", "≤ 1.3 ×", byLimit("live-udp-net-gortsplib", 200, LimitFanned, 1.3)},
	{"the shim alone by MediaMTX's own", "≤ 1/6", aloneBy("live-udp-net-mediamtx", 200, 6)},
	{"the shim alone by gortsplib's own", "≤ 1/6", aloneBy("live-udp-net-gortsplib", 200, 6)},
	{"the same: delay added, p99", "≤ 2 ms", delay("live-udp-gortsplib")},
	{"the same over a network", "≤ 2 ms", delay("live-udp-net-gortsplib")},
	{"movie, TCP × 200: cost", "≤ 1.5 × raw TCP loop", byLimit("movie-tcp", 200, LimitTCP, 1.5)},
	{"live, TCP × 200: cost", "≤ 1.5 × raw TCP loop", byLimit("live-tcp-gortsplib", 200, LimitTCP, 1.5)},
	{"live, TCP × 200 by gortsplib's own", "≤ 1/4", byServer("live-tcp-gortsplib", 200, "live-tcp-gortsplib", 200, 4)},
	{"the same over a network", "≤ 1/4", byServer("live-tcp-net-gortsplib", 200, "live-tcp-net-gortsplib", 200, 4)},
	{"the same by MediaMTX's own", "≤ 1/4", byServer("live-tcp-net-mediamtx", 200, "live-tcp-net-mediamtx", 200, 4)},
	{"most streams of 2 Mbit/s", "≥ 2,000", func(all reports) (string, bool, bool) {
		n := all.most("most-shim")
		text := fmt.Sprint(n)
		if gro := all.most("most-shim-gro"); gro > 0 {
			text += fmt.Sprintf("; %d to viewers with UDP_GRO", gro)
		}
		return text, n >= 2000, n > 0
	}},
	{"the same by Darwin's own", "≥ 5 ×", times("most-darwin")},
	{"the same by gortsplib's own", "≥ 5 ×", times("most-gortsplib")},
	{"late p99.9 at 80 % of that", "≤ 5 ms", punctual("steady", 5)},
	{"with a CPU hog on every core", "≤ 20 ms", punctual("steady-cpu-hog", 20)},
	{"with a disk hog, from disk", "≤ 20 ms, no underrun", func(all reports) (string, bool, bool) {
		text, met, ok := punctual("steady-disk-hog", 20)(all)
		if ok {
			text, met = text+"; "+all["steady-disk-hog"].Note, met && strings.Contains(all["steady-disk-hog"].Note, "; 0 an underrun")
		}
		return text, met, ok
	}},
	{fmt.Sprintf("cost per stream of 64 kbit/s, 100 → %d streams", thinMost), "grows ≤ 20 %", func(all reports) (string, bool, bool) {
		a, b := all.run("thin-udp", 1, 100), all.run("thin-udp", 1, thinMost)
		if a == nil || b == nil || alone(a) == 0 {
			return "", false, false
		}
		each := func(r *Run) float64 { return 1e6 * r.Processes[0].CPU / r.Seconds / float64(r.Sessions) }
		return fmt.Sprintf("%s → %s µs of CPU a second", short(each(a)), short(each(b))), each(b) <= 1.2*each(a), true
	}},
	{"memory per playing session, beside shared blocks", "≤ 64 KiB", func(all reports) (string, bool, bool) {
		thin, movie := all.run("thin-udp", 1, thinMost), all.run("movie-udp", 1, 0)
		if thin == nil || movie == nil {
			return "", false, false
		}
		a, b := thin.Processes[0].PerSession, movie.Processes[0].PerSession
		return fmt.Sprintf("%s KiB at 64 kbit/s, %s at 2 Mbit/s", short(a), short(b)), a <= 64 && b <= 64, a > 0 && b > 0
	}},
	{"set-up added under 500 sessions/s, p50 / p99", "≤ 0.5 / ≤ 5 ms", func(all reports) (string, bool, bool) {
		a, b := all.run("set-up", 0, 0), all.run("set-up", 1, 0)
		if a == nil || b == nil {
			return "", false, false
		}
		p50, p99 := b.SetUp.P50-a.SetUp.P50, b.SetUp.P99-a.SetUp.P99
		return fmt.Sprintf("%s / %s ms (%s / %s against %s / %s)", short(p50), short(p99), short(b.SetUp.P50), short(b.SetUp.P99), short(a.SetUp.P50), short(a.SetUp.P99)),
			p50 <= .5 && p99 <= 5, true
	}},
}

// times compares the most sessions of the shim with those of another.
func times(report string) func(all reports) (string, bool, bool) {
	return func(all reports) (string, bool, bool) {
		a, b := all.most(report), all.most("most-shim")
		if a == 0 || b == 0 {
			return "", false, false
		}
		return fmt.Sprintf("%s × (%d)", short(float64(b)/float64(a)), a), b >= 5*a, true
	}
}

func writeTargets(w io.Writer, all reports) {
	fmt.Fprint(w, "\n## Targets\n\n| figure | target | reached | |\n|---|---|---|---|\n")
	for _, t := range targets {
		figure, met, ok := t.of(all)
		state := "missed"
		switch {
		case !ok:
			figure, state = "–", "not measured"
		case met:
			state = "met"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", t.what, t.want, figure, state)
	}
}
