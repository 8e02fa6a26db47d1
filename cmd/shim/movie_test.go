package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"rtspshim/movie"
)

func shim(args ...string) (string, error) {
	var out strings.Builder
	app := &cli.App{Name: "shim", Commands: commands, Writer: &out, ExitErrHandler: func(*cli.Context, error) {}}
	err := app.Run(append([]string{"shim"}, args...))
	return out.String(), err
}

// The movie command lists as many packets as it reports, in lines and in JSON;
// the hint command's copy has as many as it says.
func TestMovieAndHint(t *testing.T) {
	in := filepath.Join("..", "..", "testdata", "hinted", "h264-aac.mp4")
	out := filepath.Join(t.TempDir(), "out.mp4")
	if _, err := shim("hint", "--quiet", in, out); err == nil || !strings.Contains(err.Error(), "already has hint tracks") {
		t.Error(err)
	}
	said, err := shim("hint", "--quiet", "--again", "--mtu", "1000", in, out)
	if err != nil {
		t.Fatal(err)
	}
	text, err := shim("movie", "--json", "--packets", out)
	if err != nil {
		t.Fatal(err)
	}
	var r movie.Report
	packets := map[uint32]int64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l movie.PacketLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		if l.Track == 0 { // the report, last
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			continue
		}
		packets[l.Track]++
		if l.Bytes+28 > 1000 {
			t.Errorf("packet of %d bytes", l.Bytes)
		}
	}
	if len(r.Hints) != 2 || len(r.Problems) > 0 {
		t.Fatalf("%+v", r)
	}
	for _, h := range r.Hints {
		if h.Packets != packets[h.Track] || !strings.Contains(said, fmt.Sprintf(": %d packets, %d bytes", h.Packets, h.Bytes)) {
			t.Errorf("track %d: %d packets reported, %d listed; hint said %s", h.Track, h.Packets, packets[h.Track], said)
		}
	}
	page, err := shim("movie", "--packets", out)
	if n := int64(strings.Count(page, "\ntrack ")) + 1; err != nil || n != packets[3]+packets[4] || !strings.Contains(page, "No problems found") {
		t.Errorf("%v: %d lines of packets", err, n)
	}
	for _, args := range [][]string{{"movie"}, {"movie", "absent.mp4"}, {"hint", in}} {
		if _, err := shim(args...); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
