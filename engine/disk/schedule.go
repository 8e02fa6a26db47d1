package disk

import (
	"cmp"
	"slices"
	"time"
)

// core is the state of the scheduler proper. Times are since the epoch.
type core struct {
	pool
	ledger  ledger
	streams []*Stream
	ages    uint64

	cycle   int64  // whose batch was made last
	pending []*Set // for a later cycle
	starved []*Set // for blocks, oldest stream first
	waiting []*Set // for reads
	ready   []*Set // to be handed over
	freed   bool   // blocks, since the starved had their turn

	promised int // blocks kept for streams that hold less than they were admitted for

	fresh []int32        // blocks to be put into lanes
	queue [lanes][]*File // files with blocks in a lane
	moved []*File        // whose blocks need new keys
	lates []*File        // with underruns in this cycle

	slots    []read
	idle     []int32    // slots without a read
	room     [lanes]int // for more reads
	perFile  [lanes]int // reads of one file at most
	stuck    int
	patience time.Duration // how long a read may take before it is stuck
	busyFrom time.Duration // since when the disk has something to do; 0 when it has not
	busy     time.Duration // in this cycle, before that
	closing  time.Duration // since when; 0 when open
}

// urgentDepth is how many reads beyond the depth starting streams may have.
func urgentDepth(depth int) int { return depth/2 + 1 }

func (s *Scheduler) init(memory []byte, slots int) {
	c, cfg := &s.core, &s.cfg
	c.adopt(memory, cfg.BlockSize)
	c.ledger.Budget = cfg.budget()
	run := cfg.MaxRead / cfg.BlockSize
	c.slots = make([]read, slots)
	for i := range c.slots {
		c.slots[i].blocks = make([]int32, 0, run)
		c.slots[i].to = make([][]byte, 0, run)
		c.idle = append(c.idle, int32(i))
	}
	c.fresh = make([]int32, 0, len(c.blocks))
	c.room = [lanes]int{urgent: urgentDepth(cfg.Depth), batch: cfg.Depth}
	for l, n := range c.room {
		c.perFile[l] = (n + 1) / 2 // so that one that does not answer leaves half to the others
	}
	c.patience = max(cfg.Cycle/4, 100*time.Millisecond)
}

// closeWait is how long Close waits for reads under way.
const closeWait = 2 * time.Second

// run is the scheduler's goroutine, and the only one that reads the clock. It
// says when it has begun, or why it cannot.
func (s *Scheduler) run(begun chan<- error) {
	defer close(s.ended)
	if s.ring != nil {
		defer s.ring.leave()
		if err := s.ring.enter(); err != nil {
			begun <- err
			return
		}
	}
	begun <- nil
	timer := time.NewTimer(s.cfg.Cycle)
	defer timer.Stop()
	news := func() bool { return len(s.reads.done) > 0 }
	for {
		s.mu.Lock()
		now := max(time.Since(s.epoch), 1)
		s.step(now)
		pause := s.pause(now)
		end := s.closing > 0 && (len(s.idle) == len(s.slots) || now > s.closing+closeWait)
		s.mu.Unlock()
		s.deliver()
		if end {
			return
		}
		s.post.sleep(timer, pause, news)
	}
}

// deliver hands over the sets that are ready.
func (s *Scheduler) deliver() {
	for _, set := range s.ready {
		set.state, set.busy = resting, false
		set.st.to.Ready(set)
	}
	clear(s.ready)
	s.ready = s.ready[:0]
}

// pause is how long there is nothing to do unless something happens.
func (s *Scheduler) pause(now time.Duration) time.Duration {
	d := time.Duration(s.cycle+1)*s.cfg.Cycle - now
	if len(s.idle) < len(s.slots) || len(s.starved) > 0 {
		d = min(d, s.patience/2)
	}
	if s.closing > 0 {
		d = min(d, closeWait/100)
	}
	return max(d, 0)
}

// step does all there is to do at the time now.
func (s *Scheduler) step(now time.Duration) {
	for len(s.reads.done) > 0 {
		s.finish(<-s.reads.done, now)
	}
	if s.ring != nil {
		s.ring.reap(func(c completion) { s.finish(c, now) })
	}
	for _, l := range s.post.take() {
		s.obey(l, now)
	}
	if now >= time.Duration(s.cycle+1)*s.cfg.Cycle {
		s.tick(now)
	}
	s.feed(now)
	s.findStuck(now)
	s.enqueue()
	s.issue(now)
	if s.closing > 0 && s.ring != nil {
		for i := range s.slots {
			if s.slots[i].file != nil && s.slots[i].ring {
				s.ring.cancel(int32(i)) // again and again: it may come too early
			}
		}
	}
}

func (s *Scheduler) obey(l letter, now time.Duration) {
	switch st := l.stream; l.op {
	case opRead:
		if st = l.set.st; !st.ended {
			s.asked(l.set, now)
		}
	case opRelease:
		s.drop(l.set, now)
		l.set.wants, l.set.busy = l.set.wants[:0], false
		s.post.recycle(l.set)
		s.part(l.set.st)
	case opOpen:
		s.ages++
		st.age, st.index = s.ages, len(s.streams)
		s.streams = append(s.streams, st)
		st.file.owed += st.quota
		s.promise(st.file)
	case opClose:
		s.end(st, now)
	case opIdle:
		l.file.unused = true
		s.files.retire(s, l.file)
	case opShut:
		s.shut(now)
	}
}

// end closes a stream: what it waits for is dropped.
func (s *Scheduler) end(st *Stream, now time.Duration) {
	st.ended = true
	s.halt(st)
	s.post.mu.Lock()
	sets := st.sets // nobody adds to them any more
	s.post.mu.Unlock()
	for _, set := range sets {
		if set.state != resting {
			s.drop(set, now)
		}
	}
	s.part(st)
}

// part forgets a stream that is closed when the last of its sets is back.
func (s *Scheduler) part(st *Stream) {
	if !st.ended || st.holds > 0 || st.index == none {
		return
	}
	last := s.streams[len(s.streams)-1]
	s.streams[st.index], last.index = last, st.index
	s.streams[len(s.streams)-1] = nil
	s.streams = s.streams[:len(s.streams)-1]
	st.index = none
	st.file.owed -= st.quota
	s.promise(st.file)
	s.ledger.leave(&st.file.share, st.demand)
	s.files.letGo(s, st.file)
}

// shut ends all streams, for Close.
func (s *Scheduler) shut(now time.Duration) {
	s.closing = now
	for _, st := range slices.Clone(s.streams) {
		s.end(st, now)
	}
}

// tick begins a cycle: what the next one needs becomes one batch.
func (s *Scheduler) tick(now time.Duration) {
	last := s.cycle
	s.cycle = int64(now / s.cfg.Cycle)
	s.account(now, s.cycle-last)
	s.sayLate(now)
	s.rekey(now)

	later := s.pending[:0]
	from := len(s.starved)
	for _, set := range s.pending {
		if s.isLater(set) {
			later = append(later, set)
		} else {
			set.state, set.turn = starved, now
			s.starved = append(s.starved, set)
		}
	}
	clear(s.pending[len(later):])
	s.pending = later
	if len(s.starved) > from {
		s.byAge()
	}
}

func (s *Scheduler) byAge() {
	slices.SortStableFunc(s.starved, func(a, b *Set) int { return cmp.Compare(a.st.age, b.st.age) })
	s.freed = true
}

// isLater reports whether a set is for a batch to come: the one in whose cycle
// k this is reads what is due before the end of cycle k+1.
func (s *Scheduler) isLater(set *Set) bool {
	return set.due >= time.Duration(s.cycle+2)*s.cfg.Cycle
}

// account closes the books of the cycle that is over.
func (s *Scheduler) account(now time.Duration, cycles int64) {
	if s.busyFrom > 0 {
		s.busy += now - s.busyFrom
		s.busyFrom = now
	}
	s.stats.Cycles += uint64(cycles)
	s.stats.Used, s.stats.UsedMax = s.busy, max(s.stats.UsedMax, s.busy)
	s.busy = 0
	if len(s.queue[batch]) > 0 || s.room[batch] < s.cfg.Depth {
		s.stats.Overruns++
	}
}

// sayLate counts the sets that are late and still missing, and logs the
// underruns of the last cycle, a line a file.
func (s *Scheduler) sayLate(now time.Duration) {
	for _, set := range s.waiting {
		s.late(set, now)
	}
	for _, set := range s.starved {
		s.late(set, now)
	}
	for _, f := range s.lates {
		s.log.Warn("disk: underrun", "file", f.name, "sets", f.late, "late", f.worst)
		f.late, f.worst = 0, 0
	}
	clear(s.lates)
	s.lates = s.lates[:0]
}

// late counts a set that is late, once.
func (s *Scheduler) late(set *Set, now time.Duration) {
	if now <= set.due || set.due <= set.asked {
		return
	}
	f := set.st.file
	f.worst = max(f.worst, now-set.due)
	if set.counted {
		return
	}
	set.counted = true
	s.stats.Underruns++
	if f.late++; f.late == 1 {
		s.lates = append(s.lates, f)
	}
}

// follow notes where in the movie a stream is when it asks for a set.
func (s *Scheduler) follow(st *Stream, set *Set, now time.Duration) {
	due := set.due
	if due == 0 {
		due = now
	}
	st.heard = due
	phase := due - set.at
	if st.playing && (phase-st.phase).Abs() < s.cfg.Cycle/8 {
		return
	}
	s.halt(st)
	st.phase, st.playing = phase, true
	i, _ := st.file.seat(st)
	st.file.readers = slices.Insert(st.file.readers, i, st)
	s.move(st.file)
}

// halt takes a stream from among those that play.
func (s *Scheduler) halt(st *Stream) {
	if !st.playing {
		return
	}
	st.playing = false
	if i, ok := st.file.seat(st); ok {
		st.file.readers = slices.Delete(st.file.readers, i, i+1)
	}
	s.move(st.file)
}

func (s *Scheduler) move(f *File) {
	if !f.moved {
		f.moved = true
		s.moved = append(s.moved, f)
	}
}

// rekey finds out anew when blocks are needed, of files where streams came,
// went, sought or fell silent.
func (s *Scheduler) rekey(now time.Duration) {
	for _, st := range s.streams {
		if st.playing && st.heard+2*s.cfg.Cycle < now {
			s.halt(st)
		}
	}
	if len(s.moved) == 0 {
		return
	}
	for _, i := range s.heap {
		if b := &s.blocks[i]; b.file != nil && b.file.moved {
			b.key = s.key(b, now)
		}
	}
	s.order()
	for _, f := range s.moved {
		f.moved = false
	}
	clear(s.moved)
	s.moved = s.moved[:0]
}

// key is what the heap sorts a block by that nobody holds.
func (s *Scheduler) key(b *block, now time.Duration) int64 {
	if at, ok := b.file.nextUse(b.at, now); ok {
		return int64(at)
	}
	return unneeded - int64(b.left)
}
