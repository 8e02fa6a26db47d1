// Package hint reads hinted movies: MP4, QuickTime and 3GP files with hint
// tracks, which say packet by packet what an RTP server is to send, and when
// (ISO/IEC 14496-12, clause 9; Apple, QuickTime File Format, "Hint media").
//
// Read or Open takes in the tables of a movie, never its data. What is then
// sent is read by cycle:
//
//	r, err := m.Reader(hint.Config{})   // one viewer
//	r.Seek(30*time.Second)
//	var c hint.Cycle
//	for r.More() {
//		err := r.Plan(&c, r.From()+time.Second) // names c.Extents of the file
//		// ... bring them into memory, as data ...
//		ok, err := r.Load(&c, data)             // when not ok: c.Extents are missing, bring them and load again
//		var p hint.Packet
//		for c.Next(&p) {
//			// p is due at p.Send; its payload lies in data
//		}
//	}
//
// Scan does the same over an io.ReaderAt for those who need no plan.
//
// The packets are those a Darwin Streaming Server sends for the same file,
// apart from the offsets it chooses at random. A track's edit list counts as
// far as Darwin heeds it: an empty edit delays the track.
package hint

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// ErrNoHints is returned by Movie.Reader for a movie without hint tracks.
var ErrNoHints = errors.New("no hint tracks")

// Movie holds the tables of a movie file, and what its readers hold of its hints. It
// may be shared by any number of readers.
type Movie struct {
	Name     string
	Size     int64 // bytes
	Duration time.Duration
	SDPLines string // the movie's own SDP lines (moov/udta/hnti), often none
	Tracks   []*Track
	Moov     Extent // of the box that all this was read from
	pages    pages
}

// Track is one track of a movie.
type Track struct {
	ID        uint32
	Kind      string // handler: "vide", "soun", "hint", ...
	Format    string // of the first sample description: "avc1", "rtp ", ...
	TimeScale uint32 // media time units a second
	Duration  time.Duration

	// For hint tracks.
	Refs      []uint32 // IDs of the tracks the hints point into
	RTPScale  uint32   // RTP timestamp units a second
	MaxPacket uint32   // bytes, as the file says
	SDP       string   // the track's media section

	start      int64 // length of the empty edit, in media time units
	timeOffset uint32
	seqOffset  uint16
	refs       []*Track
	descs      []Extent // of the sample descriptions
	reference  int      // data reference of the first of them
	elsewhere  []bool   // by data reference
	samples    samples
}

// Hint reports whether the track is an RTP hint track.
func (t *Track) Hint() bool { return t.Kind == "hint" && t.Format == "rtp " }

// External reports whether the track's data are in another file, which is
// not read.
func (t *Track) External() bool {
	return t.reference >= 0 && t.reference < len(t.elsewhere) && t.elsewhere[t.reference]
}

// RTPTime returns the RTP timestamp that goes with a movie time, without any
// random offset: that of a packet of a hint sample due then, but for the
// packet's own offset.
func (t *Track) RTPTime(at time.Duration) uint32 {
	s, rest := int64(at/time.Second), int64(at%time.Second)
	return uint32(s*int64(t.RTPScale)+rest*int64(t.RTPScale)/1e9) + t.timeOffset
}

// Samples returns the number of samples in the track.
func (t *Track) Samples() int { return t.samples.n }

// Extent is a piece of the file, in bytes.
type Extent struct{ Off, Len int64 }

// Sample returns where sample i lies, counted from 0, and when it is due (the
// hint or decoding time, the start of the track included). The extent is empty
// when the tables do not hold the sample. For looking at a movie, not for
// playing it: every call is a search.
func (t *Track) Sample(i int) (Extent, time.Duration) {
	c := newCursor(&t.samples)
	at := ticks(t.samples.time(max(i, 0))+t.start, int64(t.TimeScale))
	off, ok := c.find(i)
	if !ok {
		return Extent{}, at
	}
	return Extent{off, t.samples.size(i)}, at
}

// Chunks returns the number of chunks of the track.
func (t *Track) Chunks() int { return t.samples.chunks.n }

// Chunk returns where chunk i lies, its first sample and the number of its
// samples, which is 0 when the tables give it none. For looking, as Sample.
func (t *Track) Chunk(i int) (e Extent, first, n int) {
	s := &t.samples
	run := s.runChunk.last(int64(i))
	if run < 0 || i >= s.chunks.n {
		return Extent{}, 0, 0
	}
	c := newCursor(s)
	c.enter(run, i)
	if c.first >= c.end {
		return Extent{c.base, 0}, 0, 0
	}
	return Extent{c.base, c.chunkBytes(s.blockBytes, s.blockSamples)}, c.first, c.end - c.first
}

// Read reads the tables of a movie of size bytes. The name is for errors.
// A damaged file gives a *FormatError.
func Read(r io.ReaderAt, size int64, name string) (*Movie, error) {
	m := &Movie{Name: name, Size: size}
	p := &parser{name: name}
	moov, err := p.findMoov(r, size)
	if err != nil {
		return nil, err
	}
	m.Moov = Extent{moov.off, moov.at - moov.off + int64(len(moov.body))}
	if err := p.movie(m, moov); err != nil {
		return nil, err
	}
	return m, nil
}

// HintTracks returns the RTP hint tracks in file order.
func (m *Movie) HintTracks() []*Track {
	var h []*Track
	for _, t := range m.Tracks {
		if t.Hint() {
			h = append(h, t)
		}
	}
	return h
}

// Track returns the track with the ID, nil when there is none.
func (m *Movie) Track(id uint32) *Track {
	for _, t := range m.Tracks {
		if t.ID == id {
			return t
		}
	}
	return nil
}

// SDP returns a whole session description (RFC 8866) with the hint tracks'
// media sections as they are in the file. Their control attributes are relative
// and end in the hint track's ID.
func (m *Movie) SDP() string {
	var b strings.Builder
	fmt.Fprintf(&b, "v=0\r\no=- %d 1 IN IP4 0.0.0.0\r\ns=%s\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n",
		m.Size, strings.Map(printable, filepath.Base(m.Name)))
	if m.SDPLines != "" {
		b.WriteString(strings.TrimRight(m.SDPLines, "\r\n") + "\r\n")
	}
	fmt.Fprintf(&b, "a=control:*\r\na=range:npt=0-%.5f\r\n", m.Duration.Seconds())
	for _, t := range m.HintTracks() {
		if t.SDP != "" {
			b.WriteString(strings.TrimRight(t.SDP, "\r\n") + "\r\n")
		}
	}
	return b.String()
}

func printable(r rune) rune {
	if r < ' ' {
		return '_'
	}
	return r
}
