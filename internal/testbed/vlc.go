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

// vlcGap is how many frames VLC leaves out by its own doing: when the first
// sender report corrects its clock it drops what comes before the next key frame.
const vlcGap = 30

// nobody is whom VLC runs as when the test runs as root, which VLC refuses to be.
const nobody = 65534

// VLCFrames plays media's worth of url with VLC and returns the frames: VLC
// receives and writes a transport stream, ffmpeg decodes it.
//
// VLC needs its live555 plugin for RTSP, and Debian builds VLC without it (bug
// 981439). SHIM_TEST_VLC_PLUGINS may name a folder that has it.
func VLCFrames(ctx context.Context, tb testing.TB, rawURL string, transport Transport, media time.Duration) Frames {
	tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, media+playSlack)
	defer cancel()
	args := []string{"-q", "-I", "dummy", "--no-media-library", "--network-caching=500",
		fmt.Sprintf("--run-time=%.1f", media.Seconds()+0.5), "--sout", "#std{access=file,mux=ts,dst=-}"}
	args = append(args, vlcTransport(tb, rawURL, transport)...)
	cmd := exec.CommandContext(ctx, Program(tb, "vlc", "vlc-bin"), append(args, rawURL, "vlc://quit")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = endTimeout
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME=/nonexistent")
	if dir := vlcPlugins(tb); dir != "" {
		cmd.Env = append(cmd.Env, "VLC_PLUGIN_PATH="+dir)
	}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var stream, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stream, &said
	if err := cmd.Run(); err != nil {
		tb.Fatal(runError(cmd, err, said.String()))
	}
	if stream.Len() == 0 {
		tb.Fatal(runError(cmd, fmt.Errorf("played nothing"), said.String()))
	}
	file := filepath.Join(tb.TempDir(), "vlc.ts")
	if err := os.WriteFile(file, stream.Bytes(), 0o600); err != nil {
		tb.Fatalf("VLC: %v", err)
	}
	f := ffmpegHashes(ctx, tb, 0, "-f", "mpegts", "-i", file)
	f.By, f.Said, f.Gap = strings.Join(cmd.Args, " "), said.String()+f.Said, vlcGap
	return f
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
