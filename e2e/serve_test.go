package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// setUpUDP plays one Media of url over UDP on c and returns the answer to SETUP
// and the client's sockets.
func setUpUDP(tb testing.TB, c *raw, url string) (answer string, rtp, rtcp *net.UDPConn) {
	tb.Helper()
	rtp, rtcp = testbed.UDPPair(tb, "127.0.0.1")
	tb.Cleanup(func() { _, _ = rtp.Close(), rtcp.Close() })
	port := rtp.LocalAddr().(*net.UDPAddr).Port
	c.send(fmt.Sprintf("SETUP %s/trackID=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=%d-%d\r\n\r\n", url, port, port+1))
	return c.next(5 * time.Second), rtp, rtcp
}

func play(tb testing.TB, c *raw, url, session string) {
	tb.Helper()
	c.send("PLAY " + url + "/ RTSP/1.0\r\nCSeq: 2\r\nSession: " + session + "\r\n\r\n")
	if answer := c.next(5 * time.Second); !strings.HasPrefix(answer, "RTSP/1.0 200") {
		tb.Fatalf("PLAY: %q", answer)
	}
}

// awaitPacket returns the next datagram.
func awaitPacket(tb testing.TB, c *net.UDPConn) []byte {
	tb.Helper()
	b := make([]byte, 2048)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	n, err := c.Read(b)
	if err != nil {
		tb.Fatalf("no packet: %v", err)
	}
	return b[:n]
}

// TestShutdown: at SIGTERM the upstream sees a TEARDOWN for every session,
// over UDP, interleaved, and of a client whose connection has gone.
func TestShutdown(t *testing.T) {
	t.Parallel()
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
	testbed.PublishFile(t, lib.URL("/live"), testbed.Movie(t, "h264-aac.mp4"), testbed.TCP)
	lib.AwaitPublished(t, "/live")
	shim := testbed.StartShim(t, lib.Upstream)
	url := lib.At(shim.Addr).URL("/live")

	udp := dialRaw(t, shim.Addr)
	answer, rtp, _ := setUpUDP(t, udp, url)
	play(t, udp, url, sessionOf(answer))
	awaitPacket(t, rtp)

	detached := dialRaw(t, shim.Addr)
	answer, rtp, _ = setUpUDP(t, detached, url)
	play(t, detached, url, sessionOf(answer))
	_ = detached.Close()
	for range 3 {
		awaitPacket(t, rtp)
	}

	tcp := dialRaw(t, shim.Addr)
	tcp.send("SETUP " + url + "/trackID=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n")
	play(t, tcp, url, sessionOf(tcp.next(5*time.Second)))

	lib.AwaitSessions(t, 4)
	before := lib.TornDown()
	began := time.Now()
	log := shim.Stop(t) // fails if the exit is not clean
	took := time.Since(began)
	lib.AwaitSessions(t, 1)
	if n := lib.TornDown() - before; n != 3 {
		t.Errorf("the upstream saw %d TEARDOWNs, want 3\n%s", n, log)
	}
	if took > 3*time.Second {
		t.Errorf("the end took %v", took)
	}
	if n := strings.Count(log, "session ended"); n != 3 {
		t.Errorf("%d lines about sessions' ends, want 3\n%s", n, log)
	}
	t.Logf("ended in %v", took)
}

// TestSessionFromElsewhere: a session whose connection has gone is controlled
// from another one.
func TestSessionFromElsewhere(t *testing.T) {
	t.Parallel()
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
	testbed.PublishFile(t, lib.URL("/live"), testbed.Movie(t, "h264-aac.mp4"), testbed.TCP)
	lib.AwaitPublished(t, "/live")
	shim := testbed.StartShim(t, lib.Upstream)
	url := lib.At(shim.Addr).URL("/live")
	first := dialRaw(t, shim.Addr)
	answer, rtp, _ := setUpUDP(t, first, url)
	play(t, first, url, sessionOf(answer))
	awaitPacket(t, rtp)
	_ = first.Close()
	second := dialRaw(t, shim.Addr)
	second.send("TEARDOWN " + url + "/ RTSP/1.0\r\nCSeq: 9\r\nSession: " + sessionOf(answer) + "\r\n\r\n")
	if got := second.next(5 * time.Second); !strings.HasPrefix(got, "RTSP/1.0 200") {
		t.Errorf("TEARDOWN from another connection: %q", got)
	}
	lib.AwaitSessions(t, 1)
	// The client's address is free again, and its packets come.
	third := dialRaw(t, shim.Addr)
	answer, rtp, _ = setUpUDP(t, third, url)
	play(t, third, url, sessionOf(answer))
	awaitPacket(t, rtp)
}

// TestConfiguration: a flag wins over the environment, that over the YAML file.
func TestConfiguration(t *testing.T) {
	up, err := net.Listen("tcp", "127.0.0.1:0") // it need only be there
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close() //nolint:errcheck // nothing is done with it
	config := filepath.Join(t.TempDir(), "shim.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	upstream := testbed.Upstream{Addr: up.Addr().String()}
	levels := func(flags ...string) (debug, json bool) {
		t.Helper()
		shim := testbed.StartShim(t, upstream, append([]string{"--config", config}, flags...)...)
		c := dialRaw(t, shim.Addr)
		c.send("\x01") // said about at level debug
		_ = c.Close()
		log := shim.Stop(t)
		return strings.Contains(log, "pumps=3"), strings.Contains(log, "pumps=2")
	}
	write("pumps: 1\n")
	if three, two := levels(); three || two {
		t.Error("without a flag and a variable, the file does not count")
	}
	t.Setenv("SHIM_PUMPS", "2")
	if three, two := levels(); three || !two {
		t.Error("the environment does not win over the file")
	}
	if three, two := levels("--pumps", "3"); !three || two {
		t.Error("the flag does not win over the environment")
	}

	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(filepath.Join(testbed.Root(t), "build", "shim"), append([]string{"serve"}, args...)...).CombinedOutput()
		if err == nil {
			t.Errorf("%v: no error: %s", args, out)
		}
		return string(out)
	}
	write("pumps: [\n")
	for _, wrong := range []struct {
		args []string
		want string
	}{
		{[]string{}, "--upstream"},
		{[]string{"--upstream", "http://h/"}, "want rtsp://"},
		{[]string{"--upstream", "rtsp://h", "--listen", "nowhere:0:0"}, "listen"},
		{[]string{"--upstream", "rtsp://h", "--listen", "127.0.0.1:0", "--udp-port", "7001"}, "even"},
		{[]string{"--upstream", "rtsp://h", "--listen", "127.0.0.1:0", "--gso", "perhaps"}, "gso"},
		{[]string{"--upstream", "rtsp://h", "--listen", "127.0.0.1:0", "--log-level", "loud"}, "log-level"},
		{[]string{"--upstream", "rtsp://h", "--listen", "127.0.0.1:0", "--tls-cert", "/nonexistent"}, "tls-cert"},
		{[]string{"--upstream", "rtsps://h", "--listen", "127.0.0.1:0", "--upstream-ca", "/nonexistent"}, "upstream-ca"},
		{[]string{"--config", "/nonexistent", "--upstream", "rtsp://h"}, "/nonexistent"},
		{[]string{"--config", config, "--upstream", "rtsp://h"}, "yaml"},
		{[]string{"--upstream", "rtsp://h", "--listen", up.Addr().String()}, "listen"},
	} {
		if out := run(wrong.args...); !strings.Contains(out, wrong.want) {
			t.Errorf("%v: %q says nothing of %q", wrong.args, out, wrong.want)
		}
	}
}

// scripted is an upstream that the test plays by hand.
type scripted struct {
	testbed.Upstream
	ln        net.Listener
	rtp, rtcp *net.UDPConn
}

func newScripted(tb testing.TB, ip string) *scripted {
	tb.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		tb.Fatal(err)
	}
	s := &scripted{Upstream: testbed.Upstream{Addr: ln.Addr().String()}, ln: ln}
	s.rtp, s.rtcp = testbed.UDPPair(tb, ip)
	tb.Cleanup(func() { _, _, _ = ln.Close(), s.rtp.Close(), s.rtcp.Close() })
	return s
}

func (s *scripted) accept(tb testing.TB) *raw {
	tb.Helper()
	if err := s.ln.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	c, err := s.ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	r := newRaw(tb, c)
	return r
}

// ports reads client_port or server_port of a message.
func ports(tb testing.TB, message, name string) (rtp, rtcp int) {
	tb.Helper()
	_, value, ok := strings.Cut(header(message, "Transport"), name+"=")
	if !ok {
		tb.Fatalf("no %s in %q", name, message)
	}
	value, _, _ = strings.Cut(value, ";")
	a, b, _ := strings.Cut(value, "-")
	rtp, _ = strconv.Atoi(a)
	rtcp, _ = strconv.Atoi(b)
	return rtp, rtcp
}

func udpFrom(tb testing.TB, ip string) *net.UDPConn {
	tb.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// TestOnlyThePeers: what a third party sends to the shim's ports, on either
// side, is never passed on; and whatever an upstream or a client says about
// addresses, nothing is sent to anybody but them.
func TestOnlyThePeers(t *testing.T) {
	t.Parallel()
	const upstreamIP, clientIP, thirdIP = "127.0.0.2", "127.0.0.1", "127.0.0.9"
	up := newScripted(t, upstreamIP)
	shim := testbed.StartShim(t, up.Upstream, "--listen", "127.0.0.1:0")
	third, thirdToo := udpFrom(t, thirdIP), udpFrom(t, thirdIP)
	rtp, rtcp := testbed.UDPPair(t, clientIP)
	defer rtp.Close()  //nolint:errcheck // only here
	defer rtcp.Close() //nolint:errcheck // only here
	clientPort := rtp.LocalAddr().(*net.UDPAddr).Port
	upPort := up.rtp.LocalAddr().(*net.UDPAddr).Port

	for _, c := range []struct {
		name   string
		answer string // the upstream's Transport; {P} is the client's port as it knows it, {S} its own
		flows  bool
	}{
		{"plain", "RTP/AVP;unicast;client_port={P}-{P1};server_port={S}-{S1}", true},
		{"somebody else's destination", "RTP/AVP;unicast;destination=" + thirdIP + ";client_port={P}-{P1};server_port={S}-{S1}", true},
		{"no ports", "RTP/AVP;unicast", true},
		{"other client ports", fmt.Sprintf("RTP/AVP;unicast;client_port=%d-%d;server_port={S}-{S1}", third.LocalAddr().(*net.UDPAddr).Port, 7), false},
	} {
		client := dialRaw(t, shim.Addr)
		client.send(fmt.Sprintf("SETUP rtsp://h/%s RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=%d-%d\r\n\r\n", c.name[:2], clientPort, clientPort+1))
		server := up.accept(t)
		asked, askedRTCP := ports(t, server.next(5*time.Second), "client_port")
		transport := strings.NewReplacer("{P}", fmt.Sprint(asked), "{P1}", fmt.Sprint(askedRTCP), "{S}", fmt.Sprint(upPort), "{S1}", fmt.Sprint(upPort+1)).Replace(c.answer)
		server.send(fmt.Sprintf("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: %s\r\nTransport: %s\r\n\r\n", c.name[:2], transport))
		answer := client.next(5 * time.Second)
		if !strings.HasPrefix(answer, "RTSP/1.0 200") {
			t.Fatalf("%s: %q", c.name, answer)
		}
		toShim := &net.UDPAddr{IP: net.ParseIP("127.0.0.1"), Port: asked}
		serverPort := 0
		if strings.Contains(c.answer, "server_port") && c.flows {
			serverPort, _ = ports(t, answer, "server_port")
		}
		send := func(from *net.UDPConn, to int, what string) {
			t.Helper()
			if to == 0 {
				return
			}
			if _, err := from.WriteToUDP([]byte(what), &net.UDPAddr{IP: toShim.IP, Port: to}); err != nil {
				t.Fatal(err)
			}
		}
		// The third party first, the peers then: what arrives must be theirs.
		for range 3 {
			send(third, asked, "third to client")
			send(third, askedRTCP, "third to client")
			send(third, serverPort, "third to upstream")
			send(thirdToo, serverPort+1, "third to upstream")
		}
		send(up.rtp, asked, "media of "+c.name)
		if serverPort != 0 {
			send(rtp, serverPort, "punch of "+c.name)
		}
		if c.flows {
			if got := string(awaitPacket(t, rtp)); got != "media of "+c.name {
				t.Errorf("%s: the client received %q", c.name, got)
			}
			if serverPort != 0 {
				if got := string(awaitPacket(t, up.rtp)); got != "punch of "+c.name {
					t.Errorf("%s: the upstream received %q", c.name, got)
				}
			}
		}
		for who, conn := range map[string]*net.UDPConn{"client": rtp, "client's RTCP": rtcp, "upstream": up.rtp, "upstream's RTCP": up.rtcp, "third": third} {
			if got := pending(t, conn); got != "" {
				t.Errorf("%s: the %s received %q", c.name, who, got)
			}
		}
		client.send(fmt.Sprintf("TEARDOWN rtsp://h/ RTSP/1.0\r\nCSeq: 2\r\nSession: %s\r\n\r\n", c.name[:2]))
		server.next(5 * time.Second)
		server.send("RTSP/1.0 200 OK\r\nCSeq: 2\r\n\r\n")
		client.next(5 * time.Second)
		// Media that come after the end go nowhere; only a goodbye still passes.
		send(up.rtp, asked, "late")
		if got := pending(t, rtp); got != "" {
			t.Errorf("%s: after TEARDOWN the client received %q", c.name, got)
		}
	}
}

// pending returns what has come within the time the shim gathers packets, many times over.
func pending(tb testing.TB, c *net.UDPConn) string {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		tb.Fatal(err)
	}
	b := make([]byte, 2048)
	n, _ := c.Read(b)
	return string(b[:n])
}
