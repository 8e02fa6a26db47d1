package talk

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"rtspshim/compat/script"
)

// serve answers every connection with the same bytes, whatever is asked.
func serve(t *testing.T, answer func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 4096)
				if _, err := c.Read(buf); err == nil {
					answer(c)
				}
			}()
		}
	}()
	return "rtsp://" + l.Addr().String() + "/x"
}

func hold(t *testing.T, url, text string) *Recording {
	t.Helper()
	s, err := script.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return Run(context.Background(), s, Target{URL: url},
		Bounds{Answer: 300 * time.Millisecond, Settle: 50 * time.Millisecond, Point: 5 * time.Second})
}

// Whatever a server sends, a conversation ends in time, keeps little and says
// what came.
func TestHostileServers(t *testing.T) {
	forever := func(c net.Conn, what string) {
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			if _, err := io.WriteString(c, what); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		answer func(c net.Conn)
		want   Outcome
		cut    bool
	}{
		"a line without end":   {func(c net.Conn) { forever(c, strings.Repeat("x", 8192)) }, Closed, false},
		"a header without end": {func(c net.Conn) { _, _ = io.WriteString(c, "RTSP/1.0 200 OK\r\n"); forever(c, "X: y\r\n") }, Answered, true},
		"messages without end": {func(c net.Conn) { forever(c, "RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n") }, Answered, false},
		"frames without end":   {func(c net.Conn) { forever(c, "$\x00\x00\x10aaaaaaaaaaaaaaaa") }, Silent, false},
		"a body of terabytes":  {func(c net.Conn) { _, _ = io.WriteString(c, "RTSP/1.0 200 OK\r\nContent-Length: 9999999999999\r\n\r\n") }, Answered, true},
		"a body cut short":     {func(c net.Conn) { _, _ = io.WriteString(c, "RTSP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nabc") }, Answered, true},
		"a negative body":      {func(c net.Conn) { _, _ = io.WriteString(c, "RTSP/1.0 200 OK\r\nContent-Length: -5\r\n\r\n") }, Answered, false},
		"noise": {func(c net.Conn) {
			c.Write(bytes.Repeat([]byte{0xFF, 0, '\n', 0x80}, 20))
			time.Sleep(500 * time.Millisecond)
		}, Silent, false},
		"nothing":       {func(c net.Conn) { time.Sleep(time.Second) }, Silent, false},
		"a closed door": {func(net.Conn) {}, Closed, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			r := hold(t, serve(t, c.answer), "> OPTIONS *\nlisten 200ms\n")
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("took %v", took)
			}
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 128<<20 {
				t.Errorf("keeps %d MiB", grown>>20)
			}
			for _, e := range r.Exchanges {
				if e.Title == "OPTIONS *" && (e.Outcome != c.want || e.Answer != nil && e.Answer.Cut != c.cut) {
					t.Errorf("outcome %q, cut %v, want %q", e.Outcome, e.Answer != nil && e.Answer.Cut, c.want)
				}
			}
		})
	}
}

// An SDP that lies makes no panic and no endless script.
func TestHostileDescription(t *testing.T) {
	sdp := "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\na=range:npt=0-1e300\r\n" + strings.Repeat("m=video 0 RTP/AVP 999 -1 96\r\na=rtpmap:96 X/99999999999999999999\r\na=control:"+strings.Repeat("{track *}", 50)+"\r\n", 100)
	url := serve(t, func(c net.Conn) {
		for range 100 {
			fmt.Fprintf(c, "RTSP/1.0 200 OK\r\nSession: a\r\nTransport: RTP/AVP/TCP;interleaved=999999-4\r\nContent-Length: %d\r\n\r\n%s", len(sdp), sdp)
			time.Sleep(20 * time.Millisecond)
		}
	})
	r := hold(t, url, "> DESCRIBE {url}\n\n> SETUP {track *}\n> Transport: RTP/AVP;client_port={ports *}\n\n> PLAY {base}\n> Range: npt={time 0.5}-\n\nlisten 100ms\n")
	if len(r.Tracks) > maxMedias+1 {
		t.Errorf("%d tracks", len(r.Tracks))
	}
}

func TestMessage(t *testing.T) {
	m := ParseMessage([]byte("RTSP/1.0 200 OK\r\nCseq:  7 \r\nX\r\nCseq: 8\r\n\r\nbody"))
	if m.Status() != 200 || m.Value("CSEQ") != "7" || len(m.Values("cseq")) != 2 || string(m.Body) != "body" || m.Bare {
		t.Errorf("%+v", m)
	}
	if m := ParseMessage([]byte("OPTIONS * RTSP/1.0\n\n")); !m.Request() || !m.Bare || m.Status() != 0 {
		t.Errorf("%+v", m)
	}
}

func FuzzNext(f *testing.F) {
	f.Add([]byte("RTSP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc$\x00\x00\x02ab"))
	f.Add([]byte("\r\n\r\nOPTIONS * RTSP/1.0\nA:\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		total := 0
		for range len(b) + 1 {
			m, fr, err := next(r)
			if m != nil {
				total += len(m.Raw)
			}
			if fr != nil {
				total += 4 + len(fr.payload)
			}
			if err != nil {
				if total > len(b) {
					t.Errorf("%d bytes out of %d", total, len(b))
				}
				return
			}
		}
		t.Error("no end")
	})
}
