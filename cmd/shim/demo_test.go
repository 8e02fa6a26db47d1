package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"rtspshim/demo"
	"rtspshim/intercept"
	"rtspshim/internal/testbed"
)

// `shim demo --once` plays everything and finds it the same.
func TestDemoOnce(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	app := &cli.App{Commands: commands, Writer: &out}
	if err := app.RunContext(t.Context(), []string{"shim", "demo", "--once", "--listen", "127.0.0.1:0", "--play", "2s"}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	line := regexp.MustCompile(`(?m)^(/live)?/h264-aac\.mov +(udp|tcp) +(\w+) +(\d+) +(\d+) +(\d+) +yes$`)
	rows := line.FindAllStringSubmatch(out.String(), -1)
	if len(rows) != 4 {
		t.Fatalf("%d good plays in\n%s", len(rows), &out)
	}
	for _, r := range rows {
		direct, _ := strconv.Atoi(r[4])
		through, _ := strconv.Atoi(r[5])
		if direct < 50 || through < direct*8/10 || r[3] != "relay" {
			t.Errorf("%s", r[0])
		}
	}
}

// Without --once it stays up, and its URLs can be played.
func TestDemoStaysUp(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	dir := t.TempDir()
	movie, err := os.ReadFile(testbed.Movie(t, "h264-bframes-aac.mp4"))
	if err == nil {
		err = os.WriteFile(dir+"/our own.mp4", movie, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		app := &cli.App{Commands: commands, Writer: w}
		err := app.RunContext(ctx, []string{"shim", "demo", "--listen", "127.0.0.1:0", "--play", "200ms", "--movies", dir})
		_ = w.Close()
		ended <- err
	}()
	lines := bufio.NewScanner(r)
	var said strings.Builder
	url := ""
	for url == "" && lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		url = regexp.MustCompile(`rtsp://\S+/our%20own\.mp4`).FindString(lines.Text())
	}
	if url == "" {
		t.Fatalf("no URL: %v\n%s", <-ended, said.String())
	}
	want := testbed.FileFrames(ctx, t, dir+"/our own.mp4", 2*time.Second)
	got := testbed.FFmpegFrames(ctx, t, url, testbed.UDP, time.Second)
	if err := testbed.CompareStart(want, got, 20); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("%v\n%s", err, said.String())
	}
}

// What differs is said, and counted.
func TestDemoTells(t *testing.T) {
	t.Parallel()
	movies := os.DirFS(testbed.Root(t) + "/testdata/hinted")
	good, err := demo.Start(demo.Config{Movies: movies})
	if err != nil {
		t.Fatal(err)
	}
	bad, err := demo.Start(demo.Config{Movies: movies, Faults: demo.Faults{Packet: demo.FlipAfter(2)}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	sessions, err := intercept.New(intercept.Config{})
	if err != nil {
		t.Fatal(err)
	}
	d := &demonstration{out: &out, log: slog.Default(), length: 300 * time.Millisecond,
		upstream: good, shim: bad.Addr(), sessions: sessions}
	r := row{path: "/aac.mp4", tcp: true}
	d.play(t.Context(), &r)
	if n := d.table([]row{r}); n != 1 || !strings.Contains(out.String(), "NO: track 1: packet 3 of") {
		t.Errorf("%d bad\n%s", n, &out)
	}
	for _, s := range []*demo.Server{good, bad} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := hintedMovies(t.TempDir()); err == nil || !strings.Contains(err.Error(), "rtphint") {
		t.Errorf("an empty folder: %v", err)
	}
}
