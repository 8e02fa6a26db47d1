package testbed

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// vlcGap is how many pictures VLC may leave out by its own doing: when the first
// sender report corrects its clock it drops H.264 and HEVC up to the next key frame.
const vlcGap = 30

// nobody is whom VLC runs as when the test runs as root, which VLC refuses to be.
const nobody = 65534

// VLCFrames plays media's worth of url with VLC and returns the frames: VLC
// receives and writes each medium to a file of its own, ffmpeg decodes them.
// Sound other than AAC is left out: VLC has no file for it that keeps all frames.
//
// VLC needs its live555 plugin for RTSP, and Debian builds VLC without it (bug
// 981439). SHIM_TEST_VLC_PLUGINS may name a folder that has it.
func VLCFrames(ctx context.Context, tb testing.TB, rawURL string, transport Transport, media time.Duration) Frames {
	tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, media+playSlack)
	defer cancel()
	dir := vlcDir(tb)
	video, audio := filepath.Join(dir, "video"), filepath.Join(dir, "audio")
	args := []string{"-q", "-I", "dummy", "--no-media-library", fmt.Sprintf("--network-caching=%d", vlcCaching.Milliseconds()),
		// A transport stream would not do: its muxer leaves out what it thinks is late.
		"--sout", "#es{access-video=file,mux-video=dummy,dst-video=" + video +
			",access-audio=file,mux-audio=asf,dst-audio=" + audio + "}"}
	args = append(args, vlcTransport(tb, rawURL, transport)...)
	cmd := exec.CommandContext(ctx, Program(tb, "vlc", "vlc-bin"), append(args, rawURL, "vlc://quit")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = endTimeout
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if plugins := vlcPlugins(tb); plugins != "" {
		cmd.Env = append(cmd.Env, "VLC_PLUGIN_PATH="+plugins)
	}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := vlcRun(cmd, media+vlcCaching, video, audio); err != nil {
		tb.Fatal(runError(cmd, err, said.String()))
	}
	var f Frames
	if hasStream(ctx, tb, video) {
		v := FileFrames(ctx, tb, video, 0)
		f.Video, f.Said = v.Video, v.Said
	}
	if hasStream(ctx, tb, audio) {
		a := FileFrames(ctx, tb, audio, 0)
		f.Audio, f.Said = a.Audio, f.Said+a.Said
	}
	f.By, f.Said, f.Gap = strings.Join(cmd.Args, " "), said.String()+f.Said, vlcGap
	return f
}

// vlcCaching is how much VLC holds before it writes.
const vlcCaching = 500 * time.Millisecond

// vlcRun runs VLC until it ends or has written for as long as enough. Its own
// --run-time is in the stream's time, which jumps when a sender report corrects
// the clock: VLC then ends before the first frame, or never.
func vlcRun(cmd *exec.Cmd, enough time.Duration, files ...string) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	look := time.NewTicker(20 * time.Millisecond) // it tells nobody when it begins
	defer look.Stop()
	var began time.Time
	for {
		select {
		case err := <-ended:
			return err
		case now := <-look.C:
			for _, file := range files {
				if info, err := os.Stat(file); began.IsZero() && err == nil && info.Size() > 0 {
					began = now
				}
			}
			if !began.IsZero() && now.Sub(began) > enough {
				_ = cmd.Process.Signal(syscall.SIGINT) // upon which it says TEARDOWN and ends
				return <-ended
			}
		}
	}
}

// hasStream says whether file exists and holds something to decode.
func hasStream(ctx context.Context, tb testing.TB, file string) bool {
	tb.Helper()
	if info, err := os.Stat(file); err != nil || info.Size() == 0 {
		return false
	}
	cmd := exec.CommandContext(ctx, Program(tb, "ffprobe", "ffmpeg"),
		"-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", file)
	out, err := cmd.Output()
	if err != nil {
		tb.Fatal(runError(cmd, err, string(out)))
	}
	return len(bytes.TrimSpace(out)) > 0
}

// vlcDir makes a directory that VLC can write to whoever it runs as; those of
// the testing package let only their owner in.
func vlcDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "vlc")
	if err != nil {
		tb.Fatalf("VLC: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("VLC: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		tb.Fatalf("VLC: %v", err)
	}
	return dir
}

// vlcTransport returns the options that choose a transport; UDP is VLC's own choice.
func vlcTransport(tb testing.TB, rawURL string, transport Transport) []string {
	tb.Helper()
	switch transport {
	case UDP:
		return nil
	case TCP:
		return []string{"--rtsp-tcp"}
	case HTTP:
		u, err := url.Parse(rawURL)
		if err != nil {
			tb.Fatalf("VLC: %v", err)
		}
		return []string{"--rtsp-http", "--rtsp-http-port=" + u.Port()}
	}
	tb.Skipf("VLC cannot be told to use %s", transport)
	return nil
}

// vlcPlugins returns the folder to look for VLC's RTSP plugin in besides its own.
func vlcPlugins(tb testing.TB) string {
	tb.Helper()
	const plugin = "liblive555_plugin.so"
	if dir := os.Getenv("SHIM_TEST_VLC_PLUGINS"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, plugin)); err != nil {
			tb.Fatalf("SHIM_TEST_VLC_PLUGINS: %v", err)
		}
		return dir
	}
	for _, lib := range []string{"/usr/lib", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/local/lib"} {
		if found, _ := filepath.Glob(filepath.Join(lib, "vlc/plugins/access", plugin)); len(found) > 0 {
			return ""
		}
	}
	tb.Skipf("VLC has no RTSP: no %s on this machine (SHIM_TEST_VLC_PLUGINS may name a folder that has it)", plugin)
	return ""
}
