package bench

import (
	"cmp"
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes the report as a table, a row for each load and server.
// Where two servers took turns, the second one's row says how many times
// cheaper it was.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| sessions | server | Gbit/s | CPU-s/GiB | × limit | × paced | times cheaper | lost | late, ms: p50 / p99 / p99.9 | frame spread p99, ms | set-up p50 / p99, ms | KiB/session |\n")
	b.WriteString("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i := range r.Runs {
		run := &r.Runs[i]
		cheaper := "–"
		if i > 0 && r.Runs[i-1].Load == run.Load && run.Server != r.Runs[i-1].Server && run.Cost > 0 && r.Runs[i-1].Cost > 0 {
			cheaper = short(r.Runs[i-1].Cost / run.Cost)
		}
		played := fmt.Sprint(run.Sessions)
		if run.Sessions < run.Load {
			played = fmt.Sprintf("%d of %d", run.Sessions, run.Load)
		}
		fmt.Fprintf(&b, "| %s | %s | %.3g | %s | %s | %s | %s | %s | %s / %s / %s | %s | %s / %s | %s |\n", played, run.Server, run.Gbps,
			known(run.Cost), known(run.TimesLimit), known(run.TimesPaced), cheaper, lossShare(run), short(run.Late.P50), short(run.Late.P99), short(run.Late.P999),
			short(run.Spread.P99), short(run.SetUp.P50), short(run.SetUp.P99), known(run.PerSession))
	}
	for i := range r.Runs {
		for _, s := range r.Runs[i].warnings() {
			fmt.Fprintf(&b, "\n* %s, %d sessions: %s", r.Runs[i].Server, r.Runs[i].Load, s)
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func lossShare(r *Run) string {
	if r.Lost == 0 {
		return "0"
	}
	return fmt.Sprintf("%.3g %%", 100*float64(r.Lost)/float64(r.Lost+r.Packets))
}

// WriteLimitsMarkdown writes limits as a table.
func WriteLimitsMarkdown(w io.Writer, all []Limit) error {
	var b strings.Builder
	b.WriteString("| limit | CPU-s/GiB | Gbit/s | |\n|---|--:|--:|---|\n")
	for _, l := range all {
		fmt.Fprintf(&b, "| %s | %.2f | %.1f | %s |\n", l.Name, l.Cost, l.Gbps, l.What)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Machine is the machine, in a line.
func (r *Report) Machine() string {
	return fmt.Sprintf("%d × %s, %s", r.Cores, cmp.Or(r.CPU, "?"), r.Kernel)
}
