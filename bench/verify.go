package bench

import (
	"cmp"
	"slices"
)

// Verified is what came of comparing pairs of sessions.
type Verified struct {
	Pairs      int    `json:"pairs"`
	Packets    uint64 `json:"packets"`    // that both sessions of a pair got
	Different  uint64 `json:"different"`  // in payload, marker, payload type or step of RTP time
	Unaligned  int    `json:"unaligned"`  // tracks that have nothing in common
	Incomplete int    `json:"incomplete"` // tracks with more packets than are kept
}

func (v *Verified) add(o Verified) {
	v.Pairs += o.Pairs
	v.Packets += o.Packets
	v.Different += o.Different
	v.Unaligned += o.Unaligned
	v.Incomplete += o.Incomplete
}

// comparePairs compares the sessions of each pair, track by track.
func comparePairs(sessions []*session) (v Verified) {
	first := map[int]*session{}
	for _, s := range sessions {
		if s.pair < 0 {
			continue
		}
		a := first[s.pair]
		if a == nil {
			first[s.pair] = s
			continue
		}
		v.Pairs++
		for i := range min(len(a.tracks), len(s.tracks)) {
			v.add(compareTracks(&a.tracks[i].counter, &s.tracks[i].counter))
		}
	}
	return v
}

// compareTracks lays two recordings of one media over each other, where most
// of their packets agree, and counts those that do not. What only one of them
// has was lost, or came outside the window, and is counted elsewhere.
func compareTracks(a, b *counter) (v Verified) {
	if a.cut || b.cut {
		v.Incomplete++
	}
	in := map[uint64]recorded{}
	for _, p := range a.recorded {
		in[p.sum] = p
	}
	votes := map[uint32]int{}
	best, most := uint32(0), 0
	for _, p := range b.recorded {
		if q, ok := in[p.sum]; ok {
			d := p.ext - q.ext
			if votes[d]++; votes[d] > most {
				best, most = d, votes[d]
			}
		}
	}
	if most == 0 {
		v.Unaligned++
		return v
	}
	at := make(map[uint32]recorded, len(a.recorded))
	for _, p := range a.recorded {
		at[p.ext] = p
	}
	slices.SortStableFunc(b.recorded, func(x, y recorded) int { return cmp.Compare(x.ext, y.ext) })
	var offset uint32
	known := false
	for _, p := range b.recorded {
		q, ok := at[p.ext-best]
		if !ok {
			continue
		}
		v.Packets++
		if !known {
			offset, known = p.time-q.time, true
		}
		if p.sum != q.sum || p.time-q.time != offset {
			v.Different++
		}
	}
	return v
}
