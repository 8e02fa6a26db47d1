package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/internal/testbed"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func movies(t *testing.T) fs.FS { return os.DirFS(testbed.Root(t) + "/testdata/hinted") }

// startDemo starts a demo server of the repository's movies.
func startDemo(t *testing.T, f demo.Faults) *demo.Server {
	t.Helper()
	s, err := demo.Start(demo.Config{Movies: movies(t), Faults: f, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// quick is a short measurement of one server.
func quick(url string, sessions int) Config {
	return Config{Servers: []Server{{Name: "demo", URL: url, Pids: []int{os.Getpid()}}}, Sessions: []int{sessions},
		Duration: time.Second, Settle: 300 * time.Millisecond}
}

func run(t *testing.T, cfg Config) Run {
	t.Helper()
	r, err := Measure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Runs) != 1 {
		t.Fatalf("%d runs", len(r.Runs))
	}
	return r.Runs[0]
}

// The bench sees a good server as it is, over either transport, from a movie
// and live; and leaves no session behind.
func TestGoodServer(t *testing.T) {
	t.Parallel()
	s := startDemo(t, demo.Faults{})
	for _, c := range []struct {
		name, path       string
		tcp, gro, spread bool
	}{
		{"movie, UDP", "/h264-aac.mp4", false, false, true},
		{"movie, UDP, GRO", "/h264-aac.mp4", false, true, false},
		{"movie, TCP", "/h264-aac.mp4", true, false, true},
		{"live, UDP", "/live/h264-aac.mp4", false, false, false},
		{"live, TCP", "/live/h264-aac.mp4", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 6
			cfg := quick(s.URL(c.path), n)
			cfg.TCP, cfg.GRO, cfg.Spread, cfg.Verify = c.tcp, c.gro, c.spread, 2
			r := run(t, cfg)
			if r.Sessions != n || r.Failed+r.Silent+r.Broken != 0 || r.Lost+r.Reordered+r.Duplicate+r.Foreign+r.Sources+r.Dropped != 0 {
				t.Errorf("%+v", r)
			}
			// 25 pictures of one packet and more, and some packets of sound; of a movie
			// over TCP what has not come before.
			least := 25 * n
			if c.tcp && !r.Live {
				least = n
			}
			if r.Packets < uint64(least) || r.Bytes < 12*r.Packets || !c.tcp && r.Packets > 150*n {
				t.Errorf("%d packets, %d octets", r.Packets, r.Bytes)
			}
			if r.Late.N < least || r.First.N != n || r.SetUp.N != n {
				t.Errorf("%d frames, %d first packets, %d set-ups", r.Late.N, r.First.N, r.SetUp.N)
			}
			// Over TCP a movie comes a second ahead of its time, and more: never late.
			if ahead := c.tcp && !r.Live; ahead != (r.Ahead.N == 2*n) || ahead && (r.Ahead.P50 < 800 || r.Late.P50 > 0) {
				t.Errorf("ahead %+v, late %+v", r.Ahead, r.Late)
			}
			if v := r.Verified; v.Pairs != 2 || v.Packets == 0 || v.Different+uint64(v.Unaligned) != 0 {
				t.Errorf("%+v", v)
			}
			if live := strings.HasPrefix(c.path, "/live"); r.Live != live || live != (r.Skew.N > 20) {
				t.Errorf("live %v, skew of %d frames", r.Live, r.Skew.N)
			}
			if r.Cost <= 0 || r.SelfCPU <= 0 || r.ReaderCPU <= 0 || r.Resident == 0 {
				t.Errorf("CPU-s/GiB %v, own %v, readers %v, resident %d", r.Cost, r.SelfCPU, r.ReaderCPU, r.Resident)
			}
			if left := s.Sessions(); len(left) != 0 {
				t.Errorf("%d sessions left behind", len(left))
			}
		})
	}
}

// tamper is a Faults.Packet that drops, doubles, swaps and corrupts, and counts
// what it did. All of it happens in the numbers a reader sees.
type tamper struct {
	mu      sync.Mutex
	dropped map[string]int // by session
	victim  string         // whose payload is changed: the first session heard of
}

func (f *tamper) packet(session string, track uint32, n uint64, b []byte) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.victim == "" {
		f.victim = session
	}
	seq := binary.BigEndian.Uint16(b[2:])
	switch seq % 20 {
	case 3:
		f.dropped[session]++
		return nil
	case 7: // changes places with the next
		binary.BigEndian.PutUint16(b[2:], seq+1)
	case 8:
		binary.BigEndian.PutUint16(b[2:], seq-1)
	case 15: // the one before again
		binary.BigEndian.PutUint16(b[2:], seq-1)
	}
	return b
}

// What a server does wrong is counted as what it is: of 20 numbers one is
// lost and one swapped; another comes twice in the place of the next.
func TestBadServer(t *testing.T) {
	t.Parallel()
	f := &tamper{dropped: map[string]int{}}
	s := startDemo(t, demo.Faults{Packet: f.packet})
	for _, tcp := range []bool{false, true} {
		cfg := quick(s.URL("/mpeg4-aac.mp4"), 10)
		cfg.TCP, cfg.Duration = tcp, 2*time.Second
		r := run(t, cfg)
		sent := float64(r.Packets+r.Lost-r.Duplicate) / 20 // of each number modulo 20
		const edge = 2 * 10                                // at the ends of each track's window
		for name, got := range map[string][2]float64{
			"lost": {float64(r.Lost), 2 * sent}, "reordered": {float64(r.Reordered), sent}, "duplicate": {float64(r.Duplicate), sent},
		} {
			if got[0] < got[1]-edge || got[0] > got[1]+edge || got[1] < 2*edge {
				t.Errorf("TCP %v: %s %v, want about %v", tcp, name, got[0], got[1])
			}
		}
	}
}

// A picture that differs in one reader's stream is found.
func TestVerifyFindsDifferences(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	victim := ""
	s := startDemo(t, demo.Faults{Packet: func(session string, _ uint32, n uint64, b []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		if victim == "" {
			victim = session
		}
		if session == victim && n%10 == 0 {
			b[len(b)-1] ^= 1
		}
		return b
	}})
	for _, tcp := range []bool{false, true} {
		mu.Lock()
		victim = ""
		mu.Unlock()
		cfg := quick(s.URL("/h264-aac.mp4"), 2)
		cfg.TCP, cfg.Verify = tcp, 1
		r := run(t, cfg)
		if v := r.Verified; v.Different < v.Packets/15 || v.Different > v.Packets/6 || v.Pairs != 1 {
			t.Errorf("TCP %v: %+v, want a tenth to differ", tcp, v)
		}
	}
}

// A server that holds one session's packets back now and then is told to be as
// late as it is.
func TestLatenessOfServer(t *testing.T) {
	t.Parallel()
	const held = 150 * time.Millisecond
	s := startDemo(t, demo.Faults{Packet: func(_ string, track uint32, n uint64, b []byte) []byte {
		if n%20 == 19 {
			time.Sleep(held)
		}
		return b
	}})
	r := run(t, quick(s.URL("/h264-aac.mp4"), 1))
	if r.Late.Max < 120 || r.Late.Max > 1000 || r.Late.P50 > 100 {
		t.Errorf("late %+v ms, want about %v at most and half as good as punctual", r.Late, held)
	}
}

// A server that plays nine sessions and no more is found out, to an eighth,
// from below and from above.
func TestSearch(t *testing.T) {
	t.Parallel()
	for _, begin := range []int{2, 30} {
		var playing atomic.Int32
		s := startDemo(t, demo.Faults{Refuse: func(method, _ string) int {
			switch {
			case method == "TEARDOWN":
				playing.Add(-1)
			case method == "PLAY" && playing.Add(1) > 9:
				playing.Add(-1)
				return 453
			}
			return 0
		}})
		cfg := quick(s.URL("/aac.mp4"), begin)
		cfg.Duration, cfg.Search, cfg.Rate, cfg.MaxLate = 300*time.Millisecond, 40, 1000, time.Minute
		r, err := Measure(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Capacity("demo"); got != 9 || len(r.Runs) > 9 {
			t.Errorf("from %d: %d sessions after %d runs, want 9", begin, got, len(r.Runs))
		}
	}
}

// Sessions that cannot be set up, or get nothing, are told.
func TestRefusals(t *testing.T) {
	t.Parallel()
	t.Run("some", func(t *testing.T) {
		n := 0
		var mu sync.Mutex
		s := startDemo(t, demo.Faults{Refuse: func(method, _ string) int {
			mu.Lock()
			defer mu.Unlock()
			if n++; method == "PLAY" && n%2 == 0 {
				return 453
			}
			return 0
		}})
		r := run(t, quick(s.URL("/aac.mp4"), 12))
		if r.Failed == 0 || r.Sessions+r.Failed != 12 || r.Errors["PLAY: status 453"] != r.Failed {
			t.Errorf("%d played, %d failed: %v", r.Sessions, r.Failed, r.Errors)
		}
	})
	t.Run("all", func(t *testing.T) {
		s := startDemo(t, demo.Faults{})
		_, err := Measure(t.Context(), quick(s.URL("/nothing.mp4"), 2))
		if err == nil || !strings.Contains(err.Error(), "DESCRIBE: status 404") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		s := startDemo(t, demo.Faults{Packet: func(string, uint32, uint64, []byte) []byte { return nil }})
		r := run(t, quick(s.URL("/aac.mp4"), 3))
		if r.Silent != 3 || r.Packets != 0 {
			t.Errorf("%d silent, %d packets", r.Silent, r.Packets)
		}
	})
	t.Run("the server ends", func(t *testing.T) {
		s, err := demo.Start(demo.Config{Movies: movies(t), Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		time.AfterFunc(900*time.Millisecond, func() { ended <- s.Close() })
		if r := run(t, quick(s.URL("/aac.mp4"), 3)); r.Broken != 3 {
			t.Errorf("%d broken", r.Broken)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// An interrupted measurement leaves no session behind either.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	s := startDemo(t, demo.Faults{})
	ctx, cancel := context.WithCancel(t.Context())
	cfg := quick(s.URL("/aac.mp4"), 4)
	cfg.Duration = time.Minute
	cfg.Progress = func(string) { cancel() }
	if _, err := Measure(ctx, cfg); !errors.Is(err, context.Canceled) && !strings.Contains(fmt.Sprint(err), "canceled") {
		t.Errorf("error %v", err)
	}
	if left := s.Sessions(); len(left) != 0 {
		t.Errorf("%d sessions left behind", len(left))
	}
}

var missed = regexp.MustCompile(`RTP: missed (\d+) packets`)

// ffmpeg, an outside witness, misses as many packets of the bad server as were
// dropped, and the bench the same share.
func TestOutsideWitness(t *testing.T) {
	t.Parallel()
	ffmpeg := testbed.Program(t, "ffmpeg", "ffmpeg")
	f := &tamper{dropped: map[string]int{}}
	drop := func(session string, track uint32, n uint64, b []byte) []byte {
		f.mu.Lock()
		defer f.mu.Unlock()
		if n%13 == 12 {
			f.dropped[session]++
			return nil
		}
		return b
	}
	s := startDemo(t, demo.Faults{Packet: drop})
	url := s.URL("/mpeg4-aac.mp4")
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "warning", "-rtsp_transport", "udp",
		"-max_delay", "100000", "-i", url, "-t", "3", "-map", "0", "-c", "copy", "-f", "null", "-")
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("ffmpeg: %v\n%s", err, &said)
	}
	byFFmpeg := 0
	for _, m := range missed.FindAllStringSubmatch(said.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		byFFmpeg += n
	}
	dropped := 0
	f.mu.Lock()
	for _, n := range f.dropped {
		dropped += n
	}
	f.mu.Unlock()
	if dropped < 10 || byFFmpeg < dropped-4 || byFFmpeg > dropped {
		t.Fatalf("ffmpeg missed %d packets of %d dropped\n%s", byFFmpeg, dropped, &said)
	}
	cfg := quick(url, 10)
	cfg.Duration = 3 * time.Second
	r := run(t, cfg)
	share := float64(r.Lost) / float64(r.Lost+r.Packets)
	if share < .85/13 || share > 1.15/13 {
		t.Errorf("lost %d beside %d packets, a share of %.4f; want 1/13", r.Lost, r.Packets, share)
	}
}

// Two servers by turns, several loads: each has its own figures.
func TestTwoServers(t *testing.T) {
	t.Parallel()
	good, bad := startDemo(t, demo.Faults{}), startDemo(t, demo.Faults{Packet: (&tamper{dropped: map[string]int{}}).packet})
	cfg := quick(good.URL("/mpeg4-aac.mp4"), 1)
	cfg.Servers = append(cfg.Servers, Server{Name: "bad", URL: bad.URL("/mpeg4-aac.mp4"), Pids: []int{os.Getpid()}})
	cfg.Sessions, cfg.Rounds, cfg.Duration = []int{1, 3}, 2, 700*time.Millisecond
	cfg.Verify, cfg.Reference = 1, good.URL("/mpeg4-aac.mp4")
	r, err := Measure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Runs) != 4 {
		t.Fatalf("%d runs", len(r.Runs))
	}
	for i, run := range r.Runs {
		wantLoad, isBad := []int{1, 1, 3, 3}[i], i%2 == 1
		if run.Load != wantLoad || run.Sessions != wantLoad || (run.Server == "bad") != isBad || len(run.Costs) != 2 || run.Seconds < 1 {
			t.Errorf("run %d: %+v", i, run)
		}
		if (run.Lost > 0) != isBad || run.Verified.Pairs != 2 || (run.Verified.Different > 0) != isBad {
			t.Errorf("run %d: lost %d, %+v", i, run.Lost, run.Verified)
		}
	}
	var text, js bytes.Buffer
	if err := r.WriteText(&text); err != nil || strings.Count(text.String(), "second / first") != 2 {
		t.Errorf("%v\n%s", err, &text)
	}
	if err := r.WriteJSON(&js); err != nil || js.Len() < 1000 {
		t.Errorf("%v\n%s", err, &js)
	}
	checkPlots(t, r)
}
