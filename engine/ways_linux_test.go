package engine_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rtspshim/engine"
	"rtspshim/engine/disk"
	"rtspshim/engine/wire"
)

// TestEveryWay plays a movie in every combination of GSO, io_uring and O_DIRECT
// on and off. What comes is what FFmpeg, which wrote the movie's hints, itself
// sends for it over RTP: the same octets in the same order, with the same steps.
func TestEveryWay(t *testing.T) {
	const name = "h264-bframes-aac.mp4"
	ffmpeg, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Skip("nothing to compare with: ", err)
	}
	for way := range 8 {
		gso, uring, direct := way&1 == 0, way&2 == 0, way&4 == 0
		for _, tcp := range []bool{false, true} {
			t.Run(fmt.Sprintf("tcp=%v,gso=%v,io_uring=%v,o_direct=%v", tcp, gso, uring, direct), func(t *testing.T) {
				c := engine.Config{GSO: either(gso, wire.On, wire.Off), Uring: either(uring, disk.On, disk.Off), Direct: either(direct, disk.On, disk.Off)}
				e := open(t, c)
				if err := e.OpenDisk(); err != nil {
					t.Skip("this system has no io_uring: ", err)
				}
				f := movie(t, e, name)
				v := newViewer(t, f)
				if v.overTCP(); !tcp {
					v.spec.TCP = nil
					v.overUDP(e)
				}
				v.spec.Base = time.Now().Add(-f.Duration - time.Second) // all is due
				s := v.open(e)
				if err := s.Primed(t.Context()); err != nil {
					t.Fatal(err)
				}
				// The kernel tells whether it goes the way that was asked for.
				if ring, past := descriptors(t, name); ring != uring || past != direct {
					t.Errorf("io_uring open: %v; the movie open with O_DIRECT: %v", ring, past)
				}
				if err := s.Start(nil); err != nil {
					t.Fatal(err)
				}
				if err := <-v.done; err != nil {
					t.Fatal(err)
				}
				var counts []int
				for _, st := range s.State() {
					counts = append(counts, int(st.Sent))
				}
				v.await(counts)
				for i, stream := range []string{"v", "a"} {
					v.sameAsFFmpeg(i, ffmpeg, stream)
				}
				if out := e.PumpStats()[0].Out; !tcp && (out.Datagrams > out.Messages) != gso {
					t.Errorf("%d datagrams in %d messages", out.Datagrams, out.Messages)
				}
			})
		}
	}
}

func either[M any](on bool, yes, no M) M {
	if on {
		return yes
	}
	return no
}

// sameAsFFmpeg compares what came of a track with what FFmpeg sends for it into
// a file: packets one after the other, without their lengths, RTCP among them.
func (v *viewer) sameAsFFmpeg(track int, ffmpeg, stream string) {
	v.t.Helper()
	got := v.got[track]
	name := filepath.Join(v.t.TempDir(), "rtp")
	if out, err := exec.Command(ffmpeg, "-v", "error", "-i", v.spec.File.Name, "-map", "0:"+stream, "-c", "copy", "-packetsize", "1450",
		"-payload_type", strconv.Itoa(int(got[0][1]&0x7f)), "-f", "rtp", name).CombinedOutput(); err != nil {
		v.t.Fatalf("ffmpeg: %v\n%s", err, out)
	}
	sent, err := os.ReadFile(name)
	if err != nil {
		v.t.Fatal(err)
	}
	skipReports := func() {
		for len(sent) > 4 && sent[1] >= 200 && sent[1] <= 204 {
			sent = sent[min(len(sent), 4+4*int(binary.BigEndian.Uint16(sent[2:]))):]
		}
	}
	var seq, stamp uint32 // of ours, less theirs
	for i, p := range got {
		if skipReports(); len(sent) < len(p) {
			v.t.Fatalf("track %d: %d packets, FFmpeg sends %d", track, len(got), i)
		}
		w := sent[:len(p)]
		sent = sent[len(p):]
		a, b := uint32(binary.BigEndian.Uint16(p[2:])-binary.BigEndian.Uint16(w[2:])), binary.BigEndian.Uint32(p[4:])-binary.BigEndian.Uint32(w[4:])
		if i == 0 {
			seq, stamp = a, b
		}
		if a != seq || b != stamp || !bytes.Equal(p[:2], w[:2]) || !bytes.Equal(p[12:], w[12:]) {
			v.t.Fatalf("track %d: packet %d begins %x, FFmpeg's %x", track, i, p[:min(len(p), 24)], w[:min(len(p), 24)])
		}
	}
	if skipReports(); len(sent) > 0 {
		v.t.Fatalf("track %d: after %d packets FFmpeg sends %d octets more", track, len(got), len(sent))
	}
}

// descriptors says whether this process has an io_uring, and a file of that
// name open for O_DIRECT (proc(5)).
func descriptors(t *testing.T, name string) (ring, direct bool) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		ring = ring || strings.Contains(to, "io_uring")
		if filepath.Base(to) != name {
			continue
		}
		info, _ := os.ReadFile("/proc/self/fdinfo/" + fd.Name())
		_, flags, _ := strings.Cut(string(info), "flags:")
		var n int
		if _, err := fmt.Sscanf(flags, "%o", &n); err != nil {
			t.Fatalf("fdinfo: %q", info)
		}
		direct = direct || n&unix.O_DIRECT != 0
	}
	return ring, direct
}
