package judge

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"rtspshim/compat/talk"
)

// afterPause is how many packets, and for how long, may still be heard after
// a PAUSE or TEARDOWN was answered, beyond what the upstream lets be heard.
const (
	afterPausePackets = 2
	afterPauseTime    = 0.050
)

// tracks compares everything heard.
func (d *differ) tracks() {
	keyed := func(r *talk.Recording) (order []string, by map[string]*talk.Track) {
		by = map[string]*talk.Track{}
		for _, t := range r.Tracks {
			k := strings.TrimPrefix(trackName(t), ", ")
			for by[k] != nil {
				k += " again"
			}
			order, by[k] = append(order, k), t
		}
		return order, by
	}
	orderA, a := keyed(d.a)
	orderB, b := keyed(d.b)
	for _, k := range orderA {
		if b[k] == nil {
			d.text(Media, k, "track", fmt.Sprint(len(a[k].Packets), " packets"), "none")
			continue
		}
		d.track(k, a[k], b[k])
	}
	for _, k := range orderB {
		if a[k] == nil {
			d.text(Media, k, "track", "none", fmt.Sprint(len(b[k].Packets), " packets"))
		}
	}
}

func (d *differ) track(name string, a, b *talk.Track) {
	if len(a.Packets) > 0 && len(b.Packets) > 0 { // whether any came at all is compared by section
		d.text(Media, name, "SSRC", ssrcs(a), ssrcs(b))
		d.text(Media, name, "payload type", payloadTypes(a), payloadTypes(b))
		d.text(Media, name, "server port", source(a), source(b))
	}
	d.more(Media, name, "packets that are not RTP", float64(a.Odd), float64(b.Odd), 0, "", nil)
	d.rtcp(name, a, b)
	sa, sb := Sections(d.a, a), Sections(d.b, b)
	for i := range min(len(sa), len(sb)) {
		if sa[i].Label == sb[i].Label {
			d.info(sa[i].Label+trackName(a), a, b, sa[i], sb[i], d.rhythm(a))
		}
	}
	if d.a.Duration > 0 {
		var againA, againB int
		a, sa, againA = once(a, sa)
		b, sb, againB = once(b, sb)
		d.more(Media, name, "packets heard once more after a pause", float64(againA), float64(againB), 0, "packets", &Whole)
	}
	for i := range min(len(sa), len(sb)) {
		if sa[i].Label == sb[i].Label {
			d.section(sa[i].Label+trackName(a), a, b, sa, sb, i)
		}
	}
	ra, rb := stretches(d.a, a, sa), stretches(d.b, b, sb)
	for i := range min(len(ra), len(rb)) {
		if ra[i].where == rb[i].where {
			d.stretch(a, b, ra[i], rb[i])
		}
	}
}

// ssrcs tells what the track's SSRCs have to do with the one in Transport.
func ssrcs(t *talk.Track) string {
	var seen []uint32
	for _, p := range t.Packets {
		if !slices.Contains(seen, p.SSRC) {
			seen = append(seen, p.SSRC)
		}
	}
	said := t.Transport.SSRC
	switch {
	case len(seen) > 1:
		return fmt.Sprintf("%d different", len(seen))
	case !t.Known || said == nil:
		return "one, not announced"
	case *said == seen[0]:
		return "one, as announced in Transport"
	}
	return "another than announced in Transport"
}

func payloadTypes(t *talk.Track) string {
	var seen []uint8
	for _, p := range t.Packets {
		if !slices.Contains(seen, p.PT) {
			seen = append(seen, p.PT)
		}
	}
	slices.Sort(seen)
	out := ""
	for _, pt := range seen {
		out += fmt.Sprint(pt, " ")
		if len(t.PTs) > 0 && !slices.Contains(t.PTs, pt) {
			out += "(not in the SDP) "
		}
	}
	return strings.TrimSpace(out)
}

// source tells whether packets came from the port that Transport names.
func source(t *talk.Track) string {
	if !t.UDP {
		return ""
	}
	ports := t.Transport.ServerPorts
	if ports == nil {
		return "not announced"
	}
	for _, p := range t.Packets {
		if int(p.From) != ports[0] {
			return "RTP from another port than announced"
		}
	}
	for _, r := range t.Reports {
		if int(r.From) != ports[1] {
			return "RTCP from another port than announced"
		}
	}
	return "as announced"
}

// section compares the beginning of a section, and what should be silence.
func (d *differ) section(where string, a, b *talk.Track, sa, sb []Section, i int) {
	x, y := sa[i], sb[i]
	if x.Method != "PLAY" {
		hurried := i > 0 && (brief(sa[i-1]) || brief(sb[i-1]))
		if (x.Method == "PAUSE" || !a.UDP) && !hurried { // after a TEARDOWN over UDP our ports are anybody's
			within := afterPausePackets + float64(longestBurst(a.Packets)) // UDP may come before or after the answer
			d.more(Media, where, "packets heard after it", float64(x.To-x.From), float64(y.To-y.From), within, "packets", &Sooner)
			d.more(Media, where, "heard after it for", heardFor(a, x), heardFor(b, y), afterPauseTime, "s", &Sooner)
		}
		return
	}
	rhythm := d.rhythm(a)
	if least := briefly + time.Duration(rhythm*float64(time.Second)); x.End-x.Begin >= least && y.End-y.Begin >= least {
		d.text(Media, where, "media", some(x.To-x.From), some(y.To-y.From))
	}
	if x.To == x.From || y.To == y.From {
		return
	}
	if i > 0 && x.From > 0 && y.From > 0 {
		d.seam(where, a, b, x, y, sa[i-1], rhythm)
		if heardA, ok := resumed(a, sa, i); ok {
			if heardB, ok := resumed(b, sb, i); ok {
				within := 0.050 + longestStep(a, sa[i-1]) + longestStep(a, x) // it falls anywhere between two packets
				d.number(Media, where, "Range against what was heard before", heardA, heardB, within, "s")
			}
		}
	}
	if d.b.Duration > 0 || d.concurrent() {
		if i > 1 && d.a.Duration > 0 && !x.Ranged { // a server that sends in bunches stops, and goes on, between two
			rhythm = longestGap(a.Packets[sa[i-2].From:sa[i-2].To])
		}
		d.pace(where, a, b, x, y, rhythm)
	}
}

// rhythm is the longest time from one packet to the next while a live stream
// plays, to whomever: no two viewers join it in the same instant, and by as much
// may differ what they meet first. A movie begins anew for everybody: 0.
func (d *differ) rhythm(of *talk.Track) float64 {
	longest := 0.0
	for _, t := range d.a.Tracks {
		if d.a.Duration > 0 || t.Media != of.Media {
			continue
		}
		for _, s := range Sections(d.a, t) {
			if s.Method == "PLAY" {
				longest = max(longest, longestGap(t.Packets[s.From:s.To]))
			}
		}
	}
	return longest
}

// briefly is too short to know whether anything comes, as when PLAY and PAUSE
// are pipelined.
const briefly = 50 * time.Millisecond

func brief(s Section) bool { return s.End-s.Begin < briefly }

func some(n int) string {
	if n == 0 {
		return "none"
	}
	return "heard"
}

func heardFor(t *talk.Track, s Section) float64 {
	if s.To == s.From {
		return 0
	}
	return max(0, (t.Packets[s.To-1].At - s.Begin).Seconds())
}

// info compares RTP-Info with the first packet that came.
func (d *differ) info(where string, a, b *talk.Track, x, y Section, rhythm float64) {
	if x.Info == nil || y.Info == nil || x.To == x.From || y.To == y.From {
		return // the header itself is compared
	}
	pa, pb := a.Packets[x.From], b.Packets[y.From]
	if x.Info.SequenceNumber != nil && y.Info.SequenceNumber != nil {
		offA, offB := float64(int16(pa.Seq-*x.Info.SequenceNumber)), float64(int16(pb.Seq-*y.Info.SequenceNumber))
		d.exactly(where, "first packet's seq after RTP-Info's", offA, offB, 0, "")
	}
	if x.Info.Timestamp != nil && y.Info.Timestamp != nil && a.Clock > 0 && b.Clock > 0 {
		offA := float64(int32(pa.Timestamp-*x.Info.Timestamp)) / float64(a.Clock)
		offB := float64(int32(pb.Timestamp-*y.Info.Timestamp)) / float64(b.Clock)
		within := 0.010
		switch {
		case offA != 0: // an upstream that extrapolates is off by how long ago its last packet was
			within += rhythm
		case d.namesOne(x.Label): // whose turn it is to be off by a packet may be another's
			within += packetTime(b, y)
		}
		d.exactly(where, "first packet's time after RTP-Info's", offA, offB, within, "s")
	}
}

// namesOne says whether the upstream's RTP-Info names one moment for all tracks,
// as gst's does: the next packet of one of them, while others are off.
func (d *differ) namesOne(label string) bool {
	for _, t := range d.a.Tracks {
		for _, s := range Sections(d.a, t) {
			if s.Label == label && s.Info != nil && s.Info.Timestamp != nil && s.To > s.From && t.Packets[s.From].Timestamp != *s.Info.Timestamp {
				return true
			}
		}
	}
	return false
}

// packetTime is the time from a section's first packet to the next of another
// time, in seconds.
func packetTime(t *talk.Track, s Section) float64 {
	for i := s.From + 1; i < s.To; i++ {
		if step := int32(t.Packets[i].Timestamp - t.Packets[s.From].Timestamp); step > 0 {
			return float64(step) / float64(t.Clock)
		}
	}
	return 0
}

// exactly compares two offsets that should be zero.
func (d *differ) exactly(where, what string, a, b, within float64, unit string) {
	if a == b {
		return
	}
	x := Difference{Where: where, What: what, Class: Media, Size: math.Abs(b - a), Within: within, A: show(a, unit), B: show(b, unit)}
	if unit == "s" && a != 0 {
		x.Loose = 0.100
	}
	if b == 0 {
		x.Rule = &Exact
	}
	d.add(x)
}

// seam compares how numbers go on from one section to the next.
func (d *differ) seam(where string, a, b *talk.Track, x, y, before Section, rhythm float64) {
	step := func(t *talk.Track, i int) (seq, seconds float64) {
		p, q := t.Packets[i-1], t.Packets[i]
		if t.Clock > 0 {
			seconds = float64(int32(q.Timestamp-p.Timestamp)) / float64(t.Clock)
		}
		return float64(int16(q.Seq - p.Seq)), seconds
	}
	seqA, tsA := step(a, x.From)
	seqB, tsB := step(b, y.From)
	if d.a.Duration == 0 { // live goes on meanwhile: its numbers may, too
		if pause := x.Begin - before.Begin; pause < 200*time.Millisecond {
			return
		}
		d.text(Media, where, "seq step from what was heard before", hole(seqA), hole(seqB))
	} else {
		x := Difference{Where: where, What: "seq step from what was heard before", Class: Media, A: show(seqA, ""), B: show(seqB, ""), Size: math.Abs(seqA - seqB)}
		if seqB == 1 {
			x.Rule = &Whole
		}
		d.add(x)
	}
	d.add(Difference{Where: where, What: "timestamp step from what was heard before", Class: Media, A: show(tsA, "s"),
		B: show(tsB, "s"), Size: math.Abs(tsA - tsB), Loose: 0.250,
		// A server that sends in bunches stops, and goes on, between two.
		Within: 0.060 + max(longestGap(a.Packets[before.From:before.To]), 2*rhythm)})
}

// resumed compares where a PLAY without a position says it goes on with how
// much was heard since the last PLAY that said where it begins.
func resumed(t *talk.Track, all []Section, i int) (float64, bool) {
	s := all[i]
	if s.Ranged || s.Range == nil || t.Clock == 0 {
		return 0, false
	}
	for k := i - 1; k >= 0; k-- {
		if p := all[k]; p.Range != nil && p.To > p.From {
			heard := float64(int32(t.Packets[p.To-1].Timestamp-t.Packets[p.From].Timestamp)) / float64(t.Clock)
			return *s.Range - *p.Range - heard, true
		}
	}
	return 0, false
}

// longestStep is the most media time between two packets, in seconds.
func longestStep(t *talk.Track, s Section) (longest float64) {
	for i := s.From + 1; i < s.To && t.Clock > 0; i++ {
		longest = max(longest, float64(int32(t.Packets[i].Timestamp-t.Packets[i-1].Timestamp))/float64(t.Clock))
	}
	return longest
}

func hole(step float64) string {
	if step == 1 {
		return "goes on"
	}
	return "jumps"
}

// stretch compares packets one by one.
func (d *differ) stretch(a, b *talk.Track, ra, rb stretch) {
	pa, pb := a.Packets[ra.from:ra.to], b.Packets[rb.from:rb.to]
	where := ra.where
	d.continuity(where, pa, pb, ra, rb)
	if len(pa) == 0 || len(pb) == 0 {
		return
	}
	if !ra.fixed && !d.concurrent() && !d.a.Synthetic {
		return
	}
	m, ok := align(pa, pb, ra.fixed && rb.fixed)
	if !ok {
		d.text(Media, where, "payloads", "as sent at that moment", "not one in common")
		return
	}
	show := func(what string, n, at int, of []talk.Packet) {
		if n > 0 {
			d.add(Difference{Where: where, What: what, Class: Media, Size: float64(n),
				A: fmt.Sprintf("packet %d of %d: seq %d, %d bytes, hash %016x", at+1, len(of), of[at].Seq, of[at].Size, of[at].Hash),
				B: fmt.Sprintf("%d packets %s", n, strings.TrimPrefix(what, "payloads "))})
		}
	}
	show("payloads changed", m.changed, m.firstC, pa)
	show("payloads missing", m.missing, m.firstGap, pa)
	show("payloads extra", m.extra, m.firstX, pb)
	d.tail(where, a, b, m, ra, rb)
	d.headers(where, pa, pb, m, ra, rb)
	if d.concurrent() || ra.fixed {
		d.delays(where, pa, pb, m, ra, rb)
	}
}

// silence is how long nothing must have come for a stream to have ended.
const silence = 600 * time.Millisecond

// tail compares what is left after the last packet in common, if both streams
// came to their end and were not cut off by the listener.
func (d *differ) tail(where string, ta, tb *talk.Track, m alignment, ra, rb stretch) {
	if len(ra.sections) == 0 || len(rb.sections) == 0 || len(m.pairs) == 0 || m.lost {
		return
	}
	endA, endB := ra.sections[0], rb.sections[0]
	if endA.To <= ra.from || endB.To <= rb.from {
		return
	}
	if !ended(ta, endA) || !ended(tb, endB) {
		return
	}
	lengthA, lengthB := float64(endA.To-ra.from), float64(endB.To-rb.from)
	if !ra.fixed { // what is live is joined a packet sooner or later
		lengthA, lengthB = lengthA-float64(m.pairs[0][0]), lengthB-float64(m.pairs[0][1])
	}
	within := 0.0
	if left, ok := d.a.Left[ta.Conn]; ok && left >= endA.Begin && left < endA.End { // its viewer hung up: it ends soon after
		within = afterPausePackets + float64(longestBurst(ta.Packets))
	}
	d.number(Media, where, "packets until its end", lengthA, lengthB, within, "packets")
}

// ended says whether the section's stream came to its end: it said BYE, or
// fell silent.
func ended(t *talk.Track, s Section) bool {
	bye := slices.ContainsFunc(t.Reports, func(r talk.Report) bool { return r.Bye && r.At >= s.Begin && r.At < s.End })
	return bye || s.End-t.Packets[s.To-1].At >= silence
}

// continuity counts holes, repeats and disorder by sequence number within each section.
func (d *differ) continuity(where string, a, b []talk.Packet, ra, rb stretch) {
	lostA, twiceA, backA := holes(a, ra)
	lostB, twiceB, backB := holes(b, rb)
	d.more(Media, where, "lost", float64(lostA), float64(lostB), 0, "packets", &Whole)
	d.more(Media, where, "repeated", float64(twiceA), float64(twiceB), 0, "packets", &Whole)
	d.more(Media, where, "out of order", float64(backA), float64(backB), 0, "packets", &Whole)
}

func holes(p []talk.Packet, r stretch) (lost, twice, back int) {
	seam := map[int]bool{}
	for _, s := range r.sections {
		seam[s.From-r.from] = true
	}
	high := 0
	for i := 1; i < len(p); i++ {
		step := int16(p[i].Seq - p[high].Seq)
		switch {
		case seam[i]:
			high = i
			continue
		case step == 0:
			twice++
			continue
		case step < 0:
			back++
			if lost > 0 {
				lost--
			}
			continue
		}
		lost += int(step) - 1
		high = i
	}
	return lost, twice, back
}

// headers compares what stands before the payloads of packets that pair up.
func (d *differ) headers(where string, a, b []talk.Packet, m alignment, ra, rb stretch) {
	type count struct {
		n    int
		a, b string
	}
	counts := map[string]*count{}
	note := func(what string, differs bool, at int, x, y any) {
		if !differs {
			return
		}
		if counts[what] == nil {
			counts[what] = &count{a: fmt.Sprintf("packet %d: %v", at+1, x), b: fmt.Sprint(y)}
		}
		counts[what].n++
	}
	seam := map[int]bool{}
	for _, s := range ra.sections {
		seam[s.From-ra.from] = true
	}
	for _, s := range rb.sections {
		seam[-1-(s.From-rb.from)] = true
	}
	for k, pair := range m.pairs {
		p, q := a[pair[0]], b[pair[1]]
		note("markers", p.Marker != q.Marker, pair[0], p.Marker, q.Marker)
		note("payload types", p.PT != q.PT, pair[0], p.PT, q.PT)
		note("padding", p.Padding != q.Padding, pair[0], p.Padding, q.Padding)
		note("header extensions", p.Extra != q.Extra, pair[0], p.Extra, q.Extra)
		if k == 0 || m.pairs[k-1] != [2]int{pair[0] - 1, pair[1] - 1} || seam[pair[0]] || seam[-1-pair[1]] {
			continue
		}
		stepA, stepB := int32(p.Timestamp-a[pair[0]-1].Timestamp), int32(q.Timestamp-b[pair[1]-1].Timestamp)
		note("timestamp steps", stepA != stepB, pair[0], stepA, stepB)
	}
	for _, what := range []string{"markers", "payload types", "padding", "header extensions", "timestamp steps"} {
		if c := counts[what]; c != nil {
			d.add(Difference{Where: where, What: what, Class: Media, Size: float64(c.n), A: c.a,
				B: fmt.Sprintf("%s (%d of %d differ)", c.b, c.n, len(m.pairs))})
		}
	}
}

// concurrent says whether the two recordings were made at the same time, so
// that a live stream must show the same packets in both.
func (d *differ) concurrent() bool {
	return math.Abs(d.b.Began.Sub(d.a.Began).Seconds()) < 1
}
