package e2e

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// Transcripts that hold no conversation to replay, and why.
var notReplayed = map[string]string{
	"dss/12_timeouts.txt": "tells times only, no message is in it",
}

// sharedDir is the folder of recorded conversations and movies, which are not
// part of the repository.
func sharedDir(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("SHIM_SHARED")
	if dir == "" {
		dir = filepath.Join(testbed.Root(tb), "..", "shared")
	}
	if _, err := os.Stat(filepath.Join(dir, "wire")); err != nil {
		tb.Skipf("no recorded conversations here: %v (SHIM_SHARED may name the folder that holds wire/)", err)
	}
	return dir
}

// TestReplay plays every recorded conversation through the shim, a scripted
// upstream at the other end. Every request must arrive there, and every answer
// at the client, as it was recorded but for the numbers that the shim must
// change: ports in Transport, and its own address in the place of the
// upstream's.
func TestReplay(t *testing.T) {
	wire := filepath.Join(sharedDir(t), "wire")
	files, err := filepath.Glob(filepath.Join(wire, "*", "*.txt"))
	if err != nil || len(files) < 79 {
		t.Fatalf("%d transcripts in %s: %v", len(files), wire, err)
	}
	for _, file := range files {
		name, err := filepath.Rel(wire, file)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parse := parseLines
		if strings.HasPrefix(name, "dss/") {
			parse = parseBlocks
		}
		steps, err := parse(string(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if why := notReplayed[name]; why != "" {
			if len(steps) > 0 {
				t.Errorf("%s: not replayed (%s), but there are %d steps", name, why, len(steps))
			}
			t.Logf("%s: not replayed: %s", name, why)
			continue
		}
		// An upstream that echoes the address it was asked for, wherever it is.
		t.Run(name+"/echoed", func(t *testing.T) {
			t.Parallel()
			r := newReplay(t, "127.0.0.1", "127.0.0.1", "127.0.0.1")
			r.run(steps)
		})
		// One that names its own, on a host of its own.
		t.Run(name+"/own", func(t *testing.T) {
			t.Parallel()
			r := newReplay(t, "127.0.0.3", "127.0.0.4", "127.0.0.2")
			r.own = mainAuthority(string(text))
			r.run(steps)
		})
	}
}

// replay is a conversation on its way through the shim.
type replay struct {
	*testing.T
	clientIP, shimIP, upstreamIP string

	up   net.Listener // the scripted upstream
	shim string       // host:port
	own  string       // the recorded upstream's host:port, to be replaced by ours; "" to leave it

	named string  // host:port of the last request-URI
	ports []moved // of the last SETUP
	conns []*pair
	pair  *pair // the one that requests go out on
	down  *pair // the one that answers come in on
}

// moved is a pair of client ports and what the shim asked the upstream for.
type moved struct{ first, second, given int }

// pair is a client's connection to the shim and the shim's to the upstream.
type pair struct {
	client, server net.Conn
	coded          bool // base64 from client to server
}

const replayTimeout = 5 * time.Second

func newReplay(t *testing.T, clientIP, shimIP, upstreamIP string) *replay {
	t.Helper()
	up, err := net.Listen("tcp", net.JoinHostPort(upstreamIP, "0"))
	if err != nil {
		t.Fatal(err)
	}
	shim := testbed.StartShim(t, testbed.Upstream{Addr: up.Addr().String()}, "--listen", net.JoinHostPort(shimIP, "0"))
	r := &replay{T: t, clientIP: clientIP, shimIP: shimIP, upstreamIP: upstreamIP, up: up, shim: shim.Addr}
	t.Cleanup(func() {
		_ = up.Close() // nobody there for the shim to say goodbye to
		for _, p := range r.conns {
			_ = p.client.Close()
			_ = p.server.Close()
		}
		shim.Stop(t)
	})
	return r
}

func (r *replay) run(steps []step) {
	for i, s := range steps {
		var err error
		switch s.kind {
		case opens, opensPost:
			err = r.connect(s.kind == opensPost)
		case sends:
			err = r.send(s.data)
		case answers:
			err = r.answer(s.data)
		case closes:
			err = r.close()
		}
		if err != nil {
			r.Fatalf("line %d (step %d of %d): %v", s.line, i+1, len(steps), err)
		}
	}
	// Nothing may have come that was not recorded. The upstream is gone as a whole:
	// a POST that alone were closed unanswered would be made again.
	_ = r.up.Close()
	for _, p := range r.conns {
		_ = p.server.Close()
	}
	for _, p := range r.conns {
		_ = p.client.SetReadDeadline(time.Now().Add(replayTimeout))
		rest, err := io.ReadAll(p.client)
		if len(rest) > 0 || err != nil && !errors.Is(err, net.ErrClosed) {
			r.Errorf("after the last answer: %q, %v", rest, err)
		}
	}
}

func (r *replay) connect(post bool) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(r.clientIP)}}
	client, err := d.Dial("tcp", r.shim)
	if err != nil {
		return err
	}
	if err := r.up.(*net.TCPListener).SetDeadline(time.Now().Add(replayTimeout)); err != nil {
		return err
	}
	server, err := r.up.Accept()
	if err != nil {
		return fmt.Errorf("at the upstream: %w", err)
	}
	r.pair = &pair{client: client, server: server}
	r.conns = append(r.conns, r.pair)
	if !post || r.down == nil {
		r.down = r.pair
	}
	return nil
}

// Who sends what, in an upstream's answer or a request: the numbers to be replaced.
var (
	transportLine = regexp.MustCompile(`(?im)^Transport:[^\r\n]*`)
	clientPort    = regexp.MustCompile(`(?i)client_port=(\d+)(?:-(\d+))?`)
	serverPort    = regexp.MustCompile(`server_port=([1-9]\d*)(-[1-9]\d*)?`)
	addressParam  = regexp.MustCompile(`\b(source|destination)=127\.0\.0\.1\b`)
	addressLine   = regexp.MustCompile(`(?im)^(Content-Base|Content-Location|Location|RTP-Info):[^\r\n]*`)
	requestURI    = regexp.MustCompile(`\A\s*\S+ rtsps?://(?:[^/\s]*@)?([^/?#\s]+)`)
	serverIPLine  = regexp.MustCompile(`(?im)^X-Server-IP-Address: 127\.0\.0\.1`)
)

// send has the client send a request, and the upstream receive it.
func (r *replay) send(data []byte) error {
	if r.own != "" {
		data = ownURL(r.own).ReplaceAll(data, []byte("rtsp://${1}"+r.shim))
	}
	if to := requestURI.FindSubmatch(data); to != nil {
		r.named = string(to[1])
	}
	want, out := quote(data), data
	if bytes.HasPrefix(data, []byte("SETUP ")) {
		r.ports = nil
		for _, line := range transportLine.FindAllString(string(data), -1) {
			want = strings.Replace(want, quote([]byte(line)), r.transportAsked(line), 1)
		}
	}
	if r.pair.coded {
		out = base64.StdEncoding.AppendEncode(nil, data)
	}
	if _, err := r.pair.client.Write(out); err != nil {
		return err
	}
	match, err := expect(r.pair.server, want, r.pair.coded)
	if err != nil {
		return fmt.Errorf("the upstream received %w", err)
	}
	for i := range r.ports {
		p := &r.ports[i]
		if len(match) == 1 { // no SETUP: those of the last one stay
			break
		}
		p.given, _ = strconv.Atoi(match[1+2*i])
		second, _ := strconv.Atoi(match[2+2*i])
		if p.second != 0 && second-p.given != p.second-p.first {
			return fmt.Errorf("the shim asked for %d-%d in the place of %d-%d", p.given, second, p.first, p.second)
		}
	}
	r.pair.coded = r.pair.coded || httpFirst.Match(data) && bytes.HasPrefix(data, []byte("POST")) && cookie.Match(data)
	return nil
}

// transportAsked is the pattern of a request's Transport at the upstream.
func (r *replay) transportAsked(line string) string {
	var out []string
	for choice := range strings.SplitSeq(line, ",") {
		want := regexp.QuoteMeta(choice)
		if p := clientPort.FindStringSubmatch(choice); p != nil && forClient(choice) {
			first, _ := strconv.Atoi(p[1])
			second, _ := strconv.Atoi(p[2])
			r.ports = append(r.ports, moved{first: first, second: second})
			name, _, _ := strings.Cut(p[0], "=")
			ports := name + "=([0-9]+)()"
			if second != 0 {
				ports = name + "=([0-9]+)-([0-9]+)"
			}
			want = strings.Replace(want, regexp.QuoteMeta(p[0]), ports, 1)
		}
		out = append(out, want)
	}
	return strings.Join(out, ",")
}

// forClient says whether a Transport choice asks for datagrams to the client.
func forClient(choice string) bool {
	low := strings.ToLower(choice)
	return !strings.Contains(low, "/tcp") && !strings.Contains(low, "multicast") && !strings.Contains(low, "destination=")
}

// answer has the upstream answer, and the client receive it.
func (r *replay) answer(data []byte) error {
	said, heard := data, data
	if r.own != "" {
		host := r.named
		if host == "" {
			host = r.shim
		}
		// The upstream's own address wherever a client would follow it, and there
		// the client must get the shim's, by the name it used itself.
		replace := func(by string) []byte {
			return addressLine.ReplaceAllFunc(data, func(line []byte) []byte {
				return ownURL(r.own).ReplaceAll(line, []byte("rtsp://${1}"+by))
			})
		}
		said, heard = replace(r.up.Addr().String()), replace(host)
		said = serverIPLine.ReplaceAll(said, []byte("X-Server-IP-Address: "+r.upstreamIP))
		heard = serverIPLine.ReplaceAll(heard, []byte("X-Server-IP-Address: "+r.shimIP))
	}
	want := quote(heard)
	if line := transportLine.Find(said); line != nil {
		own := r.transportSaid(string(line))
		said = bytes.Replace(said, line, []byte(own), 1)
		want = strings.Replace(want, quote(line), r.transportHeard(string(line)), 1)
	}
	if _, err := r.down.server.Write(said); err != nil {
		return err
	}
	if _, err := expect(r.down.client, want, false); err != nil {
		return fmt.Errorf("the client received %w", err)
	}
	return nil
}

// relays finds the ports of the last SETUP that the recorded answer grants.
func (r *replay) relays(line string) *moved {
	if ports := clientPort.FindStringSubmatch(line); ports != nil {
		for i := range r.ports {
			if ports[1] == strconv.Itoa(r.ports[i].first) {
				return &r.ports[i]
			}
		}
	}
	return nil
}

// ownURL finds that authority in a URL, with or without user information.
func ownURL(authority string) *regexp.Regexp {
	return regexp.MustCompile(`rtsps?://([^/\s]*@)?` + regexp.QuoteMeta(authority))
}

// quote is a pattern for exactly these octets, each as a character.
func quote(b []byte) string { return regexp.QuoteMeta(latin(b)) }

func latin(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

// transportSaid is a recorded Transport as our upstream would have said it.
func (r *replay) transportSaid(line string) string {
	if p := r.relays(line); p != nil {
		line = clientPort.ReplaceAllStringFunc(line, func(ports string) string {
			first, second, two := strings.Cut(strings.TrimPrefix(ports, "client_port="), "-")
			a, _ := strconv.Atoi(first)
			b, _ := strconv.Atoi(second)
			ports = "client_port=" + strconv.Itoa(a-p.first+p.given)
			if two {
				ports += "-" + strconv.Itoa(b-p.first+p.given)
			}
			return ports
		})
	}
	return addressParam.ReplaceAllStringFunc(line, func(p string) string {
		if strings.HasPrefix(p, "source=") {
			return "source=" + r.upstreamIP
		}
		return "destination=127.0.0.1" // the shim's address as the upstream sees it
	})
}

// transportHeard is the pattern of what the client must get of it.
func (r *replay) transportHeard(line string) string {
	relays := r.relays(line)
	line = addressParam.ReplaceAllStringFunc(line, func(p string) string {
		if strings.HasPrefix(p, "source=") {
			return "source=" + r.shimIP
		}
		return "destination=" + r.clientIP
	})
	want := regexp.QuoteMeta(line)
	if relays != nil {
		want = serverPort.ReplaceAllStringFunc(want, func(ports string) string {
			if strings.Contains(ports, "-") {
				return "server_port=[0-9]+-[0-9]+"
			}
			return "server_port=[0-9]+"
		})
	}
	return want
}

// close has the upstream close, and the client see it.
func (r *replay) close() error {
	if err := r.pair.server.Close(); err != nil {
		return err
	}
	if err := r.pair.client.SetReadDeadline(time.Now().Add(replayTimeout)); err != nil {
		return err
	}
	rest, err := io.ReadAll(r.pair.client)
	if err != nil {
		return fmt.Errorf("the upstream closed; the client received %q: %w", rest, err)
	}
	if len(rest) > 0 {
		return fmt.Errorf("the upstream closed; the client received %q", rest)
	}
	return nil
}

// expect reads exactly what the pattern describes.
func expect(c net.Conn, pattern string, coded bool) ([]string, error) {
	whole := regexp.MustCompile(`(?s)\A` + pattern + `\z`)
	if err := c.SetReadDeadline(time.Now().Add(replayTimeout)); err != nil {
		return nil, err
	}
	var raw []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		raw = append(raw, buf[:n]...)
		got := raw
		if coded {
			if b, err := base64.StdEncoding.DecodeString(string(raw)); err == nil {
				got = b
			}
		}
		if match := whole.FindStringSubmatch(latin(got)); match != nil {
			return match, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q (%w)\nwant %q", got, err, strings.ReplaceAll(pattern, `\`, ""))
		}
	}
}
