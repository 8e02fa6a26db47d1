package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// TestUpstreamTrouble: whatever an upstream does, its client gets an answer or
// a close, the log a line, and other clients go on.
func TestUpstreamTrouble(t *testing.T) {
	t.Parallel()
	up := newScripted(t, "127.0.0.1")
	shim := testbed.StartShim(t, up.Upstream)
	const request = "DESCRIBE rtsp://h/x RTSP/1.0\r\nCSeq: 5\r\n\r\n"

	// One that never answers must not keep the others waiting.
	waiting := dialRaw(t, shim.Addr)
	waiting.send(request)
	mute := up.accept(t)
	if got := mute.next(5 * time.Second); got != request {
		t.Fatalf("the mute upstream got %q", got)
	}

	// Octet by octet.
	client := dialRaw(t, shim.Addr)
	client.send(request)
	server := up.accept(t)
	server.next(5 * time.Second)
	answer := "RTSP/1.0 200 OK\r\nCSeq: 5\r\nContent-Length: 3\r\n\r\nabc$\x55\x00\x02hi"
	go func() {
		for i := range answer {
			server.send(answer[i : i+1])
			time.Sleep(time.Millisecond) // what a slow upstream is
		}
	}()
	got := make([]byte, len(answer))
	_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.ReadFull(client.r, got); err != nil || string(got) != answer {
		t.Errorf("a slow upstream: %q, %v", got[:n], err)
	}
	// A frame of a channel nobody set up, from the client.
	client.send("$\x77\x00\x02hi")
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.ReadFull(server.r, got[:6]); err != nil || string(got[:6]) != "$\x77\x00\x02hi" {
		t.Errorf("a frame of an unknown channel: %q, %v", got[:n], err)
	}

	// Closed in the middle of a head, of a body, and before any answer.
	for _, part := range []string{"RTSP/1.0 200 OK\r\nCSe", "RTSP/1.0 200 OK\r\nCSeq: 5\r\nContent-Length: 100\r\n\r\nonly this", "$\x00\x01\x00short", ""} {
		client := dialRaw(t, shim.Addr)
		client.send(request)
		server := up.accept(t)
		server.next(5 * time.Second)
		server.send(part)
		_ = server.Close()
		_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
		if got, err := io.ReadAll(client.r); err != nil || string(got) != part {
			t.Errorf("closed after %q: %q, %v", part, got, err)
		}
	}

	// The client of the mute one goes: so does the upstream's connection.
	_ = waiting.Close()
	if got := mute.next(5 * time.Second); got != closed {
		t.Errorf("the client has gone, the upstream got %q", got)
	}
	_ = mute.Close()

	// Nobody there any more.
	_ = up.ln.Close()
	refused := dialRaw(t, shim.Addr)
	refused.send(request)
	if got := refused.next(5 * time.Second); got != "RTSP/1.0 502 Bad Gateway\r\nCSeq: 5\r\nConnection: close\r\n\r\n" {
		t.Errorf("refused: %q", got)
	}
	if got := refused.next(5 * time.Second); got != closed {
		t.Errorf("refused, then: %q", got)
	}
	if log := shim.Stop(t); strings.Contains(log, "panic") || !strings.Contains(log, "upstream does not answer") {
		t.Errorf("log: %s", log)
	}
}

// TestMuteUpstreamShutdown: sessions of an upstream that does not answer do not
// hold the shim's end up for long.
func TestMuteUpstreamShutdown(t *testing.T) {
	t.Parallel()
	up := newScripted(t, "127.0.0.1")
	shim := testbed.StartShim(t, up.Upstream)
	for i := range 20 {
		client := dialRaw(t, shim.Addr)
		client.send(fmt.Sprintf("SETUP rtsp://h/x RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=%d-%d\r\n\r\n", 20000+2*i, 20001+2*i))
		server := up.accept(t)
		p, q := ports(t, server.next(5*time.Second), "client_port")
		server.send(fmt.Sprintf("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: s%d\r\nTransport: RTP/AVP;unicast;client_port=%d-%d;server_port=%d-%d\r\n\r\n",
			i, p, q, up.rtp.LocalAddr().(*net.UDPAddr).Port, up.rtcp.LocalAddr().(*net.UDPAddr).Port))
		client.next(5 * time.Second)
	}
	began := time.Now()
	shim.Stop(t)
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the end took %v", took)
	}
}
