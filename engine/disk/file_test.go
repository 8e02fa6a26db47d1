package disk

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// all reads a file from end to end through a stream.
func all(t *testing.T, st *Stream, in inbox, want []byte) error {
	t.Helper()
	set := st.NewSet()
	defer set.Release()
	set.Want(0, int64(len(want)))
	if err := set.Read(0, time.Time{}); err != nil {
		return err
	}
	in.get(t)
	if set.Err() != nil {
		return set.Err()
	}
	return equal(set, want, 0, int64(len(want)))
}

// A file is opened once, however many use it; one that takes its name is another.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	name, old := movie(t, dir, "movie", 1<<20)
	link := filepath.Join(dir, "link")
	if err := os.Link(name, link); err != nil {
		t.Fatal(err)
	}
	s, out := open(t, Config{Memory: 32 << 20, Cycle: 40 * time.Millisecond})
	before := openFiles(t)
	f1, err := s.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f2, err := s.OpenFile(link)
	if err != nil || f1 != f2 || openFiles(t) != before+1 {
		t.Fatalf("opened twice: %v, %d files more", err, openFiles(t)-before)
	}
	info, err := os.Stat(name)
	if err != nil || f1.Identity() != IdentityOf(info) || f1.Size() != 1<<20 {
		t.Errorf("%+v, want %+v, %v", f1.Identity(), IdentityOf(info), err)
	}
	in := make(inbox, maxSets)
	playing, err := s.OpenStream(f1, Demand{}, in)
	if err != nil {
		t.Fatal(err)
	}
	if err := all(t, playing, in, old); err != nil {
		t.Error(err)
	}
	_, next := movie(t, dir, "next", 1<<20)
	if err := os.Rename(filepath.Join(dir, "next"), name); err != nil {
		t.Fatal(err)
	}
	f3, err := s.OpenFile(name)
	if err != nil || f3 == f1 {
		t.Fatal("the new file is the old one", err)
	}
	in3 := make(inbox, maxSets)
	later, err := s.OpenStream(f3, Demand{}, in3)
	if err != nil {
		t.Fatal(err)
	}
	if err := all(t, later, in3, next); err != nil {
		t.Errorf("the new file: %v", err)
	}
	if err := all(t, playing, in, old); err != nil {
		t.Errorf("the old file, going on: %v", err)
	}
	// Nobody uses it: it is closed, but its blocks are there for who comes back.
	playing.Close()
	closed(t, f1)
	closed(t, f2)
	await(t, "the old file to be closed", func() bool { return openFiles(t) == before+1 })
	blocks := s.Stats().Blocks
	again, inAgain := stream(t, s, link, Demand{})
	if err := all(t, again, inAgain, old); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Blocks; n != blocks {
		t.Errorf("%d blocks were read again", n-blocks)
	}
	again.Close()

	// Written to while it plays: nobody gets a mixture for long.
	if err := os.WriteFile(name, old, 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "the change to be seen", func() bool { return errors.Is(f3.Err(), ErrChanged) })
	if err := all(t, later, in3, next); !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
	await(t, "it to be logged", func() bool { return strings.Contains(out.String(), "file changed while open\" file="+name) })
	fresh, inFresh := stream(t, s, name, Demand{})
	if err := all(t, fresh, inFresh, old); err != nil {
		t.Errorf("opened after the change: %v", err)
	}
	fresh.Close()
	later.Close()
	closed(t, f3)

	for _, bad := range []string{dir, filepath.Join(dir, "none"), "/dev/null"} {
		if f, err := s.OpenFile(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v, %v", bad, f, err)
		}
	}
	if err := os.WriteFile(link, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := s.OpenFile(link); err == nil {
		t.Errorf("empty file: %v", f)
	}
}

func await(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !fn(); {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s in vain", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func openFiles(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("open files cannot be counted: ", err)
	}
	return len(d)
}

// mapped is the size of all anonymous and io_uring mappings of this process.
func mapped(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip("mappings cannot be counted: ", err)
	}
	return strings.Count(string(b), "io_uring")
}

func addressSpace(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("memory cannot be counted: ", err)
	}
	var kb int64
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VmSize:"); ok {
			for _, c := range v {
				if c >= '0' && c <= '9' {
					kb = kb*10 + int64(c-'0')
				}
			}
		}
	}
	return kb << 10
}

// Close leaves nothing behind, also with sets asked for and reads under way.
func TestClose(t *testing.T) {
	eachMode(t, func(t *testing.T, c Config) {
		name, want := movie(t, t.TempDir(), "movie", 8<<20)
		c.Memory, c.Cycle = 64<<20, 50*time.Millisecond
		files, rings, routines := openFiles(t), mapped(t), runtime.NumGoroutine()
		space := addressSpace(t)
		for i := range 3 {
			func() {
				s, _ := open(t, c)
				v := view(t, s, name, want, 1<<20, s.NextCycle(time.Now()).Add(s.Cycle()))
				for range i {
					v.ask(t)
					if err := v.take(t); err != nil {
						t.Error(err)
					}
				}
				v.ask(t)
				if i == 2 {
					v.next.Want(0, 1)
					if err := v.next.Read(0, time.Time{}); !errors.Is(err, ErrBusy) {
						t.Error(err)
					}
				}
				v.close()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error("twice:", err)
				}
				if set := v.st.NewSet(); set != nil {
					t.Error("a set of a closed stream")
				}
				if f, err := s.OpenFile(name); !errors.Is(err, ErrClosed) {
					t.Error(f, err)
				}
			}()
		}
		await(t, "all to be gone", func() bool {
			return openFiles(t) <= files && mapped(t) <= rings && runtime.NumGoroutine() <= routines
		})
		if grown := addressSpace(t) - space; grown > 64<<20 {
			t.Errorf("%d bytes of address space more", grown)
		}
	})
}

// With sets still lent, Close says so and leaves their memory alone.
func TestCloseWhileLent(t *testing.T) {
	name, want := movie(t, t.TempDir(), "movie", 1<<20)
	s, err := Open(Config{Memory: 4 << 20, Cycle: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	st, in := stream(t, s, name, Demand{})
	set := st.NewSet()
	set.Want(0, 1<<20)
	if err := set.Read(0, time.Time{}); err != nil {
		t.Fatal(err)
	}
	in.get(t)
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "4 blocks in use") {
		t.Error(err)
	}
	if err := equal(set, want, 0, 1<<20); err != nil {
		t.Error(err)
	}
	set.Release()
	st.Close()
	if err := set.Read(0, time.Time{}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestWantIsChecked(t *testing.T) {
	name, _ := movie(t, t.TempDir(), "movie", 1000)
	s, _ := open(t, Config{Memory: 4 << 20})
	st, in := stream(t, s, name, Demand{})
	defer st.Close()
	var sets []*Set
	for _, w := range []struct{ off, n int64 }{{-1, 5}, {0, 0}, {0, 1001}, {1000, 1}, {1 << 62, 1 << 62}, {5, -5}, {999, 2}} {
		set := st.NewSet()
		set.Want(w.off, w.n)
		if err := set.Read(0, time.Time{}); err == nil {
			t.Errorf("%d bytes at %d are not refused", w.n, w.off)
		}
		set.Release()
		await(t, "the set", func() bool {
			s.post.mu.Lock()
			defer s.post.mu.Unlock()
			return set.free
		})
	}
	for set := st.NewSet(); set != nil; set = st.NewSet() {
		sets = append(sets, set)
	}
	if len(sets) != maxSets {
		t.Errorf("%d sets", len(sets))
	}
	// Nothing wanted is had at once.
	if err := sets[0].Read(0, time.Time{}); err != nil || in.get(t) != sets[0] || sets[0].At(0, 1) != nil {
		t.Error(err)
	}
	for _, set := range sets {
		set.Release()
	}
}
