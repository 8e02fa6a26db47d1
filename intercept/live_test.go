package intercept

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/engine"
)

const livePath = "/live/h264-bframes-aac.mp4"

// liveShim is a shim in front of the demo server's endless streams.
func liveShim(t *testing.T, change func(*demo.Config)) (up *demo.Server, addr string, i *Interceptor) {
	t.Helper()
	up = upstream(t, change)
	addr, i = shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Live: true})
	return up, addr, i
}

// eachLive runs fn over both transports and both ways to number readers.
func eachLive(t *testing.T, fn func(t *testing.T, tcp bool, up *demo.Server, addr string, i *Interceptor)) {
	for _, apart := range []bool{false, true} {
		for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
			t.Run(fmt.Sprintf("%s,apart=%v", name, apart), func(t *testing.T) {
				t.Parallel()
				up, addr, i := liveShim(t, func(c *demo.Config) { c.LiveApart = apart })
				fn(t, tcp, up, addr, i)
			})
		}
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

// joined waits until so many of the shim's sessions are fed by a group.
func joined(t *testing.T, i *Interceptor, want int) {
	t.Helper()
	joinedBeside(t, i, want, nil)
}

// joinedBeside is joined beside sessions that were there before.
func joinedBeside(t *testing.T, i *Interceptor, want int, before []Status) {
	t.Helper()
	for range 1000 {
		n := 0
		for _, s := range i.Status() {
			if s.Path == "live" && !slices.ContainsFunc(before, func(b Status) bool { return b.ID == s.ID }) {
				n++
			}
		}
		if n == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not %d sessions are fed: %+v", want, i.Status())
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

// whole fails unless a viewer has every packet that direct has, from its own
// first one on, each once and as it should be.
func (v *viewer) whole(direct *viewer) {
	v.Helper()
	v.unbroken(start(v))
	first, at := start(v), start(v)
	theirs := direct.recorded()
	for m, list := range v.recorded() {
		found := false
		for i := range theirs[m] { // one place where five in a row are the same
			n := 0
			for n < 5 && n < len(list) && i+n < len(theirs[m]) && theirs[m][i+n].sum == list[n].sum {
				n++
			}
			if n == 5 {
				at[m], found = i, true
				break
			}
		}
		if !found {
			v.Errorf("media %d: the first packets are not the direct viewer's", m)
			return
		}
	}
	v.sameAs(direct, first, at, true, 5)
}

// Four viewers, one copy from the upstream; the lead leaves, then the next.
func TestLive(t *testing.T) {
	t.Parallel()
	eachLive(t, func(t *testing.T, tcp bool, up *demo.Server, addr string, i *Interceptor) {
		direct := newViewer(t, up.Addr(), livePath, true)
		direct.must("PLAY", direct.url)
		all := liveViewers(t, addr, 4, tcp)
		playingUpstream(t, up, 2)
		joined(t, i, 4)
		for len(all) > 1 {
			all[0].more(5)
			all[0].must("TEARDOWN", all[0].url)
			all[0].whole(direct)
			all = all[1:]
			playingUpstream(t, up, 2)
		}
		all[0].more(5)
		direct.more(5)
		all[0].whole(direct)
		all[0].must("TEARDOWN", all[0].url)
	})
}

// Viewers pause and resume: those that lead, those that follow.
func TestLivePause(t *testing.T) {
	t.Parallel()
	eachLive(t, func(t *testing.T, tcp bool, up *demo.Server, addr string, i *Interceptor) {
		all := liveViewers(t, addr, 3, tcp)
		joined(t, i, 3)
		for _, n := range []int{0, 2, 1, 1} {
			v := all[n]
			v.must("PAUSE", v.url)
			joined(t, i, 3) // idle sessions count
			playingUpstream(t, up, 1)
			before := v.recorded()
			all[(n+1)%3].more(3)
			for m, list := range v.recorded() {
				if len(list) > len(before[m])+2 {
					t.Errorf("viewer %d, media %d: %d packets while it was paused", n, m, len(list)-len(before[m]))
				}
			}
			was := v.recorded()
			a := v.must("PLAY", v.url)
			v.more(3)
			for m, list := range v.recorded() {
				last, next := was[m][len(was[m])-1], list[len(was[m])]
				if int16(next.seq-last.seq) <= 0 || int32(next.time-last.time) <= 0 || next.ssrc != last.ssrc {
					t.Errorf("viewer %d, media %d: %+v follows %+v", n, m, next, last)
				}
				if !strings.Contains(a.header.Get("Rtp-Info"), fmt.Sprintf("seq=%d", next.seq)) {
					t.Errorf("viewer %d, media %d: begins at %d, announced was %q", n, m, next.seq, a.header.Get("Rtp-Info"))
				}
			}
			playingUpstream(t, up, 1)
			joined(t, i, 3)
		}
		for n, v := range all {
			seen := 0
			for _, list := range v.recorded() {
				for i := 1; i < len(list); i++ {
					if list[i].seq != list[i-1].seq+1 {
						seen++
					}
				}
			}
			if seen > 2*2*2 { // a resume each, of two Medias
				t.Errorf("viewer %d: %d gaps", n, seen)
			}
		}
	})
}

// A viewer resumes, and packets come before the answer: it gets those, too.
func TestLiveResumesLate(t *testing.T) {
	t.Parallel()
	for _, tcp := range []bool{false, true} {
		t.Run(map[bool]string{true: "tcp", false: "udp"}[tcp], func(t *testing.T) {
			t.Parallel()
			var late atomic.Bool
			_, addr, i := liveShim(t, func(d *demo.Config) {
				d.Faults.Late = func(string) time.Duration {
					if late.Load() {
						return 300 * time.Millisecond
					}
					return 0
				}
			})
			v := liveViewers(t, addr, 2, tcp)[1]
			joined(t, i, 2)
			v.must("PAUSE", v.url)
			was := v.count()
			late.Store(true)
			a := v.must("PLAY", v.url)
			v.more(3)
			for m, list := range v.recorded() {
				if next := list[was[m]]; !strings.Contains(a.header.Get("Rtp-Info"), fmt.Sprintf("seq=%d", next.seq)) {
					t.Errorf("media %d: begins at %d, announced was %q", m, next.seq, a.header.Get("Rtp-Info"))
				}
			}
		})
	}
}

// A lead's connection is cut: others go on, and see no gap where the
// upstream's own session outlives its connection.
func TestLiveLeadCut(t *testing.T) {
	t.Parallel()
	eachLive(t, func(t *testing.T, tcp bool, up *demo.Server, addr string, i *Interceptor) {
		all := liveViewers(t, addr, 3, tcp)
		joined(t, i, 3)
		all[0].more(2)
		if err := all[0].conn.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = all[0].conn.Close()
		all[1].more(8)
		all[2].more(8)
		for _, v := range all[1:] {
			if !tcp {
				v.unbroken(start(v))
			}
			for m, list := range v.recorded() {
				for i := 1; i < len(list); i++ {
					if step := int16(list[i].seq - list[i-1].seq); step < 1 || step > 200 || int32(list[i].time-list[i-1].time) < -90000 || list[i].ssrc != list[0].ssrc {
						t.Fatalf("media %d: %+v follows %+v", m, list[i], list[i-1])
					}
				}
			}
		}
	})
}

// A lead that has lost its connection before anybody else was there is replaced
// before the upstream gives it up, soon as that is.
func TestLiveLeadSilent(t *testing.T) {
	t.Parallel()
	const timeout = 4 * time.Second
	_, addr, i := liveShim(t, func(c *demo.Config) { c.Timeout = timeout })
	first := liveViewers(t, addr, 2, false)
	first[0].must("TEARDOWN", first[0].url) // the other one has not been compared: it leads by itself
	_ = first[1].conn.Close()
	all := liveViewers(t, addr, 2, false)
	joined(t, i, 3)
	for began := time.Now(); time.Since(began) < timeout+2*time.Second; {
		for _, v := range all {
			v.must("OPTIONS", v.url)
			v.more(20)
		}
	}
	for _, v := range all {
		v.unbroken(start(v))
	}
}

// The last viewer over datagrams is cut off: its session is forgotten when the
// upstream has, whenever that is.
func TestLiveLastCut(t *testing.T) {
	t.Parallel()
	up, addr, i := liveShim(t, func(c *demo.Config) { c.Timeout = 2 * time.Second })
	all := liveViewers(t, addr, 2, false)
	joined(t, i, 2)
	all[1].must("TEARDOWN", all[1].url)
	_ = all[0].conn.Close()
	for n := 0; i.Sessions() > 0 || len(up.Sessions()) > 0; n++ {
		if n > 1000 {
			t.Fatalf("left: %d sessions, %+v", i.Sessions(), up.Sessions())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// All leave at once: nothing is left behind.
func TestLiveAllLeave(t *testing.T) {
	t.Parallel()
	eachLive(t, func(t *testing.T, tcp bool, up *demo.Server, addr string, i *Interceptor) {
		all := liveViewers(t, addr, 12, tcp)
		joined(t, i, 12)
		var work sync.WaitGroup
		began := time.Now()
		for _, v := range all {
			work.Go(func() { v.do("TEARDOWN", v.url) })
		}
		work.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		for n := 0; i.Sessions() > 0 || len(up.Sessions()) > 0; n++ {
			if n > 500 {
				t.Fatalf("left: %d sessions, %+v", i.Sessions(), up.Sessions())
			}
			time.Sleep(10 * time.Millisecond)
		}
		i.groups.mu.Lock()
		defer i.groups.mu.Unlock()
		if len(i.groups.list) != 0 {
			t.Errorf("%d groups left", len(i.groups.list))
		}
	})
}

// An upstream that will not pause, or that numbers and packs so that nothing
// matches, goes on relaying to each.
func TestLiveStaysRelayed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*demo.Config){
		"no PAUSE": func(c *demo.Config) {
			c.Faults.Refuse = func(method, _ string) int {
				if method == "PAUSE" {
					return 405
				}
				return 0
			}
		},
		"other packets": func(c *demo.Config) {
			c.Faults.Packet = func(session string, _ uint32, n uint64, p []byte) []byte {
				p[len(p)-1] ^= byte(crc32.ChecksumIEEE(fmt.Append(nil, session, n)))
				return p
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, addr, i := liveShim(t, change)
			all := liveViewers(t, addr, 3, false)
			for _, v := range all {
				v.more(20)
				v.unbroken(start(v))
			}
			playingUpstream(t, up, 3)
			for _, s := range i.Status() {
				if s.Path == "live" && name != "no PAUSE" {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// Where each viewer begins at another place in the past, none may stand in for
// another: everybody has what the upstream sends.
func TestLiveBehind(t *testing.T) {
	t.Parallel()
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, addr, i := liveShim(t, func(c *demo.Config) { c.LiveBehind = 1500 * time.Millisecond })
			first := liveViewers(t, addr, 1, tcp)[0]
			first.more(8) // there is a past
			second := liveViewers(t, addr, 1, tcp)[0]
			second.more(12)
			playingUpstream(t, up, 2)
			for _, st := range i.Status() {
				if st.Path != "relay" {
					t.Errorf("%+v", st)
				}
			}
			for _, v := range []*viewer{first, second} {
				v.unbroken(start(v))
			}
			i.groups.mu.Lock()
			defer i.groups.mu.Unlock()
			if len(i.groups.list) != 1 {
				t.Errorf("%d groups", len(i.groups.list))
			}
			for _, g := range i.groups.list {
				if !strings.Contains(g.refused, "past") {
					t.Errorf("refused: %q", g.refused)
				}
			}
		})
	}
}

// An upstream that has said it closes a connection, and listens there no more,
// goes on sending: the viewer stays in the group, can lead it, and is asked for
// nothing where nobody hears.
func TestLiveDeaf(t *testing.T) {
	t.Parallel()
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, addr, i := liveShim(t, func(c *demo.Config) {
				c.Faults.Answer = func(method string, response []byte) []byte {
					if method == "GET_PARAMETER" {
						return bytes.Replace(response, []byte("\r\n\r\n"), []byte("\r\nConnection: Close\r\n\r\n"), 1)
					}
					return response
				}
				c.Faults.Delay = func(method, _ string) time.Duration {
					if method == "SET_PARAMETER" {
						return time.Hour
					}
					return 0
				}
			})
			all := liveViewers(t, addr, 2, tcp)
			joined(t, i, 2)
			all[1].must("GET_PARAMETER", all[1].url)
			all[1].send("SET_PARAMETER", all[1].url)
			all[1].more(5)
			began := time.Now()
			all[0].must("TEARDOWN", all[0].url)
			if past := time.Since(began); past > time.Second {
				t.Errorf("the lead's goodbye took %v", past)
			}
			all[1].more(10)
			all[1].unbroken(start(all[1]))
			joined(t, i, 1)
		})
	}
}
