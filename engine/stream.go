package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/engine/hint"
	"rtspshim/engine/live"
	"rtspshim/engine/relay"
	"rtspshim/engine/wire"
)

// ErrAdmission says that disk, memory or network cannot carry one more
// Stream for its whole length.
var ErrAdmission = errors.New("not enough room for another stream")

// StreamSpec describes the sending of a movie to one client, from a moment on.
type StreamSpec struct {
	File     *hint.File // open until Halt has returned
	Tracks   []StreamTrack
	Base     time.Time     // when the movie's time 0 is sent: a packet leaves at Base + Packet.Send
	From     time.Duration // where to start reading
	End      time.Duration // stop before packets due at or after it; 0 means the movie's end
	AsHinted bool          // no smoothing
	TCP      FrameWriter   // nil for UDP
	Ahead    Ahead         // TCP only
	Done     func(error)   // called once, from the engine, when the Stream has ended by itself: nil at its end
}

// FrameWriter takes whole interleaved frames, on loan until it returns.
type FrameWriter = live.Writer

// Ahead is how far a Stream over TCP sends before packets are due: by Growth
// for every second since Began, but at least by Lead and at most by Most. The
// zero Ahead is real time with a small lead.
type Ahead struct {
	Began  time.Time
	Lead   time.Duration
	Growth float64 // seconds a second
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
	Interval        time.Duration // 0 means DefaultReport
	Due             time.Duration // until the first one; 0 is right after the first packet
	Clock           time.Duration // the upstream's NTP clock less ours
	Still           bool          // RTP times are the last packet's; otherwise they go on with the clock,
	Lag             uint32        // so many ticks ahead of the packets', usually negative
	Tail            []byte        // what the upstream's compounds have behind the SR
	Packets, Octets uint32        // counted before
}

// TrackState is where a track of a Stream stands.
type TrackState struct {
	Sent, Octets uint64 // by this Stream: packets, octets of payload
	Last         Place  // the last packet sent, or what it went on behind
	LastSeq      uint16 // its numbers for the client
	LastTime     uint32
	Next         Place  // the packet that comes next
	NextSeq      uint16 // its numbers for the client
	NextTime     uint32
	Ended        bool // there is none

	asked, behind bool // what comes next is not in memory: to be looked up behind Last
}

// StreamStats tells what Streams have done.
type StreamStats struct {
	File, Path                string // of the first one that is added: the movie, and "udp" or "tcp"
	Packets, Octets           uint64 // sent; octets of payload
	Drops                     uint64 // of them, packets the kernel would not take
	Underruns                 uint64 // intervals whose data came too late
	LateP50, LateP99, LateMax time.Duration
}

// Add sums up; of the late figures the worst remain.
func (a *StreamStats) Add(b StreamStats) {
	a.File, a.Path = cmp.Or(a.File, b.File), cmp.Or(a.Path, b.Path)
	a.Packets += b.Packets
	a.Octets += b.Octets
	a.Drops += b.Drops
	a.Underruns += b.Underruns
	a.LateP50, a.LateP99, a.LateMax = max(a.LateP50, b.LateP50), max(a.LateP99, b.LateP99), max(a.LateMax, b.LateMax)
}

// Stream is the sending of a movie to one client. Its methods may be called
// from anywhere but the FrameWriter.
type Stream struct {
	e    *Engine
	spec StreamSpec
	base time.Duration // Spec.Base, since the Engine's start
	pump *pump         // sends it
	tcp  *tcpSink      // nil over UDP

	source  source
	arrived atomic.Bool // what the source asked for
	posted  bool        // guarded by feeder.mu
	bits    int64       // a second, admitted

	next, prev *Stream // in the pump's wheel
	slot       int     //

	mu        sync.Mutex
	lines     []line
	started   bool
	startedAt time.Duration
	dry       bool // waits for data
	halting   bool // only what is begun is sent
	over      bool // nothing more is handed on
	gone      bool // nor under way
	told      bool // Done was called, or never will be
	underruns uint64
	late      wire.Histogram
	primed    chan struct{} // closed when the first interval is in memory, or never will be
	stopped   chan struct{} // closed when the last packet has left
}

// OpenStream admits a Stream and begins to read its movie, from Spec.From on.
// It returns ErrAdmission where disk, memory or network cannot carry it. Start
// or Halt must follow.
func (e *Engine) OpenStream(spec StreamSpec) (*Stream, error) {
	s, err := e.openStream(spec)
	if err != nil {
		return nil, fmt.Errorf("engine: open stream: %w", err)
	}
	return s, nil
}

func (e *Engine) openStream(spec StreamSpec) (*Stream, error) {
	if spec.File == nil || len(spec.Tracks) == 0 {
		return nil, errors.New("no movie, or no tracks")
	}
	s := &Stream{e: e, spec: spec, base: spec.Base.Sub(e.start), slot: slotNone, dry: true,
		primed: make(chan struct{}), stopped: make(chan struct{})}
	if s.spec.End <= 0 {
		s.spec.End = 1<<63 - 1
	}
	s.lines = make([]line, len(spec.Tracks))
	for i, t := range spec.Tracks {
		r, err := spec.File.Reader(hint.Config{Tracks: []uint32{t.Track}, AsHinted: spec.AsHinted})
		if err != nil {
			return nil, err
		}
		if spec.TCP == nil && t.Relay == nil {
			return nil, fmt.Errorf("track %d: neither a relay nor TCP", t.Track)
		}
		r.Seek(spec.From)
		s.source.readers = append(s.source.readers, r)
		t.Report.Interval = cmp.Or(t.Report.Interval, DefaultReport)
		s.lines[i] = line{StreamTrack: t, track: spec.File.Track(t.Track)}
	}
	for i := range s.source.slots {
		s.source.slots[i].cycles = make([]hint.Cycle, len(s.lines))
	}
	if spec.TCP != nil {
		s.tcp = &tcpSink{writer: spec.TCP}
	}
	if err := e.admit(s); err != nil {
		return nil, err
	}
	e.feeder.post(s)
	return s, nil
}

// Start begins to send. after has for each track the last packet that was sent
// already, to go on right behind it, or nil to go on from Spec.From; it may be
// nil as a whole. Spec.From must not be later than any of them. What is due in the past leaves at once, but for the burst
// limit.
func (s *Stream) Start(after []*Place) error {
	now := time.Since(s.e.start)
	s.mu.Lock()
	if s.over || s.halting || s.started {
		s.mu.Unlock()
		return fmt.Errorf("engine: start stream: %w", ErrClosed)
	}
	s.started, s.startedAt = true, now
	for i := range s.lines {
		l := &s.lines[i]
		l.reportAt = now + l.Report.Due
		if l.Relay != nil {
			l.dropped = l.Relay.Stats().Own.Dropped
		}
		l.lastTime = l.Time + l.track.RTPTime(s.spec.From) // for a goodbye before the first packet
		if i < len(after) && after[i] != nil {
			l.last, l.behind = *after[i], true
		}
	}
	if s.tcp != nil {
		s.tcp.state = s.snapshot(nil)
	}
	s.mu.Unlock()
	if err := s.pump.start(s); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.over, s.told = true, true
		s.leave()
		return fmt.Errorf("engine: start stream: %w", err)
	}
	return nil
}

// Count sets what a track's reports count as sent before; until Start.
func (s *Stream) Count(track int, packets, octets uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines[track].Report.Packets, s.lines[track].Report.Octets = packets, octets
}

// Primed waits until the first packets are in memory, so that Start sends at
// once.
func (s *Stream) Primed(ctx context.Context) error {
	var err error
	select {
	case <-s.primed:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.source.ready > 0 {
			return nil
		}
		err = s.source.broken
	case <-s.stopped:
		err = ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	return fmt.Errorf("engine: read the movie: %w", err)
}

// Halt ends the Stream. The samples begun are sent to their end, at once but
// for the burst limit, then nothing. It returns when the last packet has left;
// over TCP that may take as long as FrameWriter does. The relays and the writer
// are not used after that. A second Halt returns the same.
func (s *Stream) Halt() []TrackState {
	s.mu.Lock()
	if !s.started && !s.over {
		s.over, s.told = true, true
		s.leave()
	}
	if !s.over {
		s.halting = true
	}
	s.mu.Unlock()
	s.wake()
	timer := time.AfterFunc(haltWait, s.hurry)
	defer timer.Stop()
	<-s.stopped
	return s.State()
}

// haltWait is how long Halt waits for the disk to bring the rest of a sample.
const haltWait = 500 * time.Millisecond

// hurry gives up waiting for data.
func (s *Stream) hurry() {
	s.mu.Lock()
	if s.source.broken == nil {
		s.source.broken = errors.New("halted")
	}
	s.mu.Unlock()
	s.wake()
}

// State tells where the tracks stand.
func (s *Stream) State() []TrackState {
	s.mu.Lock()
	var all []TrackState
	if s.tcp != nil && s.started {
		all = append(all, s.tcp.state...)
	} else {
		all = s.snapshot(nil)
	}
	s.mu.Unlock()
	for i := range all {
		if all[i].asked {
			s.resolve(i, &all[i])
		}
	}
	return all
}

// Position is when the earliest of the packets that come next is due; the end
// of the movie when there are none.
func (s *Stream) Position() time.Duration {
	at := min(s.spec.End, s.spec.File.Duration)
	for _, t := range s.State() {
		if !t.Ended {
			at = min(at, t.Next.Due)
		}
	}
	return at
}

// DropTrack ends one track, as a TEARDOWN of it does. Its Relay is not used any
// more when it returns; over TCP, a write under way may still hold packets.
func (s *Stream) DropTrack(i int) {
	s.mu.Lock()
	s.lines[i].ended = true
	s.mu.Unlock()
	s.wake()
	s.pump.Sync()
}

// Stats tells what the Stream has done so far.
func (s *Stream) Stats() StreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := StreamStats{
		File: s.spec.File.Name, Path: "udp", Underruns: s.underruns,
		LateP50: s.late.Quantile(0.5), LateP99: s.late.Quantile(0.99), LateMax: s.late.Max(),
	}
	if s.tcp != nil {
		t.Path = "tcp"
	}
	for i := range s.lines {
		l := &s.lines[i]
		t.Packets += l.sent
		t.Octets += l.octets
		if l.Relay != nil {
			t.Drops += l.Relay.Stats().Own.Dropped - l.dropped
		}
	}
	return t
}

// wake has the Stream looked at now, if it is playing.
func (s *Stream) wake() { s.pump.wake(s) }

// closeStreams ends Streams with the Engine. The pumps have stopped.
func (e *Engine) closeStreams(all []*Stream) {
	for _, s := range all {
		s.mu.Lock()
		started := s.started
		s.mu.Unlock()
		if !started {
			s.Halt()
		}
	}
	e.writers.Wait()
	e.feeder.halt()
	e.ends.Wait()
}

// leave is called, under mu, when a Stream that is over needs its data no more
// but for what State tells.
func (s *Stream) leave() {
	for i := range s.lines {
		s.fetch(i)
	}
	s.gone = true
	close(s.stopped)
	s.e.feeder.post(s)
}

// finish is called, under mu, when the last packet was handed on, and by nobody
// else: err is why, if it was not Halt.
func (s *Stream) finish(err error) {
	s.over = true
	if s.halting || s.told || s.spec.Done == nil {
		s.told = true
		return
	}
	s.told = true
	if err != nil && !errors.Is(err, ErrClosed) {
		s.e.log.Warn("engine: stream ended", "file", s.spec.File.Name, "err", err)
	}
	s.e.ends.Add(1)
	go func() {
		defer s.e.ends.Done()
		label("stream done")
		<-s.stopped
		s.spec.Done(err)
	}()
}
