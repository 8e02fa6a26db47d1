package hint

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// A small writer of movies, to make what ffmpeg does not.

func u8(v ...byte) []byte    { return v }
func u16(v int) []byte       { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func u32(v int) []byte       { return binary.BigEndian.AppendUint32(nil, uint32(v)) }
func u64(v int) []byte       { return binary.BigEndian.AppendUint64(nil, uint64(v)) }
func cat(p ...[]byte) []byte { return bytes.Join(p, nil) }

func mkbox(kind string, p ...[]byte) []byte {
	b := cat(p...)
	return cat(u32(8+len(b)), []byte(kind), b)
}

func fullbox(kind string, version byte, p ...[]byte) []byte {
	return mkbox(kind, append([][]byte{{version, 0, 0, 0}}, p...)...)
}

// hp is a packet entry of a hint sample.
type hp struct {
	rel, bits, seq, flags int
	extra                 []byte
	cons                  [][]byte
}

func hintSample(tail []byte, packets ...hp) []byte {
	b := cat(u16(len(packets)), u16(0))
	for _, p := range packets {
		b = cat(b, u32(p.rel), u16(p.bits), u16(p.seq), u16(p.flags), u16(len(p.cons)), p.extra, cat(p.cons...))
	}
	return cat(b, tail)
}

func nop() []byte { return make([]byte, 16) }
func imm(s string) []byte {
	return cat(u8(1, byte(len(s))), []byte(s), make([]byte, 14-len(s)))
}
func smp(ref, n, sample, off, bytes, per int) []byte {
	return cat(u8(2, byte(ref)), u16(n), u32(sample), u32(off), u16(bytes), u16(per))
}
func dsc(ref, n, index, off int) []byte {
	return cat(u8(3, byte(ref)), u16(n), u32(index), u32(off), u32(0))
}
func tlv(kind string, data []byte) []byte {
	b := mkbox(kind, data)
	return append(b, make([]byte, -len(b)&3)...)
}
func extra(fields ...[]byte) []byte {
	b := cat(fields...)
	return cat(u32(4+len(b)), b)
}

// tt is a track of a movie to write.
type tt struct {
	id, scale    int
	kind, format string
	entry        []byte // body of the sample entry, after its first 8 bytes
	samples      [][]byte
	perChunk     []int    // samples in each chunk; nil for one each
	stts         [][2]int // nil for one run of 10 each
	refs         []int
	fixed        int  // sample size in stsz, with
	count        int  // as many samples
	stz2         int  // bits
	co64         bool // or stco
	elst         []byte
	sdp          string
	dref         []byte // nil for none
}

// rtpEntry is the body of an "rtp " sample entry.
func rtpEntry(more ...[]byte) []byte { return cat(u16(1), u16(1), u32(1450), cat(more...)) }

func tims(v int) []byte { return mkbox("tims", u32(v)) }

type tm struct {
	tracks    []tt
	moovFirst bool
	mdat      string // "", "64" for a 64-bit size, "0" for to the end of the file
	sdp       string
	v1        bool // version 1 of mvhd, mdhd, tkhd
}

func (m tm) build() []byte {
	ftyp := mkbox("ftyp", []byte("qt  "), u32(0), []byte("qt  "))
	var data []byte
	offsets := make([][]int, len(m.tracks))
	for row := 0; ; row++ { // chunks of all tracks in turn
		more := false
		for i, t := range m.tracks {
			per := t.chunks()
			if row >= len(per) {
				continue
			}
			more = true
			offsets[i] = append(offsets[i], len(data))
			first := 0
			for _, n := range per[:row] {
				first += n
			}
			data = append(data, cat(t.samples[first:first+per[row]]...)...)
			data = append(data, "gap!"...)
		}
		if !more {
			break
		}
	}
	var head []byte
	switch m.mdat {
	case "64":
		head = cat(u32(1), []byte("mdat"), u64(16+len(data)))
	case "0":
		head = cat(u32(0), []byte("mdat"))
	default:
		head = cat(u32(8+len(data)), []byte("mdat"))
	}
	mdat := cat(head, data)
	base := len(ftyp) + len(head)
	if m.moovFirst {
		base += len(m.moov(offsets, 0))
	}
	moov := m.moov(offsets, base)
	if m.moovFirst {
		return cat(ftyp, moov, mdat)
	}
	return cat(ftyp, mdat, moov)
}

func (t tt) chunks() []int {
	if t.perChunk != nil {
		return t.perChunk
	}
	return slices.Repeat([]int{1}, len(t.samples))
}

func (m tm) clock(scale, duration int) []byte {
	if m.v1 {
		return cat(u8(1, 0, 0, 0), u64(0), u64(0), u32(scale), u64(duration), make([]byte, 80))
	}
	return cat(u32(0), u32(0), u32(0), u32(scale), u32(duration), make([]byte, 80))
}

func (m tm) moov(offsets [][]int, base int) []byte {
	b := mkbox("mvhd", m.clock(1000, 5000))
	for i, t := range m.tracks {
		b = cat(b, m.trak(t, offsets[i], base))
	}
	if m.sdp != "" {
		b = cat(b, mkbox("udta", mkbox("hnti", mkbox("rtp ", []byte("sdp "+m.sdp))), u32(0)))
	}
	return mkbox("moov", b)
}

func (m tm) trak(t tt, offsets []int, base int) []byte {
	tkhd := cat(u32(0), u32(0), u32(0), u32(t.id), make([]byte, 68))
	if m.v1 {
		tkhd = cat(u8(1, 0, 0, 0), u64(0), u64(0), u32(t.id), make([]byte, 72))
	}
	b := mkbox("tkhd", tkhd)
	if t.elst != nil {
		b = cat(b, mkbox("edts", mkbox("elst", t.elst)))
	}
	if t.refs != nil {
		var ids []byte
		for _, id := range t.refs {
			ids = append(ids, u32(id)...)
		}
		b = cat(b, mkbox("tref", mkbox("hint", ids)))
	}
	b = cat(b, mkbox("mdia", mkbox("mdhd", m.clock(t.scale, 0)),
		mkbox("hdlr", u32(0), u32(0), []byte(t.kind), make([]byte, 13)),
		mkbox("minf", mkbox("hmhd"), mkbox("hdlr", u32(0), []byte("dhlralis"), make([]byte, 13)),
			mkbox("dinf", t.dref), mkbox("stbl", t.stbl(offsets, base)))))
	if t.sdp != "" {
		b = cat(b, mkbox("udta", mkbox("name", []byte("x")), mkbox("hnti", mkbox("sdp ", []byte(t.sdp))), u32(0)))
	}
	return mkbox("trak", b)
}

func (t tt) stbl(offsets []int, base int) []byte {
	b := fullbox("stsd", 0, u32(1), mkbox(t.format, make([]byte, 6), u16(1), t.entry))
	stts := t.stts
	if stts == nil {
		stts = [][2]int{{max(len(t.samples), t.count), 10}}
	}
	rows := u32(len(stts))
	for _, r := range stts {
		rows = cat(rows, u32(r[0]), u32(r[1]))
	}
	b = cat(b, fullbox("stts", 0, rows))
	per := t.chunks()
	rows = u32(len(per))
	for i, n := range per {
		if t.fixed > 0 {
			n = t.count / len(per)
		}
		rows = cat(rows, u32(i+1), u32(n), u32(1))
	}
	b = cat(b, fullbox("stsc", 0, rows), t.sizes())
	rows = u32(len(offsets))
	for _, o := range offsets {
		if t.co64 {
			rows = cat(rows, u64(base+o))
		} else {
			rows = cat(rows, u32(base+o))
		}
	}
	if t.co64 {
		return cat(b, fullbox("co64", 0, rows))
	}
	return cat(b, fullbox("stco", 0, rows))
}

func (t tt) sizes() []byte {
	if t.fixed > 0 {
		return fullbox("stsz", 0, u32(t.fixed), u32(t.count))
	}
	var rows []byte
	for i, s := range t.samples {
		switch t.stz2 {
		case 4:
			if i%2 == 0 {
				rows = append(rows, byte(len(s))<<4)
			} else {
				rows[i/2] |= byte(len(s))
			}
		case 8:
			rows = append(rows, byte(len(s)))
		case 16:
			rows = cat(rows, u16(len(s)))
		default:
			rows = cat(rows, u32(len(s)))
		}
	}
	if t.stz2 > 0 {
		return fullbox("stz2", 0, u32(t.stz2), u32(len(t.samples)), rows)
	}
	return fullbox("stsz", 0, u32(0), u32(len(t.samples)), rows)
}

// readMovie reads a movie in memory.
func readMovie(t testing.TB, b []byte) *File {
	t.Helper()
	m, err := Read(bytes.NewReader(b), int64(len(b)), "made.mov")
	if err != nil {
		t.Fatal(err)
	}
	return &File{Movie: m, ReaderAt: bytes.NewReader(b)}
}
