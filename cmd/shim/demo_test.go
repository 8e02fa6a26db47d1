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

// `shim demo --once` plays everything and finds it the same. Not in parallel:
// cli keeps state in the flags.
func TestDemoOnce(t *testing.T) {
	var out bytes.Buffer
	app := &cli.App{Commands: commands, Writer: &out}
	if err := app.RunContext(t.Context(), []string{"shim", "demo", "--once", "--listen", "127.0.0.1:0", "--play", "4s"}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	line := regexp.MustCompile(`(?m)^(/live)?/h264-aac\.mov +(udp|tcp) +(\w+).*? {2,}(\d+) +(\d+) +(\d+) +yes$`)
	rows := line.FindAllStringSubmatch(out.String(), -1)
	if len(rows) != 4 {
		t.Fatalf("%d good plays in\n%s", len(rows), &out)
	}
	for _, r := range rows {
		direct, _ := strconv.Atoi(r[4])
		through, _ := strconv.Atoi(r[5])
		sent, _ := strconv.Atoi(r[6])
		if direct < 30 || through < 30 {
			t.Errorf("too few packets: %s", r[0])
		}
		// A movie is taken over by the engine, and the server is silent then.
		if r[1] == "" && (r[3] != "movie" || sent > through*9/10) {
			t.Errorf("not taken over: %s", r[0])
		}
	}
}

// Without --once it stays up, and its URLs can be played.
func TestDemoStaysUp(t *testing.T) {
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
	var said strings.Builder // read when found is closed
	var url string
	found, drained := make(chan struct{}), make(chan struct{})
	go func() { // reads on to the end: nobody may wait for a reader of the pipe
		defer close(drained)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if url == "" {
				said.WriteString(lines.Text() + "\n")
				if url = regexp.MustCompile(`rtsp://\S+/our%20own\.mp4`).FindString(lines.Text()); url != "" {
					close(found)
				}
			}
		}
	}()
	select {
	case <-found:
	case err := <-ended:
		t.Fatalf("no URL: %v", err)
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
	<-drained
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
