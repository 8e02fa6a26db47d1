package testbed

import (
	"slices"
	"strings"
	"testing"
)

func seq(from, to int) []string {
	var s []string
	for i := from; i < to; i++ {
		s = append(s, string(rune('a'+i)))
	}
	return s
}

func TestLongestRun(t *testing.T) {
	for _, c := range []struct {
		a, b    string
		i, j, n int
	}{
		{"", "", 0, 0, 0},
		{"abc", "xyz", 0, 0, 0},
		{"abcdef", "cdefgh", 2, 0, 4},
		{"cdefgh", "abcdef", 0, 2, 4},
		{"aaab", "xaab", 1, 1, 3},
		{"abxcdef", "abycdef", 3, 3, 4},
	} {
		i, j, n := longestRun(strings.Split(c.a, ""), strings.Split(c.b, ""))
		if c.n != n || n > 0 && (i != c.i || j != c.j) {
			t.Errorf("longestRun(%q, %q) = %d, %d, %d", c.a, c.b, i, j, n)
		}
	}
}

// withGap compares as if the second player left out up to 30 frames.
func withGap(f func(a, b Frames, least int) error) func(a, b Frames, least int) error {
	return func(a, b Frames, least int) error {
		b.Gap = 30
		return f(a, b, least)
	}
}

func TestCompareFindsDifferences(t *testing.T) {
	with := func(s []string, at int) []string {
		s = append([]string{}, s...)
		s[at] = "!"
		return s
	}
	without := func(s []string, at int) []string {
		return append(append([]string{}, s[:at]...), s[at+1:]...)
	}
	all := seq(0, 400)
	for _, c := range []struct {
		name  string
		f     func(a, b Frames, least int) error
		a, b  []string
		least int
		fault string // part of the error, "" for none
	}{
		{"start same", CompareStart, all[:100], all[:90], 90, ""},
		{"start torn tail", CompareStart, all[:100], with(all[:90], 89), 90, ""},
		{"start short", CompareStart, all[:100], all[:80], 90, "only 100 and 80"},
		{"start nothing", CompareStart, nil, nil, 1, "no frames"},
		{"start one missing medium", CompareStart, all, nil, 1, "only 400 and 0"},
		{"start damaged", CompareStart, all[:100], with(all[:100], 50), 90, "frame 50 of 100 differs: 1 frames damaged"},
		{"start lost", CompareStart, all[:100], without(all[:100], 50), 90, "frame 50 of 99 differs: 1 frames lost"},
		{"live same", CompareLive, all[:100], all[30:150], 60, ""},
		{"live damaged start", CompareLive, all[:200], with(all[30:200], 10), 60, ""},
		{"live damaged", CompareLive, all[:300], with(all[30:300], 40), 60, "only after 71 and 41 frames"},
		{"live damaged later", CompareLive, all[:200], with(all[30:200], 150), 60, "then number 180 of 200 differs"},
		{"live apart", CompareLive, all[:100], all[100:200], 60, "only 0 in a row"},
		{"loop", CompareLoop, all[:100], append(append([]string{}, all[60:100]...), all[:50]...), 80, ""},
		{"loop seam", CompareLoop, all[:100], append(append([]string{"!"}, all[61:99]...), all[1:50]...), 80, ""},
		{"loop lost some", CompareLoop, all[:100], append(append([]string{}, all[:50]...), all[56:98]...), 80, "only 50 in common"},
		{"loop lost", CompareLoop, all[:100], append(append([]string{}, all[:90]...), all[60:98]...), 80, "none after"},
		{"gap", withGap(CompareLive), all[:200], slices.Concat(all[30:100], all[120:200]), 60, ""},
		{"gap on both sides", withGap(CompareLive), slices.Concat(all[:50], all[70:200]), slices.Concat(all[30:100], all[120:200]), 60, ""},
		{"gap and a torn tail", withGap(CompareLive), all[:200], slices.Concat(all[30:100], all[120:180], all[40:41]), 60, ""},
		{"gap too wide", withGap(CompareLive), all[:300], slices.Concat(all[30:100], all[140:300]), 60, "only after 140 and 70"},
		{"gaps too many", withGap(CompareLive), all[:300], slices.Concat(all[30:100], all[120:150], all[170:300]), 60, "40 more lie between"},
		{"gap and damage", withGap(CompareLive), all[:300], with(slices.Concat(all[30:100], seq(400, 440), all[140:300]), 90), 60, "only after 140 and 110"},
	} {
		err := c.f(Frames{Video: c.a}, Frames{Video: c.b}, c.least)
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.fault)
		}
	}
}
