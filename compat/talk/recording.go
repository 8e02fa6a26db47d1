// Package talk holds a scripted conversation with a server and records what a
// client can see: every byte of signalling, and of every packet its header,
// the hash of its payload and the time it came.
package talk

import (
	"hash/fnv"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// Outcome is what became of a request.
type Outcome string

// The outcomes.
const (
	Answered Outcome = "answered"
	Silent   Outcome = "no answer"
	Closed   Outcome = "closed without an answer"
	Skipped  Outcome = "not said"        // a variable had no value
	Unasked  Outcome = "from the server" // a request of the server's own, or an answer too many
)

// Exchange is one request with its answer, or a message nobody asked for.
// Times count from the beginning of the recording.
type Exchange struct {
	Step    int // index in the script
	Title   string
	Conn    string
	Method  string
	Sent    []byte
	SentAt  time.Duration
	Answer  *Message // nil if none came
	At      time.Duration
	Order   int // among the frames of the connection: frames below it came before the answer
	Outcome Outcome
	Note    string // why a step was not said
	Media   int    // the track a SETUP is for, from 1; 0 for none
	Ranged  bool   // the request had a Range
}

// Idle is how long e's connection had had no request before it.
func (r *Recording) Idle(e *Exchange) time.Duration {
	var last time.Duration
	for _, before := range r.Exchanges {
		if before == e {
			break
		}
		if before.Conn == e.Conn && before.Outcome != Unasked {
			last = before.SentAt
		}
	}
	return e.SentAt - last
}

// Status is the answer's code, 0 without one.
func (e *Exchange) Status() int {
	if e.Answer == nil {
		return 0
	}
	return e.Answer.Status()
}

// Packet is an RTP packet as it came.
type Packet struct {
	At        time.Duration
	Order     int
	Hash      uint64 // of the payload
	Extra     uint64 // hash of header extension and CSRCs, 0 without
	Size      int    // of payload, bytes
	Timestamp uint32
	SSRC      uint32
	Seq       uint16
	From      uint16 // server port over UDP
	PT        uint8
	Marker    bool
	Padding   bool
}

// Report is an RTCP compound packet as it came.
type Report struct {
	At      time.Duration
	Order   int
	From    uint16
	Kinds   string // such as "SR SDES(cname) APP(qtsi) BYE"
	CNAME   string
	Bye     bool
	SSRC    uint32
	SR      *rtcp.SenderReport
	Unknown string // why pion cannot read it
}

// Track is one Media of one client.
type Track struct {
	Conn      string
	Session   string
	Control   string // its URL
	Media     int    // from 1, 0 for frames on a channel nobody set up
	Kind      string // video, audio, ...
	Clock     int    // Hz, 0 if the SDP does not say
	PTs       []uint8
	Transport headers.Transport // as answered
	Known     bool              // Transport could be read
	UDP       bool
	Packets   []Packet
	Reports   []Report
	Odd       int // datagrams or frames that are not RTP
	Full      bool
}

// Bounds of one track's memory: at 1,400 bytes a packet this is 280 MB of media.
const (
	maxPackets = 200_000
	maxReports = 10_000
)

// End is the state in which a connection was left.
type End struct {
	Conn  string
	State string // open, closed
	Why   string
}

// Recording is one run of a script.
type Recording struct {
	Authority string // host:port named in requests
	Peer      string // host:port spoken to, if another
	Host      string
	Local     string // the client's own address
	Began     time.Time
	Took      time.Duration
	Duration  float64 // of the movie, seconds; 0 if the SDP gives no end
	Synthetic bool    // the media was the script's own
	Exchanges []*Exchange
	Tracks    []*Track
	Ends      []End
	Left      map[string]time.Duration // when we dropped a connection
	Ports     []int                    // UDP ports of ours that were named in requests
	Failure   string                   // why the conversation could not be held at all
}

func (t *Track) addRTP(raw []byte, at time.Duration, order int, from uint16) {
	var p rtp.Packet
	if err := p.Unmarshal(raw); err != nil || p.Version != 2 {
		t.Odd++
		return
	}
	if len(t.Packets) >= maxPackets {
		t.Full = true
		return
	}
	extra := uint64(0)
	if p.Extension || len(p.CSRC) > 0 {
		extra = hash(raw[12:max(12, p.Header.MarshalSize())])
	}
	t.Packets = append(t.Packets, Packet{At: at, Order: order, Hash: hash(p.Payload), Extra: extra,
		Size: len(p.Payload), Timestamp: p.Timestamp, SSRC: p.SSRC, Seq: p.SequenceNumber, From: from,
		PT: p.PayloadType, Marker: p.Marker, Padding: p.Padding})
}

func hash(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

func (t *Track) addRTCP(raw []byte, at time.Duration, order int, from uint16) {
	if len(t.Reports) >= maxReports {
		t.Full = true
		return
	}
	r := Report{At: at, Order: order, From: from}
	packets, err := rtcp.Unmarshal(raw)
	if err != nil {
		r.Unknown, r.Kinds = err.Error(), "unreadable"
	}
	for _, p := range packets {
		r.add(p)
	}
	t.Reports = append(t.Reports, r)
}

func (r *Report) add(p rtcp.Packet) {
	name := "RTCP"
	switch p := p.(type) {
	case *rtcp.SenderReport:
		name, r.SR, r.SSRC = "SR", p, p.SSRC
	case *rtcp.ReceiverReport:
		name, r.SSRC = "RR", p.SSRC
	case *rtcp.SourceDescription:
		name = "SDES"
		for _, c := range p.Chunks {
			for _, item := range c.Items {
				name += "(" + item.Type.String() + ")"
				if item.Type == rtcp.SDESCNAME {
					r.CNAME = item.Text
				}
			}
		}
	case *rtcp.Goodbye:
		name, r.Bye = "BYE", true
	case *rtcp.ApplicationDefined:
		name = "APP(" + p.Name + ")"
	case *rtcp.RawPacket:
		if h := p.Header(); h.Type == rtcp.TypeApplicationDefined && len(*p) >= 12 {
			name = "APP(" + string((*p)[8:12]) + ")"
		}
	}
	if r.Kinds != "" {
		r.Kinds += " "
	}
	r.Kinds += name
}
