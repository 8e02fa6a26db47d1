package disk

import (
	"cmp"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// clockwork is a Scheduler whose time is turned by hand.
type clockwork struct {
	*Scheduler
	t   *testing.T
	at  time.Duration
	out *logs
}

func wind(t *testing.T, c Config) *clockwork {
	t.Helper()
	c.Uring = Off
	w := &clockwork{t: t, out: &logs{}}
	c.Logger = slog.New(slog.NewTextHandler(w.out, nil))
	s, err := newScheduler(c)
	if err != nil {
		t.Fatal(err)
	}
	w.Scheduler = s
	t.Cleanup(func() {
		s.post.close()
		w.turn(w.at)
		if err := s.free(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// turn does what is to be done at a time, however long the reads take.
func (w *clockwork) turn(to time.Duration) {
	w.at = to
	for again := true; again; {
		w.step(to)
		again = len(w.idle) < len(w.slots) || len(w.ready) > 0
		w.deliver()
		if len(w.idle) < len(w.slots) {
			w.finish(<-w.reads.done, to)
		}
	}
}

// player plays a movie by the clock of a clockwork: what is due in cycle k+2 it
// asks for in cycle k and has in cycle k+1; what it sent it gives back a little
// after the end of the cycle.
type player struct {
	st    *Stream
	want  []byte
	rate  int64 // bytes a cycle
	start int64 // cycle it begins with
	sets  [3]*Set
	got   int // sets
	err   error
}

func (p *player) Ready(set *Set) {
	p.got++
	if p.err == nil {
		p.err = set.Err()
	}
}

func (w *clockwork) player(name string, want []byte, rate, start int64) *player {
	f, err := w.OpenFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	defer closed(w.t, f)
	p := &player{want: want, rate: rate, start: start}
	d := Demand{Rate: int64(float64(rate) / w.cfg.Cycle.Seconds())}
	if p.st, err = w.OpenStream(f, d, p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// extent is what p sends in a cycle.
func (p *player) extent(cycle int64) (off, n int64) {
	off = max(cycle-p.start, 0) * p.rate
	return off, min(p.rate, int64(len(p.want))-off)
}

// play runs the players from one cycle to another.
func (w *clockwork) play(players []*player, from, to int64) {
	w.t.Helper()
	c := w.cfg.Cycle
	for k := from; k < to; k++ {
		w.turn(time.Duration(k) * c)
		for i, p := range players {
			set := p.sets[k%3] // what is due in this cycle was read in the last
			if set == nil {
				continue
			}
			off, n := p.extent(k)
			if set.busy || p.err != nil {
				w.t.Fatalf("cycle %d, player %d: %v, being read: %v", k, i, p.err, set.busy)
			} else if err := equal(set, p.want, off, n); err != nil {
				w.t.Fatalf("cycle %d, player %d: %v", k, i, err)
			}
		}
		w.turn(time.Duration(k)*c + c/100) // the last cycle's packets have left
		for _, p := range players {
			if set := &p.sets[(k+2)%3]; *set != nil {
				(*set).Release()
				*set = nil
			}
		}
		w.turn(time.Duration(k)*c + c/2)
		for _, p := range players {
			if off, n := p.extent(k + 2); k+2 >= p.start && n > 0 {
				set := p.st.NewSet()
				set.Want(off, n)
				if err := set.Read(time.Duration(k+2-p.start)*c, w.epoch.Add(time.Duration(k+2)*c)); err != nil {
					w.t.Fatal(err)
				}
				p.sets[(k+2)%3] = set
			}
		}
		w.turn(time.Duration(k)*c + c/2)
	}
}

func (w *clockwork) end(players []*player) {
	for _, p := range players {
		for _, set := range p.sets {
			if set != nil {
				set.Release()
			}
		}
		p.st.Close()
	}
	w.turn(w.at)
	if st := w.Stats(); st.InUse != 0 || st.Streams != 0 || st.Admitted != 0 || w.promised != 0 || w.ledger.blocks != 0 {
		w.t.Errorf("all are gone, but %+v, %d promised, %d blocks in the books", st, w.promised, w.ledger.blocks)
	}
}

// Viewers some cycles apart cost one read, in a pool that has no room for much
// more than what lies between them; other viewers' data go instead.
func TestIntervalCaching(t *testing.T) {
	const block, cycles, lag = 32 << 10, 60, 8
	dir := t.TempDir()
	fs := &faulty{FS: OS(Auto)}
	w := wind(t, Config{FS: fs, BlockSize: block, Memory: 40 * block})
	shared, sharedBytes := movie(t, dir, "shared", cycles*2*block)
	players := []*player{w.player(shared, sharedBytes, 2*block, 2), w.player(shared, sharedBytes, 2*block, 2+lag)}
	for i := range 2 {
		name, want := movie(t, dir, fmt.Sprint(i), cycles*2*block)
		players = append(players, w.player(name, want, 2*block, 2))
	}
	// The one behind is heard of before the first blocks are forgotten.
	w.play(players, 0, cycles+lag+4)
	twice, blocks := 0, 0
	fs.reads.Range(func(k, n any) bool {
		if r := k.(readOf); r.name == shared {
			blocks++
			if n.(*atomic.Int64).Load() > 1 {
				twice++
			}
		}
		return true
	})
	// Until the one behind asks for the first time nobody knows it will: what
	// was then forgotten, and no more, is read again.
	if twice > 2*lag || blocks != 2*cycles {
		t.Errorf("%d of %d blocks of the shared file were read more than once", twice, blocks)
	}
	if st := w.Stats(); st.Underruns+st.Starved+st.Refused+st.Overruns > 0 || st.Blocks > 3*2*cycles+2*lag {
		t.Errorf("%+v", st)
	}
	w.end(players)
}

// A thousand streams, in a pool of just what they were admitted for, miss
// nothing; whatever else is asked of the pool.
func TestManyStreams(t *testing.T) {
	const block, streams, files = 8 << 10, 1000, 20
	dir := t.TempDir()
	var names []string
	var bytes [][]byte
	for i := range files {
		name, want := movie(t, dir, fmt.Sprint(i), 300*block+i*1000)
		names, bytes = append(names, name), append(bytes, want)
	}
	w := wind(t, Config{BlockSize: block, MaxRead: 8 * block, Memory: (streams*4 + 100) * block, Depth: 16})
	r := rand.New(rand.NewPCG(1, 1))
	var players []*player
	for i := range streams {
		// 1.3 blocks a cycle: 4 to hold two cycles of it.
		players = append(players, w.player(names[i%files], bytes[i%files], block*13/10, 2+r.Int64N(20)))
	}
	greedy := w.player(names[0], bytes[0], 1, 0)
	var held []*Set
	for k := int64(0); k < 40; k += 5 {
		if set := greedy.st.NewSet(); set != nil {
			set.Want(0, int64(len(bytes[0])))
			if err := set.Read(0, time.Time{}); err != nil {
				t.Fatal(err)
			}
			held = append(held, set)
		}
		w.play(players, k, k+5)
	}
	st := w.Stats()
	if st.Underruns+st.Overruns+st.Errors > 0 || st.Starved > uint64(len(held)) || st.InUse > st.PoolBlocks || st.Sets < 18*streams {
		t.Errorf("%+v", st)
	}
	// At most each block of each file a cycle.
	if st.Hits == 0 || st.Blocks-st.Reads == 0 {
		t.Errorf("%+v", st)
	}
	for _, set := range held {
		set.Release()
	}
	w.end(append(players, greedy))
}

// In one batch reads come in the order of files and places, neighbours joined.
func TestOrder(t *testing.T) {
	const block = 8 << 10
	dir := t.TempDir()
	var order []string
	fs := &faulty{FS: OS(Auto)}
	w := wind(t, Config{FS: fs, BlockSize: block, MaxRead: 4 * block, Memory: 200 * block, Depth: 1})
	var names []string
	var files [][]byte
	for i := range 3 {
		name, want := movie(t, dir, fmt.Sprint(i), 40*block)
		names, files = append(names, name), append(files, want)
	}
	slices.SortFunc(names, func(a, b string) int { // the order of the disk
		return cmp.Compare(identity(t, a).Inode, identity(t, b).Inode)
	})
	for i, name := range names {
		var err error
		if files[i], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	fs.fault = func(name string, off int64) error {
		order = append(order, fmt.Sprintf("%d:%d", slices.Index(names, name), off/block))
		return nil
	}
	var players []*player
	for i, at := range []struct{ file, off, n int64 }{{2, 30, 2}, {0, 20, 4}, {1, 7, 1}, {0, 5, 2}, {2, 0, 1}, {0, 6, 5}, {1, 9, 1}} {
		p := w.player(names[at.file], files[at.file], block, 0)
		set := p.st.NewSet()
		set.Want(at.off*block+1, at.n*block-1)
		if err := set.Read(0, w.epoch.Add(2*w.cfg.Cycle)); err != nil {
			t.Fatal(i, err)
		}
		p.sets[0] = set
		players = append(players, p)
	}
	w.turn(w.cfg.Cycle / 2)
	if len(order) > 0 {
		t.Errorf("read before the cycle: %s", order)
	}
	w.turn(w.cfg.Cycle)
	want := []string{"0:5", "0:6", "0:7", "0:8", "0:9", "0:10", "0:20", "0:21", "0:22", "0:23", "1:7", "1:9", "2:0", "2:30", "2:31"}
	if st := w.Stats(); !slices.Equal(order, want) || st.Reads != 7 || st.Blocks != 15 || st.Hits != 1 {
		t.Errorf("%s in %d reads, want %s\n%+v", order, st.Reads, want, st)
	}
	w.end(players)
}

func identity(t *testing.T, name string) Identity {
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return IdentityOf(info)
}
