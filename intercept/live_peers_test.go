package intercept

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/engine"
	"rtspshim/engine/live"
	"rtspshim/internal/testbed"
)

// Real servers: viewers join, the lead leaves, the publisher goes.
func TestLivePeers(t *testing.T) {
	t.Parallel()
	movie := testbed.Movie(t, "h264-aac.mp4")
	type peer struct {
		addr, path string
		stop       func() // the publisher
	}
	publish := func(t *testing.T, up testbed.Upstream) peer {
		p := testbed.PublishFile(t, up.URL("/live"), movie, testbed.TCP)
		return peer{up.Addr, "/live", p.Stop}
	}
	for name, begin := range map[string]func(t *testing.T) peer{
		"gortsplib": func(t *testing.T) peer {
			g := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
			p := publish(t, g.Upstream)
			g.AwaitPublished(t, "/live")
			return p
		},
		"mediamtx": func(t *testing.T) peer { return publish(t, testbed.StartMediaMTX(t, testbed.MediaMTXOptions{})) },
		"gst":      func(t *testing.T) peer { return peer{testbed.StartGst(t, testbed.GstOptions{}).Addr, "/live", nil} },
	} {
		for transport, tcp := range map[string]bool{"udp": false, "tcp": true} {
			t.Run(name+","+transport, func(t *testing.T) {
				t.Parallel()
				p := begin(t)
				addr, i := shim(t, "rtsp://"+p.addr, engine.Config{}, Config{Live: true})
				var all []*viewer
				for range 4 {
					v := newViewer(t, addr, p.path, tcp)
					v.must("PLAY", v.url)
					all = append(all, v)
				}
				joined(t, i, 4)
				for range 2 {
					all[0].more(20)
					all[0].must("TEARDOWN", all[0].url)
					all[0].unbroken(start(all[0]))
					all = all[1:]
				}
				for _, v := range all {
					v.more(20)
					v.unbroken(start(v))
				}
				if p.stop == nil {
					return
				}
				p.stop()
				for _, v := range all {
					ended := func() bool { v.mu.Lock(); defer v.mu.Unlock(); return v.ended != nil }
					for n := 0; !ended(); n++ {
						if n > 1000 {
							t.Fatal("the publisher has gone, and a viewer was not told")
						}
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
		}
	}
}

// Nobody gets media but by a session of their own that the upstream lets play.
func TestLiveNothingStolen(t *testing.T) {
	t.Parallel()
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var expired atomic.Bool // logins, from some moment on
			_, addr, i := liveShim(t, func(c *demo.Config) {
				c.Faults.Refuse = func(method, _ string) int {
					if expired.Load() && method != "TEARDOWN" && method != "OPTIONS" {
						return 401
					}
					return 0
				}
			})
			all := liveViewers(t, addr, 3, tcp)
			joined(t, i, 3)
			late := newViewer(t, addr, livePath, tcp) // is set up, and does not play
			thief := newViewer(t, addr, livePath, tcp)
			own := thief.session
			all[2].must("PAUSE", all[2].url)
			expired.Store(true)
			for _, v := range []*viewer{late, thief, all[2]} {
				if a := v.do("PLAY", v.url); a.status != 401 {
					t.Errorf("PLAY answered %d", a.status)
				}
			}
			thief.session = all[1].session
			victim := i.session(thief.session)
			member := func() *live.Member { victim.mu.Lock(); defer victim.mu.Unlock(); return victim.member }
			was := member()
			for _, method := range []string{"PLAY", "SETUP"} {
				if a := thief.do(method, thief.controls[0], "Transport: RTP/AVP;unicast;client_port=40000-40001"); a.status == 200 {
					t.Errorf("%s in another's session: 200", method)
				}
			}
			if was == nil || member() != was {
				t.Error("another's session has been touched")
			}
			all[1].more(3)
			all[1].unbroken(start(all[1]))
			thief.session = own
			if !tcp { // a SETUP that names another's ports
				port := all[0].udp[0].LocalAddr().(*net.UDPAddr).Port
				other := dialViewer(t, addr, livePath, false)
				if a := other.do("SETUP", thief.controls[0], fmt.Sprintf("Transport: RTP/AVP;unicast;client_port=%d-%d", port, port+1)); a.status == 200 {
					other.session, _, _ = strings.Cut(a.header.Get("Session"), ";")
					if a := other.do("PLAY", other.url); a.status != 401 {
						t.Errorf("PLAY with another's ports answered %d", a.status)
					}
				}
				all[0].more(3)
				all[0].unbroken(start(all[0]))
			}
			before := all[2].count()
			all[0].more(6)
			for _, v := range []*viewer{late, thief} {
				for m, list := range v.recorded() {
					if len(list) > 0 {
						t.Errorf("media %d: %d packets stolen", m, len(list))
					}
				}
			}
			for m, n := range all[2].count() {
				if n > before[m] {
					t.Errorf("media %d: %d packets to one whose login has expired", m, n-before[m])
				}
			}
		})
	}
}
