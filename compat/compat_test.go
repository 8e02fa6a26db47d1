package compat_test

import (
	"bytes"
	"context"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"rtspshim/compat"
	"rtspshim/compat/judge"
	"rtspshim/compat/script"
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

// A server that gives every second of three something of its own gives it to
// nobody in particular.
func TestTurns(t *testing.T) {
	t.Parallel()
	var n atomic.Uint64
	origin := startOrigin(t, false, "user")
	server := startFaulty(t, strings.TrimSuffix(strings.TrimPrefix(origin, "rtsp://"), "/stream"), fault{answer: func(method string, raw []byte) []byte {
		if method == "SET_PARAMETER" && n.Add(1)%3 == 2 {
			return bytes.Replace(raw, []byte("\r\n"), []byte("\r\nX-Second: yes\r\n"), 1)
		}
		return raw
	}})
	s, err := script.Parse("turns", []byte("# One after the other.\ntags: live alone\n\n> SET_PARAMETER {url}\n"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := compat.Run(t.Context(), compat.Config{Upstream: server + "/stream", Shim: server, Scripts: []*script.Script{s},
		Only: []string{"turns"}, Credentials: url.UserPassword("user", "secret"), Bounds: quick, Clients: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	show(t, r, true)
	if p := r.Points; len(p) != 1 || !r.OK() || p[0].Rounds < 2 {
		t.Errorf("%d points, the first in %d rounds", len(p), p[0].Rounds)
	}
}
