package bench

import (
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	receiveBuf = 2 << 20 // octets wanted for a socket to wait in
	portTries  = 200     // to find two ports in a row
	memInfo    = 9       // numbers of SO_MEMINFO,
	memDrops   = 8       // and the one of what the socket dropped (linux/sock_diag.h)
)

// udpPair is an even port and the odd one above it (RFC 3550 §11).
type udpPair struct {
	rtp, rtcp int
	port      int
	dropped   uint64 // by our own RTP socket, in the window; noted by the reader
}

// openPair opens a pair on ip.
func openPair(ip netip.Addr) (*udpPair, error) {
	var last error
	for range portTries {
		a, port, err := openUDP(ip, 0)
		if err != nil {
			return nil, err
		}
		b, _, err := openUDP(ip, port^1)
		if err != nil {
			last = err
			_ = unix.Close(a)
			continue
		}
		if port%2 == 1 {
			a, b = b, a
		}
		return &udpPair{rtp: a, rtcp: b, port: port &^ 1}, nil
	}
	return nil, last
}

// openUDP opens a socket whose packets bear the time they came.
func openUDP(ip netip.Addr, port int) (fd, bound int, err error) {
	to := sockaddr(netip.AddrPortFrom(ip, uint16(port)))
	family := unix.AF_INET6
	if ip.Is4() {
		family = unix.AF_INET
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, 0, os.NewSyscallError("socket", err)
	}
	if err = unix.Bind(fd, to); err != nil {
		_ = unix.Close(fd)
		return -1, 0, os.NewSyscallError("bind", err)
	}
	// Without these the bench is less exact, or drops sooner, which it tells.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuf) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuf)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		_ = unix.Close(fd)
		return -1, 0, os.NewSyscallError("getsockname", err)
	}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		bound = n.Port
	case *unix.SockaddrInet6:
		bound = n.Port
	}
	return fd, bound, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (p *udpPair) sendRTCP(b []byte, to netip.AddrPort) {
	if to.IsValid() {
		_ = unix.Sendto(p.rtcp, b, unix.MSG_DONTWAIT, sockaddr(to))
	}
}

func (p *udpPair) close() {
	_ = unix.Close(p.rtp)
	_ = unix.Close(p.rtcp)
}

// drops is how many packets the RTP socket has ever thrown away, being full.
// SO_MEMINFO tells what SO_RXQ_OVFL does, without a control message a packet.
func (p *udpPair) drops() uint64 {
	var info [memInfo]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(p.rtp), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[memDrops])
}

// control is an RTSP connection that nobody waits on.
type control struct{ fd int }

// takeConn takes a connection out of the runtime's poller, which would else
// wake with every packet on it, and closes nc.
func takeConn(nc net.Conn) (*control, error) {
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(old uintptr) {
		fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("dup", dupErr)
	}
	_ = nc.Close()
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	return &control{fd}, nil
}

// write sends what is small enough for any send buffer; if it cannot, the
// session will find its connection gone, or its time out.
func (c *control) write(b []byte) {
	_ = unix.Send(c.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func (c *control) close() { _ = unix.Close(c.fd) }
