package testbed

import (
	"net"
	"testing"
)

// UDPPair returns two sockets bound to an even port of host and the odd one
// above it, as RTP and RTCP want them (RFC 3550 section 11). The caller closes
// them, or hands them to somebody who does.
func UDPPair(tb testing.TB, host string) (rtpConn, rtcpConn *net.UDPConn) {
	tb.Helper()
	ip := net.ParseIP(host)
	var last error
	for range 100 {
		first, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip})
		if err != nil {
			tb.Fatalf("UDP pair: %v", err)
		}
		port := first.LocalAddr().(*net.UDPAddr).Port
		second, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: port ^ 1})
		if err == nil && port%2 == 0 {
			return first, second
		}
		if err == nil {
			return second, first
		}
		last = err
		if err := first.Close(); err != nil {
			tb.Fatalf("UDP pair: %v", err)
		}
	}
	tb.Fatalf("UDP pair: %v", last)
	return nil, nil
}

// FreePort returns a TCP port of host that nobody listens on. Another program
// may take it before the caller does: only for programs that cannot say which
// port they chose themselves.
func FreePort(tb testing.TB, host string) int {
	tb.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		tb.Fatalf("free port: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
