package engine_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/relay"
	"rtspshim/engine/wire"
)

// A moderate load, both ways at once: frames of packets of many sizes through
// many relays. Every one arrives, in order, with the right bytes.
func TestLoadWithoutLoss(t *testing.T) {
	const (
		relays = 20
		frames = 40 // in each relay and direction
	)
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			e := open(t, m.config())
			var trips []*trip
			for i := range relays {
				ips := []netip.Addr{v4, v6}
				trips = append(trips, newTrip(t, e, ips[i%2], ips[i/2%2]))
			}
			var receivers sync.WaitGroup
			receive := func(i int, p *peer) {
				defer receivers.Done()
				for seq, n := 0, 0; n < frames; n++ {
					for _, size := range frame(i + n) {
						got, _ := recv(t, p.conn[0])
						if want := rtp(seq+i<<8, size); string(got) != string(want) {
							t.Errorf("relay %d: packet %d is %d bytes %.20x, want %d bytes %.20x", i, seq, len(got), got, len(want), want)
							return
						}
						seq++
					}
				}
			}
			for i, r := range trips {
				receivers.Add(2)
				go receive(i, r.client)
				go receive(i+1, r.upstream)
			}
			seqs := make([][2]int, relays)
			for n := range frames {
				for i, r := range trips {
					for _, size := range frame(i + n) {
						r.upstream.send(0, r.toClient[0], rtp(seqs[i][0]+i<<8, size))
						seqs[i][0]++
					}
					for _, size := range frame(i + 1 + n) {
						r.client.send(0, r.toUpstream[0], rtp(seqs[i][1]+(i+1)<<8, size))
						seqs[i][1]++
					}
				}
				time.Sleep(2 * time.Millisecond) // the frame interval
			}
			receivers.Wait()
			for i, r := range trips {
				s := r.Stats()
				if d := s.FromUpstream.Dropped + s.FromUpstream.Lost + s.FromClient.Dropped; d != 0 {
					t.Errorf("relay %d dropped %d: %+v", i, d, s)
				}
			}
		})
	}
}

// frame is the sizes of the packets of one frame.
func frame(n int) []int {
	sizes := []int{}
	for range 1 + n%9 {
		sizes = append(sizes, 1400)
	}
	return append(sizes, 12+(n*37)%1400)
}

// Open and Close leave nothing behind: no goroutine, thread, socket or file.
func TestCloseAwaitsEverything(t *testing.T) {
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			round := func() {
				e := open(t, m.config())
				for i := range 30 {
					client, up := netip.AddrPortFrom(v4, uint16(40000+2*i)), netip.AddrPortFrom(v6, 9)
					r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: client, ClientRTCP: client, UpstreamLocal: v6})
					if err != nil {
						t.Fatal(err)
					}
					if i%3 > 0 {
						if err := r.Connect(up, up); err != nil {
							t.Fatal(err)
						}
					}
					if i%3 > 1 {
						if err := r.Close(); err != nil {
							t.Fatal(err)
						}
						if err := r.Close(); err != nil {
							t.Error("second close:", err)
						}
					}
				}
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			round()
			files, goroutines := openFiles(t), runtime.NumGoroutine()
			for range 3 {
				round()
			}
			if now := openFiles(t); now != files {
				t.Errorf("%d open files, %d before", now, files)
			}
			// What Close waits for may still be on its last instructions.
			settle(t, func() bool { return runtime.NumGoroutine() <= goroutines })
			settle(t, func() bool { return threads(t, "pump-") == 0 })
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc/self/fd:", err)
	}
	return len(entries)
}

// threads counts the threads of this process whose name begins so.
func threads(t *testing.T, name string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip("needs /proc/self/task:", err)
	}
	for _, e := range entries {
		comm, _ := os.ReadFile("/proc/self/task/" + e.Name() + "/comm")
		if strings.HasPrefix(string(comm), name) {
			n++
		}
	}
	return n
}

// Closing relays while packets flow through them and their neighbours disturbs
// nobody: the neighbour's packets all arrive, and only those.
func TestCloseUnderLoad(t *testing.T) {
	e := open(t, engine.Config{Gather: time.Millisecond, Pumps: 2})
	stays := newTrip(t, e, v4, v4)
	stays.client.send(0, stays.toUpstream[0], rtp(0, 100)) // heard, so no stranger is taken for it
	stays.upstream.want(0, rtp(0, 100), stays.toClient[0])
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		defer close(sent)
		for i := 0; ; i++ {
			stays.upstream.send(0, stays.toClient[0], rtp(i, 1000))
			select {
			case <-stop:
				sent <- i + 1
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	flood := newPeer(t, v4)
	for i := range 60 {
		r := newTrip(t, e, v4, v4)
		r.Observe(func(relay.Burst) {})
		for j := range 30 {
			flood.send(0, r.toClient[0], rtp(1000*i+j, 1000))
			r.client.send(0, r.toUpstream[0], rtp(j, 500))
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	n := <-sent
	for i := range n {
		stays.client.want(0, rtp(i, 1000), stays.toUpstream[0])
	}
	stays.client.nothing(0)
	stays.upstream.nothing(0)
}

// A receiver that is none of ours and not written in Go sees the same packets.
func TestOutsideWitness(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3, as an independent receiver")
	}
	const packets = 2000
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			witness := exec.Command(python, "-c", `
import hashlib, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
s.bind(("127.0.0.1", 0))
s.settimeout(5)
print(s.getsockname()[1], flush=True)
h, n = hashlib.sha256(), 0
try:
    while n < int(sys.argv[1]):
        data, source = s.recvfrom(65536)
        h.update(len(data).to_bytes(4, "big") + data)
        n += 1
except socket.timeout:
    pass
print(n, h.hexdigest())
`, fmt.Sprint(packets))
			out, err := witness.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := witness.Start(); err != nil {
				t.Fatal(err)
			}
			var port int
			if _, err := fmt.Fscan(out, &port); err != nil {
				t.Fatal(err)
			}
			e := open(t, m.config())
			r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: netip.AddrPortFrom(v4, uint16(port)), UpstreamLocal: v6})
			if err != nil {
				t.Fatal(err)
			}
			upstream := newPeer(t, v6)
			if err := r.Connect(upstream.addr(0), upstream.addr(1)); err != nil {
				t.Fatal(err)
			}
			to := netip.AddrPortFrom(v6, uint16(r.UpstreamPort()))
			hash := sha256.New()
			for i := range packets {
				p := rtp(i, 12+(i*i)%1460)
				if i%50 < 40 { // frames of equal packets among the others
					p = rtp(i, 1412)
				}
				upstream.send(0, to, p)
				hash.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
				hash.Write(p)
				if i%50 == 49 {
					time.Sleep(time.Millisecond)
				}
			}
			var n int
			var sum string
			if _, err := fmt.Fscan(out, &n, &sum); err != nil {
				t.Fatal(err)
			}
			if err := witness.Wait(); err != nil {
				t.Error(err)
			}
			if want := hex.EncodeToString(hash.Sum(nil)); n != packets || sum != want {
				t.Errorf("the witness saw %d packets, hash %s; want %d, %s; %+v", n, sum, packets, want, r.Stats())
			}
		})
	}
}

// Two thousand relays, all alive at once: a packet each way through every one.
func TestManyRelays(t *testing.T) {
	const relays = 2000
	e := open(t, engine.Config{Gather: time.Millisecond, Pumps: 2})
	upstream := newPeer(t, v4)
	type end struct {
		*relay.Relay
		client *net.UDPConn
	}
	ends := make([]end, relays)
	for i := range ends {
		c := listen(t, v4)
		r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: addr(c), UpstreamLocal: v4})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Connect(upstream.addr(0), upstream.addr(1)); err != nil {
			t.Fatal(err)
		}
		ends[i] = end{r, c}
	}
	for round := range 3 {
		for i, r := range ends {
			upstream.send(0, netip.AddrPortFrom(v4, uint16(r.UpstreamPort())), rtp(i+round, 200))
		}
		for i, r := range ends {
			got, from := recv(t, r.client)
			if string(got) != string(rtp(i+round, 200)) {
				t.Fatalf("relay %d received %.20x", i, got)
			}
			if _, err := r.client.WriteToUDPAddrPort(got, from); err != nil {
				t.Fatal(err)
			}
		}
		back := map[uint16]bool{}
		for range ends {
			_, from := recv(t, upstream.conn[0])
			back[from.Port()] = true
		}
		for i, r := range ends {
			if !back[uint16(r.UpstreamPort())] {
				t.Errorf("nothing came back through relay %d", i)
			}
		}
	}
	if s := e.ServerStats(); s != (engine.ServerStats{Pairs: 1}) {
		t.Errorf("%+v, want one pair and nothing lost", s)
	}
}

// Relaying allocates nothing, observed or not, and the Observer is shown every
// packet by itself though they travel in runs.
func TestRelayAllocatesNothing(t *testing.T) {
	n, err := wire.Open(wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := open(t, engine.Config{Gather: time.Millisecond})
	r := newTrip(t, e, v4, v4)
	source, err := n.Listen(netip.AddrPortFrom(v4, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = source.Close() })
	const segments, size, last = 10, 1400, 77
	image := make([]byte, (segments-1)*size+last)
	batch, to := n.NewBatch(), wire.NewDest(r.toClient[0], nil)
	var sizes [2000]atomic.Int64
	observer := func(b relay.Burst) {
		for _, p := range b.Packets {
			sizes[len(p)].Add(1)
		}
	}
	buf := make([]byte, 1<<16)
	frame := func() {
		batch.AddRun(source, to, image, size)
		batch.Flush()
		for i := range segments {
			got, _, err := r.client.conn[0].ReadFromUDPAddrPort(buf)
			if err != nil || (got != size) != (i == segments-1) {
				t.Fatalf("packet %d: %d bytes, %v", i, got, err)
			}
		}
	}
	_ = r.client.conn[0].SetReadDeadline(time.Now().Add(20 * time.Second))
	for _, observe := range []relay.Observer{nil, observer} {
		r.Observe(observe)
		if allocs := testing.AllocsPerRun(200, frame); allocs != 0 {
			t.Errorf("observed %v: %v allocations a frame", observe != nil, allocs)
		}
	}
	if got := [2]int64{sizes[size].Load(), sizes[last].Load()}; got != [2]int64{201 * (segments - 1), 201} {
		t.Errorf("observed %v packets of %d and %d bytes, want 201 frames", got, size, last)
	}
}
