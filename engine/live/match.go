package live

import "time"

// Mapping is how a Media's numbers of one kind become those of another: what
// is added, and the SSRC they have then.
type Mapping struct {
	SSRC uint32
	Seq  uint16
	Time uint32
}

const (
	matchWindow = 64                     // a Source's last packets of a Media, as far as they are compared
	matchMost   = 16                     // places where they may be, compared at most
	matchApart  = 3 * time.Second        // between one upstream session's packet and another's: what repeats may look the same
	stepMost    = 300 * time.Millisecond // likewise, for the newest ones of who is to follow the others
	followSeq   = 2000                   // packets that may be missing for known numbers to be believed
	followTime  = time.Second
)

// match finds where the packets of from stand in l: for each Media, the one way
// in which at least need of them are the same and none differs. why names what
// is missing.
func (l *log) match(from *log, need int) (maps []Mapping, why string) {
	for n := range l.medias {
		m, why := l.matchMedia(from, n, need)
		if why != "" {
			return nil, why
		}
		maps = append(maps, m)
	}
	return maps, ""
}

// lag is by how much later than in l, or earlier, a Media's newest packet that
// both have came in from.
func (l *log) lag(from *log, media int, m Mapping) time.Duration {
	for back := range uint16(matchWindow) {
		if t := from.find(media, from.medias[media].seq-back); t != nil {
			if e := l.find(media, t.seq+m.Seq); e != nil {
				return t.at.Sub(e.at).Abs()
			}
		}
	}
	return 0
}

func (l *log) matchMedia(from *log, media, need int) (found Mapping, why string) {
	ours, theirs := l.medias[media], from.medias[media]
	if !ours.started || !theirs.started {
		return found, "a media is silent"
	}
	if own := (Mapping{SSRC: theirs.ssrc}); ours.ssrc == theirs.ssrc && l.agree(from, media, own, need) {
		return own, "" // the very same numbers cannot be chance
	}
	fits, tried := 0, 0
	for back := uint16(0); back < matchWindow; back += 4 { // the newest packet that both have
		t := from.find(media, theirs.seq-back)
		if t == nil {
			continue
		}
		for n := l.tail; n < l.head && tried < matchMost; n++ {
			e := l.entry(n)
			if int(e.media) != media || e.rtcp || !e.same(t) || e.at.Sub(t.at).Abs() > matchApart {
				continue
			}
			tried++
			m := Mapping{ours.ssrc, e.seq - t.seq, e.time - t.time}
			if !l.agree(from, media, m, need) {
				continue
			}
			found = m
			fits++
		}
		if fits > 0 {
			break
		}
	}
	switch {
	case fits == 1:
		return found, ""
	case fits > 1:
		return found, "packets fit in several ways"
	case tried > 0:
		return found, "too few packets agree"
	}
	return found, "no packet is the same"
}

// agree says whether enough of a Media's last packets are those of l by m, and
// none is another.
func (l *log) agree(from *log, media int, m Mapping, need int) bool {
	return l.same(from, media, m) >= need
}

// same counts a Media's last packets that are those of l by m; -1 if one is another.
func (l *log) same(from *log, media int, m Mapping) (count int) {
	for back := range uint16(matchWindow) {
		t := from.find(media, from.medias[media].seq-back)
		if t == nil {
			continue
		}
		e := l.find(media, t.seq+m.Seq)
		if e == nil {
			continue // lost, or not here yet
		}
		if !e.same(t) || e.time != t.time+m.Time {
			return -1
		}
		count++
	}
	return count
}

// recall says whether a Source that is back after a pause is numbered as it was
// known to be: every Media it brings goes on without a hole, by packets that l
// has too or from the very next one. One that is silent yet is not waited for:
// sound may come in bunches a quarter of a second apart.
func (l *log) recall(from *log, known []Mapping, rates []uint32) bool {
	sure := false
	for n, m := range l.medias {
		first := from.oldest(n)
		if first == nil {
			continue
		}
		same := l.same(from, n, known[n])
		next := first.seq+known[n].Seq == m.seq+1 && m.fits(known[n], first, rates[n])
		if same < 0 || same == 0 && !next {
			return false
		}
		sure = true
	}
	return sure
}

// fits says whether e may follow, in what is known to be its numbers: with no
// more missing, and at no other time, than can be.
func (m *place) fits(k Mapping, e *entry, rate uint32) bool {
	lost := int16(e.seq + k.Seq - m.seq)
	moved := spanOf(e.time+k.Time-m.time, rate)
	return lost > 0 && lost < followSeq && (moved-e.at.Sub(m.at)).Abs() < followTime
}

// spanOf is the time between two RTP timestamps so far apart.
func spanOf(ticks, rate uint32) time.Duration {
	return time.Duration(int32(ticks)) * time.Second / time.Duration(max(rate, 1))
}

// follow numbers a Source that has no packet in common with l to go on behind
// it: as it was known to be numbered, if that can be, and else without a step.
func (l *log) follow(from *log, known []Mapping, rates []uint32) []Mapping {
	maps := make([]Mapping, len(l.medias))
	for n, m := range l.medias {
		first := from.oldest(n)
		if first == nil {
			maps[n] = Mapping{SSRC: m.ssrc}
			if known != nil {
				maps[n] = known[n]
			}
			continue
		}
		past := first.at.Sub(m.at)
		ticks := uint32(int64(past) * int64(rates[n]) / int64(time.Second))
		if known != nil && known[n].SSRC == m.ssrc && m.fits(known[n], first, rates[n]) {
			maps[n] = known[n]
			continue
		}
		maps[n] = Mapping{m.ssrc, m.seq + 1 - first.seq, m.time + ticks - first.time}
	}
	return maps
}

func (l *log) oldest(media int) *entry {
	for n := l.tail; n < l.head; n++ {
		if e := l.entry(n); int(e.media) == media && !e.rtcp {
			return e
		}
	}
	return nil
}
