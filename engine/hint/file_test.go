package hint

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Viewers share a movie; the last one closes it; a file that has changed is
// another movie, and those who have the old one keep it.
func TestShelf(t *testing.T) {
	b := tm{tracks: []tt{media("x"), hints(one(1, smp(0, 1, 1, 0, 1, 1)))}}.build()
	name := filepath.Join(t.TempDir(), "a.mov")
	write := func() {
		// In place of the old one, as one replaces a file that may be in use.
		if err := os.WriteFile(name+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	write()
	var s Shelf
	open := func() *File {
		f, err := s.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	reads := func(f *File) error { _, err := f.ReadAt(make([]byte, 8), 0); return err }
	first, second := open(), open()
	if first.Movie != second.Movie {
		t.Error("two viewers have a movie each")
	}
	if err := first.Close(); err != nil || reads(second) != nil {
		t.Error("closed for both", err)
	}
	write()
	third := open()
	if third.Movie == second.Movie {
		t.Error("a changed file was taken for the old one")
	}
	if err := second.Close(); err != nil || reads(second) == nil || reads(third) != nil {
		t.Error("the old file is still open, or the new one is not", err)
	}
	if err := third.Close(); err != nil || len(s.files) != 0 {
		t.Error("still on the shelf", err, s.files)
	}
	if _, err := s.Open(name + ".absent"); err == nil {
		t.Error("opened nothing")
	}

	var wg sync.WaitGroup
	start := time.Now()
	for range 8 {
		wg.Go(func() {
			for range 200 {
				f, err := s.Open(name)
				if err != nil {
					t.Error(err)
					return
				}
				if err := reads(f); err != nil {
					t.Error(err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if len(s.files) != 0 {
		t.Error("files left on the shelf after", time.Since(start))
	}
}
