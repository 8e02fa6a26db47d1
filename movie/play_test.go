package movie_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/internal/testbed"
	"rtspshim/movie"
)

// A hinted copy plays: what ffmpeg and GStreamer decode of it from a server are
// the frames of the movie it was made from.
func TestPlays(t *testing.T) {
	dir := t.TempDir()
	ffmpeg, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Skip("ffmpeg is not installed: nothing to make a movie with")
	}
	s, err := demo.Start(demo.Config{Movies: os.DirFS(dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const length = 1500 * time.Millisecond
	cases := []struct {
		name string
		by   string
		over testbed.Transport
	}{
		{"h264-bframes-aac.mp4", "ffmpeg", testbed.UDP},
		{"h264-bframes-aac.mp4", "gst", testbed.TCP},
		{"hevc-aac.mp4", "ffmpeg", testbed.TCP},
		{"mpeg4-aac.mp4", "ffmpeg", testbed.UDP},
		{"h264-aac.mov", "gst", testbed.UDP},
		{"aac.mp4", "ffmpeg", testbed.UDP},
	}
	var plays []func() testbed.Frames
	for _, c := range cases {
		plain := filepath.Join(dir, "plain-"+c.name)
		cmd := exec.CommandContext(t.Context(), ffmpeg, "-v", "error", "-y", "-i", filepath.Join("..", "testdata", "hinted", c.name),
			"-map", "0:v?", "-map", "0:a", "-c", "copy", plain)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := movie.Hint(plain, filepath.Join(dir, c.name), movie.HintConfig{}); err != nil {
			t.Fatal(err)
		}
		plays = append(plays, func() testbed.Frames {
			if c.by == "gst" {
				return testbed.GstFrames(t.Context(), t, s.URL("/"+c.name), c.over, length)
			}
			return testbed.FFmpegFrames(t.Context(), t, s.URL("/"+c.name), c.over, length)
		})
	}
	for i, got := range testbed.Together(plays...) {
		c := cases[i]
		want := testbed.FileFrames(t.Context(), t, filepath.Join(dir, "plain-"+c.name), 3*time.Second)
		if c.by == "gst" { // it rounds sound differently
			want.Audio, got.Audio = nil, nil
		}
		if err := testbed.CompareStart(want, got, 30); err != nil {
			t.Errorf("%s by %s over %s: %v", c.name, c.by, fmt.Sprint(c.over), err)
		}
	}
}
