package judge

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"

	"rtspshim/compat/talk"
)

// Section is what came on one track between two answers: after a PLAY until
// the next one, or after a PAUSE or TEARDOWN, where nothing should come.
type Section struct {
	Label    string // of the exchange it follows
	Method   string
	Ranged   bool          // the PLAY named a position
	First    bool          // the first PLAY of the track
	Begin    time.Duration // when the answer came
	End      time.Duration // when the next section begins, or the recording's end
	From, To int           // packets [From, To) of the track
	Info     *headers.RTPInfoEntry
	Range    *float64 // where the answer says it begins, seconds
}

// Sections cuts a track at the answers that concern its session.
func Sections(r *talk.Recording, t *talk.Track) []Section {
	var all []Section
	order, by := Labelled(r)
	for _, label := range order {
		e := by[label]
		if e.Status() != 200 || !concerns(e, t) {
			continue
		}
		s := Section{Label: label, Method: e.Method, Ranged: e.Ranged, Begin: e.At, End: r.Took}
		s.First = e.Method == "PLAY"
		for _, before := range all {
			s.First = s.First && before.Method != "PLAY"
		}
		if e.Method == "PLAY" {
			s.Info = info(e.Answer, t)
			s.Range = npt(e.Answer.Value("Range"))
		}
		s.From = cut(t, e, &s)
		if n := len(all); n > 0 {
			s.From = max(s.From, all[n-1].From)
			all[n-1].To, all[n-1].End = s.From, e.At
		}
		s.To = len(t.Packets)
		all = append(all, s)
	}
	if left, ok := r.Left[t.Conn]; ok && !t.UDP && len(all) > 0 {
		all[len(all)-1].End = left
	}
	return all
}

// longestSample is how many packets of one sample may be sent again.
const longestSample = 64

// once leaves out what a server sends again on resuming, and counts it. Darwin
// resumes at a time, not at a packet (RFC 2326 10.5: "at the pause point"): the
// sample in which it falls comes a second time, with new numbers. The rest can
// be compared packet by packet.
func once(t *talk.Track, all []Section) (*talk.Track, []Section, int) {
	out, sections, gone := *t, slices.Clone(all), 0
	out.Packets = nil
	for i := range sections {
		s := &sections[i]
		again := 0
		for k := min(longestSample, s.From, s.To-s.From); i > 0 && s.Method == "PLAY" && !s.Ranged && k > again; k-- {
			before, now := t.Packets[s.From-k:s.From], t.Packets[s.From:s.From+k]
			if slices.EqualFunc(before, now, func(p, q talk.Packet) bool { return p.Hash == q.Hash }) {
				again = k
			}
		}
		if i == 0 {
			out.Packets = append(out.Packets, t.Packets[:s.From]...)
		}
		out.Packets = append(out.Packets, t.Packets[s.From+again:s.To]...)
		s.From -= gone
		gone += again
		s.To -= gone
	}
	if gone == 0 {
		return t, all, 0
	}
	return &out, sections, gone
}

// concerns says whether the answer to e changes what the track sends.
func concerns(e *talk.Exchange, t *talk.Track) bool {
	switch e.Method {
	case "PLAY", "PAUSE", "TEARDOWN":
	default:
		return false
	}
	id, _, _ := strings.Cut(talk.ParseMessage(e.Sent).Value("Session"), ";")
	return id == t.Session
}

// cut is the index of the first packet after the answer. Over UDP packets may
// overtake it, so the RTP-Info's sequence number decides where there is one.
func cut(t *talk.Track, e *talk.Exchange, s *Section) int {
	if s.First {
		return 0
	}
	after := sort.Search(len(t.Packets), func(i int) bool {
		if p := t.Packets[i]; p.Order > 0 && t.Conn == e.Conn {
			return p.Order > e.Order
		}
		return t.Packets[i].At > e.At
	})
	if s.Info == nil || s.Info.SequenceNumber == nil || !t.UDP {
		return after
	}
	const around = 64
	for i := max(0, after-around); i < min(len(t.Packets), after+around); i++ {
		if d := t.Packets[i].Seq - *s.Info.SequenceNumber; d < around && t.Packets[i].At >= e.SentAt {
			return i
		}
	}
	return after
}

// info is the track's entry in the RTP-Info of a PLAY answer: the one whose
// URL ends like the SETUP's, else the one in its place.
func info(m *talk.Message, t *talk.Track) *headers.RTPInfoEntry {
	var all headers.RTPInfo
	if v := m.Values("RTP-Info"); len(v) == 0 || all.Unmarshal(base.HeaderValue{v[0]}) != nil {
		return nil
	}
	for _, entry := range all {
		if t.Control != "" && lastPart(entry.URL) == lastPart(t.Control) {
			return entry
		}
	}
	if t.Media >= 1 && t.Media <= len(all) {
		return all[t.Media-1]
	}
	return nil
}

// npt is the beginning of a Range in seconds.
func npt(value string) *float64 {
	var r headers.Range
	if r.Unmarshal(base.HeaderValue{value}) != nil {
		return nil
	}
	if v, ok := r.Value.(*headers.RangeNPT); ok {
		at := v.Start.Seconds()
		return &at
	}
	return nil
}

func lastPart(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// stretch is packets that belong together: a section, or for a movie
// everything from one named position to the next, pauses included.
type stretch struct {
	where    string
	sections []Section
	from, to int
	fixed    bool // begins at a position that is the same in every run
}

func stretches(r *talk.Recording, t *talk.Track, all []Section) []stretch {
	movie := r.Duration > 0
	var out []stretch
	for _, s := range all {
		starts := s.Method == "PLAY" && (s.First || s.Ranged || !movie)
		if n := len(out); n > 0 && movie && !starts {
			out[n-1].to = s.To
			out[n-1].sections = append(out[n-1].sections, s)
			continue
		}
		if s.Method == "PLAY" {
			out = append(out, stretch{where: s.Label + trackName(t), sections: []Section{s}, from: s.From, to: s.To,
				fixed: movie})
		}
	}
	if len(all) == 0 && len(t.Packets) > 0 {
		out = append(out, stretch{where: "without PLAY" + trackName(t), from: 0, to: len(t.Packets)})
	}
	return out
}

func trackName(t *talk.Track) string {
	name := fmt.Sprintf(", track %d %s", t.Media, t.Kind)
	if t.Media == 0 {
		name = ", " + t.Kind
	}
	if t.Conn != "A" {
		name += " of " + t.Conn
	}
	return name
}

// alignment pairs the packets of two stretches by their payloads.
type alignment struct {
	pairs                    [][2]int // indices into a and b
	missing, extra, changed  int      // of b, seen from a
	firstGap, firstX, firstC int      // where in a (extra: in b) the first of each is
	lost                     bool     // no way to go on was found
}

// window is how far ahead the next common packets are sought.
const window = 512

func align(a, b []talk.Packet, fixed bool) (alignment, bool) {
	var m alignment
	i, j := 0, 0
	if !fixed {
		var ok bool
		if i, j, ok = overlap(a, b); !ok {
			return m, false
		}
	}
	for i < len(a) && j < len(b) {
		if a[i].Hash == b[j].Hash {
			m.pairs = append(m.pairs, [2]int{i, j})
			i, j = i+1, j+1
			continue
		}
		di, dj, ok := resync(a[i:], b[j:])
		if !ok {
			// Near the end too little is left to be sure of anything.
			if left := min(len(a)-i, len(b)-j); left > 4 || len(m.pairs) == 0 {
				m.note(i, j, left, left)
				m.lost = true
			}
			break
		}
		m.note(i, j, di, dj)
		i, j = i+di, j+dj
	}
	return m, true
}

func (m *alignment) note(i, j, di, dj int) {
	both := min(di, dj)
	if both > 0 && m.changed == 0 {
		m.firstC = i
	}
	if di > both && m.missing == 0 {
		m.firstGap = i + both
	}
	if dj > both && m.extra == 0 {
		m.firstX = j + both
	}
	m.changed += both
	m.missing += di - both
	m.extra += dj - both
}

// resync finds the nearest place where two packets in a row agree again.
func resync(a, b []talk.Packet) (di, dj int, ok bool) {
	same := func(i, j int) bool {
		if i >= len(a) || j >= len(b) || a[i].Hash != b[j].Hash {
			return false
		}
		return i+1 >= len(a) || j+1 >= len(b) || a[i+1].Hash == b[j+1].Hash
	}
	for sum := 1; sum < window; sum++ {
		for i := 0; i <= sum; i++ {
			// A changed packet (1,1) is nearer than one lost and one more.
			if k := sum - i; same(i, k) {
				if sum == 1 && same(1, 1) && !same(1, 2) && !same(2, 1) {
					return 1, 1, true
				}
				return i, k, true
			}
		}
	}
	return 0, 0, false
}

// overlap finds where two recordings of the same live stream first meet, by
// payloads that occur once in each.
func overlap(a, b []talk.Packet) (int, int, bool) {
	once := func(p []talk.Packet) map[uint64]int {
		at := map[uint64]int{}
		for i := range p {
			if _, twice := at[p[i].Hash]; twice {
				at[p[i].Hash] = -1
			} else {
				at[p[i].Hash] = i
			}
		}
		return at
	}
	inA, inB := once(a), once(b)
	for j := range b {
		if i, ok := inA[b[j].Hash]; ok && i >= 0 && inB[b[j].Hash] == j {
			// Go back over what came before and repeats elsewhere.
			for i > 0 && j > 0 && a[i-1].Hash == b[j-1].Hash {
				i, j = i-1, j-1
			}
			return i, j, true
		}
	}
	return 0, 0, false
}
