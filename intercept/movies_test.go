package intercept

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMoviesFind(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"a.mp4", "sub/b b.mov", "secret"} {
		name := filepath.Join(dir, "movies", f)
		if f == "secret" {
			name = filepath.Join(dir, f)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	movies := filepath.Join(dir, "movies")
	m := Movies{Dir: movies, Map: []MovieRule{{"vod/*.mp4", filepath.Join(movies, "a.mp4")}, {"x/?", "/nowhere"}}}
	for uri, want := range map[string]string{
		"rtsp://h:1/a.mp4":                "a.mp4",
		"rtsp://h/a.mp4/":                 "a.mp4",
		"rtsp://h/a.mp4/trackID=3":        "a.mp4",
		"rtsp://h/sub/b%20b.mov?x=y":      "sub/b b.mov",
		"/sub/b%20b.mov":                  "sub/b b.mov",
		"rtsp://h/vod/anything.mp4":       "a.mp4",
		"rtsp://h/../secret":              "",
		"rtsp://h/%2e%2e/secret":          "",
		"rtsp://h/sub/..%2f..%2f..secret": "",
		"rtsp://h/sub":                    "",
		"rtsp://h/a.mp4/x/y":              "",
		"rtsp://h/":                       "",
		"*":                               "",
		"rtsp://h/a.mp4%00":               "",
		"rtsp://h/%zz":                    "",
	} {
		if want != "" {
			want = filepath.Join(movies, want)
		}
		if got := m.find(uri); got != want {
			t.Errorf("%s: %q, want %q", uri, got, want)
		}
	}
	if got := (&Movies{}).find("rtsp://h/a.mp4"); got != "" {
		t.Errorf("no movies, found %q", got)
	}
	for _, bad := range []string{"", "a", "a=", "[=b"} {
		if _, err := ParseMovieRule(bad); err == nil {
			t.Errorf("rule %q taken", bad)
		}
	}
}
