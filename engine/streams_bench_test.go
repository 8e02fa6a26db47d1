package engine_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"rtspshim/engine"
	"rtspshim/engine/wire"
)

const streamSeconds = 5 // of sending that a benchmark measures

// BenchmarkStreams sends a movie of 2 Mbit/s to many clients, each at another
// place of it, for five seconds, all data in memory after the first one. Clients
// do not read, so that the sender alone is measured. x-raw is the processor time
// of the pump, and of the whole program, over that of a bare loop which sends as
// many bytes at the same pace, in runs of as many packets, gathered as headers
// and payload. Ratios of one run travel between machines, the figures do not.
// Apart, each plays a copy of its own of the movie, from disk.
func BenchmarkStreams(b *testing.B) {
	name := movieOf(b, "2M")
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for range b.N {
				benchStreams(b, n, name)
			}
		})
	}
	b.Run("1000 apart", func(b *testing.B) {
		names := copies(b, name, 1000)
		for range b.N {
			benchStreams(b, 1000, names...)
		}
	})
}

// copies are copies of a file, written to the disk: O_DIRECT reads them there.
func copies(b *testing.B, name string, n int) (names []string) {
	whole, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i, ".mp4")))
		if err != nil {
			b.Fatal(err)
		}
		_, err = f.Write(whole)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			b.Fatal(err)
		}
		names = append(names, f.Name())
	}
	return names
}

// movieOf makes a hinted movie of that rate: 25 frames a second, none of which
// depends on a later one.
func movieOf(b *testing.B, rate string) string {
	name := filepath.Join(b.TempDir(), "bench.mp4")
	out, err := exec.Command("ffmpeg", "-hide_banner", "-loglevel", "error", "-f", "lavfi",
		"-i", "testsrc2=size=640x360:rate=25:duration=30,noise=alls=20:allf=t", "-c:v", "mpeg4", "-g", "25",
		"-b:v", rate, "-minrate", rate, "-maxrate", rate, "-bufsize", "500k", "-movflags", "rtphint", name).CombinedOutput()
	if err != nil {
		b.Skipf("needs ffmpeg: %v: %s", err, out)
	}
	return name
}

func benchStreams(b *testing.B, n int, names ...string) {
	e := open(b, engine.Config{Pumps: 1, Memory: int64(128+2*len(names)) << 20})
	net, err := wire.Open(wire.Options{GSO: wire.On, SocketBuffer: 4096})
	if err != nil {
		b.Skip("needs Linux with UDP_SEGMENT: ", err)
	}
	var all []*engine.Stream
	var clients []wire.Conn
	for i := range n {
		c, err := net.Listen(netip.AddrPortFrom(v4, 0))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
		r, err := e.OpenRelay(engine.RelaySpec{
			ClientLocal: v4, ClientRTP: c.Local(), UpstreamLocal: v4, PortOffsets: []int{0},
		})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		f, err := e.OpenMovie(names[i%len(names)])
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		from := 20 * time.Second * time.Duration(i) / time.Duration(n)
		s, err := e.OpenStream(engine.StreamSpec{
			File: f, From: from, Base: time.Now().Add(time.Second - from),
			Tracks: []engine.StreamTrack{{Mapping: engine.Mapping{Track: f.HintTracks()[0].ID}, Relay: r}},
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Start(nil); err != nil {
			b.Fatal(err)
		}
		all = append(all, s)
	}
	time.Sleep(2 * time.Second)
	before, used, disk := e.PumpStats()[0], processCPU(b), e.DiskStats()
	time.Sleep(streamSeconds * time.Second)
	after, used2, disk2 := e.PumpStats()[0], processCPU(b), e.DiskStats()
	var sum engine.StreamStats
	for _, s := range all {
		s.Halt()
		sum.Add(s.Stats())
	}
	out := after.Out.Datagrams - before.Out.Datagrams
	bytes := after.Out.Bytes - before.Out.Bytes
	run := max(1, int(out/max(after.Out.Messages-before.Out.Messages, 1)))
	raw := rawLoop(b, net, clients, run, int(bytes/max(out, 1)), int(bytes))
	gib := float64(bytes) / (1 << 30)
	b.ReportMetric((after.CPU-before.CPU).Seconds()/gib, "pump-cpu-s/GiB")
	b.ReportMetric(raw.Seconds()/gib, "raw-cpu-s/GiB")
	b.ReportMetric(float64(after.CPU-before.CPU)/float64(raw), "pump-x-raw")
	b.ReportMetric(float64(used2-used)/float64(raw), "all-x-raw")
	b.ReportMetric(float64(out)/float64(after.Out.Messages-before.Out.Messages), "packets/run")
	b.ReportMetric(float64(8*bytes)/streamSeconds/1e6/float64(n), "Mbit/s")
	late := after.Lateness
	late.Sub(&before.Lateness)
	b.ReportMetric(float64(late.Quantile(0.5).Microseconds())/1000, "late-p50-ms")
	b.ReportMetric(float64(late.Quantile(0.99).Microseconds())/1000, "late-p99-ms")
	b.ReportMetric(float64(late.Quantile(0.999).Microseconds())/1000, "late-p999-ms")
	b.ReportMetric(float64(sum.Underruns), "underruns")
	b.ReportMetric(float64(sum.Drops), "drops")
	b.ReportMetric(float64(disk2.Reads-disk.Reads), "reads")
	b.ReportMetric((used2-used).Seconds()/gib, "all-cpu-s/GiB")
	b.ReportMetric(float64(disk2.Bytes-disk.Bytes)/float64(bytes), "read-bytes/byte")
	b.ReportMetric(float64(disk2.UsedMax.Milliseconds()), "disk-busy-max-ms")
	b.ReportMetric(float64(disk2.Overruns), "overruns")
	b.ReportMetric(0, "ns/op")
}

// rawLoop is the bare loop.
func rawLoop(b *testing.B, net *wire.Net, clients []wire.Conn, run, size, total int) time.Duration {
	from, err := net.Listen(netip.AddrPortFrom(v4, 0))
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	var to []*wire.Dest
	for _, c := range clients {
		to = append(to, wire.NewDest(c.Local(), nil))
	}
	headers, payload := make([][12]byte, 64*run), make([]byte, 8<<20)
	for i := range payload {
		payload[i] = byte(i)
	}
	perMs := float64(total) / float64(size*run) / (1000 * streamSeconds)
	batch := net.NewBatch()
	ended := make(chan time.Duration)
	go func() {
		thread := wire.LockThread("raw")
		defer runtime.UnlockOSThread()
		start := thread.CPU()
		began := time.Now()
		for i, at, tick := 0, 0, 1; i*run*size < total; tick++ {
			for ; i < int(float64(tick)*perMs); i++ {
				for k := range run {
					at = (at + size) % (len(payload) - size)
					batch.Add(from, to[i%len(to)], headers[i%64*run+k][:], payload[at:][:size-12])
				}
				if i%64 == 63 {
					batch.Flush()
				}
			}
			batch.Flush()
			wire.Sleep(max(0, time.Until(began.Add(time.Duration(tick)*time.Millisecond))))
		}
		ended <- thread.CPU() - start
	}()
	return <-ended
}

func processCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
