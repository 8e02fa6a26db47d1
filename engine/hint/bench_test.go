package hint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// cpuTime is what the process has used: the figure that a machine busy with
// other things changes least.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// packetMovie makes a movie of 250 pictures of 18 packets of 1,400 bytes, each
// made of two bytes of header and a part of the picture.
func packetMovie() []byte {
	v, h := media(), hints()
	for i := range 250 {
		v.samples = append(v.samples, bytes.Repeat([]byte{byte(i)}, 18*1398))
		var p []hp
		for k := range 18 {
			p = append(p, hp{bits: 0x60, seq: 18*i + k, cons: [][]byte{imm("\x7c\x05"), smp(0, 1398, i+1, 1398*k, 1, 1)}})
		}
		h.samples = append(h.samples, hintSample(nil, p...))
	}
	v.stts, h.stts = [][2]int{{250, 40}}, [][2]int{{250, 40}}
	return tm{tracks: []tt{v, h}}.build()
}

// blocks cuts a file into pieces of 1 MiB, as a disk cycle holds it.
func blocks(b []byte) Pieces {
	var p Pieces
	for off := 0; off < len(b); off += 1 << 20 {
		p = append(p, Piece{int64(off), b[off:min(off+1<<20, len(b))]})
	}
	return p
}

// BenchmarkPackets plans, loads and yields packets of 1,400 bytes, in intervals
// of a second; one operation is one packet.
func BenchmarkPackets(b *testing.B) {
	for _, asHinted := range []bool{false, true} {
		b.Run(fmt.Sprintf("asHinted=%v", asHinted), func(b *testing.B) {
			file := packetMovie()
			m := readMovie(b, file)
			data := Data(blocks(file))
			r, err := m.Reader(Config{AsHinted: asHinted})
			if err != nil {
				b.Fatal(err)
			}
			var c Cycle
			var p Packet
			b.ReportAllocs()
			cpu := cpuTime()
			for n := 0; b.Loop(); {
				for !c.Next(&p) {
					if !r.More() {
						if n > 0 && n%4500 != 0 {
							b.Fatal(n)
						}
						r.Seek(0)
					}
					if err := r.Plan(&c, r.From()+time.Second); err != nil {
						b.Fatal(err)
					}
					if ok, err := r.Load(&c, data); !ok || err != nil {
						b.Fatal(ok, err)
					}
				}
				if n++; p.Size != 1400 {
					b.Fatal(p.Size)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpackets/s")
			b.ReportMetric(float64(b.N)/(cpuTime()-cpu).Seconds()/1e6, "Mpackets/CPU-s")
		})
	}
}

// longMovie makes the tables of a movie of two hours, 5 Mbit/s, over 4 GB,
// with nothing merged: a chunk for every sample, 64-bit offsets, a time run for
// every hint sample and composition offsets for every picture.
type longMovie struct {
	head, moov []byte
	size       int64
}

func newLongMovie() *longMovie {
	const seconds = 7200
	type row struct{ samples, size, delta, runs int }
	var video, sound, vhint, shint = row{25 * seconds, 24_000, 3600, 1}, row{43 * seconds, 186, 1024, 1},
		row{25 * seconds, 600, 3600, 25 * seconds}, row{6 * seconds, 160, 7168, 1}
	var traks []byte
	off := uint64(16)
	for i, r := range []row{video, sound, vhint, shint} {
		stsz, co64, ctts := u32(r.samples), u32(r.samples), u32(r.samples)
		stts := u32(r.runs)
		for k := range r.samples {
			size := uint32(r.size + k%97)
			stsz = binary.BigEndian.AppendUint32(stsz, size)
			co64 = binary.BigEndian.AppendUint64(co64, off+uint64(k)*4_500_000_000/uint64(r.samples))
			ctts = binary.BigEndian.AppendUint64(ctts, uint64(1)<<32|uint64(k%3*3600))
			if r.runs > 1 {
				stts = binary.BigEndian.AppendUint64(stts, uint64(1)<<32|uint64(r.delta+k%2))
			}
		}
		if r.runs == 1 {
			stts = cat(stts, u32(r.samples), u32(r.delta))
		}
		kind, format, entry, tref := "vide", "avc1", []byte(nil), []byte(nil)
		switch i {
		case 1:
			kind, format = "soun", "mp4a"
		case 2, 3:
			kind, format, entry = "hint", "rtp ", rtpEntry(tims(90000))
			tref = mkbox("tref", mkbox("hint", u32(i-1)))
		}
		if i > 0 {
			ctts = u32(0)
		}
		traks = cat(traks, mkbox("trak", mkbox("tkhd", u32(0), u64(0), u32(i+1), make([]byte, 68)), tref,
			mkbox("mdia", mkbox("mdhd", tm{}.clock(map[int]int{0: 90000, 1: 44100, 2: 90000, 3: 44100}[i], 0)),
				mkbox("hdlr", u64(0), []byte(kind), make([]byte, 13)),
				mkbox("minf", mkbox("stbl", fullbox("stsd", 0, u32(1), mkbox(format, u64(1), entry)),
					fullbox("stts", 0, stts), fullbox("ctts", 0, ctts), fullbox("stsc", 0, u32(1), u32(1), u32(1), u32(1)),
					fullbox("stsz", 0, u32(0), stsz), fullbox("co64", 0, co64))))))
	}
	l := &longMovie{head: cat(u32(1), []byte("mdat"), u64(4_600_000_000))}
	l.moov = mkbox("moov", mkbox("mvhd", tm{}.clock(1000, seconds*1000)), traks)
	l.size = 4_600_000_000 + int64(len(l.moov))
	return l
}

// ReadAt reads the file, whose media are all zeros.
func (l *longMovie) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(l.head)) {
		copy(b, l.head[off:])
	}
	if k := off - (l.size - int64(len(l.moov))); k >= 0 {
		copy(b, l.moov[k:])
	}
	return len(b), nil
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A movie of two hours holds less than 10 MB.
func TestHeld(t *testing.T) {
	l := newLongMovie()
	before := heap()
	m, err := Read(l, l.size, "long.mp4")
	if err != nil {
		t.Fatal(err)
	}
	held := heap() - before
	t.Logf("a moov of %.1f MB is held as %.1f MB", float64(len(l.moov))/1e6, float64(held)/1e6)
	if held > 10_000_000 {
		t.Errorf("%d bytes held", held)
	}
	if e, at := m.Tracks[2].Sample(179_999); at < 2*time.Hour-time.Second || e.Len != 600+179_999%97 {
		t.Error(e, at)
	}
	runtime.KeepAlive(m)
}

func BenchmarkOpen(b *testing.B) {
	l := newLongMovie()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(l, l.size, "long.mp4"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeek(b *testing.B) {
	l := newLongMovie()
	m, err := Read(l, l.size, "long.mp4")
	if err != nil {
		b.Fatal(err)
	}
	r, err := m.Reader(Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	at := time.Duration(0)
	for b.Loop() {
		at = (at + 12345*time.Millisecond*7) % (2 * time.Hour)
		r.Seek(at)
	}
}
