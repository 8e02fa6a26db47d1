package bench

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	shortBatch = 64      // datagrams of one recvmmsg
	wholeBatch = 16      // when they are read whole
	wholeSize  = 1 << 16 // of a datagram, or of what UDP_GRO puts together
	streamSize = 1 << 18 // octets of one read of a TCP connection
	inARow     = 16      // reads of one socket
	pollEvents = 1024
	ctrlSpace  = 64 // a time stamp and a segment size
	leaveTime  = 3 * time.Second
)

type slotKind uint8

const (
	rtpSlot slotKind = iota
	rtcpSlot
	controlSlot
)

// slot is a socket in the poll set; its index is the token.
type slot struct {
	kind slotKind
	fd   int
	s    *session
	t    *track
}

// reader receives for its sessions, in one thread. It does not wait for
// packets: it comes by every gather, and the kernel's time stamps tell when
// they came. So it costs little, and disturbs the server's timing little.
type reader struct {
	gather time.Duration
	gro    bool
	window *window

	mu       sync.Mutex
	incoming []*session

	packets, octets atomic.Uint64 // so far
	busy            atomic.Int64  // CPU time in the window, ns
	timeless        atomic.Uint64 // packets without a kernel time stamp

	epfd         int
	sessions     []*session
	slots        []slot
	at           int // session to tend next
	events       []unix.EpollEvent
	short, whole *received
	stream       []byte
	marked       int // 1: the window's begin is noted, 2: its end too
	began        int64
}

func newReader(gather time.Duration, gro bool, w *window) (*reader, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &reader{gather: gather, gro: gro, window: w, epfd: epfd,
		events: make([]unix.EpollEvent, pollEvents), short: newReceived(shortBatch, snap),
		whole: newReceived(wholeBatch, wholeSize), stream: make([]byte, maxText+4+streamSize)}, nil
}

// add gives a session to the reader.
func (r *reader) add(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.incoming = append(r.incoming, s)
}

// run receives until leave is closed, then takes leave of the servers and
// closes all sockets.
func (r *reader) run(leave <-chan struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tick := time.NewTicker(r.gather)
	defer tick.Stop()
	var deadline time.Time
	for {
		now := <-tick.C
		r.adopt()
		r.poll()
		r.mark(now.UnixNano())
		if !deadline.IsZero() {
			if now.After(deadline) || r.allGone() {
				break
			}
			continue
		}
		r.tend(now)
		select {
		case <-leave:
			deadline = now.Add(leaveTime)
			for _, s := range r.sessions {
				s.leave()
			}
		default:
		}
	}
	for _, s := range r.sessions {
		s.close()
	}
	_ = unix.Close(r.epfd)
}

func (r *reader) allGone() bool {
	for _, s := range r.sessions {
		if !s.gone {
			return false
		}
	}
	return true
}

// adopt takes in the sessions added.
func (r *reader) adopt() {
	r.mu.Lock()
	sessions := r.incoming
	r.incoming = nil
	r.mu.Unlock()
	for _, s := range sessions {
		r.sessions = append(r.sessions, s)
		for _, t := range s.tracks {
			if t.pair != nil {
				if r.gro {
					_ = unix.SetsockoptInt(t.pair.rtp, unix.SOL_UDP, unix.UDP_GRO, 1)
				}
				r.watch(slot{rtpSlot, t.pair.rtp, s, t})
				r.watch(slot{rtcpSlot, t.pair.rtcp, s, t})
			}
		}
		if s.control != nil {
			r.read(s, nil, time.Now().UnixNano())
			r.watch(slot{controlSlot, s.control.fd, s, nil})
		}
	}
}

func (r *reader) watch(s slot) {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(len(r.slots))}
	r.slots = append(r.slots, s)
	if unix.EpollCtl(r.epfd, unix.EPOLL_CTL_ADD, s.fd, &ev) != nil {
		s.s.over() // out of watches: it shows as a session that broke
	}
}

// poll reads what there is.
func (r *reader) poll() {
	for range inARow {
		n, err := unix.EpollWait(r.epfd, r.events, 0)
		if err != nil {
			return // EINTR: the next tick will
		}
		for i := range n {
			sl := &r.slots[r.events[i].Fd]
			switch sl.kind {
			case rtpSlot:
				r.readRTP(sl)
			case rtcpSlot:
				r.readRTCP(sl)
			case controlSlot:
				r.readControl(sl)
			}
		}
		if n < len(r.events) {
			return
		}
	}
}

// readRTP reads an RTP socket empty.
func (r *reader) readRTP(sl *slot) {
	in := r.short
	if r.gro || sl.t.full {
		in = r.whole
	}
	for range inARow {
		n := in.receive(sl.fd)
		for i := range n {
			r.datagram(sl.t, in.datagram(i))
		}
		if n < len(in.hdrs) {
			return
		}
	}
}

// datagram counts a datagram, or the run of packets that UDP_GRO made it of.
func (r *reader) datagram(t *track, d datagram) {
	at := d.at
	if at == 0 {
		at = time.Now().UnixNano()
		r.timeless.Add(1)
	}
	r.octets.Add(uint64(d.size))
	if d.segment == 0 || d.size <= d.segment {
		r.packets.Add(1)
		t.packet(d.b, d.size, at, r.window)
		return
	}
	for b := d.b; len(b) > 0; {
		n := min(d.segment, len(b))
		r.packets.Add(1)
		t.packet(b[:n], n, at, r.window)
		b = b[n:]
	}
}

func (r *reader) readRTCP(sl *slot) {
	for range inARow {
		n := r.whole.receive(sl.fd)
		for i := range n {
			sl.s.rtcp(sl.t, r.whole.datagram(i).b)
		}
		if n < len(r.whole.hdrs) {
			return
		}
	}
}

// readControl reads an RTSP connection: answers and, over TCP, the media.
func (r *reader) readControl(sl *slot) {
	for range inARow {
		rest := copy(r.stream, sl.s.rest)
		room := r.stream[rest:]
		n, at, errno := receiveStream(sl.fd, room)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			return
		case errno != 0 || n == 0:
			r.drop(sl)
			return
		}
		if at == 0 {
			at = time.Now().UnixNano()
		}
		r.octets.Add(uint64(n))
		if !r.read(sl.s, r.stream[:rest+n], at) {
			r.drop(sl)
			return
		}
		if n < len(room) {
			return
		}
	}
}

// read gives a session what came on its connection, nil for what came before.
func (r *reader) read(s *session, b []byte, at int64) bool {
	if b == nil {
		b = append([]byte(nil), s.rest...)
	}
	before := s.count()
	err := s.stream(b, at, r.window)
	if s.tcp {
		r.packets.Add(s.count() - before)
	}
	return err == nil
}

// drop takes a connection that has ended out of the poll set.
func (r *reader) drop(sl *slot) {
	sl.s.over()
	_ = unix.EpollCtl(r.epfd, unix.EPOLL_CTL_DEL, sl.fd, nil)
}

// tend looks after some of the sessions, all in their turn.
func (r *reader) tend(now time.Time) {
	share := 1 + int(int64(len(r.sessions))*4*int64(r.gather)/int64(reportEvery))
	for range min(share, len(r.sessions)) {
		r.at %= len(r.sessions)
		if s := r.sessions[r.at]; s.control != nil && !s.gone {
			s.tend(now)
		}
		r.at++
	}
}

// mark notes what changes over the window: our own CPU time and drops.
func (r *reader) mark(now int64) {
	from, to := r.window.from.Load(), r.window.to.Load()
	switch {
	case r.marked == 0 && from != 0 && now >= from:
		r.marked = 1
		r.began = threadTime()
		r.eachPair(func(p *udpPair) { p.dropped = p.drops() })
	case r.marked == 1 && now >= to:
		r.marked = 2
		r.busy.Store(threadTime() - r.began)
		r.eachPair(func(p *udpPair) { p.dropped = p.drops() - p.dropped })
	}
}

func (r *reader) eachPair(f func(*udpPair)) {
	for _, s := range r.sessions {
		for _, t := range s.tracks {
			if t.pair != nil {
				f(t.pair)
			}
		}
	}
}

// threadTime is the CPU time of this thread, ns.
func threadTime() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// received is room for what one recvmmsg brings.
type received struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	ctrls [][ctrlSpace]byte
	bufs  []byte
	size  int
}

// datagram is one of it; the octets are on loan until the next receive.
type datagram struct {
	b       []byte // the beginning, when read short
	size    int
	segment int   // of UDP_GRO, 0 if none
	at      int64 // Unix ns, 0 if the kernel did not say
}

func newReceived(n, size int) *received {
	in := &received{hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), ctrls: make([][ctrlSpace]byte, n),
		bufs: make([]byte, n*size), size: size}
	for i := range n {
		in.iovs[i].Base = &in.bufs[i*size]
		in.iovs[i].SetLen(size)
		in.hdrs[i].hdr.Iov = &in.iovs[i]
		in.hdrs[i].hdr.SetIovlen(1)
	}
	return in
}

// receive reads datagrams and returns how many. MSG_TRUNC tells their real
// length though only the beginning is copied.
func (in *received) receive(fd int) int {
	for i := range in.hdrs {
		in.hdrs[i].hdr.Control = &in.ctrls[i][0]
		in.hdrs[i].hdr.SetControllen(ctrlSpace)
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.hdrs[0])),
		uintptr(len(in.hdrs)), unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func (in *received) datagram(i int) datagram {
	h := &in.hdrs[i]
	d := datagram{size: int(h.n)}
	d.b = in.bufs[i*in.size : i*in.size+min(d.size, in.size)]
	d.at, d.segment = ancillary(in.ctrls[i][:h.hdr.Controllen])
	return d
}

// ancillary reads the time stamp and the segment size among control messages.
func ancillary(b []byte) (at int64, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		cm := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(cm.Len)
		if n < unix.SizeofCmsghdr || n > len(b) {
			return at, segment
		}
		data := b[unix.CmsgLen(0):n]
		switch {
		case cm.Level == unix.SOL_SOCKET && cm.Type == unix.SCM_TIMESTAMPNS && len(data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		case cm.Level == unix.SOL_UDP && cm.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(binary.NativeEndian.Uint32(data))
		}
		b = b[min(len(b), (n+7)&^7):]
	}
	return at, segment
}

// receiveStream reads from a TCP connection; at is when the last of it came.
func receiveStream(fd int, b []byte) (n int, at int64, errno unix.Errno) {
	var ctrl [ctrlSpace]byte
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	h := unix.Msghdr{Iov: &iov, Control: &ctrl[0]}
	h.SetIovlen(1)
	h.SetControllen(ctrlSpace)
	got, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
	if errno != 0 {
		return 0, 0, errno
	}
	at, _ = ancillary(ctrl[:h.Controllen])
	return int(got), at, 0
}
