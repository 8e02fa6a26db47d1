package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pollEvents = 1024 // ready Conns told by one Wait

// NewPoller opens a Poller.
func (n *Net) NewPoller() (Poller, error) {
	if n.Plain {
		return newPlainPoller(), nil
	}
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	evfd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), unix.Close(epfd))
	}
	p := &fastPoller{epfd: epfd, evfd: evfd, raw: make([]unix.EpollEvent, pollEvents), events: make([]Event, 0, pollEvents),
		keeps: runtime.GOMAXPROCS(0) > runtime.NumCPU()}
	wake := unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeToken}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, evfd, &wake); err != nil {
		return nil, errors.Join(os.NewSyscallError("epoll_ctl", err), p.Close())
	}
	return p, nil
}

const wakeToken = -1

type fastPoller struct {
	epfd, evfd int
	raw        []unix.EpollEvent
	events     []Event
	coarse     bool // milliseconds only

	// keeps says that Go has processors to spare. Then the caller's is kept in
	// short waits: the runtime's monitor, which takes it from one that waits in a
	// system call that it knows of, looks every 20 µs for more of the kind, and that
	// was a sixth to a quarter of what a live stream cost. A collection's signal ends
	// the wait.
	keeps bool
}

// keepMost is the longest wait in which the processor is kept.
const keepMost = 10 * time.Millisecond

func (p *fastPoller) Sleep(d time.Duration) {
	if !p.keeps || d > keepMost {
		Sleep(d)
		return
	}
	ts := unix.NsecToTimespec(int64(d))
	for {
		if _, _, errno := unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), uintptr(unsafe.Pointer(&ts)), 0); errno != unix.EINTR {
			return
		}
	}
}

func (p *fastPoller) Add(c Conn, token int32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: token}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, c.(*fastConn).fd, &ev); err != nil {
		return fmt.Errorf("poll %v: %w", c.Local(), os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

func (p *fastPoller) Remove(c Conn) error {
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, c.(*fastConn).fd, nil); err != nil {
		return fmt.Errorf("poll %v: %w", c.Local(), os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

func (p *fastPoller) Wait(most time.Duration) ([]Event, error) {
	n, err := p.wait(most)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	p.events = p.events[:0]
	for i := range max(n, 0) {
		e := &p.raw[i]
		if e.Fd == wakeToken {
			var b [8]byte
			_, _ = unix.Read(p.evfd, b[:]) // EAGAIN: somebody's wake was read before
			continue
		}
		p.events = append(p.events, Event{Token: e.Fd, Failed: e.Events&unix.EPOLLERR != 0})
	}
	return p.events, nil
}

// wait is epoll_wait to the nanosecond, where the kernel has that (Linux 5.11);
// a sandbox may refuse it, too.
func (p *fastPoller) wait(most time.Duration) (int, error) {
	if most >= 0 && !p.coarse {
		ts := unix.NsecToTimespec(int64(most))
		var n uintptr
		var errno unix.Errno
		if most == 0 || p.keeps && most <= keepMost {
			n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.epfd), uintptr(unsafe.Pointer(&p.raw[0])),
				uintptr(len(p.raw)), uintptr(unsafe.Pointer(&ts)), 0, 0)
		} else {
			n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.epfd), uintptr(unsafe.Pointer(&p.raw[0])),
				uintptr(len(p.raw)), uintptr(unsafe.Pointer(&ts)), 0, 0)
		}
		switch errno {
		case 0:
			return int(n), nil
		case unix.ENOSYS, unix.EPERM:
			p.coarse = true
		default:
			return 0, errno
		}
	}
	ms := -1
	if most >= 0 {
		ms = int((min(most, time.Hour) + time.Millisecond - 1) / time.Millisecond)
	}
	return unix.EpollWait(p.epfd, p.raw, ms)
}

func (p *fastPoller) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(p.evfd, one[:]) // EAGAIN: it is awake already
}

func (p *fastPoller) Close() error {
	return errors.Join(unix.Close(p.evfd), unix.Close(p.epfd))
}

// Sleep blocks the calling thread. Unlike time.Sleep it leaves the goroutine on
// its thread, which for a locked one saves two thread switches.
func Sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&ts, &ts) == unix.EINTR {
	}
}

// Thread is an operating system thread of this process.
type Thread int

// LockThread ties the calling goroutine to its thread for good, names the
// thread (15 bytes, as top -H shows it; the main thread's name is the program's
// and stays) and lets it wake on time: the kernel delays an ordinary thread's
// timers by 50 µs (prctl(2), PR_SET_TIMERSLACK), and lets one that has the
// processor go on for some milliseconds. It goes before ordinary threads, if we
// may (CAP_SYS_NICE): what has to be on time must not wait for what has not. It is
// no real-time thread: nobody is kept off the processor for good.
func LockThread(name string) Thread {
	runtime.LockOSThread()
	t := Thread(unix.Gettid())
	var b [16]byte
	copy(b[:15], name)
	if int(t) != unix.Getpid() {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	for _, nice := range []int32{pumpNice, 0} {
		// Who asks for a short slice is let in sooner (sched(7); Linux 6.12).
		a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: nice, Runtime: 100_000}
		if unix.SchedSetAttr(0, &a, 0) == nil {
			break
		}
	}
	return t
}

// pumpNice is how far the threads that must be on time go before others.
const pumpNice = -15

// RaiseSession does for the whole process what LockThread does for a thread, where
// the process leads a session, as services do: the kernel shares the processors
// among sessions first, and only then among a session's threads, whose priorities
// count among themselves alone (sched(7), "The autogroup feature"). It needs
// CAP_SYS_NICE; where there are no such groups it does nothing.
func RaiseSession() error {
	if leader, _ := unix.Getsid(0); leader != unix.Getpid() {
		return nil // somebody else's session
	}
	err := os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(pumpNice)), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// CPU is the processor time the thread has used, in user space and for its
// system calls; 0 once it has ended.
func (t Thread) CPU() time.Duration {
	// The clock of one thread, as pthread_getcpuclockid makes it (Linux
	// include/linux/posix-timers_types.h: CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED).
	const perThread, sched = 4, 2
	var ts unix.Timespec
	if t == 0 || unix.ClockGettime(int32(^int(t)<<3|perThread|sched), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
