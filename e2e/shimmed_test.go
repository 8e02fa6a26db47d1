//go:build e2e

package e2e

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// length is how much of everything is played through the shim.
const length = 3 * time.Second

// source is something that can be played, and how two plays of it compare.
type source struct {
	testbed.Upstream
	path    string
	live    bool
	shim    *testbed.Shim
	clients []testbed.Client // nil: all
}

func (s source) compare(direct, shimmed testbed.Frames, least int) error {
	if s.live {
		return testbed.CompareLive(direct, shimmed, least)
	}
	return testbed.CompareStart(direct, shimmed, least)
}

// sameThroughShim plays a source directly and through the shim at the same
// time, with every client over every transport, and compares what was seen.
func sameThroughShim(t *testing.T, s source) {
	t.Helper()
	clients := s.clients
	if clients == nil {
		clients = testbed.Clients
	}
	for _, client := range clients {
		for _, transport := range transports {
			t.Run(client.Name+"/"+string(transport), func(t *testing.T) {
				client.Need(t)
				if !s.live || s.Name != "gst" { // whose live clients disturb each other's timestamps when they join
					t.Parallel()
				} else {
					awaitStream(t, s.Upstream, s.path)
				}
				mayTunnel(t, client, s.Upstream, transport)
				tries := 1
				if s.live && client.Name == "gst" { // one that lost its race plays again alone, when the other is over
					tries = 3
				}
				var err error
				for range tries {
					plays := testbed.Together(
						func() testbed.Frames {
							return client.Play(t.Context(), t, s.URL(s.path), s.Direct(transport), length)
						},
						func() testbed.Frames {
							return client.Play(t.Context(), t, s.At(s.shim.Addr).URL(s.path), transport, length)
						})
					if err = s.compare(plays[0], plays[1], client.Least*3/4); err == nil {
						return
					}
					t.Logf("%d frames of pictures and %d of sound directly, %d and %d through the shim",
						len(plays[0].Video), len(plays[0].Audio), len(plays[1].Video), len(plays[1].Audio))
				}
				t.Error(err)
			})
		}
	}
	log := s.shim.Log()
	if strings.Contains(log, "level=ERROR") || strings.Contains(log, "panic") {
		t.Errorf("the shim says:\n%s", log)
	}
}

const shimMovie = "h264-bframes-aac.mp4"

func TestShimGstMovie(t *testing.T) {
	t.Parallel()
	up := testbed.StartGst(t, testbed.GstOptions{Movies: []string{testbed.Movie(t, shimMovie)}, Threads: 8})
	sameThroughShim(t, source{Upstream: up.Upstream, path: "/" + shimMovie, shim: testbed.StartShim(t, up.Upstream)})
}

// gst-rtsp-server knows a shared stream by the port in the request-URI, too: who
// asks for another gets a stream of his own. So the shim names the upstream's.
func TestShimGstLive(t *testing.T) {
	t.Parallel()
	up := testbed.StartGst(t, testbed.GstOptions{Threads: 8})
	sameThroughShim(t, source{Upstream: up.Upstream, path: "/live", live: true, shim: testbed.StartShim(t, up.Upstream, "--rewrite-host")})
}

func TestShimGortsplibLive(t *testing.T) {
	t.Parallel()
	up := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
	testbed.PublishFile(t, up.URL("/live"), testbed.Movie(t, shimMovie), testbed.TCP)
	up.AwaitPublished(t, "/live")
	sameThroughShim(t, source{Upstream: up.Upstream, path: "/live", live: true, shim: testbed.StartShim(t, up.Upstream)})
}

func TestShimMediaMTXLive(t *testing.T) {
	t.Parallel()
	up := testbed.StartMediaMTX(t, testbed.MediaMTXOptions{})
	testbed.PublishFile(t, up.URL("/live"), testbed.Movie(t, shimMovie), testbed.TCP)
	awaitStream(t, up, "/live")
	sameThroughShim(t, source{Upstream: up, path: "/live", live: true, shim: testbed.StartShim(t, up)})
}

func TestShimDSSMovie(t *testing.T) {
	t.Parallel()
	up := testbed.StartDSS(t, testbed.DSSOptions{Movies: []string{testbed.Movie(t, shimMovie)}})
	sameThroughShim(t, source{Upstream: up.Upstream, path: "/" + shimMovie, shim: testbed.StartShim(t, up.Upstream)})
}

// TestShimMovies plays every movie once, whatever codec is in it.
func TestShimMovies(t *testing.T) {
	t.Parallel()
	up := testbed.StartGst(t, testbed.GstOptions{Movies: movieFiles(t), Threads: 8})
	shim := testbed.StartShim(t, up.Upstream)
	for _, name := range testbed.Movies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plays := testbed.Together(
				func() testbed.Frames {
					return testbed.FFmpegFrames(t.Context(), t, up.URL("/"+name), testbed.UDP, length)
				},
				func() testbed.Frames {
					return testbed.FFmpegFrames(t.Context(), t, up.At(shim.Addr).URL("/"+name), testbed.UDP, length)
				})
			if err := testbed.CompareStart(plays[0], plays[1], 40); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestShimDoors plays through every door: credentials of each kind, TLS on
// either side, IPv6 on either side and on one alone.
func TestShimDoors(t *testing.T) {
	t.Parallel()
	const name = "h264-aac.mp4"
	lib := func(o testbed.GortsplibOptions) func(*testing.T) (testbed.Upstream, string) {
		return func(t *testing.T) (testbed.Upstream, string) {
			up := testbed.StartGortsplib(t, o)
			if o.Auth == testbed.DigestSHA256 { // which ffmpeg does not know
				t.Cleanup(publishPackets(t, up, "/live", 50))
				return up.Upstream, "/live"
			}
			testbed.PublishFile(t, up.URL("/live"), testbed.Movie(t, name), testbed.TCP)
			up.AwaitPublished(t, "/live")
			return up.Upstream, "/live"
		}
	}
	gst := func(o testbed.GstOptions) func(*testing.T) (testbed.Upstream, string) {
		return func(t *testing.T) (testbed.Upstream, string) {
			o.Movies = []string{testbed.Movie(t, name)}
			return testbed.StartGst(t, o).Upstream, "/" + name
		}
	}
	dss := func(o testbed.DSSOptions) func(*testing.T) (testbed.Upstream, string) {
		return func(t *testing.T) (testbed.Upstream, string) {
			o.Movies = []string{testbed.Movie(t, name)}
			return testbed.StartDSS(t, o).Upstream, "/" + name
		}
	}
	mtx := func(o testbed.MediaMTXOptions) func(*testing.T) (testbed.Upstream, string) {
		return func(t *testing.T) (testbed.Upstream, string) {
			up := testbed.StartMediaMTX(t, o)
			testbed.PublishFile(t, up.URL("/live"), testbed.Movie(t, name), testbed.TCP)
			if o.Auth == testbed.NoAuth {
				awaitStream(t, up, "/live")
			}
			return up, "/live"
		}
	}
	for _, door := range []struct {
		name      string
		start     func(*testing.T) (testbed.Upstream, string)
		transport testbed.Transport
		flags     []string
		secure    bool // TLS to the client
	}{
		{"gortsplib digest SHA-256", lib(testbed.GortsplibOptions{Auth: testbed.DigestSHA256}), testbed.UDP, nil, false},
		{"gortsplib digest SHA-256, TCP", lib(testbed.GortsplibOptions{Auth: testbed.DigestSHA256}), testbed.TCP, nil, false},
		{"gst basic", gst(testbed.GstOptions{Auth: testbed.Basic}), testbed.UDP, nil, false},
		{"gst digest", gst(testbed.GstOptions{Auth: testbed.DigestMD5}), testbed.UDP, nil, false},
		{"gst digest TCP", gst(testbed.GstOptions{Auth: testbed.DigestMD5}), testbed.TCP, nil, false},
		{"gst digest tunnel", gst(testbed.GstOptions{Auth: testbed.DigestMD5}), testbed.HTTP, nil, false},
		{"gortsplib basic", lib(testbed.GortsplibOptions{Auth: testbed.Basic}), testbed.UDP, nil, false},
		{"gortsplib digest", lib(testbed.GortsplibOptions{Auth: testbed.DigestMD5}), testbed.UDP, nil, false},
		{"gortsplib digest TCP", lib(testbed.GortsplibOptions{Auth: testbed.DigestMD5}), testbed.TCP, nil, false},
		{"mediamtx basic", mtx(testbed.MediaMTXOptions{Auth: testbed.Basic}), testbed.UDP, nil, false},
		{"mediamtx digest", mtx(testbed.MediaMTXOptions{Auth: testbed.DigestMD5}), testbed.UDP, nil, false},
		{"dss digest", dss(testbed.DSSOptions{Auth: testbed.DigestMD5}), testbed.UDP, nil, false},
		{"TLS to gst", gst(testbed.GstOptions{TLS: true}), testbed.TCP, []string{"--upstream-insecure"}, false},
		{"TLS to gortsplib", lib(testbed.GortsplibOptions{TLS: true}), testbed.TCP, []string{"--upstream-insecure"}, false},
		{"TLS to the client, UDP", gst(testbed.GstOptions{}), testbed.UDP, nil, true},
		{"TLS to the client, TCP", lib(testbed.GortsplibOptions{}), testbed.TCP, nil, true},
		{"TLS on both sides and digest", gst(testbed.GstOptions{TLS: true, Auth: testbed.DigestMD5}), testbed.TCP, []string{"--upstream-insecure"}, true},
		{"IPv6 on both sides", lib(testbed.GortsplibOptions{Host: "::1"}), testbed.UDP, nil, false},
		{"IPv6 on both sides, gst", gst(testbed.GstOptions{Host: "::1"}), testbed.UDP, nil, false},
		{"IPv6 on both sides, TCP", gst(testbed.GstOptions{Host: "::1"}), testbed.TCP, nil, false},
		{"IPv6 to the upstream", gst(testbed.GstOptions{Host: "::1"}), testbed.UDP, []string{"--listen", "127.0.0.1:0"}, false},
		{"IPv6 to the client", lib(testbed.GortsplibOptions{}), testbed.UDP, []string{"--listen", "[::1]:0"}, false},
		{"any address, IPv4 client", gst(testbed.GstOptions{}), testbed.UDP, []string{"--listen", ":0"}, false},
	} {
		t.Run(door.name, func(t *testing.T) {
			t.Parallel()
			up, path := door.start(t)
			flags := door.flags
			if door.secure {
				cert, key := testbed.CertFiles(t)
				flags = append([]string{"--tls-cert", cert, "--tls-key", key}, flags...)
			}
			shim := testbed.StartShim(t, up, flags...)
			through := up.At(shim.Addr)
			if host, port, _ := net.SplitHostPort(shim.Addr); host == "::" {
				through.Addr = "127.0.0.1:" + port
			}
			through.TLS = door.secure
			look, least := testbed.FFmpegFrames, 40
			if up.Auth == testbed.DigestSHA256 {
				look, least = testbed.GortsplibFrames, 15
			}
			plays := testbed.Together(
				func() testbed.Frames { return look(t.Context(), t, up.URL(path), door.transport, length) },
				func() testbed.Frames { return look(t.Context(), t, through.URL(path), door.transport, length) })
			s := source{live: path == "/live"}
			if err := s.compare(plays[0], plays[1], least); err != nil {
				t.Errorf("%v\nthe shim: %s", err, shim.Log())
			}
		})
	}
}

// TestShimPublish publishes through the shim, and plays what was published,
// directly and through the shim.
func TestShimPublish(t *testing.T) {
	t.Parallel()
	const name = "h264-aac.mp4"
	movie := testbed.FileFrames(t.Context(), t, testbed.Movie(t, name), 0)
	for _, transport := range []testbed.Transport{testbed.UDP, testbed.TCP} {
		t.Run("gortsplib/"+string(transport), func(t *testing.T) {
			t.Parallel()
			up := testbed.StartGortsplib(t, testbed.GortsplibOptions{Auth: testbed.DigestMD5})
			shim := testbed.StartShim(t, up.Upstream)
			publisher := testbed.PublishFile(t, up.At(shim.Addr).URL("/live"), testbed.Movie(t, name), transport)
			up.AwaitPublished(t, "/live")
			plays := testbed.Together(
				func() testbed.Frames {
					return testbed.FFmpegFrames(t.Context(), t, up.URL("/live"), testbed.UDP, length)
				},
				func() testbed.Frames {
					return testbed.FFmpegFrames(t.Context(), t, up.At(shim.Addr).URL("/live"), transport, length)
				})
			if err := testbed.CompareLive(plays[0], plays[1], 40); err != nil {
				t.Error(err)
			}
			if err := testbed.CompareLoop(movie, plays[1], 40); err != nil {
				t.Error(err)
			}
			publisher.Stop()
			up.AwaitSessions(t, 0)
			if log := shim.Stop(t); !strings.Contains(log, "record=true") {
				t.Errorf("the shim says:\n%s", log)
			}
		})
		t.Run("gortsplib from gst/"+string(transport), func(t *testing.T) {
			t.Parallel()
			up := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
			shim := testbed.StartShim(t, up.Upstream)
			gstPublish(t, up.At(shim.Addr).URL("/live"), testbed.Movie(t, name), transport)
			up.AwaitPublished(t, "/live")
			got := testbed.FFmpegFrames(t.Context(), t, up.At(shim.Addr).URL("/live"), testbed.UDP, length)
			if err := testbed.CompareLoop(testbed.Frames{Video: movie.Video}, testbed.Frames{Video: got.Video}, 40); err != nil {
				t.Error(err)
			}
		})
		t.Run("mediamtx/"+string(transport), func(t *testing.T) {
			t.Parallel()
			up := testbed.StartMediaMTX(t, testbed.MediaMTXOptions{})
			shim := testbed.StartShim(t, up)
			testbed.PublishFile(t, up.At(shim.Addr).URL("/live"), testbed.Movie(t, name), transport)
			awaitStream(t, up, "/live")
			got := testbed.FFmpegFrames(t.Context(), t, up.URL("/live"), testbed.UDP, length)
			if err := testbed.CompareLoop(movie, got, 40); err != nil {
				t.Error(err)
			}
		})
		t.Run("gst/"+string(transport), func(t *testing.T) {
			t.Parallel()
			up := testbed.StartGst(t, testbed.GstOptions{})
			shim := testbed.StartShim(t, up.Upstream)
			publisher := testbed.PublishFile(t, up.At(shim.Addr).URL("/record"), testbed.Movie(t, name), transport)
			awaitSize(t, up.RecordFile, 100_000)
			publisher.Stop()
			got := testbed.FileFrames(t.Context(), t, up.RecordFile, 0)
			if err := testbed.CompareLoop(testbed.Frames{Video: movie.Video}, got, 40); err != nil {
				t.Error(err)
			}
		})
	}
}

// gstPublish publishes a movie's pictures with GStreamer until the test ends.
func gstPublish(tb testing.TB, url, file string, transport testbed.Transport) {
	tb.Helper()
	program := testbed.Program(tb, "gst-launch-1.0", "gstreamer1.0-tools")
	if err := exec.Command("gst-inspect-1.0", "rtspclientsink").Run(); err != nil {
		tb.Skip("GStreamer has no rtspclientsink (Debian package gstreamer1.0-rtsp)")
	}
	cmd := exec.Command(program, "-q", "filesrc", "location="+file, "!", "qtdemux", "!", "h264parse", "!",
		"rtspclientsink", "location="+url, "protocols="+string(transport), "latency=0")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-done //nolint:errcheck // interrupted
		if tb.Failed() {
			tb.Logf("%s\n%s", strings.Join(cmd.Args, " "), said.String())
		}
	})
}

// awaitStream returns once an upstream describes a stream, which may take it a
// while after the publisher came or, at gst, after the last viewer left. The
// connection stays open as long as the test.
func awaitStream(tb testing.TB, up testbed.Upstream, path string) {
	tb.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c := dialRaw(tb, up.Addr)
		c.send("DESCRIBE rtsp://" + up.Addr + path + " RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n")
		answer := c.next(5 * time.Second)
		if strings.HasPrefix(answer, "RTSP/1.0 200") {
			return
		}
		_ = c.Close()
		if time.Since(began) > 15*time.Second {
			tb.Fatalf("%s%s: %q", up.Name, path, answer)
		}
	}
}

// awaitSize returns once a file has grown to so many octets.
func awaitSize(tb testing.TB, file string, octets int64) {
	tb.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if info, err := os.Stat(file); err == nil && info.Size() >= octets {
			return
		} else if time.Since(began) > 15*time.Second {
			tb.Fatalf("%s: %v, %v", file, info, err)
		}
	}
}
