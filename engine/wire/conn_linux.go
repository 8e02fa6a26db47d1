package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const fastSystem = true

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received or sent
}

// probe says whether the kernel knows UDP_SEGMENT (Linux 4.18) and UDP_GRO (5.0).
func probe() (gso, gro bool) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, false
	}
	defer func() { _ = unix.Close(fd) }()
	gso = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, 1200) == nil && !corruptsRuns()
	gro = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) == nil
	return gso, gro
}

// corruptsRuns is true for Linux 7.0 to 7.1.4, reported to damage UDP_SEGMENT
// sends whose segments are all of the same length.
func corruptsRuns() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor, patch int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d.%d", &major, &minor, &patch); n < 2 {
		return false
	}
	return major == 7 && (minor == 0 || minor == 1 && patch <= 4)
}

type fastConn struct {
	fd    int
	local netip.AddrPort
	lost  atomic.Uint64
}

func listenFast(local netip.AddrPort, n *Net) (_ Conn, err error) {
	family := unix.AF_INET
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	set := func(level, name, value int, what string) {
		if e := unix.SetsockoptInt(fd, level, name, value); e != nil && err == nil {
			err = os.NewSyscallError("setsockopt "+what, e)
		}
	}
	// ICMP errors are wanted for the statistics (ip(7), IP_RECVERR). The price
	// is that each also fails one unrelated send, which transmit repeats.
	if family == unix.AF_INET6 {
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY")
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1, "IPV6_RECVERR")
	} else {
		set(unix.IPPROTO_IP, unix.IP_RECVERR, 1, "IP_RECVERR")
	}
	if n.GRO {
		set(unix.SOL_UDP, unix.UDP_GRO, 1, "UDP_GRO")
	}
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1) // only a statistic
	grow(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, n.buffer)
	grow(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, n.buffer)

	sa, err := sockaddr(local)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if local.Port() == 0 {
		bound, err := unix.Getsockname(fd)
		if err != nil {
			return nil, os.NewSyscallError("getsockname", err)
		}
		switch b := bound.(type) {
		case *unix.SockaddrInet4:
			local = netip.AddrPortFrom(local.Addr(), uint16(b.Port))
		case *unix.SockaddrInet6:
			local = netip.AddrPortFrom(local.Addr(), uint16(b.Port))
		}
	}
	return &fastConn{fd: fd, local: local}, nil
}

// grow asks for a socket buffer, beyond the system's limit where we may.
func grow(fd, force, polite, bytes int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, polite, bytes) // the kernel caps it
	}
}

func (c *fastConn) Local() netip.AddrPort { return c.local }
func (c *fastConn) Lost() uint64          { return c.lost.Load() }
func (c *fastConn) Close() error          { return os.NewSyscallError("close", unix.Close(c.fd)) }

func (c *fastConn) Send(d *Dest, packet []byte) {
	sa, err := sockaddr(d.addr)
	for i := 0; sa != nil && i <= sendRepeats; i++ { // an earlier datagram's ICMP error fails one send
		if err = unix.Sendto(c.fd, packet, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, sa); err == nil {
			break
		}
	}
	d.count(len(packet), err)
}

// inboxSys are the headers recvmmsg fills, one for each slot, pointing into it.
type inboxSys struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6 // room for either family
	ctrls [][controlBytes]byte
}

// controlBytes holds the segment size (int) and the drop counter (u32).
const controlBytes = 2 * (unix.SizeofCmsghdr + 8)

func (in *Inbox) init(size int) (err error) {
	if in.memory, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	n := len(in.msgs)
	s := inboxSys{
		hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n),
		names: make([]unix.RawSockaddrInet6, n), ctrls: make([][controlBytes]byte, n),
	}
	for i := range n {
		s.iovs[i].Base = &in.slot(i)[0]
		s.iovs[i].SetLen(len(in.slot(i)))
		h := &s.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Iov = &s.iovs[i]
		h.SetIovlen(1)
		h.Control = &s.ctrls[i][0]
	}
	in.sys = s
	return nil
}

// Close gives the memory back. Nobody may hold a Message any more.
func (in *Inbox) Close() error {
	if in.sys.hdrs == nil {
		return nil
	}
	return os.NewSyscallError("munmap", unix.Munmap(in.memory))
}

func (c *fastConn) Recv(in *Inbox) ([]Message, error) {
	first := in.next
	hdrs := in.sys.hdrs[first:min(len(in.msgs), first+recvMessages)]
	if len(hdrs) == 0 {
		return nil, nil
	}
	for i := range hdrs {
		hdrs[i].hdr.Namelen = unix.SizeofSockaddrInet6
		hdrs[i].hdr.SetControllen(controlBytes)
	}
	for try := 0; ; try++ {
		// Raw: it never waits, so the scheduler need not know.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&hdrs[0])),
			uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			in.next += int(n)
			for i := first; i < in.next; i++ {
				c.message(in, i)
			}
			return in.msgs[first:in.next], nil
		case errno == unix.EAGAIN:
			return nil, nil
		case try < 4: // EINTR, or an ICMP error of an earlier send, told once
		default:
			return nil, os.NewSyscallError("recvmmsg", errno)
		}
	}
}

// message makes in.msgs[i] from what the kernel wrote for slot i.
func (c *fastConn) message(in *Inbox, i int) {
	h := &in.sys.hdrs[i]
	n := int(h.n)
	m := &in.msgs[i]
	m.Data, m.Segment = in.slot(i)[:n:n], n
	m.From = fromRaw(&in.sys.names[i])
	control := in.sys.ctrls[i][:h.hdr.Controllen]
	for len(control) >= unix.SizeofCmsghdr {
		cm := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(cm.Len)
		if size < unix.CmsgLen(4) || size > len(control) {
			return
		}
		value := binary.NativeEndian.Uint32(control[unix.CmsgLen(0):])
		switch {
		case cm.Level == unix.SOL_UDP && cm.Type == unix.UDP_GRO:
			if value > 0 && int(value) < n {
				m.Segment = int(value)
			}
		case cm.Level == unix.SOL_SOCKET && cm.Type == unix.SO_RXQ_OVFL:
			c.lost.Store(uint64(value))
		}
		control = control[min(len(control), unix.CmsgSpace(size-unix.CmsgLen(0))):]
	}
}

// Failures empties the socket's error queue (ip(7), IP_RECVERR), whose
// messages carry the address the failed datagram was sent to.
func (c *fastConn) Failures(fn func(to netip.AddrPort, err error)) {
	var (
		name    unix.RawSockaddrInet6
		control [256]byte
	)
	for range 1024 { // level-triggered: what is left is reported again
		h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: unix.SizeofSockaddrInet6, Control: &control[0]}
		h.SetControllen(len(control))
		_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&h)),
			unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno != 0 {
			// Also an error that left no message must be taken off the socket.
			_, _ = unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			return
		}
		cms, err := unix.ParseSocketControlMessage(control[:h.Controllen])
		if err != nil {
			continue
		}
		for _, cm := range cms {
			v4 := cm.Header.Level == unix.IPPROTO_IP && cm.Header.Type == unix.IP_RECVERR
			v6 := cm.Header.Level == unix.IPPROTO_IPV6 && cm.Header.Type == unix.IPV6_RECVERR
			if (v4 || v6) && len(cm.Data) >= 4 {
				fn(fromRaw(&name), unix.Errno(binary.NativeEndian.Uint32(cm.Data)))
			}
		}
	}
}

// destSys is a Dest's address as the kernel wants it.
type destSys struct {
	name    unix.RawSockaddrInet6 // or RawSockaddrInet4 in the same place
	namelen uint32
}

func (d *Dest) init() {
	port := d.addr.Port()
	if ip := d.addr.Addr(); ip.Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&d.sys.name))
		sa.Family, sa.Port, sa.Addr = unix.AF_INET, swap(port), ip.As4()
		d.sys.namelen = unix.SizeofSockaddrInet4
	} else {
		sa := &d.sys.name
		sa.Family, sa.Port, sa.Addr = unix.AF_INET6, swap(port), ip.As16()
		sa.Scope_id = zoneIndex(ip.Zone())
		d.sys.namelen = unix.SizeofSockaddrInet6
	}
}

func fromRaw(sa *unix.RawSockaddrInet6) netip.AddrPort {
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), swap(v4.Port))
	}
	ip := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 {
		ip = ip.WithZone(zoneName(sa.Scope_id))
	}
	return netip.AddrPortFrom(ip, swap(sa.Port))
}

// swap converts a port between this machine's and network byte order.
func swap(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if ip := a.Addr(); ip.Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, nil
	} else if ip.Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16(), ZoneId: zoneIndex(ip.Zone())}, nil
	}
	return nil, fmt.Errorf("address %v: %w", a, unix.EAFNOSUPPORT)
}

// Link-local addresses carry the interface by name in netip and by index in the
// kernel. Names are kept: looking one up allocates and asks the kernel.
var zoneNames sync.Map // uint32 → string

func zoneName(index uint32) string {
	if name, ok := zoneNames.Load(index); ok {
		return name.(string)
	}
	name := strconv.FormatUint(uint64(index), 10)
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		name = i.Name
	}
	zoneNames.Store(index, name)
	return name
}

func zoneIndex(name string) uint32 {
	if name == "" {
		return 0
	}
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(name, 10, 32)
	return uint32(n)
}

// RaiseFileLimit lets the process open as many files, so sockets, as it may,
// and as root up to want. It returns what is now allowed.
func RaiseFileLimit(want uint64) (uint64, error) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	if now.Cur >= want {
		return now.Cur, nil
	}
	raised := unix.Rlimit{Cur: want, Max: max(want, now.Max)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		return want, nil
	}
	raised = unix.Rlimit{Cur: now.Max, Max: now.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		return now.Cur, os.NewSyscallError("setrlimit", err)
	}
	return raised.Cur, nil
}
