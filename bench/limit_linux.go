package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	limitMessages = 16 // GSO sends to a sendmmsg
	limitFrames   = 16 // interleaved frames to a write
	fannedRun     = 18 // packets of a frame of 5 Mbit/s …
	fannedEvery   = 40 * time.Millisecond
	soundUnits    = 7 // … and of its sound of 64 kbit/s as many AAC frames as ffmpeg puts into a packet
	soundOctets   = 12 + 2 + soundUnits*(2+186)
	soundEvery    = soundUnits * 1024 * time.Second / 44_100
	limitMemory   = 64 << 20 // payload walked through by the loops that send different media
	limitGather   = 2 * time.Millisecond
	limitBacklog  = 64                     // packets on their way to a destination, at most: nothing is lost
	limitWaits    = 200                    // for that, in a row
	limitPause    = 100 * time.Millisecond // for the receivers to have seen all
)

// sender is a loop's state. step sends to some of the destinations.
type sender struct {
	cfg     LimitConfig
	fd      int                     // UDP: of the one socket that sends
	to      []unix.RawSockaddrInet4 // UDP
	sounds  []unix.RawSockaddrInet4 // UDP, with sound
	conns   []int                   // TCP
	turn    int                     // destination next
	seq     uint16                  // of the first packet each gets in this round
	payload []byte
	at      int // of payload, next
	packets uint64
	pace    float64 // packets a second, 0 for flat out
	sound   bool    // each gets that too, in its second socket
	sounded int     // packets of sound

	hdrs  [limitMessages]mmsghdr
	ctrls [limitMessages][unix.SizeofCmsghdr + 8]byte
	heads [limitMessages][64][16]byte // RTP headers, behind 4 octets of framing over TCP
	iovs  [limitMessages][2 * 64]unix.Iovec
	image []byte // Segments packets in a row
}

// media is the next payload in memory.
func (s *sender) media() *byte {
	n := s.cfg.Packet - 12
	if s.at+n > len(s.payload) {
		s.at = 0
	}
	b := &s.payload[s.at]
	s.at += n
	return b
}

func putRTP(b []byte, seq uint16) {
	b[0], b[1] = 0x80, 96
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[4:], uint32(seq)*90)
	binary.BigEndian.PutUint32(b[8:], 0x6c696d74)
}

// advance goes to the next destination, and after the last to the next round.
func (s *sender) advance(packets, of int) {
	s.packets += uint64(packets)
	if s.turn++; s.turn == of {
		s.turn = 0
		s.seq += uint16(packets)
		for i := 0; i < len(s.image); i += s.cfg.Packet {
			putRTP(s.image[i:], s.seq+uint16(i/s.cfg.Packet))
		}
	}
}

// eachPacket sends a destination its packets one by one.
func (s *sender) eachPacket() error {
	to := &s.to[s.turn]
	for i := range s.cfg.Segments {
		b := s.image[i*s.cfg.Packet : (i+1)*s.cfg.Packet]
		if _, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4); errno != 0 {
			return os.NewSyscallError("sendto", errno)
		}
	}
	s.advance(s.cfg.Segments, len(s.to))
	return nil
}

// gathered sends destinations different media behind headers of their own.
func (s *sender) gathered() error {
	return s.batch(func(i int) int {
		iovs := &s.iovs[i]
		for k := range s.cfg.Segments {
			head := s.heads[i][k][4:]
			putRTP(head, s.seq+uint16(k))
			iovs[2*k].Base, iovs[2*k+1].Base = &head[0], s.media()
			iovs[2*k].SetLen(12)
			iovs[2*k+1].SetLen(s.cfg.Packet - 12)
		}
		return 2 * s.cfg.Segments
	})
}

// shared sends destinations the same octets.
func (s *sender) shared() error {
	return s.batch(func(i int) int {
		s.iovs[i][0].Base = &s.image[0]
		s.iovs[i][0].SetLen(len(s.image))
		return 1
	})
}

// batch sends to as many destinations as fit into a sendmmsg; fill makes the
// i-th message's pieces and returns how many.
func (s *sender) batch(fill func(i int) int) error {
	n := min(limitMessages, len(s.to)-s.turn)
	for i := range n {
		pieces := fill(i)
		cm := (*unix.Cmsghdr)(unsafe.Pointer(&s.ctrls[i][0]))
		cm.Level, cm.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		cm.SetLen(unix.CmsgLen(2))
		*(*uint16)(unsafe.Pointer(&s.ctrls[i][unix.CmsgLen(0)])) = uint16(s.cfg.Packet)
		h := &s.hdrs[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.to[s.turn+i])), Namelen: unix.SizeofSockaddrInet4,
			Iov: &s.iovs[i][0], Control: &s.ctrls[i][0]}
		h.SetIovlen(pieces)
		h.SetControllen(len(s.ctrls[i]))
	}
	if err := s.flush(n); err != nil {
		return err
	}
	for range n {
		s.advance(s.cfg.Segments, len(s.to))
	}
	return nil
}

// flush sends the first n messages.
func (s *sender) flush(n int) error {
	for sent := 0; sent < n; {
		got, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.hdrs[sent])), uintptr(n-sent), 0, 0, 0)
		if errno != 0 {
			return os.NewSyscallError("sendmmsg", errno)
		}
		sent += int(got)
	}
	return nil
}

// aloud sends all destinations a packet of sound.
func (s *sender) aloud() error {
	head := s.heads[0][0][:]
	putRTP(head, uint16(s.sounded))
	for at := 0; at < len(s.sounds); at += limitMessages {
		n := min(limitMessages, len(s.sounds)-at)
		for i := range n {
			iovs := &s.iovs[i]
			iovs[0].Base, iovs[1].Base = &head[0], &s.payload[0]
			iovs[0].SetLen(12)
			iovs[1].SetLen(soundOctets - 12)
			h := &s.hdrs[i].hdr
			*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.sounds[at+i])), Namelen: unix.SizeofSockaddrInet4, Iov: &iovs[0]}
			h.SetIovlen(2)
		}
		if err := s.flush(n); err != nil {
			return err
		}
	}
	s.sounded++
	return nil
}

// framed sends a connection a write of interleaved frames.
func (s *sender) framed() error {
	iovs := &s.iovs[0]
	for k := range limitFrames {
		head := &s.heads[0][k]
		head[0], head[1] = '$', 0
		binary.BigEndian.PutUint16(head[2:], uint16(s.cfg.Packet))
		putRTP(head[4:], s.seq+uint16(k))
		iovs[2*k].Base, iovs[2*k+1].Base = &head[0], s.media()
		iovs[2*k].SetLen(16)
		iovs[2*k+1].SetLen(s.cfg.Packet - 12)
	}
	left := iovs[:2*limitFrames]
	for len(left) > 0 {
		h := unix.Msghdr{Iov: &left[0]}
		h.SetIovlen(len(left))
		got, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(s.conns[s.turn]), uintptr(unsafe.Pointer(&h)), unix.MSG_NOSIGNAL)
		if errno != 0 && errno != unix.EINTR {
			return os.NewSyscallError("sendmsg", errno)
		}
		n := int(got)
		if errno != 0 {
			n = 0
		}
		for len(left) > 0 && n >= int(left[0].Len) {
			n -= int(left[0].Len)
			left = left[1:]
		}
		if n > 0 { // a signal cut it short
			left[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(left[0].Base), n))
			left[0].SetLen(int(left[0].Len) - n)
		}
	}
	s.advance(limitFrames, len(s.conns))
	return nil
}

// limits runs the loops one after the other.
func limits(ctx context.Context, cfg LimitConfig) ([]Limit, error) {
	payload := make([]byte, limitMemory)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	var all []Limit
	paced, fanned := cfg, cfg
	paced.Segments = cfg.PacedRun
	fanned.Segments, fanned.Slot = min(fannedRun, 65_000/cfg.Packet), fannedEvery
	fanned.Destinations = max(1, int(cfg.Pace*1e9/8*fannedEvery.Seconds())/(fanned.Segments*cfg.Packet)) // a frame each
	for _, l := range []struct {
		name, what string
		step       func(*sender) error
	}{
		{LimitPacket, "a system call for each packet, as servers do", (*sender).eachPacket},
		{LimitGathered, fmt.Sprintf("GSO × %d, %d to a sendmmsg, headers apart, different media for each", cfg.Segments, limitMessages), (*sender).gathered},
		{LimitShared, fmt.Sprintf("GSO × %d, %d to a sendmmsg, one image for all", cfg.Segments, limitMessages), (*sender).shared},
		{LimitPaced, fmt.Sprintf("as gathered, GSO × %d, but no more than %g Gbit/s, every %v", cfg.PacedRun, cfg.Pace, cfg.Slot), (*sender).gathered},
		{LimitFanned, fmt.Sprintf("as shared, GSO × %d, a frame to each of %d every %v, and its sound", fanned.Segments, fanned.Destinations, fannedEvery), (*sender).shared},
		{LimitTCP, fmt.Sprintf("%d interleaved frames to a write, headers apart, different media for each", limitFrames), (*sender).framed},
	} {
		s := &sender{cfg: cfg, payload: payload, turn: -1}
		switch l.name {
		case LimitPaced:
			s.cfg, s.pace = paced, cfg.Pace*1e9/8/float64(cfg.Packet)
		case LimitFanned:
			s.cfg, s.pace, s.sound = fanned, cfg.Pace*1e9/8/float64(cfg.Packet), true
		}
		s.image = make([]byte, cfg.Packet*s.cfg.Segments)
		one, err := loopLimit(ctx, s, l.name == LimitTCP, func() error { return l.step(s) })
		if err != nil {
			return all, fmt.Errorf("%s: %w", l.name, err)
		}
		one.Name, one.What = l.name, l.what
		all = append(all, one)
	}
	if cfg.Dir != "" {
		one, err := diskLimit(ctx, cfg)
		if err != nil {
			return all, fmt.Errorf("%s: %w", LimitDisk, err)
		}
		all = append(all, one)
	}
	return all, nil
}

// loopLimit runs one loop against sockets of our own.
func loopLimit(ctx context.Context, s *sender, tcp bool, step func() error) (l Limit, err error) {
	var w window
	r, err := newReader(limitGather, s.cfg.GRO, &w)
	if err != nil {
		return l, err
	}
	leave := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() { r.run(leave) })
	sessions, err := s.open(tcp)
	for _, x := range sessions {
		r.add(x)
	}
	var cpu, took time.Duration
	if err == nil {
		w.to.Store(1<<63 - 1)
		w.from.Store(time.Now().UnixNano())
		var loop sync.WaitGroup
		loop.Go(func() {
			err = s.cfg.Away(func() (err error) {
				cpu, took, err = s.flatOut(ctx, r, step)
				return err
			})
		})
		loop.Wait()
		time.Sleep(limitPause)
	}
	close(leave)
	work.Wait()
	s.close()
	if err != nil {
		return l, err
	}
	var came uint64
	for _, x := range sessions {
		came += x.tracks[0].unique
	}
	octets := float64(s.packets)*float64(s.cfg.Packet) + float64(s.sounded*len(s.sounds)*soundOctets)
	l.Cost = cpu.Seconds() / (octets / (1 << 30))
	l.Gbps = octets * 8 / 1e9 / took.Seconds()
	l.Lost = 1 - float64(came)/float64(s.packets)
	return l, nil
}

// flatOut repeats step in a thread of its own, as fast as the receivers keep
// up, and returns that thread's CPU time.
func (s *sender) flatOut(ctx context.Context, r *reader, step func() error) (cpu, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, used := time.Now(), threadTime()
	for took < s.cfg.Duration && ctx.Err() == nil {
		if s.pace > 0 {
			if err := s.untilDue(began, step); err != nil {
				return 0, 0, err
			}
			took = time.Since(began)
			continue
		}
		for range limitMessages {
			if err := step(); err != nil {
				return 0, 0, err
			}
		}
		for range limitWaits { // after that they must have been lost
			if s.packets < r.packets.Load()+uint64(limitBacklog*s.cfg.Destinations) {
				break
			}
			time.Sleep(limitGather / 2)
		}
		took = time.Since(began)
	}
	return time.Duration(threadTime() - used), took, ctx.Err()
}

// untilDue waits for the next slot and sends what is due in it; or for sound,
// and sends that.
func (s *sender) untilDue(began time.Time, step func() error) error {
	due := began.Add((time.Since(began)/s.cfg.Slot + 1) * s.cfg.Slot)
	sound := began.Add(time.Duration(s.sounded) * soundEvery)
	if s.sound && sound.Before(due) {
		due = sound
	}
	ts := unix.NsecToTimespec(max(0, int64(time.Until(due))))
	_ = unix.Nanosleep(&ts, nil) // cut short, the next slot has more to do
	if s.sound && due.Equal(sound) {
		return s.aloud()
	}
	for float64(s.packets) < s.pace*time.Since(began).Seconds() {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// open opens the destinations and what sends to them.
func (s *sender) open(tcp bool) (sessions []*session, err error) {
	s.fd = -1
	s.turn = s.cfg.Destinations - 1
	s.advance(0, s.cfg.Destinations) // makes the image
	host := s.cfg.Host
	if tcp {
		return s.connect(host)
	}
	if err := s.cfg.Away(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	}); err != nil {
		return nil, err
	}
	for range s.cfg.Destinations {
		x := &session{}
		sessions = append(sessions, x)
		lists := []*[]unix.RawSockaddrInet4{&s.to, &s.sounds}
		if !s.sound {
			lists = lists[:1]
		}
		for _, list := range lists {
			p, err := openPair(host)
			if err != nil {
				return sessions, err
			}
			x.tracks = append(x.tracks, &track{pair: p})
			to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: host.As4()}
			binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&to.Port))[:], uint16(p.port))
			*list = append(*list, to)
		}
	}
	return sessions, nil
}

// connect opens connections to ourselves.
func (s *sender) connect(host netip.Addr) (sessions []*session, err error) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	for range s.cfg.Destinations {
		var out *net.TCPConn
		if err := s.cfg.Away(func() (err error) {
			out, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
			return err
		}); err != nil {
			return sessions, err
		}
		in, err := ln.AcceptTCP()
		if err != nil {
			_ = out.Close()
			return sessions, err
		}
		a, err1 := takeConn(out)
		b, err2 := takeConn(in)
		if err := errors.Join(err1, err2); err != nil {
			return sessions, err
		}
		s.conns = append(s.conns, a.fd)
		sessions = append(sessions, &session{tcp: true, control: b, tracks: []*track{{}}})
		if err := unix.SetNonblock(a.fd, false); err != nil {
			return sessions, os.NewSyscallError("fcntl", err)
		}
	}
	return sessions, nil
}

func (s *sender) close() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	for _, fd := range s.conns {
		_ = unix.Close(fd)
	}
}
