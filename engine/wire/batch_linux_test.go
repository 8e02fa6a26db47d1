package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeKernel stands in for sendmmsg: it takes messages apart as the kernel
// would and refuses what its rules say.
type fakeKernel struct {
	t      *testing.T
	got    map[netip.AddrPort][][]byte
	refuse func(to netip.AddrPort, segment, size int) unix.Errno // for one message
	most   func() int                                            // messages taken in one call
}

func (k *fakeKernel) sendmmsg(_ int, hdrs []mmsghdr) (int, unix.Errno) {
	if len(hdrs) == 0 || len(hdrs) > sendMessages {
		k.t.Errorf("sendmmsg of %d messages", len(hdrs))
	}
	n := len(hdrs)
	if k.most != nil {
		n = min(n, k.most())
	}
	for i := range hdrs[:n] {
		h := &hdrs[i].hdr
		to := fromRaw((*unix.RawSockaddrInet6)(unsafe.Pointer(h.Name)))
		var data []byte
		for _, v := range unsafe.Slice(h.Iov, h.Iovlen) {
			data = append(data, unsafe.Slice(v.Base, v.Len)...)
		}
		segment := 0
		if h.Controllen > 0 {
			cms, err := unix.ParseSocketControlMessage(unsafe.Slice(h.Control, h.Controllen))
			if err != nil || len(cms) != 1 || cms[0].Header.Level != unix.SOL_UDP || cms[0].Header.Type != unix.UDP_SEGMENT {
				k.t.Fatalf("control message %v, %v", cms, err)
			}
			segment = int(*(*uint16)(unsafe.Pointer(&cms[0].Data[0])))
			if count := (len(data) + segment - 1) / segment; count < 2 || count > 64 || len(data) > 65507 || h.Iovlen > 1024 {
				k.t.Errorf("a run of %d segments of %d, %d bytes in %d pieces", count, segment, len(data), h.Iovlen)
			}
		}
		if k.refuse != nil {
			if errno := k.refuse(to, segment, len(data)); errno != 0 {
				if i > 0 {
					return i, 0 // the reason is told to who asks again
				}
				return -1, errno
			}
		}
		for ; segment > 0 && len(data) > segment; data = data[segment:] {
			k.got[to] = append(k.got[to], data[:segment])
		}
		k.got[to] = append(k.got[to], data)
	}
	return n, 0
}

// newFaulty returns a Batch that sends through a fake kernel.
func newFaulty(t *testing.T, k *fakeKernel, notify func(error)) (*Batch, Conn) {
	t.Helper()
	n := mustOpen(t, Options{GSO: On, Notify: notify})
	b := n.NewBatch()
	k.t, k.got = t, map[netip.AddrPort][][]byte{}
	b.send.(*fastSender).sendmmsg = k.sendmmsg
	return b, mustListen(t, n, loopbacks[0])
}

// Whatever the kernel does with one destination, all others get everything, in
// order; and what was not sent is counted.
func TestFaultsStayWithTheirDestination(t *testing.T) {
	addrs := []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:5000"), // all is well
		netip.MustParseAddrPort("192.0.2.2:5000"), // the rule's victim
		netip.MustParseAddrPort("[2001:db8::3]:5000"),
		netip.MustParseAddrPort("192.0.2.2:5002"),
	}
	victim := addrs[1]
	r := rand.New(rand.NewPCG(3, 4))
	always := func(errno unix.Errno) func(netip.AddrPort, int, int) unix.Errno {
		return func(to netip.AddrPort, _, _ int) unix.Errno {
			if to == victim {
				return errno
			}
			return 0
		}
	}
	toRuns := func(errno unix.Errno, from int) func(netip.AddrPort, int, int) unix.Errno {
		return func(to netip.AddrPort, segment, _ int) unix.Errno {
			if to == victim && segment >= from {
				return errno
			}
			return 0
		}
	}
	for _, test := range []struct {
		name   string
		refuse func(netip.AddrPort, int, int) unix.Errno
		most   func() int
		lost   bool // the victim loses all it was sent
		told   error
	}{
		{name: "none"},
		{name: "partial returns", most: func() int { return 1 + r.IntN(64) }},
		{name: "one at a time", most: func() int { return 1 }},
		{name: "EPERM", refuse: always(unix.EPERM), lost: true},
		{name: "ENETUNREACH", refuse: always(unix.ENETUNREACH), lost: true},
		{name: "EAGAIN for good", refuse: always(unix.EAGAIN), lost: true},
		{name: "ENOBUFS for good", refuse: always(unix.ENOBUFS), lost: true},
		{name: "EIO for runs", refuse: toRuns(unix.EIO, 1), told: unix.EIO},
		{name: "EINVAL for large runs", refuse: toRuns(unix.EINVAL, 1400), told: unix.EINVAL},
		{name: "EMSGSIZE for large runs", refuse: toRuns(unix.EMSGSIZE, 1400), told: unix.EMSGSIZE},
		{name: "EIO for runs, EPERM for the rest", lost: true, told: unix.EIO, refuse: func(to netip.AddrPort, segment, _ int) unix.Errno {
			if to == victim && segment > 0 {
				return unix.EIO
			}
			return always(unix.EPERM)(to, segment, 0)
		}},
		{name: "ICMP errors, EINTR and EAGAIN now and then", refuse: func() func(netip.AddrPort, int, int) unix.Errno {
			told := false
			return func(netip.AddrPort, int, int) unix.Errno {
				if told = !told && r.IntN(10) == 0; told {
					return []unix.Errno{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EINTR}[r.IntN(3)]
				}
				return 0
			}
		}()},
	} {
		t.Run(test.name, func(t *testing.T) {
			var told []error
			k := &fakeKernel{refuse: test.refuse, most: test.most}
			b, c := newFaulty(t, k, func(err error) { told = append(told, err) })
			dests, tallies := make([]*Dest, len(addrs)), make([]Tally, len(addrs))
			for i, a := range addrs {
				dests[i] = NewDest(a, &tallies[i])
			}
			want := make([][][]byte, len(dests))
			var refused uint64 // before the last flushes
			for i := range 40 {
				if i == 30 {
					refused = b.Stats.Refused
				}
				for d, more := range script(r, b, c, dests, 10) {
					want[d] = append(want[d], more...)
				}
				b.Flush()
			}
			for i, a := range addrs {
				expect := want[i]
				if test.lost && a == victim {
					expect = nil
				}
				compare(t, a.String(), k.got[a], expect)
				sent, dropped := tallies[i].Packets.Load(), tallies[i].Dropped.Load()
				if int(sent) != len(expect) || int(sent+dropped) != len(want[i]) {
					t.Errorf("%v: %d sent, %d dropped, want %d of %d", a, sent, dropped, len(expect), len(want[i]))
				}
			}
			if test.told == nil {
				if told != nil {
					t.Errorf("told %v", told)
				}
				return
			}
			var e *SegmentError
			if len(told) != 1 || !errors.Is(told[0], test.told) || !errors.As(told[0], &e) || e.To != victim {
				t.Errorf("told %v, want one %v", told, test.told)
			}
			if refused == 0 || b.Stats.Refused != refused {
				t.Errorf("%d runs refused, %d of them late: it has not learned", b.Stats.Refused, b.Stats.Refused-refused)
			}
		})
	}
}

// A frame of equal packets and a short last one leaves as one message, whatever
// pieces it is made of; the next frame as another.
func TestRuns(t *testing.T) {
	a, z := NewDest(netip.MustParseAddrPort("192.0.2.1:5000"), nil), NewDest(netip.MustParseAddrPort("192.0.2.2:5000"), nil)
	for _, test := range []struct {
		name  string
		sizes []int // datagrams, to a; negative: to z
		runs  []int // datagrams in each message
	}{
		{"equal", []int{1412, 1412, 1412}, []int{3}},
		{"short last", []int{1412, 1412, 7, 1412}, []int{3, 1}},
		{"longer next", []int{7, 1412, 1412}, []int{1, 2}},
		{"empty", []int{0, 0, 12}, []int{1, 1, 1}},
		{"two destinations", []int{12, 12, -12, -12, 12}, []int{2, 2, 1}},
		{"64 segments", slices.Repeat([]int{100}, 130), []int{64, 64, 2}},
		{"64 KiB", slices.Repeat([]int{9000}, 10), []int{7, 3}},
		{"over 64 KiB", []int{65508, 1}, []int{1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, c := newFaulty(t, &fakeKernel{}, nil)
			payload := make([]byte, 1<<16)
			for _, size := range test.sizes {
				if size < 0 {
					b.Add(c, z, payload[:12], payload[12:-size])
				} else {
					b.Add(c, a, payload[:size])
				}
			}
			var runs []int
			for _, m := range b.msgs {
				runs = append(runs, m.count)
			}
			if !slices.Equal(runs, test.runs) {
				t.Errorf("runs of %v, want %v", runs, test.runs)
			}
			b.Flush()
		})
	}
}

// The real kernel refuses too: a broadcast address without SO_BROADCAST, a
// datagram larger than UDP has, a port nobody listens on.
func TestRefusedByTheKernel(t *testing.T) {
	n := mustOpen(t, Options{})
	out, in, gone := mustListen(t, n, loopbacks[0]), mustListen(t, n, loopbacks[0]), mustListen(t, n, loopbacks[0])
	closed := gone.Local()
	col := newCollector(t, n, in)
	b := n.NewBatch()
	var good, bad, dead Tally
	to := NewDest(in.Local(), &good)
	broadcast := NewDest(netip.MustParseAddrPort("255.255.255.255:9"), &bad)
	nobody := NewDest(netip.AddrPortFrom(closed.Addr(), 1), &dead)
	var want [][]byte
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 500 {
		p := datagram(r, 100+i%3)
		want = append(want, p)
		b.Add(out, to, p)
		b.Add(out, broadcast, p)
		b.Add(out, nobody, p)
		if i%50 == 0 {
			b.Add(out, broadcast, make([]byte, 65508))
		}
	}
	b.Flush()
	col.collect(len(want))
	compare(t, "the living", col.got[0], want)
	if good.Packets.Load() != 500 || bad.Dropped.Load() != 510 || bad.Packets.Load() != 0 || dead.Packets.Load() != 500 {
		t.Errorf("sent %d, dropped %d (sent %d), into the void %d; want 500, 510 (0), 500",
			good.Packets.Load(), bad.Dropped.Load(), bad.Packets.Load(), dead.Packets.Load())
	}
	failures := map[string]int{}
	out.Failures(func(to netip.AddrPort, err error) { failures[fmt.Sprint(to, err)]++ })
	if key := fmt.Sprint(nobody.Addr(), unix.ECONNREFUSED); failures[key] == 0 || len(failures) != 1 {
		t.Errorf("failures %v, want some of %v", failures, key)
	}
}

// A route with a small MTU takes no runs of large datagrams, but it takes them
// one by one, in fragments; and it takes runs of smaller ones.
func TestSmallMTU(t *testing.T) {
	enterNamespace(t, 1500)
	var told []error
	n := mustOpen(t, Options{GSO: On, Notify: func(err error) { told = append(told, err) }})
	out, in := mustListen(t, n, loopbacks[0]), mustListen(t, n, loopbacks[0])
	col := newCollector(t, n, in)
	b := n.NewBatch()
	to := NewDest(in.Local(), nil)
	var want [][]byte
	r := rand.New(rand.NewPCG(7, 8))
	for _, size := range []int{1400, 1600, 1400, 1472, 1473, 1400} {
		for range 5 {
			p := datagram(r, size)
			want = append(want, p)
			b.Add(out, to, p)
		}
	}
	b.Flush()
	col.collect(len(want))
	compare(t, "receiver", col.got[0], want)
	if len(told) != 1 || b.Stats.Refused != 2 || b.Stats.Supers != 4 || b.Stats.Dropped != 0 {
		t.Errorf("%+v, told %v; want 4 runs sent, 2 refused, told once", b.Stats, told)
	}
}

func TestLostInTheReceiveBuffer(t *testing.T) {
	n := mustOpen(t, Options{SocketBuffer: 64 << 10, GSO: Off})
	out, in := mustListen(t, n, loopbacks[0]), mustListen(t, n, loopbacks[0])
	to := NewDest(in.Local(), nil)
	b, inbox := n.NewBatch(), mustInbox(t, n, 32)
	send := func(count int) {
		for range count {
			b.Add(out, to, make([]byte, 1400))
		}
		b.Flush()
	}
	received := 0
	drain := func() {
		for {
			msgs, err := in.Recv(inbox)
			if err != nil {
				t.Fatal(err)
			}
			if len(msgs) == 0 {
				return
			}
			received += len(msgs)
			inbox.Reset()
		}
	}
	const count = 500
	send(count)
	drain()
	send(1) // the next datagram tells what was lost before it
	drain()
	if lost := in.Lost(); received == count+1 || uint64(count+1-received) != lost {
		t.Errorf("received %d of %d, %d counted as lost", received, count+1, lost)
	}
}

func TestNoAllocations(t *testing.T) {
	for _, o := range allOptions {
		if o.Plain {
			continue // package net and its goroutines have their own ways
		}
		for _, ip := range loopbacks {
			n := mustOpen(t, o)
			in, out, end := mustListen(t, n, ip), mustListen(t, n, ip), mustListen(t, n, ip)
			p, err := n.NewPoller()
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Add(in, 1); err != nil {
				t.Fatal(err)
			}
			b, inbox := n.NewBatch(), mustInbox(t, n, 64)
			first, second := NewDest(in.Local(), nil), NewDest(end.Local(), nil)
			header, payload := make([]byte, 12), make([]byte, 1400)
			forwarded := 0
			allocs := testing.AllocsPerRun(100, func() {
				for range 20 {
					b.Add(out, first, header, payload)
				}
				b.Flush()
				events, err := p.Wait(Forever)
				if err != nil || len(events) != 1 {
					t.Fatal(events, err)
				}
				msgs, err := in.Recv(inbox)
				if err != nil {
					t.Fatal(err)
				}
				for i := range msgs {
					b.AddRun(out, second, msgs[i].Data, msgs[i].Segment)
					forwarded += msgs[i].Count()
				}
				b.Flush()
				inbox.Reset()
			})
			if allocs != 0 || forwarded != 101*20 {
				t.Errorf("%v: %v allocations a round, %d datagrams forwarded", o, allocs, forwarded)
			}
			if err := errors.Join(p.Remove(in), p.Close()); err != nil {
				t.Error(err)
			}
		}
	}
}
