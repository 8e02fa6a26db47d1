package engine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"rtspshim/engine"
)

// TestBeginsAtOnce opens streams in the middle of a disk cycle, beside a hundred
// others: of a movie that others play and of one that nobody has read yet, both
// of whose first packets are due at once.
func TestBeginsAtOnce(t *testing.T) {
	const others, tries, most = 100, 9, 100 * time.Millisecond
	whole, err := os.ReadFile("../testdata/hinted/h264-aac.mp4")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := open(t, engine.Config{Memory: 256 << 20})
	play := func(name string, from time.Duration) (v *viewer, took time.Duration) {
		f, err := e.OpenMovie(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		v = newViewer(t, f)
		v.overUDP(e)
		began := time.Now()
		v.spec.Base, v.spec.From = began.Add(-from), from
		s := v.open(e)
		if err := s.Primed(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(nil); err != nil {
			t.Fatal(err)
		}
		v.await([]int{1, 0})
		v.mu.Lock()
		defer v.mu.Unlock()
		return v, v.at[0][0].Sub(began)
	}
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint(i, ".mp4")) }
	for i := range others + tries {
		if err := os.WriteFile(name(i), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		dropCached(t, name(i))
	}
	for i := range others {
		play(name(i), 0)
	}
	var cached, cold []time.Duration
	for i := range tries {
		_, took := play(name(i), time.Second)
		cached = append(cached, took)
		_, took = play(name(others+i), time.Second)
		cold = append(cold, took)
	}
	for what, took := range map[string][]time.Duration{"cached": cached, "cold": cold} {
		slices.Sort(took)
		t.Logf("%s: first packet after %v at the median, %v at most", what, took[tries/2], took[tries-1])
		if took[tries/2] > most {
			t.Errorf("%s: first packet after %v", what, took)
		}
	}
}
