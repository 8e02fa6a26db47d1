package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// shimRSSMax is the most memory a shim may ever have held while it was ill-treated.
const shimRSSMax = 200 << 20

// TestBadInput ill-treats a shim in front of real servers while a viewer plays
// through it. What comes back must be what the server itself would say, the
// shim must not swell, and the viewer must see nothing of it.
func TestBadInput(t *testing.T) {
	const movie = "h264-aac.mp4"
	file := testbed.Movie(t, movie)
	gst := testbed.StartGst(t, testbed.GstOptions{Movies: []string{file}, Threads: 12})
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
	testbed.PublishFile(t, lib.URL("/live"), file, testbed.TCP)
	lib.AwaitPublished(t, "/live")
	whole := testbed.FileFrames(t.Context(), t, file, 0)
	for _, up := range []struct {
		testbed.Upstream
		path string
	}{{gst.Upstream, "/" + movie}, {lib.Upstream, "/live"}} {
		t.Run(up.Name, func(t *testing.T) {
			t.Parallel()
			shim := testbed.StartShim(t, up.Upstream)
			viewer := make(chan error, 1)
			var watching sync.WaitGroup
			watching.Go(func() {
				got := testbed.FFmpegFrames(t.Context(), t, up.At(shim.Addr).URL(up.path), testbed.UDP, 8*time.Second)
				viewer <- testbed.CompareLoop(whole, got, 150)
			})
			defer watching.Wait()
			var treating sync.WaitGroup
			turns := make(chan struct{}, 6)
			for _, ill := range illTreatments[heavy:] {
				turns <- struct{}{}
				treating.Go(func() {
					ill.check(t, up.Addr, shim.Addr, up.path)
					<-turns
				})
			}
			treating.Wait()
			for _, ill := range illTreatments[:heavy] {
				ill.check(t, up.Addr, shim.Addr, up.path)
			}
			if err := <-viewer; err != nil {
				t.Errorf("the viewer: %v", err)
			}
			if peak := peakMemory(t, shim.Pid()); peak > shimRSSMax && os.Getenv("SHIM_TEST_RACE") == "" {
				t.Errorf("the shim has held %d MiB", peak>>20)
			} else {
				t.Logf("the shim has held %d MiB", peak>>20)
			}
			if log := shim.Stop(t); strings.Contains(log, "panic") || !strings.Contains(log, "not RTSP any more") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

type illTreatment struct {
	name string
	try  func(tb testing.TB, addr, path string) string // what came of it
}

// check compares what comes of it, and looks whether the shim is well.
func (ill illTreatment) check(tb testing.TB, direct, shim, path string) {
	tb.Helper()
	wanted := make(chan string, 1)
	go func() { wanted <- ill.try(tb, direct, path) }()
	got := ill.try(tb, shim, path)
	if want := <-wanted; got != want {
		tb.Errorf("%s: through the shim %s, directly %s", ill.name, got, want)
	}
	fine := dialRaw(tb, shim)
	fine.send("OPTIONS * RTSP/1.0\r\nCSeq: 7\r\n\r\n")
	if answer := fine.next(10 * time.Second); header(answer, "CSeq") != "7" {
		tb.Errorf("after %s, another connection gets %q", ill.name, answer)
	}
}

// outcome sums up what a connection answered: statuses, and how it ended.
func outcome(c *raw, most int) string {
	var said []string
	for range most {
		m := c.next(1500 * time.Millisecond)
		line, _, _ := strings.Cut(m, "\r\n")
		said = append(said, line)
		if m == silence || strings.HasSuffix(m, closed) {
			break
		}
	}
	return strings.Join(said, " | ")
}

func says(format string, most int) func(testing.TB, string, string) string {
	return func(tb testing.TB, addr, path string) string {
		tb.Helper()
		c := dialRaw(tb, addr)
		c.send(strings.ReplaceAll(format, "{URL}", "rtsp://"+addr+path))
		return outcome(c, most)
	}
}

// heavy of them, the first, keep a server busy for a while and come alone.
const heavy = 3

var illTreatments = []illTreatment{
	{"a header of 1 MiB", func(tb testing.TB, addr, path string) string {
		c := dialRaw(tb, addr)
		c.send("OPTIONS rtsp://" + addr + path + " RTSP/1.0\r\nCSeq: 1\r\nX-Big: " + strings.Repeat("a", 1<<20) + "\r\n\r\n")
		return ended(c)
	}},
	{"an endless header", func(tb testing.TB, addr, path string) string {
		c := dialRaw(tb, addr)
		piece := strings.Repeat("a", 1<<20)
		_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		c.send("OPTIONS rtsp://" + addr + path + " RTSP/1.0\r\nX: ")
		for range 16 { // MiB; what stops it is the server's affair
			c.send(piece)
		}
		_ = c.Close()
		return ""
	}},
	{"an endless line", func(tb testing.TB, addr, _ string) string {
		c := dialRaw(tb, addr)
		piece := strings.Repeat("A", 1<<20)
		_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		for range 16 {
			c.send(piece)
		}
		_ = c.Close()
		return ""
	}},
	{"a body longer than announced", says("OPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 4\r\n\r\nabcdefghijkl\r\n\r\n", 3)},
	{"a negative length", says("OPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: -1\r\n\r\nOPTIONS {URL} RTSP/1.0\r\nCSeq: 2\r\n\r\n", 3)},
	{"a huge length", says("OPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 9223372036854775807\r\n\r\nabc", 2)},
	{"a length beyond numbers", says("OPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 99999999999999999999999\r\n\r\nabc", 2)},
	{"NUL in a header", says("OPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\nX: a\x00b\r\n\r\n", 2)},
	{"NUL in the URL", says("OPTIONS {URL}\x00 RTSP/1.0\r\nCSeq: 1\r\n\r\n", 2)},
	{"NULs alone", says(strings.Repeat("\x00", 4096), 2)},
	{"half a request", says("OPTIONS {URL} RTSP/1.0\r\nCSe", 1)},
	{"half a frame", says("$\x00\xff\xffabc", 1)},
	{"a frame for an unknown channel", says("$\xc8\x00\x04abcdOPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\n\r\n", 2)},
	{"a response nobody asked for", says("RTSP/1.0 200 OK\r\nCSeq: 99\r\n\r\nOPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\n\r\n", 2)},
	{"an unknown session", says("PLAY {URL} RTSP/1.0\r\nCSeq: 1\r\nSession: ../../etc\x7f\r\n\r\n", 1)},
	{"a SETUP with absurd ports", says("SETUP {URL}/stream=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=65535-65536\r\n\r\n", 1)},
	{"10,000 requests at once", func(tb testing.TB, addr, path string) string {
		c := dialRaw(tb, addr)
		go func() {
			w := bufio.NewWriter(c.Conn)
			for i := range 10_000 {
				fmt.Fprintf(w, "OPTIONS rtsp://%s%s RTSP/1.0\r\nCSeq: %d\r\n\r\n", addr, path, i+1)
			}
			_ = w.Flush()
		}()
		for i := range 10_000 {
			if m := c.next(5 * time.Second); header(m, "CSeq") != strconv.Itoa(i+1) {
				return fmt.Sprintf("answer %d is %q", i+1, m)
			}
		}
		return "10,000 answers"
	}},
	{"60 connections that say nothing", func(tb testing.TB, addr, _ string) string {
		for range 60 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				tb.Error(err)
				continue
			}
			defer c.Close() //nolint:errcheck // as rude as can be
		}
		return ""
	}},
}

// ended reads until the connection is silent or closed and says whether it answered.
func ended(c *raw) string {
	m := c.next(10 * time.Second)
	line, _, _ := strings.Cut(m, "\r\n")
	return line
}

func peakMemory(tb testing.TB, pid int) int {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Skipf("no /proc here: %v", err)
	}
	kB, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(header(string(status), "VmHWM")), " kB"))
	if err != nil {
		tb.Fatal(err)
	}
	return kB << 10
}
