package movie

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
)

// source makes the hint track of one media track.
type source struct {
	t     *track
	codec *codec
	times tables
	id    uint32

	batch []unit // sound frames for the next packet
	begin int64  // when the first of them is due

	out   []byte // hint samples not written yet
	chunk int    // and their number

	offsets []int64 // of the chunks
	per     []int   // and the hint samples in each
	sizes   []int   // of the hint samples
	at      []int64 // and when they are due, in media time
	sync    []int   // key frames among them, counted from 1
	end     int64   // of the last media sample

	seq            uint16
	packets, bytes int64
	payload        int64
	longest        int
	second         int64 // at hand, and the bytes sent in it
	inside, peak   int64
}

func newSource(t *track, trak rawBox, payloadType uint8, cfg HintConfig) (*source, error) {
	stsd := find(trak.body, "mdia", "minf", "stbl", "stsd")
	if len(stsd) < 8 || t.Samples() == 0 {
		return nil, fmt.Errorf("no samples: %w", errUnhintable)
	}
	entries, err := split(stsd[8:])
	if err != nil || len(entries) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%d sample descriptions: %w", len(entries), errUnhintable))
	}
	s := &source{t: t, seq: 1}
	if s.codec, err = newCodec(entries[0], payloadType, cfg.MTU-overhead, int(t.TimeScale)); err != nil {
		return nil, err
	}
	s.times, err = readTables(trak, t.Samples())
	return s, err
}

// add takes the next media sample.
func (s *source) add(u unit) error {
	due := s.times.due[u.sample]
	s.end = s.times.due[u.sample+1]
	if len(u.data) == 0 {
		return nil
	}
	if !s.codec.batch {
		return s.emit([]unit{u}, due, s.end-due)
	}
	long := int64(maxBatch.Seconds() * float64(s.t.TimeScale))
	if len(s.batch) > 0 && (!s.codec.fits(s.batch, u) || s.end-s.begin > long) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if len(s.batch) == 0 {
		s.begin = due
	}
	s.batch = append(s.batch, u)
	return nil
}

// flush packetises what was held back.
func (s *source) flush() error {
	if len(s.batch) == 0 {
		return nil
	}
	u := s.batch
	s.batch = nil
	return s.emit(u, s.begin, s.times.due[u[len(u)-1].sample+1]-s.begin)
}

// emit makes a hint sample. Its packets are due evenly over its duration.
func (s *source) emit(u []unit, due, duration int64) error {
	packets, err := s.codec.packets(u)
	if err != nil {
		return err
	}
	scale := int64(s.t.TimeScale)
	spread := min(duration, int64(maxSpread.Seconds()*float64(scale)))
	// The timestamp is when the sample is presented in the movie.
	shown := due - s.times.skip
	if s.times.shift != nil {
		shown += int64(s.times.shift[u[0].sample])
	}
	offset := rescale(shown, scale, int64(s.codec.clock)) - rescale(due, scale, int64(s.codec.clock))

	b := binary.BigEndian.AppendUint16(nil, uint16(len(packets)))
	b = append(b, 0, 0)
	for i, p := range packets {
		relative := spread * int64(i) / int64(len(packets))
		bits := uint16(0x8000) | uint16(s.codec.format.PayloadType())
		if p.marker {
			bits |= 0x80
		}
		b = binary.BigEndian.AppendUint32(b, uint32(relative))
		b = binary.BigEndian.AppendUint16(b, bits)
		b = binary.BigEndian.AppendUint16(b, s.seq)
		if offset == 0 {
			b = binary.BigEndian.AppendUint32(b, uint32(p.count))
		} else {
			b = binary.BigEndian.AppendUint32(b, 4<<16|uint32(p.count))
			b = append(b, cat(u32(4+12), box("rtpo", u32(int(offset))))...)
		}
		b = append(b, p.cons...)
		s.count(due+relative, p.size)
		s.seq++
	}
	s.out = append(s.out, b...)
	s.chunk++
	s.sizes, s.at = append(s.sizes, len(b)), append(s.at, due)
	if s.times.sync == nil || s.times.sync[u[0].sample] {
		s.sync = append(s.sync, len(s.sizes))
	}
	return nil
}

func (s *source) count(due int64, payload int) {
	s.packets++
	s.payload += int64(payload)
	s.bytes += int64(payload) + 12
	s.longest = max(s.longest, payload+12)
	if k := due / int64(s.t.TimeScale); k != s.second {
		s.second, s.inside = k, 0
	}
	s.inside += int64(payload) + 12
	s.peak = max(s.peak, s.inside)
}

// rescale converts n units of 1/from seconds to units of 1/to, rounded down.
func rescale(n, from, to int64) int64 {
	q, r := n/from, n%from
	if r < 0 {
		q, r = q-1, r+from
	}
	return q*to + r*to/from
}

// trak makes the hint track (ISO/IEC 14496-12, 9.1).
// The movie has scale time units a second.
func (s *source) trak(scale int64) []byte {
	delta := make([]int64, len(s.at))
	for i := range s.at {
		next := s.end
		if i+1 < len(s.at) {
			next = s.at[i+1]
		}
		delta[i] = next - s.at[i]
	}
	average := s.bytes * 8 * int64(s.t.TimeScale) / max(s.end, 1)
	length := s.times.delay + rescale(s.end, int64(s.t.TimeScale), scale)
	var edits []byte
	if d := s.times.delay; d > 0 { // the media begin late, so the packets do
		edits = box("edts", box("elst", u32(1<<24), u32(2), u64(int(d)), u64(-1), u32(1<<16), u64(int(length-d)), u64(0), u32(1<<16)))
	}
	kind := map[string]string{"vide": "video", "soun": "audio"}[s.t.Kind]
	kind = cmp.Or(kind, "application")
	text := s.codec.sdp(kind, int(s.id), int(average+999)/1000)

	sizes := make([]byte, 0, 4*len(s.sizes))
	for _, n := range s.sizes {
		sizes = words(sizes, uint32(n))
	}
	stbl := [][]byte{
		full("stsd", 0, u32(1), box("rtp ", make([]byte, 6), u16(1), u16(1), u16(1), u32(s.longest), box("tims", u32(s.codec.clock)))),
		timeRuns(delta), chunkRuns(s.per), full("stsz", 0, u32(0), u32(len(s.sizes)), sizes), offsets(s.offsets),
	}
	if s.times.sync != nil {
		var rows []byte
		for _, n := range s.sync {
			rows = words(rows, uint32(n))
		}
		stbl = append(stbl, full("stss", 0, u32(len(s.sync)), rows))
	}
	matrix := cat(u32(1<<16), u32(0), u32(0), u32(0), u32(1<<16), u32(0), u32(0), u32(0), u32(1<<30))
	long := func(n int64) []byte { return u64(int(n)) }
	return box("trak",
		// Not enabled: it is no part of the presentation.
		box("tkhd", u32(1<<24), u64(0), u64(0), u32(int(s.id)), u32(0), long(length), u64(0), u64(0), matrix, u64(0)), edits,
		box("tref", box("hint", u32(int(s.t.ID)))),
		box("mdia",
			box("mdhd", u32(1<<24), u64(0), u64(0), u32(int(s.t.TimeScale)), long(s.end), u16(0x55c4), u16(0)),
			full("hdlr", 0, u32(0), []byte("hint"), u32(0), u32(0), u32(0), []byte("RTP hints\x00")),
			box("minf",
				full("hmhd", 0, u16(s.longest), u16(int(s.bytes/max(s.packets, 1))), u32(int(s.peak*8)), u32(int(average)), u32(0)),
				box("dinf", full("dref", 0, u32(1), full("url ", 1))),
				box("stbl", stbl...))),
		box("udta",
			box("hnti", box("sdp ", []byte(text))),
			box("hinf", box("trpy", long(s.bytes)), box("nump", long(s.packets)), box("tpyl", long(s.payload)),
				box("maxr", u32(1000), u32(int(s.peak))), box("pmax", u32(s.longest)))))
}
