// Package judge compares what a client saw at the upstream directly with what
// it saw through the shim, and says of every difference whether it counts.
//
// Servers differ from run to run, so every point is held at the upstream
// twice as well: what differs between two direct runs cannot count.
package judge

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"rtspshim/compat/talk"
)

// Class is what kind of thing differs. Signalling may be compared across
// rounds; media and timing only with what was heard at the same time.
type Class string

// The classes.
const (
	Signalling Class = "signalling"
	Media      Class = "media"
	Timing     Class = "timing"
)

// Rule is why a difference is allowed.
type Rule struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// The rules. Differences that RFC and servers force on every proxy (its own
// address and ports, session ids, SSRCs, nonces, dates) are taken out before
// anything is compared and need none.
var (
	Varies = Rule{"varies at the upstream", "two direct runs differ in the same thing, by as much"}
	Exact  = Rule{"RTP-Info is exact", "it names the very next packet, as RFC 2326 12.33 asks; the upstream's own does not"}
	Steady = Rule{"steadier", "smaller bursts and gaps than the upstream's: receivers lose less (RFC 2326 does not prescribe pacing)"}
	Sooner = Rule{"sooner", "the answer or the silence came earlier than from the upstream"}
	Once   = Rule{"did not come back", "the point was held again, alone on the machine, and agreed, at least twice as often: the moment, not the shim"}
	Kept   = Rule{"kept alive", "the upstream had closed a connection without requests; signs of life sent for its session kept it open"}
	Whole  = Rule{"fewer lost", "packets that the direct run lost, repeated or misordered were right here"}
)

// Verdict of a finding or a point.
type Verdict string

// The verdicts; NotRun is for points that could not be held.
const (
	Same      Verdict = "same"
	Allowed   Verdict = "allowed"
	Different Verdict = "different"
	NotRun    Verdict = "not run"
)

// Difference is one thing that two recordings do not have in common. Numbers
// are reported even where they are within tolerance, because the spread of
// the upstream itself is made of them.
type Difference struct {
	Where  string // the exchange, and the track
	What   string // stable across runs: Where and What together identify it
	Class  Class
	A, B   string  // as a reader should see them
	Size   float64 // 1 for text
	Within float64 // sizes up to this never count
	Loose  float64 // ... and up to this if the upstream varies at all
	Rule   *Rule   // allowed by itself
}

func (d Difference) key() string { return d.Where + "\x00" + d.What }

// kind is what spreads are kept by. Of packets it leaves out where: a server
// that loses one at one pause loses one at another in the next run.
func (d Difference) kind() string {
	if d.Class == Signalling {
		return d.key()
	}
	return d.What
}

// Finding is a difference that was judged.
type Finding struct {
	Where   string  `json:"where"`
	What    string  `json:"what"`
	Class   Class   `json:"class"`
	Verdict Verdict `json:"verdict"`
	Rule    *Rule   `json:"rule,omitempty"`
	Direct  string  `json:"direct"`
	Shim    string  `json:"shim"`
	Size    float64 `json:"size"`
	Spread  float64 `json:"spread"` // between direct runs
	Times   int     `json:"times"`  // rounds in which it was different
}

// Round is one point held at the same time twice at the upstream and once
// through the shim.
type Round struct {
	Direct []*talk.Recording
	Shim   *talk.Recording
}

// compare lists everything in which b differs from a; media only if asked for.
func compare(a, b *talk.Recording, media bool) []Difference {
	if a.Failure != "" || b.Failure != "" {
		if a.Failure == b.Failure {
			return nil
		}
		return []Difference{{Where: "conversation", What: "held", Class: Signalling, Size: 1,
			A: orHeld(a.Failure), B: orHeld(b.Failure)}}
	}
	d := &differ{a: a, b: b}
	d.exchanges()
	d.ends()
	if media {
		d.tracks()
		return d.found
	}
	return slices.DeleteFunc(d.found, func(x Difference) bool { return x.Class != Signalling })
}

func orHeld(failure string) string {
	if failure == "" {
		return "held to its end"
	}
	return failure
}

// differ collects differences between two recordings.
type differ struct {
	a, b  *talk.Recording
	found []Difference
	kept  []string // connections that the upstream had closed and the shim had not
}

func (d *differ) add(x Difference) { d.found = append(d.found, x) }

// text notes two texts that differ.
func (d *differ) text(class Class, where, what, a, b string) {
	if a != b {
		d.add(Difference{Where: where, What: what, Class: class, A: a, B: b, Size: 1})
	}
}

// number notes two numbers: |b-a| counts beyond within.
func (d *differ) number(class Class, where, what string, a, b, within float64, unit string) {
	if a != b {
		d.add(Difference{Where: where, What: what, Class: class, Size: math.Abs(b - a), Within: within,
			A: show(a, unit), B: show(b, unit)})
	}
}

// more notes that b exceeds a; if it falls short of it the rule says why that is fine.
func (d *differ) more(class Class, where, what string, a, b, within float64, unit string, rule *Rule) {
	x := Difference{Where: where, What: what, Class: class, Size: b - a, Within: within,
		A: show(a, unit), B: show(b, unit)}
	if b < a {
		x.Size, x.Rule = a-b, rule
	}
	if a != b {
		d.add(x)
	}
}

func show(v float64, unit string) string {
	switch unit {
	case "s":
		if math.Abs(v) < 1 {
			return fmt.Sprintf("%.1f ms", v*1000)
		}
		return fmt.Sprintf("%.3f s", v)
	case "":
		return fmt.Sprintf("%g", v)
	}
	return fmt.Sprintf("%.4g %s", v, unit)
}

// enough rounds to tell what comes back from what came once.
const enough = 3

// Judge weighs all rounds of a point. What is different in one round of enough, or
// in so small a share of more, is allowed as such; what is a matter of time must
// come back in every round, because the machine has its moods as well.
func Judge(rounds []Round) []Finding {
	spread := spreads(rounds)
	type verdicts struct {
		worst     Finding
		different int
	}
	seen := map[string]*verdicts{}
	var order []string
	for i := range rounds {
		for _, x := range against(rounds, i) {
			f, ok := weigh(x, spread[x.kind()])
			if !ok {
				continue
			}
			v := seen[x.key()]
			if v == nil {
				v = &verdicts{worst: f}
				seen[x.key()] = v
				order = append(order, x.key())
			}
			if rank(f.Verdict) > rank(v.worst.Verdict) || f.Verdict == v.worst.Verdict && f.Size > v.worst.Size {
				v.worst = f
			}
			if f.Verdict == Different {
				v.different++
			}
		}
	}
	var all []Finding
	for _, key := range order {
		v := seen[key]
		v.worst.Times = v.different
		once := v.different*enough <= len(rounds)
		mood := v.worst.Class == Timing && v.different < len(rounds)
		if v.worst.Verdict == Different && (once || mood) {
			v.worst.Verdict, v.worst.Rule = Allowed, &Once
		}
		all = append(all, v.worst)
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return rank(b.Verdict) - rank(a.Verdict) })
	return all
}

// Settled says whether further rounds are not worth holding: nothing is different,
// or something is every time.
func Settled(all []Finding, rounds int) bool {
	return Worst(all) != Different || rounds >= enough &&
		slices.ContainsFunc(all, func(f Finding) bool { return f.Verdict == Different && f.Times == rounds })
}

func rank(v Verdict) int { return slices.Index([]Verdict{Same, NotRun, Allowed, Different}, v) }

// weigh decides about one difference; false if it is within tolerance.
func weigh(x Difference, spread float64) (Finding, bool) {
	f := Finding{Where: x.Where, What: x.What, Class: x.Class, Direct: x.A, Shim: x.B, Size: x.Size, Spread: spread}
	if x.Size <= x.Within {
		return f, false
	}
	within := x.Within + 1.5*spread
	if spread > 0 {
		within = max(within, x.Loose)
	}
	switch {
	case x.Rule != nil:
		f.Verdict, f.Rule = Allowed, x.Rule
	case x.Size <= within:
		f.Verdict, f.Rule = Allowed, &Varies
	default:
		f.Verdict = Different
	}
	return f, true
}

// spreads is, by kind, the largest difference between two direct runs. Of a live
// stream those of one round alone have heard the same; a movie is the same every
// time, and runs that began together met its server at the same point of
// whatever it does at intervals.
func spreads(rounds []Round) map[string]float64 {
	out := map[string]float64{}
	for i := range rounds {
		for j := range rounds {
			for _, a := range rounds[i].Direct {
				for _, b := range rounds[j].Direct {
					if a == b {
						continue
					}
					same := i == j || a.Duration > 0 && b.Duration > 0
					for _, x := range compare(a, b, same && shape(a) == shape(b)) {
						out[x.kind()] = max(out[x.kind()], x.Size)
					}
				}
			}
		}
	}
	return out
}

// against compares the shim's run of round i with the direct runs: a
// difference remains only if it is there against every one of them, and then
// the smallest counts. Media is compared with the direct runs of the same
// round in which the conversation went the same way.
func against(rounds []Round, i int) []Difference {
	least := map[string]Difference{}
	times := map[string]int{}
	var order []string
	shim, all, heard := rounds[i].Shim, 0, 0
	for j, r := range rounds {
		for _, direct := range r.Direct {
			media := j == i && shape(direct) == shape(shim)
			all++
			if media {
				heard++
			}
			for _, x := range compare(direct, shim, media) {
				key := x.key()
				s, ok := least[key]
				if !ok {
					order = append(order, key)
				}
				if !ok || x.Size < s.Size || s.Rule == nil && x.Rule != nil {
					least[key] = x
				}
				times[key]++
			}
		}
	}
	var out []Difference
	for _, key := range order {
		want := heard
		if least[key].Class == Signalling {
			want = all
		}
		if times[key] >= want {
			out = append(out, least[key])
		}
	}
	return out
}

// shape is how a conversation went: the outcome of every request.
func shape(r *talk.Recording) string {
	var out strings.Builder
	out.WriteString(r.Failure)
	for _, e := range r.Exchanges {
		if e.Outcome != talk.Unasked {
			fmt.Fprint(&out, e.Step, e.Outcome, e.Status(), " ")
		}
	}
	return out.String()
}

// Worst is the verdict of a point with these findings.
func Worst(all []Finding) Verdict {
	v := Same
	for _, f := range all {
		if rank(f.Verdict) > rank(v) {
			v = f.Verdict
		}
	}
	return v
}

func quoteList(names []string) string { return strings.Join(names, ", ") }
