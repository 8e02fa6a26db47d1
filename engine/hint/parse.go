package hint

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// maxTicks bounds every time in a movie, so that sums of two cannot overflow.
const maxTicks = 1 << 60

func (p *parser) movie(m *Movie, moov box) error {
	var scale uint32
	err := p.each(moov, func(b box) (err error) {
		switch b.kind {
		case "cmov":
			return p.errorf(b, "compressed movie header: not read")
		case "mvhd":
			var d int64
			if scale, d, err = p.clock(b); err == nil {
				m.Duration = ticks(d, int64(scale))
			}
		case "trak":
			if len(m.Tracks) == maxTracks {
				return p.errorf(b, "more than %d tracks", maxTracks)
			}
			t := &Track{}
			b.path = fmt.Sprintf("%s[%d]", b.path, len(m.Tracks)+1)
			if err = p.track(t, b); err == nil {
				m.Tracks = append(m.Tracks, t)
			}
		case "udta":
			m.SDPLines, err = p.hnti(b, "rtp ")
		}
		return err
	})
	if err != nil {
		return err
	}
	if scale == 0 {
		return p.errorf(moov, "no mvhd")
	}
	byID := map[uint32]*Track{}
	for _, t := range m.Tracks {
		byID[t.ID] = t
	}
	for _, t := range m.Tracks {
		// The empty edits' length is in the movie's time scale.
		t.start = rescale(t.start, int64(scale), int64(t.TimeScale))
		if m.Duration == 0 {
			m.Duration = max(m.Duration, t.Duration)
		}
		for _, id := range t.Refs {
			// nil for a track that is not there: an error only if a packet needs it
			t.refs = append(t.refs, byID[id])
		}
	}
	return nil
}

// clock reads what mvhd and mdhd have in common (8.2.2, 8.4.2): time scale
// and duration.
func (p *parser) clock(b box) (scale uint32, duration int64, err error) {
	if err := p.need(b, 20); err != nil {
		return 0, 0, err
	}
	if b.body[0] == 0 {
		scale, duration = binary.BigEndian.Uint32(b.body[12:]), int64(binary.BigEndian.Uint32(b.body[16:]))
		if duration == 1<<32-1 { // unknown
			duration = 0
		}
	} else {
		if err := p.need(b, 32); err != nil {
			return 0, 0, err
		}
		scale = binary.BigEndian.Uint32(b.body[20:])
		if u := binary.BigEndian.Uint64(b.body[24:]); u < maxTicks {
			duration = int64(u)
		}
	}
	if scale == 0 {
		return 0, 0, p.errorf(b, "time scale is 0")
	}
	return scale, duration, nil
}

func (p *parser) track(t *Track, trak box) error {
	var seen struct{ tkhd, mdhd, stbl bool }
	var walk func(b box) error
	walk = func(b box) (err error) {
		switch b.kind {
		case "edts", "mdia", "minf", "dinf", "tref":
			return p.each(b, walk)
		case "dref":
			t.elsewhere, err = p.references(b)
		case "tkhd":
			o := 12
			if len(b.body) > 0 && b.body[0] == 1 {
				o = 20
			}
			if err = p.need(b, o+4); err == nil {
				t.ID, seen.tkhd = binary.BigEndian.Uint32(b.body[o:]), true
			}
		case "elst":
			t.start, err = p.emptyEdit(b)
		case "hint":
			for o := 0; o+4 <= min(len(b.body), 4*maxTracks); o += 4 {
				t.Refs = append(t.Refs, binary.BigEndian.Uint32(b.body[o:]))
			}
		case "mdhd":
			var d int64
			if t.TimeScale, d, err = p.clock(b); err == nil {
				t.Duration, seen.mdhd = ticks(d, int64(t.TimeScale)), true
			}
		case "hdlr": // in minf a second one, of the data
			if err = p.need(b, 12); err == nil && !strings.Contains(b.path, "/minf") {
				t.Kind = string(b.body[8:12])
			}
		case "stbl":
			seen.stbl = true
			return p.sampleTable(t, b)
		case "udta":
			t.SDP, err = p.hnti(b, "sdp ")
		}
		return err
	}
	if err := p.each(trak, walk); err != nil {
		return err
	}
	if !seen.tkhd || !seen.mdhd || !seen.stbl {
		return p.errorf(trak, "without tkhd, mdhd or stbl")
	}
	if t.RTPScale == 0 {
		t.RTPScale = t.TimeScale
	}
	return nil
}

// references reads dref (8.7.2) and says, reference by reference, whether the
// data are in another file.
func (p *parser) references(b box) (elsewhere []bool, err error) {
	if _, _, err := p.table(b, 4, 8); err != nil {
		return nil, err
	}
	list := b
	list.body, list.at = b.body[8:], b.at+8
	return elsewhere, p.each(list, func(e box) error {
		if err := p.need(e, 4); err != nil {
			return err
		}
		elsewhere = append(elsewhere, e.body[3]&1 == 0)
		return nil
	})
}

// emptyEdit returns the length of the last empty edit, in the movie's time
// scale. That is all of an edit list that Darwin heeds: it delays the track.
func (p *parser) emptyEdit(b box) (int64, error) {
	size := 12
	if len(b.body) > 0 && b.body[0] == 1 {
		size = 20
	}
	rows, n, err := p.table(b, 4, size)
	var length int64
	for i := range n {
		row := rows[i*size:]
		d, at := int64(binary.BigEndian.Uint32(row)), int64(int32(binary.BigEndian.Uint32(row[4:])))
		if size == 20 {
			d, at = int64(binary.BigEndian.Uint64(row)), int64(binary.BigEndian.Uint64(row[8:]))
		}
		if at != -1 {
			continue
		}
		if d < 0 || d > maxTicks {
			return 0, p.errorf(b, "empty edit of %d", d)
		}
		length = d
	}
	return length, err
}

// hnti returns the text of an SDP fragment in user data: a track's is in a
// box "sdp ", the movie's in a box "rtp " that begins with the word "sdp ".
func (p *parser) hnti(udta box, kind string) (text string, err error) {
	err = p.each(udta, func(b box) error {
		if b.kind != "hnti" {
			return nil
		}
		return p.each(b, func(b box) error {
			s := b.body
			if b.kind == "rtp " && kind == b.kind {
				if len(s) < 4 || string(s[:4]) != "sdp " {
					return nil // a description format other than SDP
				}
				s = s[4:]
			} else if b.kind != kind {
				return nil
			}
			if len(s) > maxSDP {
				return p.errorf(b, "%d bytes of SDP, at most %d are read", len(s), maxSDP)
			}
			text = strings.TrimRight(string(s), "\x00")
			return nil
		})
	})
	return text, err
}

func (p *parser) sampleTable(t *Track, stbl box) error {
	s := &t.samples
	s.blockSamples = 1
	var stsc, stts box
	err := p.each(stbl, func(b box) error {
		switch b.kind {
		case "stsd":
			return p.descriptions(t, b)
		case "stsz":
			return p.sizes(s, b)
		case "stz2":
			return p.compactSizes(s, b)
		case "stco":
			return p.column(&s.chunks, b, 4, func(r []byte) uint64 { return uint64(binary.BigEndian.Uint32(r)) })
		case "co64":
			return p.column(&s.chunks, b, 8, binary.BigEndian.Uint64)
		case "stsc":
			stsc = b
		case "stts":
			stts = b
		}
		return nil
	})
	if err != nil || s.n == 0 {
		return err // an empty track needs no tables
	}
	if stsc.kind == "" || stts.kind == "" || s.chunks.n == 0 {
		return p.errorf(stbl, "%d samples without stsc, stts or chunk offsets", s.n)
	}
	if err := p.chunkRuns(s, stsc); err != nil {
		return err
	}
	return p.timeRuns(s, stts)
}

// column packs a table of one number an entry.
func (p *parser) column(c *packed, b box, size int, get func([]byte) uint64) error {
	rows, n, err := p.table(b, 4, size)
	if err != nil {
		return err
	}
	*c = pack(n, func(i int) uint64 { return get(rows[i*size:]) })
	if c.n > 0 && c.mask>>63 != 0 {
		return p.errorf(b, "an offset over 2^56")
	}
	return nil
}

func (p *parser) sizes(s *samples, b box) error {
	if err := p.need(b, 12); err != nil {
		return err
	}
	if s.fixed = int64(binary.BigEndian.Uint32(b.body[4:])); s.fixed != 0 {
		s.n = int(binary.BigEndian.Uint32(b.body[8:]))
		if int64(s.n) > 1<<56/s.fixed {
			return p.errorf(b, "%d samples of %d bytes: more than any file holds", s.n, s.fixed)
		}
		return nil
	}
	rows, n, err := p.table(b, 8, 4)
	if err != nil {
		return err
	}
	s.setSizes(n, func(i int) uint64 { return uint64(binary.BigEndian.Uint32(rows[4*i:])) })
	return nil
}

func (p *parser) compactSizes(s *samples, b box) error {
	if err := p.need(b, 12); err != nil {
		return err
	}
	n, rows := int64(binary.BigEndian.Uint32(b.body[8:])), b.body[12:]
	field := int64(b.body[7])
	if field != 4 && field != 8 && field != 16 {
		return p.errorf(b, "field size %d", field)
	}
	if (n*field+7)/8 > int64(len(rows)) {
		return p.errorf(b, "%d sizes of %d bits in %d bytes", n, field, len(rows))
	}
	s.setSizes(int(n), func(i int) uint64 {
		switch field {
		case 4:
			return uint64(rows[i/2] >> (4 * (1 - i%2)) & 15)
		case 8:
			return uint64(rows[i])
		}
		return uint64(binary.BigEndian.Uint16(rows[2*i:]))
	})
	return nil
}

func (s *samples) setSizes(n int, size func(int) uint64) {
	s.n, s.sizes = n, pack(n, size)
	s.sums = make([]int64, n/sumStep+1)
	var sum int64
	for i := range n {
		if i%sumStep == 0 {
			s.sums[i/sumStep] = sum
		}
		sum += s.sizes.at(i)
	}
	if n%sumStep == 0 {
		s.sums[n/sumStep] = sum
	}
}

// chunkRuns reads stsc (8.7.4): runs of chunks with as many samples each.
func (p *parser) chunkRuns(s *samples, b box) error {
	rows, n, err := p.table(b, 4, 12)
	if err != nil {
		return err
	}
	if n == 0 {
		return p.errorf(b, "no entries for %d samples", s.n)
	}
	field := func(i, k int) uint64 { return uint64(binary.BigEndian.Uint32(rows[12*i+4*k:])) }
	first := make([]uint64, n) // sample; for the check, and packed at once
	for i := range n {
		chunk, per := field(i, 0), field(i, 1)
		if per == 0 {
			return p.errorf(b, "entry %d: no samples in a chunk", i+1)
		}
		if i == 0 {
			if chunk != 1 {
				return p.errorf(b, "first entry is for chunk %d", chunk)
			}
			continue
		}
		if chunk <= field(i-1, 0) {
			return p.errorf(b, "entry %d: chunk %d after %d", i+1, chunk, field(i-1, 0))
		}
		// Both factors are below 2^32; the sum is held where no sample is.
		first[i] = min(first[i-1]+min((chunk-field(i-1, 0))*field(i-1, 1), 1<<40), 1<<40)
	}
	s.runChunk = pack(n, func(i int) uint64 { return field(i, 0) - 1 })
	s.runPer = pack(n, func(i int) uint64 { return field(i, 1) })
	s.runSample = pack(n, func(i int) uint64 { return first[i] })
	return nil
}

// timeRuns reads stts (8.6.1.2): runs of samples with the same duration.
func (p *parser) timeRuns(s *samples, b box) error {
	rows, n, err := p.table(b, 4, 8)
	if err != nil {
		return err
	}
	if n == 0 {
		return p.errorf(b, "no entries for %d samples", s.n)
	}
	field := func(i, k int) uint64 { return uint64(binary.BigEndian.Uint32(rows[8*i+4*k:])) }
	first, start := make([]uint64, n+1), make([]uint64, n+1)
	for i := range n {
		count, delta := field(i, 0), field(i, 1)
		if i == n-1 {
			count = max(count, uint64(s.n)) // the last run is taken to go on
		}
		hi, span := bits.Mul64(count, delta)
		if start[i+1] = start[i] + span; hi != 0 || span > maxTicks || start[i+1] > maxTicks {
			return p.errorf(b, "entry %d: %d samples of %d end beyond any clock", i+1, count, delta)
		}
		first[i+1] = first[i] + count
	}
	s.timeSample = pack(n, func(i int) uint64 { return first[i] })
	s.timeStart = pack(n, func(i int) uint64 { return start[i] })
	s.timeDelta = pack(n, func(i int) uint64 { return field(i, 1) })
	return nil
}

// descriptions reads stsd: the format of the first entry, where each entry
// lies, and what rtp hint and QuickTime sound entries say more.
func (p *parser) descriptions(t *Track, b box) error {
	_, n, err := p.table(b, 4, 8)
	if err != nil {
		return err
	}
	list := b
	list.body, list.at = b.body[8:], b.at+8
	return p.each(list, func(e box) error {
		if len(t.descs) == n {
			return nil
		}
		t.descs = append(t.descs, Extent{e.off, e.at + int64(len(e.body)) - e.off})
		if len(t.descs) > 1 {
			return nil
		}
		t.Format = e.kind
		if err := p.need(e, 8); err != nil {
			return err
		}
		t.reference = int(binary.BigEndian.Uint16(e.body[6:])) - 1
		switch {
		case e.kind == "rtp ":
			return p.rtpEntry(t, e)
		case len(e.body) >= 8+20+16 && binary.BigEndian.Uint16(e.body[8:]) == 1 && t.Kind == "soun":
			// QTFF, sound sample description (version 1): samples per packet
			// and bytes per frame, the block that hints address.
			per, size := binary.BigEndian.Uint32(e.body[28:]), binary.BigEndian.Uint32(e.body[36:])
			if per > 0 && size > 0 && per < 1<<20 && size < 1<<20 {
				t.samples.blockSamples, t.samples.blockBytes = int64(per), int64(size)
			}
		}
		return nil
	})
}

// rtpEntry reads the RTP hint sample entry (9.1.2).
func (p *parser) rtpEntry(t *Track, e box) error {
	if err := p.need(e, 16); err != nil {
		return err
	}
	if v := binary.BigEndian.Uint16(e.body[10:]); v > 1 {
		return p.errorf(e, "hint track needs a reader of version %d", v)
	}
	t.MaxPacket = binary.BigEndian.Uint32(e.body[12:])
	more := e
	more.body, more.at = e.body[16:], e.at+16
	return p.each(more, func(b box) error {
		if err := p.need(b, 4); err != nil {
			return err
		}
		switch v := binary.BigEndian.Uint32(b.body); b.kind {
		case "tims":
			t.RTPScale = v
		case "tsro":
			t.timeOffset = v
		case "snro":
			t.seqOffset = uint16(v)
		}
		return nil
	})
}

// ticks converts n units of 1/scale seconds, without overflow. It rounds up, so
// that the way back, which rounds down as Darwin does, leads to the same unit:
// a seek to the time of a sample must not find the one before.
func ticks(n, scale int64) time.Duration {
	s, rest := n/scale, n%scale*1e9
	if s >= 1<<33 {
		return 1<<63 - 1
	}
	if rest > 0 {
		rest += scale - 1
	}
	return time.Duration(s*1e9 + rest/scale)
}

// rescale converts n units of 1/from seconds into units of 1/to; from and to
// are below 2^32.
func rescale(n, from, to int64) int64 {
	if from == to {
		return n
	}
	return min(n/from, maxTicks/to)*to + n%from*to/from
}
