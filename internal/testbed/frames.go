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
	Gap   int    // pictures the player may leave out by its own doing, after the start
}

// Together runs plays at the same time, as the two halves of a comparison of a
// live stream must be, and returns what each saw. A play that cannot be (a
// missing program, a failure) marks the test and sees nothing, but the test
// itself goes on: see Client.Need.
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

// CompareLoop compares a play of a movie, on demand or published in a loop, with
// the frames of the movie (FileFrames): they must be a run of at least least
// frames somewhere in the loop. Up to three may differ, for sound is decoded
// across the seam.
func CompareLoop(movie, got Frames, least int) error {
	loop := Frames{Video: twice(movie.Video), Audio: twice(movie.Audio), By: movie.By, Said: movie.Said}
	return compare(loop, got, least, func(want, got []string, least int) error {
		return sameButGaps(want, got, least, 1)
	})
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
		match := same
		if gap := max(want.Gap, got.Gap); gap > 0 && m.name == "video" {
			match = func(want, got []string, least int) error { return sameButGaps(want, got, least, gap) }
		}
		if err := match(m.want, m.got, least); err != nil {
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

// sameButGaps compares what was seen by a player that leaves frames out: from
// where both are there up to where one was stopped the same frames in the same
// order, but for at most gap that either has alone.
func sameButGaps(want, got []string, least, gap int) error {
	gap += torn
	pairs := longestPiece(common(want, got), gap)
	if len(pairs) < least {
		return fmt.Errorf("%d and %d frames have only %d in common in the same order, want %d", len(want), len(got), len(pairs), least)
	}
	first, last := pairs[0], pairs[len(pairs)-1]
	for side, name := range []string{"wanted", "got"} {
		if alone := last[side] - first[side] + 1 - len(pairs); alone > gap {
			return fmt.Errorf("%d frames are in common, but of those %s %d more lie between", len(pairs), name, alone)
		}
	}
	if lead := min(first[0], first[1]); lead > damaged {
		return fmt.Errorf("only after %d and %d frames do any agree", first[0], first[1])
	}
	if tail := min(len(want)-last[0], len(got)-last[1]) - 1; tail > gap {
		return fmt.Errorf("%d frames agree, none after number %d of %d and %d of %d", len(pairs), last[0], len(want), last[1], len(got))
	}
	return nil
}

// longestPiece cuts pairs where either index steps over more than gap frames,
// and returns the longest piece.
func longestPiece(pairs [][2]int, gap int) [][2]int {
	var best [][2]int
	start := 0
	for i := range pairs {
		if i > 0 && max(pairs[i][0]-pairs[i-1][0], pairs[i][1]-pairs[i-1][1]) > gap+1 {
			start = i
		}
		if i+1-start > len(best) {
			best = pairs[start : i+1]
		}
	}
	return best
}

// common returns the index pairs of a longest common subsequence of a and b.
func common(a, b []string) [][2]int {
	length := make([][]int, len(a)+1) // [x][y]: of a[x:] and b[y:]
	for x := range length {
		length[x] = make([]int, len(b)+1)
	}
	for x := len(a) - 1; x >= 0; x-- {
		for y := len(b) - 1; y >= 0; y-- {
			if a[x] == b[y] {
				length[x][y] = length[x+1][y+1] + 1
			} else {
				length[x][y] = max(length[x+1][y], length[x][y+1])
			}
		}
	}
	var pairs [][2]int
	for x, y := 0, 0; x < len(a) && y < len(b); {
		switch {
		case a[x] == b[y]:
			pairs = append(pairs, [2]int{x, y})
			x, y = x+1, y+1
		case length[x][y+1] >= length[x+1][y]:
			y++ // before x: a may be a loop, where a later place would do as well
		default:
			x++
		}
	}
	return pairs
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
