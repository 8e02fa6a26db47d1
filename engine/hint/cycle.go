package hint

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// Data is where the extents of a file lie in memory.
type Data interface {
	// At returns the bytes at offset off of the file: n of them, or as many
	// as lie in one piece of memory from there, or none when off is absent.
	At(off int64, n int) []byte
}

// Piece is a piece of a file in memory.
type Piece struct {
	Off   int64
	Bytes []byte
}

// Pieces is Data in pieces that are sorted by offset and do not overlap.
type Pieces []Piece

// At implements Data, in O(log n) of the pieces.
func (p Pieces) At(off int64, n int) []byte {
	i := sort.Search(len(p), func(i int) bool { return p[i].Off > off }) - 1
	if i < 0 {
		return nil
	}
	o := off - p[i].Off
	if o >= int64(len(p[i].Bytes)) {
		return nil
	}
	return p[i].Bytes[o:min(o+int64(n), int64(len(p[i].Bytes)))]
}

// Cycle is one interval of one reader: first what to read, then the packets, which
// lie in pages that it has with other readers. It is used again and again, so that
// nothing is allocated for pages that somebody has. The zero Cycle is ready to use.
type Cycle struct {
	From, To time.Duration

	// Extents are those to read: after Plan all, after Load the missing ones.
	// They are there until the reader's next call.
	Extents []Extent

	data   Data
	leaves []leaf // by stream, then by time
}

// entry is one packet. There are some hundred for each second of each movie that
// plays: they are as small as they can be.
type entry struct {
	due    time.Duration
	spread int32  // nanoseconds behind due that it is sent
	sample uint32 // hint sample
	span   uint32
	ts     uint32
	spans  uint16
	size   uint16 // at most maxPayload
	seq    uint16
	bits   uint16
	flags  uint16
}

func (e *entry) send() time.Duration { return e.due + time.Duration(e.spread) }

// span is a part of a packet's payload in the file: its offset, and in the lowest
// 16 bits its length, which is at most maxPayload.
type span uint64

func (s span) off() int64 { return int64(s >> 16) }
func (s span) n() int     { return int(s & 0xffff) }

func (c *Cycle) reset(r *Reader, to time.Duration) {
	clear(c.leaves) // others may need their pages no more
	*c = Cycle{From: r.from, To: to, Extents: r.extents[:0], leaves: c.leaves[:0]}
}

// Load reads the hints of the planned interval from data and makes the packets
// ready for Next. When something is missing it returns false, and c.Extents is
// what to bring in addition; then load again with all of it. The data must stay
// as it is until the last packet was taken and sent.
func (r *Reader) Load(c *Cycle, data Data) (bool, error) {
	c.Extents, c.data = c.Extents[:0], data
	for i := range c.leaves {
		l := &c.leaves[i]
		s := &r.streams[l.track]
		if i == 0 || c.leaves[i-1].track != l.track {
			s.owed = l.hi
		}
		if l.page == nil {
			if err := r.write(c, l); err != nil {
				return false, err
			}
		}
		if l.page != nil {
			s.owed, s.page = min(s.owed, c.open(l)), l.page
			c.cover(l)
		}
	}
	if len(c.Extents) == 0 {
		return true, nil
	}
	return false, r.settle(c)
}

// schedule sets when the packets of one bunch are sent; next is when the
// bunch after it is due. It depends on the bunch alone, not on the interval, so
// that a packet has one time however the movie is cut into intervals.
func (r *Reader) schedule(e []entry, next time.Duration) {
	if r.cfg.AsHinted || len(e) < 2 {
		return
	}
	sortBySend(e) // that is by due so far
	for i := 0; i < len(e); {
		var size, sent int64
		k := i
		for ; k < len(e) && e[k].due == e[i].due; k++ {
			size += int64(e[k].size) + headerSize
		}
		until := next
		if k < len(e) {
			until = e[k].due
		}
		room := int64(min(until-e[i].due, r.cfg.MaxSpread))
		for ; i < k; i++ {
			if room > 0 {
				e[i].spread = int32(room * sent / size)
			}
			sent += int64(e[i].size) + headerSize
		}
	}
}

func sortBySend(e []entry) {
	bySend := func(a, b entry) int { return cmp.Compare(a.send(), b.send()) }
	for i := 1; i < len(e); i++ {
		if e[i].send() < e[i-1].send() {
			slices.SortStableFunc(e, bySend)
			return
		}
	}
}

// cover adds to c.Extents the parts that are not in the data, of packets that the
// interval holds.
func (c *Cycle) cover(l *leaf) {
	at := *l
	for ; at.next < at.stop; c.skip(&at) {
		e := &at.entries[at.next]
		at.next++
		for _, s := range at.spans[e.span:][:e.spans] {
			for off, n := s.off(), s.n(); n > 0; {
				k := len(c.data.At(off, n))
				if k == 0 {
					c.Extents = append(c.Extents, Extent{off, int64(n)})
					break
				}
				off, n = off+int64(k), n-k
			}
		}
	}
}

// Next takes the packet to be sent next; false when there are no more in
// the interval. Packets of different tracks that are to be sent at the same
// time come in the order of the tracks.
func (c *Cycle) Next(p *Packet) bool {
	var best *leaf
	var at time.Duration
	for i := range c.leaves {
		if l := &c.leaves[i]; l.next < l.stop {
			if send := l.entries[l.next].send(); best == nil || send < at {
				best, at = l, send
			}
		}
	}
	if best == nil {
		return false
	}
	e := &best.entries[best.next]
	best.next++
	c.skip(best)
	p.Track, p.Sample = best.track, int(e.sample)
	p.Due, p.Send = e.due, e.send()
	p.Bits, p.Seq, p.Time, p.flags = e.bits, e.seq, e.ts, e.flags
	p.Size, p.Payload = int(e.size), p.Payload[:0]
	for _, s := range best.spans[e.span:][:e.spans] {
		for off, n := s.off(), s.n(); n > 0; {
			b := c.data.At(off, n)
			if len(b) == 0 {
				break // given back too early: the payload is short of Size
			}
			p.Payload = append(p.Payload, b)
			off, n = off+int64(len(b)), n-len(b)
		}
	}
	return true
}
