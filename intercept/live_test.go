package intercept

import (
	"fmt"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/engine"
)

const livePath = "/live/h264-bframes-aac.mp4"

// liveShim is a shim in front of the demo server's endless streams.
func liveShim(t *testing.T, apart bool) (up *demo.Server, addr string, i *Interceptor) {
	t.Helper()
	up = upstream(t, func(c *demo.Config) { c.LiveApart = apart })
	addr, i = shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Live: true})
	return up, addr, i
}

// eachLive runs fn over both transports and both ways to number readers.
func eachLive(t *testing.T, fn func(t *testing.T, tcp, apart bool)) {
	for _, apart := range []bool{false, true} {
		each(t, func(t *testing.T, tcp bool) {
			t.Run(fmt.Sprintf("apart=%v", apart), func(t *testing.T) { fn(t, tcp, apart) })
		})
	}
}

// playingUpstream waits until so many of the upstream's sessions play.
func playingUpstream(t *testing.T, up *demo.Server, want int) {
	t.Helper()
	n := 0
	for range 1000 {
		n = 0
		for _, s := range up.Sessions() {
			if s.State == "playing" {
				n++
			}
		}
		if n == want {
			return
		}
		time.Sleep(10 * time.Millisecond) // the demo server tells no event
	}
	t.Fatalf("%d sessions play at the upstream, not %d: %+v", n, want, up.Sessions())
}

func liveViewers(t *testing.T, addr string, n int, tcp bool) []*viewer {
	t.Helper()
	var all []*viewer
	for range n {
		v := newViewer(t, addr, livePath, tcp)
		v.must("PLAY", v.url)
		all = append(all, v)
	}
	return all
}

func start(v *viewer) []int { return make([]int, len(v.controls)) }

// Four viewers, one copy from the upstream; the lead leaves, then the next.
func TestLive(t *testing.T) {
	eachLive(t, func(t *testing.T, tcp, apart bool) {
		up, addr, _ := liveShim(t, apart)
		direct := newViewer(t, up.Addr(), livePath, true)
		direct.must("PLAY", direct.url)
		all := liveViewers(t, addr, 4, tcp)
		playingUpstream(t, up, 2)
		for len(all) > 1 {
			for _, v := range all {
				v.more(30)
			}
			all[0].must("TEARDOWN", all[0].url)
			all[0].unbroken(start(all[0]))
			all = all[1:]
			playingUpstream(t, up, 2)
		}
		all[0].more(30)
		all[0].unbroken(start(all[0]))
		all[0].must("TEARDOWN", all[0].url)
	})
}
