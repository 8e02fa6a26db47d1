package hint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hinted are the movies hinted by ffmpeg, with their streams.
var hinted = []struct{ name, streams string }{
	{"h264-aac.mp4", "va"},
	{"h264-aac.mov", "va"},
	{"h264-bframes-aac.mp4", "va"},
	{"mpeg4-aac.mp4", "va"},
	{"hevc-aac.mp4", "va"},
	{"aac.mp4", "a"},
}

func hintedPath(name string) string { return filepath.Join("..", "..", "testdata", "hinted", name) }

// tool returns the path of a program of ffmpeg, or skips the test.
func tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: nothing to compare with", name)
	}
	return path
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, name), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// apple returns a movie made by Apple's tools, which are not in the
// repository: SHIM_SHARED names the folder that holds movies/ and wire/.
func apple(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("SHIM_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not there; set SHIM_SHARED to the folder that has it: %v", name, err)
	}
	return path
}

func openMovie(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// wirePacket is a packet as it would be on the wire.
type wirePacket struct {
	Packet
	wire []byte
}

func payload(p *Packet) []byte { return bytes.Join(p.Payload, nil) }

// scanAll reads all packets of one hint track, or of all when id is 0.
func scanAll(t testing.TB, f *File, cfg Config, from time.Duration) []wirePacket {
	t.Helper()
	s, err := f.Scan(f, cfg, from)
	if err != nil {
		t.Fatal(err)
	}
	var all []wirePacket
	var p Packet
	for s.Next(&p) {
		var h [12]byte
		p.PutHeader(&h, 0, 0, 0)
		w := wirePacket{p, append(h[:], payload(&p)...)}
		if len(w.wire) != 12+p.Size {
			t.Fatalf("packet %d: %d bytes of payload, Size is %d", len(all), len(w.wire)-12, p.Size)
		}
		w.Payload = nil
		all = append(all, w)
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	return all
}

// mediaStream returns the hint track of the i-th media track.
func hintOf(t testing.TB, f *File, kind string) *Track {
	t.Helper()
	for _, h := range f.HintTracks() {
		if len(h.Refs) > 0 && f.Track(h.Refs[0]).Kind == kind {
			return h
		}
	}
	t.Fatalf("%s: no hints for %s", f.Name, kind)
	return nil
}

var handler = map[rune]string{'v': "vide", 'a': "soun"}

// The hints of ffmpeg's muxer come from its own RTP packetiser. What that
// sends for the same media over RTP must be what we build, but for the random
// starts of sequence and timestamp.
func TestSameAsFFmpegSends(t *testing.T) {
	for _, m := range hinted {
		for _, kind := range m.streams {
			t.Run(fmt.Sprintf("%s/%c", m.name, kind), func(t *testing.T) {
				f := openMovie(t, hintedPath(m.name))
				h := hintOf(t, f, handler[kind])
				got := scanAll(t, f, Config{Tracks: []uint32{h.ID}, AsHinted: true}, 0)
				out := filepath.Join(t.TempDir(), "rtp")
				run(t, "ffmpeg", "-v", "error", "-i", f.Name, "-map", "0:"+string(kind), "-c", "copy",
					"-packetsize", "1450", "-seq", "0", "-ssrc", "1",
					"-payload_type", fmt.Sprint(got[0].Type()), "-f", "rtp", out)
				sent, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				compareStream(t, got, sent)
			})
		}
	}
}

// compareStream compares packets with a file of RTP packets one after the
// other, RTCP among them, whose lengths are not in the file.
func compareStream(t *testing.T, got []wirePacket, sent []byte) {
	t.Helper()
	var seqOffset uint16
	var timeOffset uint32
	for i := range got {
		for len(sent) >= 4 && sent[1] >= 200 && sent[1] <= 204 {
			sent = sent[min(len(sent), 4+4*int(binary.BigEndian.Uint16(sent[2:]))):]
		}
		g := got[i].wire
		if len(sent) < len(g) {
			t.Fatalf("packet %d of %d: ffmpeg sent no more", i, len(got))
		}
		w := sent[:len(g)]
		sent = sent[len(g):]
		seq, ts := binary.BigEndian.Uint16(w[2:])-got[i].Seq, binary.BigEndian.Uint32(w[4:])-got[i].Time
		if i == 0 {
			seqOffset, timeOffset = seq, ts
		}
		switch {
		case w[0] != g[0] || w[1] != g[1]:
			t.Fatalf("packet %d: header begins % x, ffmpeg's % x", i, g[:2], w[:2])
		case seq != seqOffset || ts != timeOffset:
			t.Fatalf("packet %d: offsets of seq %d, time %d, at the start %d, %d", i, seq, ts, seqOffset, timeOffset)
		case !bytes.Equal(g[12:], w[12:]):
			t.Fatalf("packet %d: payload differs from ffmpeg's", i)
		}
	}
	for len(sent) >= 4 && sent[1] >= 200 && sent[1] <= 204 { // the last report and BYE
		sent = sent[min(len(sent), 4+4*int(binary.BigEndian.Uint16(sent[2:]))):]
	}
	if len(sent) > 0 {
		t.Fatalf("ffmpeg sent %d bytes more after %d packets", len(sent), len(got))
	}
	t.Logf("%d packets the same", len(got))
}
