package hint

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpfragmented"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph265"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpmpeg4audio"
	"github.com/pion/rtp"
)

// sample is a media sample as another program sees it in the file.
type sample struct {
	PTS       int64  `json:"pts"`
	Pos, Size int64  `json:",string"`
	Hash      string `json:"data_hash"`
}

// probe lists the samples of a stream with ffprobe.
func probe(t testing.TB, path, stream string) []sample {
	t.Helper()
	out := run(t, "ffprobe", "-v", "error", "-select_streams", stream, "-show_entries", "packet=pts,size,pos,data_hash",
		"-show_data_hash", "md5", "-of", "json", path)
	var all struct{ Packets []sample }
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	return all.Packets
}

func hash(b []byte) string { return fmt.Sprintf("MD5:%x", md5.Sum(b)) }

// The samples lie where ffprobe finds them, asked for in any order.
func TestSampleTables(t *testing.T) {
	check := func(path string, kind, stream string) {
		t.Run(path+"/"+kind, func(t *testing.T) {
			f := openMovie(t, path)
			m := f.Track(hintOf(t, f, kind).Refs[0])
			want := probe(t, path, stream)
			if m.Samples() != len(want) {
				t.Fatalf("%d samples, ffprobe sees %d", m.Samples(), len(want))
			}
			for _, i := range rand.New(rand.NewPCG(7, 8)).Perm(len(want)) {
				if e, _ := m.Sample(i); e != (Extent{want[i].Pos, want[i].Size}) {
					t.Fatalf("sample %d at %v, ffprobe's at %d of %d bytes", i, e, want[i].Pos, want[i].Size)
				}
			}
			next := 0 // and the chunks hold them all
			for i := range m.Chunks() {
				e, first, n := m.Chunk(i)
				if n > 0 && (first != next || e.Off != want[first].Pos) {
					t.Fatalf("chunk %d at %d begins with sample %d, want %d", i, e.Off, first, next)
				}
				next += n
			}
			if next != len(want) {
				t.Errorf("%d samples in chunks, ffprobe sees %d", next, len(want))
			}
		})
	}
	for _, m := range hinted {
		for _, kind := range m.streams {
			check(hintedPath(m.name), handler[kind], string(kind)+":0")
		}
	}
	t.Run("apple", func(t *testing.T) {
		check(apple(t, "movies/sample_50kbit.3gp"), "vide", "v:0")
		check(apple(t, "movies/sample_50kbit.3gp"), "soun", "a:0")
		check(apple(t, "movies/sample_100kbit.mov"), "vide", "v:0")
	})
}

func initDecoder(t testing.TB, d interface{ Init() error }) {
	t.Helper()
	if err := d.Init(); err != nil {
		t.Fatal(err)
	}
}

// Depacketised by gortsplib, the packets are the media samples that ffprobe
// finds in the file, byte for byte and with the same time differences.
func TestDepacketised(t *testing.T) {
	lengths := func(nalus [][]byte) (b []byte) { // as samples of H.264 and HEVC are stored
		for _, n := range nalus {
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(n))), n...)
		}
		return b
	}
	decoders := map[string]func(testing.TB) func(*rtp.Packet) ([][]byte, error){
		"H264": func(t testing.TB) func(*rtp.Packet) ([][]byte, error) {
			d := &rtph264.Decoder{PacketizationMode: 1}
			initDecoder(t, d)
			return func(p *rtp.Packet) ([][]byte, error) { n, err := d.Decode(p); return [][]byte{lengths(n)}, err }
		},
		"H265": func(t testing.TB) func(*rtp.Packet) ([][]byte, error) {
			d := &rtph265.Decoder{}
			initDecoder(t, d)
			return func(p *rtp.Packet) ([][]byte, error) { n, err := d.Decode(p); return [][]byte{lengths(n)}, err }
		},
		"MP4V-ES": func(t testing.TB) func(*rtp.Packet) ([][]byte, error) {
			d := &rtpfragmented.Decoder{}
			initDecoder(t, d)
			return func(p *rtp.Packet) ([][]byte, error) { f, err := d.Decode(p); return [][]byte{f}, err }
		},
		"MPEG4-GENERIC": func(t testing.TB) func(*rtp.Packet) ([][]byte, error) {
			d := &rtpmpeg4audio.Decoder{SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}
			initDecoder(t, d)
			return d.Decode
		},
	}
	check := func(path string, kind string) {
		t.Run(path+"/"+kind, func(t *testing.T) {
			f := openMovie(t, path)
			h := hintOf(t, f, kind)
			codec := regexp.MustCompile(`a=rtpmap:\d+ ([^/]+)/`).FindStringSubmatch(h.SDP)
			if codec == nil || decoders[codec[1]] == nil {
				t.Fatalf("no decoder for %q", h.SDP)
			}
			decode := decoders[codec[1]](t)
			want := probe(t, path, map[string]string{"vide": "v:0", "soun": "a:0"}[kind])
			scale := int64(f.Track(h.Refs[0]).TimeScale)
			i := 0
			for _, p := range scanAll(t, f, Config{Tracks: []uint32{h.ID}}, 0) {
				var pkt rtp.Packet
				if err := pkt.Unmarshal(p.wire); err != nil {
					t.Fatal(err)
				}
				units, err := decode(&pkt)
				if err != nil {
					if strings.Contains(err.Error(), "need more") {
						continue
					}
					t.Fatal(err)
				}
				got := int64(int32(p.Time)) * scale
				if i < len(want) && got != (want[i].PTS-want[0].PTS)*int64(h.RTPScale) {
					t.Fatalf("sample %d: timestamp %d, ffprobe's %d of 1/%d s", i, p.Time, want[i].PTS, scale)
				}
				for _, u := range units {
					if i == len(want) {
						t.Fatalf("more than the %d samples ffprobe sees", i)
					}
					if hash(u) != want[i].Hash {
						t.Fatalf("sample %d of %d: %d bytes, ffprobe has %d others", i, len(want), len(u), want[i].Size)
					}
					i++
				}
			}
			// ffmpeg gives its last sound frames no hints when they do not fill a
			// packet; its RTP muxer does not send them either.
			if unhinted := len(want) - i; unhinted > 0 && (kind != "soun" || unhinted > 8) {
				t.Fatalf("%d samples, ffprobe sees %d", i, len(want))
			}
			t.Logf("%d samples the same", i)
		})
	}
	for _, m := range hinted {
		for _, kind := range m.streams {
			check(hintedPath(m.name), handler[kind])
		}
	}
	t.Run("apple", func(t *testing.T) { check(apple(t, "movies/sample_50kbit.3gp"), "vide") })
}

// Apple's SVQ3 packets carry two bytes of header before the sample's data; a
// packet of the header's configuration alone comes before each key frame.
func TestAppleVideo(t *testing.T) {
	f := openMovie(t, apple(t, "movies/sample_100kbit.mov"))
	want := probe(t, f.Name, "v:0")
	h := hintOf(t, f, "vide")
	var frame []byte
	i := 0
	for _, p := range scanAll(t, f, Config{Tracks: []uint32{h.ID}}, 0) {
		if b := p.wire[12:]; b[0]&0x40 == 0 {
			frame = append(frame, b[2:]...)
		}
		if !p.Marker() {
			continue
		}
		if hash(frame) != want[i].Hash {
			t.Fatalf("frame %d: %d bytes, ffprobe has %d others", i, len(frame), want[i].Size)
		}
		frame, i = frame[:0], i+1
	}
	if i != len(want) {
		t.Errorf("%d frames, ffprobe sees %d", i, len(want))
	}
}

// Apple's AMR is embedded in the hint track, in the octet-aligned form of RFC
// 4867 (4.4): the table of contents first, then the speech of the five frames
// that stand one after the other in the media track.
func TestAppleAMR(t *testing.T) {
	f := openMovie(t, apple(t, "movies/sample_50kbit.3gp"))
	want := probe(t, f.Name, "a:0")
	h := hintOf(t, f, "soun")
	got := scanAll(t, f, Config{Tracks: []uint32{h.ID}}, 0)
	if len(got) != len(want) {
		t.Fatalf("%d packets, ffprobe sees %d samples", len(got), len(want))
	}
	for i, p := range got {
		b, frames := p.wire[13:], []byte(nil)
		for k := range 5 {
			frames = append(frames, b[k]&0x7f) // without the bit that says more follow
			frames = append(frames, b[5+19*k:5+19*(k+1)]...)
		}
		if hash(frames) != want[i].Hash {
			t.Fatalf("packet %d is not sample %d", i, i)
		}
	}
}

// Apple's QDM2 hints address compressed sound by blocks: each piece must lie in
// the blocks ffprobe finds, and together they must be nearly all of them (what
// is left out are the blocks' four bytes of header and their padding).
func TestAppleQDM2(t *testing.T) {
	f := openMovie(t, apple(t, "movies/sample_100kbit.mov"))
	file, err := os.ReadFile(f.Name)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[int64]bool{}
	var total int
	for _, s := range probe(t, f.Name, "a:0") {
		for i := range s.Size {
			blocks[s.Pos+i] = true
		}
		total += int(s.Size)
	}
	h := hintOf(t, f, "soun")
	r, err := f.Reader(Config{Tracks: []uint32{h.ID}})
	if err != nil {
		t.Fatal(err)
	}
	var c Cycle
	if err := r.Plan(&c, time.Hour); err != nil {
		t.Fatal(err)
	}
	if ok, err := r.Load(&c, Pieces{{0, file}}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	hintBytes := map[int64]bool{}
	for i := range h.Samples() {
		e, _ := h.Sample(i)
		for k := range e.Len {
			hintBytes[e.Off+k] = true
		}
	}
	used := 0
	var spans []span
	for _, l := range c.leaves {
		spans = append(spans, l.spans...)
	}
	for _, s := range spans {
		for i := range int64(s.n()) {
			switch {
			case hintBytes[s.off()+i]:
			case blocks[s.off()+i]:
				blocks[s.off()+i] = false
				used++
			default:
				t.Fatalf("byte %d is in no block, or used twice", s.off()+i)
			}
		}
	}
	if used < total*80/100 {
		t.Errorf("%d of %d bytes of sound used", used, total)
	}
	t.Logf("%d of %d bytes of sound used, each once", used, total)
}

// A Darwin server was asked to play a movie of Apple's from 30 s on, for 14 s:
// the transcript counts what it sent. (Its sound ran ahead to the end.)
func TestDarwinTranscript(t *testing.T) {
	f := openMovie(t, apple(t, "movies/sample_100kbit.mov"))
	text, err := os.ReadFile(apple(t, "wire/dss/media_qt_seek30.txt"))
	if err != nil {
		t.Fatal(err)
	}
	number := func(re string) []int {
		m := regexp.MustCompile(re).FindSubmatch(text)
		if m == nil {
			t.Fatalf("transcript has no %q", re)
		}
		var v []int
		for _, s := range m[1:] {
			n, err := strconv.Atoi(string(bytes.TrimSpace(s)))
			if err != nil {
				t.Fatal(err)
			}
			v = append(v, n)
		}
		return v
	}
	sums := number(`RTP packets per track: \{0: (\d+), 1: (\d+)\}; bytes \{0: (\d+), 1: (\d+)\}`)
	for track := range 2 {
		ends := number(fmt.Sprintf(`track %d: first pkt at .*: seq=(\d+) ts=(\d+) .* m=(\d); last at .* s seq=(\d+) ts=(\d+)`, track))
		more := number(fmt.Sprintf(`(?s)track %d: first pkt.*?seq gaps!=1: (\d+) ; M set on (\d+) pkts; distinct ts (\d+); max len (\d+)`, track))
		h := f.HintTracks()[track]
		got := scanAll(t, f, Config{Tracks: []uint32{h.ID}, AsHinted: true}, 30*time.Second)
		var size, marked, longest int
		stamps := map[uint32]bool{}
		sent := got[:min(sums[track], len(got))]
		for _, p := range sent {
			size += len(p.wire)
			longest = max(longest, len(p.wire))
			stamps[p.Time] = true
			if p.Marker() {
				marked++
			}
		}
		first, last := sent[0], sent[len(sent)-1]
		for _, c := range []struct {
			what      string
			got, want int
		}{
			{"packets", len(sent), sums[track]},
			{"bytes", size, sums[2+track]},
			{"first marker", int(first.Bits >> 7 & 1), ends[2]},
			{"sequence", int(last.Seq - first.Seq), ends[3] - ends[0]},
			{"timestamps", int(last.Time - first.Time), ends[4] - ends[1]},
			{"markers", marked, more[1]},
			{"distinct timestamps", len(stamps), more[2]},
			{"longest", longest, more[3]},
		} {
			if c.got != c.want {
				t.Errorf("track %d: %s %d, Darwin's %d", h.ID, c.what, c.got, c.want)
			}
		}
		if track == 0 && last.Due-first.Due != 14*time.Second {
			t.Errorf("track %d: sent over %v", h.ID, last.Due-first.Due)
		}
	}
}
