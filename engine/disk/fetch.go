package disk

import (
	"cmp"
	"io"
	"slices"
	"time"
)

// asked puts a set on its way.
func (s *Scheduler) asked(set *Set, now time.Duration) {
	set.counted, set.asked, set.turn = false, now, now
	s.follow(set.st, set, now)
	if s.isLater(set) {
		set.state = pending
		s.pending = append(s.pending, set)
		return
	}
	set.state = starved
	s.starved = append(s.starved, set)
	s.byAge()
}

// feed gives blocks to the sets whose turn it is, those of the oldest streams
// first. Where there are none left they wait half a cycle for others' release.
func (s *Scheduler) feed(now time.Duration) {
	if len(s.starved) == 0 {
		return
	}
	kept, short := s.starved[:0], !s.freed
	for _, set := range s.starved {
		if !short {
			ok, over := s.fetch(set, now)
			if ok {
				continue
			}
			short = !over // who wants more than was admitted makes nobody wait
		}
		if set.turn == now {
			s.stats.Starved++
		}
		if now-set.turn >= s.cfg.Cycle/2 {
			s.stats.Refused++
			s.complete(set, ErrMemory, now)
			continue
		}
		kept = append(kept, set)
	}
	clear(s.starved[len(kept):])
	s.starved, s.freed = kept, false
}

// fetch finds or takes a block for each part of the set that has none, and asks
// for those to be read that are not. When there are not enough it changes
// nothing; over says that the stream wants more than it was admitted for.
func (s *Scheduler) fetch(set *Set, now time.Duration) (ok, over bool) {
	set.spread(int64(s.size))
	st, f, need, more := set.st, set.st.file, 0, 0
	for k := range set.pins {
		if p := &set.pins[k]; p.block == none {
			more++
			if i := s.find(f, p.off/int64(s.size)); i == none || s.blocks[i].state == spare {
				need++
			}
		}
	}
	if over = st.holds+more > st.quota; over && need > 0 {
		need += max(0, s.promised-st.owed()) // out of reach
	}
	if need > len(s.heap) {
		return false, over
	}
	l := uint8(batch)
	if set.due < time.Duration(s.cycle+1)*s.cfg.Cycle {
		l = urgent
	}
	set.state = waiting
	defer s.promise(f)
	// What is there first, lest it is taken for what is not.
	for k := range set.pins {
		if p := &set.pins[k]; p.block == none {
			if i := s.find(f, p.off/int64(s.size)); i != none {
				s.stats.Hits++
				s.hit(i, l)
				s.hold(set, k, i)
			}
		}
	}
	for k := range set.pins {
		if p := &set.pins[k]; p.block == none {
			i := s.heap[0]
			s.take(i)
			if s.blocks[i].file != nil {
				s.forget(i)
			}
			s.name(i, f, p.off/int64(s.size))
			s.stats.Blocks++
			f.pinned++
			s.push(i, l)
			s.hold(set, k, i)
		}
	}
	if set.missing == 0 {
		s.complete(set, nil, now)
		return true, over
	}
	set.place = len(s.waiting)
	s.waiting = append(s.waiting, set)
	return true, over
}

// hit takes a block that is there already for one more set.
func (s *Scheduler) hit(i int32, l uint8) {
	switch b := &s.blocks[i]; {
	case b.state == spare:
		s.take(i)
		b.state = ready
		b.file.pinned++
	case l == urgent && b.state == queued && b.lane == batch:
		s.unlink(i)
		s.push(i, l)
	case l == urgent && b.state == fresh:
		b.lane = l
	}
}

// push has a block read.
func (s *Scheduler) push(i int32, l uint8) {
	b := &s.blocks[i]
	b.state, b.lane = fresh, l
	s.fresh = append(s.fresh, i)
}

func (s *Scheduler) hold(set *Set, k int, i int32) {
	b, p := &s.blocks[i], &set.pins[k]
	b.refs++
	set.st.hold(1)
	p.block = i
	p.bytes = s.bytes(i)[:s.valid(b)]
	if b.state != ready {
		p.wait, p.next, p.nextPin = true, b.waiting, b.pin
		b.waiting, b.pin = set, int32(k)
		set.missing++
	}
}

// valid is how many bytes of the file the block holds.
func (s *Scheduler) valid(b *block) int {
	return int(min(int64(s.size), b.file.ident.Size-b.n*int64(s.size)))
}

// forget makes a block hold nothing.
func (s *Scheduler) forget(i int32) {
	if f := s.unname(i); f.blocks == 0 {
		s.files.retire(s, f)
	}
}

// letGo takes a reference from a block.
func (s *Scheduler) letGo(i int32, now time.Duration) {
	b := &s.blocks[i]
	if b.refs--; b.refs > 0 {
		return
	}
	switch b.state {
	case ready:
		s.rest(i, now)
	case queued:
		s.unlink(i)
		s.discard(i)
	}
}

// rest gives a block back that may be wanted again.
func (s *Scheduler) rest(i int32, now time.Duration) {
	b := &s.blocks[i]
	b.left = now
	b.file.pinned--
	s.give(i, s.key(b, now))
	s.freed = true
}

// discard gives a block back with nothing in it.
func (s *Scheduler) discard(i int32) {
	s.blocks[i].file.pinned--
	s.forget(i)
	s.give(i, empty)
	s.freed = true
}

// promise reckons how many more blocks the streams of a file may come to want
// that were admitted for it: never more than there are of the file.
func (s *Scheduler) promise(f *File) {
	n := min(f.owed, max(f.share.maxBlocks-f.pinned, 0))
	s.promised += n - f.promised
	f.promised = n
}

// drop takes all from a set, wherever it stands.
func (s *Scheduler) drop(set *Set, now time.Duration) {
	switch set.state {
	case pending:
		s.pending = remove(s.pending, set)
	case starved:
		s.starved = remove(s.starved, set)
	case waiting:
		s.unwait(set)
	case finished:
		s.ready = remove(s.ready, set)
	}
	set.state = resting
	for k := range set.pins {
		p := &set.pins[k]
		if p.block == none {
			continue
		}
		b := &s.blocks[p.block]
		if p.wait {
			at, pin := &b.waiting, &b.pin
			for *at != set {
				q := &(*at).pins[*pin]
				at, pin = &q.next, &q.nextPin
			}
			*at, *pin = p.next, p.nextPin
		}
		b.at = set.at
		set.st.hold(-1)
		s.letGo(p.block, now)
	}
	s.promise(set.st.file)
	clear(set.pins)
	set.pins, set.missing = set.pins[:0], 0
}

func remove(sets []*Set, set *Set) []*Set {
	if i := slices.Index(sets, set); i >= 0 {
		return slices.Delete(sets, i, i+1)
	}
	return sets
}

func (s *Scheduler) unwait(set *Set) {
	n := len(s.waiting) - 1
	s.waiting[set.place], s.waiting[n].place = s.waiting[n], set.place
	s.waiting[n] = nil
	s.waiting = s.waiting[:n]
}

// complete makes a set ready to be handed over.
func (s *Scheduler) complete(set *Set, err error, now time.Duration) {
	if set.err == nil {
		set.err = err
	}
	s.late(set, now)
	set.state = finished
	set.pins = slices.DeleteFunc(set.pins, func(p pin) bool { return p.block == none })
	s.ready = append(s.ready, set)
	s.stats.Sets++
}

// enqueue puts blocks to be read into the lanes of their files, and the files
// into the queues, by place on the disk as far as that is known: files made one
// after the other have inodes, and mostly blocks, in this order.
func (s *Scheduler) enqueue() {
	if len(s.fresh) == 0 {
		return
	}
	slices.SortFunc(s.fresh, func(i, j int32) int {
		a, b := &s.blocks[i], &s.blocks[j]
		if a.file != b.file {
			return cmp.Or(cmp.Compare(a.file.ident.Device, b.file.ident.Device),
				cmp.Compare(a.file.ident.Inode, b.file.ident.Inode), cmp.Compare(a.file.id, b.file.id))
		}
		return cmp.Compare(a.n, b.n)
	})
	for _, i := range s.fresh {
		b := &s.blocks[i]
		if b.refs == 0 { // dropped meanwhile
			s.discard(i)
			continue
		}
		s.append(b.lane, i)
		if f := b.file; !f.inQueue[b.lane] {
			f.inQueue[b.lane] = true
			s.queue[b.lane] = append(s.queue[b.lane], f)
		}
	}
	s.fresh = s.fresh[:0]
}

// issue gives the disk as many reads as it may have, in one go.
func (s *Scheduler) issue(now time.Duration) {
	for l := range s.queue {
		q, kept := s.queue[l], 0
		for k, f := range q {
			if s.room[l] == 0 || len(s.idle) == 0 {
				kept += copy(q[kept:], q[k:])
				break
			}
			for f.lanes[l].head != none && s.mayRead(f, l) {
				s.start(f, l, now)
			}
			if f.inQueue[l] = f.lanes[l].head != none; f.inQueue[l] {
				q[kept] = f
				kept++
			}
		}
		clear(q[kept:])
		s.queue[l] = q[:kept]
	}
	if s.ring != nil {
		s.ring.submit()
	}
}

func (s *Scheduler) mayRead(f *File, l int) bool {
	return s.room[l] > 0 && len(s.idle) > 0 && f.stuck == 0 && f.under[l] < s.perFile[l]
}

// start begins a read of the blocks at the head of a lane that follow each other.
func (s *Scheduler) start(f *File, l int, now time.Duration) {
	slot := s.idle[len(s.idle)-1]
	s.idle = s.idle[:len(s.idle)-1]
	r := &s.slots[slot]
	r.file, r.handle, r.lane, r.stuck, r.began = f, f.handle, uint8(l), false, now
	r.blocks, r.to = r.blocks[:0], r.to[:0]
	for i := f.lanes[l].head; i != none; {
		b := &s.blocks[i]
		if k := len(r.blocks); k == 0 {
			r.off = b.n * int64(s.size)
		} else if k == cap(r.blocks) || b.n != s.blocks[r.blocks[k-1]].n+1 || b.alone || s.blocks[r.blocks[0]].alone {
			break
		}
		s.unlink(i)
		b.state = reading
		r.blocks, r.to = append(r.blocks, i), append(r.to, s.bytes(i))
		i = f.lanes[l].head
	}
	f.under[l]++
	s.room[l]--
	s.stats.Reads++
	if s.busyFrom == 0 {
		s.busyFrom = now
	}
	if r.ring = s.ring != nil && f.os != nil; r.ring {
		if !f.tried {
			f.reg, f.tried = s.ring.register(f.os.fd), true
		}
		s.ring.push(slot, r, f.os.fd, f.reg)
	} else {
		s.reads.push(slot, r)
	}
}

// findStuck takes reads that take too long out of the count: others go on in
// their place. Their file is left alone until they come back.
func (s *Scheduler) findStuck(now time.Duration) {
	if len(s.idle) == len(s.slots) {
		return
	}
	for i := range s.slots {
		r := &s.slots[i]
		if r.file == nil || r.stuck || now-r.began < s.patience {
			continue
		}
		r.stuck = true
		r.file.under[r.lane]--
		s.room[r.lane]++
		s.stuck++
		if r.file.stuck++; r.file.stuck == 1 {
			s.log.Warn("disk: read does not come back", "file", r.file.name, "off", r.off, "after", now-r.began)
		}
	}
}

// finish takes in what a read brought.
func (s *Scheduler) finish(c completion, now time.Duration) {
	r := &s.slots[c.slot]
	f := r.file
	if r.stuck {
		s.stuck--
		f.stuck--
	} else {
		f.under[r.lane]--
		s.room[r.lane]++
	}
	if r.ring {
		f.os.forget(r.off, c.n)
	}
	s.times.Add(now-r.began, 1)
	s.stats.Bytes += uint64(c.n)
	if c.err == nil {
		c.err = io.ErrUnexpectedEOF // if it is short
	}
	failed := false
	for k, i := range r.blocks {
		b := &s.blocks[i]
		switch {
		case c.n >= k*s.size+s.valid(b):
			s.arrived(i, now)
		case b.refs == 0:
			s.discard(i)
		case !b.alone:
			b.alone = true // another try, by itself
			s.push(i, r.lane)
		default:
			failed = true
			s.failed(i, &ReadError{f.name, b.n * int64(s.size), c.err}, now)
		}
	}
	if failed {
		s.stats.Errors++
	}
	s.promise(f)
	clear(r.to)
	r.file, r.handle = nil, nil
	s.idle = append(s.idle, c.slot)
	if len(s.idle) == len(s.slots) {
		s.busy += now - s.busyFrom
		s.busyFrom = 0
	}
	if f.unused {
		s.files.retire(s, f)
	}
}

// arrived tells the sets that wait for a block.
func (s *Scheduler) arrived(i int32, now time.Duration) {
	b := &s.blocks[i]
	b.state, b.alone = ready, false
	s.tell(b, nil, now)
	if b.refs == 0 { // nobody waited any more
		s.rest(i, now)
	}
}

// failed takes a block that cannot be read from the sets that wait for it.
func (s *Scheduler) failed(i int32, err error, now time.Duration) {
	s.tell(&s.blocks[i], err, now)
	s.discard(i)
}

func (s *Scheduler) tell(b *block, err error, now time.Duration) {
	for set := b.waiting; set != nil; {
		p := &set.pins[b.pin]
		next, pin := p.next, p.nextPin
		p.wait, p.next = false, nil
		if err != nil {
			b.refs--
			set.st.hold(-1)
			p.block, p.bytes = none, nil
			if set.err == nil {
				set.err = err
			}
		}
		if set.missing--; set.missing == 0 {
			s.unwait(set)
			s.complete(set, nil, now)
		}
		set, b.pin = next, pin
	}
	b.waiting = nil
}
