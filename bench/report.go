package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what Measure found.
type Report struct {
	Time      time.Time `json:"time"`
	Commit    string    `json:"commit,omitempty"` // of what was measured, where the caller knows
	Note      string    `json:"note,omitempty"`   // of the caller's
	CPU       string    `json:"cpu"`
	Cores     int       `json:"cores"`
	Kernel    string    `json:"kernel"`
	Transport string    `json:"transport"` // "udp" or "tcp"
	GRO       bool      `json:"gro,omitempty"`
	Duration  float64   `json:"duration_s"` // of a window
	Rounds    int       `json:"rounds"`
	MaxLate   float64   `json:"max_late_ms"` // of 999 of 1000 frames, for Capacity
	Limits    []Limit   `json:"limits,omitempty"`
	Runs      []Run     `json:"runs"` // by load, then by server

	names []string
}

// Run is what one server did at one load, all rounds together. Times are in
// milliseconds unless their name says otherwise.
type Run struct {
	Server   string         `json:"server"`
	URL      string         `json:"url"`
	Load     int            `json:"load"`     // sessions wanted
	Sessions int            `json:"sessions"` // that played, in the best round
	Failed   int            `json:"failed"`   // that could not be set up, in all rounds
	Errors   map[string]int `json:"errors,omitempty"`
	Live     bool           `json:"live,omitempty"`

	Seconds float64 `json:"seconds"` // of all windows together
	Packets uint64  `json:"packets"`
	Bytes   uint64  `json:"bytes"` // of RTP packets
	Gbps    float64 `json:"gbps"`

	Lost      uint64 `json:"lost"`
	Dropped   uint64 `json:"dropped_here"` // of those lost: by our own sockets
	Reordered uint64 `json:"reordered"`
	Duplicate uint64 `json:"duplicate"`
	Foreign   uint64 `json:"foreign,omitempty"` // packets that are not RTP
	Sources   uint64 `json:"sources,omitempty"` // changes of SSRC
	Silent    int    `json:"silent"`            // sessions without a packet in the window
	Broken    int    `json:"broken"`            // sessions that the server ended
	Timeless  uint64 `json:"timeless,omitempty"`

	Late   Quantiles `json:"late_ms"`
	Ahead  Quantiles `json:"ahead_ms"` // of movies over TCP, each track's most
	Spread Quantiles `json:"spread_ms"`
	Skew   Quantiles `json:"skew_ms"`
	Added  Quantiles `json:"added_ms"`     // to what a session at the server behind sees
	Raw    Quantiles `json:"added_raw_ms"` // the same by a raw loop that begins at once
	Burst  Quantiles `json:"burst_packets"`

	Connect  Quantiles `json:"connect_ms"`
	Describe Quantiles `json:"describe_ms"`
	Setup    Quantiles `json:"setup_ms"` // all medias
	Play     Quantiles `json:"play_ms"`
	First    Quantiles `json:"first_packet_ms"` // from sending PLAY
	SetUp    Quantiles `json:"set_up_ms"`       // DESCRIBE, SETUP and PLAY

	Processes  []Process `json:"processes,omitempty"`
	CPU        float64   `json:"cpu_s"`         // of them all
	Cost       float64   `json:"cpu_s_per_gib"` // 0 if not known
	Costs      []float64 `json:"cpu_s_per_gib_by_round,omitempty"`
	TimesLimit float64   `json:"times_limit,omitempty"`
	TimesPaced float64   `json:"times_paced,omitempty"`
	Resident   uint64    `json:"resident_bytes,omitempty"`
	PerSession float64   `json:"kib_per_session,omitempty"` // more than at the first load; there: than with none

	SelfCPU    float64  `json:"self_cpu_s"`
	ReaderCPU  float64  `json:"reader_cpu_s"`
	MachineCPU float64  `json:"machine_cpu_s"`
	Stolen     float64  `json:"stolen_s"`
	Verified   Verified `json:"verified"`
}

// Process is one of a server's processes.
type Process struct {
	Pid     int     `json:"pid"`
	Command string  `json:"command"`
	CPU     float64 `json:"cpu_s"`

	Resident   uint64  `json:"resident_bytes,omitempty"`
	PerSession float64 `json:"kib_per_session,omitempty"`
}

func newReport(cfg Config) *Report {
	r := &Report{Time: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), Transport: "udp", GRO: cfg.GRO,
		Duration: cfg.Duration.Seconds(), Rounds: cfg.Rounds, MaxLate: cfg.MaxLate.Seconds() * 1e3}
	r.CPU, r.Kernel = machine()
	if cfg.TCP {
		r.Transport = "tcp"
	}
	for _, s := range cfg.Servers {
		r.names = append(r.names, s.Name)
	}
	return r
}

// add takes in a run, and measures it by its limit.
func (r *Report) add(run Run) {
	for _, l := range r.Limits {
		if l.Name == limitOf(r.Transport == "tcp", run.Live) && l.Cost > 0 {
			run.TimesLimit = run.Cost / l.Cost
		}
		if l.Name == pacedOf(run.Live) && r.Transport == "udp" && l.Cost > 0 {
			run.TimesPaced = run.Cost / l.Cost
		}
	}
	r.Runs = append(r.Runs, run)
}

// result is the figures of a tally.
func (t *tally) result() Run {
	r := t.sum
	r.Server, r.URL, r.Load, r.Live = t.server.Name, t.server.URL, t.load, t.live
	r.Sessions, r.Failed, r.Errors = t.sessions, t.failed, t.errors
	if r.Seconds > 0 {
		r.Gbps = float64(r.Bytes) * 8 / 1e9 / r.Seconds
	}
	r.Late, r.Ahead, r.Spread, r.Skew = t.late.quantiles(), t.ahead.quantiles(), t.spread.quantiles(), t.skew.quantiles()
	r.Added, r.Raw = t.added.quantiles(), t.raw.quantiles()
	r.Burst = burstQuantiles(t.bursts)
	for i, q := range []*Quantiles{&r.Connect, &r.Describe, &r.Setup, &r.Play, &r.First, &r.SetUp} {
		*q = t.steps[i].quantiles()
	}
	for i, d := range t.cpu {
		pid := t.server.Pids[i]
		p := Process{Pid: pid, Command: command(pid), CPU: d.Seconds(), Resident: t.resident[i]}
		if t.base.resident[i] < p.Resident && r.Sessions > t.base.sessions {
			p.PerSession = float64(p.Resident-t.base.resident[i]) / 1024 / float64(r.Sessions-t.base.sessions)
		}
		r.Processes = append(r.Processes, p)
		r.CPU += p.CPU
		r.Resident += p.Resident
		r.PerSession += p.PerSession
	}
	if r.Bytes > 0 {
		r.Cost = r.CPU / (float64(r.Bytes) / (1 << 30))
	}
	r.Costs = t.costs
	return r
}

// warnings says what makes the figures doubtful.
func (r *Run) warnings() []string {
	var all []string
	say := func(format string, a ...any) { all = append(all, fmt.Sprintf(format, a...)) }
	if r.Failed > 0 {
		for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
			say("%d sessions could not be set up: %s", r.Errors[kind], kind)
		}
	}
	if r.Dropped > 0 {
		say("the bench itself was too slow: its sockets dropped %d packets", r.Dropped)
	}
	if r.ReaderCPU > .9*r.Seconds {
		say("the bench itself was at its limit: its readers used %.2f CPU-s in %.1f s", r.ReaderCPU, r.Seconds)
	}
	if r.Stolen > .02*r.Seconds {
		say("the hypervisor took %.2f s of CPU time away", r.Stolen)
	}
	if others := (r.MachineCPU - r.CPU - r.SelfCPU) / r.Seconds; r.CPU > 0 && others > .2 {
		say("the machine was not ours alone: others used %.2f CPU-s/s", others)
	}
	if r.Silent > 0 {
		say("%d sessions got nothing", r.Silent)
	}
	if r.Broken > 0 {
		say("the server ended %d sessions", r.Broken)
	}
	if r.Foreign > 0 {
		say("%d packets were not RTP", r.Foreign)
	}
	if r.Timeless > 0 {
		say("%d packets had no kernel time stamp", r.Timeless)
	}
	if v := r.Verified; v.Different > 0 || v.Unaligned > 0 || v.Incomplete > 0 {
		say("compared pairs: %d packets differ, %d tracks have nothing in common, %d were longer than is kept", v.Different, v.Unaligned, v.Incomplete)
	}
	return all
}

// row is a figure of a table. Without ratio it is only told, not compared.
type row struct {
	name  string
	text  func(*Run) string
	ratio func(*Run) float64
}

func number(f func(*Run) float64) func(*Run) string {
	return func(r *Run) string { return short(f(r)) }
}

var rows = []row{
	{"sessions", func(r *Run) string { return fmt.Sprintf("%d of %d", r.Sessions, r.Load) }, nil},
	{"Gbit/s", func(r *Run) string { return fmt.Sprintf("%.3f", r.Gbps) }, func(r *Run) float64 { return r.Gbps }},
	{"CPU-s/GiB", func(r *Run) string { return known(r.Cost) }, func(r *Run) float64 { return r.Cost }},
	{"  by round", func(r *Run) string { return list(r.Costs) }, nil},
	{"  by process, CPU-s", func(r *Run) string { return processes(r.Processes) }, nil},
	{"  × the limit", func(r *Run) string { return known(r.TimesLimit) }, nil},
	{"  × the paced loop", func(r *Run) string { return known(r.TimesPaced) }, nil},
	{"lost", func(r *Run) string { return share(r.Lost, r.Packets+r.Lost) }, nil},
	{"  by our sockets", func(r *Run) string { return fmt.Sprint(r.Dropped) }, nil},
	{"reordered, duplicate", func(r *Run) string { return fmt.Sprintf("%d, %d", r.Reordered, r.Duplicate) }, nil},
	{"late, ms *", func(r *Run) string { return r.Late.String() }, func(r *Run) float64 { return r.Late.P99 }},
	{"ahead, ms *", func(r *Run) string { return r.Ahead.String() }, nil},
	{"frame spread, ms *", func(r *Run) string { return r.Spread.String() }, func(r *Run) float64 { return r.Spread.P99 }},
	{"fan-out skew, ms *", func(r *Run) string { return r.Skew.String() }, func(r *Run) float64 { return r.Skew.P99 }},
	{"delay added, ms *", func(r *Run) string { return r.Added.String() }, func(r *Run) float64 { return r.Added.P99 }},
	{"  by a raw loop", func(r *Run) string { return r.Raw.String() }, nil},
	{"burst, packets *", func(r *Run) string { return r.Burst.String() }, nil},
	{"DESCRIBE, ms *", func(r *Run) string { return r.Describe.String() }, func(r *Run) float64 { return r.Describe.P50 }},
	{"SETUP (all), ms *", func(r *Run) string { return r.Setup.String() }, func(r *Run) float64 { return r.Setup.P50 }},
	{"PLAY, ms *", func(r *Run) string { return r.Play.String() }, func(r *Run) float64 { return r.Play.P50 }},
	{"first packet, ms *", func(r *Run) string { return r.First.String() }, func(r *Run) float64 { return r.First.P50 }},
	{"KiB per session", func(r *Run) string { return known(r.PerSession) }, func(r *Run) float64 { return r.PerSession }},
	{"verified, packets", func(r *Run) string { return verified(r.Verified) }, nil},
	{"bench itself, CPU-s/s", number(func(r *Run) float64 { return r.SelfCPU / r.Seconds }), nil},
	{"machine, CPU-s/s", number(func(r *Run) float64 { return r.MachineCPU / r.Seconds }), nil},
}

func known(v float64) string {
	if v == 0 {
		return "–"
	}
	return short(v)
}

func list(v []float64) string {
	if len(v) < 2 {
		return "–"
	}
	var s []string
	for _, x := range v {
		s = append(s, short(x))
	}
	return strings.Join(s, " ")
}

func processes(p []Process) string {
	if len(p) < 2 {
		return "–"
	}
	var s []string
	for _, x := range p {
		s = append(s, fmt.Sprintf("%s %s", x.Command, short(x.CPU)))
	}
	return strings.Join(s, ", ")
}

func share(n, of uint64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%.3f %%)", n, 100*float64(n)/float64(of))
}

func verified(v Verified) string {
	if v.Pairs == 0 {
		return "–"
	}
	return fmt.Sprintf("%d in %d pairs, %d differ", v.Packets, v.Pairs, v.Different)
}

// WriteText writes the report for people: a table for each load.
func (r *Report) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%s, %d cores, %s; %s, windows of %g s, %d round(s)\n", cmp.Or(r.CPU, "?"), r.Cores, r.Kernel, r.Transport, r.Duration, r.Rounds)
	if len(r.Limits) > 0 {
		fmt.Fprintln(w)
		if err := WriteLimits(w, r.Limits); err != nil {
			return err
		}
	}
	for at := 0; at < len(r.Runs); {
		n := at + 1
		for n < len(r.Runs) && r.Runs[n].Load == r.Runs[at].Load && n-at < len(r.names) {
			n++
		}
		if err := r.writeLoad(w, r.Runs[at:n]); err != nil {
			return err
		}
		at = n
	}
	fmt.Fprintln(w, "\n* p50 / p99 / p99.9 / max")
	for _, name := range r.names {
		if n := r.Capacity(name); len(r.Runs) > len(r.names) {
			fmt.Fprintf(w, "%s: %d sessions, of these loads, without loss and with 999 of 1000 frames at most %v late\n", name, n, time.Duration(r.MaxLate*float64(time.Millisecond)))
		}
	}
	return nil
}

// fine says that all sessions played, without losing a packet or being late.
func (r *Run) fine(maxLate float64) bool {
	return r.Lost <= r.Dropped && r.Sessions >= r.Load && r.Silent+r.Broken == 0 && r.Late.P999 <= maxLate
}

// Capacity is the highest load at which a server played all sessions without
// losing a packet or being late, and at every lower one too; 0 if at none.
func (r *Report) Capacity(server string) int {
	best, least := 0, math.MaxInt
	for i := range r.Runs {
		if run := &r.Runs[i]; run.Server == server && !run.fine(r.MaxLate) {
			least = min(least, run.Load)
		}
	}
	for i := range r.Runs {
		if run := &r.Runs[i]; run.Server == server && run.Load < least {
			best = max(best, run.Load)
		}
	}
	return best
}

func (r *Report) writeLoad(w io.Writer, runs []Run) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\n%d sessions", runs[0].Load)
	for i := range runs {
		fmt.Fprintf(tw, "\t%s", runs[i].Server)
	}
	if len(runs) == 2 {
		fmt.Fprintf(tw, "\tsecond / first")
	}
	fmt.Fprintln(tw)
	for _, row := range rows {
		line, told := row.name, false
		for i := range runs {
			text := row.text(&runs[i])
			told = told || text != "–"
			line += "\t" + text
		}
		if !told {
			continue
		}
		if len(runs) == 2 && row.ratio != nil {
			if a, b := row.ratio(&runs[0]), row.ratio(&runs[1]); a > 0 && b > 0 {
				line += "\t" + short(b/a)
			}
		}
		fmt.Fprintln(tw, line)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for i := range runs {
		for _, s := range runs[i].warnings() {
			fmt.Fprintf(w, "! %s: %s\n", runs[i].Server, s)
		}
	}
	return nil
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(r)
}
