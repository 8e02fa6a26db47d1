package wire

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fastSender sends a Batch by sendmmsg, runs of datagrams with UDP_SEGMENT.
type fastSender struct {
	main  outbox
	parts outbox // a refused run, one datagram a message

	waits int // polls left in this flush for a full socket buffer or device queue

	sendmmsg func(fd int, hdrs []mmsghdr) (int, unix.Errno) // tests put faults here
}

// outbox is messages as sendmmsg wants them. items[i] says what hdrs[i] is.
type outbox struct {
	hdrs  [sendMessages]mmsghdr
	ctrls [sendMessages][segmentSpace]byte
	items [sendMessages]item
	iovs  []unix.Iovec
	n     int
}

type item struct {
	m     *message // the message it is, or is a part of
	count int
	size  int
}

// segmentSpace is the room of the control message that carries UDP_SEGMENT's u16.
const segmentSpace = unix.SizeofCmsghdr + 8

// A full send buffer or device queue holds a flush up for at most flushWaits
// polls of waitMs: pumps must not stall for long, and what cannot leave by then
// is late anyway.
const (
	flushWaits  = 4
	waitMs      = 1
	sendRepeats = 2 // of a send that failed, for reasons that may be another's
)

func newFastSender() *fastSender {
	s := &fastSender{sendmmsg: sendmmsg}
	s.main.init(batchPieces)
	s.parts.init(2*maxPieces + sendMessages)
	return s
}

func sendmmsg(fd int, hdrs []mmsghdr) (int, unix.Errno) {
	// Raw: with MSG_DONTWAIT it never waits. The pump keeps its P for the time
	// the kernel needs to take 64 messages, well under a millisecond.
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdrs[0])),
		uintptr(len(hdrs)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

func (o *outbox) init(iovs int) {
	o.iovs = make([]unix.Iovec, 0, iovs)
	for i := range o.ctrls {
		cm := (*unix.Cmsghdr)(unsafe.Pointer(&o.ctrls[i][0]))
		cm.Level, cm.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		cm.SetLen(unix.CmsgLen(2))
	}
}

func (o *outbox) reset() { o.n, o.iovs = 0, o.iovs[:0] }

// put adds one send of the given pieces, as datagrams of segment bytes if it is
// more than one.
func (o *outbox) put(m *message, pieces [][]byte, count, size int) {
	first := len(o.iovs)
	for _, p := range pieces {
		v := unix.Iovec{Base: unsafe.SliceData(p)}
		v.SetLen(len(p))
		o.iovs = append(o.iovs, v)
	}
	h := &o.hdrs[o.n].hdr
	*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&m.dest.sys.name)), Namelen: m.dest.sys.namelen}
	if len(pieces) > 0 {
		h.Iov = &o.iovs[first]
		h.SetIovlen(len(pieces))
	}
	if count > 1 {
		*(*uint16)(unsafe.Pointer(&o.ctrls[o.n][unix.CmsgLen(0)])) = uint16(m.segment)
		h.Control = &o.ctrls[o.n][0]
		h.SetControllen(segmentSpace)
	}
	o.items[o.n] = item{m: m, count: count, size: size}
	o.n++
}

func (s *fastSender) flush(b *Batch) {
	s.waits = flushWaits
	for i := 0; i < len(b.msgs); {
		conn := b.msgs[i].conn
		s.main.reset()
		for ; i < len(b.msgs) && b.msgs[i].conn == conn && s.main.n < sendMessages; i++ {
			m := &b.msgs[i]
			s.main.put(m, b.pieces[m.first:m.first+m.pieces], m.count, m.size)
		}
		s.transmit(b, conn.(*fastConn).fd, &s.main)
	}
}

// transmit hands everything in o to the kernel. sendmmsg stops at the first
// message it cannot send and tells the reason only when asked to begin with
// that one (sendmmsg(2), BUGS); whatever the reason is, the others still go.
func (s *fastSender) transmit(b *Batch, fd int, o *outbox) {
	repeats := 0
	for i := 0; i < o.n; {
		n, errno := s.sendmmsg(fd, o.hdrs[i:o.n])
		if errno == 0 && n > 0 {
			b.Stats.Calls++
			for _, it := range o.items[i : i+n] {
				b.sent(it.m.dest, it.count, it.size)
			}
			i += n
			repeats = 0
			continue
		}
		it := o.items[i]
		switch {
		case errno == unix.EINTR:
			continue
		case (errno == unix.EAGAIN || errno == unix.ENOBUFS) && s.waits > 0:
			s.waits--
			wait(fd, errno)
			continue
		case errno == unix.EAGAIN || errno == unix.ENOBUFS:
			b.drop(it.m.dest, it.count)
		case it.count > 1 && (errno == unix.EIO || errno == unix.EINVAL):
			s.split(b, fd, it.m, errno)
		case repeats < sendRepeats:
			// Perhaps an ICMP error that an earlier datagram, to anybody,
			// brought back (udp(7)): it is told once, and fails this send
			// without having tried it.
			repeats++
			continue
		case it.count > 1 && errno == unix.EMSGSIZE:
			s.split(b, fd, it.m, errno)
		default:
			b.drop(it.m.dest, it.count)
		}
		i++
		repeats = 0
	}
}

// fanSys is the destinations' addresses.
type fanSys struct{ names []destSys }

func (s *fanSys) add(d *Dest)  { s.names = append(s.names, d.sys) }
func (s *fanSys) remove(i int) { s.names = slices.Delete(s.names, i, i+1) }

func (s *fastSender) fan(b *Batch, f *Fan, from, to int, data []byte, segment int) int {
	o := &s.main
	o.reset()
	v := unix.Iovec{Base: unsafe.SliceData(data)}
	v.SetLen(len(data))
	o.iovs = append(o.iovs, v)
	h := unix.Msghdr{Iov: &o.iovs[0]}
	h.SetIovlen(1)
	count := segments(data, segment)
	if count > 1 {
		*(*uint16)(unsafe.Pointer(&o.ctrls[0][unix.CmsgLen(0)])) = uint16(segment)
		h.Control = &o.ctrls[0][0]
		h.SetControllen(segmentSpace)
	}
	fd := f.conn.(*fastConn).fd
	for at, repeats := from, 0; at < to; {
		hdrs := o.hdrs[:min(to-at, sendMessages)]
		for i := range hdrs {
			name := &f.sys.names[at+i]
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&name.name)), name.namelen
			hdrs[i].hdr = h
		}
		n, errno := s.sendmmsg(fd, hdrs)
		switch {
		case errno == 0 && n > 0:
			b.Stats.Calls++
			b.Stats.sent(n, count, len(data))
			at, repeats = at+n, 0
		case errno == unix.EINTR:
		case repeats < sendRepeats && errno != unix.EAGAIN && errno != unix.ENOBUFS:
			repeats++ // as in transmit
		default:
			return at - from
		}
	}
	return to - from
}

// wait gives a full socket buffer (poll tells when it has room) or device queue
// (nothing tells) a millisecond.
func wait(fd int, errno unix.Errno) {
	if errno == unix.ENOBUFS {
		Sleep(waitMs * 1e6)
		return
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	_, _ = unix.Poll(fds, waitMs)
}

// split sends a refused run one datagram a message, and remembers that its
// destination does not take runs of such segments. EIO means none at all: a
// device without checksum offload, or IPsec (Linux net/ipv4/udp.c,
// udp_send_skb); the others that one segment does not fit the path's MTU.
func (s *fastSender) split(b *Batch, fd int, m *message, errno unix.Errno) {
	limit := m.segment - 1
	if errno == unix.EIO {
		limit = 0
	}
	m.dest.maxSegment.Store(int32(limit))
	b.Stats.Refused++
	b.net.refused(&SegmentError{To: m.dest.addr, Segment: m.segment, Err: errno})

	s.parts.reset()
	rest := cursor{pieces: b.pieces[m.first : m.first+m.pieces]}
	left := m.size
	var room [8][]byte
	for range m.count {
		size := min(m.segment, left)
		left -= size
		s.parts.put(m, rest.take(m.segment, room[:0]), 1, size)
	}
	s.transmit(b, fd, &s.parts)
}
