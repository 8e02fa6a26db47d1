package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"rtspshim/compat"
	"rtspshim/compat/judge"
	"rtspshim/compat/talk"
)

// Size of a picture in SVG units, and how much of it the packets take.
const (
	pictureWidth, pictureHeight = 480, 190
	barsTop, barsBottom         = 6, 96
	leadTop, leadBottom         = 112, 172
	maxBars                     = 240
	maxPoints                   = 200
	maxPictures                 = 4 // of a point
)

// picture is the pacing of one section, upstream and shim on the same scales.
type picture struct {
	Title        string
	Direct, Shim template.HTML
	A, B         judge.Pace
	Wide         bool
}

// series is what is drawn of one side.
type series struct {
	bars []int     // packets in each interval
	lead []float64 // seconds, evenly thinned
	at   []float64 // when, seconds
	span float64
}

// pictures draws the sections of a point in which media was heard.
func pictures(p compat.Point) []picture {
	var out []picture
	for _, a := range p.Direct.Tracks {
		b := twin(p.Shim, a)
		if b == nil {
			continue
		}
		sa, sb := judge.Sections(p.Direct, a), judge.Sections(p.Shim, b)
		for i := range min(len(sa), len(sb)) {
			if sa[i].Method != "PLAY" || sa[i].To-sa[i].From < 20 || len(out) == maxPictures || a.Kind == "audio" && len(out) > 0 {
				continue
			}
			out = append(out, draw(a, b, sa[i], sb[i]))
		}
	}
	return out
}

func twin(r *talk.Recording, t *talk.Track) *talk.Track {
	for _, other := range r.Tracks {
		if other.Conn == t.Conn && other.Media == t.Media {
			return other
		}
	}
	return nil
}

func draw(a, b *talk.Track, sa, sb judge.Section) picture {
	span := max(heard(a, sa), heard(b, sb), 0.1)
	x, y := plot(a, sa, span), plot(b, sb, span)
	most, low, high := 1, -0.05, 0.05
	for _, s := range []series{x, y} {
		for _, n := range s.bars {
			most = max(most, n)
		}
		for _, v := range s.lead {
			low, high = min(low, v), max(high, v)
		}
	}
	title := sa.Label + ", " + a.Kind
	if a.Conn != "A" {
		title += " of " + a.Conn
	}
	return picture{Title: title, A: judge.PaceOf(a, sa), B: judge.PaceOf(b, sb),
		Direct: svg(x, most, low, high, "upstream"), Shim: svg(y, most, low, high, "shim")}
}

// heard is how long packets came, from the answer on, seconds.
func heard(t *talk.Track, s judge.Section) float64 {
	if s.To == s.From {
		return 0
	}
	return (t.Packets[s.To-1].At - s.Begin).Seconds()
}

func plot(t *talk.Track, s judge.Section, span float64) series {
	out := series{span: span, bars: make([]int, maxBars)}
	for _, p := range t.Packets[s.From:s.To] {
		i := int((p.At - s.Begin).Seconds() / span * maxBars)
		out.bars[min(max(i, 0), maxBars-1)]++
	}
	lead, ok := judge.Lead(t, s)
	if !ok {
		return out
	}
	step := max(1, len(lead)/maxPoints)
	for i := 0; i < len(lead); i += step {
		out.lead = append(out.lead, lead[i])
		out.at = append(out.at, (t.Packets[s.From+i].At - s.Begin).Seconds())
	}
	return out
}

// svg draws bars of packets over time, and below them by how much media time
// runs ahead of time.
func svg(s series, most int, low, high float64, side string) template.HTML {
	const left, right = 40, pictureWidth - 6
	px := func(at float64) float64 { return left + (right-left)*min(max(at/s.span, 0), 1) }
	var o strings.Builder
	fmt.Fprintf(&o, `<svg viewBox="0 0 %d %d" role="img" aria-label="packets over time and lead, %s">`, pictureWidth, pictureHeight, side)
	interval := time.Duration(s.span / maxBars * float64(time.Second))
	fmt.Fprintf(&o, `<text x="0" y="%d" class="t">%d</text><text x="0" y="%d" class="t">0</text>`, barsTop+9, most, barsBottom)
	fmt.Fprintf(&o, `<line class="axis" x1="%d" x2="%d" y1="%d" y2="%d"/>`, left, right, barsBottom, barsBottom)
	o.WriteString(`<path class="bars" d="`)
	for i, n := range s.bars {
		if n > 0 {
			fmt.Fprintf(&o, "M%.1f %dV%.1f", px((float64(i)+.5)/maxBars*s.span), barsBottom,
				barsBottom-(barsBottom-barsTop)*float64(n)/float64(most))
		}
	}
	fmt.Fprintf(&o, `"><title>packets in each %.0f ms</title></path>`, math.Max(1, float64(interval.Milliseconds())))
	if len(s.lead) > 1 {
		py := func(v float64) float64 { return leadBottom - (leadBottom-leadTop)*(v-low)/(high-low) }
		fmt.Fprintf(&o, `<line class="axis" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, left, right, py(0), py(0))
		fmt.Fprintf(&o, `<text x="0" y="%d" class="t">%+.0f ms</text><text x="0" y="%d" class="t">%+.0f ms</text>`,
			leadTop+4, high*1000, leadBottom+3, low*1000)
		o.WriteString(`<polyline class="lead" points="`)
		for i, v := range s.lead {
			fmt.Fprintf(&o, "%.1f,%.1f ", px(s.at[i]), py(v))
		}
		o.WriteString(`"><title>lead of media time over time</title></polyline>`)
	}
	for _, share := range []float64{0, .5, 1} {
		anchor := map[float64]string{0: "start", .5: "middle", 1: "end"}[share]
		fmt.Fprintf(&o, `<text class="t" text-anchor="%s" x="%.1f" y="%d">%.1f s</text>`, anchor, px(share*s.span), pictureHeight-4, share*s.span)
	}
	o.WriteString(`</svg>`)
	return template.HTML(o.String()) //nolint:gosec // numbers and constants only
}
