package movie

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/sdpunmarshaler"
	"github.com/pion/rtp"

	"rtspshim/engine/hint"
)

func hinted(name string) string { return filepath.Join("..", "testdata", "hinted", name) }

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: nothing to compare with", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out.String()
}

// plain makes an unhinted copy of one of the test movies with ffmpeg.
func plain(t testing.TB, name string, options ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	args := append([]string{"-v", "error", "-i", hinted(name), "-map", "0:v?", "-map", "0:a", "-c", "copy"}, options...)
	run(t, "ffmpeg", append(args, out)...)
	return out
}

// hashes lists a stream's samples as ffprobe sees them.
func hashes(t testing.TB, path, stream string) (all []string) {
	t.Helper()
	var out struct {
		Packets []struct {
			Hash string `json:"data_hash"`
		}
	}
	text := run(t, "ffprobe", "-v", "error", "-select_streams", stream, "-show_entries", "packet=data_hash",
		"-show_data_hash", "md5", "-of", "json", path)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	for _, p := range out.Packets {
		all = append(all, p.Hash)
	}
	return all
}

// depacketised plays a hint track and returns the hashes of the samples that
// gortsplib makes of its packets, by what the SDP says of them.
func depacketised(t testing.TB, f *hint.File, track int) (all []string) {
	t.Helper()
	s, err := sdpunmarshaler.Unmarshal([]byte(f.SDP()))
	if err != nil {
		t.Fatal(err)
	}
	var d description.Session
	if err := d.Unmarshal2(s); err != nil {
		t.Fatal(err)
	}
	var decode func(*rtp.Packet) ([][]byte, error)
	switch m := d.Medias[track].Formats[0].(type) {
	case *format.H264:
		dec, err := m.CreateDecoder()
		decode = func(p *rtp.Packet) ([][]byte, error) { u, err := dec.Decode(p); return stored(u), err }
		if err != nil {
			t.Fatal(err)
		}
	case *format.H265:
		dec, err := m.CreateDecoder()
		decode = func(p *rtp.Packet) ([][]byte, error) { u, err := dec.Decode(p); return stored(u), err }
		if err != nil {
			t.Fatal(err)
		}
	case *format.MPEG4Video:
		dec, err := m.CreateDecoder()
		decode = func(p *rtp.Packet) ([][]byte, error) {
			f, err := dec.Decode(p)
			if f == nil {
				return nil, err
			}
			return [][]byte{f}, err
		}
		if err != nil {
			t.Fatal(err)
		}
	case *format.MPEG4Audio:
		dec, err := m.CreateDecoder()
		decode = dec.Decode
		if err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("%T in the SDP", m)
	}
	scan, err := f.Scan(f, hint.Config{Tracks: []uint32{f.HintTracks()[track].ID}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var p hint.Packet
	for scan.Next(&p) {
		var h [12]byte
		p.PutHeader(&h, 0, 0, 0)
		var pkt rtp.Packet
		if err := pkt.Unmarshal(append(h[:], bytes.Join(p.Payload, nil)...)); err != nil {
			t.Fatal(err)
		}
		units, err := decode(&pkt)
		if err != nil && !strings.Contains(err.Error(), "need more") {
			t.Fatal(err)
		}
		for _, u := range units {
			all = append(all, fmt.Sprintf("MD5:%x", md5.Sum(u)))
		}
	}
	if scan.Err() != nil {
		t.Fatal(scan.Err())
	}
	return all
}

// stored is how a movie stores NAL units; nil for none.
func stored(nalus [][]byte) [][]byte {
	var b []byte
	for _, n := range nalus {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(n))), n...)
	}
	if b == nil {
		return nil
	}
	return [][]byte{b}
}

// A hinted copy is the same movie to ffmpeg, its packets depacketise into the
// same samples, and a report on it finds nothing wrong.
func TestHint(t *testing.T) {
	for _, c := range []struct {
		name, streams string
		mtu           int
		options       []string
	}{
		{"h264-aac.mp4", "va", 0, nil},
		{"h264-aac.mp4", "va", 576, []string{"-movflags", "faststart"}},
		{"h264-aac.mov", "va", 1280, nil},
		{"h264-bframes-aac.mp4", "va", 0, nil},
		{"hevc-aac.mp4", "va", 9000, nil},
		{"mpeg4-aac.mp4", "va", 0, nil},
		{"aac.mp4", "a", 0, nil},
		{"aac.mp4", "a", 300, nil}, // frames in fragments
	} {
		t.Run(fmt.Sprintf("%s,mtu=%d", c.name, c.mtu), func(t *testing.T) {
			in := plain(t, c.name, c.options...)
			out := filepath.Join(t.TempDir(), "hinted-"+c.name)
			var last, total int64
			done, err := Hint(in, out, HintConfig{MTU: c.mtu, Progress: func(d, n int64) { last, total = d, n }})
			if err != nil {
				t.Fatal(err)
			}
			if len(done.Tracks) != len(c.streams) || len(done.Skipped) > 0 || last != total || total == 0 {
				t.Errorf("%+v, progress %d of %d", done, last, total)
			}
			var maps []string
			for _, s := range c.streams {
				maps = append(maps, "-map", "0:"+string(s))
			}
			frames := func(path string) string {
				return run(t, "ffmpeg", append(append([]string{"-v", "error", "-i", path}, maps...), "-f", "framemd5", "-")...)
			}
			if frames(in) != frames(out) {
				t.Error("ffmpeg decodes the copy differently")
			}
			f, err := hint.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			for i, s := range c.streams {
				got, want := depacketised(t, f, i), hashes(t, in, string(s))
				if !slices.Equal(got, want) {
					t.Errorf("stream %c: %d samples from packets are not the %d ffprobe sees", s, len(got), len(want))
				}
			}
			r, err := Examine(t.Context(), out, ExamineConfig{MTU: c.mtu})
			if err != nil {
				t.Fatal(err)
			}
			for i, h := range r.Hints {
				want := done.Tracks[i]
				if h.Track != want.ID || h.Packets != want.Packets || h.Bytes != want.Bytes {
					t.Errorf("report %+v, hinter %+v", h, want)
				}
				if limit := max(c.mtu, 300); c.mtu != 0 && h.Largest+48 > limit {
					t.Errorf("packets of %d bytes in an MTU of %d", h.Largest, limit)
				}
				if h.MostStamps > 1 || h.LongestGapMs > 250 {
					t.Errorf("due unevenly: %+v", h)
				}
			}
			if len(r.Problems) > 0 || r.Reading.Extents > 6 || r.Reading.SecondLooks > 0 {
				t.Errorf("problems %v, reading %+v", r.Problems, r.Reading)
			}
		})
	}
}

// GStreamer's demuxer reads a hinted copy to its end.
func TestGStreamerReads(t *testing.T) {
	out := filepath.Join(t.TempDir(), "hinted.mp4")
	if _, err := Hint(plain(t, "h264-bframes-aac.mp4"), out, HintConfig{}); err != nil {
		t.Fatal(err)
	}
	run(t, "gst-launch-1.0", "-q", "filesrc", "location="+out, "!", "qtdemux", "name=d",
		"d.video_0", "!", "queue", "!", "h264parse", "!", "fakesink", "d.audio_0", "!", "queue", "!", "aacparse", "!", "fakesink")
}

// The timestamps are the time of presentation, whatever the order of decoding.
func TestTimestamps(t *testing.T) {
	in := plain(t, "h264-bframes-aac.mp4")
	out := filepath.Join(t.TempDir(), "hinted.mp4")
	if _, err := Hint(in, out, HintConfig{}); err != nil {
		t.Fatal(err)
	}
	text := run(t, "ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "packet=pts_time", "-of", "csv=p=0", in)
	var want []string
	for _, s := range strings.Fields(text) {
		want = append(want, strings.Trim(s, ","))
	}
	var got []string
	last := time.Duration(-1)
	_, err := Examine(t.Context(), out, ExamineConfig{Packet: func(track uint32, p *hint.Packet) error {
		if track == 3 && p.Marker() {
			got = append(got, fmt.Sprintf("%.6f", float64(int32(p.Time))/90000))
		}
		if track == 3 && p.Due <= last {
			t.Errorf("due at %v after %v", p.Due, last)
		}
		if track == 3 {
			last = p.Due
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("timestamps %v...\nffprobe    %v...", got[:5], want[:5])
	}
}

// Hinting again replaces what was there.
func TestHintAgain(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.mp4")
	in := hinted("h264-bframes-aac.mp4")
	_, err := Hint(in, out, HintConfig{})
	if !errors.Is(err, ErrHinted) {
		t.Fatal(err)
	}
	if _, err := Hint(in, out, HintConfig{Again: true}); err != nil {
		t.Fatal(err)
	}
	r, err := Examine(t.Context(), out, ExamineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Tracks) != 4 || len(r.Hints) != 2 || r.Hints[0].MostStamps != 1 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	if got, want := hashes(t, out, "v:0"), hashes(t, in, "v:0"); !slices.Equal(got, want) {
		t.Error("the video is another")
	}
}

// What cannot be hinted is said, and leaves nothing behind.
func TestHintRefuses(t *testing.T) {
	dir := t.TempDir()
	fragmented := plain(t, "h264-aac.mp4", "-movflags", "frag_keyframe+empty_moov")
	none := filepath.Join(dir, "video.mp4")
	run(t, "ffmpeg", "-v", "error", "-i", hinted("mpeg4-aac.mp4"), "-map", "0:v", "-c", "mjpeg", "-frames:v", "5", none)
	whole, err := os.ReadFile(plain(t, "h264-aac.mp4", "-movflags", "faststart"))
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(dir, "cut.mp4")
	if err := os.WriteFile(cut, whole[:len(whole)-1000], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		in, want string
		cfg      HintConfig
	}{
		{fragmented, "a fragmented movie cannot be hinted", HintConfig{}},
		{none, `no track to hint: [track 1 (vide): esds without a configuration: no packetiser for it]`, HintConfig{}},
		{cut, "beyond the end of the file", HintConfig{}},
		{hinted("README.md"), "README.md", HintConfig{}},
		{hinted("aac.mp4"), "MTU of 100 bytes: not within", HintConfig{MTU: 100}},
		{filepath.Join(dir, "absent"), "no such file", HintConfig{}},
	} {
		out := filepath.Join(dir, "out.mp4")
		_, err := Hint(c.in, out, c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", filepath.Base(c.in), err, c.want)
		}
		left, _ := filepath.Glob(out + "*")
		if len(left) > 0 {
			t.Errorf("%s: left %v", c.in, left)
		}
	}
}

// The counts of a report are ffmpeg's: its own RTP output has as many packets
// and bytes; the bunches of its hints are found.
func TestReport(t *testing.T) {
	in := hinted("h264-bframes-aac.mp4")
	r, err := Examine(t.Context(), in, ExamineConfig{})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "rtp")
	run(t, "ffmpeg", "-v", "error", "-i", in, "-map", "0:v", "-c", "copy", "-packetsize", "1450", "-seq", "0", "-f", "rtp", out)
	sent, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	rtcp := int64(0) // reports between the packets, and the last one with its BYE
	for i := 0; i+8 <= len(sent); i++ {
		if sent[i] == 0x80 && sent[i+1] == 200 && bytes.Equal(sent[i+2:i+4], []byte{0, 6}) {
			rtcp += 28
		}
	}
	h := r.Hints[0]
	if over := int64(len(sent)) - rtcp - h.Bytes; over < 0 || over > 100 {
		t.Errorf("%d bytes of RTP reported, ffmpeg sent %d", h.Bytes, int64(len(sent))-rtcp)
	}
	if len(r.Problems) != 1 || r.Problems[0].Track != 3 || !strings.Contains(r.Problems[0].What, "of 3 pictures fall due at once, then nothing for 120 ms") {
		t.Errorf("%+v", r.Problems)
	}
	if h.MiddleGapMs != 120 || h.AverageKbit < 280 || h.PeakKbit < h.AverageKbit || h.Packets == 0 {
		t.Errorf("%+v", h)
	}
	r, err = Examine(t.Context(), in, ExamineConfig{MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Problems; len(p) != 2 && !strings.Contains(fmt.Sprint(p), "are 78 over the MTU of 1400") {
		t.Errorf("%+v", p)
	}
	var page strings.Builder
	if _, err := r.WriteTo(&page); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"h264-bframes-aac.mp4", "\nProblems\n", "a=control:streamid=3", "places in the file", "shim hint --again --mtu 1400"} {
		if !strings.Contains(page.String(), w) {
			t.Errorf("no %q on the page:\n%s", w, page.String())
		}
	}
}

// A damaged movie is reported on as far as it plays; an unhinted one too.
func TestReportProblems(t *testing.T) {
	b, err := os.ReadFile(plain(t, "h264-aac.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "movie.mp4")
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(b)
	r, err := Examine(t.Context(), path, ExamineConfig{})
	if err != nil || len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].What, "no hint tracks") {
		t.Errorf("%v %+v", err, r)
	}
	whole, err := os.ReadFile(hinted("h264-aac.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	k := bytes.LastIndex(whole, []byte("stco")) // of a hint track
	n := int(binary.BigEndian.Uint32(whole[k+8:]))
	binary.BigEndian.PutUint32(whole[k+12+4*(n/2):], 1<<31)
	write(whole)
	r, err = Examine(t.Context(), path, ExamineConfig{})
	if err != nil || len(r.Problems) == 0 || !strings.Contains(r.Problems[0].What, "beyond the end of the file") || r.Hints[0].Packets == 0 {
		t.Errorf("%v %+v", err, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Examine(ctx, path, ExamineConfig{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Examine(t.Context(), hinted("README.md"), ExamineConfig{}); err == nil {
		t.Error("a text file is no movie")
	}
}
