package judge

import (
	"fmt"
	"maps"
	"slices"

	"rtspshim/compat/talk"
)

// Frames is what a real client decoded: hashes of frames by medium, played at
// the same time twice with the upstream and once with the shim.
type Frames struct {
	Direct  []map[string][]uint64
	Shim    map[string][]uint64
	Failure string // why nothing was decoded through the shim
}

// NothingInCommon is What when hardly one frame of a medium agrees: by chance,
// as two test pictures may.
const NothingInCommon = "hardly one decoded frame in common"

// byChance is how many frames of two other pictures may agree.
const byChance = 2

// fewFrames is how many frames one play may have fewer than another of the
// same length, because a player stops by the clock.
const fewFrames = 15

// OfFrames weighs the frames of every round. A movie must begin with the
// same frame, a live stream must show the same frames where plays overlap. The
// direct runs' own differences do not count, nor does what came once only.
func OfFrames(rounds []Frames, movie bool) []Finding {
	var last []Finding
	bad := 0
	for _, r := range rounds {
		last = frames(r, movie)
		if Worst(last) == Different {
			bad++
		}
	}
	if bad == 1 && len(rounds) >= enough {
		for i := range last {
			last[i].Verdict, last[i].Rule = Allowed, &Once
		}
	}
	return last
}

func frames(r Frames, movie bool) []Finding {
	if r.Failure != "" {
		return []Finding{{Where: "playing", What: "decoded", Class: Media, Verdict: Different, Direct: "played", Shim: r.Failure, Size: 1}}
	}
	var all []Finding
	for _, kind := range slices.Sorted(maps.Keys(r.Direct[0])) {
		spread := unlike(r.Direct[0][kind], r.Direct[1][kind], movie)
		best := min(unlike(r.Direct[0][kind], r.Shim[kind], movie), unlike(r.Direct[1][kind], r.Shim[kind], movie))
		if best == 0 {
			continue
		}
		f := Finding{Where: kind, What: "decoded frames", Class: Media, Size: best, Spread: spread,
			Direct: fmt.Sprintf("%d frames", len(r.Direct[0][kind])),
			Shim:   fmt.Sprintf("%d frames, %.0f not the same", len(r.Shim[kind]), best)}
		if all := max(len(r.Direct[0][kind]), len(r.Shim[kind])); all > 10*byChance && int(best) >= all-byChance || int(best) >= all {
			f.What = NothingInCommon
		}
		f.Verdict = Different
		if best <= 1.5*spread {
			f.Verdict, f.Rule = Allowed, &Varies
		}
		all = append(all, f)
	}
	return all
}

// unlike counts frames that two plays do not share where they should.
func unlike(a, b []uint64, movie bool) float64 {
	pa, pb := asPackets(a), asPackets(b)
	m, ok := align(pa, pb, movie)
	if !ok || len(b) == 0 {
		return float64(max(len(a), len(b), 1))
	}
	n := m.missing + m.extra + m.changed
	if d := len(a) - len(b); movie && max(d, -d) > fewFrames {
		n += max(d, -d)
	}
	return float64(n)
}

func asPackets(hashes []uint64) []talk.Packet {
	out := make([]talk.Packet, len(hashes))
	for i, h := range hashes {
		out[i].Hash = h
	}
	return out
}
