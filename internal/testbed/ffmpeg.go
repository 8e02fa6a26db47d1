package testbed

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// playSlack is what a client gets, beyond the length of what it plays, to
// connect, to wait for a key frame and to say goodbye.
const playSlack = 20 * time.Second

// FFmpegFrames plays media's worth of url with ffmpeg and returns the frames.
func FFmpegFrames(ctx context.Context, tb testing.TB, url string, transport Transport, media time.Duration) Frames {
	tb.Helper()
	return FFmpegFramesFrom(ctx, tb, url, transport, 0, media)
}

// FFmpegFramesFrom is FFmpegFrames after a seek (PLAY with a Range) to a
// position, when that is not 0.
func FFmpegFramesFrom(ctx context.Context, tb testing.TB, url string, transport Transport, from, media time.Duration) Frames {
	tb.Helper()
	want := string(transport)
	if transport == Multicast {
		want = "udp_multicast"
	}
	var seek []string
	if from > 0 {
		// noaccurate: else ffmpeg would itself leave out what came before.
		seek = []string{"-noaccurate_seek", "-ss", fmt.Sprintf("%.3f", from.Seconds())}
	}
	return ffmpegHashes(ctx, tb, media, append(seek, "-rtsp_transport", want,
		// As much as the kernel grants: a loaded machine must not look like a lossy server.
		"-buffer_size", "4194304", "-reorder_queue_size", "2000", "-max_delay", "1000000",
		"-timeout", "10000000", "-allowed_media_types", "video+audio", "-i", url)...)
}

// FileFrames decodes media's worth of a file (all of it if media is 0), whole
// from its first sample as a server would send it, whatever its edit list hides.
func FileFrames(ctx context.Context, tb testing.TB, file string, media time.Duration) Frames {
	tb.Helper()
	return ffmpegHashes(ctx, tb, media, "-i", file)
}

// ffmpegHashes runs ffmpeg over an input and returns the hashes of its frames.
func ffmpegHashes(ctx context.Context, tb testing.TB, media time.Duration, input ...string) Frames {
	tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, media+playSlack)
	defer cancel()
	args := []string{"-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning", "-threads", "1", "-flags2", "+skip_manual"}
	if media > 0 {
		args = append(args, "-t", fmt.Sprintf("%.3f", media.Seconds()))
	}
	args = append(args, input...)
	// passthrough: no frame doubled or left out to please a frame rate.
	args = append(args, "-map", "0:v:0?", "-c:v", "rawvideo", "-pix_fmt", "yuv420p", "-fps_mode", "passthrough",
		"-map", "0:a:0?", "-c:a", "pcm_s16le", "-f", "framemd5", "-")
	// The length is counted in the stream's own time, and gst-rtsp-server takes
	// that of a live stream back whenever somebody joins. So a clock ends it too:
	// interrupted, ffmpeg says TEARDOWN and writes what it has.
	enough, stop := context.WithTimeout(ctx, 2*media+2*time.Second)
	if media == 0 {
		enough, stop = context.WithCancel(ctx)
	}
	defer stop()
	cmd := exec.CommandContext(enough, Program(tb, "ffmpeg", "ffmpeg"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = endTimeout
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil && (enough.Err() == nil || ctx.Err() != nil) {
		tb.Fatal(runError(cmd, err, said.String()))
	}
	f, err := parseFrameMD5(out.String())
	if err != nil {
		tb.Fatal(runError(cmd, err, said.String()))
	}
	f.By, f.Said = strings.Join(cmd.Args, " "), said.String()
	return f
}

// parseFrameMD5 reads the output of ffmpeg's framemd5 muxer: comments that say
// what each stream is, then lines of stream, dts, pts, duration, size, hash.
func parseFrameMD5(text string) (Frames, error) {
	var f Frames
	into := map[string]*[]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "#media_type "); ok {
			index, kind, _ := strings.Cut(rest, ": ")
			switch kind {
			case "video":
				into[index] = &f.Video
			case "audio":
				into[index] = &f.Audio
			}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Split(line, ",")
		if len(fields) != 6 || into[fields[0]] == nil {
			return f, fmt.Errorf("framemd5: cannot read %q", line)
		}
		hashes := into[fields[0]]
		*hashes = append(*hashes, strings.TrimSpace(fields[5]))
	}
	return f, nil
}
