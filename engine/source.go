package engine

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"rtspshim/engine/disk"
	"rtspshim/engine/hint"
)

// slots is how many intervals of a Stream are in memory, or on the way: one
// being sent, one ready to be, one asked of the disk.
const slots = 3

// errSets cannot be, as long as a Stream needs no more sets than the disk
// allows: those of its slots, and as many on their way back.
var errSets = errors.New("no set of blocks left")

const maxRounds = 8 // in which an interval's hints may ask for more data

// slot is one interval of a movie: the packets that are due in it.
type slot struct {
	cycles []hint.Cycle // one a line
	from   time.Duration
	data   *disk.Set // nil where nothing is to be read
	last   bool      // the movie ends with it
}

// source reads a Stream's movie ahead, interval after interval. It belongs to
// the feeder; what it has made ready is read by who sends.
type source struct {
	file    *disk.Stream
	readers []*hint.Reader // one a line, so that each goes at its own pace
	slots   [slots]slot
	asked   bool  // slots[ready] is planned, and waits for its data
	rounds  int   // in which its hints asked for more
	given   int   // intervals whose data were given back
	ended   bool  // no more intervals
	closed  bool  // all is given back
	broken  error // why no more come; guarded by Stream.mu
	ready   int   // intervals made ready in all; guarded by Stream.mu
	spent   int   // intervals of which nothing is needed any more; likewise
}

// feeder reads ahead for all Streams: it plans their intervals and loads the
// hints when the data have come.
type feeder struct {
	mu      sync.Mutex
	in, out []*Stream
	stopped bool
	bell    chan struct{}
	done    chan struct{} // closed when run has returned
}

func newFeeder() *feeder {
	return &feeder{bell: make(chan struct{}, 1), done: make(chan struct{})}
}

// post has the feeder look at Streams. It never waits. A Stream is on the list
// once, so that the list is bounded by the number of Streams.
func (f *feeder) post(all ...*Stream) {
	f.mu.Lock()
	for _, s := range all {
		if !s.posted {
			s.posted = true
			f.in = append(f.in, s)
		}
	}
	f.mu.Unlock()
	ring(f.bell)
}

func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// halt stops the feeder and waits for its end.
func (f *feeder) halt() {
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	ring(f.bell)
	<-f.done
}

// run is the feeder's goroutine.
func (f *feeder) run() {
	defer close(f.done)
	label("feeder")
	for {
		f.mu.Lock()
		f.in, f.out = f.out[:0], f.in
		for _, s := range f.out {
			s.posted = false
		}
		stopped := f.stopped
		f.mu.Unlock()
		for _, s := range f.out {
			s.feed(time.Since(s.e.start))
		}
		if len(f.out) > 0 {
			continue
		}
		if stopped {
			return
		}
		<-f.bell
	}
}

// feed takes the Stream's source as far as it goes.
func (s *Stream) feed(now time.Duration) {
	if s.source.closed {
		return
	}
	s.mu.Lock()
	over, gone, spent, ready, broken := s.over, s.gone, s.source.spent, s.source.ready, s.source.broken
	s.mu.Unlock()
	if gone {
		spent = ready
		if s.source.asked {
			spent++
		}
	}
	s.giveBack(spent)
	if gone {
		s.source.closed = true
		s.source.file.Close()
		s.e.release(s)
	}
	if over || broken != nil {
		return
	}
	if err := s.readAhead(now, spent, ready); err != nil {
		s.mu.Lock()
		if s.source.broken = err; s.source.ready == 0 {
			close(s.primed)
		}
		s.mu.Unlock()
		s.wake()
	}
}

// readAhead loads the interval that was asked for, if it has come, and asks for
// the next one if there is room.
func (s *Stream) readAhead(now time.Duration, spent, ready int) error {
	src := &s.source
	for {
		if src.asked {
			if !s.arrived.Load() {
				return nil
			}
			whole, err := s.load(&src.slots[ready%slots])
			if err != nil || !whole {
				return err
			}
			src.asked = false
			ready++
			s.publish(now, ready)
		}
		if src.ended || ready-spent == slots {
			return nil
		}
		if err := s.plan(&src.slots[ready%slots]); err != nil {
			return err
		}
		src.asked = true
	}
}

// publish hands an interval to who sends.
func (s *Stream) publish(now time.Duration, ready int) {
	at := &s.source.slots[(ready-1)%slots]
	s.mu.Lock()
	if s.source.ready = ready; ready == 1 {
		close(s.primed)
	}
	dry := s.dry
	late := now - s.base - at.from
	if dry && late > 0 && s.started && s.base+at.from > s.startedAt {
		s.underruns++
	} else {
		late = 0
	}
	s.mu.Unlock()
	if late > 0 {
		s.e.log.Warn("engine: underrun", "file", s.spec.File.Name, "at", at.from, "late", late)
	}
	if dry {
		s.wake()
	}
}

// plan asks for the data of the next interval.
func (s *Stream) plan(to *slot) error {
	src := &s.source
	from, upcoming := src.readers[0].From(), time.Duration(1<<63-1)
	for _, r := range src.readers {
		upcoming = min(upcoming, r.Upcoming())
	}
	if upcoming < 1<<63-1 {
		from = max(from, upcoming) // nothing is due before
	}
	// The interval ends with a cycle of the disk's: then the next one is read in
	// that cycle, and no data lie in memory for longer than two.
	end := s.e.disk.NextCycle(s.e.start.Add(s.due(from) + s.e.config.CycleTime/4)).Sub(s.e.start)
	end += s.lead(end) - s.base
	to.from, to.last = from, true
	want := 0
	for i, r := range src.readers {
		c := &to.cycles[i]
		if err := r.Plan(c, end); err != nil {
			return err
		}
		to.last = to.last && !r.More()
		want += len(c.Extents)
	}
	src.ended, src.rounds, to.data = to.last, 0, nil
	if want == 0 {
		s.arrived.Store(true)
		return nil
	}
	return s.ask(to)
}

// ask has the data read that the cycles say are missing.
func (s *Stream) ask(to *slot) error {
	if to.data == nil {
		if to.data = s.source.file.NewSet(); to.data == nil {
			return errSets
		}
	}
	for i := range to.cycles {
		for _, x := range to.cycles[i].Extents {
			to.data.Want(x.Off, x.Len)
		}
	}
	due := time.Time{} // at once: it is not known when the Stream starts
	if s.source.ready > 0 {
		due = s.e.start.Add(s.due(to.from))
	}
	s.arrived.Store(false)
	return to.data.Read(to.from, due)
}

// load makes the packets of an interval from its data. It is not whole when the
// hints point to more: that is asked for.
func (s *Stream) load(at *slot) (whole bool, err error) {
	var data hint.Data = hint.Pieces(nil)
	if at.data != nil {
		if err := at.data.Err(); err != nil {
			return false, err
		}
		data = at.data
	}
	whole = true
	for i, r := range s.source.readers {
		ok, err := r.Load(&at.cycles[i], data)
		if err != nil {
			return false, err
		}
		whole = whole && ok
	}
	if whole {
		return true, nil
	}
	if s.source.rounds++; s.source.rounds > maxRounds {
		return false, fmt.Errorf("%s: the hints at %v ask for ever more data", s.spec.File.Name, at.from)
	}
	return false, s.ask(at)
}

// receiver is a Stream as the disk knows it.
type receiver Stream

// Ready implements disk.Receiver.
func (r *receiver) Ready(*disk.Set) {
	s := (*Stream)(r)
	s.arrived.Store(true)
	s.e.feeder.post(s)
}

// giveBack gives back the data of all intervals before one.
func (s *Stream) giveBack(before int) {
	for src := &s.source; src.given < before; src.given++ {
		if at := &src.slots[src.given%slots]; at.data != nil {
			at.data.Release()
			at.data = nil
		}
	}
}
