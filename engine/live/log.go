package live

import (
	"encoding/binary"
	"hash/maphash"
	"time"
)

const (
	rtpHeader  = 12               // octets without CSRCs and extension, RFC 3550 §5.1
	logPackets = 4096             // held at most; a power of two
	logBytes   = 4 << 20          // likewise: 6 s of 5 Mbit/s
	sumPackets = 512              // held at most by a log of sums
	maxPacket  = 64 << 10         // octets
	version    = uint16(3 << 14)  // of the first two header octets: not compared
	marker     = uint16(1 << 7)   // likewise: a frame's last packet
	recent     = 30 * time.Second // packets older than this are as good as forgotten
)

var sumSeed = maphash.MakeSeed()

// entry is a packet in a log.
type entry struct {
	pos   uint64 // of its octets
	sum   uint64 // over those behind the RTP header
	at    time.Time
	time  uint32
	size  int32
	seq   uint16
	bits  uint16 // first two header octets
	media uint8
	rtcp  bool
}

// same says whether two packets are one, but for their numbers.
func (e *entry) same(o *entry) bool {
	return e.sum == o.sum && e.size == o.size && (e.bits^o.bits)&^version == 0
}

// place is where a Media stands in a log.
type place struct {
	started    bool
	ssrc       uint32
	seq        uint16 // the highest
	time       uint32 // and its timestamp
	at         time.Time
	count      int
	frame, key uint64   // where the last frame begins, and the last key frame, plus one
	index      []uint64 // by sequence number: where, plus one

	// While it is compared.
	from entry         // the first one
	rush time.Duration // media time beyond the time that has passed since, at most
}

// log keeps the last packets of some Medias in the order of their arrival, the
// octets of neighbours back to back. Without arena it keeps their sums alone.
type log struct {
	arena      []byte
	pos        uint64 // the next packet's; modulo len(arena), where it lies
	size       uint64 // of entries
	entries    []entry
	head, tail uint64 // entries held are [tail, head), modulo size
	medias     []*place
}

func newLog(medias int, payload bool) *log {
	l := &log{size: sumPackets}
	if payload {
		l.size, l.arena = logPackets, make([]byte, logBytes)
	}
	l.entries = make([]entry, l.size)
	for range medias {
		l.medias = append(l.medias, &place{index: make([]uint64, l.size)})
	}
	return l
}

func (l *log) entry(n uint64) *entry { return &l.entries[n%l.size] }

// bytes are an entry's octets, valid until the log has gone once around.
func (l *log) bytes(e *entry) []byte {
	at := e.pos % uint64(len(l.arena))
	return l.arena[at : at+uint64(e.size) : at+uint64(e.size)]
}

// find returns a Media's packet of that number, nil when it is not there.
func (l *log) find(media int, seq uint16) *entry {
	if n := l.behind(media, seq); n > 0 {
		return l.entry(n - 1)
	}
	return nil
}

// behind is the place behind that packet; 0 when it is not there.
func (l *log) behind(media int, seq uint16) uint64 {
	n := l.medias[media].index[uint64(seq)%l.size]
	if n <= l.tail || n > l.head {
		return 0
	}
	if e := l.entry(n - 1); int(e.media) != media || e.rtcp || e.seq != seq {
		return 0
	}
	return n
}

// run is how many packets from that place on leave as they lie, most at most, and
// their octets: of one Media and one size, the last perhaps shorter. m wants them,
// if it is given.
func (l *log) run(at, open uint64, most int, m *Member) (count, octets int) {
	first := l.entry(at)
	count, octets = 1, int(first.size)
	for before := first; count < most && at+uint64(count) < open; count++ {
		n := at + uint64(count)
		e := l.entry(n)
		if e.media != first.media || e.rtcp || e.pos != before.pos+uint64(before.size) || e.size > first.size ||
			before.size < first.size || m != nil && !m.wants(n, e) {
			break
		}
		octets += int(e.size)
		before = e
	}
	return count, octets
}

// read makes an entry of a packet; false when it is not RTP.
func read(media int, p []byte, at time.Time) (e entry, ssrc uint32, ok bool) {
	if len(p) < rtpHeader || len(p) > maxPacket || p[0]>>6 != 2 {
		return entry{}, 0, false
	}
	return entry{
		media: uint8(media), size: int32(len(p)), at: at,
		bits: binary.BigEndian.Uint16(p), seq: binary.BigEndian.Uint16(p[2:]), time: binary.BigEndian.Uint32(p[4:]),
		sum: maphash.Bytes(sumSeed, p[rtpHeader:]),
	}, binary.BigEndian.Uint32(p[8:]), true
}

// put takes a packet in and returns its octets for the caller to renumber.
func (l *log) put(e entry, p []byte) []byte {
	if size := uint64(len(l.arena)); size > 0 {
		if left := size - l.pos%size; left < uint64(len(p)) {
			l.pos += left // packets lie in one piece
		}
		e.pos = l.pos
		l.pos += uint64(len(p))
		copy(l.bytes(&e), p)
	}
	*l.entry(l.head) = e
	l.head++
	for l.head-l.tail > l.size || l.arena != nil && l.entry(l.tail).pos+uint64(len(l.arena)) < l.pos {
		l.tail++
	}
	if m := l.medias[e.media]; !e.rtcp {
		m.index[uint64(e.seq)%l.size] = l.head
		if !m.started || e.time != m.time && int16(e.seq-m.seq) > 0 {
			m.frame = l.head
		}
		if !m.started || int16(e.seq-m.seq) > 0 || e.at.Sub(m.at) > recent {
			m.seq, m.time = e.seq, e.time
		}
		m.at, m.started = e.at, true
		m.count++
	}
	if l.arena == nil {
		return nil
	}
	return l.bytes(&e)
}
