package intercept

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtcp"

	"rtspshim/demo"
	"rtspshim/engine"
	"rtspshim/engine/hint"
	"rtspshim/internal/testbed"
)

const hinted = "../testdata/hinted"

// upstream is the demo server, which shows what it sends.
func upstream(t *testing.T, change func(*demo.Config)) *demo.Server {
	t.Helper()
	cfg := demo.Config{Movies: os.DirFS(hinted)}
	if change != nil {
		change(&cfg)
	}
	s, err := demo.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("upstream: %v", err)
		}
	})
	return s
}

// TestMain lets many tests wait at once: they sit out real time.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "24")
	os.Exit(m.Run())
}

func each(t *testing.T, fn func(t *testing.T, tcp bool)) {
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) { t.Parallel(); fn(t, tcp) })
	}
}

// silenced waits until the upstream's session is paused, which is when the
// engine has taken over, and returns how many packets it has sent.
func silenced(t *testing.T, up *demo.Server) uint64 {
	t.Helper()
	for range 1000 {
		if s := up.Sessions(); len(s) == 1 && s[0].State == "paused" {
			return s[0].Packets
		}
		time.Sleep(10 * time.Millisecond) // the demo server tells no event
	}
	t.Fatal("the upstream was not paused")
	return 0
}

// From start to takeover and on, the viewer gets one unbroken stream, the same
// as directly, and the upstream sends nothing any more.
func TestTakeover(t *testing.T) {
	t.Parallel()
	movies, err := filepath.Glob(hinted + "/*.m??")
	if err != nil || len(movies) == 0 {
		t.Fatalf("no movies: %v", err)
	}
	for _, movie := range movies {
		path := "/" + filepath.Base(movie)
		if strings.HasSuffix(path, ".md") {
			continue
		}
		t.Run(path[1:], func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, tcp bool) {
				up := upstream(t, nil)
				addr, _ := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
				v := newViewer(t, addr, path, tcp)
				v.must("PLAY", v.url, "Range: npt=0-")
				sent := silenced(t, up)
				v.more(15)
				if now := up.Sessions()[0].Packets; now != sent {
					t.Errorf("upstream went on: %d packets, then %d", sent, now)
				}
				direct := newViewer(t, up.Addr(), path, true)
				direct.must("PLAY", direct.url)
				n := v.count()
				direct.await("as many packets", func(got [][]seenPacket) bool {
					for m := range got {
						if len(got[m]) < n[m] {
							return false
						}
					}
					return true
				})
				zero := make([]int, len(n))
				v.unbroken(zero)
				v.sameAs(direct, zero, zero, true, 15)
				v.must("TEARDOWN", v.url)
			})
		})
	}
}

func ranged(at float64) string { return fmt.Sprintf("Range: npt=%.3f-", at) }

// Pause, resume and seek, taken over all the while.
func TestPauseAndSeek(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, tcp bool) {
		up := upstream(t, nil)
		pauseAndSeek(t, up.Addr(), hinted, "/h264-bframes-aac.mp4", tcp)
	})
}

// The same with Darwin itself, and its movies as Apple's tools hinted them.
func TestDarwin(t *testing.T) {
	t.Parallel()
	movies := []string{testbed.Movie(t, "h264-bframes-aac.mp4"), testbed.Movie(t, "mpeg4-aac.mp4")}
	apple, _ := filepath.Glob(filepath.Join(testbed.Root(t), "..", "shared", "movies", "sample*"))
	if len(apple) == 0 {
		t.Log("no movies by Apple's tools beside the repository: only our own are played")
	}
	movies = append(movies, apple...)
	up := testbed.StartDSS(t, testbed.DSSOptions{Movies: movies})
	for _, movie := range movies {
		t.Run(filepath.Base(movie), func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, tcp bool) {
				pauseAndSeek(t, up.Addr, up.MoviesFolder, "/"+filepath.Base(movie), tcp)
			})
		})
	}
}

func pauseAndSeek(t *testing.T, upstream, dir, path string, tcp bool) {
	addr, i := shim(t, "rtsp://"+upstream, engine.Config{}, Config{Movies: Movies{Dir: dir}})
	v := newViewer(t, addr, path, tcp)
	v.must("PLAY", v.url, "Range: npt=0-")
	takenOver(t, i)
	v.more(10)
	zero := make([]int, len(v.controls))
	direct := newViewer(t, upstream, path, true)
	direct.must("PLAY", direct.url, "Range: npt=0-")
	direct.more(10)
	v.sameAs(direct, zero, zero, true, 5)

	v.must("PAUSE", v.url)
	n := v.count()
	time.Sleep(300 * time.Millisecond) // nothing may come
	if now := v.count(); !tcp && fmt.Sprint(now) != fmt.Sprint(n) {
		t.Errorf("paused, but %v packets became %v", n, now)
	}
	n = v.count()
	a := v.must("PLAY", v.url)
	v.more(10)
	v.unbroken(zero)
	v.firstIs(a, n, 0)
	takenOver(t, i)

	n = v.count()
	a = v.must("PLAY", v.url, ranged(5))
	v.more(10)
	at := v.firstIs(a, n, 100)
	takenOver(t, i)
	direct = newViewer(t, upstream, path, true)
	direct.must("PLAY", direct.url, ranged(5))
	direct.more(10)
	v.sameAs(direct, at, zero, true, 8)
	v.unbroken(zero)
	v.must("TEARDOWN", v.url)
}

// A client that goes before its request is answered, as many do behind TEARDOWN,
// leaves nothing half done.
func TestGoneBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	for _, request := range []string{"TEARDOWN", "PLAY", "PAUSE"} {
		t.Run(request, func(t *testing.T) {
			t.Parallel()
			var slow atomic.Bool
			up := upstream(t, func(d *demo.Config) {
				d.Faults.Delay = func(string, string) time.Duration {
					if slow.Load() {
						return 200 * time.Millisecond
					}
					return 0
				}
			})
			addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
			v := newViewer(t, addr, "/h264-aac.mp4", false)
			v.must("PLAY", v.url)
			takenOver(t, i)
			slow.Store(true)
			if _, err := fmt.Fprintf(v.conn, "%s %s RTSP/1.0\r\nCSeq: 99\r\nSession: %s\r\nRange: npt=3-\r\n\r\n", request, v.url, v.session); err != nil {
				t.Fatal(err)
			}
			_ = v.conn.Close()
			for tries := 0; playsOn(i); tries++ {
				if tries == 500 {
					t.Fatal("the engine goes on")
				}
				time.Sleep(10 * time.Millisecond) // the interceptor tells no event
			}
			slow.Store(false)
			next := newViewer(t, addr, "/h264-aac.mp4", false)
			next.must("PLAY", next.url)
			next.more(20)
			next.unbroken([]int{0, 0})
		})
	}
}

// playsOn says whether the engine sends for the first session.
func playsOn(i *Interceptor) bool {
	for _, s := range i.all() {
		return s.now() == playing
	}
	return false
}

// Packets that overtake the answer to their PLAY are not lost to a viewer who is
// relayed from there on: the answer names packets that the movie has not, or none.
func TestPacketsBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	for name, bend := range map[string]func(string) string{
		"another timestamp": func(info string) string { return rtptime.ReplaceAllString(info, "$1") },
		"nothing named":     func(string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, tcp bool) {
				var bent atomic.Bool
				up := upstream(t, func(d *demo.Config) {
					d.Faults.Late = func(string) time.Duration {
						if bent.Load() {
							return 300 * time.Millisecond
						}
						return 0
					}
					d.Faults.Answer = func(method string, b []byte) []byte {
						if method != "PLAY" || !bent.Load() {
							return b
						}
						return infoLine.ReplaceAllFunc(b, func(line []byte) []byte { return []byte(bend(string(line))) })
					}
				})
				addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
				v := newViewer(t, addr, "/h264-bframes-aac.mp4", tcp)
				v.must("PLAY", v.url, "Range: npt=0-")
				takenOver(t, i)
				v.more(5)
				v.must("PAUSE", v.url)
				n := v.count()
				bent.Store(true)
				v.must("PLAY", v.url, ranged(5))
				if s := i.Status()[0]; s.Path != "relay" {
					t.Errorf("%+v", s)
				}
				bent.Store(false)
				v.more(10)
				v.unbroken(make([]int, len(n)))
				direct := newViewer(t, up.Addr(), "/h264-bframes-aac.mp4", true)
				direct.must("PLAY", direct.url, ranged(5))
				direct.more(10)
				v.sameAs(direct, n, make([]int, len(n)), true, 10)
			})
		})
	}
}

var (
	infoLine = regexp.MustCompile(`RTP-Info: [^\r]*\r\n`)
	rtptime  = regexp.MustCompile(`(rtptime=\d*)\d`)
)

// takenOver waits until the engine sends for the only session.
func takenOver(t *testing.T, i *Interceptor) {
	t.Helper()
	for range 2000 {
		if s := i.Status(); len(s) == 1 && s[0].Path == "movie" {
			return
		}
		time.Sleep(10 * time.Millisecond) // the interceptor tells no event
	}
	t.Fatalf("not taken over: %+v", i.Status())
}

// firstIs fails unless the answer's RTP-Info names, for each Media, a packet
// that came as the n[m]-th or at most late packets behind (of what played
// before), and returns where it stands.
func (v *viewer) firstIs(a answer, n []int, late int) []int {
	v.Helper()
	at := make([]int, len(n))
	got := v.recorded()
	for m, control := range v.controls {
		at[m] = -1
		editRTPInfo(a.header.Get("Rtp-Info"), func(e *rtpInfo) {
			if lastPart(e.url) != lastPart(control) {
				return
			}
			for i := n[m]; i < len(got[m]); i++ {
				if p := got[m][i]; p.seq == e.seq && p.time == e.rtptime {
					at[m] = i
				}
			}
		})
		if at[m] < 0 || at[m] > n[m]+late {
			v.Fatalf("media %d: RTP-Info %q names no first packet: it had %d, next is %+v", m, a.header.Get("Rtp-Info"), n[m], got[m][n[m]])
		}
	}
	return at
}

// Where the upstream sends anything else than the movie, its own packets reach
// the viewer.
func TestNeverWrongly(t *testing.T) {
	t.Parallel()
	const path = "/h264-aac.mp4"
	for name, change := range map[string]func(*demo.Config, *Config){
		"an octet flipped": func(d *demo.Config, _ *Config) { d.Faults.Packet = demo.FlipAfter(3) },
		"another file": func(_ *demo.Config, c *Config) {
			c.Movies.Map = []MovieRule{{"*.mp4", hinted + "/h264-bframes-aac.mp4"}}
		},
		"no movie at all":   func(_ *demo.Config, c *Config) { c.Movies.Map = []MovieRule{{"*.mp4", hinted + "/README.md"}} },
		"all Medias differ": func(d *demo.Config, _ *Config) { d.Faults.Packet = demo.FlipAfter(0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, tcp bool) {
				cfg := Config{Movies: Movies{Dir: hinted}}
				up := upstream(t, func(d *demo.Config) { change(d, &cfg) })
				addr, _ := shim(t, "rtsp://"+up.Addr(), engine.Config{}, cfg)
				v := newViewer(t, addr, path, tcp)
				v.must("PLAY", v.url, "Range: npt=0-")
				v.more(20)
				if s := up.Sessions()[0]; s.State != "playing" || s.Requests["PAUSE"] > 0 {
					t.Errorf("upstream is %s after %v", s.State, s.Requests)
				}
				v.unbroken([]int{0, 0})
				v.must("TEARDOWN", v.url)
			})
		})
	}
}

// An upstream that will not pause goes on being relayed: it alone sends.
func TestPauseRefused(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, tcp bool) {
		up := upstream(t, func(d *demo.Config) {
			d.Faults.Refuse = func(method, _ string) int {
				if method == "PAUSE" {
					return 501
				}
				return 0
			}
		})
		addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
		v := newViewer(t, addr, "/h264-aac.mp4", tcp)
		v.must("PLAY", v.url)
		v.await("a refusal", func([][]seenPacket) bool { return strings.Contains(i.Status()[0].Why, "501") })
		v.more(40)
		v.unbroken([]int{0, 0})
		if s := i.Status()[0]; s.Path != "relay" {
			t.Errorf("%+v", s)
		}
		if a := v.do("PAUSE", v.url); a.status != 501 {
			t.Errorf("PAUSE answered %d", a.status)
		}
	})
}

// An upstream that is too slow to answer the PAUSE goes on, and is asked again
// later: once it has less to do, its viewers are taken over after all.
func TestPauseTooSlow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, tcp bool) {
		var pauses atomic.Int32
		up := upstream(t, func(d *demo.Config) {
			d.TCPLead = -1
			d.Faults.Delay = func(method, _ string) time.Duration {
				if method == "PAUSE" && pauses.Add(1) == 1 {
					return turnTimeout + time.Second
				}
				return 0
			}
		})
		addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
		v := newViewer(t, addr, "/h264-bframes-aac.mp4", tcp)
		v.must("PLAY", v.url)
		v.await("a reason", func([][]seenPacket) bool { return strings.Contains(i.Status()[0].Why, "again") })
		takenOver(t, i)
		v.more(5)
		v.unbroken([]int{0, 0})
		if n := pauses.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

// An upstream that wants Digest credentials for a PAUSE is asked once.
func TestPauseNeedsCredentials(t *testing.T) {
	t.Parallel()
	var pauses atomic.Int32
	up := upstream(t, func(d *demo.Config) {
		d.Faults.Refuse = func(method, _ string) int {
			if method != "PAUSE" {
				return 0
			}
			pauses.Add(1)
			return 401
		}
	})
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
	for range 2 {
		v := newViewer(t, addr, "/h264-aac.mp4", false)
		v.must("PLAY", v.url, `Authorization: Digest username="u", uri="rtsp://x/", response="0"`)
		v.await("a reason", func([][]seenPacket) bool { s := i.Status(); return len(s) == 1 && s[0].Why != "" })
		v.more(20)
		v.unbroken([]int{0, 0})
		if s := i.Status()[0]; s.Path != "relay" {
			t.Errorf("%+v", s)
		}
		v.must("TEARDOWN", v.url)
	}
	if n := pauses.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// The movie's end is the upstream's: silence, or a goodbye.
func TestEndOfMovie(t *testing.T) {
	t.Parallel()
	for name, bye := range map[string]bool{"silence": false, "goodbye": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := upstream(t, func(d *demo.Config) { d.ByeAtEnd = bye })
			addr, _ := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
			v := newViewer(t, addr, "/aac.mp4", false)
			direct := newViewer(t, up.Addr(), "/aac.mp4", true)
			direct.must("PLAY", direct.url, "Range: npt=7-")
			v.must("PLAY", v.url, "Range: npt=7-")
			v.await("the end", func(got [][]seenPacket) bool {
				want := direct.recorded()[0]
				last := len(got[0]) - 1
				return len(want) > 0 && last >= 0 && got[0][last].sum == want[len(want)-1].sum && len(got[0]) == len(want)
			})
			v.unbroken([]int{0})
			said := func() (yes bool) {
				v.mu.Lock()
				defer v.mu.Unlock()
				for _, p := range v.rtcp[0] {
					for len(p) >= 4 {
						yes = yes || p[1] == packetBye
						p = p[min(len(p), 4*(int(p[2])<<8+int(p[3])+1)):]
					}
				}
				return yes
			}
			if bye {
				v.await("a goodbye", func([][]seenPacket) bool { v.mu.Unlock(); defer v.mu.Lock(); return said() })
			} else if said() {
				t.Error("goodbye said")
			}
			v.must("PAUSE", v.url) // after the end, as after Darwin's
		})
	}
}

// A goodbye of somebody else, who was sent to the relay's port before, does not
// end the movie.
func TestForeignGoodbye(t *testing.T) {
	t.Parallel()
	up := upstream(t, nil)
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
	v := newViewer(t, addr, "/h264-aac.mp4", false)
	v.must("PLAY", v.url)
	takenOver(t, i)
	bye, err := (&rtcp.Goodbye{Sources: []uint32{0xfeedf00d}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", i.all()[0].media()[0].relay.UpstreamPort()+1))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(bye); err != nil {
		t.Fatal(err)
	}
	v.await("the other's goodbye", func([][]seenPacket) bool {
		return slices.ContainsFunc(v.rtcp[0], func(p []byte) bool { return bytes.Equal(p, bye) })
	})
	v.more(40)
	v.unbroken([]int{0, 1})
}

// One track of two, set up alone, is taken over alone.
func TestOneTrack(t *testing.T) {
	t.Parallel()
	up := upstream(t, nil)
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
	v := newViewerOf(t, addr, "/h264-aac.mp4", false, 1)
	v.must("PLAY", v.url)
	takenOver(t, i)
	v.more(20)
	v.unbroken([]int{0})
}

// When one of two tracks is torn down the upstream sends the other again,
// without a break; also one that leaves a sequence number out there, as Darwin
// does, and whose first packets overtake the answer that says so.
func TestTearDownOneTrack(t *testing.T) {
	t.Parallel()
	for name, skips := range map[string]bool{"plain": false, "a number left out": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var bent atomic.Bool
			up := upstream(t, func(d *demo.Config) {
				d.Faults.Late = func(string) time.Duration {
					if bent.Load() {
						return 200 * time.Millisecond
					}
					return 0
				}
				d.Faults.Packet = func(_ string, _ uint32, _ uint64, p []byte) []byte {
					if bent.Load() {
						binary.BigEndian.PutUint16(p[2:], binary.BigEndian.Uint16(p[2:])+1)
					}
					return p
				}
				d.Faults.Answer = func(method string, b []byte) []byte {
					if method != "PLAY" || !bent.Load() {
						return b
					}
					return infoSeq.ReplaceAllFunc(b, func(v []byte) []byte {
						n, err := strconv.Atoi(string(v[len(";seq="):]))
						if err != nil {
							t.Error(err)
						}
						return fmt.Appendf(nil, ";seq=%d", uint16(n+1))
					})
				}
			})
			addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
			v := newViewer(t, addr, "/h264-aac.mp4", false)
			v.must("PLAY", v.url)
			takenOver(t, i)
			v.more(5)
			bent.Store(skips)
			v.must("TEARDOWN", v.controls[1])
			n := v.count()[0]
			v.await("more of the first track", func(got [][]seenPacket) bool { return len(got[0]) > n+30 })
			got := v.recorded()[0]
			for i := 1; i < len(got); i++ {
				if got[i].seq != got[i-1].seq+1 {
					t.Fatalf("packet %d of %d (%d before the TEARDOWN) has sequence number %d behind %d", i, len(got), n, got[i].seq, got[i-1].seq)
				}
			}
			if s := i.Status(); len(s) != 1 || s[0].Path != "relay" {
				t.Errorf("sessions %+v", s)
			}
		})
	}
}

var infoSeq = regexp.MustCompile(`;seq=\d+`)

// A session is controlled from another connection, and outlives its own.
func TestOtherConnection(t *testing.T) {
	t.Parallel()
	up := upstream(t, nil)
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
	v := newViewer(t, addr, "/h264-aac.mp4", false)
	v.must("PLAY", v.url)
	sent := silenced(t, up)
	_ = v.conn.Close()
	v.more(10)
	other := dialViewer(t, addr, "/h264-aac.mp4", false)
	other.session = v.session
	other.must("PAUSE", v.url)
	n := v.count()
	other.must("PLAY", v.url)
	v.more(10)
	v.unbroken([]int{0, 0})
	if now := silenced(t, up); now > sent+200 {
		t.Errorf("upstream sent %d packets, then %d", sent, now)
	}
	if now := v.count(); now[0] <= n[0] {
		t.Errorf("nothing came after PLAY: %v", now)
	}
	other.must("TEARDOWN", v.url)
	if n := i.Sessions(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

// When the upstream dies its viewers play on to the end, or do not, as
// configured.
func TestUpstreamDies(t *testing.T) {
	t.Parallel()
	for name, closes := range map[string]bool{"play": false, "close": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, tcp bool) {
				up, err := demo.Start(demo.Config{Movies: os.DirFS(hinted), TCPLead: -1, Faults: demo.Faults{NoGoodbye: true}})
				if err != nil {
					t.Fatal(err)
				}
				addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}, CloseOnLoss: closes})
				v := newViewer(t, addr, "/aac.mp4", tcp)
				v.must("PLAY", v.url, ranged(4))
				takenOver(t, i)
				silenced(t, up)
				if err := up.Close(); err != nil {
					t.Fatal(err)
				}
				if closes {
					v.awaitEnd()
					return
				}
				v.more(10)
				if a := v.do("OPTIONS", v.url); a.status != 200 {
					t.Errorf("OPTIONS answered %d", a.status)
				}
				if a := v.do("PLAY", v.url); a.status != 503 {
					t.Errorf("PLAY answered %d", a.status)
				}
				v.awaitEnd() // the movie's
				v.unbroken([]int{0})
				if n := v.count()[0]; n < 30 {
					t.Errorf("only %d packets to the end", n)
				}
			})
		})
	}
}

// A movie replaced while it plays goes on as it was; what is on disk now is
// proved anew.
func TestReplacedWhilePlaying(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(name string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(hinted, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "new"), b, 0o644)
		}
		if err == nil {
			err = os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "h264-aac.mp4"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("h264-aac.mp4")
	up := upstream(t, nil)
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: dir}})
	v := newViewer(t, addr, "/h264-aac.mp4", false)
	v.must("PLAY", v.url)
	takenOver(t, i)
	put("h264-bframes-aac.mp4")
	v.more(20)
	direct := newViewer(t, up.Addr(), "/h264-aac.mp4", true)
	direct.must("PLAY", direct.url)
	direct.more(20)
	v.sameAs(direct, []int{0, 0}, []int{0, 0}, true, 20)
	v.unbroken([]int{0, 0})
	v.must("TEARDOWN", v.url)
	v = newViewer(t, addr, "/h264-aac.mp4", false)
	v.must("PLAY", v.url)
	v.more(20)
	if s := i.Status(); len(s) != 1 || s[0].Path != "relay" || !strings.Contains(s[0].Why, "is not the movie's") {
		t.Errorf("sessions %+v", s)
	}
	v.sameAs(direct, []int{0, 0}, []int{0, 0}, true, 20)
}

// A movie that there is no room for stays relayed, or is refused once it is
// known what would be sent.
func TestOverload(t *testing.T) {
	t.Parallel()
	f, err := hint.Open(hinted + "/h264-aac.mp4")
	if err != nil {
		t.Fatal(err)
	}
	var ids []uint32
	for _, track := range f.HintTracks() {
		ids = append(ids, track.ID)
	}
	rate := 8 * f.Rate(ids, time.Second) // of which there is room for one
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, refuse := range map[string]bool{"relay": false, "refuse": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := upstream(t, nil)
			addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{Bandwidth: rate * 3 / 2}, Config{Movies: Movies{Dir: hinted}, Refuse: refuse})
			first := newViewer(t, addr, "/h264-aac.mp4", false)
			first.must("PLAY", first.url)
			takenOver(t, i)
			second := newViewer(t, addr, "/h264-aac.mp4", false)
			a := second.do("PLAY", second.url)
			if refuse {
				if a.status != 453 {
					t.Errorf("PLAY answered %d", a.status)
				}
				return
			}
			second.more(15)
			relayed := 0
			for _, s := range i.Status() {
				if s.Path == "relay" && strings.Contains(s.Why, engine.ErrAdmission.Error()) {
					relayed++
				}
			}
			if a.status != 200 || relayed != 1 {
				t.Errorf("PLAY answered %d; %+v", a.status, i.Status())
			}
			second.unbroken([]int{0, 0})
		})
	}
}
