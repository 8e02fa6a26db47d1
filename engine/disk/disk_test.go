package disk

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// movie makes a file of random bytes.
func movie(t testing.TB, dir, name string, size int) (string, []byte) {
	t.Helper()
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(len(name)), name[0]})
	_, _ = r.Read(b)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil { // clean pages can be dropped
		t.Fatal(err)
	}
	_ = f.Close()
	return path, b
}

// logs collects what a scheduler logs.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// open opens a scheduler that is closed, clean, with the test.
func open(t testing.TB, c Config) (*Scheduler, *logs) {
	t.Helper()
	out := &logs{}
	c.Logger = slog.New(slog.NewTextHandler(out, nil))
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if t.Failed() {
			t.Log(out.String())
		}
	})
	return s, out
}

// inbox is a Receiver that queues.
type inbox chan *Set

func (in inbox) Ready(set *Set) { in <- set }

// get waits for the next set.
func (in inbox) get(t testing.TB) *Set {
	t.Helper()
	select {
	case set := <-in:
		return set
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<16)
		t.Fatalf("no set came\n%s", buf[:runtime.Stack(buf, true)])
		return nil
	}
}

func stream(t testing.TB, s *Scheduler, name string, d Demand) (*Stream, inbox) {
	t.Helper()
	f, err := s.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	in := make(inbox, maxSets)
	st, err := s.OpenStream(f, d, in)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return st, in
}

func closed(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// equal compares a part of a set with the file.
func equal(set *Set, want []byte, off, n int64) error {
	for n > 0 {
		b := set.At(off, int(n))
		if len(b) == 0 {
			return fmt.Errorf("nothing at %d", off)
		}
		if !bytes.Equal(b, want[off:off+int64(len(b))]) {
			return fmt.Errorf("other bytes at %d", off)
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// modes are the ways to read.
var modes = []struct {
	name          string
	uring, direct Mode
}{
	{"uring,direct", On, On}, {"uring,buffered", On, Off},
	{"pread,direct", Off, On}, {"pread,buffered", Off, Off},
	{"auto", Auto, Auto},
}

// eachMode runs a test in all of them; a skip says what the system refuses.
func eachMode(t *testing.T, fn func(t *testing.T, c Config)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			c := Config{Uring: m.uring, Direct: m.direct}
			s, err := Open(c)
			if err != nil {
				t.Skip("not on this system: ", err)
			}
			defer closed(t, s)
			path, _ := movie(t, t.TempDir(), "probe", 1<<16)
			f, err := s.OpenFile(path)
			if err != nil {
				t.Skip("not on this file system: ", err)
			}
			closed(t, f)
			fn(t, c)
		})
	}
}

// Many streams that read and seek at random in a few files, the pool far
// smaller than these, get the bytes of the files.
func TestBytes(t *testing.T) {
	eachMode(t, func(t *testing.T, c Config) {
		dir := t.TempDir()
		c.Memory, c.BlockSize, c.Cycle, c.MaxRead, c.Depth = 8<<20, 16<<10, 20*time.Millisecond, 64<<10, 6
		s, _ := open(t, c)
		var wg sync.WaitGroup
		var paths [4]string
		var files [4][]byte
		for i := range files {
			paths[i], files[i] = movie(t, dir, fmt.Sprint(i), 3<<20+i*4321)
		}
		for i := range 24 {
			path, want := paths[i%4], files[i%4]
			st, in := stream(t, s, path, Demand{})
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer st.Close()
				r := rand.New(rand.NewPCG(uint64(i), 1))
				size := int64(len(want))
				for range 60 {
					set := st.NewSet()
					for len(in) > 0 {
						<-in
					}
					off := r.Int64N(size)
					at := time.Duration(off)
					for range 1 + r.IntN(2) { // the second time in addition
						type extent struct{ off, n int64 }
						var asked []extent
						for range 1 + r.IntN(3) {
							n := min(1+r.Int64N(50_000), size-off)
							set.Want(off, n)
							asked = append(asked, extent{off, n})
							if off += n + r.Int64N(30_000); off >= size {
								break
							}
						}
						var due time.Time
						switch r.IntN(3) {
						case 0:
							due = s.NextCycle(time.Now())
						case 1:
							due = s.NextCycle(time.Now()).Add(s.Cycle())
						}
						if err := set.Read(at, due); err != nil {
							t.Error(err)
							return
						}
						if r.IntN(10) == 0 {
							break // changed its mind
						}
						for <-in != set { // one it gave up, see Receiver
						}
						if err := set.Err(); err != nil {
							t.Error(err)
							return
						}
						for _, e := range asked {
							if err := equal(set, want, e.off, e.n); err != nil {
								t.Errorf("%d bytes at %d: %v", e.n, e.off, err)
							}
						}
						if off >= size {
							break
						}
					}
					set.Release()
				}
			}()
		}
		wg.Wait()
		st := s.Stats()
		if st.Blocks-st.Reads == 0 || st.Hits == 0 || st.Errors > 0 || st.Refused > 0 {
			t.Errorf("%+v", st)
		}
	})
}
