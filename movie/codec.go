package movie

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Eyevinn/mp4ff/hevc"
	"github.com/Eyevinn/mp4ff/mp4"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpfragmented"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph265"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpmpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/pion/rtp"
)

// errUnhintable is wrapped when a track's format has no packetiser here.
var errUnhintable = errors.New("no packetiser for it")

// unit is a media sample to be sent.
type unit struct {
	sample int // counted from 0
	data   []byte
}

// codec makes packets of media samples.
type codec struct {
	format format.Format
	clock  int    // RTP timestamp units a second
	config []byte // of the decoder, as the movie has it; nil when the format says it
	batch  bool
	// packets returns the packets of the units, each as the constructors of its
	// payload (ISO/IEC 14496-12, 9.1.3.2) in the order of the payload.
	packets func(u []unit) ([]constructed, error)
	fits    func(u []unit, more unit) bool // one packet, with batch
}

// constructed is one packet.
type constructed struct {
	marker bool
	size   int // of the payload
	cons   []byte
	count  int
}

// immediate adds bytes of no sample.
func (c *constructed) immediate(b []byte) {
	c.size += len(b)
	for len(b) > 0 {
		n := min(len(b), 14)
		c.cons = append(c.cons, 1, byte(n))
		c.cons = append(append(c.cons, b[:n]...), make([]byte, 14-n)...)
		c.count++
		b = b[n:]
	}
}

// part adds bytes of a sample, which payload must be.
func (c *constructed) part(u unit, off int, payload []byte) error {
	if off < 0 || off+len(payload) > len(u.data) || !bytes.Equal(u.data[off:off+len(payload)], payload) {
		return fmt.Errorf("sample %d: the packetiser's bytes are not the sample's at %d", u.sample+1, off)
	}
	c.size += len(payload)
	c.cons = append(c.cons, 2, 0)
	c.cons = binary.BigEndian.AppendUint16(c.cons, uint16(len(payload)))
	c.cons = binary.BigEndian.AppendUint32(c.cons, uint32(u.sample+1))
	c.cons = binary.BigEndian.AppendUint32(c.cons, uint32(off))
	c.cons = append(c.cons, 0, 1, 0, 1)
	c.count++
	return nil
}

// newCodec reads the sample description and returns the codec for it. Payloads
// have at most size bytes; rate is the media time scale.
func newCodec(entry rawBox, payloadType uint8, size, rate int) (*codec, error) {
	switch entry.kind {
	case "avc1", "avc3":
		c, err := decode[*mp4.AvcCBox](configBox(entry, 78, "avcC"))
		if err != nil || c == nil {
			return nil, errors.Join(err, fmt.Errorf("%s without avcC: %w", entry.kind, errUnhintable))
		}
		return newH264(c, configBox(entry, 78, "avcC").body, payloadType, size)
	case "hvc1", "hev1":
		c, err := decode[*mp4.HvcCBox](configBox(entry, 78, "hvcC"))
		if err != nil || c == nil {
			return nil, errors.Join(err, fmt.Errorf("%s without hvcC: %w", entry.kind, errUnhintable))
		}
		return newH265(c, payloadType, size)
	case "mp4v":
		c, err := decode[*mp4.EsdsBox](configBox(entry, 78, "esds"))
		if err != nil || c == nil {
			return nil, errors.Join(err, fmt.Errorf("%s without esds: %w", entry.kind, errUnhintable))
		}
		return newMPEG4(c, payloadType, size)
	case "mp4a":
		esds := configBox(entry, 28, "esds")
		if esds == nil {
			esds = configBox(entry, 28+16, "wave", "esds") // QTFF, sound of version 1
		}
		c, err := decode[*mp4.EsdsBox](esds)
		if err != nil || c == nil {
			return nil, errors.Join(err, fmt.Errorf("%s without esds: %w", entry.kind, errUnhintable))
		}
		return newAAC(c, payloadType, size)
	}
	return nil, fmt.Errorf("%q: %w", entry.kind, errUnhintable)
}

// configBox finds a box in a sample entry, past its fixed part.
func configBox(entry rawBox, fixed int, path ...string) *rawBox {
	if len(entry.body) < fixed {
		return nil
	}
	return findBox(entry.body[fixed:], path...)
}

// nalus says how a codec of NAL units puts them into packets.
type nalus struct {
	length   int // bytes of the length before each unit in a sample
	header   int // bytes of a unit's header
	fu, agg  byte
	kind     func(b []byte) byte
	fragment int // bytes of a fragment's header
	encode   func([][]byte) ([]*rtp.Packet, error)
}

func newH264(c *mp4.AvcCBox, raw []byte, pt uint8, size int) (*codec, error) {
	if len(raw) < 5 || len(c.SPSnalus) == 0 || len(c.PPSnalus) == 0 {
		return nil, fmt.Errorf("avcC without parameter sets: %w", errUnhintable)
	}
	e := &rtph264.Encoder{PayloadType: pt, PayloadMaxSize: size, PacketizationMode: 1}
	if err := e.Init(); err != nil {
		return nil, err
	}
	n := nalus{length: int(raw[4]&3) + 1, header: 1, fu: 28, agg: 24, fragment: 2, encode: e.Encode,
		kind: func(b []byte) byte { return b[0] & 31 }}
	return &codec{clock: 90000, packets: n.packets,
		format: &format.H264{PayloadTyp: pt, SPS: c.SPSnalus[0], PPS: c.PPSnalus[0], PacketizationMode: 1}}, nil
}

func newH265(c *mp4.HvcCBox, pt uint8, size int) (*codec, error) {
	f := &format.H265{PayloadTyp: pt}
	for _, s := range []struct {
		kind hevc.NaluType
		to   *[]byte
	}{{hevc.NALU_VPS, &f.VPS}, {hevc.NALU_SPS, &f.SPS}, {hevc.NALU_PPS, &f.PPS}} {
		sets := c.GetNalusForType(s.kind)
		if len(sets) == 0 {
			return nil, fmt.Errorf("hvcC without parameter sets: %w", errUnhintable)
		}
		*s.to = sets[0]
	}
	e := &rtph265.Encoder{PayloadType: pt, PayloadMaxSize: size}
	if err := e.Init(); err != nil {
		return nil, err
	}
	n := nalus{length: int(c.LengthSizeMinusOne) + 1, header: 2, fu: 49, agg: 48, fragment: 3, encode: e.Encode,
		kind: func(b []byte) byte { return b[0] >> 1 & 63 }}
	return &codec{clock: 90000, packets: n.packets, format: f}, nil
}

// packets packetises one sample (RFC 6184, 5; RFC 7798, 4.4) and finds in it
// again what was put into the packets.
func (n *nalus) packets(u []unit) ([]constructed, error) {
	list, at, err := n.units(u[0])
	if err != nil || len(list) == 0 {
		return nil, err
	}
	packets, err := n.encode(list)
	if err != nil {
		return nil, fmt.Errorf("sample %d: %w", u[0].sample+1, err)
	}
	out := make([]constructed, len(packets))
	k, done := 0, 0 // the unit at hand, and how much of it is in packets
	for i, p := range packets {
		c, b := &out[i], p.Payload
		c.marker = p.Marker
		if k == len(list) {
			return nil, fmt.Errorf("sample %d: more packets than data", u[0].sample+1)
		}
		switch n.kind(b) {
		case n.fu:
			c.immediate(b[:n.fragment])
			if b = b[n.fragment:]; done == 0 {
				done = n.header
			}
			err = c.part(u[0], at[k]+done, b)
			if done += len(b); done == len(list[k]) {
				k, done = k+1, 0
			}
		case n.agg:
			head := n.header
			for b := b; len(b) > head && k < len(list) && err == nil; head = 0 {
				size := head + 2 + int(binary.BigEndian.Uint16(b[head:]))
				c.immediate(b[:head+2])
				err = c.part(u[0], at[k], b[head+2:size])
				b, k = b[size:], k+1
			}
		default:
			err = c.part(u[0], at[k], b)
			k++
		}
		if err == nil && c.size != len(p.Payload) {
			err = fmt.Errorf("sample %d: %d bytes hinted of a packet of %d", u[0].sample+1, c.size, len(p.Payload))
		}
		if err != nil {
			return nil, err
		}
	}
	if k != len(list) {
		return nil, fmt.Errorf("sample %d: %d of %d units in packets", u[0].sample+1, k, len(list))
	}
	return out, nil
}

// units returns the NAL units of a sample, and where they are in it.
func (n *nalus) units(u unit) (list [][]byte, at []int, err error) {
	for o := 0; o < len(u.data); {
		if len(u.data)-o < n.length {
			return nil, nil, fmt.Errorf("sample %d: length of a NAL unit cut off", u.sample+1)
		}
		size := 0
		for _, b := range u.data[o : o+n.length] {
			size = size<<8 | int(b)
		}
		if o += n.length; size > len(u.data)-o {
			return nil, nil, fmt.Errorf("sample %d: NAL unit of %d bytes in %d", u.sample+1, size, len(u.data)-o)
		}
		if size >= n.header {
			list, at = append(list, u.data[o:o+size]), append(at, o)
		}
		o += size
	}
	return list, at, nil
}

// decoderConfig returns the decoder's configuration if it is of the object type
// (ISO/IEC 14496-1, 7.2.6.6).
func decoderConfig(c *mp4.EsdsBox, object byte) ([]byte, error) {
	d := c.DecConfigDescriptor
	if d == nil || d.DecSpecificInfo == nil {
		return nil, fmt.Errorf("esds without a configuration: %w", errUnhintable)
	}
	if d.ObjectType != object {
		return nil, fmt.Errorf("object type %#x: %w", d.ObjectType, errUnhintable)
	}
	return d.DecSpecificInfo.DecConfig, nil
}

// newMPEG4 is for MPEG-4 Visual: a frame in pieces (RFC 6416, 5).
func newMPEG4(c *mp4.EsdsBox, pt uint8, size int) (*codec, error) {
	config, err := decoderConfig(c, 0x20)
	if err != nil {
		return nil, err
	}
	e := &rtpfragmented.Encoder{PayloadType: pt, PayloadMaxSize: size}
	if err := e.Init(); err != nil {
		return nil, err
	}
	f := &format.MPEG4Video{PayloadTyp: pt, ProfileLevelID: 1, Config: config}
	if len(config) > 4 && bytes.HasPrefix(config, []byte{0, 0, 1, 0xb0}) {
		f.ProfileLevelID = int(config[4]) // as the visual object sequence says
	}
	return &codec{clock: 90000, format: f, packets: func(u []unit) ([]constructed, error) {
		packets, err := e.Encode(u[0].data)
		if err != nil {
			return nil, fmt.Errorf("sample %d: %w", u[0].sample+1, err)
		}
		out, off := make([]constructed, len(packets)), 0
		for i, p := range packets {
			out[i].marker = p.Marker
			if err := out[i].part(u[0], off, p.Payload); err != nil {
				return nil, err
			}
			off += len(p.Payload)
		}
		return out, nil
	}}, nil
}

func newAAC(c *mp4.EsdsBox, pt uint8, size int) (*codec, error) {
	config, err := decoderConfig(c, 0x40)
	if err != nil {
		return nil, err
	}
	conf := &mpeg4audio.AudioSpecificConfig{}
	if err := conf.Unmarshal(config); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errUnhintable)
	}
	e := &rtpmpeg4audio.Encoder{PayloadType: pt, PayloadMaxSize: size, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}
	if err := e.Init(); err != nil {
		return nil, err
	}
	f := &format.MPEG4Audio{PayloadTyp: pt, ProfileLevelID: 1, Config: conf, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}
	// Written anew, the configuration would lose what follows it, such as the
	// word that there is no SBR: decoders would guess.
	return &codec{clock: f.ClockRate(), config: config, batch: true, format: f,
		packets: func(u []unit) ([]constructed, error) { return aacPackets(e, u) },
		fits: func(u []unit, more unit) bool {
			n := 2 + 2 + len(more.data)
			for _, x := range u {
				n += 2 + len(x.data)
			}
			return n <= size
		},
	}, nil
}

// aacPackets packetises frames that fit one packet, or one that does not (RFC
// 3640, 3.2): the length of the headers in bits, the headers, then the data.
func aacPackets(e *rtpmpeg4audio.Encoder, u []unit) ([]constructed, error) {
	var frames [][]byte
	for _, x := range u {
		frames = append(frames, x.data)
	}
	packets, err := e.Encode(frames)
	if err != nil {
		return nil, fmt.Errorf("sample %d: %w", u[0].sample+1, err)
	}
	out := make([]constructed, len(packets))
	k, done := 0, 0
	for i, p := range packets {
		c, b := &out[i], p.Payload
		c.marker = p.Marker
		head := 2 + (int(binary.BigEndian.Uint16(b))+7)/8
		c.immediate(b[:head])
		for b = b[head:]; len(b) > 0 && k < len(u); {
			n := min(len(b), len(u[k].data)-done)
			if err := c.part(u[k], done, b[:n]); err != nil {
				return nil, err
			}
			if b, done = b[n:], done+n; done == len(u[k].data) {
				k, done = k+1, 0
			}
		}
		if len(b) > 0 {
			return nil, fmt.Errorf("sample %d: more packets than data", u[0].sample+1)
		}
	}
	if k != len(u) {
		return nil, fmt.Errorf("sample %d: %d of %d frames in packets", u[0].sample+1, k, len(u))
	}
	return out, nil
}

// sdp returns the media section of a track (RFC 8866, 5.14). The control
// attribute ends in the hint track's ID, by which servers find it.
func (c *codec) sdp(kind string, id, kbits int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "m=%s 0 RTP/AVP %d\r\nb=AS:%d\r\na=rtpmap:%d %s\r\n", kind, c.format.PayloadType(), kbits, c.format.PayloadType(), c.format.RTPMap())
	params := c.format.FMTP()
	if c.config != nil {
		params["config"] = fmt.Sprintf("%X", c.config)
	}
	if f := fmtp(params); f != "" {
		fmt.Fprintf(&b, "a=fmtp:%d %s\r\n", c.format.PayloadType(), f)
	}
	fmt.Fprintf(&b, "a=control:trackID=%d\r\n", id)
	return b.String()
}

func fmtp(m map[string]string) string {
	var all []string
	for k, v := range m {
		all = append(all, k+"="+v)
	}
	// in a fixed order, so that a movie is hinted the same every time
	slices.Sort(all)
	return strings.Join(all, "; ")
}
