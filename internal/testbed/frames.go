package testbed

import (
	"fmt"
	"sync"
)

// Frames are the hashes of what a client decoded, in order. Two clients of the
// same kind that saw the same frame have the same hash; clients of different
// kinds need not.
type Frames struct {
	Video []string
	Audio []string
	By    string // the command that played
	Said  string // its warnings
}

// Together runs plays at the same time, as the two halves of a comparison of a
// live stream must be, and returns what each saw.
func Together(plays ...func() Frames) []Frames {
	seen := make([]Frames, len(plays))
	var running sync.WaitGroup
	for i, play := range plays {
		running.Go(func() { seen[i] = play() })
	}
	running.Wait()
	return seen
}

// damaged is how many frames at its start a player that joined a live stream
// may have got wrong: those before the first key frame, which every stream of
// the testbed has each second.
const damaged = 30

// torn is how many frames at its end a player that was stopped may have got wrong.
const torn = 2

// CompareStart compares two plays of a movie from its start: frame by frame the
// same, up to where the shorter one was stopped, and at least least frames of
// each medium that either has.
func CompareStart(want, got Frames, least int) error {
	return compare(want, got, least, sameStart)
}

// CompareLive compares two plays of a live stream that began and ended at
// different times: from where both are there, up to where one was stopped, frame
// by frame the same, and at least least frames of each medium that either has.
// What a player decoded before its first key frame is left out.
func CompareLive(want, got Frames, least int) error {
	return compare(want, got, least, sameLive)
}

// CompareLoop compares a play of a movie published in a loop with the frames of
// the movie: they must be a run of at least least frames somewhere in the loop.
func CompareLoop(movie, got Frames, least int) error {
	return compare(Frames{Video: twice(movie.Video), Audio: twice(movie.Audio), By: movie.By, Said: movie.Said}, got, least, sameLive)
}

func twice(s []string) []string { return append(append([]string{}, s...), s...) }

func compare(want, got Frames, least int, same func(want, got []string, least int) error) error {
	for _, m := range []struct {
		name      string
		want, got []string
	}{{"video", want.Video, got.Video}, {"audio", want.Audio, got.Audio}} {
		if len(m.want) == 0 && len(m.got) == 0 {
			continue
		}
		if err := same(m.want, m.got, least); err != nil {
			return fmt.Errorf("%s: %w\nwant: %s\n%s\ngot: %s\n%s", m.name, err, want.By, want.Said, got.By, got.Said)
		}
	}
	if len(want.Video)+len(want.Audio) == 0 && least > 0 {
		return fmt.Errorf("no frames at all\nwant: %s\n%s\ngot: %s\n%s", want.By, want.Said, got.By, got.Said)
	}
	return nil
}

func sameStart(want, got []string, least int) error {
	n := min(len(want), len(got))
	if n < least {
		return fmt.Errorf("only %d and %d frames, want %d", len(want), len(got), least)
	}
	for i := range n - torn {
		if want[i] != got[i] {
			return fmt.Errorf("frame %d of %d differs%s", i, n, shifted(want[i:n], got[i:n]))
		}
	}
	return nil
}

// shifted says, for the reader of an error, whether frames are missing.
func shifted(want, got []string) string {
	i, j, n := longestRun(want, got)
	switch {
	case n == 0:
		return " and nothing after it agrees"
	case i > j:
		return fmt.Sprintf(": %d frames lost", i-j)
	case j > i:
		return fmt.Sprintf(": %d frames too many", j-i)
	}
	return fmt.Sprintf(": %d frames damaged", i)
}

func sameLive(want, got []string, least int) error {
	i, j, n := longestRun(want, got)
	switch {
	case n < least:
		return fmt.Errorf("%d and %d frames have only %d in a row in common (at %d and %d), want %d",
			len(want), len(got), n, i, j, least)
	case min(len(want)-i, len(got)-j)-n > torn:
		return fmt.Errorf("%d frames agree, then number %d of %d differs from number %d of %d",
			n, i+n, len(want), j+n, len(got))
	case min(i, j) > damaged:
		return fmt.Errorf("only after %d and %d frames do any agree", i, j)
	}
	return nil
}

// longestRun finds the longest run common to a and b: a[i:i+n] equals b[j:j+n].
func longestRun(a, b []string) (i, j, n int) {
	above := make([]int, len(b)+1) // length of the run that ends at a[x-1], b[y]
	for x := range a {
		corner := 0
		for y := range b {
			run := 0
			if a[x] == b[y] {
				run = corner + 1
			}
			corner, above[y+1] = above[y+1], run
			if run > n {
				i, j, n = x-run+1, y-run+1, run
			}
		}
	}
	return i, j, n
}
