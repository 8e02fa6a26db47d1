package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is needed of linux/io_uring.h; see io_uring(7), io_uring_setup(2),
// io_uring_enter(2) and io_uring_register(2).
const (
	ioReadv      = 1
	ioReadFixed  = 4
	ioRead       = 22
	ioReadvFixed = 60 // Linux 6.15

	sqeFixedFile = 1 << 0

	setupClamp    = 1 << 4
	setupDisabled = 1 << 6
	setupSingle   = 1 << 12 // one thread submits (Linux 6.0)
	setupDefer    = 1 << 13 // completions are worked out while it waits (Linux 6.1)

	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	registerBuffers     = 0
	registerFiles       = 2
	registerFilesUpdate = 6
	registerProbe       = 8
	registerEnable      = 12
	registerSyncCancel  = 24

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

// ring is an io_uring. All of it but alarm belongs to the one thread that
// Scheduler.run is locked to, which also waits in it: a read that ends wakes
// this thread and no other. There are never more requests than entries.
type ring struct {
	fd       int
	alarm    int           // eventfd
	rung     [8]byte       // what is read from it
	armed    bool          // a read of it is under way
	limit    unix.Timespec // of a wait; the kernel has its address, so it is not on a stack
	newFD    int32         // likewise
	mem      []byte        // both rings
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

	files []int32 // free places among the registered files
	used  int32   // places used so far
	room  int32   // places in all
}

const (
	fixedPart  = 1 << 30 // of the pool, the most a registered buffer may be
	fixedFiles = 4096
)

// openRing sets up a ring for so many reads of so many blocks each. What it
// needs of the kernel came with Linux 6.1 at the latest.
func openRing(memory []byte, reads, run int) (*ring, error) {
	p := ringParams{flags: setupSingle | setupDefer | setupClamp | setupDisabled}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(reads+1), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd), memory: memory, alarm: -1}
	if err := r.init(&p, reads, run); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *ring) init(p *ringParams, reads, run int) (err error) {
	if int(p.sqEntries) <= reads {
		return fmt.Errorf("io_uring has %d entries, not %d", p.sqEntries, reads+1)
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
	if r.alarm, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	r.registerMemory()
	r.registerTable()
	return nil
}

// enter makes the calling thread the one the ring belongs to.
func (r *ring) enter() error {
	runtime.LockOSThread()
	return r.call(registerEnable, nil, 0)
}

// leave ends what enter began.
func (r *ring) leave() { runtime.UnlockOSThread() }

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
		r.fixedVec = probe.ops[ioReadvFixed].flags&1 != 0
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
	if r.update(place, -1) == nil { // else it is lost until Close
		r.files = append(r.files, place)
	}
}

func (r *ring) update(place, fd int32) error {
	r.newFD = fd
	u := struct {
		off, _ uint32
		fds    uint64
	}{off: uint32(place), fds: uint64(uintptr(unsafe.Pointer(&r.newFD)))}
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
	*e = sqe{op: ioReadv, fd: int32(fd), off: uint64(d.off), user: uint64(slot),
		addr: uint64(uintptr(unsafe.Pointer(&iovs[0]))), len: uint32(len(iovs))}
	switch {
	case r.fixed && len(iovs) == 1:
		e.op, e.buf = ioReadFixed, first
		e.addr, e.len = uint64(uintptr(unsafe.Pointer(&d.to[0][0]))), uint32(len(d.to[0]))
	case r.fixedVec && first == last:
		e.op, e.buf = ioReadvFixed, first
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

// reap calls fn for the reads that have ended.
func (r *ring) reap(fn func(completion)) {
	for head := *r.cqHead; head != atomic.LoadUint32(r.cqTail); head++ {
		e := r.cqes[head&r.cqMask]
		atomic.StoreUint32(r.cqHead, head+1)
		switch {
		case e.user == alarmUser:
			r.armed = false
		case e.res < 0:
			fn(completion{slot: int32(e.user), err: unix.Errno(-e.res)})
		default:
			fn(completion{slot: int32(e.user), n: int(e.res)})
		}
	}
}

const alarmUser = 1 << 32 // no slot of a read

// wait waits until a read has ended, somebody calls wake, or for so long.
func (r *ring) wait(d time.Duration) {
	if !r.armed {
		e := &r.sqes[r.tail&r.sqMask]
		r.tail++
		*e = sqe{op: ioRead, fd: int32(r.alarm), user: alarmUser, addr: uint64(uintptr(unsafe.Pointer(&r.rung))), len: uint32(len(r.rung))}
		r.armed = true
	}
	atomic.StoreUint32(r.sqTail, r.tail)
	r.limit = unix.NsecToTimespec(int64(d))
	arg := struct {
		sigmask uint64
		size, _ uint32
		ts      uint64
	}{ts: uint64(uintptr(unsafe.Pointer(&r.limit)))}
	n := r.tail - atomic.LoadUint32(r.sqHead)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 1, enterGetEvents|enterExtArg,
		uintptr(unsafe.Pointer(&arg)), unsafe.Sizeof(arg))
	switch errno {
	case 0, unix.ETIME, unix.EINTR:
	default:
		time.Sleep(time.Millisecond) // EAGAIN, EBUSY; never a busy loop
	}
}

var one = binary.NativeEndian.AppendUint64(nil, 1) // what an eventfd is rung with

// wake makes a wait under way, or the next, return. Anybody may call it.
func (r *ring) wake() {
	_, _ = unix.Write(r.alarm, one)
}

// cancel asks the kernel to give up a read, if it can at once.
func (r *ring) cancel(slot int32) {
	var arg [64]byte // struct io_uring_sync_cancel_reg: by user data, for no time
	binary.NativeEndian.PutUint64(arg[:], uint64(slot))
	binary.NativeEndian.PutUint32(arg[8:], ^uint32(0))
	_ = r.call(registerSyncCancel, unsafe.Pointer(&arg), 1)
}

// close ends the ring; no read may be under way.
func (r *ring) close() error {
	err := unix.Close(r.fd)
	for _, m := range [][]byte{r.sqeMem, r.mem} {
		if m != nil {
			err = errors.Join(err, unix.Munmap(m))
		}
	}
	if r.alarm >= 0 {
		err = errors.Join(err, unix.Close(r.alarm))
	}
	return err
}
