package engine_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/wire"
)

// BenchmarkRelay measures what relaying costs, in processor time of the pump.
// Frames of 14 packets of 1412 bytes arrive spread over time, so many in a
// millisecond, as runs (sent with GSO, or put together by a device's GRO) or
// packet by packet. With runs, the sender is the raw loop to compare with: it
// sends the same packets from memory, at the same pace, and x-raw is the pump's
// time over its. Ratios of one run travel between machines, the figures do not.
func BenchmarkRelay(b *testing.B) {
	for _, mode := range []struct {
		name   string
		config engine.Config
	}{
		{"batched", engine.Config{Gather: engine.DefaultGather}},
		{"at once", engine.Config{}},
		{"without GSO", engine.Config{Gather: engine.DefaultGather, GSO: wire.Off}},
		{"without GSO and GRO", engine.Config{Gather: engine.DefaultGather, GSO: wire.Off, GRO: wire.Off}},
		{"plain", engine.Config{Gather: engine.DefaultGather, Plain: true}},
	} {
		for _, arrival := range []string{"runs", "single"} {
			for _, load := range []int{2, 10} {
				if load > 2 && mode.config.Plain {
					continue
				}
				b.Run(fmt.Sprintf("%s/%s/%d frames a ms", mode.name, arrival, load), func(b *testing.B) {
					mode.config.Pumps = 1
					benchRelay(b, mode.config, arrival, load)
				})
			}
		}
	}
}

func benchRelay(b *testing.B, c engine.Config, arrival string, framesPerMs int) {
	const relays, segments, size = 100, 14, 1412
	e := open(b, c)
	gso := wire.On
	if arrival == "single" {
		gso = wire.Off
	}
	n, err := wire.Open(wire.Options{GSO: gso})
	if err != nil {
		b.Skip("needs Linux with UDP_SEGMENT: ", err)
	}
	upstream, err := n.Listen(netip.AddrPortFrom(v4, 0))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = upstream.Close() })
	clients, to := make([]wire.Conn, relays), make([]*wire.Dest, relays)
	poller, err := n.NewPoller()
	if err != nil {
		b.Fatal(err)
	}
	for i := range relays {
		if clients[i], err = n.Listen(netip.AddrPortFrom(v4, 0)); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = clients[i].Close() })
		if err := poller.Add(clients[i], int32(i)); err != nil {
			b.Fatal(err)
		}
		r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: clients[i].Local(), UpstreamLocal: v4})
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Connect(upstream.Local(), upstream.Local()); err != nil {
			b.Fatal(err)
		}
		to[i] = wire.NewDest(netip.AddrPortFrom(v4, uint16(r.UpstreamPort())), nil)
	}
	received, ended := make(chan int), atomic.Bool{}
	in, err := n.NewInbox(64)
	if err != nil {
		b.Fatal(err)
	}
	go func() { // the clients
		count := 0
		for !ended.Load() {
			events, _ := poller.Wait(wire.Forever)
			for _, e := range events {
				msgs, _ := clients[e.Token].Recv(in)
				for i := range msgs {
					count += msgs[i].Count()
				}
				in.Reset()
			}
		}
		received <- count
	}()

	image := make([]byte, segments*size)
	batch := n.NewBatch()
	before := e.PumpStats()[0]
	thread := wire.LockThread("upstream")
	defer runtime.UnlockOSThread()
	start := thread.CPU()
	b.ResetTimer()
	next := time.Now()
	for i := 0; i < b.N; i++ {
		batch.AddRun(upstream, to[i%relays], image, size)
		if i%framesPerMs == framesPerMs-1 {
			batch.Flush()
			next = next.Add(time.Millisecond)
			if wait := time.Until(next); wait > 0 {
				wire.Sleep(wait)
			}
		}
	}
	batch.Flush()
	b.StopTimer()
	sending := thread.CPU() - start
	after := e.PumpStats()[0]
	for range 100 { // what is on its way
		if after.Packets-before.Packets == uint64(b.N*segments) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		after = e.PumpStats()[0]
	}
	ended.Store(true)
	poller.Wake()
	got := <-received
	_ = poller.Close()

	packets := after.Packets - before.Packets
	gib := float64(after.Bytes-before.Bytes) / (1 << 30)
	out := func(f func(s wire.BatchStats) uint64) float64 { return float64(f(after.Out) - f(before.Out)) }
	datagrams := out(func(s wire.BatchStats) uint64 { return s.Datagrams })
	b.ReportMetric((after.CPU-before.CPU).Seconds()/gib, "cpu-s/GiB")
	if arrival == "runs" {
		b.ReportMetric(float64(after.CPU-before.CPU)/float64(sending), "x-raw")
	}
	b.ReportMetric(datagrams/out(func(s wire.BatchStats) uint64 { return s.Messages }), "packets/run")
	b.ReportMetric(datagrams/out(func(s wire.BatchStats) uint64 { return s.Calls }), "packets/call")
	b.ReportMetric(float64(b.N*segments)-float64(packets), "lost-in")
	b.ReportMetric(float64(packets)-float64(got), "lost-out")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkOpenRelay is what a SETUP waits for: OpenRelay and Connect; and the
// Close of a TEARDOWN, which waits for a tick.
func BenchmarkOpenRelay(b *testing.B) {
	e := open(b, engine.Config{Gather: engine.DefaultGather})
	var opened, closed time.Duration
	client := netip.AddrPortFrom(v4, 40000)
	for b.Loop() {
		start := time.Now()
		r, err := e.OpenRelay(engine.RelaySpec{ClientLocal: v4, ClientRTP: client, ClientRTCP: client, UpstreamLocal: v4})
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Connect(client, client); err != nil {
			b.Fatal(err)
		}
		opened += time.Since(start)
		start = time.Now()
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		closed += time.Since(start)
	}
	b.ReportMetric(float64(opened.Microseconds())/float64(b.N), "µs/open")
	b.ReportMetric(float64(closed.Microseconds())/float64(b.N), "µs/close")
}
