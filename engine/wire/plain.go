package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// The portable twin: package net, one datagram a system call, a goroutine for
// each polled Conn that hands datagrams over through a bounded queue.

const plainQueue = 256 // datagrams waiting between a Conn's reader and its pump

type plainConn struct {
	udp   *net.UDPConn
	local netip.AddrPort
	queue chan plainDatagram
	free  chan []byte // buffers on their way back to the reader
	stop  chan struct{}
	done  chan struct{} // closed when the reader has ended; nil while there is none
}

type plainDatagram struct {
	data []byte
	from netip.AddrPort
}

func listenPlain(local netip.AddrPort, buffer int) (Conn, error) {
	network := "udp4"
	if local.Addr().Is6() {
		network = "udp6"
	}
	udp, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	// As much as the system allows: asking for too much is an error on some.
	for b := buffer; b >= 64<<10 && udp.SetReadBuffer(b) != nil; b /= 2 {
	}
	return &plainConn{
		udp:   udp,
		local: udp.LocalAddr().(*net.UDPAddr).AddrPort(),
		queue: make(chan plainDatagram, plainQueue),
		free:  make(chan []byte, plainQueue),
	}, nil
}

func (c *plainConn) Local() netip.AddrPort                     { return c.local }
func (c *plainConn) Failures(func(to netip.AddrPort, e error)) {}
func (c *plainConn) Lost() uint64                              { return 0 }
func (c *plainConn) Close() error                              { return c.udp.Close() }

func (c *plainConn) Send(d *Dest, packet []byte) {
	_, err := c.udp.WriteToUDPAddrPort(packet, d.addr)
	d.count(len(packet), err)
}

func (c *plainConn) Recv(in *Inbox) ([]Message, error) {
	first := in.next
	for in.next < min(len(in.msgs), first+recvMessages) {
		select {
		case d := <-c.queue:
			n := copy(in.slot(in.next), d.data)
			in.msgs[in.next] = Message{Data: in.slot(in.next)[:n:n], Segment: n, From: d.from}
			in.next++
			select {
			case c.free <- d.data:
			default:
			}
			continue
		default:
		}
		break
	}
	return in.msgs[first:in.next], nil
}

// read is the Conn's reader goroutine, between Add and Remove of its Poller.
func (c *plainConn) read(bell chan<- struct{}) {
	defer close(c.done)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select { // a passing trouble must not become a busy loop
			case <-c.stop:
				return
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		d := plainDatagram{from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
		select {
		case d.data = <-c.free:
		default:
		}
		d.data = append(d.data[:0], buf[:n]...)
		select {
		case c.queue <- d:
		case <-c.stop:
			return
		}
		ring(bell)
	}
}

func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

type plainPoller struct {
	mu     sync.Mutex
	conns  map[*plainConn]int32
	bell   chan struct{} // holds one ring: something may be ready
	woken  atomic.Bool
	events []Event
	timer  *time.Timer
}

func newPlainPoller() *plainPoller {
	p := &plainPoller{conns: map[*plainConn]int32{}, bell: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	p.timer.Stop()
	return p
}

func (p *plainPoller) Add(conn Conn, token int32) error {
	c := conn.(*plainConn)
	if err := c.udp.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("poll %v: %w", c.local, err)
	}
	p.mu.Lock()
	p.conns[c] = token
	p.mu.Unlock()
	c.stop, c.done = make(chan struct{}), make(chan struct{})
	go c.read(p.bell)
	return nil
}

func (p *plainPoller) Remove(conn Conn) error {
	c := conn.(*plainConn)
	p.mu.Lock()
	_, held := p.conns[c]
	delete(p.conns, c)
	p.mu.Unlock()
	if !held {
		return fmt.Errorf("poll %v: not held", c.local)
	}
	close(c.stop)
	err := c.udp.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	return err
}

func (p *plainPoller) Wait(most time.Duration) ([]Event, error) {
	if most > 0 {
		p.timer.Reset(most)
		defer p.timer.Stop()
	}
	for {
		p.events = p.events[:0]
		p.mu.Lock()
		for c, token := range p.conns {
			if len(c.queue) > 0 {
				p.events = append(p.events, Event{Token: token})
			}
		}
		p.mu.Unlock()
		if p.woken.Swap(false) || most == 0 || len(p.events) > 0 {
			return p.events, nil
		}
		select {
		case <-p.bell:
		case <-p.timer.C: // stopped when it is to last for ever
			most = 0
		}
	}
}

func (p *plainPoller) Sleep(d time.Duration) { time.Sleep(d) }

func (p *plainPoller) Wake() {
	p.woken.Store(true)
	ring(p.bell)
}

// Close stops the readers of Conns still held and waits for them.
func (p *plainPoller) Close() error {
	p.mu.Lock()
	held := make([]*plainConn, 0, len(p.conns))
	for c := range p.conns {
		held = append(held, c)
	}
	p.mu.Unlock()
	var errs []error
	for _, c := range held {
		errs = append(errs, p.Remove(c))
	}
	return errors.Join(errs...)
}

type plainSender struct {
	pieces [][]byte
	whole  []byte
}

func (*plainSender) fan(*Batch, *Fan, int, int, []byte, int) int { return 0 }

func (s *plainSender) flush(b *Batch) {
	for i := range b.msgs {
		m := &b.msgs[i]
		rest := cursor{pieces: b.pieces[m.first : m.first+m.pieces]}
		for range m.count {
			s.pieces = rest.take(m.segment, s.pieces[:0])
			data := s.gather()
			b.Stats.Calls++
			if _, err := m.conn.(*plainConn).udp.WriteToUDPAddrPort(data, m.dest.addr); err != nil {
				b.drop(m.dest, 1)
				continue
			}
			b.sent(m.dest, 1, len(data))
		}
	}
}

// gather returns the datagram in one piece.
func (s *plainSender) gather() []byte {
	if len(s.pieces) == 1 {
		return s.pieces[0]
	}
	s.whole = s.whole[:0]
	for _, p := range s.pieces {
		s.whole = append(s.whole, p...)
	}
	return s.whole
}
