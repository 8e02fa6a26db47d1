//go:build e2e && linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rtspshim/bench"
	"rtspshim/internal/testbed"
)

// 200 viewers over UDP and 200 over TCP, of 5 Mbit/s: the upstream sends one
// copy, nothing is lost, and what they get is what a reader gets directly, octet
// by octet.
func TestLiveCrowd(t *testing.T) {
	movie := filepath.Join(t.TempDir(), "live.mp4")
	encode := exec.Command(testbed.Program(t, "ffmpeg", "ffmpeg"), "-hide_banner", "-loglevel", "error", "-f", "lavfi",
		"-i", "testsrc2=size=640x360:rate=25:duration=10,noise=alls=18:allf=t", "-f", "lavfi", "-i", "sine=frequency=300:duration=10",
		"-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-g", "50", "-b:v", "4900k", "-maxrate", "4900k", "-bufsize", "4900k",
		"-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "64k", movie)
	if out, err := encode.CombinedOutput(); err != nil {
		t.Fatalf("ffmpeg: %v\n%s", err, out)
	}
	g := testbed.StartGortsplib(t, testbed.GortsplibOptions{WriteQueue: 1024})
	testbed.PublishFile(t, g.URL("/live"), movie, testbed.TCP)
	g.AwaitPublished(t, "/live")
	shim := testbed.StartShim(t, g.Upstream)
	const viewers, direct, rate = 200, 2, 50
	results := [2]*bench.Report{}
	var work sync.WaitGroup
	for n, tcp := range []bool{false, true} {
		work.Go(func() {
			var err error
			results[n], err = bench.Measure(t.Context(), bench.Config{
				Servers:  []bench.Server{{URL: g.At(shim.Addr).URL("/live")}},
				Sessions: []int{viewers}, TCP: tcp, Rate: rate, Settle: 6 * time.Second, Duration: 6 * time.Second,
				Verify: direct, Reference: g.URL("/live"),
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(viewers/rate*time.Second + 2*time.Second) // all play; the last are still compared for a while
	least := 0.0                                         // octets a second
	for range 4 {                                        // until the measurement's last seconds
		before, began := g.Sent("/live"), time.Now()
		time.Sleep(2 * time.Second)
		if sent := float64(g.Sent("/live")-before) / time.Since(began).Seconds(); least == 0 || sent < least {
			least = sent
		}
	}
	work.Wait()
	if t.Failed() {
		return
	}
	bits := 0.0 // of one copy, a second
	for _, r := range results {
		for _, run := range r.Runs {
			if run.Sessions != viewers || run.Lost > 0 || run.Silent > 0 || run.Broken > 0 {
				t.Errorf("%d sessions of %d, %d packets lost, %d silent, %d broken", run.Sessions, viewers, run.Lost, run.Silent, run.Broken)
			}
			v := run.Verified
			if v.Pairs != direct || v.Different > 0 || v.Unaligned > 0 || v.Packets < 1000 {
				t.Errorf("compared with direct readers: %+v", v)
			}
			bits = run.Gbps * 1e9 / viewers
			t.Logf("%.3f Gbit/s, late %.1f ms (p99), skew %.1f ms (p99), %+v", run.Gbps, run.Late.P99, run.Skew.P99, v)
		}
	}
	copies := least * 8 / bits
	t.Logf("the upstream sent %.2f copies, %d of them to direct readers", copies, 2*direct)
	if copies > 2*direct+1.5 || copies < 2*direct {
		t.Errorf("the upstream sent %.2f copies", copies)
	}
}
