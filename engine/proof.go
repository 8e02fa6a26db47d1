package engine

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"time"

	"rtspshim/engine/hint"
)

// A Proof compares the packets an upstream sends for one Session with a
// hinted movie: first two header octets but the version, sequence and
// timestamp steps, and every octet behind the header. It is the first half of
// verify-then-take-over: when enough packets of every Media agree, the
// comparison has found the Mapping.
//
// A Proof is for one goroutine.
type Proof struct {
	file  *hint.File
	known *passages
	from  time.Duration // where the first packet is expected
	ahead int           // the passage to take next
	most  int           // and the first not to be taken
	ended bool          // nothing is left to take
	need  int
	held  int

	tracks []uint32  // hint track IDs, as the scan numbers them
	parts  []passage // taken so far
	count  []int     // candidates of each track in them
	medias []*mediaProof
	why    string        // set once the packets differ
	base   time.Duration // the earliest that a packet came, less its due time
	early  time.Duration // the lead after the first burst, once shown
	shown  bool          //
	lead   time.Duration // after the last burst
	leadAt time.Duration // it was reached

	firstAt, baseAt, lastAt time.Duration // arrivals: of the first packet, of base's, of the last one
}

// Seen is a packet of the upstream's, as far as a Proof needs it.
type Seen struct {
	Media int
	Bits  uint16 // first two header octets, RFC 3550 §5.1
	Seq   uint16
	Time  uint32
	SSRC  uint32
	Size  int           // octets behind the 12 of the header
	Sum   uint64        // over them; of use within this process only
	At    time.Duration // arrival, since any epoch
}

var sumSeed = maphash.MakeSeed()

const rtpHeader = 12 // octets without CSRCs and extension, which movies hold as payload

// See reads an RTP packet; ok is false when it is none.
func See(media int, packet []byte, at time.Duration) (s Seen, ok bool) {
	if len(packet) < rtpHeader || packet[0]>>6 != 2 {
		return Seen{}, false
	}
	return Seen{
		Media: media,
		Bits:  binary.BigEndian.Uint16(packet),
		Seq:   binary.BigEndian.Uint16(packet[2:]),
		Time:  binary.BigEndian.Uint32(packet[4:]),
		SSRC:  binary.BigEndian.Uint32(packet[8:]),
		Size:  len(packet) - rtpHeader,
		Sum:   maphash.Bytes(sumSeed, packet[rtpHeader:]),
		At:    at,
	}, true
}

// Mapping is how a Media's packets are numbered for the client: added to what
// the movie's hints say.
type Mapping struct {
	Track uint32 // hint track ID
	SSRC  uint32
	Seq   uint16
	Time  uint32
}

// Place is a packet of a track in the movie.
type Place struct {
	Sample int
	Seq    uint16 // as hinted
	Due    time.Duration
}

// mediaProof is what is still possible for one Media.
type mediaProof struct {
	started bool
	guesses []guess
	matched int // packets that agreed with what is left of guesses
}

// guess is one way in which a Media's packets can be the movie's: the first
// packet seen is candidate first of the track.
type guess struct {
	track, first int
	firstSeq     uint16
	m            Mapping
}

const (
	proofLead = 2  // passages taken before and behind the expected time
	proofMost = 60 // taken in all
	heldMost  = 1 << 16
)

// NewProof compares the packets of so many medias with the movie, expected to
// start at from. need packets of each Media must agree.
func (e *Engine) NewProof(f *hint.File, medias int, from time.Duration, need int) (*Proof, error) {
	at := int(max(0, from) / passageTime)
	p := &Proof{file: f, known: e.passages, from: from, ahead: max(0, at-proofLead), need: need, base: 1<<63 - 1}
	p.most = p.ahead + proofMost
	for _, t := range f.HintTracks() {
		p.tracks = append(p.tracks, t.ID)
	}
	p.count = make([]int, len(p.tracks))
	for range medias {
		p.medias = append(p.medias, &mediaProof{})
	}
	return p, p.take(at + proofLead)
}

// take takes in the movie's packets up to a passage.
func (p *Proof) take(last int) error {
	last = min(last, p.most-1)
	if p.ended || p.ahead > last || p.held >= heldMost {
		return nil
	}
	all, err := p.known.take(p.file, p.ahead, last)
	for _, s := range all {
		for t, list := range s.tracks {
			p.count[t] += len(list)
		}
		p.held += s.size()
		p.ended = s.last
	}
	p.parts, p.ahead = append(p.parts, all...), last+1
	return err
}

// at is the i-th candidate of a track.
func (p *Proof) at(track, i int) *candidate {
	for k := range p.parts {
		list := p.parts[k].tracks[track]
		if i < len(list) {
			return &list[i]
		}
		i -= len(list)
	}
	return nil
}

// same says whether the packet is the movie's, but for its numbers.
func (c *candidate) same(s *Seen) bool {
	return c.sum == s.Sum && c.size == s.Size && c.bits == s.Bits&^0xc000
}

// Packet looks at the next packet of a Media. Lost and reordered packets do
// no harm. It reports whether every Media is proved; once Why says something,
// never.
func (p *Proof) Packet(s Seen) bool {
	if p.why != "" {
		return false
	}
	m := p.medias[s.Media]
	if !m.started {
		m.started = true
		p.start(m, &s)
	} else {
		p.follow(m, &s)
	}
	if len(m.guesses) == 0 {
		p.why = fmt.Sprintf("packet %d of media %d (sequence %d, %d octets) is not the movie's", m.matched+1, s.Media, s.Seq, s.Size)
		return false
	}
	m.matched++
	if g := &m.guesses[0]; len(m.guesses) == 1 {
		if c := p.candidate(g, s.Seq); c != nil {
			if p.base == 1<<63-1 {
				p.firstAt = s.At
			}
			if s.At-p.lastAt > between { // another burst; the one before is known whole
				p.lead, p.leadAt = p.First()-p.base, p.baseAt
				if s.At-p.firstAt >= burst && !p.shown {
					p.early, p.shown = p.lead, true
				}
			}
			if s.At-c.due < p.base {
				p.base, p.baseAt = s.At-c.due, s.At
			}
			p.lastAt = max(p.lastAt, s.At)
		}
	}
	for _, m := range p.medias {
		if m.matched < p.need || len(m.guesses) != 1 {
			return false
		}
	}
	return true
}

// start guesses at every place where the movie has this packet.
func (p *Proof) start(m *mediaProof, s *Seen) {
	for t := range p.tracks {
		for i := range p.count[t] {
			if c := p.at(t, i); c.same(s) {
				m.guesses = append(m.guesses, guess{t, i, s.Seq, Mapping{
					Track: p.tracks[t], SSRC: s.SSRC, Seq: s.Seq - c.seq, Time: s.Time - c.time,
				}})
			}
		}
	}
}

// follow drops the guesses that this packet refutes.
func (p *Proof) follow(m *mediaProof, s *Seen) {
	left := m.guesses[:0]
	for _, g := range m.guesses {
		c := p.candidate(&g, s.Seq)
		if c == nil && g.first+int(int16(s.Seq-g.firstSeq)) < 0 {
			left = append(left, g) // from before the first one, late
			continue
		}
		if c != nil && c.same(s) && s.SSRC == g.m.SSRC && s.Time == c.time+g.m.Time {
			left = append(left, g)
		}
	}
	m.guesses = left
}

// candidate is the movie's packet that has this sequence number by the guess.
func (p *Proof) candidate(g *guess, seq uint16) *candidate {
	i := g.first + int(int16(seq-g.firstSeq))
	for i >= p.count[g.track] && !p.ended && p.ahead < p.most && p.held < heldMost {
		if err := p.take(p.ahead + proofLead); err != nil {
			p.why, p.ended = err.Error(), true
		}
	}
	if i < 0 || i >= p.count[g.track] {
		return nil
	}
	c := p.at(g.track, i)
	if c.seq+g.m.Seq != seq {
		return nil
	}
	return c
}

// Why is the reason why the movie is not what the upstream sends; empty as
// long as it may be.
func (p *Proof) Why() string { return p.why }

// Mapping is a proved Media's numbering.
func (p *Proof) Mapping(media int) Mapping { return p.medias[media].guesses[0].m }

// Base is the moment, since the epoch of Seen.At, at which the movie's time 0
// would have been sent: so that no packet seen came earlier than it is due.
func (p *Proof) Base() time.Duration { return p.base }

const (
	burst    = 300 * time.Millisecond // an upstream may take over the packets it sends at once
	between  = 10 * time.Millisecond  // two bursts, at least
	realTime = 500 * time.Millisecond // of lead are none
	grows    = 4 * time.Second        // by then a lead that grows has shown it
	mostLead = 25 * time.Second
)

// Ahead is how far before packets are due they come, over TCP, as soon as it
// has shown. An upstream may send the first second or so at once and then stay
// ahead by that much, or go on at a multiple of real time: then its lead is in
// proportion to the time since the first packet, as soon as it exceeds the
// first burst's. It is measured where it does so by half.
func (p *Proof) Ahead() (a Ahead, known bool) {
	grown := p.lead >= p.early+p.early/2
	switch {
	case !p.shown:
		return Ahead{}, false
	case p.early < realTime:
		return Ahead{}, true
	case !grown && p.lastAt-p.firstAt < grows:
		return Ahead{}, false
	case grown:
		a.Growth = float64(p.lead) / float64(p.leadAt-p.firstAt)
	}
	a.Lead, a.Most = p.early, mostLead
	return a, true
}

// First is the moment, since the epoch of Seen.At, at which the movie's time 0
// would have been sent if the first packet came at the start's.
func (p *Proof) First() time.Duration { return p.firstAt - p.from }

// Place is where in the movie a proved Media's packet of that sequence number
// stands; ok is false when it has none.
func (p *Proof) Place(media int, seq uint16) (at Place, ok bool) {
	c := p.candidate(&p.medias[media].guesses[0], seq)
	if c == nil {
		return Place{}, false
	}
	return Place{c.sample, c.seq, c.due}, true
}
