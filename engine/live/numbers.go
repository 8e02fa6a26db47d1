package live

import "encoding/binary"

// put writes an RTP packet's numbers.
func put(p []byte, seq uint16, time, ssrc uint32) {
	binary.BigEndian.PutUint16(p[2:], seq)
	binary.BigEndian.PutUint32(p[4:], time)
	binary.BigEndian.PutUint32(p[8:], ssrc)
}

const (
	packetSR   = 200 // RFC 3550 §12.1
	packetSDES = 202
	packetBye  = 203
)

// renumber edits a compound RTCP packet of the sender from, in place, so that it
// is about the same stream in other numbers: the SSRC wherever it is the
// sender's, the RTP time and, where given, the counts of its reports. The NTP
// times stay. It reports whether the compound holds a goodbye.
func renumber(p []byte, from uint32, m Mapping, packets, octets *uint32) (bye bool) {
	swap := func(at []byte) {
		if binary.BigEndian.Uint32(at) == from {
			binary.BigEndian.PutUint32(at, m.SSRC)
		}
	}
	for rest := p; len(rest) >= 8; {
		n := 4 * (int(binary.BigEndian.Uint16(rest[2:])) + 1)
		if n < 8 || n > len(rest) || rest[0]>>6 != 2 {
			break
		}
		switch part := rest[:n]; part[1] {
		case packetSR:
			if n < 28 {
				break
			}
			binary.BigEndian.PutUint32(part[16:], binary.BigEndian.Uint32(part[16:])+m.Time)
			if packets != nil {
				binary.BigEndian.PutUint32(part[20:], *packets)
				binary.BigEndian.PutUint32(part[24:], *octets)
			}
			swap(part[4:])
		case packetSDES:
			swap(part[4:]) // servers describe themselves alone
		case packetBye:
			bye = true
			for i := range int(part[0] & 31) {
				if at := 4 + 4*i; at+4 <= n {
					swap(part[at:])
				}
			}
		default:
			swap(part[4:])
		}
		rest = rest[n:]
	}
	return bye
}
