package compat_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rtspshim/compat"
	"rtspshim/compat/judge"
)

// on edits the answers to one method.
func on(method string, edit func(text string) string) func(string, []byte) []byte {
	return func(m string, raw []byte) []byte {
		if m != method && method != "" {
			return raw
		}
		out := edit(string(raw))
		if out == "" {
			return nil
		}
		return []byte(out)
	}
}

func replace(old, with string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, with, 1) }
}

// line edits the header line of that name.
func line(name string, edit func(line string) string) func(string) string {
	return func(s string) string {
		head, body, _ := strings.Cut(s, "\r\n\r\n")
		lines := strings.Split(head, "\r\n")
		var out []string
		for _, l := range lines {
			if strings.HasPrefix(l, name+":") {
				if l = edit(l); l == "" {
					continue
				}
			}
			out = append(out, l)
		}
		return strings.Join(out, "\r\n") + "\r\n\r\n" + body
	}
}

// body edits the body and corrects its length.
func body(edit func(string) string) func(string) string {
	return func(s string) string {
		head, b, _ := strings.Cut(s, "\r\n\r\n")
		b = edit(b)
		return line("Content-Length", func(string) string { return fmt.Sprint("Content-Length: ", len(b)) })(head + "\r\n\r\n" + b)
	}
}

// number adds to the number after a word.
func number(word string, add int) func(string) string {
	return func(s string) string {
		i := strings.Index(s, word)
		if i < 0 {
			return s
		}
		i += len(word)
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		n, _ := strconv.Atoi(s[i:j])
		return s[:i] + strconv.Itoa(n+add) + s[j:]
	}
}

type lanePacket = func(l *lane, rtcp bool, pkt []byte) [][]byte

// media edits RTP packets, reports RTCP ones. An empty result drops.
func media(edit func(l *lane, pkt []byte) [][]byte) lanePacket {
	return func(l *lane, rtcp bool, pkt []byte) [][]byte {
		if rtcp {
			return [][]byte{pkt}
		}
		return edit(l, pkt)
	}
}

func reports(edit func(l *lane, pkt []byte) []byte) lanePacket {
	return func(l *lane, rtcp bool, pkt []byte) [][]byte {
		if !rtcp {
			return [][]byte{pkt}
		}
		if pkt = edit(l, pkt); pkt == nil {
			return nil
		}
		return [][]byte{pkt}
	}
}

func isSR(pkt []byte) bool { return len(pkt) >= 28 && pkt[1] == 200 }

func faults(upstream string) []fault {
	one := func(p []byte) [][]byte { return [][]byte{p} }
	addr := strings.TrimSuffix(strings.TrimPrefix(upstream, "rtsp://"), "/stream")
	own := func(s string) string { // the upstream's own address where the proxy's should be
		i := strings.Index(s, "rtsp://127.0.0.1:")
		if i < 0 {
			return s
		}
		j := i + len("rtsp://") + strings.IndexByte(s[i+len("rtsp://"):], '/')
		return s[:i] + "rtsp://" + addr + s[j:]
	}
	return []fault{
		// signalling
		{name: "header dropped", point: "describe", want: "DESCRIBE url: header set", answer: on("DESCRIBE", line("Date", func(string) string { return "" }))},
		{name: "header added", point: "options", want: "OPTIONS url: header set", answer: on("OPTIONS", replace("\r\n\r\n", "\r\nVia: RTSP/1.0 shim\r\n\r\n"))},
		{name: "headers reordered", point: "setup-udp", want: "header order", answer: on("SETUP", func(s string) string {
			h, b, _ := strings.Cut(s, "\r\n\r\n")
			l := strings.Split(h, "\r\n")
			l[1], l[2] = l[2], l[1]
			return strings.Join(l, "\r\n") + "\r\n\r\n" + b
		})},
		{name: "header case", point: "options", want: "spelling of cseq", answer: on("", replace("CSeq:", "Cseq:"))},
		{name: "header blanks", point: "options", want: "spelling of public", answer: on("OPTIONS", replace("Public: ", "Public:"))},
		{name: "header value", point: "teardown", want: "header Server", answer: on("TEARDOWN", line("Server", func(l string) string { return l + " (shim)" }))},
		{name: "CSeq", point: "cseq", want: "header CSeq", answer: on("", number("CSeq: ", 1))},
		{name: "reason", point: "options", want: "status line", answer: on("OPTIONS", replace("200 OK", "200 Okay"))},
		{name: "status", point: "describe-missing", want: "DESCRIBE url-no-such-thing (authorised): status line", answer: on("DESCRIBE", replace("404 Not Found", "400 Bad Request"))},
		{name: "version", point: "options", want: "status line", answer: on("OPTIONS", replace("RTSP/1.0", "RTSP/2.0"))},
		{name: "line ends", point: "options", want: "line ends", answer: on("OPTIONS", func(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") })},
		{name: "SDP line dropped", point: "describe", want: "body lines", answer: on("DESCRIBE", body(replace("t=0 0\r\n", "")))},
		{name: "SDP value", point: "describe", want: "body line", answer: on("DESCRIBE", body(replace("packetization-mode=1", "packetization-mode=0")))},
		{name: "SDP line end", point: "describe", want: "body line", answer: on("DESCRIBE", body(replace("t=0 0\r\n", "t=0 0\n")))},
		{name: "Content-Base of the upstream", point: "describe", want: "header Content-Base", answer: on("DESCRIBE", line("Content-Base", own))},
		{name: "time-out parameter", point: "setup-tcp", want: "header Session", answer: on("SETUP", line("Session", func(l string) string { return l + ";timeout=99" }))},
		{name: "another session", point: "play-no-range", want: "header Session", answer: on("PLAY", line("Session", func(l string) string { return "Session: 00" + l[11:] }))},
		{name: "Transport order", point: "setup-tcp", want: "header Transport", answer: on("SETUP", line("Transport", replace("unicast;interleaved", "interleaved;unicast")))},
		{name: "Transport parameter", point: "setup-udp", want: "header Transport", answer: on("SETUP", line("Transport", func(l string) string { return l + ";source=192.0.2.7" }))},
		{name: "channels", point: "setup-tcp", want: "header Transport", answer: on("SETUP", replace("interleaved=2-3", "interleaved=4-5"))},
		{name: "client port", point: "setup-udp", want: "header Transport", answer: on("SETUP", number("client_port=", 2))},
		{name: "RTP-Info seq", point: "play-no-range", want: "track 1 video: first packet's seq after RTP-Info's", answer: on("PLAY", number("seq=", 1))},
		{name: "RTP-Info time", point: "play-no-range", want: "first packet's time after RTP-Info's", answer: on("PLAY", number("rtptime=", -9000))},
		{name: "RTP-Info of the upstream", point: "play-no-range", want: "header RTP-Info", answer: on("PLAY", line("RTP-Info", own))},
		{name: "RTP-Info of one track only", point: "play-no-range", want: "header RTP-Info", answer: on("PLAY", line("RTP-Info", func(l string) string { l, _, _ = strings.Cut(l, ","); return l }))},
		{name: "Range time", point: "play-open", want: "times in Range", answer: on("PLAY", replace("npt=2.0", "npt=2.1"))},
		{name: "Range digits", point: "play-open", want: "digits of Range", answer: on("PLAY", replace("npt=2.00000", "npt=2.000"))},
		{name: "swallowed answer", point: "parameters", want: "GET_PARAMETER base: outcome", answer: on("GET_PARAMETER", func(string) string { return "" })},
		{name: "late answer", point: "options", want: "time to the answer", wait: 120 * time.Millisecond},
		{name: "connection closed", point: "setup-udp", want: "connection A", close: "TEARDOWN"},
		{name: "challenge", point: "auth-none", want: "header WWW-Authenticate", answer: on("", line("WWW-Authenticate", replace(`realm="`, `realm="x`)))},
		{name: "no challenge", point: "auth-none", want: "header set", answer: on("", line("WWW-Authenticate", func(string) string { return "" }))},
		{name: "a request lost", point: "pipelined", want: "outcome", request: func(m string, raw []byte) []byte {
			if bytes.Contains(raw, []byte("CSeq: 2\r\n")) {
				return nil
			}
			return raw
		}},
		{name: "unknown method tamed", point: "unknown-method", want: "ELEPHANT url: ", request: func(m string, raw []byte) []byte { return bytes.Replace(raw, []byte("ELEPHANT"), []byte("OPTIONS"), 1) }},
		{name: "request header dropped", point: "play-open", want: "times in Range", request: func(m string, raw []byte) []byte {
			return []byte(line("Range", func(string) string { return "" })(string(raw)))
		}},
		{name: "said unasked", point: "describe", want: "from the server", extra: "OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n"},
		// media
		{name: "bit flipped", point: "play-udp", want: "track 1 video: payloads changed", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n%700 == 0 {
				p[40] ^= 1
			}
			return one(p)
		})},
		{name: "1 of 1,000 dropped", point: "play-udp", want: "track 1 video: lost", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n%1000 == 0 {
				return nil
			}
			return one(p)
		})},
		{name: "1 of 1,000 dropped, the rest renumbered", point: "play-udp", want: "track 1 video: payloads missing", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n%1000 == 0 {
				return nil
			}
			binary.BigEndian.PutUint16(p[2:], binary.BigEndian.Uint16(p[2:])-uint16(l.n/1000))
			return one(p)
		})},
		{name: "1 of 1,000 dropped, live", live: true, point: "play-tcp", want: "track 1 video: lost", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n%1000 == 0 {
				return nil
			}
			return one(p)
		})},
		{name: "duplicated", point: "play-tcp", want: "repeated", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n%500 == 0 {
				return [][]byte{p, p}
			}
			return one(p)
		})},
		{name: "misordered", point: "play-udp", want: "out of order", packet: media(func(l *lane, p []byte) [][]byte {
			switch l.n % 500 {
			case 0:
				l.last = p
				return nil
			case 1:
				if l.last != nil {
					return [][]byte{p, l.last}
				}
			}
			return one(p)
		})},
		{name: "30 ms late", point: "play-udp", want: "arrival of the same packets", delay: 30 * time.Millisecond},
		{name: "30 ms late, live", live: true, point: "play-udp", want: "arrival of the same packets", delay: 30 * time.Millisecond},
		{name: "in bunches", point: "play-udp", want: "longest burst", bunch: 400 * time.Millisecond},
		{name: "a hole in time", point: "play-udp", want: "longest gap", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n >= 400 && l.n < 500 {
				l.held = append(l.held, p)
				return nil
			}
			held := l.held
			l.held = nil
			return append(held, p)
		})},
		{name: "last packet before the pause", point: "pause-tcp", want: "seq step from what was heard before", packet: lastBeforePause},
		{name: "first packet after PLAY", point: "play-no-range", want: "first packet's seq after RTP-Info's", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n == 1 {
				return nil
			}
			return one(p)
		})},
		{name: "SSRC in packets", point: "play-no-range", want: "track 1 video: SSRC", packet: media(func(l *lane, p []byte) [][]byte { p[8] ^= 0x55; return one(p) })},
		{name: "SSRC in Transport", point: "play-no-range", want: "SSRC", answer: on("SETUP", func(s string) string {
			i := strings.Index(s, "ssrc=") + 5
			return s[:i] + "0BADCAFE" + s[i+8:]
		})},
		{name: "marker", point: "play-no-range", want: "markers", packet: media(func(l *lane, p []byte) [][]byte { p[1] &= 0x7F; return one(p) })},
		{name: "payload type", point: "play-no-range", want: "payload type", packet: media(func(l *lane, p []byte) [][]byte { p[1] ^= 1; return one(p) })},
		{name: "timestamps", point: "play-no-range", want: "timestamp steps", packet: media(func(l *lane, p []byte) [][]byte {
			binary.BigEndian.PutUint32(p[4:], binary.BigEndian.Uint32(p[4:])+uint32(l.n/100))
			return one(p)
		})},
		{name: "header extension", point: "play-no-range", want: "header extensions", packet: media(func(l *lane, p []byte) [][]byte {
			out := append([]byte{}, p[:12]...)
			out[0] |= 0x10
			out = append(out, 0xBE, 0xDE, 0, 1, 0x10, 7, 0, 0)
			return one(append(out, p[12:]...))
		})},
		{name: "not RTP", point: "play-no-range", want: "packets that are not RTP", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n == 50 {
				return [][]byte{p, []byte("hello")}
			}
			return one(p)
		})},
		{name: "another port", point: "play-no-range", want: "server port", stray: true},
		{name: "goes on after PAUSE", point: "pause-udp", want: "after it", linger: true},
		{name: "the end cut off", point: "end-of-stream", want: "packets until its end", packet: media(func(l *lane, p []byte) [][]byte {
			if l.n > 250 && len(p) > 12 && l.plays <= 1 {
				return nil
			}
			return one(p)
		})},
		{name: "seek a frame late", point: "seek-paused", want: "payloads missing", packet: media(func(l *lane, p []byte) [][]byte {
			if l.plays == 2 && l.skip < packetsOfFrame {
				l.skip++
				return nil
			}
			return one(p)
		})},
		// RTCP
		{name: "BYE swallowed", point: "end-of-stream", want: "RTCP kinds", packet: reports(func(l *lane, p []byte) []byte {
			if p[1] == 203 {
				return nil
			}
			return p
		})},
		{name: "sender reports swallowed", point: "play-udp", want: "RTCP kinds", packet: reports(func(l *lane, p []byte) []byte { return nil })},
		{name: "CNAME swallowed", point: "play-udp", want: "CNAME", packet: reports(func(l *lane, p []byte) []byte {
			if isSR(p) {
				return p[:28]
			}
			return p
		})},
		{name: "SSRC in sender reports", point: "play-udp", want: "SSRC in sender reports", packet: reports(func(l *lane, p []byte) []byte { p[4] ^= 1; return p })},
		{name: "clock in sender reports", point: "play-udp", want: "clock in sender reports", packet: reports(func(l *lane, p []byte) []byte {
			if isSR(p) {
				binary.BigEndian.PutUint32(p[8:], binary.BigEndian.Uint32(p[8:])+2)
			}
			return p
		})},
		{name: "media time in sender reports", point: "play-udp", want: "media time in sender reports", packet: reports(func(l *lane, p []byte) []byte {
			if isSR(p) {
				binary.BigEndian.PutUint32(p[16:], binary.BigEndian.Uint32(p[16:])-45000)
			}
			return p
		})},
		{name: "packets counted in sender reports", point: "play-udp", want: "packets counted", packet: reports(func(l *lane, p []byte) []byte {
			if isSR(p) {
				binary.BigEndian.PutUint32(p[20:], 0)
			}
			return p
		})},
		{name: "reports too seldom", live: true, point: "play-reports", want: "RTCP interval", packet: reports(func(l *lane, p []byte) []byte {
			if l.reports%3 != 1 && isSR(p) {
				return nil
			}
			return p
		})},
	}
}

// lastBeforePause keeps every packet back until the next one comes, so that
// the last one before silence never leaves.
func lastBeforePause(l *lane, rtcp bool, p []byte) [][]byte {
	if rtcp {
		return [][]byte{p}
	}
	held := l.held
	l.held = nil
	if len(p) > 12 && l.last != nil && binary.BigEndian.Uint32(p[4:])-binary.BigEndian.Uint32(l.last[4:]) > 20000 {
		held = nil // it is after the pause now: what was kept is lost
	}
	l.held, l.last = [][]byte{p}, p
	return held
}

// A proxy without a fault is the same as the upstream; each fault is found
// where it is.
func TestEveryFaultIsFound(t *testing.T) {
	movie, live := startOrigin(t, true, "user"), startOrigin(t, false, "user")
	all := faults(movie)
	if len(all) < 30 {
		t.Fatalf("only %d faults", len(all))
	}
	compare := func(f fault, only []string, again int) (*compat.Result, error) {
		o := movie
		if f.live {
			o = live
		}
		addr := strings.TrimSuffix(strings.TrimPrefix(o, "rtsp://"), "/stream")
		return compat.Run(context.Background(), compat.Config{Upstream: o, Shim: startFaulty(t, addr, f), Only: only, Again: again,
			Parallel: 40, Credentials: url.UserPassword("user", "secret"), Bounds: quick, Clients: []string{}})
	}
	if !everything { // those that need to be heard for long are left to the build tag e2e
		all = slices.DeleteFunc(all, func(f fault) bool { return f.point == "play-reports" || f.live && f.delay == 0 })
	}
	var points []string
	tokens, group := make(chan struct{}, 16), sync.WaitGroup{}
	for _, f := range all {
		points = append(points, f.point)
		tokens <- struct{}{}
		group.Go(func() {
			defer func() { <-tokens }()
			// A busy machine hides faults of time behind its own: three attempts.
			for attempt := 1; ; attempt++ {
				r, err := compare(f, []string{f.point}, -1)
				if err != nil {
					t.Errorf("%s: %v", f.name, err)
					return
				}
				if found(r, f.want) {
					return
				}
				if attempt == 3 {
					t.Errorf("%s: nothing like %q is different", f.name, f.want)
					show(t, r, true)
					return
				}
			}
		})
	}
	for _, isLive := range []bool{false, true} {
		group.Go(func() {
			r, err := compare(fault{live: isLive}, points, 2)
			if err != nil {
				t.Error(err)
				return
			}
			if !r.OK() {
				t.Errorf("without a fault, live %v: %d different", isLive, r.Count(judge.Different))
				show(t, r, false)
			}
		})
	}
	group.Wait()
}

func found(r *compat.Result, want string) bool {
	for _, p := range r.Points {
		for _, f := range p.Findings {
			if f.Verdict == judge.Different && strings.Contains(f.Where+": "+f.What, want) {
				return true
			}
		}
	}
	return false
}
