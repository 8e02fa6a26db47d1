package disk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestBudget(t *testing.T) {
	b := Budget{Speed: Speed{100_000_000, 2 * time.Millisecond}, Cycle: time.Second, Memory: 64 << 20, BlockSize: 1 << 18, MaxRead: 1 << 20}
	half := b
	half.Cycle = 500 * time.Millisecond
	for _, c := range []struct {
		name   string
		b      Budget
		d      Demand
		time   time.Duration
		blocks int
	}{
		{"nothing", b, Demand{}, 2 * time.Millisecond, 1},
		{"2 Mbit/s", b, Demand{Rate: 250_000}, 4500 * time.Microsecond, 3},
		{"2 Mbit/s, hints apart", b, Demand{Rate: 250_000, Places: 3}, 8500 * time.Microsecond, 5},
		{"2 Mbit/s, half the cycle", half, Demand{Rate: 250_000}, 3250 * time.Microsecond, 2},
		{"80 Mbit/s", b, Demand{Rate: 10_000_000}, 120 * time.Millisecond, 78},
		{"a block a cycle", b, Demand{Rate: 1 << 18}, 4621440 * time.Nanosecond, 3},
		{"a byte more", b, Demand{Rate: 1<<18 + 1}, 4621450 * time.Nanosecond, 4},
	} {
		if got := c.b.Time(c.d); got != c.time {
			t.Errorf("%s: %v of the disk, want %v", c.name, got, c.time)
		}
		if got := c.b.Blocks(c.d); got != c.blocks {
			t.Errorf("%s: %d blocks, want %d", c.name, got, c.blocks)
		}
	}
}

// Streams are admitted until either the disk or the memory is used up; streams
// of one file never use more than the file.
func TestAdmission(t *testing.T) {
	const mbit = 125_000
	for _, c := range []struct {
		name              string
		speed             Speed
		memory            int64
		d                 Demand
		files             int
		size              int64
		want              int
		err               error
		sameAgainPossible bool
	}{
		{name: "disk", speed: Speed{100_000_000, 2 * time.Millisecond}, memory: 1 << 30,
			d: Demand{Rate: 2 * mbit}, files: 1000, size: 1 << 30, want: 222, err: ErrDisk}, // 1 s / 4.5 ms
		{name: "seeks cost", speed: Speed{100_000_000, 10 * time.Millisecond}, memory: 1 << 30,
			d: Demand{Rate: 2 * mbit}, files: 1000, size: 1 << 30, want: 80, err: ErrDisk},
		{name: "memory", speed: Speed{1_000_000_000, 0}, memory: 300 << 18,
			d: Demand{Rate: 2 * mbit}, files: 1000, size: 1 << 30, want: 100, err: ErrMemory}, // 3 blocks each
		{name: "unknown disk", memory: 300 << 18, d: Demand{Rate: 2 * mbit}, files: 1000, size: 1 << 30, want: 100, err: ErrMemory},
		{name: "one short movie", speed: Speed{100_000_000, 2 * time.Millisecond}, memory: 300 << 18,
			d: Demand{Rate: 2 * mbit}, files: 1, size: 50 << 18, want: 5000},
		{name: "one long movie", speed: Speed{100_000_000, 2 * time.Millisecond}, memory: 300 << 18,
			d: Demand{Rate: 2 * mbit}, files: 1, size: 1000 << 18, want: 100, err: ErrMemory},
	} {
		cfg := Config{Speed: c.speed, Memory: c.memory}
		if err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		l := ledger{Budget: cfg.budget()}
		shares := make([]share, c.files)
		for i := range shares {
			shares[i].init(&cfg, c.size)
		}
		n, err := 0, error(nil)
		for ; n < 5000; n++ {
			if err = l.admit(&shares[n%c.files], c.d); err != nil {
				break
			}
		}
		if n != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %d streams, then %v; want %d, %v", c.name, n, err, c.want, c.err)
		}
		if again := l.admit(&shares[n%c.files], c.d); (again == nil) != (err == nil) {
			t.Errorf("%s: refused, then %v", c.name, again)
		}
		if err != nil { // one leaves, one comes, and no more
			l.leave(&shares[0], c.d)
			if err := l.admit(&shares[0], c.d); err != nil {
				t.Errorf("%s: after one left: %v", c.name, err)
			}
		}
		for i := range n {
			l.leave(&shares[i%c.files], c.d)
		}
		if err == nil {
			l.leave(&shares[0], c.d)
		}
		if l.time != 0 || l.blocks != 0 {
			t.Errorf("%s: all left, still %v and %d blocks", c.name, l.time, l.blocks)
		}
	}
}

func TestSpeedOf(t *testing.T) {
	for _, want := range []Speed{{1_000_000_000, 10 * time.Microsecond}, {100_000_000, 8 * time.Millisecond}, {500_000_000, 0}} {
		const total = 1000 * time.Second
		got, err := speedOf(total, int64(total/2/want.Time(1, smallTrial)), int64(total/2/want.Time(1, largeTrial)))
		if off := float64(got.Bandwidth)/float64(want.Bandwidth) - 1; err != nil || off < -0.01 || off > 0.01 ||
			(got.Overhead-want.Overhead).Abs() > want.Overhead/50+2*time.Microsecond {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}

func TestCalibrate(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i := range 3 {
		name, _ := movie(t, dir, fmt.Sprint(i), 4<<20)
		names = append(names, name)
	}
	const limit = 200 * time.Millisecond
	before := time.Now()
	v, err := Calibrate(OS(Auto), names, limit)
	if took := time.Since(before); took > limit*5/2 {
		t.Errorf("took %v", took)
	}
	if err != nil || v.Bandwidth < 1<<20 || v.Bandwidth > 1<<40 || v.Overhead > 100*time.Millisecond {
		t.Errorf("%+v, %v", v, err)
	}
	t.Logf("%d MB/s, %v a read", v.Bandwidth/1_000_000, v.Overhead)

	// A disk that does not answer costs no more time.
	before, routines := time.Now(), runtime.NumGoroutine()
	slow := &faulty{FS: OS(Off), fault: func(string, int64) error { time.Sleep(time.Second); return nil }}
	if v, err := Calibrate(slow, names, limit); err == nil {
		t.Errorf("measured %+v", v)
	}
	if took := time.Since(before); took > limit*5/2 {
		t.Errorf("took %v", took)
	}
	await(t, "the last reads to come back", func() bool { return runtime.NumGoroutine() <= routines })
	small, _ := movie(t, dir, "small", 1000)
	for _, names := range [][]string{nil, {dir + "/none"}, {small}} {
		if v, err := Calibrate(OS(Auto), names, 20*time.Millisecond); err == nil {
			t.Errorf("%q: %+v", names, v)
		}
	}
	if _, err := Calibrate(OS(Auto), []string{dir + "/none"}, 20*time.Millisecond); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
