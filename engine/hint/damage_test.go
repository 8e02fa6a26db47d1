package hint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// where returns the offset of the n-th (from 0) box of a kind.
func where(t *testing.T, b []byte, kind string, n int) int {
	t.Helper()
	o := 0
	for ; ; n-- {
		k := bytes.Index(b[o:], []byte(kind))
		if k < 0 {
			t.Fatalf("no %s", kind)
		}
		if o += k; n == 0 {
			return o - 4
		}
		o += 4
	}
}

func set32(b []byte, off, v int) { binary.BigEndian.PutUint32(b[off:], uint32(v)) }

// Each damage, and the error that says what and where. In the paths trak[2] is
// the hint track; BOX stands for the offset of the box.
func TestDamaged(t *testing.T) {
	const all = 1<<32 - 1
	table := func(kind string, field, value int) func(*testing.T, []byte) int {
		return func(t *testing.T, b []byte) int {
			o := where(t, b, kind, 1) // the hint track's
			set32(b, o+8+field, value)
			return o
		}
	}
	hintAt := func(t *testing.T, b []byte) int { // the first hint sample
		return int(binary.BigEndian.Uint32(b[where(t, b, "stco", 1)+16:]))
	}
	inHint := func(off, value, at int) func(*testing.T, []byte) int {
		return func(t *testing.T, b []byte) int {
			o := hintAt(t, b)
			set32(b, o+off, value)
			return o + at
		}
	}
	cases := []struct {
		name   string
		damage func(*testing.T, []byte) int // returns the offset to be named
		want   string
	}{
		{"box size beyond its parent", table("stsz", -8, 1<<20), "moov/trak[2]/mdia/minf/stbl/stsz at BOX: size 1048576, but only"},
		{"box size less than a header", table("stsc", -8, 7), "moov/trak[2]/mdia/minf/stbl/stsc at BOX: size 7 is less than its header"},
		{"count of sizes", table("stsz", 8, all), "moov/trak[2]/mdia/minf/stbl/stsz at BOX: 4294967295 entries of 4 bytes in"},
		{"count of equal sizes", func(t *testing.T, b []byte) int {
			o := where(t, b, "stsz", 1)
			set32(b, o+12, all)
			set32(b, o+16, all)
			return o
		}, "moov/trak[2]/mdia/minf/stbl/stsz at BOX: 4294967295 samples of 4294967295 bytes: more than any file holds"},
		{"count of chunks", table("stco", 4, all), "moov/trak[2]/mdia/minf/stbl/stco at BOX: 4294967295 entries of 4 bytes in"},
		{"count of chunk runs", table("stsc", 4, all), "moov/trak[2]/mdia/minf/stbl/stsc at BOX: 4294967295 entries of 12 bytes in"},
		{"count of time runs", table("stts", 4, all), "moov/trak[2]/mdia/minf/stbl/stts at BOX: 4294967295 entries of 8 bytes in"},
		{"count of edits", table("elst", 4, all), "moov/trak[2]/edts/elst at BOX: 4294967295 entries of 12 bytes in"},
		{"count of descriptions", table("stsd", 4, all), "moov/trak[2]/mdia/minf/stbl/stsd at BOX: 4294967295 entries of 8 bytes in"},
		{"no samples in a chunk", table("stsc", 12, 0), "moov/trak[2]/mdia/minf/stbl/stsc at BOX: entry 1: no samples in a chunk"},
		{"first chunk is not 1", table("stsc", 8, 2), "moov/trak[2]/mdia/minf/stbl/stsc at BOX: first entry is for chunk 2"},
		{"chunk runs out of order", table("stsc", 20, 1), "moov/trak[2]/mdia/minf/stbl/stsc at BOX: entry 2: chunk 1 after 1"},
		{"no chunk runs", table("stsc", 4, 0), "moov/trak[2]/mdia/minf/stbl/stsc at BOX: no entries for 2 samples"},
		{"no time runs", table("stts", 4, 0), "moov/trak[2]/mdia/minf/stbl/stts at BOX: no entries for 2 samples"},
		{"time scale of 0", table("mdhd", 12, 0), "moov/trak[2]/mdia/mdhd at BOX: time scale is 0"},
		{"hint track of another version", func(t *testing.T, b []byte) int {
			o := where(t, b, "rtp ", 0)
			set32(b, o+16, 9<<16|9)
			return o
		}, "moov/trak[2]/mdia/minf/stbl/stsd/rtp  at BOX: hint track needs a reader of version 9"},
		{"track without tables", func(t *testing.T, b []byte) int {
			copy(b[where(t, b, "stbl", 1)+4:], "free")
			return where(t, b, "trak", 1)
		}, "moov/trak[2] at BOX: without tkhd, mdhd or stbl"},
		{"no offsets", func(t *testing.T, b []byte) int {
			copy(b[where(t, b, "stco", 1)+4:], "free")
			return where(t, b, "stbl", 1)
		}, "moov/trak[2]/mdia/minf/stbl at BOX: 2 samples without stsc, stts or chunk offsets"},
		{"no movie header", func(t *testing.T, b []byte) int {
			copy(b[where(t, b, "mvhd", 0)+4:], "free")
			return where(t, b, "moov", 0)
		}, "moov at BOX: no mvhd"},
		{"no movie", func(t *testing.T, b []byte) int {
			copy(b[where(t, b, "moov", 0)+4:], "free")
			return len(b)
		}, "file at BOX: no moov box"},
		{"no movie before a data box cut short", func(t *testing.T, b []byte) int {
			o := where(t, b, "mdat", 0)
			set32(b, o, 1<<24)
			return o
		}, "mdat at BOX: size 16777216, but only"},

		{"chunk offset beyond the end", func(t *testing.T, b []byte) int {
			set32(b, where(t, b, "stco", 1)+16, 1<<24)
			return 1 << 24
		}, "track 2 sample 1 at BOX: 32 bytes, beyond the end of the file"},
		{"hint sample longer than the file", func(t *testing.T, b []byte) int {
			o := hintAt(t, b)
			set32(b, where(t, b, "stsz", 1)+20, 1<<24)
			return o
		}, "track 2 sample 1 at BOX: 16777216 bytes, beyond the end of the file"},
		{"fewer chunks than samples", table("stco", 4, 1), "track 2 sample 2 at 0: in no chunk"},
		{"count of packets", inHint(0, all, 32), "track 2 hint sample 1 packet 2 at BOX: packet entry cut off"},
		{"count of constructors", inHint(14, all, 16), "track 2 hint sample 1 packet 1 at BOX: 65535 constructors in 16 bytes"},
		{"extra information", inHint(12, 4<<16|1, 16), "track 2 hint sample 1 packet 1 at BOX: extra information cut off"},
		{"relative time", inHint(4, 1<<31-1, 4), "track 2 hint sample 1 packet 1 at BOX: due 2147483647 units from its sample's time"},
		{"type of constructor", inHint(16, 9<<24, 16), "track 2 hint sample 1 packet 1 at BOX: constructor of type 9"},
		{"immediate data", inHint(16, 1<<24|15<<16, 16), "track 2 hint sample 1 packet 1 at BOX: 15 bytes of immediate data"},
		{"track reference", inHint(16, 2<<24|1<<16|3, 16), "track 2 hint sample 1 packet 1 at BOX: track reference 1 of 1"},
		{"negative track reference", inHint(16, 2<<24|0xfe<<16|3, 16), "track 2 hint sample 1 packet 1 at BOX: track reference -2 of 1"},
		{"sample 0", inHint(20, 0, 16), "track 2 hint sample 1 packet 1 at BOX: 5 bytes at sample 0 of track 1: not in its 2 samples"},
		{"sample number", inHint(20, all, 16), "track 2 hint sample 1 packet 1 at BOX: 5 bytes at sample 4294967295 of track 1"},
		{"offset in the sample", inHint(24, all, 16), "track 2 hint sample 1 packet 1 at BOX: 5 bytes at sample 1 of track 1"},
		{"offset in blocks", func(t *testing.T, b []byte) int {
			set32(b, hintAt(t, b)+24, all)
			set32(b, hintAt(t, b)+28, 3<<16|2)
			return hintAt(t, b) + 16
		}, "track 2 hint sample 1 packet 1 at BOX: 5 bytes at sample 2863311531 of track 1"},
		{"media beyond the end", func(t *testing.T, b []byte) int {
			set32(b, where(t, b, "stco", 0)+16, 1<<24)
			return hintAt(t, b) + 16
		}, "track 2 hint sample 1 packet 1 at BOX: 5 bytes at 16777216, beyond the end of the file"},
		{"sample description", inHint(16, 3<<24|0xff<<16|4000, 16), "track 2 hint sample 1 packet 1 at BOX: 4000 bytes at 0 of sample description 1 of track 2"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := hints(one(1, smp(0, 5, 1, 0, 1, 1)), one(2, smp(0, 6, 2, 0, 1, 1)))
			h.elst = cat(u32(0), u32(1), u32(1000), u32(0), u32(1<<16))
			v := media("first", "second")
			v.elst = h.elst
			b := tm{tracks: []tt{v, h}}.build()
			off := c.damage(t, b)
			err := playAll(b, "damaged.mov")
			want := "damaged.mov: " + strings.ReplaceAll(c.want, "BOX", fmt.Sprint(off))
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %q\nwant  %q...", err, want)
			}
			var f *FormatError
			if !errors.As(err, &f) || f.File != "damaged.mov" {
				t.Errorf("%T is not a FormatError of the file", err)
			}
		})
	}
}

// playAll reads a movie and all its packets, at most 100 cycles of it.
func playAll(b []byte, name string) error {
	m, err := Read(bytes.NewReader(b), int64(len(b)), name)
	if err != nil {
		return err
	}
	_ = m.SDP()
	r, err := m.Reader(Config{MaxBytes: 8 << 20, MaxPackets: 10_000})
	if err != nil {
		return err
	}
	r.Seek(time.Second)
	r.Seek(0)
	var c Cycle
	var p Packet
	for n := 0; n < 100 && r.More(); n++ {
		if err := r.Plan(&c, max(r.From(), r.Upcoming())+time.Second); err != nil {
			return err
		}
		for _, e := range c.Extents {
			if e.Off < 0 || e.Len <= 0 || e.Off+e.Len > m.Size {
				return fmt.Errorf("extent %v is not in the file", e)
			}
		}
		if ok, err := r.Load(&c, Pieces{{0, b}}); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("extents %v are missing, but the whole file was given", c.Extents)
		}
		for c.Next(&p) {
			n := 0
			for _, b := range p.Payload {
				n += len(b)
			}
			if n != p.Size {
				return fmt.Errorf("packet of %d bytes has %d", p.Size, n)
			}
		}
	}
	return nil
}

// Data in another file are not looked for in this one.
func TestElsewhere(t *testing.T) {
	here, there := fullbox("url ", 0), fullbox("url ", 0)
	here[11] = 1
	dref := func(r ...[]byte) []byte { return fullbox("dref", 0, u32(len(r)), cat(r...)) }
	for _, c := range []struct {
		media, hints []byte
		want         string
	}{
		{dref(here, there), dref(here), ""},
		{dref(there), dref(here), "made.mov: track 2 hint sample 1 packet 1 at BOX: the data of track 1 are in another file"},
		{dref(here), dref(there), "made.mov: hint track 2: its data are in another file"},
		{dref(here)[:20], dref(here), "made.mov: moov/trak[1]/mdia/minf/dinf/dref at"},
	} {
		v, h := media("x"), hints(one(1, smp(0, 1, 1, 0, 1, 1)))
		v.dref, h.dref = c.media, c.hints
		b := tm{tracks: []tt{v, h}}.build()
		err := fmt.Sprint(playAll(b, "made.mov"))
		want, _, _ := strings.Cut(c.want, "BOX")
		if c.want == "" && err != "<nil>" || !strings.HasPrefix(err, want) {
			t.Errorf("%s, want %q", err, c.want)
		}
	}
}

// A limit is an error of its own: what is asked for may be well-formed.
func TestLimits(t *testing.T) {
	h := hints(one(1), one(2), one(3))
	h.stts = [][2]int{{3, 0}}
	m := readMovie(t, tm{tracks: []tt{media("x"), h}}.build())
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{MaxPackets: 2}, "made.mov: hint track 2: 3 hint samples due before 1s: over the limit"},
		{Config{MaxBytes: 20}, "made.mov: hint track 2: 20 bytes to read before 1s: over the limit"},
	} {
		s, err := m.Scan(m, c.cfg, 0)
		if err != nil {
			t.Fatal(err)
		}
		for s.Next(new(Packet)) {
		}
		if !errors.Is(s.Err(), ErrLimit) || c.cfg.MaxPackets > 0 && s.Err().Error() != c.want {
			t.Errorf("%+v: %v", c.cfg, s.Err())
		}
	}
}

// A real file cut off anywhere is an error, or plays as far as it goes.
func TestCutOff(t *testing.T) {
	b, err := os.ReadFile(hintedPath("h264-aac.mp4")) // moov is last
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(b); n += 1 + n/50 {
		var f *FormatError
		if err := playAll(b[:n], "cut.mp4"); !errors.As(err, &f) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	// With moov first the movie opens, and the error says what is missing.
	first := tm{moovFirst: true, tracks: []tt{media("first", "second"), hints(one(1, smp(0, 5, 1, 0, 1, 1)), one(2, smp(0, 6, 2, 0, 1, 1)))}}.build()
	err = playAll(first[:len(first)-10], "cut.mp4")
	if err == nil || !strings.Contains(err.Error(), "beyond the end of the file") {
		t.Error(err)
	}
}

// Whatever bytes are changed, reading ends with bounded time and memory.
func TestRandomDamage(t *testing.T) {
	seeds := [][]byte{}
	for _, f := range features {
		seeds = append(seeds, f.movie.build())
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const rounds = 8_000
	for i := range rounds {
		b := bytes.Clone(seeds[i%len(seeds)])
		for range 1 + rnd.IntN(4) {
			o := rnd.IntN(len(b) - 4)
			switch rnd.IntN(3) {
			case 0:
				b[o] = byte(rnd.Uint32())
			case 1:
				set32(b, o, 1<<32-1-rnd.IntN(2))
			case 2:
				set32(b, o&^3, rnd.IntN(len(b)))
			}
		}
		start := time.Now()
		_ = playAll(b, "damaged.mov")
		if d := time.Since(start); d > 2*time.Second {
			t.Fatalf("round %d took %v", i, d)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 1<<20 {
		t.Errorf("%d bytes allocated each", each)
	}
}

func FuzzMovie(f *testing.F) {
	for _, x := range features {
		f.Add(x.movie.build())
	}
	names, _ := filepath.Glob(hintedPath("*.m[op][v4]"))
	dir := os.Getenv("SHIM_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared")
	}
	more, _ := filepath.Glob(filepath.Join(dir, "movies", "*"))
	if len(more) == 0 {
		f.Log("no movies of Apple's among the seeds; set SHIM_SHARED to the folder that has them")
	}
	for _, name := range append(names, more...) {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		start := time.Now()
		err := playAll(b, "fuzz")
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("took %v: %v", d, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "fuzz: ") {
			t.Errorf("the error does not begin with the file: %v", err)
		}
	})
}
