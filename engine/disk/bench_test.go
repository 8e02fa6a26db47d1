package disk

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	benchFiles = 8
	benchSize  = 64 << 20
	benchPool  = 128 << 20
	benchRound = 400 * time.Millisecond
	benchRuns  = 6
)

// cpu is the processor time this process used.
func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rate is what one round did.
type rate struct {
	bytes     int64
	wall, cpu time.Duration
}

func (r rate) mibps() float64 { return float64(r.bytes) / (1 << 20) / r.wall.Seconds() }
func (r rate) cost() float64  { return r.cpu.Seconds() * (1 << 30) / float64(r.bytes) }

func round(fn func(stop *atomic.Bool) int64) rate {
	runtime.GC()
	var stop atomic.Bool
	began, used := time.Now(), cpu()
	time.AfterFunc(benchRound, func() { stop.Store(true) })
	n := fn(&stop)
	return rate{n, time.Since(began), cpu() - used}
}

// raw reads at random places of the files, as many reads at once as depth, with
// nothing around them: the limit to compare with. It reads into as much memory
// as a pool has, so that the processor's cache helps it no more.
func raw(b *testing.B, names []string, size, depth int, direct Mode) func(*atomic.Bool) int64 {
	memory, mapped, err := mapMemory(benchPool)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unmapMemory(mapped) })
	var open []Handle
	for _, name := range names {
		h, err := OS(direct).Open(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = h.Close() })
		open = append(open, h)
	}
	return func(stop *atomic.Bool) int64 {
		var n atomic.Int64
		var all sync.WaitGroup
		for i := range depth {
			all.Add(1)
			go func() {
				defer all.Done()
				for k := i; !stop.Load(); k += depth {
					to := memory[k*size%benchPool:][:size]
					k, err := open[rand.IntN(len(open))].ReadAt(to, rand.Int64N(benchSize/int64(size))*int64(size))
					if err != nil {
						panic(err)
					}
					n.Add(int64(k))
				}
			}()
		}
		all.Wait()
		return n.Load()
	}
}

// reader asks for the next piece whenever it has one, at random places.
type reader struct {
	st    *Stream
	piece int64
	stop  *atomic.Bool
	open  *sync.WaitGroup
}

func (r *reader) Ready(set *Set) {
	if set != nil {
		if set.Err() != nil {
			panic(set.Err())
		}
		set.Release()
	}
	if r.stop.Load() {
		r.st.Close()
		r.open.Done()
		return
	}
	next := r.st.NewSet()
	next.Want(rand.Int64N((benchSize-r.piece)/4096)*4096, r.piece)
	if err := next.Read(0, r.st.s.NextCycle(time.Now())); err != nil { // with the batch
		panic(err)
	}
}

func scheduled(b *testing.B, names []string, c Config, streams int, piece int64) func(*atomic.Bool) int64 {
	s, _ := open(b, c)
	var files []*File
	for _, name := range names {
		f, err := s.OpenFile(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	return func(stop *atomic.Bool) int64 {
		var playing sync.WaitGroup
		before := s.Stats().Bytes
		for i := range streams {
			r := &reader{piece: piece, stop: stop, open: &playing}
			st, err := s.OpenStream(files[i%len(files)], Demand{}, r)
			if err != nil {
				b.Fatal(err)
			}
			r.st = st
			playing.Add(1)
			r.Ready(nil)
		}
		playing.Wait()
		return int64(s.Stats().Bytes - before)
	}
}

// BenchmarkThroughput compares a scheduler kept busy with bare reads of the
// same files, by turns: MiB/s, CPU-s/GiB, and of the best that bare reads do in
// the same run the part reached. It is one measurement, not b.N of them.
func BenchmarkThroughput(b *testing.B) {
	dir := b.TempDir()
	var names []string
	for i := range benchFiles {
		name, _ := movie(b, dir, fmt.Sprint(i), benchSize)
		names = append(names, name)
		h, err := OS(Off).Open(name)
		if err != nil {
			b.Fatal(err)
		}
		dropCache(h.(*osFile).fd, 0, 0) // what the writing left
		closed(b, h)
	}
	quiet := Config{Memory: benchPool}
	with := func(uring, direct Mode) Config {
		c := quiet
		c.Uring, c.Direct = uring, direct
		return c
	}
	runs := []struct {
		name string
		fn   func(*atomic.Bool) int64
		got  []rate
	}{
		// What is to be reached: the best of the first three.
		{name: "raw 256K x16", fn: raw(b, names, 256<<10, 16, On)},
		{name: "raw 512K x8", fn: raw(b, names, 512<<10, 8, On)},
		{name: "raw 1M x4", fn: raw(b, names, 1<<20, 4, On)},
		{name: "uring direct, 250 KB", fn: scheduled(b, names, with(On, On), 100, 250_000)},
		{name: "uring direct, 1 MB", fn: scheduled(b, names, with(On, On), 50, 1_000_000)},
		{name: "pread direct, 250 KB", fn: scheduled(b, names, with(Off, On), 100, 250_000)},
		{name: "uring buffered, 250 KB", fn: scheduled(b, names, with(On, Off), 100, 250_000)},
		{name: "pread buffered, 250 KB", fn: scheduled(b, names, with(Off, Off), 100, 250_000)},
	}
	for k := range benchRuns {
		for i := range runs {
			i = (i + 3*k) % len(runs) // in another order each time
			runs[i].got = append(runs[i].got, round(runs[i].fn))
		}
	}
	median := func(got []rate, of func(rate) float64) float64 {
		var v []float64
		for _, r := range got {
			v = append(v, of(r))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	best := 0.0
	for _, r := range runs[:3] {
		best = max(best, median(r.got, rate.mibps))
	}
	for i, r := range runs {
		v := median(r.got, rate.mibps)
		b.Logf("%-24s %6.0f MiB/s  %.3f CPU-s/GiB  %3.0f %% of the best raw  %5.0f", r.name, v, median(r.got, rate.cost), 100*v/best, each(r.got))
		if i == 3 {
			b.ReportMetric(v/best, "of-raw")
		}
	}
}

func each(got []rate) (v []float64) {
	for _, r := range got {
		v = append(v, r.mibps())
	}
	return v
}
