package hint

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrLimit is wrapped by errors about an interval that asks for more than
// Config allows: a damaged movie, or too long an interval.
var ErrLimit = errors.New("over the limit")

// Config says what a Reader reads. The zero Config plays all hint tracks.
type Config struct {
	// Tracks are the IDs of the hint tracks to play; nil for all.
	Tracks []uint32

	// AsHinted leaves the packets at the times the hints say. Otherwise packets
	// of a track that fall due together are spread evenly, by bytes, up to the
	// time the next are due; only Packet.Send is touched, nothing in a packet.
	AsHinted bool

	// MaxSpread bounds how long packets due together are spread; 0 is 200 ms, the
	// most is 2 s.
	MaxSpread time.Duration

	// Gap is the number of unneeded bytes up to which two extents are read as
	// one; 0 is 4 KiB.
	Gap int64

	// Limits for one interval, against damaged files: packets (0 is 65,536),
	// hint samples likewise, and bytes to read (0 is 64 MiB).
	MaxPackets int
	MaxBytes   int64
}

func (c *Config) defaults() {
	c.MaxSpread = min(cmp.Or(c.MaxSpread, 200*time.Millisecond), 2*time.Second)
	c.Gap = cmp.Or(c.Gap, 4<<10)
	c.MaxPackets = cmp.Or(c.MaxPackets, 1<<16)
	c.MaxBytes = cmp.Or(c.MaxBytes, 64<<20)
}

// Reader reads one movie for one viewer, interval after interval. It is used
// by one goroutine at a time; the Cycles it fills may be elsewhere.
type Reader struct {
	m       *Movie
	cfg     Config
	from    time.Duration
	streams []stream
	scratch []byte // a hint sample that lies in several buffers
	draft   page   // the page that is being written
	extents []Extent
}

// stream is the reader's place in one hint track. Samples count from 0.
type stream struct {
	t    *Track
	hint cursor
	refs []ref
	page *page // that the last interval ended on

	start int   // first sample to play after a seek
	owed  int   // first sample that may hold packets not yet given out
	seen  int   // first sample that was in no interval yet
	early int64 // media time by which packets were seen due before their sample
	late  int64 // and after it
}

// ref is the reader's place in a track the hints point into.
type ref struct {
	t      *Track // nil: not in the file
	cur    cursor
	oneOne bool // as many samples as hint samples: taken to go together
	lo, hi int  // samples that the hints of a page are expected to point to
	// how far outside of those they were seen to point
	before, after int
	reach         int // at most so far
}

// Reader returns a reader that stands at the start of the movie.
func (m *Movie) Reader(cfg Config) (*Reader, error) {
	cfg.defaults()
	r := &Reader{m: m, cfg: cfg}
	hints := m.HintTracks()
	if len(hints) == 0 {
		return nil, fmt.Errorf("%s: %w", m.Name, ErrNoHints)
	}
	if cfg.Tracks != nil {
		hints = hints[:0]
		for _, id := range cfg.Tracks {
			t := m.Track(id)
			if t == nil || !t.Hint() {
				return nil, fmt.Errorf("%s: no hint track %d", m.Name, id)
			}
			hints = append(hints, t)
		}
	}
	for _, t := range hints {
		if t.External() {
			return nil, fmt.Errorf("%s: hint track %d: its data are in another file", m.Name, t.ID)
		}
		s := stream{t: t, hint: newCursor(&t.samples)}
		for _, u := range t.refs {
			f := ref{t: u}
			if u != nil {
				f.cur, f.oneOne = newCursor(&u.samples), u.samples.n == t.samples.n
				f.reach = u.samples.lower(10*int64(u.TimeScale)) + 1
			}
			s.refs = append(s.refs, f)
		}
		r.streams = append(r.streams, s)
	}
	r.Seek(0)
	return r, nil
}

// Seek makes at the start of the next interval planned. As with Darwin, every
// track goes on with the hint sample that at falls in, which may be due a
// little earlier.
func (r *Reader) Seek(at time.Duration) {
	at = max(at, 0)
	r.from = at
	for i := range r.streams {
		s := &r.streams[i]
		s.start = s.t.locate(at)
		s.owed, s.seen = s.start, s.start
	}
}

// From returns the start of the next interval.
func (r *Reader) From() time.Duration { return r.from }

// More reports whether anything is left to plan. Between Plan and Load it may
// say so of an interval that turns out to be empty.
func (r *Reader) More() bool {
	for i := range r.streams {
		if r.streams[i].owed < r.streams[i].t.samples.n {
			return true
		}
	}
	return false
}

// Upcoming returns when the next hint sample is due: no interval that ends
// before it yields a packet.
func (r *Reader) Upcoming() time.Duration {
	next := time.Duration(1<<63 - 1)
	for i := range r.streams {
		if s := &r.streams[i]; s.owed < s.t.samples.n {
			next = min(next, s.t.due(s.t.samples.time(s.owed)-s.early))
		}
	}
	return next
}

// due converts a hint sample's time into movie time.
func (t *Track) due(media int64) time.Duration { return ticks(media+t.start, int64(t.TimeScale)) }

// media converts movie time into media time, rounded up.
func (t *Track) media(at time.Duration) int64 {
	scale, ns := int64(t.TimeScale), int64(max(at, 0))
	s, rest := ns/1e9, ns%1e9*scale
	return min(s, maxTicks/scale)*scale + (rest+1e9-1)/1e9 - t.start
}

func (t *Track) locate(at time.Duration) int {
	// rounded down: Darwin truncates
	scale, ns := int64(t.TimeScale), int64(max(at, 0))
	return t.samples.locate(max(min(ns/1e9, maxTicks/scale)*scale+ns%1e9*scale/1e9-t.start, 0))
}

// Plan makes [From, to) the interval of c and fills c.Extents with the extents
// of the file it needs: merged, in file order. The interval before must have
// been loaded, unless there was a Seek since. What the hints point to is not
// known before they are read, so the extents of the media are taken from the
// time tables; Load says when that fell short.
func (r *Reader) Plan(c *Cycle, to time.Duration) error {
	c.reset(r, to)
	defer func() { r.extents = c.Extents }()
	for i := range r.streams {
		s := &r.streams[i]
		w := window{lo: s.owed, hi: s.t.samples.n, start: s.start, seen: s.seen}
		if v := s.t.media(to); v < maxTicks-s.early {
			w.hi = s.t.samples.lower(v + s.early)
		}
		w.hi = max(w.lo, w.hi)
		if w.hi-w.lo > r.cfg.MaxPackets {
			return r.limit(s.t, "%d hint samples due before %v", w.hi-w.lo, to)
		}
		s.seen, s.owed = max(s.seen, w.hi), s.tail(w, to, r.cfg.AsHinted)
		if err := r.turn(c, i, w); err != nil {
			return err
		}
		for k := range s.refs {
			if err := r.planMedia(c, s, &s.refs[k], w); err != nil {
				return err
			}
		}
	}
	r.from = to
	return r.settle(c)
}

// tail returns the first sample of the window whose packets may be due at to or
// later, w.hi when there is none: what is owed before Load has seen them.
func (s *stream) tail(w window, to time.Duration, asHinted bool) int {
	if w.lo == w.hi {
		return w.hi
	}
	t := &s.t.samples
	owed := w.hi
	if s.late > 0 {
		owed = min(owed, t.lower(s.t.media(to)-s.late))
	}
	if !asHinted && s.t.due(t.time(w.hi)) > to { // spread beyond the interval
		owed = min(owed, t.lower(t.time(w.hi-1)))
	}
	return max(owed, w.lo)
}

// settle merges the extents of c and holds them to the limit.
func (r *Reader) settle(c *Cycle) error {
	c.Extents = merge(c.Extents, r.cfg.Gap)
	var sum int64
	for _, e := range c.Extents {
		sum += e.Len
	}
	if sum > r.cfg.MaxBytes {
		return r.limit(r.streams[0].t, "%d bytes to read before %v", sum, c.To)
	}
	return nil
}

func (r *Reader) limit(t *Track, format string, a ...any) error {
	return fmt.Errorf("%s: hint track %d: %s: %w", r.m.Name, t.ID, fmt.Sprintf(format, a...), ErrLimit)
}

// planHints adds the extents of the hint samples themselves.
func (r *Reader) planHints(c *Cycle, s *stream, lo, hi int) error {
	for i := lo; i < hi; {
		off, ok := s.hint.find(i)
		if !ok {
			return r.noChunk(s.t, i)
		}
		end := min(s.hint.end, hi)
		n := s.t.samples.before(end) - s.t.samples.before(i)
		if err := r.add(c, s.t, i, off, n); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// expect returns the samples that hint samples most likely point to: those of the
// same numbers where both tracks have as many, else those of the same time.
func (s *stream) expect(f *ref, lo, hi int) (from, to int) {
	if f.t == nil || f.oneOne {
		return lo, hi
	}
	u, a, b := &f.t.samples, int64(s.t.TimeScale), int64(f.t.TimeScale)
	return u.lower(rescale(s.t.samples.time(lo), a, b)), u.lower(rescale(s.t.samples.time(hi), a, b) + 1)
}

// planMedia adds the extents of the media that a window of hint samples most
// likely points into, widened by what was seen so far.
func (r *Reader) planMedia(c *Cycle, s *stream, f *ref, w window) error {
	if f.t == nil || f.t.External() || w.lo == w.hi {
		return nil
	}
	u := &f.t.samples
	lo, hi := s.expect(f, w.lo, w.hi)
	hi = min(hi+f.after, u.n)
	for i := max(lo-f.before, 0); i < hi; {
		off, ok := f.cur.find(i)
		if !ok {
			return nil // not needed, or Load will say so
		}
		end := min(f.cur.end, hi)
		n := u.before(end) - u.before(i)
		if u.blockBytes > 0 {
			// Bytes and samples have little to do with each other.
			first := int64(i-f.cur.first) / u.blockSamples
			off = f.cur.base + first*u.blockBytes
			n = (int64(end-f.cur.first)+u.blockSamples-1)/u.blockSamples*u.blockBytes - first*u.blockBytes
		}
		if off+n <= r.m.Size { // else it is Load that complains
			c.Extents = append(c.Extents, Extent{off, n})
		}
		if i = end; len(c.Extents) > 4*r.cfg.MaxPackets {
			return r.limit(f.t, "%d extents in one interval", len(c.Extents))
		}
	}
	return nil
}

func (r *Reader) noChunk(t *Track, i int) error {
	return &FormatError{r.m.Name, fmt.Sprintf("track %d sample %d", t.ID, i+1), 0, "in no chunk"}
}

// add appends an extent of sample i of t, which must lie in the file.
func (r *Reader) add(c *Cycle, t *Track, i int, off, n int64) error {
	if off+n > r.m.Size {
		return &FormatError{r.m.Name, fmt.Sprintf("track %d sample %d", t.ID, i+1), off,
			fmt.Sprintf("%d bytes, beyond the end of the file at %d", n, r.m.Size)}
	}
	if n > 0 {
		c.Extents = append(c.Extents, Extent{off, n})
	}
	return nil
}

// merge sorts extents by their place and joins those less than gap apart.
func merge(e []Extent, gap int64) []Extent {
	slices.SortFunc(e, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	out := e[:0]
	for _, x := range e {
		if k := len(out) - 1; k >= 0 && x.Off-(out[k].Off+out[k].Len) <= gap {
			out[k].Len = max(out[k].Len, x.Off+x.Len-out[k].Off)
			continue
		}
		out = append(out, x)
	}
	return out
}
