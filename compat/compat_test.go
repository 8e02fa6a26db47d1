package compat_test

import (
	"context"
	"net/url"
	"testing"
	"time"

	"rtspshim/compat"
	"rtspshim/compat/judge"
	"rtspshim/compat/talk"
)

var quick = talk.Bounds{Answer: 1200 * time.Millisecond, Settle: 150 * time.Millisecond, Quiet: 700 * time.Millisecond}

func show(t *testing.T, r *compat.Result, all bool) {
	for _, p := range r.Points {
		if !all && p.Verdict != judge.Different {
			continue
		}
		t.Logf("%-9s %s (%.1f s, %d rounds) %s", p.Verdict, p.Name, p.Seconds, p.Rounds, p.Note)
		for _, f := range p.Findings {
			rule := ""
			if f.Rule != nil {
				rule = f.Rule.Name
			}
			t.Logf("    %-9s %s: %s: %q / %q  size %.4g spread %.4g %s", f.Verdict, f.Where, f.What, f.Direct, f.Shim, f.Size, f.Spread, rule)
		}
	}
}

// The whole takes minutes on a busy machine, so only a part of it runs without
// the build tag e2e.
func part() (only []string, least int) {
	if everything {
		return nil, 60
	}
	return []string{"quick", "play-udp", "play-tcp", "pause-*", "seek-*", "teardown*", "two-*", "end-*", "tunnel"}, 30
}

// A server compared with itself must not differ, whatever is asked of it.
func TestUpstreamAgainstItself(t *testing.T) {
	only, least := part()
	for name, movie := range map[string]bool{"movie": true, "live": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			origin := startOrigin(t, movie, "user")
			r, err := compat.Run(context.Background(), compat.Config{Upstream: origin, Shim: origin, Credentials: url.UserPassword("user", "secret"),
				Publish: "/published", Skip: map[bool][]string{false: {"publish-udp", "publish-tcp"}}[everything || !movie],
				Parallel: 40, Bounds: quick, Clients: []string{}, Only: only})
			if err != nil {
				t.Fatal(err)
			}
			show(t, r, testing.Verbose())
			if !r.OK() || r.Count(judge.Same)+r.Count(judge.Allowed) < least {
				t.Errorf("%d same, %d allowed, %d different, %d not run", r.Count(judge.Same), r.Count(judge.Allowed),
					r.Count(judge.Different), r.Count(judge.NotRun))
			}
		})
	}
}
