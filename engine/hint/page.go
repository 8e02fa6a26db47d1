package hint

import (
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"
)

// page is the packets of the hint samples of one second of a track, in the order
// in which they are sent. What an interval holds of it is not the page's business:
// it is the same for all viewers, does not change, and is theirs together.
type page struct {
	first, end  int // hint samples
	entries     []entry
	spans       []span
	early, late int64     // as in stream
	outside     []outside // by reference of the track
}

// outside is by how many samples the hints of a page point before and behind those
// that the time tables let expect.
type outside struct{ before, after int }

// pages are a movie's that some Cycle holds.
type pages struct {
	mu  sync.Mutex
	all map[pageKey]weak.Pointer[page]
}

type pageKey struct {
	track    *Track
	first    int // hint sample
	asHinted bool
	spread   time.Duration
}

func (p *pages) get(k pageKey) *page {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[k].Value()
}

// put adds a page, unless there is one by now, and returns the one that is there.
func (p *pages) put(k pageKey, made *page) *page {
	p.mu.Lock()
	defer p.mu.Unlock()
	if there := p.all[k].Value(); there != nil {
		return there
	}
	if p.all == nil {
		p.all = map[pageKey]weak.Pointer[page]{}
	}
	p.all[k] = weak.Make(made)
	runtime.AddCleanup(made, p.forget, k)
	return made
}

func (p *pages) forget(k pageKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all[k].Value() == nil {
		delete(p.all, k)
	}
}

// pageOf returns which hint samples are on one page with sample i: those of one
// time are never on two.
func (s *stream) pageOf(i int) (first, end int) {
	t, scale := &s.t.samples, int64(s.t.TimeScale)
	second := t.time(i) / scale
	return min(i, t.lower(second*scale)), max(i+1, t.lower((second+1)*scale))
}

func (r *Reader) pageKey(s *stream, first int) pageKey {
	return pageKey{s.t, first, r.cfg.AsHinted, r.cfg.MaxSpread}
}

// leaf is a page as one interval needs it.
type leaf struct {
	*page          // nil until its hints have been read
	window         // of its stream
	track      int // of the reader's
	first, end int // hint samples on the page
	next, stop int // entries not yet given out
}

// window is what an interval looks at in one stream.
type window struct {
	lo, hi      int // hint samples
	start, seen int // as in stream
}

// turn adds to c the pages of a window, and the extents of the hints of those that
// nobody has read.
func (r *Reader) turn(c *Cycle, track int, w window) error {
	s := &r.streams[track]
	for i := w.lo; i < w.hi; {
		first, end := s.pageOf(i)
		p := s.page
		if p == nil || p.first != first {
			p = r.m.pages.get(r.pageKey(s, first))
		}
		c.leaves = append(c.leaves, leaf{page: p, window: w, track: track, first: first, end: end})
		if p != nil {
			s.learn(p)
		} else if end-first > r.cfg.MaxPackets {
			return r.limit(s.t, "%d hint samples in one second", end-first)
		} else if err := r.planHints(c, s, first, end); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// learn notes how far a page's hints stray.
func (s *stream) learn(p *page) {
	s.early, s.late = max(s.early, p.early), max(s.late, p.late)
	for k, o := range p.outside {
		s.refs[k].before, s.refs[k].after = max(s.refs[k].before, o.before), max(s.refs[k].after, o.after)
	}
}

// write makes the page of a leaf from its hints; where some of those are missing in
// the data it adds their extents to c.
func (r *Reader) write(c *Cycle, l *leaf) error {
	s, d, missing := &r.streams[l.track], &r.draft, len(c.Extents)
	*d = page{first: l.first, end: l.end, entries: d.entries[:0], spans: d.spans[:0], outside: slices.Grow(d.outside[:0], len(s.refs))[:len(s.refs)]}
	clear(d.outside)
	for k := range s.refs {
		f := &s.refs[k]
		f.lo, f.hi = s.expect(f, l.first, l.end)
	}
	for lo := l.first; lo < l.end; {
		// One bunch: samples of one time.
		hi := min(max(s.t.samples.lower(s.t.samples.time(lo)+1), lo+1), l.end)
		first := len(d.entries)
		for k := lo; k < hi; k++ {
			if err := r.loadSample(c, s, k); err != nil {
				return err
			}
		}
		r.schedule(d.entries[first:], s.t.due(s.t.samples.time(hi)))
		lo = hi
	}
	if len(c.Extents) > missing {
		return nil
	}
	sortBySend(d.entries)
	made := *d
	made.entries, made.spans, made.outside = slices.Clone(d.entries), slices.Clone(d.spans), slices.Clone(d.outside)
	l.page = r.m.pages.put(r.pageKey(s, l.first), &made)
	s.learn(l.page)
	return nil
}

// open finds what the interval holds of a page, and which sample is the first that
// owes packets to the next one, hi when none does.
func (c *Cycle) open(l *leaf) (owed int) {
	bySend := func(e entry, at time.Duration) int {
		if e.send() < at {
			return -1
		}
		return 1
	}
	l.next = 0
	if l.early == 0 && l.seen > l.start { // nothing is due before its sample, nor sought
		l.next, _ = slices.BinarySearchFunc(l.entries, c.From, bySend)
	}
	l.stop, _ = slices.BinarySearchFunc(l.entries, c.To, bySend)
	c.skip(l)
	owed = l.hi
	for i := l.stop; i < len(l.entries); i++ {
		switch n := int(l.entries[i].sample); {
		case n >= l.hi:
			if l.early == 0 && l.late == 0 {
				return owed
			}
		case n >= l.start:
			owed = min(owed, n)
		}
	}
	return owed
}

// skip goes on to the next packet that the interval holds.
func (c *Cycle) skip(l *leaf) {
	for ; l.next < l.stop; l.next++ {
		e := &l.entries[l.next]
		n := int(e.sample)
		if n >= l.start && n < l.hi && (n >= l.seen || e.send() >= c.From) {
			return
		}
	}
}
