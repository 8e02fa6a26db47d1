package engine_test

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/live"
	"rtspshim/engine/wire"
)

// BenchmarkLive measures what a live stream costs for 200 viewers over UDP, in
// processor time of the pump: 25 frames a second of 18 packets, for a second or
// more. The raw loop to compare with sends the same packets from memory, at the
// same pace, in the same runs; x-raw is the pump's time over its.
func BenchmarkLive(b *testing.B) {
	const viewers, packets, size, every = 200, 18, 1412, 40 * time.Millisecond
	n, err := wire.Open(wire.Options{GSO: wire.On})
	if err != nil {
		b.Skip("needs Linux with UDP_SEGMENT: ", err)
	}
	frames := max(b.N, int(2*time.Second/every))
	pace := func(frame func()) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for range frames {
			<-tick.C
			frame()
		}
	}
	e := open(b, engine.Config{Gather: engine.DefaultGather, Pumps: 1})
	crowd := newCrowd(b, e, viewers, false)
	drain(crowd)
	for range 1200 / packets { // until all are in step
		crowd.frame(packets, size, every)
		time.Sleep(every / 10)
	}
	var had live.MemberStats
	for _, m := range crowd.members {
		had.Add(m.Stats())
	}
	before := e.PumpStats()[0].CPU
	pace(func() { crowd.frame(packets, size, every) })
	time.Sleep(every) // the pump has sent all
	pump := e.PumpStats()[0].CPU - before

	thread := wire.LockThread("raw")
	defer runtime.UnlockOSThread()
	conn, err := n.Listen(netip.AddrPortFrom(v4, 0))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var to []*wire.Dest
	for _, c := range crowd.clients {
		to = append(to, wire.NewDest(addr(c), nil))
	}
	image, batch := make([]byte, packets*size), n.NewBatch()
	began := thread.CPU()
	next := time.Now()
	for range frames {
		for _, d := range to {
			batch.AddRun(conn, d, image, size)
		}
		batch.Flush()
		next = next.Add(every)
		wire.Sleep(max(0, time.Until(next)))
	}
	raw := thread.CPU() - began

	var stats live.MemberStats
	for _, m := range crowd.members {
		stats.Add(m.Stats())
	}
	stats.Packets -= had.Packets
	if want := uint64(frames * packets * viewers); stats.Packets != want {
		b.Errorf("%d packets of %d were sent", stats.Packets, want)
	}
	gib := float64(stats.Packets*size) / (1 << 30)
	b.ReportMetric(pump.Seconds()/gib, "cpu-s/GiB")
	b.ReportMetric(raw.Seconds()/gib, "raw-cpu-s/GiB")
	b.ReportMetric(float64(pump)/float64(raw), "x-raw")
	b.ReportMetric(0, "ns/op")
}

// drain reads what the viewers get until their sockets are closed.
func drain(c *crowd) {
	for _, client := range c.clients {
		go func() {
			b := make([]byte, 2048)
			for {
				if _, err := client.Read(b); err != nil {
					return
				}
			}
		}()
	}
}
