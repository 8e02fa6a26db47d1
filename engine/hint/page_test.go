package hint

import (
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
)

// Viewers of a movie read its hints once, whatever their intervals are; and nothing
// of them stays when the last one has gone.
func TestPagesAreShared(t *testing.T) {
	f := openMovie(t, hintedPath("h264-bframes-aac.mp4"))
	file, err := os.ReadFile(f.Name)
	if err != nil {
		t.Fatal(err)
	}
	play := func(c *Cycle, from, step time.Duration) (read int64) {
		r, err := f.Reader(Config{})
		if err != nil {
			t.Fatal(err)
		}
		r.Seek(from)
		if err := r.Plan(c, from+step); err != nil {
			t.Fatal(err)
		}
		for _, e := range c.Extents {
			read += e.Len
		}
		if ok, err := r.Load(c, Pieces{{0, file}}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		return read
	}
	var one, other Cycle
	first := play(&one, time.Second, 2*time.Second)
	second := play(&other, 1100*time.Millisecond, 1700*time.Millisecond)
	if len(one.leaves) < 4 || len(other.leaves) < 4 {
		t.Fatalf("%d and %d pages of two tracks' two seconds", len(one.leaves), len(other.leaves))
	}
	for _, l := range other.leaves {
		if !slices.ContainsFunc(one.leaves, func(k leaf) bool { return k.page == l.page }) {
			t.Errorf("page of samples %d to %d was written twice", l.page.first, l.page.end)
		}
	}
	if second >= first {
		t.Errorf("%d bytes read, then %d of a part of that, with the hints known", first, second)
	}
	one, other = Cycle{}, Cycle{}
	for range 1000 {
		runtime.GC()
		f.pages.mu.Lock()
		n := len(f.pages.all)
		f.pages.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("pages are left")
}
