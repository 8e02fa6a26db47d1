package intercept

import (
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// A viewer's reports go on counting as the upstream's did, which may count more
// than the viewer was sent, when the packets are no more the upstream's own.
func TestCounts(t *testing.T) {
	w := &watch{}
	send := func(first uint16, n int) {
		for i := range n {
			p, err := (&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: first + uint16(i), SSRC: 7}, Payload: []byte("abc")}).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			w.burst([][]byte{p}, time.Now())
		}
	}
	report := func(packets, octets uint32) *rtcp.SenderReport {
		b, err := (&rtcp.SenderReport{SSRC: 7, NTPTime: 1 << 40, PacketCount: packets, OctetCount: octets}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		w.rtcp(b, time.Now())
		var sr rtcp.SenderReport
		if err := sr.Unmarshal(b); err != nil {
			t.Fatal(err)
		}
		return &sr
	}
	send(100, 5)
	report(1005, 3015)
	send(105, 2)
	if _, _, packets, octets, _ := w.state(); packets != 1007 || octets != 3021 {
		t.Errorf("%d packets, %d octets before the engine's", packets, octets)
	}
	w.shift.seq = 9
	send(107, 3)
	if sr := report(7, 21); sr.PacketCount != 1010 || sr.OctetCount != 3030 {
		t.Errorf("%d packets, %d octets after the engine's", sr.PacketCount, sr.OctetCount)
	}
}
