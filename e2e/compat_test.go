//go:build e2e

package e2e

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"rtspshim/compat"
	"rtspshim/compat/judge"
	"rtspshim/compat/report"
	"rtspshim/compat/talk"
	"rtspshim/internal/testbed"
)

// Every upstream, compared with itself and with the shim in front of it: no
// difference. With -artifacts the pages and tables are kept.
func TestCompat(t *testing.T) {
	movie := testbed.Movie(t, "h264-aac.mp4")
	for _, c := range []struct {
		name, path string
		start      func(t *testing.T) testbed.Upstream
	}{
		{"gst movie", "/h264-aac.mp4", func(t *testing.T) testbed.Upstream {
			return testbed.StartGst(t, testbed.GstOptions{Movies: []string{movie}}).Upstream
		}},
		{"gst live", "/live", func(t *testing.T) testbed.Upstream { return testbed.StartGst(t, testbed.GstOptions{}).Upstream }},
		{"gst digest", "/h264-aac.mp4", func(t *testing.T) testbed.Upstream {
			return testbed.StartGst(t, testbed.GstOptions{Movies: []string{movie}, Auth: testbed.DigestMD5}).Upstream
		}},
		{"gortsplib live", "/live", func(t *testing.T) testbed.Upstream {
			up := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
			testbed.PublishFile(t, up.URL("/live"), movie, testbed.TCP)
			return up.Upstream
		}},
		{"gortsplib basic", "/live", func(t *testing.T) testbed.Upstream {
			up := testbed.StartGortsplib(t, testbed.GortsplibOptions{Auth: testbed.Basic})
			testbed.PublishFile(t, up.URL("/live"), movie, testbed.TCP)
			return up.Upstream
		}},
		{"MediaMTX live", "/live", func(t *testing.T) testbed.Upstream {
			up := testbed.StartMediaMTX(t, testbed.MediaMTXOptions{})
			testbed.PublishFile(t, up.URL("/live"), movie, testbed.TCP)
			return up
		}},
		{"Darwin live", "/live.sdp", func(t *testing.T) testbed.Upstream { // its reflector takes names of this ending alone
			up := testbed.StartDSS(t, testbed.DSSOptions{})
			testbed.PublishFile(t, up.URL("/live.sdp"), movie, testbed.TCP)
			return up.Upstream
		}},
		{"Darwin movie", "/h264-aac.mp4", func(t *testing.T) testbed.Upstream {
			return testbed.StartDSS(t, testbed.DSSOptions{Movies: []string{movie}}).Upstream
		}},
		{"Darwin digest", "/h264-aac.mp4", func(t *testing.T) testbed.Upstream {
			return testbed.StartDSS(t, testbed.DSSOptions{Movies: []string{movie}, Auth: testbed.DigestMD5}).Upstream
		}},
	} {
		t.Run(c.name, func(t *testing.T) { // each part with a server of its own, as one that hangs is no verdict on the next
			var flags []string
			if c.name == "gst live" { // as the README says
				flags = append(flags, "--rewrite-host")
			}
			t.Run("itself", func(t *testing.T) {
				up := c.start(t)
				compareWith(t, up, c.path, up.Addr)
			})
			t.Run("relay", func(t *testing.T) {
				up := c.start(t)
				compareWith(t, up, c.path, testbed.StartShim(t, up, append(flags, "--live", "off")...).Addr)
			})
			if strings.HasSuffix(c.name, "movie") || strings.HasSuffix(c.name, "digest") {
				t.Run("takeover", func(t *testing.T) {
					up := c.start(t)
					compareWith(t, up, c.path, testbed.StartShim(t, up, "--movies", filepath.Dir(movie)).Addr)
				})
			}
			if strings.HasPrefix(c.path, "/live") { // viewers of one stream share a session, those of other points too
				t.Run("shared", func(t *testing.T) {
					up := c.start(t)
					shim := testbed.StartShim(t, up, flags...)
					compareWith(t, up, c.path, shim.Addr)
					want := "live, joined"
					if c.name == "Darwin live" {
						want = "stays relayed" // each is sent it at a time of its own
					}
					if !strings.Contains(shim.Log(), want) {
						t.Errorf("nowhere in the log: %q", want)
					}
				})
			}
		})
	}
}

// gst-rtsp-server makes a live stream for each name it is called by: the judge
// looks at the one that the shim's clients get, by whatever name.
func TestSameName(t *testing.T) {
	up := testbed.StartGst(t, testbed.GstOptions{})
	for name, flags := range map[string][]string{"the client's": nil, "the server's": {"--rewrite-host"}} {
		t.Run(name, func(t *testing.T) {
			shim := testbed.StartShim(t, up.Upstream, append(flags, "--live", "off")...)
			r, err := compat.Run(t.Context(), compat.Config{Upstream: up.URL("/live"), Shim: "rtsp://" + shim.Addr,
				Only: []string{"two-viewers"}, Clients: []string{}})
			if err != nil {
				t.Fatal(err)
			}
			if !r.OK() {
				var table strings.Builder
				if err := report.Table(&table, r, true, false); err != nil {
					t.Fatal(err)
				}
				t.Error(table.String())
			}
		})
	}
}

func compareWith(t *testing.T, up testbed.Upstream, path, addr string) {
	t.Helper()
	if plugins := os.Getenv("SHIM_TEST_VLC_PLUGINS"); plugins != "" { // Debian's VLC has no RTSP
		t.Setenv("VLC_PLUGIN_PATH", plugins)
	}
	cfg := compat.Config{Upstream: "rtsp://" + up.Addr + path, Shim: "rtsp://" + addr, Parallel: 6,
		Bounds: talk.Bounds{Answer: 2 * time.Second}, Slow: os.Getenv("SHIM_TEST_SLOW") != ""}
	if n, err := strconv.Atoi(os.Getenv("SHIM_TEST_PARALLEL")); err == nil {
		cfg.Parallel = n
	}
	if only := os.Getenv("SHIM_TEST_POINTS"); only != "" { // names, separated by commas
		cfg.Only = strings.Split(only, ",")
	}
	if up.Auth != testbed.NoAuth {
		cfg.Credentials = url.UserPassword(testbed.User, testbed.Pass)
	}
	switch up.Name {
	case "gst":
		cfg.Publish = "/record"
	case "gortsplib", "mediamtx":
		cfg.Publish = "/compat"
	}
	r, err := compat.Run(context.Background(), cfg)
	if r == nil {
		t.Fatal(err)
	} else if err != nil {
		t.Error(err)
	}
	var table strings.Builder
	if err := report.Table(&table, r, true, false); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.ArtifactDir(), "compat.html"))
	if err != nil {
		t.Fatal(err)
	}
	if err := report.HTML(f, r); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Log(table.String())
	if !r.OK() || len(cfg.Only) == 0 && r.Count(judge.Same) < 40 {
		t.Errorf("%d different, %d same", r.Count(judge.Different), r.Count(judge.Same))
	}
}
