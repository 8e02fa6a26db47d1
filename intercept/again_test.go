package intercept

import (
	"fmt"
	"net"
	"testing"

	"rtspshim/engine"
)

// A client that sets a track up again while it plays is answered as the upstream
// answers, and plays on without a break. Paused, it may have its packets sent
// elsewhere: what follows comes there, from where it stopped.
func TestSetUpAgain(t *testing.T) {
	t.Parallel()
	up := upstream(t, nil)
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
	direct := newViewer(t, up.Addr(), "/h264-aac.mp4", false)
	direct.must("PLAY", direct.url)
	direct.more(5)
	rtp, rtcp := udpPair(t)
	transport := fmt.Sprintf("Transport: RTP/AVP;unicast;client_port=%d-%d", rtp.LocalAddr().(*net.UDPAddr).Port, rtcp.LocalAddr().(*net.UDPAddr).Port)
	want := direct.do("SETUP", direct.controls[0], transport).status
	direct.must("TEARDOWN", direct.url)

	v := newViewer(t, addr, "/h264-aac.mp4", false)
	v.must("PLAY", v.url)
	takenOver(t, i)
	v.more(10)
	if got := v.do("SETUP", v.controls[0], transport).status; got != want {
		t.Errorf("SETUP while playing is answered %d, by the upstream %d", got, want)
	}
	v.more(20)
	v.unbroken([]int{0, 0})
	if s := i.Status(); len(s) != 1 || s[0].Path != "relay" || s[0].Why == "" {
		t.Errorf("sessions %+v", s)
	}

	v.must("PAUSE", v.url)
	v.must("SETUP", v.controls[0], transport)
	n := v.count()
	v.udp = append(v.udp, rtp, rtcp) // closed with the viewer
	elsewhere := make(chan []byte, 1000)
	v.work.Go(func() {
		for b := make([]byte, 2048); ; {
			k, err := rtp.Read(b)
			if err != nil {
				return
			}
			elsewhere <- b[:k:k]
			b = make([]byte, 2048)
		}
	})
	a := v.must("PLAY", v.url)
	first := <-elsewhere
	editRTPInfo(a.header.Get("Rtp-Info"), func(e *rtpInfo) {
		if lastPart(e.url) == lastPart(v.controls[0]) && e.seq != uint16(first[2])<<8|uint16(first[3]) {
			t.Errorf("RTP-Info says %d, the first packet is %d", e.seq, uint16(first[2])<<8|uint16(first[3]))
		}
	})
	v.await("more of the second track", func(got [][]seenPacket) bool { return len(got[1]) > n[1]+10 })
	for last := first; len(elsewhere) > 0; {
		p := <-elsewhere
		if uint16(p[2])<<8|uint16(p[3]) != uint16(last[2])<<8|uint16(last[3])+1 {
			t.Errorf("packet %x behind %x", p[:12], last[:12])
		}
		last = p
	}
	if now := v.count(); now[0] != n[0] {
		t.Errorf("%d packets more where the track was before", now[0]-n[0])
	}
}
