package testbed

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// GstOptions says what gst-rtsp-server shall serve. The zero value is the live
// channel and the recorder, on 127.0.0.1, open to anybody.
type GstOptions struct {
	Movies         []string      // files, served as /NAME (on demand) and /shared/NAME
	Host           string        // address to listen on; 127.0.0.1
	Auth           Auth          // NoAuth, Basic or DigestMD5
	TLS            bool          // rtsps only
	Multicast      bool          // offer multicast too
	SessionTimeout time.Duration // of idle sessions; 60 s
	Threads        int           // client threads; 4
}

// Gst is a running gst-rtsp-server (testdata/gst/gstsrv.c). Besides the movies
// it has /live (H.264 and PCMA) and /record, which takes one publisher of H.264
// with or without AAC.
type Gst struct {
	Upstream
	RecordFile string // the video received by /record, an H.264 byte stream
}

var gstReady = regexp.MustCompile(`^READY (\d+)$`)

// StartGst starts a gst-rtsp-server and returns when it listens.
func StartGst(tb testing.TB, o GstOptions) *Gst {
	tb.Helper()
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	g := &Gst{RecordFile: filepath.Join(tb.TempDir(), "record.h264")}
	args := []string{"--host", o.Host, "--record", g.RecordFile}
	switch o.Auth {
	case NoAuth:
	case Basic:
		args = append(args, "--auth", "basic", "--user", User, "--pass", Pass)
	case DigestMD5:
		args = append(args, "--auth", "digest", "--user", User, "--pass", Pass)
	default:
		tb.Skipf("gst-rtsp-server has no %s authentication", o.Auth)
	}
	if o.TLS {
		cert, key := CertFiles(tb)
		args = append(args, "--cert", cert, "--key", key)
	}
	if o.Multicast {
		args = append(args, "--multicast")
	}
	if o.SessionTimeout > 0 {
		args = append(args, "--session-timeout", strconv.Itoa(int(o.SessionTimeout/time.Second)))
	}
	if o.Threads > 0 {
		args = append(args, "--threads", strconv.Itoa(o.Threads))
	}
	cmd := exec.Command(gstServer(tb), append(args, o.Movies...)...)
	port := startProcess(tb, cmd, gstReady).awaitReady(tb)[1]
	g.Upstream = Upstream{Name: "gst", Addr: net.JoinHostPort(o.Host, port), TLS: o.TLS, Auth: o.Auth}
	return g
}

var gstBuild struct {
	sync.Mutex
	done    bool
	missing string // why it cannot be built here
	err     error
}

// gstServer returns the path of build/gstsrv, built if it is missing or old.
func gstServer(tb testing.TB) string {
	tb.Helper()
	root := Root(tb)
	binary := filepath.Join(root, "build", "gstsrv")
	gstBuild.Lock()
	defer gstBuild.Unlock()
	if !gstBuild.done {
		gstBuild.missing, gstBuild.err = buildGstServer(filepath.Join(root, "testdata", "gst", "gstsrv.c"), binary)
		gstBuild.done = true
	}
	if gstBuild.missing != "" {
		tb.Skip(gstBuild.missing)
	}
	if gstBuild.err != nil {
		tb.Fatal(gstBuild.err)
	}
	return binary
}

func buildGstServer(source, binary string) (missing string, err error) {
	src, err := os.Stat(source)
	if err != nil {
		return "", fmt.Errorf("gstsrv: %w", err)
	}
	if old, err := os.Stat(binary); err == nil && old.ModTime().After(src.ModTime()) {
		return "", nil
	}
	for name, pkg := range map[string]string{"gcc": "gcc", "pkg-config": "pkg-config"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Sprintf("%s is not installed (Debian package %s)", name, pkg), nil
		}
	}
	flags, err := exec.Command("pkg-config", "--cflags", "--libs",
		"gstreamer-rtsp-server-1.0", "gstreamer-pbutils-1.0", "gio-2.0").Output()
	if err != nil {
		return "gst-rtsp-server's headers are not installed (Debian package libgstrtspserver-1.0-dev)", nil
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return "", fmt.Errorf("gstsrv: %w", err)
	}
	// Several test binaries may build at once: each its own file, renamed whole.
	part := fmt.Sprintf("%s.%d", binary, os.Getpid())
	defer os.Remove(part) //nolint:errcheck // renamed already, if all went well
	args := append([]string{"-O2", "-Wall", "-o", part, source}, strings.Fields(string(flags))...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("gstsrv: gcc: %w\n%s", err, out)
	}
	if err := os.Rename(part, binary); err != nil {
		return "", fmt.Errorf("gstsrv: %w", err)
	}
	return "", nil
}
