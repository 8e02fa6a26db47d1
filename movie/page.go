package movie

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"rtspshim/engine/hint"
)

// WriteTo writes the report as a readable page.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s, %s\n", r.File, bytesText(r.Bytes), secondsText(r.Seconds))
	section(&b, "Tracks", func(w *strings.Builder) {
		fmt.Fprintln(w, "id\tkind\tformat\tsamples\tlength\thints for")
		for _, t := range r.Tracks {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\n", t.ID, t.Kind, t.Format, t.Samples, secondsText(t.Seconds),
				strings.Trim(fmt.Sprint(t.Refs), "[]"))
		}
	})
	if len(r.Hints) > 0 {
		section(&b, "What is sent", r.sent)
		section(&b, "When", r.when)
		section(&b, "Reading a second at a time", func(w *strings.Builder) {
			d := &r.Reading
			fmt.Fprintf(w, "places in the file\t%.1f a second, at most %d\n", d.Extents, d.MostExtents)
			fmt.Fprintf(w, "read\t%s for %s sent, at most %s in a second\n", bytesText(d.BytesRead), bytesText(d.BytesSent), bytesText(d.MostBytesRead))
			fmt.Fprintf(w, "farthest apart\t%.1f MB in one second\n", d.LongestReachMB)
			fmt.Fprintf(w, "read twice\t%d of %d seconds had hints that point elsewhere than their time\n", d.SecondLooks, d.Seconds)
		})
		fmt.Fprintf(&b, "\nSDP\n  %s\n", strings.ReplaceAll(strings.TrimSpace(r.SDP), "\r\n", "\n  "))
	}
	if len(r.Problems) == 0 {
		b.WriteString("\nNo problems found\n")
	} else {
		b.WriteString("\nProblems\n")
		for _, p := range r.Problems {
			where := ""
			if p.Track != 0 {
				where = fmt.Sprintf("track %d ", p.Track)
			}
			fmt.Fprintf(&b, "  * %s%s\n    → %s\n", where, p.What, p.Advice)
		}
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func (r *Report) sent(w *strings.Builder) {
	fmt.Fprintln(w, "track\tmedia\tpackets\tbytes\taverage\tpeak (1 s)\tpacket size\thint data\tfirst seq")
	for _, h := range r.Hints {
		share := 0.0
		if h.Bytes > 0 {
			share = 100 * float64(h.HintBytes) / float64(h.Bytes)
		}
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%.0f kbit/s\t%.0f kbit/s\t%d–%d, %.0f on average\t%.1f %%\t%d\n", h.Track, h.Media, h.Packets,
			bytesText(h.Bytes), h.AverageKbit, h.PeakKbit, h.Smallest, h.Largest, h.Average, share, h.FirstSeq)
	}
}

func (r *Report) when(w *strings.Builder) {
	fmt.Fprintln(w, "track\ttimes\tbetween them\tmost at once\trepeats\tB-frames")
	for _, h := range r.Hints {
		fmt.Fprintf(w, "%d\t%d\t%.0f ms, at most %.0f ms\t%d packets of %d timestamps, %s\t%d\t%d\n", h.Track, h.Times, h.MiddleGapMs,
			h.LongestGapMs, h.MostAtOnce, h.MostStamps, bytesText(int64(h.MostBytesOnce)), h.Repeats, h.BFrames)
	}
}

func section(b *strings.Builder, title string, rows func(*strings.Builder)) {
	var lines strings.Builder
	rows(&lines)
	text := "  " + strings.ReplaceAll(strings.TrimSuffix(lines.String(), "\n"), "\n", "\n  ") + "\n"
	b.WriteString("\n" + title + "\n")
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	_, err := io.WriteString(w, text)
	if err = errors.Join(err, w.Flush()); err != nil {
		panic(err) // a strings.Builder does not fail
	}
}

func bytesText(n int64) string {
	switch {
	case n >= 10_000_000_000:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 10_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 10_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d bytes", n)
}

func secondsText(s float64) string {
	return time.Duration(s * 1e9).Round(time.Millisecond).String()
}

// PacketLine is a packet as --packets lists it.
type PacketLine struct {
	Track   uint32  `json:"track"`
	Due     float64 `json:"due"` // seconds
	Seq     uint16  `json:"seq"`
	Time    uint32  `json:"timestamp"`
	Marker  bool    `json:"marker"`
	Type    uint8   `json:"payload_type"`
	Bytes   int     `json:"bytes"`             // with the RTP header
	Sample  int     `json:"hint_sample"`       // counted from 1
	Repeat  bool    `json:"repeat"`            // sent again
	BFrame  bool    `json:"b_frame"`           // may be left out
	Payload string  `json:"payload,omitempty"` // its first bytes, hexadecimal
}

// Line describes a packet.
func Line(track uint32, p *hint.Packet) PacketLine {
	var head []byte
	for _, b := range p.Payload {
		head = append(head, b[:min(len(b), 8-len(head))]...)
	}
	return PacketLine{track, p.Due.Seconds(), p.Seq, p.Time, p.Marker(), p.Type(), p.Size + rtpHeader, p.Sample + 1,
		p.Repeat(), p.BFrame(), fmt.Sprintf("%x", head)}
}

func (l PacketLine) String() string {
	flags := []byte("---")
	for i, on := range []bool{l.Marker, l.Repeat, l.BFrame} {
		if on {
			flags[i] = "MRB"[i]
		}
	}
	return fmt.Sprintf("track %d  due %10.4f  seq %5d  ts %10d  pt %3d  %s  %5d bytes  sample %d  %s",
		l.Track, l.Due, l.Seq, l.Time, l.Type, flags, l.Bytes, l.Sample, l.Payload)
}
