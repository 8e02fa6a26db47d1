package bench

import (
	"cmp"
	"errors"
	"net"
	"os"
	"slices"
	"time"
)

const (
	sameFrame = 2 * time.Second
	maxErrors = 20 // kinds of failure told apart
)

// foundation is a server's memory to compare with: before the first session, then at
// the first load, which has brought in all that there is but once.
type foundation struct {
	resident []uint64 // of each process
	sessions int
}

// tally sums up the rounds of one server at one load.
type tally struct {
	server Server
	load   int
	tcp    bool
	base   foundation

	sessions, failed int
	errors           map[string]int
	live             bool
	sum              Run // counts alone
	late, spread     pool
	skew, added, raw pool
	gbps             float64 // of the raw loop that sends all the same
	ahead            pool
	bursts           [maxBurst + 1]uint64
	steps            [6]pool // connect, describe, setup, play, first, all
	cpu              []time.Duration
	resident         []uint64
	costs            []float64 // CPU-s/GiB of each round
	octetsBefore     uint64
	spentNow         time.Duration // of the servers, in this round
}

// fail notes a session that could not be set up.
func (t *tally) fail(err error) {
	t.failed++
	if t.errors == nil {
		t.errors = map[string]int{}
	}
	kind := err.Error()
	var op *net.OpError // names ports, which differ each time
	if errors.As(err, &op) {
		kind = op.Op + ": " + op.Err.Error()
	}
	if len(t.errors) < maxErrors || t.errors[kind] > 0 {
		t.errors[kind]++
	}
}

// complaint is the most frequent failure.
func (t *tally) complaint() string {
	what, most := "no reason", 0
	for kind, n := range t.errors {
		if n > most {
			what, most = kind, n
		}
	}
	return what
}

// usage is what was used so far.
type usage struct {
	at           time.Time
	pids         []time.Duration
	self         time.Duration
	busy, stolen time.Duration
	resident     []uint64
}

// sample looks at the processes; one that has gone stands still.
func sample(pids []int) usage {
	u := usage{at: time.Now(), resident: resident(pids)}
	for _, pid := range pids {
		d, _ := cpuTime(pid)
		u.pids = append(u.pids, d)
	}
	u.self, _ = cpuTime(os.Getpid())
	u.busy, u.stolen = machineTime()
	return u
}

func resident(pids []int) []uint64 {
	var all []uint64
	for _, pid := range pids {
		n, _ := memory(pid)
		all = append(all, n)
	}
	return all
}

// spent adds what a window took.
func (t *tally) spent(from, to usage) {
	t.sum.Seconds += to.at.Sub(from.at).Seconds()
	t.cpu = slices.Grow(t.cpu, len(to.pids))[:len(to.pids)]
	t.spentNow = 0
	for i := range to.pids {
		d := max(0, to.pids[i]-from.pids[i])
		t.cpu[i] += d
		t.spentNow += d
	}
	t.sum.SelfCPU += (to.self - from.self).Seconds()
	t.sum.MachineCPU += (to.busy - from.busy).Seconds()
	t.sum.Stolen += (to.stolen - from.stolen).Seconds()
	t.resident = slices.Grow(t.resident, len(to.resident))[:len(to.resident)]
	for i, n := range to.resident {
		t.resident[i] = max(t.resident[i], n)
	}
}

// take adds what the sessions of a round saw; their readers have ended.
func (t *tally) take(sessions []*session, readers []*reader) {
	slices.SortFunc(sessions, func(a, b *session) int { return cmp.Compare(a.index, b.index) })
	t.octetsBefore = t.sum.Bytes
	var counted []*session
	for _, s := range sessions {
		if !s.extra {
			counted = append(counted, s)
			t.session(s)
		}
	}
	t.sessions = max(t.sessions, len(counted))
	for _, r := range readers {
		t.sum.ReaderCPU += time.Duration(r.busy.Load()).Seconds()
		t.sum.Timeless += r.timeless.Load()
	}
	if gib := float64(t.sum.Bytes-t.octetsBefore) / (1 << 30); gib > 0 && len(t.server.Pids) > 0 {
		t.costs = append(t.costs, t.spentNow.Seconds()/gib)
	}
	if t.live {
		skews(counted, &t.skew)
		for _, s := range sessions {
			if s.extra && s.pair < 0 {
				delays(s, counted, &t.added)
				var came []seen
				for _, tr := range s.tracks {
					came = append(came, tr.came...)
				}
				queue(came, len(counted), t.gbps, &t.raw)
			}
		}
	}
	t.sum.Verified.add(comparePairs(sessions))
}

// session adds what one session saw.
func (t *tally) session(s *session) {
	t.live = t.live || s.live
	silent := true
	var first int64
	for _, tr := range s.tracks {
		silent = silent && tr.packets == 0
		t.track(tr)
		if tr.first != 0 && (first == 0 || tr.first < first) {
			first = tr.first
		}
	}
	if silent {
		t.sum.Silent++
	}
	if s.broken {
		t.sum.Broken++
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	x := s.times
	t.steps[0].add(ms(x.connect))
	t.steps[1].add(ms(x.describe))
	t.steps[2].add(ms(x.setup))
	t.steps[3].add(ms(x.play))
	if first != 0 {
		t.steps[4].add(max(0, ms(time.Unix(0, first).Sub(x.playSent))))
	}
	t.steps[5].add(ms(x.describe + x.setup + x.play))
}

// track adds what one track saw.
func (t *tally) track(tr *track) {
	tr.endBurst()
	t.sum.Packets += tr.packets
	t.sum.Bytes += tr.octets
	t.sum.Lost += tr.lost()
	t.sum.Reordered += tr.reordered
	t.sum.Duplicate += tr.duplicate
	t.sum.Foreign += tr.foreign
	t.sum.Sources += tr.sources
	if tr.pair != nil {
		t.sum.Dropped += tr.pair.dropped
		for n, count := range tr.bursts {
			t.bursts[n] += uint64(count)
		}
	}
	begin := tr.late.min
	if t.tcp && !tr.live && tr.late.n > 0 { // it may run ahead: the viewer's clock began with the first packet
		t.ahead.add(max(0, float64(-begin)/1e3))
		begin = 0
	}
	t.late.take(&tr.late, func(v int32) float64 { return max(0, float64(v-begin)/1e3) })
	t.spread.take(&tr.spread, func(v int32) float64 { return float64(v) / 1e3 })
}

// skews adds, for each frame of a live stream, how long after the first reader
// the last one had it.
func skews(sessions []*session, into *pool) {
	type stream struct {
		url   string
		track int
	}
	frames := map[stream]map[uint32][]int64{}
	viewers := map[string]int{}
	for _, s := range sessions {
		viewers[s.url]++
		for i, t := range s.tracks {
			k := stream{s.url, i}
			if frames[k] == nil {
				frames[k] = map[uint32][]int64{}
			}
			for _, f := range t.seen {
				frames[k][f.key] = append(frames[k][f.key], f.at)
			}
		}
	}
	for k, byKey := range frames {
		for _, times := range byKey {
			slices.Sort(times)
			for len(times) > 0 {
				n := 1
				for n < len(times) && times[n]-times[n-1] < int64(sameFrame) {
					n++
				}
				// Most of the viewers, once each: else other frames look the same.
				if n >= 2 && n <= viewers[k.url] && 2*n > viewers[k.url] {
					into.add(float64(times[n-1]-times[0]) / 1e6)
				}
				times = times[n:]
			}
		}
	}
}

// delays adds, for each packet of a live stream, how much later than direct a
// session had it. Packets that look alike are left out.
func delays(direct *session, sessions []*session, into *pool) {
	for i, d := range direct.tracks {
		at := map[uint32]int64{}
		for _, p := range d.came {
			if _, twice := at[p.key]; twice {
				p.at = 0
			}
			at[p.key] = p.at
		}
		for _, s := range sessions {
			if i >= len(s.tracks) {
				continue
			}
			for _, p := range s.tracks[i].came {
				if was := at[p.key]; was != 0 {
					into.add(float64(p.at-was) / 1e6)
				}
			}
		}
	}
}

// queue adds how much later the viewers would get packets from a raw loop of that
// throughput which sends to all what has come, and begins at once.
func queue(came []seen, viewers int, gbps float64, into *pool) {
	const parts = 16 // of the viewers, one after the other
	slices.SortFunc(came, func(a, b seen) int { return cmp.Compare(a.at, b.at) })
	free := 0.
	for _, p := range came {
		if gbps == 0 {
			return
		}
		at := float64(p.at-came[0].at) / 1e6
		free = max(free, at)
		for range parts {
			free += float64(8*p.size*viewers) / gbps / 1e6 / parts
			into.add(free - at)
		}
	}
}

// quantiles is the one of burst lengths, in packets.
func burstQuantiles(counts [maxBurst + 1]uint64) Quantiles {
	var n uint64
	longest := 0
	for i, c := range counts {
		if n += c; c > 0 {
			longest = i
		}
	}
	if n == 0 {
		return Quantiles{}
	}
	at := func(q float64) float64 {
		var sum uint64
		for i, c := range counts {
			if sum += c; float64(sum) >= q*float64(n) {
				return float64(i)
			}
		}
		return float64(longest)
	}
	return Quantiles{N: int(n), P50: at(.5), P99: at(.99), P999: at(.999), Max: float64(longest)}
}
