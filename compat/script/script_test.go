package script

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	s, err := Parse("dir/one.rtsp", []byte("# What it is\n# about.\ntags: movie udp\ntags: slow\n\n> PLAY {base}\n> Range: npt=0-\n>\n> body\n> more\n\nlisten 1.5s until end\nagain 2\n> OPTIONS {url}\n> X: {n}\ndone\nraw \"a\\r\\n\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "one" || s.About != "What it is about." || !slices.Equal(s.Tags, []string{"movie", "udp", "slow"}) {
		t.Errorf("head: %q %q %q", s.Name, s.About, s.Tags)
	}
	if len(s.Steps) != 5 {
		t.Fatalf("%d steps", len(s.Steps))
	}
	play, listen, second, raw := s.Steps[0], s.Steps[1], s.Steps[3], s.Steps[4]
	if play.Line != 6 || !slices.Equal(play.Head, []string{"PLAY {base}", "Range: npt=0-"}) || string(play.Body) != "body\r\nmore\r\n" {
		t.Errorf("request: %+v %q", play, play.Body)
	}
	if listen.Verb != Listen || listen.For != 1500*time.Millisecond || !listen.End {
		t.Errorf("listen: %+v", listen)
	}
	if second.Head[1] != "X: 2" || raw.Arg != "a\r\n" {
		t.Errorf("again: %q, raw: %q", second.Head, raw.Arg)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "no steps",
		"dance\n":                         "x.rtsp:1: unknown verb",
		"\nlisten soon\n":                 "x.rtsp:2: listen",
		"listen 11m\n":                    "is not within",
		"listen -1s\n":                    "is not within",
		"raw no quotes\n":                 "raw",
		"auth maybe\n":                    "none of",
		"connection\n":                    "which one",
		"again 3\n> OPTIONS *\n":          "again without done",
		"done\n":                          "done without again",
		"again 9999\n> OPTIONS *\ndone\n": "more than 1000 steps",
		">\n> X: y\n":                     "begins with its request line",
	} {
		if _, err := Parse("x.rtsp", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Every built-in point says what it is for, carries known tags and speaks of
// what exists.
func TestPoints(t *testing.T) {
	known := strings.Fields("movie live udp tcp quick media seek pause end gone auth publish alone malformed slow timeout tunnel darwin 3gpp multicast rtcp risky risky-live shared")
	all, err := Points()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 80 {
		t.Errorf("only %d points", len(all))
	}
	for _, s := range all {
		if len(s.About) < 15 || !s.Has("movie") && !s.Has("live") {
			t.Errorf("%s: about %q, tags %q", s.Name, s.About, s.Tags)
		}
		for _, tag := range s.Tags {
			if !slices.Contains(known, tag) {
				t.Errorf("%s: unknown tag %q", s.Name, tag)
			}
		}
		for _, step := range s.Steps {
			if step.For > 30*time.Second && !s.Has("slow") {
				t.Errorf("%s listens for %v and is not slow", s.Name, step.For)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("# a\ntags: b\n> OPTIONS *\n>\n> body\nagain 2\nlisten 1s\ndone\n")
	f.Add("raw \"\\x00\"\nhold\nrelease\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("f", []byte(text))
		if err == nil && (len(s.Steps) == 0 || len(s.Steps) > maxSteps) {
			t.Errorf("%d steps", len(s.Steps))
		}
	})
}
