//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// Darwin's movies, through the shim: the same pictures and sound as directly,
// and sent by the engine. Our own movies and, where they are at hand, those
// that Apple's tools made.
func TestDarwinTakeover(t *testing.T) {
	var movies []string
	for _, name := range testbed.Movies {
		movies = append(movies, testbed.Movie(t, name))
	}
	apple, _ := filepath.Glob(filepath.Join(sharedDir(t), "movies", "sample*"))
	if len(apple) == 0 {
		t.Logf("no movies by Apple's tools in %s/movies: only our own are played", sharedDir(t))
	}
	for _, movie := range apple {
		if filepath.Ext(movie) != ".mov" { // ffmpeg does not decode SVQ3 over RTP, from Darwin neither
			movies = append(movies, movie)
		}
	}
	up := testbed.StartDSS(t, testbed.DSSOptions{Movies: movies})
	shim := testbed.StartShim(t, up.Upstream, "--movies", up.MoviesFolder)
	for _, movie := range movies {
		name := filepath.Base(movie)
		for _, transport := range []testbed.Transport{testbed.UDP, testbed.TCP, testbed.HTTP} {
			t.Run(name+" "+string(transport), func(t *testing.T) {
				const length = 4 * time.Second
				plays := testbed.Together(
					func() testbed.Frames {
						return testbed.FFmpegFrames(t.Context(), t, up.URL("/"+name), transport, length)
					},
					func() testbed.Frames {
						return testbed.FFmpegFrames(t.Context(), t, up.At(shim.Addr).URL("/"+name), transport, length)
					})
				if err := testbed.CompareStart(plays[0], plays[1], 20); err != nil {
					t.Error(err)
				}
			})
		}
	}
	log := shim.Stop(t)
	for _, movie := range movies {
		if n := strings.Count(log, "/"+filepath.Base(movie)+" after="); n < 3 {
			t.Errorf("%s: %d of 3 sessions were taken over", filepath.Base(movie), n)
		}
	}
	if t.Failed() || os.Getenv("SHIM_TEST_LOG") != "" {
		t.Log(log)
	}
}

// Whatever the kernel is let to do or not, the packets are Darwin's: payload,
// marker and type, in this order.
func TestDarwinTakeoverEveryWay(t *testing.T) {
	const name, length = "h264-bframes-aac.mp4", 4 * time.Second
	up := testbed.StartDSS(t, testbed.DSSOptions{Movies: []string{testbed.Movie(t, name)}})
	for way := range 8 {
		var flags []string
		for i, flag := range []string{"--gso", "--io-uring", "--o-direct"} {
			flags = append(flags, flag, []string{"on", "off"}[way>>i&1])
		}
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			t.Parallel()
			shim := testbed.StartShim(t, up.Upstream, append(flags, "--movies", up.MoviesFolder)...)
			for _, transport := range []testbed.Transport{testbed.UDP, testbed.TCP} {
				plays := testbed.Together(
					func() testbed.Frames {
						return testbed.GortsplibFrames(t.Context(), t, up.URL("/"+name), transport, length)
					},
					func() testbed.Frames {
						return testbed.GortsplibFrames(t.Context(), t, up.At(shim.Addr).URL("/"+name), transport, length)
					})
				if err := testbed.CompareStart(plays[0], plays[1], 20); err != nil {
					t.Errorf("%s: %v", transport, err)
				}
			}
			if log := shim.Stop(t); strings.Count(log, "taken over") < 2 {
				t.Errorf("not taken over twice:\n%s", log)
			}
		})
	}
}
