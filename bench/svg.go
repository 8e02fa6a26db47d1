package bench

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Plot is one figure over the load, a line for each server.
type Plot struct {
	Name   string // of a file, without its end
	Title  string
	Unit   string
	Log    bool // the figure on a logarithmic axis too: it is never 0
	Lines  []Line
	Limit  float64 // drawn across, if not 0
	Limits string  // what it is
}

// Line is the figure of one server.
type Line struct {
	Name   string
	Points []Point
}

// Point is a figure at a load.
type Point struct{ Load, Value float64 }

// plotted are the figures worth a picture.
var plotted = []struct {
	name, title, unit string
	of                func(*Run) (float64, bool)
}{
	{"cost", "What it costs", "CPU-s/GiB", func(r *Run) (float64, bool) { return r.Cost, r.Cost > 0 }},
	{"late-p99", "Lateness, 99 of 100 frames", "ms", func(r *Run) (float64, bool) { return r.Late.P99, r.Late.N > 0 }},
	{"late-p999", "Lateness, 999 of 1000 frames", "ms", func(r *Run) (float64, bool) { return r.Late.P999, r.Late.N > 0 }},
	{"skew-p99", "Fan-out skew, 99 of 100 frames", "ms", func(r *Run) (float64, bool) { return r.Skew.P99, r.Skew.N > 0 }},
	{"lost", "Lost packets", "%", func(r *Run) (float64, bool) {
		return 100 * float64(r.Lost) / math.Max(1, float64(r.Lost+r.Packets)), r.Packets > 0
	}},
	{"rate", "What arrives", "Gbit/s", func(r *Run) (float64, bool) { return r.Gbps, r.Packets > 0 }},
	{"set-up-p99", "DESCRIBE, SETUP and PLAY, 99 of 100", "ms", func(r *Run) (float64, bool) { return r.SetUp.P99, r.SetUp.N > 0 }},
}

// Plots returns the pictures of the report: none with a single load.
func (r *Report) Plots() []Plot {
	loads := map[int]bool{}
	for i := range r.Runs {
		loads[r.Runs[i].Load] = true
	}
	if len(loads) < 2 {
		return nil
	}
	var all []Plot
	for _, f := range plotted {
		p := Plot{Name: f.name, Title: f.title, Unit: f.unit, Log: f.name == "cost"}
		at := map[string]int{}
		for i := range r.Runs {
			run := &r.Runs[i]
			v, ok := f.of(run)
			if !ok {
				continue
			}
			n, ok := at[run.Server]
			if !ok {
				n = len(p.Lines)
				at[run.Server] = n
				p.Lines = append(p.Lines, Line{Name: run.Server})
			}
			p.Lines[n].Points = append(p.Lines[n].Points, Point{float64(run.Load), v})
			for _, l := range r.Limits {
				if f.name == "cost" && l.Name == limitOf(r.Transport == "tcp", run.Live) {
					p.Limit, p.Limits = l.Cost, "the kernel alone ("+l.Name+")"
				}
			}
		}
		if len(p.Lines) > 0 {
			all = append(all, p)
		}
	}
	for i := range all {
		for k := range all[i].Lines { // a search goes up and down
			slices.SortStableFunc(all[i].Lines[k].Points, func(a, b Point) int { return cmp.Compare(a.Load, b.Load) })
		}
	}
	return all
}

// The picture, in pixels.
const (
	plotWidth, plotHeight           = 640, 400
	plotLeft, plotRight             = 70, 20
	plotTop, plotBottom             = 60, 50
	plotInnerWidth, plotInnerHeight = plotWidth - plotLeft - plotRight, plotHeight - plotTop - plotBottom
	plotTicks                       = 5
)

var plotColours = []string{"#0b62a4", "#c4452f", "#3a8a3a", "#7a4fa3", "#b07a00"}

// WriteSVG draws the plot: the load on a logarithmic axis, the figure on a
// linear one from 0 or, if Log says so, on a logarithmic one too.
func (p Plot) WriteSVG(w io.Writer) error {
	lo, hi := math.Inf(1), 0.
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			lo, hi = math.Min(lo, pt.Load), math.Max(hi, pt.Load)
		}
	}
	if hi == 0 {
		return fmt.Errorf("plot %s: nothing to draw", p.Name)
	}
	ticks, height := p.scale()
	x := func(load float64) float64 {
		if hi == lo {
			return plotLeft + plotInnerWidth/2
		}
		return plotLeft + plotInnerWidth*math.Log(load/lo)/math.Log(hi/lo)
	}
	y := func(v float64) float64 { return plotTop + plotInnerHeight*(1-height(v)) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	text := func(x, y float64, anchor, style, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, style, escape(s))
	}
	text(plotLeft, 20, "start", `font-size="15" font-weight="bold"`, p.Title)
	text(plotLeft-8, plotTop-8, "end", "", p.Unit)
	text(plotWidth-plotRight, plotHeight-10, "end", "", "sessions")
	for _, v := range ticks {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1[3]f" stroke="#ddd"/>`+"\n", plotLeft, plotWidth-plotRight, y(v))
		text(plotLeft-8, y(v)+4, "end", "", fmt.Sprintf("%.4g", v))
	}
	p.drawLoads(&b, x, text)
	for i, l := range p.Lines {
		p.drawLine(&b, i, l, x, y)
		text(plotLeft+float64(i)*200, 40, "start", fmt.Sprintf(`fill="%s"`, plotColours[i%len(plotColours)]), "— "+l.Name)
	}
	if p.Limit > 0 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1[3]f" stroke="#555" stroke-dasharray="4 3"/>`+"\n", plotLeft, plotWidth-plotRight, y(p.Limit))
		text(plotWidth-plotRight, y(p.Limit)-4, "end", `fill="#555"`, p.Limits)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// scale is the axis of the figure: the values to mark, and how high up, from 0
// to 1, a value is.
func (p Plot) scale() (ticks []float64, height func(float64) float64) {
	least, most := math.Inf(1), 0.
	see := func(v float64) {
		if most = math.Max(most, v); v > 0 {
			least = math.Min(least, v)
		}
	}
	see(p.Limit)
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			see(pt.Value)
		}
	}
	if p.Log && most > 0 {
		least = math.Pow(10, math.Floor(math.Log10(least)))
		most = math.Pow(10, math.Ceil(math.Log10(most)))
		if most == least {
			most *= 10
		}
		for power := least; power <= most*1.01; power *= 10 {
			ticks = append(ticks, power)
		}
		return ticks, func(v float64) float64 { return math.Log(math.Max(v, least)/least) / math.Log(most/least) }
	}
	step := niceStep(most / plotTicks)
	most = step * math.Max(1, math.Ceil(most/step-1e-9))
	for v := 0.; v <= most+step/2; v += step {
		ticks = append(ticks, v)
	}
	return ticks, func(v float64) float64 { return v / most }
}

// drawLoads marks each load once on the axis.
func (p Plot) drawLoads(b *strings.Builder, x func(float64) float64, text func(x, y float64, anchor, style, s string)) {
	done := map[float64]bool{}
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			if done[pt.Load] {
				continue
			}
			done[pt.Load] = true
			fmt.Fprintf(b, `<line x1="%.1f" x2="%.1[1]f" y1="%d" y2="%d" stroke="#999"/>`+"\n", x(pt.Load), plotHeight-plotBottom, plotHeight-plotBottom+5)
			text(x(pt.Load), plotHeight-plotBottom+18, "middle", "", fmt.Sprintf("%g", pt.Load))
		}
	}
}

func (p Plot) drawLine(b *strings.Builder, i int, l Line, x, y func(float64) float64) {
	colour := plotColours[i%len(plotColours)]
	fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colour)
	for _, pt := range l.Points {
		fmt.Fprintf(b, "%.1f,%.1f ", x(pt.Load), y(pt.Value))
	}
	b.WriteString(`"/>` + "\n")
	for _, pt := range l.Points {
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s: %g sessions, %.4g %s</title></circle>`+"\n",
			x(pt.Load), y(pt.Value), colour, escape(l.Name), pt.Load, pt.Value, escape(p.Unit))
	}
}

// niceStep is the next of 1, 2 and 5 times a power of ten.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*power*(1+1e-9) {
			return m * power
		}
	}
	return 10 * power
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // to a Builder: no error
	return b.String()
}
