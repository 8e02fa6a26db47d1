// Package testbed is the ground the tests stand on: real servers to put the
// shim in front of, real clients to play through it, and the comparison of what
// two clients saw.
//
// An upstream is started with StartGst, StartGortsplib, StartMediaMTX or
// StartDSS; each returns once the server listens, and ends it with the test.
// PublishFile sends a movie to one as a live stream. FFmpegFrames, GstFrames and
// VLCFrames play a URL for a few seconds and return the hash of every decoded
// frame; CompareStart and CompareLive say whether two plays saw the same.
//
//	up := testbed.StartGst(t, testbed.GstOptions{Movies: []string{testbed.Movie(t, "h264-aac.mp4")}})
//	direct := testbed.FFmpegFrames(ctx, t, up.URL("/h264-aac.mp4"), testbed.UDP, 3*time.Second)
//	shimmed := testbed.FFmpegFrames(ctx, t, up.At(shimAddr).URL("/h264-aac.mp4"), testbed.UDP, 3*time.Second)
//	if err := testbed.CompareStart(direct, shimmed, 60); err != nil {
//		t.Error(err)
//	}
//
// A program that is missing skips the test and is named. A program that fails
// fails the test with the last of what it said.
package testbed

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Transport is how a client asks for its media.
type Transport string

// The transports of the clients. HTTP is RTSP and interleaved media through a
// GET/POST pair.
const (
	UDP       Transport = "udp"
	TCP       Transport = "tcp"
	HTTP      Transport = "http"
	Multicast Transport = "multicast"
)

// Auth is how an upstream asks for credentials.
type Auth string

// The ways to ask. gst knows Basic and DigestMD5.
const (
	NoAuth       Auth = ""
	Basic        Auth = "basic"
	DigestMD5    Auth = "digest-md5"
	DigestSHA256 Auth = "digest-sha256"
)

// The credentials of every upstream that asks for some.
const (
	User = "user"
	Pass = "pass"
)

// Upstream is a server and how to reach it.
type Upstream struct {
	Name string // gst, gortsplib, mediamtx or dss
	Addr string // host:port it listens on
	TLS  bool   // rtsps
	Auth Auth
}

// URL returns the URL of path ("/x"), with the credentials if the server wants some.
func (u Upstream) URL(path string) string {
	out := url.URL{Scheme: "rtsp", Host: u.Addr, Path: path}
	if u.TLS {
		out.Scheme = "rtsps"
	}
	if u.Auth != NoAuth {
		out.User = url.UserPassword(User, Pass)
	}
	return out.String()
}

// At returns the upstream as a client sees it through a plain RTSP proxy on
// addr (host:port): same paths, same credentials.
func (u Upstream) At(addr string) Upstream {
	u.Addr, u.TLS = addr, false
	return u
}

// Client is a kind of player.
type Client struct {
	Name string
	// Play plays media's worth of url and returns what it saw. It fails or skips
	// the test when it cannot.
	Play func(ctx context.Context, tb testing.TB, url string, transport Transport, media time.Duration) Frames
	// Least is how many frames of 100 pictures (4 s) of each medium two plays of a
	// live stream surely have in common.
	Least int
	// Need skips the test when the machine has not got what the client needs. Play
	// does so too, but where plays run beside the test (Together) only Need does it
	// in time.
	Need func(tb testing.TB)
}

// Clients are all there are.
var Clients = []Client{
	{"ffmpeg", FFmpegFrames, 60, func(tb testing.TB) { Program(tb, "ffmpeg", "ffmpeg") }},
	{"gst", GstFrames, 60, func(tb testing.TB) { Program(tb, "gst-launch-1.0", "gstreamer1.0-tools") }},
	{"vlc", VLCFrames, 40, func(tb testing.TB) { Program(tb, "vlc", "vlc-bin"); vlcPlugins(tb) }},
	{"gortsplib", GortsplibFrames, 20, func(testing.TB) {}},
}

// Tunnels says why a client cannot use its HTTP tunnel with this upstream, and
// nothing if it can (e2e TestTunnelDeaf).
func (c Client) Tunnels(up Upstream) string {
	switch {
	case c.Name == "gortsplib" && up.Name == "gst":
		return "gst-rtsp-server 1.22 waits for the body that gortsplib's client announces with its GET"
	case c.Name == "gortsplib" && up.Name == "dss":
		return "Darwin closes when a GET speaks HTTP/1.1, as that of gortsplib's client does"
	}
	return ""
}

// Direct is the transport by which a client is to play without the shim what it
// plays by t with it. gortsplib's server 5.6 loses a tunnel now and then, one in
// a hundred on a busy machine (e2e TestTunnelOvertaken): directly it is played
// over TCP, which is the same but for the HTTP around it.
func (u Upstream) Direct(t Transport) Transport {
	if t == HTTP && (u.Name == "gortsplib" || u.Name == "mediamtx") {
		return TCP
	}
	return t
}

// Program returns the path of an installed program and skips the test, naming
// it and the Debian package it is in, when there is none.
func Program(tb testing.TB, name, pkg string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Skipf("%s is not installed (Debian package %s)", name, pkg)
	}
	return path
}

// Root returns the directory of the repository.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatalf("repository root: %v", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			tb.Fatal("repository root: no go.mod above the working directory")
		}
		dir = up
	}
}

// Movies are the names in testdata/hinted, the plain one first.
var Movies = []string{
	"h264-aac.mp4", "h264-bframes-aac.mp4", "h264-aac.mov", "mpeg4-aac.mp4", "hevc-aac.mp4", "aac.mp4",
}

// Movie returns the path of a movie of testdata/hinted.
func Movie(tb testing.TB, name string) string {
	tb.Helper()
	path := filepath.Join(Root(tb), "testdata", "hinted", name)
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("movie: %v", err)
	}
	return path
}
