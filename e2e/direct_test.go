//go:build e2e

// Package e2e plays real movies and live streams from real servers with real
// clients. This file proves the ground: without anything between, two plays of
// the same see the same, and it is what was in the movie.
package e2e

import (
	"errors"
	"os"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

const media = 4 * time.Second

var transports = []testbed.Transport{testbed.UDP, testbed.TCP, testbed.HTTP}

// movieFiles are the paths of all movies.
func movieFiles(t *testing.T) []string {
	var files []string
	for _, name := range testbed.Movies {
		files = append(files, testbed.Movie(t, name))
	}
	return files
}

// sameMovie compares two plays of a movie with each other and with the movie.
func sameMovie(t *testing.T, client testbed.Client, movie testbed.Frames, plays []testbed.Frames) error {
	t.Helper()
	same := testbed.CompareStart
	if client.Name == "vlc" { // which now and then leaves out the first frames of sound
		same = testbed.CompareLive
	}
	err := same(plays[0], plays[1], client.Least)
	switch client.Name {
	case "ffmpeg", "vlc": // decoded by ffmpeg, as the movie was
		err = errors.Join(err, testbed.CompareLoop(movie, plays[0], client.Least))
	case "gst": // whose pictures are the same bytes, but whose sound is rounded otherwise
		pictures := testbed.Frames{Video: plays[0].Video, By: plays[0].By}
		if len(movie.Video) > 0 {
			err = errors.Join(err, testbed.CompareLoop(testbed.Frames{Video: movie.Video}, pictures, client.Least))
		}
	}
	return err
}

// playMovies plays every movie of a server with every client over every transport, twice.
func playMovies(t *testing.T, up testbed.Upstream) {
	for _, name := range testbed.Movies {
		movie := testbed.FileFrames(t.Context(), t, testbed.Movie(t, name), 0)
		for _, client := range testbed.Clients {
			for _, transport := range transports {
				if transport != testbed.UDP && name != testbed.Movies[0] {
					continue // the transport does not care which movie it is
				}
				t.Run(name+"/"+client.Name+"/"+string(transport), func(t *testing.T) {
					t.Parallel()
					client.Need(t)
					mayTunnel(t, client, up, transport)
					play := func() testbed.Frames { return client.Play(t.Context(), t, up.URL("/"+name), transport, media) }
					if err := sameMovie(t, client, movie, testbed.Together(play, play)); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

func TestMoviesGst(t *testing.T) {
	t.Parallel()
	playMovies(t, testbed.StartGst(t, testbed.GstOptions{Movies: movieFiles(t)}).Upstream)
}

func TestMoviesDSS(t *testing.T) {
	t.Parallel()
	playMovies(t, testbed.StartDSS(t, testbed.DSSOptions{Movies: movieFiles(t)}).Upstream)
}

// mayTunnel skips a test in which a client and a server cannot tunnel together.
func mayTunnel(t *testing.T, client testbed.Client, up testbed.Upstream, transport testbed.Transport) {
	t.Helper()
	if why := client.Tunnels(up); why != "" && transport == testbed.HTTP {
		t.Skip(why)
	}
}

// playLive plays a live stream with every client, twice at the same time over
// two transports, and compares with the movie it is made from, if it is.
func playLive(t *testing.T, up testbed.Upstream, path, name string) {
	for _, client := range testbed.Clients {
		for i, transport := range transports {
			other := transports[(i+1)%len(transports)]
			if other == testbed.HTTP && client.Tunnels(up) != "" {
				other = testbed.UDP
			}
			t.Run(client.Name+"/"+string(transport), func(t *testing.T) {
				t.Parallel()
				up := up
				if up.Name == "gst" && client.Name == "ffmpeg" {
					t.Skip("gst-rtsp-server takes a shared live stream's time back whenever somebody joins, and ffmpeg loses its place")
				}
				if up.Name == "gst" { // whose shared pipeline answers 503 while the last client's leaving takes it down
					up = testbed.StartGst(t, testbed.GstOptions{}).Upstream
				}
				client.Need(t)
				mayTunnel(t, client, up, transport)
				if up.Direct(transport) != transport {
					t.Skip("the shim's matrix plays this tunnel, which the server itself may lose")
				}
				plays := testbed.Together(
					func() testbed.Frames { return client.Play(t.Context(), t, up.URL(path), transport, media) },
					func() testbed.Frames { return client.Play(t.Context(), t, up.URL(path), up.Direct(other), media) })
				if err := testbed.CompareLive(plays[0], plays[1], client.Least); err != nil {
					t.Error(err)
				}
				if name == "" || client.Name == "gst" || client.Name == "gortsplib" {
					return
				}
				movie := testbed.FileFrames(t.Context(), t, testbed.Movie(t, name), 0)
				if err := testbed.CompareLoop(movie, plays[0], client.Least); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestLiveGst(t *testing.T) {
	t.Parallel()
	playLive(t, testbed.StartGst(t, testbed.GstOptions{}).Upstream, "/live", "")
}

func TestLiveGortsplib(t *testing.T) {
	t.Parallel()
	const name = "h264-aac.mp4"
	up := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
	testbed.PublishFile(t, up.URL("/live"), testbed.Movie(t, name), testbed.UDP)
	up.AwaitPublished(t, "/live")
	playLive(t, up.Upstream, "/live", name)
}

func TestLiveMediaMTX(t *testing.T) {
	t.Parallel()
	const name = "h264-aac.mp4"
	up := testbed.StartMediaMTX(t, testbed.MediaMTXOptions{})
	testbed.PublishFile(t, up.URL("/live"), testbed.Movie(t, name), testbed.TCP)
	playLive(t, up, "/live", name)
}

func TestPublishGst(t *testing.T) {
	t.Parallel()
	const name = "h264-aac.mp4"
	for _, transport := range []testbed.Transport{testbed.UDP, testbed.TCP} {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			up := testbed.StartGst(t, testbed.GstOptions{})
			testbed.PublishOnce(t, up.URL("/record"), testbed.Movie(t, name), transport, media)
			if _, err := os.Stat(up.RecordFile); err != nil {
				t.Fatal(err)
			}
			movie := testbed.FileFrames(t.Context(), t, testbed.Movie(t, name), media)
			got := testbed.FileFrames(t.Context(), t, up.RecordFile, 0)
			if err := testbed.CompareStart(testbed.Frames{Video: movie.Video}, got, 90); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDoors plays through every way a server can ask who is there.
func TestDoors(t *testing.T) {
	t.Parallel()
	const name = "h264-aac.mp4"
	published := func(o testbed.GortsplibOptions) func(*testing.T) (testbed.Upstream, string) {
		return func(t *testing.T) (testbed.Upstream, string) {
			up := testbed.StartGortsplib(t, o)
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
	t.Run("gortsplib SRTP", func(t *testing.T) { // to whose keys ffmpeg and GStreamer are blind
		t.Parallel()
		up, path := published(testbed.GortsplibOptions{SRTP: true})(t)
		play := func() testbed.Frames {
			return testbed.GortsplibFrames(t.Context(), t, up.URL(path), testbed.TCP, media)
		}
		plays := testbed.Together(play, play)
		if err := testbed.CompareLive(plays[0], plays[1], 20); err != nil {
			t.Error(err)
		}
	})
	for _, door := range []struct {
		name      string
		start     func(*testing.T) (testbed.Upstream, string)
		transport testbed.Transport
	}{
		{"gst basic", gst(testbed.GstOptions{Auth: testbed.Basic}), testbed.UDP},
		{"gst digest", gst(testbed.GstOptions{Auth: testbed.DigestMD5}), testbed.UDP},
		{"gst TLS", gst(testbed.GstOptions{TLS: true}), testbed.TCP},
		{"gst TLS digest", gst(testbed.GstOptions{TLS: true, Auth: testbed.DigestMD5}), testbed.TCP},
		{"gst IPv6", gst(testbed.GstOptions{Host: "::1"}), testbed.UDP},
		{"gortsplib basic", published(testbed.GortsplibOptions{Auth: testbed.Basic}), testbed.UDP},
		{"gortsplib digest", published(testbed.GortsplibOptions{Auth: testbed.DigestMD5}), testbed.UDP},
		{"gortsplib TLS", published(testbed.GortsplibOptions{TLS: true}), testbed.TCP},
		{"gortsplib IPv6", published(testbed.GortsplibOptions{Host: "::1"}), testbed.UDP},
	} {
		t.Run(door.name, func(t *testing.T) {
			t.Parallel()
			up, path := door.start(t)
			movie := testbed.FileFrames(t.Context(), t, testbed.Movie(t, name), 0)
			got := testbed.FFmpegFrames(t.Context(), t, up.URL(path), door.transport, media)
			if err := testbed.CompareLoop(movie, got, 60); err != nil {
				t.Error(err)
			}
		})
	}
}
