package disk

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// faulty is an FS whose files fail, or are slow, as fault says. It counts.
type faulty struct {
	FS
	fault func(name string, off int64) error
	reads sync.Map // of {name, offset}: *atomic.Int64
}

func (f *faulty) Open(name string) (Handle, error) {
	h, err := f.FS.Open(name)
	return &faultyFile{h, f, name}, err
}

type faultyFile struct {
	Handle
	fs   *faulty
	name string
}

type readOf struct {
	name string
	off  int64
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	n, _ := f.fs.reads.LoadOrStore(readOf{f.name, off}, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	if f.fs.fault != nil {
		if err := f.fs.fault(f.name, off); err != nil {
			return 0, err
		}
	}
	return f.Handle.ReadAt(b, off)
}

// A part that cannot be read, or that takes for ever, harms those who need it,
// and nobody else.
func TestFaults(t *testing.T) {
	const block = 64 << 10
	dir := t.TempDir()
	good, want := movie(t, dir, "good", 40*block)
	bad, badBytes := movie(t, dir, "bad", 40*block)
	hung, _ := movie(t, dir, "hung", 40*block)
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	fs := &faulty{FS: OS(Auto), fault: func(name string, off int64) error {
		switch {
		case name == bad && off == 5*block:
			return &os.PathError{Op: "read", Path: name, Err: syscall.EIO}
		case name == hung:
			<-release
		}
		return nil
	}}
	s, out := open(t, Config{FS: fs, BlockSize: block, Memory: 400 * block, Cycle: 250 * time.Millisecond, Depth: 4})
	t.Cleanup(free)

	st1, in1 := stream(t, s, good, Demand{Rate: 20 * block})
	st2, in2 := stream(t, s, bad, Demand{Rate: 20 * block})
	st3, in3 := stream(t, s, hung, Demand{Rate: 20 * block})
	due := s.NextCycle(time.Now()).Add(s.Cycle())
	ask := func(st *Stream, off, n int64) *Set {
		set := st.NewSet()
		set.Want(off, n)
		if err := set.Read(0, due); err != nil {
			t.Fatal(err)
		}
		return set
	}
	for range maxSets - 1 { // more reads than there is depth
		ask(st3, int64(len(want))/2, 10*block)
	}
	for i := range int64(10) {
		a, b := ask(st1, i*4*block, 4*block), ask(st2, i*4*block, 4*block)
		if in1.get(t) != a || a.Err() != nil {
			t.Errorf("good file: %v", a.Err())
		} else if err := equal(a, want, i*4*block, 4*block); err != nil {
			t.Error(err)
		}
		var re *ReadError
		if in2.get(t) != b || (b.Err() != nil) != (i == 1) {
			t.Errorf("bad file, %d: %v", i, b.Err())
		} else if i == 1 {
			if !errors.As(b.Err(), &re) || re.Off != 5*block || !errors.Is(b.Err(), syscall.EIO) || re.Name != bad {
				t.Error(b.Err())
			}
			// The rest of the read it was joined to was read on its own.
			if err := equal(b, badBytes, 6*block, 2*block); err != nil || b.At(5*block, 1) != nil {
				t.Error(err, b.At(5*block, 1))
			}
		}
		a.Release()
		b.Release()
		due = due.Add(s.Cycle())
	}
	if len(in3) != 0 {
		t.Error("the hung file was read")
	}
	stats := s.Stats()
	// The hung file's reads are late; nobody else's are, and the reads they
	// share the disk with are not counted as under way for ever.
	if stats.Errors != 1 || stats.Underruns != maxSets-1 || stats.Stuck == 0 || stats.UnderWay != stats.Stuck {
		t.Errorf("%+v", stats)
	}
	for _, line := range []string{"read does not come back\" file=" + hung, "underrun\" file=" + hung} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("not logged: %s", line)
		}
	}
	if strings.Contains(out.String(), "underrun\" file="+good) || strings.Contains(out.String(), "underrun\" file="+bad) {
		t.Error("others are late")
	}
	free()
	for range maxSets - 1 {
		if set := in3.get(t); set.Err() != nil {
			t.Error(set.Err())
		} else {
			set.Release()
		}
	}
	st1.Close()
	st2.Close()
	st3.Close()
}

// A file cut short under our hands, and a read that never ends, through
// io_uring and without.
func TestTruncatedAndHung(t *testing.T) {
	eachMode(t, func(t *testing.T, c Config) {
		const block = 64 << 10
		dir := t.TempDir()
		cut, cutBytes := movie(t, dir, "cut", 10*block+100)
		good, want := movie(t, dir, "good", 10*block+4321)
		pipeR, pipeW, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer closed(t, pipeR)
		defer closed(t, pipeW)
		c.BlockSize, c.Memory, c.Cycle = block, 100*block, 100*time.Millisecond
		s, _ := open(t, c)
		st, in := stream(t, s, cut, Demand{})
		defer st.Close()
		if err := os.Truncate(cut, 5*block+1000); err != nil {
			t.Fatal(err)
		}
		set := st.NewSet()
		set.Want(0, 10*block+100)
		// Whether it is the read or the watch that finds out, is a race.
		if err := set.Read(0, time.Time{}); !errors.Is(err, ErrChanged) {
			var re *ReadError
			in.get(t)
			if !errors.Is(set.Err(), io.ErrUnexpectedEOF) || !errors.As(set.Err(), &re) || re.Name != cut {
				t.Errorf("%v, %v", err, set.Err())
			}
			if err := equal(set, cutBytes, 0, 5*block); err != nil {
				t.Error(err)
			}
			if set.At(5*block, 1) != nil {
				t.Error("lent a block that was cut")
			}
		}
		set.Release()
		for i := 0; st.File().Err() == nil; i++ {
			time.Sleep(s.Cycle() / 10)
			if i == 100 {
				t.Fatal("the change was not noticed")
			}
		}
		if !errors.Is(st.File().Err(), ErrChanged) {
			t.Error(st.File().Err())
		}

		if s.ring == nil {
			return // preadv refuses a pipe
		}
		name, _ := movie(t, dir, "hung", 2*block)
		hung, hungIn := stream(t, s, name, Demand{})
		s.mu.Lock()
		hung.file.os = &osFile{fd: int(pipeR.Fd()), direct: true} // that nobody writes to
		s.mu.Unlock()
		lost := hung.NewSet()
		lost.Want(0, block)
		if err := lost.Read(0, time.Time{}); err != nil {
			t.Fatal(err)
		}
		other, otherIn := stream(t, s, good, Demand{})
		for range 5 {
			set := other.NewSet()
			set.Want(0, int64(len(want)))
			if err := set.Read(0, s.NextCycle(time.Now())); err != nil {
				t.Fatal(err)
			}
			otherIn.get(t)
			if err := equal(set, want, 0, int64(len(want))); err != nil || set.Err() != nil {
				t.Error(err, set.Err())
			}
			set.Release()
		}
		if len(hungIn) > 0 {
			t.Error((<-hungIn).Err())
		}
		hung.Close()
		other.Close()
		// The Close of the scheduler, which the test ends with, cancels the read.
	})
}
