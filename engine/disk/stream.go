package disk

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxSets is how many sets of one stream may be in use at once: one being sent,
// one in memory, one asked for, and as many for a stream that seeks meanwhile.
const maxSets = 6

// Receiver gets the sets of a stream.
type Receiver interface {
	// Ready hands over a set that was asked for: all of it is in memory, or
	// set.Err says why not. It is called by the scheduler's own goroutine, one
	// call at a time, and must not wait; calls to this package's streams and
	// sets do not wait. While Release or Stream.Close is called elsewhere a call
	// may be under way, but it is over before NewSet returns the set again.
	Ready(set *Set)
}

// Stream is one reader of one file.
type Stream struct {
	s      *Scheduler
	file   *File
	to     Receiver
	demand Demand
	quota  int // blocks it was admitted for

	// Guarded by the mailbox's mu.
	sets   []*Set
	closed bool

	// Belong to Scheduler.run.
	age     uint64        // how many streams were opened before
	phase   time.Duration // when the start of the movie would have been due
	heard   time.Duration // when it asked last, 0 before
	holds   int           // blocks
	playing bool          // among file.readers
	ended   bool
	index   int // among all streams; none when forgotten
}

// File returns the stream's file.
func (st *Stream) File() *File { return st.file }

// owed is how many more blocks the stream may come to want.
func (st *Stream) owed() int { return max(st.quota-st.holds, 0) }

// hold changes how many it holds.
func (st *Stream) hold(n int) {
	st.file.owed -= st.owed()
	st.holds += n
	st.file.owed += st.owed()
}

// NewSet returns an empty set, to be released by the caller; nil when six are
// in use or the stream is closed.
func (st *Stream) NewSet() *Set {
	m := &st.s.post
	m.mu.Lock()
	defer m.mu.Unlock()
	if st.closed || m.closed {
		return nil
	}
	for _, set := range st.sets {
		if set.free {
			set.free = false
			return set
		}
	}
	if len(st.sets) == maxSets {
		return nil
	}
	set := &Set{st: st}
	st.sets = append(st.sets, set)
	return set
}

// Close ends the stream. Sets not yet Ready are dropped; sets lent are good
// until they are released, which must come to pass.
func (st *Stream) Close() {
	m := &st.s.post
	m.mu.Lock()
	was := st.closed
	st.closed = true
	m.mu.Unlock()
	if !was {
		m.put(letter{op: opClose, stream: st})
	}
}

// Set is the part of a file that one stream wants for one interval, and when it
// was read, the memory where it lies. It belongs to whoever called NewSet, but
// for the time between Read and Ready. A Set serves as Data of engine/hint.
type Set struct {
	st    *Stream
	wants []want
	pins  []pin // sorted by offset
	at    time.Duration
	due   time.Duration // since the scheduler's epoch; 0 for at once
	asked time.Duration
	turn  time.Duration // when it was to be read
	busy  bool          // between Read and Ready
	free  bool          // guarded by the mailbox's mu
	err   error

	// Belong to Scheduler.run.
	state   setState
	missing int  // pins to blocks that are not read yet
	counted bool // as an underrun
	place   int  // among those that wait for reads
}

type setState uint8

const (
	resting  setState = iota // with its owner
	pending                  // for its cycle
	starved                  // for blocks
	waiting                  // for reads
	finished                 // to be handed over
)

type want struct{ off, n int64 }

// pin is a block that a set holds.
type pin struct {
	off   int64
	bytes []byte
	block int32 // none before it is found
	wait  bool  // for it to be read
	// the next that waits for the same block
	next    *Set
	nextPin int32
}

// Want adds n bytes at the offset to what is read next.
func (set *Set) Want(off, n int64) { set.wants = append(set.wants, want{off, n}) }

// Read asks for what was wanted, in addition to what the set holds already. The
// set is out of the caller's hands until Receiver.Ready gets it, but Release
// may be called.
//
// At is the movie time at which the interval begins; it tells how far apart the
// streams of a file are, and so which blocks are worth keeping. Due is when the
// data must be there. It is read in the cycle before the one that holds due;
// where that has begun, with what is read now; where due lies in this very
// cycle, or is zero, before all else. Data that comes later than due is counted
// as an underrun, unless it was due when it was asked for, or due is zero.
func (set *Set) Read(at time.Duration, due time.Time) error {
	if set.busy {
		return ErrBusy
	}
	f := set.st.file
	for _, w := range set.wants {
		if w.off < 0 || w.n <= 0 || w.n > f.ident.Size || w.off > f.ident.Size-w.n {
			set.wants = set.wants[:0]
			return fmt.Errorf("disk: %s: %d bytes at %d wanted of a file of %d", f.name, w.n, w.off, f.ident.Size)
		}
	}
	if err := f.Err(); err != nil {
		return err
	}
	set.at, set.due, set.err = at, 0, nil
	if !due.IsZero() {
		set.due = max(due.Sub(set.st.s.epoch), 1)
	}
	set.busy = true
	if !set.st.s.post.put(letter{op: opRead, set: set}) {
		set.busy = false
		return ErrClosed
	}
	return nil
}

// Err says why the set could not be read: ErrMemory, a *ReadError, ErrClosed.
func (set *Set) Err() error { return set.err }

// Stream returns the stream the set is of.
func (set *Set) Stream() *Stream { return set.st }

// At returns the n bytes at an offset of the file, or as many of them as lie in
// one piece of memory from there, or none where the set does not hold off. The
// memory is lent until Release.
func (set *Set) At(off int64, n int) []byte {
	lo, hi := 0, len(set.pins)
	for lo < hi {
		if mid := int(uint(lo+hi) / 2); set.pins[mid].off <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 || n <= 0 {
		return nil
	}
	p := &set.pins[lo-1]
	o := off - p.off
	if o >= int64(len(p.bytes)) {
		return nil
	}
	end := min(o+int64(n), int64(len(p.bytes)))
	return p.bytes[o:end:end]
}

// Release gives the set and all it holds back. It must not be touched after.
func (set *Set) Release() {
	set.st.s.post.put(letter{op: opRelease, set: set})
}

// spread makes pins of the wants: one a block, sorted, those it held before
// first among equals and kept.
func (set *Set) spread(block int64) {
	for _, w := range set.wants {
		for off := w.off &^ (block - 1); off < w.off+w.n; off += block {
			if k := len(set.pins); k > 0 && set.pins[k-1].off == off {
				continue
			}
			set.pins = append(set.pins, pin{off: off, block: none})
		}
	}
	set.wants = set.wants[:0]
	order := func(a, b pin) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(b.block, a.block)) }
	if !slices.IsSortedFunc(set.pins, order) {
		slices.SortFunc(set.pins, order)
	}
	set.pins = slices.CompactFunc(set.pins, func(a, b pin) bool { return a.off == b.off })
}

// letter is a message to Scheduler.run.
type letter struct {
	op     op
	set    *Set
	stream *Stream
	file   *File
}

type op uint8

const (
	opRead op = iota
	opRelease
	opOpen
	opClose
	opIdle
	opShut
)

// mailbox takes what is asked of the scheduler without ever making anybody
// wait for its work. It is bounded by what can be asked for: a stream has six
// sets, a set is read and released once.
type mailbox struct {
	mu     sync.Mutex
	in     []letter
	out    []letter // being worked on
	closed bool

	ring   *ring         // where run waits,
	bell   chan struct{} // or here
	asleep atomic.Bool
}

func (m *mailbox) init(r *ring) { m.ring, m.bell = r, make(chan struct{}, 1) }

// put posts a letter; false when the scheduler is closed.
func (m *mailbox) put(l letter) bool {
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.in = append(m.in, l)
	}
	m.mu.Unlock()
	if closed {
		return false
	}
	m.wake()
	return true
}

// wake makes run look at what there is, now or when it is through.
func (m *mailbox) wake() {
	if !m.asleep.CompareAndSwap(true, false) {
		return
	}
	if m.ring != nil {
		m.ring.wake()
		return
	}
	select {
	case m.bell <- struct{}{}:
	default:
	}
}

// sleep waits until somebody calls wake, a read of the ring has ended, or for
// so long. News is what it looks for before it closes its eyes.
func (m *mailbox) sleep(timer *time.Timer, d time.Duration, news func() bool) {
	m.asleep.Store(true)
	defer m.asleep.Store(false)
	m.mu.Lock()
	awake := len(m.in) > 0
	m.mu.Unlock()
	if awake || news() {
		return
	}
	if m.ring != nil {
		m.ring.wait(d)
		return
	}
	timer.Reset(d)
	select {
	case <-m.bell:
	case <-timer.C:
	}
}

// take returns all letters, valid until the next call.
func (m *mailbox) take() []letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.out)
	m.in, m.out = m.out[:0], m.in
	return m.out
}

// close posts the last letter.
func (m *mailbox) close() {
	m.mu.Lock()
	m.in = append(m.in, letter{op: opShut})
	m.closed = true
	m.mu.Unlock()
	m.wake()
}

// recycle makes a set free for the next NewSet.
func (m *mailbox) recycle(set *Set) {
	m.mu.Lock()
	set.free = true
	m.mu.Unlock()
}
