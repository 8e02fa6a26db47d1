package movie

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"rtspshim/engine/hint"
)

// Report says what a server will send for a movie, and what is wrong with it.
type Report struct {
	File     string    `json:"file"`
	Bytes    int64     `json:"bytes"`
	Seconds  float64   `json:"seconds"`
	Tracks   []Track   `json:"tracks"`
	Hints    []Hints   `json:"hints"`
	SDP      string    `json:"sdp"`
	Reading  Reading   `json:"reading"`
	Problems []Problem `json:"problems"`
}

// Track is a track of the movie as a whole.
type Track struct {
	ID      uint32   `json:"id"`
	Kind    string   `json:"kind"`   // handler, "vide"
	Format  string   `json:"format"` // sample description, "avc1"
	Samples int      `json:"samples"`
	Seconds float64  `json:"seconds"`
	Refs    []uint32 `json:"refs,omitempty"` // for hint tracks: what they hint
}

// Hints is what one hint track makes a server send.
type Hints struct {
	Track         uint32  `json:"track"`
	Media         string  `json:"media"` // "video" or the like, from its SDP
	Packets       int64   `json:"packets"`
	Bytes         int64   `json:"bytes"` // with RTP headers
	AverageKbit   float64 `json:"average_kbit_s"`
	PeakKbit      float64 `json:"peak_kbit_s"` // of any second from a whole one to the next
	Smallest      int     `json:"smallest"`    // packets, with RTP headers
	Average       float64 `json:"average"`
	Largest       int     `json:"largest"`
	Times         int64   `json:"times"`            // at which packets fall due
	MostAtOnce    int     `json:"most_at_once"`     // packets due together
	MostStamps    int     `json:"most_stamps"`      // RTP timestamps among them
	LongestGapMs  float64 `json:"longest_gap_ms"`   // between such times
	MiddleGapMs   float64 `json:"middle_gap_ms"`    // median
	FirstSeq      uint16  `json:"first_seq"`        // as in the file
	SeqJumps      int64   `json:"seq_jumps"`        // not one on from the last
	Repeats       int64   `json:"repeat_packets"`   // sent again
	BFrames       int64   `json:"b_frame_packets"`  // may be left out
	HintBytes     int64   `json:"hint_bytes"`       // of the hint track itself
	MostBytesOnce int     `json:"most_bytes_once"`  // due together
	EndsSeconds   float64 `json:"last_due_seconds"` // of the last packet
}

// Reading is what it takes to read the movie a second at a time.
type Reading struct {
	Seconds        int     `json:"seconds"`
	Extents        float64 `json:"extents_a_second"` // on average
	MostExtents    int     `json:"most_extents"`     // in one second
	BytesRead      int64   `json:"bytes_read"`
	BytesSent      int64   `json:"bytes_sent"` // with RTP headers
	SecondLooks    int     `json:"second_looks"`
	MostBytesRead  int64   `json:"most_bytes_read"` // in one second
	LongestReachMB float64 `json:"longest_reach_mb"`
}

// Problem is something wrong, and what to do about it.
type Problem struct {
	Track  uint32 `json:"track,omitempty"`
	What   string `json:"what"`
	Advice string `json:"advice"`
}

// ExamineConfig says how a movie is examined. The zero ExamineConfig will do.
type ExamineConfig struct {
	// MTU is what packets are measured against; 0 is 1,500 bytes.
	MTU int

	// Packet, if set, is called with every packet, in the order they are sent
	// as hinted. It is on loan until the call ends.
	Packet func(track uint32, p *hint.Packet) error
}

const (
	ipHeaders   = 20 + 8 // IPv4 and UDP
	rtpHeader   = 12
	manyExtents = 16 // a second, worth a remark
)

// Examine reads all of a hinted movie and reports on it. A movie that cannot
// be opened is an error; one that cannot be played is a problem in the report.
func Examine(ctx context.Context, path string, cfg ExamineConfig) (*Report, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	f, err := hint.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // was only read
	e := &examiner{cfg: cfg, f: f, Report: Report{File: path, Bytes: f.Size, Seconds: f.Duration.Seconds(), SDP: f.SDP(),
		Tracks: []Track{}, Hints: []Hints{}, Problems: []Problem{}}}
	hinted := map[uint32]bool{}
	for _, t := range f.Tracks {
		e.Tracks = append(e.Tracks, Track{t.ID, t.Kind, t.Format, t.Samples(), t.Duration.Seconds(), t.Refs})
		for _, id := range t.Refs {
			hinted[id] = true
		}
	}
	for _, t := range f.HintTracks() {
		e.tracks = append(e.tracks, newTally(t))
	}
	err = e.read(ctx)
	switch {
	case errors.Is(err, hint.ErrNoHints):
		e.problem(0, "no hint tracks: no server will stream this movie from its hints", "make a hinted copy: shim hint IN OUT")
	case ctx.Err() != nil || errors.Is(err, errPacketFunc):
		return nil, err
	case err != nil:
		e.problem(0, err.Error(), "the file is damaged here: playing ends at this point; make it again")
	}
	for _, t := range e.tracks {
		e.Hints = append(e.Hints, t.done())
	}
	if len(e.tracks) > 0 {
		e.judge(hinted)
	}
	return &e.Report, nil
}

var errPacketFunc = errors.New("packet function")

type examiner struct {
	Report
	cfg    ExamineConfig
	f      *hint.File
	tracks []*tally
}

func (e *examiner) problem(track uint32, what, advice string) {
	e.Problems = append(e.Problems, Problem{track, what, advice})
}

// read reads the movie a second at a time, as an engine would.
func (e *examiner) read(ctx context.Context) error {
	r, err := e.f.Reader(hint.Config{AsHinted: true})
	if err != nil {
		return err
	}
	var c hint.Cycle
	var p hint.Packet
	for r.More() && ctx.Err() == nil {
		if err := r.Plan(&c, max(r.From(), r.Upcoming())+time.Second); err != nil {
			return err
		}
		e.Reading.Seconds++
		extents := slices.Clone(c.Extents)
		for looks := 0; ; looks++ {
			if looks == 8 {
				return fmt.Errorf("the hints of %v to %v ask for ever more data", c.From, c.To)
			}
			data, err := load(e.f, extents)
			if err != nil {
				return err
			}
			ok, err := r.Load(&c, data)
			if err != nil {
				return err
			}
			if ok {
				break
			}
			if looks == 0 {
				e.Reading.SecondLooks++
			}
			extents = join(append(extents, c.Extents...))
		}
		e.count(extents)
		for c.Next(&p) {
			t := e.tracks[p.Track]
			t.add(&p)
			e.Reading.BytesSent += int64(p.Size) + rtpHeader
			if e.cfg.Packet != nil {
				if err := e.cfg.Packet(t.t.ID, &p); err != nil {
					return fmt.Errorf("%w: %w", errPacketFunc, err)
				}
			}
		}
	}
	return ctx.Err()
}

func (e *examiner) count(extents []hint.Extent) {
	var n int64
	for _, x := range extents {
		n += x.Len
	}
	r := &e.Reading
	r.BytesRead += n
	r.MostBytesRead = max(r.MostBytesRead, n)
	r.MostExtents = max(r.MostExtents, len(extents))
	r.Extents += float64(len(extents)) // the sum; divided in judge
	if k := len(extents); k > 0 {
		r.LongestReachMB = max(r.LongestReachMB, float64(extents[k-1].Off+extents[k-1].Len-extents[0].Off)/1e6)
	}
}

// load reads extents into memory.
func load(r io.ReaderAt, extents []hint.Extent) (hint.Pieces, error) {
	var p hint.Pieces
	for _, e := range extents {
		b := make([]byte, e.Len)
		if _, err := r.ReadAt(b, e.Off); err != nil {
			return nil, fmt.Errorf("read %d bytes at %d: %w", e.Len, e.Off, err)
		}
		p = append(p, hint.Piece{Off: e.Off, Bytes: b})
	}
	return p, nil
}

// join sorts extents and joins those that touch.
func join(e []hint.Extent) []hint.Extent {
	slices.SortFunc(e, func(a, b hint.Extent) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	out := e[:0]
	for _, x := range e {
		if k := len(out) - 1; k >= 0 && x.Off <= out[k].Off+out[k].Len {
			out[k].Len = max(out[k].Len, x.Off+x.Len-out[k].Off)
			continue
		}
		out = append(out, x)
	}
	return out
}

// judge names the problems.
func (e *examiner) judge(hinted map[uint32]bool) {
	if e.Reading.Seconds > 0 {
		e.Reading.Extents /= float64(e.Reading.Seconds)
	}
	for _, t := range e.Tracks {
		if (t.Kind == "vide" || t.Kind == "soun") && !hinted[t.ID] {
			e.problem(t.ID, "has no hints: it will not be sent", "hint the movie again: shim hint --again IN OUT")
		}
		for _, id := range t.Refs {
			if !slices.ContainsFunc(e.Tracks, func(t Track) bool { return t.ID == id }) {
				e.problem(t.ID, fmt.Sprintf("hints track %d, which is not there", id), "hint the movie again: shim hint --again IN OUT")
			}
		}
	}
	for i := range e.Hints {
		e.judgeHints(&e.Hints[i], e.tracks[i].t)
	}
	if r := &e.Reading; r.Extents > manyExtents {
		e.problem(0, fmt.Sprintf("a second of play is spread over %.0f places of the file", r.Extents),
			"interleave hints and media more coarsely: shim hint --again IN OUT")
	}
}

func (e *examiner) judgeHints(h *Hints, t *hint.Track) {
	if h.Media == "" {
		e.problem(h.Track, "has no SDP: clients cannot ask for it", "hint the movie again: shim hint --again IN OUT")
	}
	if h.MostStamps > 1 {
		e.problem(h.Track, fmt.Sprintf("bunched: up to %d packets of %d pictures fall due at once, then nothing for %.0f ms",
			h.MostAtOnce, h.MostStamps, h.LongestGapMs),
			"evened when sent over UDP, unless as-hinted is set; a copy with even hints: shim hint --again IN OUT")
	}
	if h.Largest+ipHeaders > e.cfg.MTU {
		e.problem(h.Track, fmt.Sprintf("packets of up to %d bytes are %d over the MTU of %d with their IP and UDP headers: they will be fragmented",
			h.Largest, h.Largest+ipHeaders-e.cfg.MTU, e.cfg.MTU), fmt.Sprintf("make smaller packets: shim hint --again --mtu %d IN OUT", e.cfg.MTU))
	}
	if h.Packets == 0 {
		e.problem(h.Track, "has no packets", "hint the movie again: shim hint --again IN OUT")
	}
	if h.SeqJumps > 0 {
		e.problem(h.Track, fmt.Sprintf("%d sequence numbers do not follow on from the last: clients will count losses", h.SeqJumps),
			"hint the movie again: shim hint --again IN OUT")
	}
	if end := e.Seconds; end > 0 && h.Packets > 0 && h.EndsSeconds > end+10 {
		e.problem(h.Track, fmt.Sprintf("its last packet is due at %.1f s, but the movie ends at %.1f s", h.EndsSeconds, end),
			"clients stop at the end the movie names: hint the movie again")
	}
}
