package engine

import (
	"errors"
	"net"
	"time"

	"rtspshim/engine/hint"
	"rtspshim/engine/relay"
)

// ErrAdmission says that disk, memory or network cannot carry one more
// Stream for its whole length.
var ErrAdmission = errors.New("not enough room for another stream")

// StreamSpec describes the sending of a movie to one client, from a moment on.
type StreamSpec struct {
	File     *hint.File
	Tracks   []StreamTrack
	Base     time.Time     // when the movie's time 0 is sent: a packet leaves at Base + Packet.Send
	From     time.Duration // where to start reading
	End      time.Duration // stop before packets due at or after it; 0 means the movie's end
	AsHinted bool          // no smoothing
	TCP      FrameWriter   // nil for UDP
	Ahead    Ahead         // TCP only
	Done     func(error)   // called once, from the engine, when the Stream has ended by itself: nil at its end
}

// FrameWriter takes whole interleaved frames; it may block.
type FrameWriter interface {
	WriteFrames(frames net.Buffers) error
}

// Ahead is how far a Stream over TCP sends before packets are due. The zero
// Ahead is real time with a small lead.
type Ahead struct {
	Lead   time.Duration // at the start
	Growth float64       // seconds a second
	Most   time.Duration
}

// StreamTrack is one track of a Stream.
type StreamTrack struct {
	Mapping
	Relay     *relay.Relay // UDP: whose client addresses and server ports to use
	RTP, RTCP uint8        // TCP: channels
	Report    Report
}

// Report is the style of a Stream's sender reports (RFC 3550 §6.4.1), learned
// from the upstream's.
type Report struct {
	Interval        time.Duration // 0 means 5 s
	Due             time.Duration // until the first one; 0 is right after the first packet
	Clock           time.Duration // the upstream's NTP clock less ours
	Tail            []byte        // what the upstream's compounds have behind the SR
	Packets, Octets uint32        // counted before
}

// TrackState is where a track of a Stream stands.
type TrackState struct {
	Sent, Octets uint64 // by this Stream: packets, octets of payload
	Last         Place  // the last packet sent, or what it went on behind
	LastSeq      uint16 // its sequence number for the client
	Next         Place  // the packet that comes next
	NextSeq      uint16 // its numbers for the client
	NextTime     uint32
	Ended        bool // there is none
}
