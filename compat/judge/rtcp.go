package judge

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pion/rtcp"

	"rtspshim/compat/talk"
)

// ntpEpoch is 1900 in Unix seconds (RFC 3550 4).
const ntpEpoch = 2208988800

// rtcp compares the reports of a track.
func (d *differ) rtcp(name string, a, b *talk.Track) {
	d.kinds(name, a, b)
	if max(len(a.Reports), len(b.Reports)) > 1 {
		d.text(Media, name, "CNAME", cnames(a), cnames(b))
	}
	if len(a.Reports) == 0 || len(b.Reports) == 0 {
		return
	}
	d.text(Media, name, "SSRC in sender reports", reportSSRC(a), reportSSRC(b))
	if ia, ib := interval(a), interval(b); ia > 0 && ib > 0 {
		d.number(Timing, name, "RTCP interval", ia, ib, max(1, ia/2), "s")
	}
	if sa, sb := times(a), times(b); sa != "" && sb != "" {
		d.text(Media, name, "RTP time in sender reports", sa, sb)
	}
	ma, okA := mapping(d.a, a)
	mb, okB := mapping(d.b, b)
	if okA && okB {
		d.number(Media, name, "media time in sender reports against the packets", ma.media, mb.media, 0.150, "s")
		d.number(Media, name, "clock in sender reports against ours", ma.clock, mb.clock, 0.250, "s")
	}
	ca, okA := counted(a)
	cb, okB := counted(b)
	if okA && okB {
		// A report may overtake the packets of its moment.
		within := 5 + float64(longestBurst(a.Packets))
		d.number(Media, name, "packets counted between sender reports, beyond those heard", ca, cb, within, "packets")
	}
}

// kinds counts compound packets by what they are made of.
func kinds(t *talk.Track) map[string]int {
	seen := map[string]int{}
	for _, r := range t.Reports {
		seen[r.Kinds]++
	}
	return seen
}

// kinds compares which compound packets came. One report alone may have been
// missed by listening a moment too short; a BYE may not.
func (d *differ) kinds(name string, a, b *talk.Track) {
	inA, inB := kinds(a), kinds(b)
	conclusive := false
	for _, pair := range [][2]map[string]int{{inA, inB}, {inB, inA}} {
		for kind, n := range pair[0] {
			conclusive = conclusive || pair[1][kind] == 0 && (n > 1 || strings.Contains(kind, "BYE"))
		}
	}
	if conclusive {
		list := func(m map[string]int) string { return strings.Join(slices.Sorted(maps.Keys(m)), " | ") }
		d.text(Media, name, "RTCP kinds", list(inA), list(inB))
	}
}

func cnames(t *talk.Track) string {
	var seen []string
	for _, r := range t.Reports {
		if r.CNAME != "" && !slices.Contains(seen, r.CNAME) {
			seen = append(seen, r.CNAME)
		}
	}
	switch len(seen) {
	case 0:
		return "none"
	case 1:
		shape := number.ReplaceAllString(seen[0], "#")
		if strings.Contains(shape, "@") {
			shape = "user@host"
		}
		return "one, like " + shape
	}
	return fmt.Sprintf("%d different", len(seen))
}

func reportSSRC(t *talk.Track) string {
	for _, r := range t.Reports {
		if r.SR == nil || len(t.Packets) == 0 {
			continue
		}
		if !slices.ContainsFunc(t.Packets, func(p talk.Packet) bool { return p.SSRC == r.SR.SSRC }) {
			return "another than the packets'"
		}
	}
	return "the packets'"
}

// interval is the mean time between sender reports, seconds.
func interval(t *talk.Track) float64 {
	var first, last time.Duration
	n := 0
	for _, r := range t.Reports {
		if r.SR == nil {
			continue
		}
		if n == 0 {
			first = r.At
		}
		last = r.At
		n++
	}
	if n < 3 {
		return 0
	}
	return (last - first).Seconds() / float64(n-1)
}

// ofPacket says whether a report's RTP time is that of a packet, as some servers have
// it, and not of the moment.
func ofPacket(t *talk.Track, sr *rtcp.SenderReport) bool {
	return slices.ContainsFunc(t.Packets, func(p talk.Packet) bool { return p.Timestamp == sr.RTPTime })
}

// times tells what RTP times the reports have, if there are two at least.
func times(t *talk.Track) string {
	n, named := 0, 0
	for _, r := range t.Reports {
		if r.SR == nil {
			continue
		}
		if n++; ofPacket(t, r.SR) {
			named++
		}
	}
	switch {
	case n < 2 || 2*named == n: // a packet may have been lost
		return ""
	case 2*named > n:
		return "a packet's"
	}
	return "of the moment"
}

type srMapping struct{ media, clock float64 }

// mapping compares sender reports with the packets around them: the RTP time
// they name against the last packet's, which goes on unless they name a packet's,
// and their NTP time against our clock.
func mapping(r *talk.Recording, t *talk.Track) (srMapping, bool) {
	var media, clock []float64
	for _, report := range t.Reports {
		if report.SR == nil || t.Clock == 0 {
			continue
		}
		k := len(t.Packets) - 1
		for k >= 0 && t.Packets[k].At > report.At {
			k--
		}
		if k < 0 {
			continue
		}
		p := t.Packets[k]
		ahead := float64(int32(report.SR.RTPTime-p.Timestamp)) / float64(t.Clock)
		if !ofPacket(t, report.SR) {
			ahead -= (report.At - p.At).Seconds()
		} else if overtook(t, k, report) {
			ahead = 0
		}
		media = append(media, ahead)
		wall := r.Began.Add(report.At)
		ntp := float64(report.SR.NTPTime>>32) - ntpEpoch + float64(uint32(report.SR.NTPTime))/(1<<32)
		clock = append(clock, ntp-float64(wall.UnixNano())/1e9)
	}
	if len(media) == 0 {
		return srMapping{}, false
	}
	return srMapping{typical(media), typical(clock)}, true
}

// overtakes is by how much a report may come before the packet that it names: they
// are sent together, to two ports.
const overtakes = 10 * time.Millisecond

// overtook says whether the report, which comes behind packet k, names the next
// one, which comes at once.
func overtook(t *talk.Track, k int, report talk.Report) bool {
	return k+1 < len(t.Packets) && t.Packets[k+1].Timestamp == report.SR.RTPTime && t.Packets[k+1].At-report.At < overtakes
}

// typical is the median, and of two the last: whether the first report comes
// before the first packet, and so does not count, is chance.
func typical(v []float64) float64 {
	if len(v) < 3 {
		return v[len(v)-1]
	}
	return median(v)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// counted compares the packet counts of the first and the last sender report
// with the packets that came between them.
func counted(t *talk.Track) (float64, bool) {
	var first, last *talk.Report
	for i := range t.Reports {
		if t.Reports[i].SR != nil {
			if first == nil {
				first = &t.Reports[i]
			}
			last = &t.Reports[i]
		}
	}
	if first == nil || first == last {
		return 0, false
	}
	heard := 0
	for _, p := range t.Packets {
		if p.At > first.At && p.At <= last.At {
			heard++
		}
	}
	said := float64(int32(last.SR.PacketCount - first.SR.PacketCount))
	if math.Abs(said) > 1e6 {
		return 0, false
	}
	return said - float64(heard), true
}
