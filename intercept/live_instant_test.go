package intercept

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/pion/rtp"

	"rtspshim/demo"
	"rtspshim/engine"
)

// A viewer who joins begins with a key frame and loses nothing on its way to
// the present, whose packets it gets a little faster than they came at first.
func TestLiveInstant(t *testing.T) {
	t.Parallel()
	for _, apart := range []bool{false, true} {
		for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
			t.Run(fmt.Sprintf("%s,apart=%v", name, apart), func(t *testing.T) {
				t.Parallel()
				up := upstream(t, func(c *demo.Config) { c.LiveApart = apart })
				addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Live: true, Instant: true})
				direct := newViewer(t, up.Addr(), livePath, true)
				direct.must("PLAY", direct.url)
				liveViewers(t, addr, 1, tcp)[0].more(40)
				for n := range 3 {
					awaitAged(t, i, 300*time.Millisecond)
					v := newViewer(t, addr, livePath, tcp)
					asked := time.Now()
					info := v.must("PLAY", v.url).header.Get("Rtp-Info")
					v.more(30)
					joined(t, i, n+2)
					v.more(20)
					checkInstant(t, v, direct, asked, info)
				}
			})
		}
	}
}

// awaitAged waits until the only group's newest key frame is that old.
func awaitAged(t *testing.T, i *Interceptor, age time.Duration) {
	t.Helper()
	var last uint16
	var came time.Time
	for range 2000 {
		i.groups.mu.Lock()
		for _, g := range i.groups.list {
			if g.fan == nil {
				continue
			}
			if b := g.fan.Begin(); b != nil && b.Firsts[b.Key].Seq != last {
				last, came = b.Firsts[b.Key].Seq, time.Now()
			}
		}
		i.groups.mu.Unlock()
		if !came.IsZero() && time.Since(came) > age {
			return
		}
		time.Sleep(5 * time.Millisecond) // a group tells no event
	}
	t.Fatal("no key frame stays for so long")
}

func checkInstant(t *testing.T, v, direct *viewer, asked time.Time, info string) {
	t.Helper()
	v.whole(direct)
	got := v.recorded()
	for m, list := range got {
		want := fmt.Sprintf("seq=%d;rtptime=%d", list[0].seq, list[0].time)
		found := false
		_ = editRTPInfo(info, func(e *rtpInfo) {
			// Of the other Media the time is told as exactly as sound and picture go together.
			found = found || e.seq == list[0].seq && (m > 0 || e.rtptime == list[0].time)
		})
		if !found {
			t.Errorf("media %d begins with %s; told was %s", m, want, info)
		}
	}
	// The picture, as another implementation takes it apart.
	decoder := &rtph264.Decoder{}
	if err := decoder.Init(); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	head := v.head[0]
	v.mu.Unlock()
	for _, b := range head {
		var p rtp.Packet
		if err := p.Unmarshal(b); err != nil {
			t.Fatal(err)
		}
		unit, err := decoder.Decode(&p)
		if err != nil {
			continue // more packets are needed
		}
		if !h264.IsRandomAccess(unit) {
			t.Error("the first picture is no key frame")
		}
		break
	}
	// Behind at first, the viewer catches up.
	list := got[0]
	lag := func(p seenPacket) time.Duration { // behind the direct viewer
		for _, d := range slices.Backward(direct.recorded()[0]) { // it plays in a loop
			if by := p.at.Sub(d.at); d.sum == p.sum && by.Abs() < 5*time.Second {
				return by
			}
		}
		return 0 // it has come before it came to the direct one
	}
	first, last := lag(list[0]), lag(list[len(list)-1])
	if first < 250*time.Millisecond || last > first*9/10 {
		t.Errorf("%v behind at first, %v in the end", first, last)
	}
	if wait := list[0].at.Sub(asked); wait > instantWait {
		t.Errorf("the first packet came after %v", wait)
	}
}
