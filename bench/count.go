package bench

import (
	"encoding/binary"
	"hash/crc32"
	"hash/maphash"
	"sync/atomic"
	"time"
)

const (
	seqWindow   = 1024                          // sequence numbers looked back for duplicates
	burstGap    = int64(time.Millisecond)       // between packets of one burst, at most
	maxBurst    = 256                           // bursts that long or longer are counted as one size
	maxSeen     = 1 << 12                       // frames of a track kept for the skew
	maxRecorded = 1 << 16                       // packets of a track kept to compare
	maxOffset   = int64(30*time.Minute) / 1_000 // of lateness, in µs
	maxSpread   = int64(time.Minute)
	snap        = 64 // octets read of a packet that is only counted
)

// header is what counting needs of an RTP packet (RFC 3550 §5.1).
type header struct {
	seq    uint16
	time   uint32
	ssrc   uint32
	size   int // of the packet
	marker bool
	kind   uint8
}

// parseHeader reads an RTP header; false if it is none.
func parseHeader(b []byte, size int) (header, bool) {
	if len(b) < 12 || b[0]>>6 != 2 {
		return header{}, false
	}
	return header{seq: binary.BigEndian.Uint16(b[2:]), time: binary.BigEndian.Uint32(b[4:]),
		ssrc: binary.BigEndian.Uint32(b[8:]), size: size, marker: b[1]&0x80 != 0, kind: b[1] & 0x7f}, true
}

// window is the stretch of time that is measured, Unix ns; it is 0 until known.
type window struct{ from, to atomic.Int64 }

func (w *window) has(at int64) bool {
	from := w.from.Load()
	return from != 0 && at >= from && at < w.to.Load()
}

// seen is a packet as many readers may have seen it: the first of a frame, or each.
type seen struct {
	key  uint32 // of its first octets
	size int
	at   int64 // Unix ns
}

// recorded is a packet of a track that is fully checked.
type recorded struct {
	ext  uint32 // sequence number, extended
	time uint32
	sum  uint64 // of payload, marker and payload type
}

// counter is one media of one session: what came, in what order, and when.
type counter struct {
	rate uint32 // Hz of the RTP clock; 0 if unknown: no lateness then
	live bool   // frames are kept for the skew
	full bool   // packets are recorded, to be compared
	each bool   // their arrivals are, for the delay added

	first  int64  // arrival of the very first packet, Unix ns
	origin int64  // of the first that is RTP, from where the RTP clock is followed
	clock  uint32 // whose RTP clock: its SSRC
	ticks  int64  // of it, from there to top
	all    uint64 // packets, in the window or not

	// What follows is of the window.
	packets, octets      uint64
	unique               uint64
	reordered, duplicate uint64
	foreign              uint64 // not RTP
	sources              uint64 // SSRCs that came after another

	ssrc       uint32
	base, high uint32 // extended sequence numbers of this SSRC, first and highest
	past       uint64 // packets expected of SSRCs that are over
	got        [seqWindow / 64]uint64

	lastAt int64
	burst  int
	bursts [maxBurst + 1]uint32

	known   bool   // the frame's first packet was seen
	frame   uint32 // its RTP time
	frameAt int64  // and its arrival
	top     uint32 // latest RTP time of a frame that began

	late   samples // µs behind the RTP clock that started at origin
	spread samples // µs, of frames of more than one packet
	seen   []seen
	came   []seen // of each packet

	recorded []recorded
	cut      bool // recorded is full
}

// packet counts a packet of which b is at least the beginning. The octets of b
// are on loan for the call.
func (c *counter) packet(b []byte, size int, at int64, w *window) {
	if c.first == 0 {
		c.first = at
	}
	c.all++
	inside := w.has(at)
	if !inside && c.origin != 0 {
		return
	}
	h, ok := parseHeader(b, size)
	if c.origin == 0 && ok {
		c.origin, c.top, c.clock = at, h.time, h.ssrc
	}
	if !inside {
		return
	}
	if !ok {
		c.foreign++
		return
	}
	place := c.sequence(h)
	if place == stale {
		return
	}
	c.packets++
	c.octets += uint64(size)
	c.gap(at)
	if c.each && len(c.came) < maxRecorded {
		c.came = append(c.came, sight(h, b, at))
	}
	if place <= next {
		c.timing(h, at, b, place)
	}
	if c.full && place != again {
		c.record(b[:min(size, len(b))], h)
	}
}

// place is where in its stream a packet stands.
type place int

const (
	start  place = iota // the first of its SSRC
	next                // behind all others
	behind              // before one that came already
	again               // a duplicate
	stale               // from before the window
)

// sequence follows the sequence numbers.
func (c *counter) sequence(h header) place {
	if c.base == 0 || h.ssrc != c.ssrc {
		if c.base != 0 {
			c.sources++
			c.past += uint64(c.high - c.base + 1)
		}
		c.ssrc = h.ssrc
		c.base = 1<<16 + uint32(h.seq) // so that an older one is below, not around
		c.high = c.base
		c.got = [seqWindow / 64]uint64{}
		c.mark(c.base)
		return start
	}
	ext := c.high + uint32(int32(int16(h.seq-uint16(c.high))))
	switch {
	case ext > c.high:
		if ext-c.high >= seqWindow {
			c.got = [seqWindow / 64]uint64{}
		} else {
			for s := c.high + 1; s < ext; s++ {
				c.got[s/64%(seqWindow/64)] &^= 1 << (s % 64)
			}
		}
		c.high = ext
		c.mark(ext)
		return next
	case ext < c.base:
		return stale
	case c.high-ext >= seqWindow || c.got[ext/64%(seqWindow/64)]>>(ext%64)&1 != 0:
		c.duplicate++
		return again
	}
	c.reordered++
	c.mark(ext)
	return behind
}

func (c *counter) mark(ext uint32) {
	c.got[ext/64%(seqWindow/64)] |= 1 << (ext % 64)
	c.unique++
}

// lost is how many packets never came.
func (c *counter) lost() uint64 {
	if c.base == 0 {
		return 0
	}
	return c.past + uint64(c.high-c.base+1) - c.unique
}

// gap follows the bursts.
func (c *counter) gap(at int64) {
	if at-c.lastAt >= burstGap {
		c.endBurst()
	}
	c.burst++
	c.lastAt = max(at, c.lastAt)
}

func (c *counter) endBurst() {
	if c.burst > 0 {
		c.bursts[min(c.burst, maxBurst)]++
	}
	c.burst = 0
}

// timing follows the frames, by the packets that come in order. The first frame
// may have begun before the window: nothing is said about it.
func (c *counter) timing(h header, at int64, b []byte, p place) {
	if p != start && h.time == c.frame {
		if c.known && h.marker { // of more than one packet, the last
			c.spread.add(int32(min(at-c.frameAt, maxSpread) / 1_000))
		}
		return
	}
	c.known = p != start
	c.frame, c.frameAt = h.time, at
	switch {
	case c.known:
		c.beginFrame(h, at, b)
	case h.ssrc != c.clock: // another SSRC, another RTP time: taken as punctual
		c.clock, c.top, c.ticks = h.ssrc, h.time, int64(float64(at-c.origin)/float64(time.Second)*float64(c.rate))
	}
}

// beginFrame notes when a frame began.
func (c *counter) beginFrame(h header, at int64, b []byte) {
	if c.live && len(c.seen) < maxSeen {
		c.seen = append(c.seen, sight(h, b, at))
	}
	if c.rate == 0 {
		return
	}
	step := int32(h.time - c.top)
	if step < 0 {
		return // a B-frame: RTP time runs in the order of showing
	}
	c.top = h.time
	c.ticks += int64(step)
	due := c.origin + int64(float64(c.ticks)*float64(time.Second)/float64(c.rate))
	us := (at - due) / 1_000
	c.late.add(int32(max(-maxOffset, min(maxOffset, us))))
}

func sight(h header, b []byte, at int64) seen {
	return seen{crc32.ChecksumIEEE(b[12:min(len(b), snap)]) ^ uint32(h.size)<<16, h.size, at}
}

var sumSeed = maphash.MakeSeed()

// record keeps what a packet must have in common with another reader's.
func (c *counter) record(b []byte, h header) {
	if len(c.recorded) == maxRecorded {
		c.cut = true
		return
	}
	ext := c.high + uint32(int32(int16(h.seq-uint16(c.high))))
	var m maphash.Hash
	m.SetSeed(sumSeed)
	_ = m.WriteByte(b[1]) // marker and payload type
	_, _ = m.Write(b[12:])
	c.recorded = append(c.recorded, recorded{ext, h.time, m.Sum64()})
}
