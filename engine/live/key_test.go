package live

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
)

func ffmpeg(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip("no ", name)
	}
	var said bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, said.String())
	}
	return out
}

// Key frames are recognised in what ffmpeg's and pion's packetisers make of
// ffmpeg's own streams. Which frames are key frames is ffprobe's word.
func TestKeyFrames(t *testing.T) {
	for _, c := range []struct {
		codec, suffix string
		encoder       []string
		pion          rtp.Payloader // of IVF's or Annex B's frames
		rtp           bool          // ffmpeg has a packetiser
	}{
		{"H264", "h264", []string{"libx264", "-bf", "2", "-preset", "ultrafast", "-aud", "1", "-sc_threshold", "0"}, &codecs.H264Payloader{}, true},
		{"H265", "hevc", []string{"libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:aud=1:bframes=2:scenecut=0"}, &codecs.H265Payloader{}, true},
		{"VP8", "ivf", []string{"libvpx", "-deadline", "realtime", "-auto-alt-ref", "0", "-b:v", "1M"}, &codecs.VP8Payloader{EnablePictureID: true}, true},
		{"VP9", "ivf", []string{"libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-auto-alt-ref", "0", "-b:v", "1M"}, &codecs.VP9Payloader{FlexibleMode: true}, true},
		{"AV1", "ivf", []string{"libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-b:v", "1M"}, &codecs.AV1Payloader{}, false},
		{"MP4V-ES", "", []string{"mpeg4", "-bf", "0", "-b:v", "1M", "-sc_threshold", "1000000000"}, nil, true},
	} {
		t.Run(c.codec, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "x.mkv")
			args := []string{"-hide_banner", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=1.6,noise=alls=10:allf=t",
				"-pix_fmt", "yuv420p", "-c:v"}
			args = append(append(args, c.encoder...), "-g", "10", "-keyint_min", "10", file)
			ffmpeg(t, "ffmpeg", args...)
			var want []bool
			for line := range strings.Lines(string(ffmpeg(t, "ffprobe", "-loglevel", "error", "-show_entries", "packet=flags", "-of", "csv=p=0", file))) {
				want = append(want, strings.HasPrefix(line, "K"))
			}
			if len(want) != 40 || !want[10] || want[11] {
				t.Fatalf("the stream is not as it was meant: %v", want)
			}
			if c.pion != nil {
				raw := strings.TrimSuffix(file, "mkv") + c.suffix
				ffmpeg(t, "ffmpeg", "-hide_banner", "-loglevel", "error", "-i", file, "-c", "copy", raw)
				t.Run("pion", func(t *testing.T) { checkKeys(t, c.codec, want, byPion(t, c.pion, raw)) })
			}
			if c.rtp {
				t.Run("ffmpeg", func(t *testing.T) { checkKeys(t, c.codec, want, byFFmpeg(t, file)) })
			}
		})
	}
}

// checkKeys compares each frame's packets with whether it is a key frame.
func checkKeys(t *testing.T, codec string, want []bool, frames [][][]byte) {
	t.Helper()
	if len(frames) != len(want) {
		t.Fatalf("%d frames in packets, %d in the file", len(frames), len(want))
	}
	for n, packets := range frames {
		is := slices.ContainsFunc(packets, func(p []byte) bool { return isKey(codec, p) })
		if is != want[n] {
			t.Errorf("frame %d of %d packets: key frame %v, it is %v", n, len(packets), is, want[n])
		}
	}
}

func byPion(t *testing.T, payloader rtp.Payloader, file string) (frames [][][]byte) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seq := uint16(0)
	for n, f := range framesOf(t, data) {
		var packets [][]byte
		for _, p := range payloader.Payload(1200, f) {
			packets = append(packets, packet(t, seq, uint32(n)*3600, 1, false, p))
			seq++
		}
		frames = append(frames, packets)
	}
	return frames
}

// framesOf cuts a file into frames: IVF, or Annex B with access unit delimiters.
func framesOf(t *testing.T, data []byte) (frames [][]byte) {
	t.Helper()
	if bytes.HasPrefix(data, []byte("DKIF")) {
		for data = data[32:]; len(data) > 0; {
			n := int(binary.LittleEndian.Uint32(data))
			frames = append(frames, data[12:12+n])
			data = data[12+n:]
		}
		return frames
	}
	delimiter := []byte{0, 0, 0, 1, 9}                             // H.264's access unit delimiter
	if hevc := []byte{0, 0, 1, 0x46}; bytes.Contains(data, hevc) { // type 35
		delimiter = hevc
	}
	for len(data) > 0 {
		n := len(data)
		if i := bytes.Index(data[1:], delimiter); i >= 0 {
			n = i + 1
		}
		frames = append(frames, data[:n])
		data = data[n:]
	}
	return frames
}

// byFFmpeg has ffmpeg send a file, and gathers its packets by timestamp.
func byFFmpeg(t *testing.T, file string) (frames [][][]byte) {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadBuffer(4 << 20)
	ffmpeg(t, "ffmpeg", "-hide_banner", "-loglevel", "error", "-i", file, "-c", "copy", "-strict", "experimental",
		"-f", "rtp", fmt.Sprintf("rtp://%v?rtcpport=9&pkt_size=1200", c.LocalAddr()))
	b, last := make([]byte, 65536), uint32(0)
	for {
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // all have been sent
		n, err := c.Read(b)
		if err != nil {
			return frames
		}
		var p rtp.Packet
		if err := p.Unmarshal(b[:n]); err != nil || p.PayloadType >= 200-128 && p.PayloadType <= 204-128 {
			continue
		}
		if len(frames) == 0 || p.Timestamp != last {
			frames = append(frames, nil)
		}
		last = p.Timestamp
		frames[len(frames)-1] = append(frames[len(frames)-1], bytes.Clone(b[:n]))
	}
}
