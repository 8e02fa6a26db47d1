package hint

import (
	"encoding/binary"
	"fmt"
	"time"
)

const (
	headerSize     = 12          // bytes of an RTP header (RFC 3550, 5.1)
	maxPayload     = 65507 - 12  // what fits a UDP datagram
	maxRelative    = time.Minute // of a packet's time to its sample's
	maxHops        = 64          // chunks one constructor may span
	spansPerPacket = 16          // on average, over an interval at its limit
	flagExtra      = 4
	flagBFrame     = 2
	flagRepeat     = 1
	rtpVersion2    = 0x8000
	rtpHintBits    = 0x3fff // P, X, (CC), M and PT; FFmpeg leaves the version in
	selfTrackRef   = -1
)

// Packet is one RTP packet. Its payload is on loan from the Data of the
// cycle it came from, and the list of it is used again when the Packet is
// given to Next again.
type Packet struct {
	Track  int           // which of the reader's tracks
	Sample int           // hint sample it comes from, counted from 0
	Due    time.Duration // when the hint says, from the start of the movie
	Send   time.Duration // when to send it; Due when reading as hinted

	Bits uint16 // first two bytes of the RTP header: V, P, X, CC, M, PT
	Seq  uint16 // as hinted, without any random offset
	Time uint32 // RTP timestamp, likewise

	Size    int      // of the payload, in bytes
	Payload [][]byte // after the 12 bytes of header
	flags   uint16
}

// Marker reports the RTP marker bit.
func (p *Packet) Marker() bool { return p.Bits&0x80 != 0 }

// Type returns the RTP payload type.
func (p *Packet) Type() uint8 { return uint8(p.Bits & 0x7f) }

// BFrame reports whether the hint says that no other frame needs this one's.
func (p *Packet) BFrame() bool { return p.flags&flagBFrame != 0 }

// Repeat reports whether the packet is sent a second time in case the first was
// lost: a reliable transport leaves it out.
func (p *Packet) Repeat() bool { return p.flags&flagRepeat != 0 }

// PutHeader writes the RTP header. The offsets are those chosen at random for
// the stream; both wrap around.
func (p *Packet) PutHeader(b *[12]byte, seqOffset uint16, timeOffset, ssrc uint32) {
	binary.BigEndian.PutUint16(b[0:], p.Bits)
	binary.BigEndian.PutUint16(b[2:], p.Seq+seqOffset)
	binary.BigEndian.PutUint32(b[4:], p.Time+timeOffset)
	binary.BigEndian.PutUint32(b[8:], ssrc)
}

// loadSample appends the packets of hint sample i to the draft, or the sample's
// extent to c.Extents when it is not in the data.
func (r *Reader) loadSample(c *Cycle, s *stream, i int) error {
	off, ok := s.hint.find(i)
	if !ok {
		return r.noChunk(s.t, i)
	}
	n := int(s.t.samples.size(i))
	b := c.data.At(off, n)
	if len(b) < n {
		if b = r.gather(c, off, n); b == nil {
			c.Extents = append(c.Extents, Extent{off, int64(n)})
			return nil
		}
	}
	l := loader{r: r, d: &r.draft, s: s, sample: i, off: off, b: b}
	return l.load()
}

// gather copies a hint sample that lies in several buffers into one, to read
// its packet table there. The payloads in it are still lent from the buffers.
func (r *Reader) gather(c *Cycle, off int64, n int) []byte {
	r.scratch = r.scratch[:0]
	for n > 0 {
		b := c.data.At(off, n)
		if len(b) == 0 {
			return nil
		}
		r.scratch = append(r.scratch, b...)
		off, n = off+int64(len(b)), n-len(b)
	}
	return r.scratch
}

// loader reads one hint sample (9.1.3).
type loader struct {
	r      *Reader
	d      *page
	s      *stream
	sample int
	off    int64
	b      []byte
	p      int // where it stands in b
	packet int
}

func (l *loader) errorf(format string, a ...any) error {
	where := fmt.Sprintf("track %d hint sample %d", l.s.t.ID, l.sample+1)
	if l.packet > 0 {
		where = fmt.Sprintf("%s packet %d", where, l.packet)
	}
	return &FormatError{l.r.m.Name, where, l.off + int64(l.p), fmt.Sprintf(format, a...)}
}

func (l *loader) load() error {
	if len(l.b) < 4 {
		if len(l.b) == 0 {
			return nil
		}
		return l.errorf("%d bytes, no packet count", len(l.b))
	}
	count := int(binary.BigEndian.Uint16(l.b))
	l.p = 4
	at := l.s.t.samples.time(l.sample)
	from, to := int64(l.s.t.TimeScale), int64(l.s.t.RTPScale)
	ts := uint32(rescale(at, from, to)+rescale(l.s.t.start, from, to)) + l.s.t.timeOffset
	for l.packet = 1; l.packet <= count; l.packet++ {
		if err := l.entry(at, ts); err != nil {
			return err
		}
	}
	return nil
}

// entry reads one packet entry (9.1.3.1).
func (l *loader) entry(at int64, ts uint32) error {
	if len(l.b)-l.p < 12 {
		return l.errorf("packet entry cut off")
	}
	if len(l.d.entries) >= l.r.cfg.MaxPackets || len(l.d.spans) >= spansPerPacket*l.r.cfg.MaxPackets {
		return l.r.limit(l.s.t, "%d packets in one second", len(l.d.entries))
	}
	h := l.b[l.p:]
	relative := int64(int32(binary.BigEndian.Uint32(h)))
	if relative != 0 {
		if ticks(max(relative, -relative), int64(l.s.t.TimeScale)) > maxRelative {
			return l.errorf("due %d units from its sample's time", relative)
		}
		l.d.early, l.d.late = max(l.d.early, -relative), max(l.d.late, relative)
	}
	due := l.s.t.due(at + relative)
	e := entry{due: due, sample: uint32(l.sample), ts: ts,
		bits:  rtpVersion2 | binary.BigEndian.Uint16(h[4:])&rtpHintBits,
		seq:   binary.BigEndian.Uint16(h[6:]) + l.s.t.seqOffset,
		flags: binary.BigEndian.Uint16(h[8:]),
		span:  uint32(len(l.d.spans)),
	}
	count := int(binary.BigEndian.Uint16(h[10:]))
	l.p += 12
	if e.flags&flagExtra != 0 {
		if err := l.extra(&e); err != nil {
			return err
		}
	}
	if (len(l.b)-l.p)/16 < count {
		return l.errorf("%d constructors in %d bytes", count, len(l.b)-l.p)
	}
	for range count {
		if err := l.construct(&e); err != nil {
			return err
		}
		l.p += 16
	}
	e.spans = uint16(len(l.d.spans) - int(e.span))
	l.d.entries = append(l.d.entries, e)
	return nil
}

// extra reads the TLVs of a packet; those not known are skipped.
func (l *loader) extra(e *entry) error {
	rest := l.b[l.p:]
	if len(rest) < 4 || int64(binary.BigEndian.Uint32(rest)) > int64(len(rest)) || binary.BigEndian.Uint32(rest) < 4 {
		return l.errorf("extra information cut off")
	}
	n := int(binary.BigEndian.Uint32(rest))
	l.p += n
	for t := rest[4:n]; len(t) >= 8; {
		k := int64(binary.BigEndian.Uint32(t))
		if k < 8 || k > int64(len(t)) {
			return l.errorf("extra information: a field of %d bytes in %d", k, len(t))
		}
		if string(t[4:8]) == "rtpo" && k >= 12 {
			e.ts += binary.BigEndian.Uint32(t[8:]) // signed, but it wraps
		}
		t = t[min((k+3)&^3, int64(len(t))):]
	}
	return nil
}

// construct reads one constructor (9.1.3.2) and appends what it stands for.
func (l *loader) construct(e *entry) error {
	d := l.b[l.p : l.p+16]
	switch d[0] {
	case 0:
		return nil
	case 1:
		n := int(d[1])
		if n > 14 {
			return l.errorf("%d bytes of immediate data", n)
		}
		return l.add(e, l.off+int64(l.p)+2, n)
	case 2:
		return l.media(e, d)
	case 3:
		t, _, err := l.track(int8(d[1]))
		if err != nil {
			return err
		}
		n, k := int64(binary.BigEndian.Uint16(d[2:])), int64(binary.BigEndian.Uint32(d[4:]))
		off := int64(binary.BigEndian.Uint32(d[8:]))
		if k < 1 || k > int64(len(t.descs)) || off+n > t.descs[k-1].Len {
			return l.errorf("%d bytes at %d of sample description %d of track %d", n, off, k, t.ID)
		}
		return l.add(e, t.descs[k-1].Off+off, int(n))
	}
	return l.errorf("constructor of type %d", d[0])
}

// track returns the track a constructor refers to.
func (l *loader) track(index int8) (*Track, *ref, error) {
	if index == selfTrackRef {
		return l.s.t, nil, nil
	}
	if int(index) >= len(l.s.refs) || index < 0 || l.s.refs[index].t == nil {
		return nil, nil, l.errorf("track reference %d of %d", index, len(l.s.refs))
	}
	if t := l.s.refs[index].t; t.External() {
		return nil, nil, l.errorf("the data of track %d are in another file", t.ID)
	}
	return l.s.refs[index].t, &l.s.refs[index], nil
}

// media adds a part of a sample.
func (l *loader) media(e *entry, d []byte) error {
	t, f, err := l.track(int8(d[1]))
	if err != nil {
		return err
	}
	n, off := int64(binary.BigEndian.Uint16(d[2:])), int64(binary.BigEndian.Uint32(d[8:]))
	i := int(binary.BigEndian.Uint32(d[4:])) - 1
	bytes, per := max(int64(binary.BigEndian.Uint16(d[12:])), 1), max(int64(binary.BigEndian.Uint16(d[14:])), 1)
	if n == 0 {
		return nil
	}
	cur := &l.s.hint
	if f != nil {
		cur = &f.cur
		o := &l.d.outside[d[1]]
		o.before = max(o.before, min(f.lo-i, f.reach))
		o.after = max(o.after, min(i+1-f.hi, f.reach))
	} else if i == l.sample && bytes == 1 && per == 1 && off+n <= int64(len(l.b)) {
		return l.add(e, l.off+off, int(n)) // data at the end of the sample itself
	}
	// A block is bytes long and holds per samples. Sound with samples of one
	// byte is addressed by blocks even where both are 1.
	if per == 1 && bytes == 1 && t.samples.fixed != 1 {
		at, ok := cur.find(i)
		if ok && off+n <= t.samples.size(i) {
			return l.add(e, at+off, int(n))
		}
		return l.run(e, t, cur, i, at-cur.base+off, n, 0, 1, ok)
	}
	skip := off / bytes
	i += int(skip * per)
	_, ok := cur.find(i)
	return l.run(e, t, cur, i, int64(i-cur.first)/per*bytes+off%bytes, n, bytes, per, ok)
}

// run adds n bytes that start at byte pos of the cursor's chunk and may go
// on in the chunks after it; sample i is there if ok.
func (l *loader) run(e *entry, t *Track, cur *cursor, i int, pos, n, bytes, per int64, ok bool) error {
	for hops := 0; ok && hops < maxHops; hops++ {
		if have := cur.chunkBytes(bytes, per) - pos; have > 0 {
			k := min(have, n)
			if err := l.add(e, cur.base+pos, int(k)); err != nil {
				return err
			}
			if n -= k; n == 0 {
				return nil
			}
			pos = 0
		} else {
			pos = -have
		}
		ok = cur.next()
	}
	return l.errorf("%d bytes at sample %d of track %d: not in its %d samples", n, i+1, t.ID, t.samples.n)
}

// add appends n bytes at off of the file to the packet.
func (l *loader) add(e *entry, off int64, n int) error {
	if off+int64(n) > l.r.m.Size {
		return l.errorf("%d bytes at %d, beyond the end of the file at %d", n, off, l.r.m.Size)
	}
	if int(e.size)+n > maxPayload {
		return l.errorf("a payload of more than %d bytes", maxPayload)
	}
	if e.size += uint16(n); n == 0 {
		return nil
	}
	if k := len(l.d.spans) - 1; k >= int(e.span) && l.d.spans[k].off()+int64(l.d.spans[k].n()) == off {
		l.d.spans[k] += span(n)
	} else {
		l.d.spans = append(l.d.spans, span(off<<16|int64(n)))
	}
	return nil
}
