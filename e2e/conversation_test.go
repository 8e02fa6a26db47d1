package e2e

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// script is what a client says, request by request, on one connection. A
// request that does not begin with a method line of its own gets a CSeq.
//
//	{URL}      of what is played, without a slash at its end
//	{0} {1}    of its Medias
//	{P} {Q}    even ports the client listens on, and {P1} {Q1} the odd ones above
//	{SESSION}  as the last answer with one named it
type script struct {
	name     string
	requests []string
}

var scripts = []script{
	{"udp", []string{
		"OPTIONS *", "OPTIONS {URL}", "DESCRIBE {URL}|Accept: application/sdp",
		"SETUP {0}|Transport: RTP/AVP;unicast;client_port={P}-{P1}",
		"SETUP {1}|Transport: RTP/AVP;unicast;client_port={Q}-{Q1}|Session: {SESSION}",
		"PLAY {URL}/|Session: {SESSION}|Range: npt=0-", "GET_PARAMETER {URL}/|Session: {SESSION}",
		"OPTIONS {URL}/|Session: {SESSION}", "PAUSE {URL}/|Session: {SESSION}",
		"PLAY {URL}/|Session: {SESSION}", "PAUSE {URL}/|Session: {SESSION}",
		"SET_PARAMETER {URL}/|Session: {SESSION}|Content-Type: text/parameters|Content-Length: 8||a: b\r\n\r\n",
		"TEARDOWN {URL}/|Session: {SESSION}", "OPTIONS {URL}", "PLAY {URL}/|Session: {SESSION}",
	}},
	{"tcp", []string{
		"DESCRIBE {URL}|Accept: application/sdp",
		"SETUP {0}|Transport: RTP/AVP/TCP;unicast;interleaved=0-1",
		"SETUP {1}|Transport: RTP/AVP/TCP;unicast;interleaved=2-3|Session: {SESSION}",
		"PLAY {URL}/|Session: {SESSION}|Range: npt=0-", "GET_PARAMETER {URL}/|Session: {SESSION}",
		"PAUSE {URL}/|Session: {SESSION}", "PLAY {URL}/|Session: {SESSION}", "TEARDOWN {URL}/|Session: {SESSION}",
	}},
	{"one media", []string{
		"SETUP {0}|Transport: RTP/AVP/UDP;unicast;client_port={P}-{P1};mode=play", "PLAY {0}|Session: {SESSION}",
		"PAUSE {0}|Session: {SESSION}", "TEARDOWN {0}|Session: {SESSION}",
	}},
	{"other words", []string{
		"OPTIONS {URL}|x-Weird-CASE:  a  b |X-Two: 1|X-Two: 2", "OPTIONS {URL}|Require: no.such.feature",
		"OPTIONS {URL}|User-Agent: a\r\n folded", "DESCRIBE {URL}?a=b", "DESCRIBE {URL}/", "DESCRIBE {URL}-missing", "DESCRIBE {URL}|Accept: text/plain",
	}},
	{"unknown method", []string{"FROB {URL}", "OPTIONS {URL}"}},
	{"lower case", []string{"options {URL}", "OPTIONS {URL}"}},
	{"no CSeq", []string{"!OPTIONS {URL} RTSP/1.0\r\n\r\n"}},
	{"line feeds", []string{"!OPTIONS {URL} RTSP/1.0\nCSeq: 9\n\n"}},
	{"RTSP/2.0", []string{"!OPTIONS {URL} RTSP/2.0\r\nCSeq: 1\r\n\r\n"}},
	{"no version", []string{"!OPTIONS {URL}\r\nCSeq: 1\r\n\r\n"}},
	{"garbage", []string{"!\x16\x03\x01\x02\x00\x01\r\n\r\n"}},
	{"blank lines first", []string{"!\r\n\r\nOPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\n\r\n"}},
	{"two at once", []string{"!OPTIONS {URL} RTSP/1.0\r\nCSeq: 1\r\n\r\nOPTIONS {URL} RTSP/1.0\r\nCSeq: 2\r\n\r\n", "!"}},
	{"10 kB header", []string{"OPTIONS {URL}|X-Big: " + strings.Repeat("a", 10_000)}},
	{"negative length", []string{"OPTIONS {URL}|Content-Length: -5"}},
	{"bad length", []string{"OPTIONS {URL}|Content-Length: many"}},
	{"body", []string{"OPTIONS {URL}|Content-Length: 4||\x00\xff$\n", "OPTIONS {URL}"}},
	{"nothing set up", []string{"PLAY {URL}/"}},
	{"unknown session", []string{"PLAY {URL}/|Session: deadbeef"}},
	{"unknown session, TEARDOWN", []string{"TEARDOWN {URL}/|Session: deadbeef"}},
	{"unknown session, SETUP", []string{"SETUP {0}|Session: deadbeef|Transport: RTP/AVP;unicast;client_port={P}-{P1}"}},
	{"plain HTTP", []string{"!GET / HTTP/1.1\r\nHost: x\r\n\r\n"}},
	{"setup, no transport", []string{"SETUP {0}"}},
	{"setup, no ports", []string{"SETUP {0}|Transport: RTP/AVP;unicast"}},
	{"setup, one odd port", []string{"SETUP {0}|Transport: RTP/AVP;unicast;client_port={P1}"}},
	{"setup, ports apart", []string{"SETUP {0}|Transport: RTP/AVP;unicast;client_port={P}-{Q1}"}},
	{"setup, ports apart the other way", []string{"SETUP {0}|Transport: RTP/AVP;unicast;client_port={Q}-{P1}"}},
	{"setup, capitals and quotes", []string{`SETUP {0}|transport: RTP/AVP/udp;UNICAST;Client_Port={P}-{P1};mode="PLAY"`}},
	{"setup, choices", []string{"SETUP {0}|Transport: RTP/FOO;unicast,RTP/AVP;unicast;client_port={P}-{P1},RTP/AVP/TCP;unicast;interleaved=0-1"}},
	{"setup, TCP first", []string{"SETUP {0}|Transport: RTP/AVP/TCP;unicast;interleaved=4-5,RTP/AVP;unicast;client_port={P}-{P1}"}},
	{"setup, secure profile", []string{"SETUP {0}|Transport: RTP/SAVP;unicast;client_port={P}-{P1}"}},
	{"setup, unknown parameter", []string{"SETUP {0}|Transport: RTP/AVP;unicast;x-foo=bar;client_port={P}-{P1};ssrc=11223344"}},
	{"setup, missing", []string{"SETUP {URL}/nothing|Transport: RTP/AVP;unicast;client_port={P}-{P1}"}},
	{"setup, twice", []string{
		"SETUP {0}|Transport: RTP/AVP;unicast;client_port={P}-{P1}", "SETUP {0}|Session: {SESSION}|Transport: RTP/AVP;unicast;client_port={Q}-{Q1}"}},
	{"setup, UDP and TCP", []string{
		"SETUP {0}|Transport: RTP/AVP;unicast;client_port={P}-{P1}", "SETUP {1}|Session: {SESSION}|Transport: RTP/AVP/TCP;unicast;interleaved=0-1"}},
	{"setup, multicast", []string{"SETUP {0}|Transport: RTP/AVP;multicast"}},
}

// TestConversations says the same to an upstream directly and through the shim:
// every answer must be the same, byte for byte, but for the named numbers.
func TestConversations(t *testing.T) {
	const movie = "h264-aac.mp4"
	gst := testbed.StartGst(t, testbed.GstOptions{Movies: []string{testbed.Movie(t, movie)}})
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
	testbed.PublishFile(t, lib.URL("/live"), testbed.Movie(t, movie), testbed.TCP)
	lib.AwaitPublished(t, "/live")
	for _, up := range []struct {
		testbed.Upstream
		path, medias string
	}{{gst.Upstream, "/" + movie, "/stream=%d"}, {lib.Upstream, "/live", "/trackID=%d"}} {
		shim := testbed.StartShim(t, up.Upstream)
		t.Run(up.Name, func(t *testing.T) { // so that the servers outlive the parallel ones
			for _, s := range scripts {
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					var direct, shimmed []string
					done := make(chan struct{})
					go func() {
						defer close(done)
						direct = s.run(t, up.Addr, up.path, up.medias)
					}()
					shimmed = s.run(t, shim.Addr, up.path, up.medias)
					<-done
					if len(direct) != len(s.requests) || len(shimmed) != len(direct) {
						t.Fatalf("%d requests, %d and %d answers", len(s.requests), len(direct), len(shimmed))
					}
					for i := range min(len(direct), len(shimmed)) {
						if direct[i] != shimmed[i] && !s.varies(t, up.Upstream.Addr, up.path, up.medias, i, shimmed[i]) {
							t.Errorf("%q\ndirectly:         %q\nthrough the shim: %q", s.requests[i], direct[i], shimmed[i])
						}
					}
				})
			}
		})
	}
}

// varies says whether the upstream itself gives that answer to the i-th request,
// too, when it is asked again: gortsplib's server finds a session that was torn
// down until another goroutine has taken it off its list, and answers 400 or 454.
func (s script) varies(t *testing.T, addr, path, medias string, i int, answer string) bool {
	for n := range 10 {
		if again := s.run(t, addr, path, medias); again[i] == answer {
			t.Logf("%q: the upstream varies, run %d", s.requests[i], n+2)
			return true
		}
	}
	return false
}

// run returns the answers, their numbers taken out.
func (s script) run(tb testing.TB, addr, path, medias string) (answers []string) {
	c := dialRaw(tb, addr)
	url := "rtsp://" + addr + path
	p, p1 := testbed.UDPPair(tb, "127.0.0.1")
	q, q1 := testbed.UDPPair(tb, "127.0.0.1")
	port := func(c *net.UDPConn) string { return fmt.Sprint(c.LocalAddr().(*net.UDPAddr).Port) }
	fill := []string{"{URL}", url, "{0}", url + fmt.Sprintf(medias, 0), "{1}", url + fmt.Sprintf(medias, 1),
		"{P}", port(p), "{P1}", port(p1), "{Q}", port(q), "{Q1}", port(q1)}
	for _, c := range []*net.UDPConn{p, p1, q, q1} {
		defer c.Close() //nolint:errcheck // only there to take the port
	}
	session := ""
	for i, request := range s.requests {
		text := strings.NewReplacer(append(fill, "{SESSION}", session)...).Replace(request)
		if bare, ok := strings.CutPrefix(text, "!"); ok {
			c.send(bare)
		} else {
			start, body, _ := strings.Cut(text, "||")
			line, headers, _ := strings.Cut(start, "|")
			head := fmt.Sprintf("%s RTSP/1.0\r\nCSeq: %d\r\n", line, i+1)
			if headers != "" {
				head += strings.ReplaceAll(headers, "|", "\r\n") + "\r\n"
			}
			c.send(head + "\r\n" + body)
		}
		answer := c.next(2 * time.Second)
		if id := sessionOf(answer); id != "" {
			session = id
		}
		answers = append(answers, withoutNumbers(answer, addr))
	}
	return answers
}

// The named numbers. Everything else must be the same.
var numbers = []struct{ find, put string }{
	{`(?m)^Session: [^;\r\n]+`, "Session: S"},
	{`(?m)^Date: [^\r\n]+`, "Date: D"},
	{`(client_port|server_port)=(\d+)-(\d+)`, "$1=N-N"},
	{`(client_port|server_port)=(\d+)`, "$1=N"},
	{`ssrc=[0-9A-Fa-f]{8}`, "ssrc=X"},
	{`;seq=\d+`, ";seq=N"},
	{`;rtptime=\d+`, ";rtptime=N"},
	{`nonce="[^"]+"`, `nonce="N"`},
	{`(?m)^o=- \d+ `, "o=- N "},                       // gst: its pipeline's
	{`(?m)^a=ssrc:\d+ cname:\S+`, "a=ssrc:N cname:C"}, // gst: random each time
	{`(?m)^Range: npt=[\d.]+-`, "Range: npt=T-"},      // where a PAUSE came
}

func withoutNumbers(answer, addr string) string {
	answer = strings.ReplaceAll(answer, addr, "HOST")
	for _, n := range numbers {
		answer = regexp.MustCompile(n.find).ReplaceAllString(answer, n.put)
	}
	if strings.Contains(answer, "\na=ssrc:N") { // whose length differs
		answer = regexp.MustCompile(`(?m)^Content-Length: \d+`).ReplaceAllString(answer, "Content-Length: N")
	}
	return answer
}
