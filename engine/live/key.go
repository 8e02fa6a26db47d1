package live

import "encoding/binary"

// starts tell by codec whether an RTP payload shows the beginning of a key
// frame, or what comes right before one.
var starts = map[string]func(p []byte) bool{
	"H264": startsH264, "H265": startsH265, "AV1": startsAV1, "VP8": startsVP8, "VP9": startsVP9, "MP4V-ES": startsMPEG4,
}

func isKnown(codec string) bool { return starts[codec] != nil }

func isKey(codec string, packet []byte) bool {
	is := starts[codec]
	return is != nil && is(payload(packet))
}

// payload is what follows an RTP packet's header, RFC 3550 §5.1; nil when there
// is none.
func payload(p []byte) []byte {
	at := rtpHeader + 4*int(p[0]&15)
	if p[0]&16 != 0 && len(p) >= at+4 {
		at += 4 + 4*int(binary.BigEndian.Uint16(p[at+2:]))
	}
	if at >= len(p) {
		return nil
	}
	return p[at:]
}

// startsH264: IDR slices and sequence parameter sets, alone, in a STAP-A or at
// the start of an FU-A (RFC 6184 §5.2).
func startsH264(p []byte) bool {
	key := func(nal byte) bool { return nal&31 == 5 || nal&31 == 7 }
	switch {
	case len(p) < 4:
		return false
	case p[0]&31 == 24:
		for p = p[1:]; len(p) > 2; {
			if key(p[2]) {
				return true
			}
			p = p[min(len(p), 2+int(binary.BigEndian.Uint16(p))):]
		}
		return false
	case p[0]&31 == 28:
		return p[1]&0x80 != 0 && key(p[1])
	}
	return key(p[0])
}

// startsH265: IRAP pictures and parameter sets, likewise (RFC 7798 §4.4).
func startsH265(p []byte) bool {
	key := func(kind byte) bool { return kind >= 16 && kind <= 23 || kind >= 32 && kind <= 34 }
	switch kind := func() byte { return p[0] >> 1 & 63 }; {
	case len(p) < 5:
		return false
	case kind() == 48:
		return key(p[4] >> 1 & 63)
	case kind() == 49:
		return p[2]&0x80 != 0 && key(p[2]&63)
	default:
		return key(kind())
	}
}

// startsAV1: the N bit, a new coded video sequence (AV1 RTP payload format §4.4).
func startsAV1(p []byte) bool { return len(p) > 0 && p[0]&8 != 0 }

// startsVP8: the first packet of partition 0, whose frame header has P clear
// (RFC 7741 §4.2, §4.3).
func startsVP8(p []byte) bool {
	if len(p) < 1 || p[0]&0x10 == 0 || p[0]&7 != 0 {
		return false
	}
	at := 1
	if p[0]&0x80 != 0 && len(p) > 1 {
		x := p[1]
		at++
		if x&0x80 != 0 {
			at++
			if len(p) > 2 && p[2]&0x80 != 0 {
				at++ // a long picture ID
			}
		}
		if x&0x40 != 0 {
			at++
		}
		if x&0x30 != 0 {
			at++
		}
	}
	return len(p) > at && p[at]&1 == 0
}

// startsVP9: the beginning of a frame of the base layer (RFC 9628 §4.2) whose
// own header says that it is a key frame (VP9 bitstream specification §6.2): the
// descriptor's P bit is left clear by many.
func startsVP9(p []byte) bool {
	if len(p) < 1 || p[0]&0x08 == 0 { // B
		return false
	}
	at := 1
	next := func() (b byte) {
		if at < len(p) {
			b = p[at]
		}
		at++
		return b
	}
	if p[0]&0x80 != 0 && next()&0x80 != 0 { // I, M: a long picture ID
		at++
	}
	if p[0]&0x20 != 0 { // L
		if next()&0x0e != 0 { // SID
			return false
		}
		if p[0]&0x10 == 0 { // not F: TL0PICIDX
			at++
		}
	}
	for n := 0; p[0]&0x50 == 0x50 && n < 3 && next()&1 != 0; n++ { // F, P: P_DIFF, N
	}
	if p[0]&0x02 != 0 { // V: the scalability structure
		s := next()
		if s&0x10 != 0 { // Y
			at += 4 * (int(s>>5) + 1)
		}
		if s&0x08 != 0 { // G
			for n := next(); n > 0; n-- {
				at += int(next() >> 2 & 3) // R
			}
		}
	}
	h := next()
	if h>>4&3 == 3 { // profile 3, and a reserved bit
		h <<= 1
	}
	return at <= len(p) && p[at-1]>>6 == 2 && h>>2&3 == 0 // frame_marker; show_existing_frame, frame_type
}

// startsMPEG4: a visual object sequence, or an I-VOP (RFC 6416 §5.2, ISO/IEC
// 14496-2 §6.2).
func startsMPEG4(p []byte) bool {
	if len(p) < 5 || p[0] != 0 || p[1] != 0 || p[2] != 1 {
		return false
	}
	return p[3] == 0xb0 || p[3] == 0xb3 || p[3] == 0xb6 && p[4]>>6 == 0
}
