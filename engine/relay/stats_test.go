package relay

import (
	"math/rand/v2"
	"testing"

	"github.com/pion/rtcp"
)

// Compound packets made by pion, not by us.
func TestHasBye(t *testing.T) {
	sr := &rtcp.SenderReport{SSRC: 1, Reports: []rtcp.ReceptionReport{{SSRC: 2}}}
	rr := &rtcp.ReceiverReport{SSRC: 1}
	names := rtcp.NewCNAMESourceDescription(1, "QTSS1146")
	bye := &rtcp.Goodbye{Sources: []uint32{1}, Reason: "end"}
	for _, test := range []struct {
		name    string
		packets []rtcp.Packet
		want    bool
	}{
		{"RR", []rtcp.Packet{rr}, false},
		{"SR SDES", []rtcp.Packet{sr, names}, false},
		{"SR SDES BYE", []rtcp.Packet{sr, names, bye}, true},
		{"RR BYE", []rtcp.Packet{rr, bye}, true},
		{"BYE", []rtcp.Packet{bye}, true},
		{"BYE RR", []rtcp.Packet{bye, rr}, true},
	} {
		raw, err := rtcp.Marshal(test.packets)
		if err != nil {
			t.Fatal(err)
		}
		if got := hasBye(raw); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		for cut := 1; cut < 4; cut++ { // not whole: not to be believed
			if hasBye(raw[:len(raw)-cut]) || hasBye(append(raw[:len(raw):len(raw)], make([]byte, cut)...)) {
				t.Errorf("%s: BYE in a damaged packet", test.name)
			}
		}
	}
	// Encrypted RTCP keeps its first eight bytes (RFC 3711 §3.4); what follows
	// looks like a BYE once in millions.
	r := rand.New(rand.NewPCG(9, 10))
	for range 100_000 {
		p := make([]byte, 28+4*r.IntN(20)+14)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		copy(p, []byte{0x80, packetSR, 0, 6})
		if hasBye(p) {
			t.Fatalf("BYE seen in noise: %x", p)
		}
	}
}
