package disk

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// viewer plays a file at a steady rate, a cycle at a time, as a movie's Source
// would: asks for one interval while another is sent, and releases that at its
// end.
type viewer struct {
	st   *Stream
	in   inbox
	want []byte
	rate int64 // bytes a cycle
	pos  int64
	due  time.Time
	sent *Set
	next *Set // asked for
}

func view(t testing.TB, s *Scheduler, name string, want []byte, rate int64, due time.Time) *viewer {
	v := &viewer{want: want, rate: rate, due: due}
	v.st, v.in = stream(t, s, name, Demand{Rate: int64(float64(rate) / s.Cycle().Seconds())})
	return v
}

// ask asks for the next interval; false at the end of the movie.
func (v *viewer) ask(t testing.TB) bool {
	n := min(v.rate, int64(len(v.want))-v.pos)
	if n <= 0 {
		return false
	}
	v.next = v.st.NewSet()
	v.next.Want(v.pos, n)
	at := time.Duration(v.pos) * v.st.s.Cycle() / time.Duration(v.rate)
	if err := v.next.Read(at, v.due); err != nil {
		t.Fatal(err)
	}
	v.due = v.due.Add(v.st.s.Cycle())
	return true
}

// take receives what was asked for, looks at it, and gives back the one before.
func (v *viewer) take(t testing.TB) error {
	v.in.get(t)
	if v.sent != nil {
		v.sent.Release()
	}
	v.sent, v.next = v.next, nil
	n := min(v.rate, int64(len(v.want))-v.pos)
	pos := v.pos
	v.pos += n
	if err := v.sent.Err(); err != nil {
		return err
	}
	return equal(v.sent, v.want, pos, n)
}

func (v *viewer) close() {
	if v.sent != nil {
		v.sent.Release()
	}
	v.st.Close()
}

// However many view the same, a block is read once.
func TestReadOnce(t *testing.T) {
	const block, blocks = 32 << 10, 64
	eachMode(t, func(t *testing.T, c Config) {
		dir := t.TempDir()
		a, aBytes := movie(t, dir, "a", blocks*block)
		b, bBytes := movie(t, dir, "b", blocks*block-777)
		c.BlockSize, c.Memory, c.Cycle, c.MaxRead = block, 400*block, 25*time.Millisecond, 4*block
		s, _ := open(t, c)
		var all []*viewer
		start := s.NextCycle(time.Now()).Add(2 * s.Cycle())
		for i := range 40 {
			name, want := a, aBytes
			if i%2 == 1 {
				name, want = b, bBytes
			}
			all = append(all, view(t, s, name, want, 8*block, start))
		}
		var before int64
		counted := false
		if kernelReads != nil {
			before, counted = kernelReads(t, dir)
		}
		for all[0].pos < int64(len(bBytes)) {
			for _, v := range all {
				v.ask(t)
			}
			for _, v := range all {
				if err := v.take(t); err != nil {
					t.Fatal(err)
				}
			}
		}
		st := s.Stats()
		if st.Blocks != 2*blocks || st.Hits != 38*blocks || st.Reads != 2*blocks/4 || st.Bytes != uint64(len(aBytes)+len(bBytes)) {
			t.Errorf("%d blocks in %d reads of %d bytes, %d hits", st.Blocks, st.Reads, st.Bytes, st.Hits)
		}
		if counted && c.Direct == On { // the kernel's own count
			after, _ := kernelReads(t, dir)
			if got := after - before; got < 2*blocks*block-4096 || got > 2*blocks*block+64<<10 {
				t.Errorf("the kernel read %d bytes for files of %d", got, 2*blocks*block)
			}
		}
		if st.Underruns+st.Overruns+st.Errors > 0 {
			t.Logf("%+v", st) // a matter of the machine's load
		}
		for _, v := range all {
			v.close()
		}
	})
}

// kernelReads tells how much the kernel fetched from disks for this process so
// far, where a folder lies on one and the system says.
var kernelReads func(t testing.TB, dir string) (bytes int64, ok bool)

// Who comes when the pool is spoken for is refused at once; who takes more than
// was admitted is refused when there is no more; nobody else notices.
func TestPoolExhausted(t *testing.T) {
	const block, rate = 16 << 10, 32 << 10 // two blocks a cycle
	dir := t.TempDir()
	s, _ := open(t, Config{BlockSize: block, Memory: 64 * block, Cycle: 40 * time.Millisecond})
	var all []*viewer
	start := s.NextCycle(time.Now()).Add(2 * s.Cycle())
	for i := range 9 { // of five blocks each
		name, want := movie(t, dir, fmt.Sprint(i), 40*rate)
		all = append(all, view(t, s, name, want, rate, start))
	}
	greedyName, _ := movie(t, dir, "greedy", 100*block)
	greedy, greedyIn := stream(t, s, greedyName, Demand{Rate: 10 * block})
	last, _ := movie(t, dir, "last", 40*rate)
	f, err := s.OpenFile(last)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := s.OpenStream(f, Demand{Rate: int64(5 * rate / s.Cycle().Seconds())}, make(inbox)); !errors.Is(err, ErrMemory) || !strings.Contains(err.Error(), last) {
		t.Errorf("%v, %v", st, err)
	}
	_ = f.Close()

	var sets []*Set
	refused := 0
	for cycle := range 30 {
		if cycle%4 == 0 { // far more than admitted, and never given back
			if set := greedy.NewSet(); set != nil {
				set.Want(int64(cycle)*2*block, 20*block)
				if err := set.Read(0, time.Time{}); err != nil {
					t.Fatal(err)
				}
				sets = append(sets, set)
			}
		}
		for _, v := range all {
			v.ask(t)
		}
		for _, v := range all {
			if err := v.take(t); err != nil {
				t.Fatalf("cycle %d: %v", cycle, err)
			}
		}
		for len(greedyIn) > 0 {
			if err := (<-greedyIn).Err(); errors.Is(err, ErrMemory) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
	}
	if st := s.Stats(); refused == 0 || st.Refused != uint64(refused) || st.Starved > uint64(len(sets)) {
		t.Errorf("greedy stream refused %d times; %+v", refused, st)
	}
	for _, set := range sets {
		set.Release()
	}
	greedy.Close()
	for _, v := range all {
		v.close()
	}
}

// A stream that starts in the middle of a cycle gets its first data at once
// when it is in memory, and after a read of its own when not, while the disk is
// busy with a batch of 500 reads.
func TestStartInMidCycle(t *testing.T) {
	const block, slow = 16 << 10, 4 * time.Millisecond
	dir := t.TempDir()
	big, _ := movie(t, dir, "big", 500*block)
	small, want := movie(t, dir, "small", 10*block)
	var during, urgentRead atomic.Int64
	fs := &faulty{FS: OS(Auto), fault: func(name string, off int64) error {
		if name == big {
			during.Add(1)
		} else {
			urgentRead.CompareAndSwap(0, max(during.Load(), 1))
		}
		time.Sleep(slow) // a disk of 250 reads a second, 8 at a time
		return nil
	}}
	s, _ := open(t, Config{FS: fs, BlockSize: block, MaxRead: block, Memory: 1200 * block, Cycle: 3 * time.Second, Depth: 8})
	st, in := stream(t, s, big, Demand{Rate: 1000})
	set := st.NewSet()
	set.Want(0, 500*block)
	if err := set.Read(0, s.NextCycle(time.Now())); err != nil {
		t.Fatal(err)
	}
	for during.Load() < 50 { // the batch is under way
		runtime.Gosched()
	}
	start := func() time.Duration {
		st, in := stream(t, s, small, Demand{Rate: 1000})
		defer st.Close()
		set := st.NewSet()
		set.Want(3*block, 2*block)
		began := time.Now()
		if err := set.Read(0, began.Add(100*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		in.get(t)
		took := time.Since(began)
		if err := equal(set, want, 3*block, 2*block); err != nil {
			t.Error(err)
		}
		set.Release()
		return took
	}
	cold := start()
	cached := start()
	if len(in) > 0 {
		t.Fatal("the batch was over before")
	}
	if n := urgentRead.Load(); n > 150 {
		t.Errorf("the first read waited for %d of the batch", n)
	}
	if cold > 200*time.Millisecond || cached > 100*time.Millisecond { // of the 250 that the batch takes
		t.Errorf("data after %v cold, %v cached", cold, cached)
	}
	in.get(t)
	set.Release()
	st.Close()
	if st := s.Stats(); st.Underruns != 0 || st.Blocks != 502 || st.Hits != 2 {
		t.Errorf("%+v", st)
	}
	t.Logf("cold %v, cached %v", cold, cached)
}
