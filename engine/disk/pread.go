package disk

import (
	"errors"
	"io"
	"sync"
	"time"
)

// read is a read under way: a run of blocks of a file.
type read struct {
	file   *File
	handle Handle
	off    int64
	blocks []int32
	to     [][]byte
	lane   uint8
	stuck  bool
	ring   bool          // given to the ring
	began  time.Duration // since the epoch
}

// completion is the end of a read: bytes that were read from its start on.
type completion struct {
	slot int32
	n    int
	err  error
}

// preads reads with a goroutine for each read that may be under way. They are
// started when the first is needed, and stay.
type preads struct {
	done  chan completion
	post  *mailbox
	work  chan job
	begun bool
	alive sync.WaitGroup
}

type job struct {
	slot int32
	r    *read
}

func (p *preads) init(post *mailbox, slots int) {
	p.post, p.done, p.work = post, make(chan completion, slots), make(chan job, slots)
}

func (p *preads) push(slot int32, r *read) {
	if !p.begun {
		p.begun = true
		for range cap(p.work) {
			p.alive.Go(p.worker)
		}
	}
	p.work <- job{slot, r} // never full: as many fit as there are reads
}

func (p *preads) worker() {
	for j := range p.work {
		n, err := j.r.read()
		p.done <- completion{j.slot, n, err} // never full either
		p.post.wake()
	}
}

// close ends the goroutines, and waits for them when none can be stuck.
func (p *preads) close(wait bool) {
	close(p.work)
	if wait {
		p.alive.Wait()
	}
}

func (r *read) read() (n int, err error) {
	if f, ok := r.handle.(*osFile); ok {
		n, err = f.readAt(r.to, r.off)
	} else {
		for _, b := range r.to {
			var k int
			k, err = r.handle.ReadAt(b, r.off+int64(n))
			n += k
			if err != nil || k < len(b) {
				break
			}
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil // told by n
	}
	return n, err
}
