package engine

import (
	"math/bits"
	"time"
)

const (
	wheelTick  = time.Millisecond
	wheelSlots = 1024 // a power of two
)

// wheel holds the Streams of a pump by the millisecond in which they have
// something to send. What is due later than the wheel is long comes by once a
// turn. Times are since the Engine's start.
type wheel struct {
	slots [wheelSlots]*Stream // heads of lists
	used  [wheelSlots / 64]uint64
	tick  int64 // all slots up to here are empty
	due   streams
	n     int // Streams in slots
}

// streams is a queue of Streams.
type streams struct{ first, last *Stream }

func (q *streams) push(s *Stream) {
	s.next, s.prev = nil, q.last
	if q.last == nil {
		q.first = s
	} else {
		q.last.next = s
	}
	q.last = s
}

// A Stream's place in a wheel.
const (
	slotNone = -1
	slotDue  = -2
)

// add puts s in for a moment: it comes by in the first tick that begins then
// or later, which lies ahead.
func (w *wheel) add(s *Stream, at time.Duration) {
	tick := int64((at + wheelTick - 1) / wheelTick)
	tick = min(max(tick, w.tick+1), w.tick+wheelSlots-1)
	i := int(tick % wheelSlots)
	s.slot, s.prev, s.next = i, nil, w.slots[i]
	if s.next != nil {
		s.next.prev = s
	}
	w.slots[i] = s
	w.used[i/64] |= 1 << (i % 64)
	w.n++
}

// now makes s the next to come by, wherever it is.
func (w *wheel) now(s *Stream) {
	if s.slot == slotDue {
		return
	}
	w.remove(s)
	s.slot = slotDue
	w.due.push(s)
}

// remove takes s out, if it is in.
func (w *wheel) remove(s *Stream) {
	if s.slot == slotNone {
		return
	}
	head, tail := &w.due.first, &w.due.last
	if s.slot >= 0 {
		w.n--
		head, tail = &w.slots[s.slot], nil
	}
	if s.prev == nil {
		*head = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else if tail != nil {
		*tail = s.prev
	}
	if s.slot >= 0 && *head == nil {
		w.used[s.slot/64] &^= 1 << (s.slot % 64)
	}
	s.slot, s.prev, s.next = slotNone, nil, nil
}

// advance makes all that is due at now come by.
func (w *wheel) advance(now time.Duration) {
	for last := int64(now / wheelTick); w.tick < last; {
		if w.n == 0 {
			w.tick = last
			return
		}
		w.tick++
		i := int(w.tick % wheelSlots)
		for s := w.slots[i]; s != nil; {
			next := s.next
			s.slot = slotDue
			w.due.push(s)
			w.n--
			s = next
		}
		w.slots[i] = nil
		w.used[i/64] &^= 1 << (i % 64)
	}
}

// pop returns one that has come by, nil when there is none left.
func (w *wheel) pop() *Stream {
	s := w.due.first
	if s != nil {
		w.remove(s)
	}
	return s
}

// next returns when something is due; ok is false when the wheel is empty.
func (w *wheel) next() (at time.Duration, ok bool) {
	if w.due.first != nil {
		return 0, true
	}
	if w.n == 0 {
		return 0, false
	}
	first := int((w.tick + 1) % wheelSlots)
	for k := range len(w.used) + 1 { // the word of first twice: its end, its beginning
		word := w.used[(first/64+k)%len(w.used)]
		switch k {
		case 0:
			word &= ^uint64(0) << (first % 64)
		case len(w.used):
			word &= 1<<(first%64) - 1
		}
		if word != 0 {
			i := (first/64+k)%len(w.used)*64 + bits.TrailingZeros64(word)
			ahead := (i - first + wheelSlots) % wheelSlots
			return time.Duration(w.tick+1+int64(ahead)) * wheelTick, true
		}
	}
	return 0, false
}
