package wire

import (
	"net/netip"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	benchDests    = 100
	benchSegments = 14
	benchHeader   = 12
	benchPacket   = 1412
)

// receivers opens sockets that are read by a goroutine until the benchmark ends.
func receivers(b *testing.B, n *Net, count int) []netip.AddrPort {
	b.Helper()
	p, err := n.NewPoller()
	if err != nil {
		b.Fatal(err)
	}
	conns := make([]Conn, count)
	addrs := make([]netip.AddrPort, count)
	for i := range conns {
		conns[i] = mustListen(b, n, loopbacks[0])
		addrs[i] = conns[i].Local()
		if err := p.Add(conns[i], int32(i)); err != nil {
			b.Fatal(err)
		}
	}
	done := make(chan struct{})
	stop := make(chan struct{})
	in := mustInbox(b, n, recvMessages)
	go func() {
		defer close(done)
		for {
			events, err := p.Wait(Forever)
			if err != nil {
				b.Error(err)
				return
			}
			for _, e := range events {
				_, _ = conns[e.Token].Recv(in)
				in.Reset()
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	b.Cleanup(func() {
		close(stop)
		p.Wake()
		<-done
		_ = p.Close()
	})
	return addrs
}

// BenchmarkSend compares Batch with the least that must be done: a loop of
// nothing but sendmmsg over headers made beforehand. Each operation sends a
// frame of 14 packets of 1412 bytes to each of 100 destinations.
func BenchmarkSend(b *testing.B) {
	run := func(name string, gso Mode, prepare func(b *testing.B, n *Net, c Conn, to []netip.AddrPort) (frame func())) {
		b.Run(name, func(b *testing.B) {
			n := mustOpen(b, Options{GSO: gso})
			frame := prepare(b, n, mustListen(b, n, loopbacks[0]), receivers(b, mustOpen(b, Options{}), benchDests))
			done := make(chan struct{})
			go func() {
				defer close(done)
				thread := LockThread("bench")
				defer runtime.UnlockOSThread()
				b.ReportAllocs()
				start := thread.CPU()
				for b.Loop() {
					frame()
				}
				used := thread.CPU() - start
				bytes := float64(b.N) * benchDests * benchSegments * benchPacket
				b.ReportMetric(used.Seconds()/(bytes/(1<<30)), "cpu-s/GiB")
			}()
			<-done
		})
	}
	headers := make([][]byte, benchSegments)
	for i := range headers {
		headers[i] = make([]byte, benchHeader)
	}
	image := make([]byte, benchSegments*benchPacket)
	payload := image[:benchPacket-benchHeader]

	run("raw", On, func(b *testing.B, n *Net, c Conn, to []netip.AddrPort) func() {
		var o outbox
		o.init(2 * benchSegments * sendMessages)
		pieces := [][]byte{}
		for _, h := range headers {
			pieces = append(pieces, h, payload)
		}
		const batch = 20
		for _, a := range to[:batch] {
			m := &message{dest: NewDest(a, nil), segment: benchPacket}
			o.put(m, pieces, benchSegments, len(image))
		}
		names := make([]destSys, len(to))
		for i, a := range to {
			names[i] = NewDest(a, nil).sys
		}
		fd := c.(*fastConn).fd
		return func() {
			for i := 0; i < len(names); i += batch {
				for j := range batch {
					o.hdrs[j].hdr.Name = (*byte)(unsafe.Pointer(&names[i+j].name))
				}
				for sent := 0; sent < batch; {
					k, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.hdrs[sent])), uintptr(batch-sent), 0, 0, 0)
					if errno != 0 {
						b.Fatal(errno)
					}
					sent += int(k)
				}
			}
		}
	})
	dests := func(to []netip.AddrPort) (d []*Dest) {
		for _, a := range to {
			d = append(d, NewDest(a, nil))
		}
		return d
	}
	gather := func(b *testing.B, n *Net, c Conn, to []netip.AddrPort) func() {
		out, d := n.NewBatch(), dests(to)
		return func() {
			for i := range d {
				for _, h := range headers {
					out.Add(c, d[i], h, payload)
				}
			}
			out.Flush()
		}
	}
	run("headers and payload", On, gather)
	run("one image", On, func(b *testing.B, n *Net, c Conn, to []netip.AddrPort) func() {
		out, d := n.NewBatch(), dests(to)
		return func() {
			for i := range d {
				out.AddRun(c, d[i], image, benchPacket)
			}
			out.Flush()
		}
	})
	run("without GSO", Off, gather)
}
