package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is needed of linux/io_uring.h; see io_uring(7), io_uring_setup(2),
// io_uring_enter(2) and io_uring_register(2).
const (
	opReadv      = 1
	opReadFixed  = 4
	opReadvFixed = 60 // Linux 6.15

	sqeFixedFile = 1 << 0

	setupClamp = 1 << 4

	featSingleMmap   = 1 << 0 // Linux 5.4
	featNoDrop       = 1 << 1 // Linux 5.5
	featSubmitStable = 1 << 2 // Linux 5.5: iovecs are copied at submission

	registerBuffers     = 0
	registerFiles       = 2
	registerEventfd     = 4
	registerFilesUpdate = 6
	registerProbe       = 8
	registerSyncCancel  = 24

	cancelAll = 1<<0 | 1<<2 // all requests, any at all

	offRing = 0
	offSQEs = 0x10000000
)

type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

type sqe struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	len       uint32
	rwFlags   uint32
	user      uint64
	buf       uint16
	_         [22]byte
}

type cqe struct {
	user  uint64
	res   int32
	flags uint32
}

// ring is an io_uring. Requests are pushed and submitted by Scheduler.run, and
// there are never more of them than entries. That some have ended comes through
// an eventfd that the Go runtime polls with its sockets, so that no thread waits.
type ring struct {
	fd       int
	events   *os.File
	mem      []byte // both rings
	sqeMem   []byte
	sqes     []sqe
	sqHead   *uint32
	sqTail   *uint32
	sqMask   uint32
	tail     uint32 // ours, before it is published
	cqHead   *uint32
	cqTail   *uint32
	cqMask   uint32
	cqes     []cqe
	iovs     [][]unix.Iovec // of each read
	memory   []byte         // the pool
	fixed    bool           // is registered
	fixedVec bool           // and several parts of it can be read into at once

	mu    sync.Mutex
	files []int32 // free places among the registered files
	used  int32   // places used so far
	room  int32   // places in all

	wake chan<- struct{}
	deaf chan struct{} // closed by listen
}

const (
	fixedPart  = 1 << 30 // of the pool, the most a registered buffer may be
	fixedFiles = 4096
)

// openRing sets up a ring for so many reads of so many blocks each.
func openRing(memory []byte, reads, run int, wake chan<- struct{}) (*ring, error) {
	var p ringParams
	p.flags = setupClamp
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(reads), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd), memory: memory, wake: wake, deaf: make(chan struct{})}
	if err := r.init(&p, reads, run); err != nil {
		return nil, errors.Join(err, r.unmap())
	}
	go r.listen()
	return r, nil
}

func (r *ring) init(p *ringParams, reads, run int) (err error) {
	if need := uint32(featSingleMmap | featNoDrop | featSubmitStable); p.features&need != need {
		return fmt.Errorf("io_uring of this kernel is too old (features %#x)", p.features)
	}
	if int(p.sqEntries) < reads {
		return fmt.Errorf("io_uring has %d entries of %d", p.sqEntries, reads)
	}
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.mem, err = unix.Mmap(r.fd, offRing, int(size), prot, flags); err != nil {
		return os.NewSyscallError("mmap io_uring", err)
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, flags); err != nil {
		return os.NewSyscallError("mmap io_uring", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[off])) }
	r.sqHead, r.sqTail, r.sqMask = at(p.sq.head), at(p.sq.tail), *at(p.sq.mask)
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.mask)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.mem[p.cq.cqes])), p.cqEntries)
	for i, array := uint32(0), unsafe.Slice(at(p.sq.array), p.sqEntries); i < p.sqEntries; i++ {
		array[i] = i // entry i of the ring is always request i
	}
	for range reads {
		r.iovs = append(r.iovs, make([]unix.Iovec, 0, run))
	}
	evfd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	r.events = os.NewFile(uintptr(evfd), "io_uring eventfd")
	fd := int32(evfd)
	if err := r.call(registerEventfd, unsafe.Pointer(&fd), 1); err != nil {
		return err
	}
	r.registerMemory()
	r.registerTable()
	return nil
}

func (r *ring) call(op uintptr, arg unsafe.Pointer, n int) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(arg), uintptr(n), 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_register %d: %w", op, errno)
	}
	return nil
}

// registerMemory has the kernel look up the pool's pages once for all. Without
// the privilege to lock that much memory (RLIMIT_MEMLOCK) it is done a read.
func (r *ring) registerMemory() {
	var parts []unix.Iovec
	for m := r.memory; len(m) > 0; m = m[min(fixedPart, len(m)):] {
		v := unix.Iovec{Base: &m[0]}
		v.SetLen(min(fixedPart, len(m)))
		parts = append(parts, v)
	}
	if r.call(registerBuffers, unsafe.Pointer(&parts[0]), len(parts)) != nil {
		return
	}
	r.fixed = true
	var probe struct {
		last, n uint8
		_       [14]byte
		ops     [256]struct {
			op, _ uint8
			flags uint16
			_     uint32
		}
	}
	if r.call(registerProbe, unsafe.Pointer(&probe), len(probe.ops)) == nil {
		r.fixedVec = probe.ops[opReadvFixed].flags&1 != 0
	}
}

// registerTable makes room for registered files, as many as we may have open.
func (r *ring) registerTable() {
	fds := make([]int32, fixedFiles)
	for i := range fds {
		fds[i] = -1
	}
	for n := fixedFiles; n >= 64; n /= 2 {
		if r.call(registerFiles, unsafe.Pointer(&fds[0]), n) == nil {
			r.room = int32(n)
			return
		}
	}
}

func (r *ring) String() string {
	return fmt.Sprintf("on, registered memory %v, in parts %v, registered files %d", r.fixed, r.fixedVec, r.room)
}

// register makes a file one of the registered; none when there is no place.
func (r *ring) register(fd int) int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	place := r.used
	if n := len(r.files); n > 0 {
		place, r.files = r.files[n-1], r.files[:n-1]
	} else if r.used++; place >= r.room {
		r.used = r.room
		return none
	}
	if r.update(place, int32(fd)) != nil {
		r.files = append(r.files, place)
		return none
	}
	return place
}

func (r *ring) unregister(place int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.update(place, -1) == nil { // else it is lost until Close
		r.files = append(r.files, place)
	}
}

func (r *ring) update(place, fd int32) error {
	u := struct {
		off, _ uint32
		fds    uint64
	}{off: uint32(place), fds: uint64(uintptr(unsafe.Pointer(&fd)))}
	return r.call(registerFilesUpdate, unsafe.Pointer(&u), 1)
}

// push adds a read, to be begun by the next submit.
func (r *ring) push(slot int32, d *read, fd int, reg int32) {
	iovs := r.iovs[slot][:0]
	for _, b := range d.to {
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		iovs = append(iovs, v)
	}
	first, last := r.part(d.to[0]), r.part(d.to[0])
	for _, b := range d.to[1:] {
		first, last = min(first, r.part(b)), max(last, r.part(b))
	}
	e := &r.sqes[r.tail&r.sqMask]
	r.tail++
	*e = sqe{op: opReadv, fd: int32(fd), off: uint64(d.off), user: uint64(slot),
		addr: uint64(uintptr(unsafe.Pointer(&iovs[0]))), len: uint32(len(iovs))}
	switch {
	case r.fixed && len(iovs) == 1:
		e.op, e.buf = opReadFixed, first
		e.addr, e.len = uint64(uintptr(unsafe.Pointer(&d.to[0][0]))), uint32(len(d.to[0]))
	case r.fixedVec && first == last:
		e.op, e.buf = opReadvFixed, first
	}
	if reg != none {
		e.fd, e.flags = reg, sqeFixedFile
	}
}

// part returns which registered buffer a block lies in.
func (r *ring) part(b []byte) uint16 {
	at := uintptr(unsafe.Pointer(&b[0])) - uintptr(unsafe.Pointer(&r.memory[0]))
	return uint16(at >> bits.TrailingZeros(fixedPart))
}

// submit hands what was pushed to the kernel. What it does not take for the
// moment (EAGAIN, EBUSY) it gets again the next time.
func (r *ring) submit() {
	atomic.StoreUint32(r.sqTail, r.tail)
	for {
		n := r.tail - atomic.LoadUint32(r.sqHead)
		if n == 0 {
			return
		}
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, 0, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return
		}
	}
}

// reap calls fn for the reads that have ended. It is called by Scheduler.run.
func (r *ring) reap(fn func(completion)) {
	for head := *r.cqHead; head != atomic.LoadUint32(r.cqTail); head++ {
		e := &r.cqes[head&r.cqMask]
		c := completion{slot: int32(e.user), n: int(e.res)}
		if e.res < 0 {
			c.n, c.err = 0, unix.Errno(-e.res)
		}
		atomic.StoreUint32(r.cqHead, head+1)
		fn(c)
	}
}

// listen wakes Scheduler.run when reads have ended, until the eventfd is closed.
func (r *ring) listen() {
	defer close(r.deaf)
	var count [8]byte
	for {
		if _, err := r.events.Read(count[:]); err != nil {
			return
		}
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// cancel asks the kernel to give up what it can of what is under way.
func (r *ring) cancel() {
	var arg [64]byte // struct io_uring_sync_cancel_reg
	binary.NativeEndian.PutUint32(arg[8:], ^uint32(0))
	binary.NativeEndian.PutUint32(arg[12:], cancelAll)
	// A timeout of zero: do not wait for those that cannot be cancelled.
	_ = r.call(registerSyncCancel, unsafe.Pointer(&arg), 1)
}

// close ends the ring; nothing may be under way.
func (r *ring) close() error {
	err := r.events.Close()
	<-r.deaf
	r.events = nil
	return errors.Join(err, r.unmap())
}

func (r *ring) unmap() error {
	var err error
	if r.events != nil {
		err = r.events.Close()
	}
	for _, m := range [][]byte{r.sqeMem, r.mem} {
		if m != nil {
			err = errors.Join(err, unix.Munmap(m))
		}
	}
	return errors.Join(err, unix.Close(r.fd))
}
