package testbed

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// MediaMTXOptions says how MediaMTX shall be. The zero value is on 127.0.0.1,
// over UDP and TCP, open to anybody.
type MediaMTXOptions struct {
	Host  string // address to listen on; 127.0.0.1
	Auth  Auth   // NoAuth, Basic or DigestMD5, asked of readers and publishers alike
	TLS   bool   // rtsps only; implies TCP
	NoUDP bool   // interleaved TCP only
}

var mediaMTXReady = regexp.MustCompile(`\[RTSPS?\].* started|\[RTSPS?\].*listener opened`)

// StartMediaMTX starts the MediaMTX that SHIM_TEST_MEDIAMTX names and returns
// when it listens. Any path may be published and is then read.
func StartMediaMTX(tb testing.TB, o MediaMTXOptions) Upstream {
	tb.Helper()
	binary := named(tb, "SHIM_TEST_MEDIAMTX", "MediaMTX")
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	up := Upstream{
		Name: "mediamtx", Addr: net.JoinHostPort(o.Host, fmt.Sprint(FreePort(tb, o.Host))),
		TLS: o.TLS, Auth: o.Auth,
	}
	var c strings.Builder
	for _, protocol := range []string{"rtmp", "hls", "webrtc", "srt", "moq", "api", "metrics", "pprof", "playback"} {
		fmt.Fprintf(&c, "%s: no\n", protocol)
	}
	transports := "[tcp]"
	if !o.NoUDP && !o.TLS {
		transports = "[udp, tcp]"
		a, b := UDPPair(tb, o.Host)
		fmt.Fprintf(&c, "rtpAddress: '%s'\nrtcpAddress: '%s'\nudpReadBufferSize: 1000000\n", a.LocalAddr(), b.LocalAddr())
		for _, conn := range []*net.UDPConn{a, b} {
			if err := conn.Close(); err != nil {
				tb.Fatalf("MediaMTX: %v", err)
			}
		}
	}
	fmt.Fprintf(&c, "rtspTransports: %s\n", transports)
	if o.TLS {
		cert, key := CertFiles(tb)
		fmt.Fprintf(&c, "rtspEncryption: strict\nrtspsAddress: '%s'\nrtspServerCert: %s\nrtspServerKey: %s\n", up.Addr, cert, key)
	} else {
		fmt.Fprintf(&c, "rtspAddress: '%s'\n", up.Addr)
	}
	user, pass := "any", ""
	switch o.Auth {
	case NoAuth:
	case Basic:
		user, pass = User, Pass
		c.WriteString("rtspAuthMethods: [basic]\n")
	case DigestMD5:
		user, pass = User, Pass
		c.WriteString("rtspAuthMethods: [digest]\n")
	default:
		tb.Skipf("MediaMTX has no %s authentication", o.Auth)
	}
	fmt.Fprintf(&c, "authInternalUsers:\n- user: %s\n  pass: '%s'\n  permissions:\n  - action: publish\n  - action: read\npaths:\n  all_others:\n", user, pass)
	config := filepath.Join(tb.TempDir(), "mediamtx.yml")
	if err := os.WriteFile(config, []byte(c.String()), 0o600); err != nil {
		tb.Fatalf("MediaMTX: %v", err)
	}
	cmd := exec.Command(binary, config)
	cmd.Dir = filepath.Dir(config) // for the certificate that it makes itself
	startProcess(tb, cmd, mediaMTXReady).awaitReady(tb)
	return up
}

// named returns the program an environment variable names, and skips the test
// when it names none.
func named(tb testing.TB, variable, what string) string {
	tb.Helper()
	path := os.Getenv(variable)
	if path == "" {
		tb.Skipf("no %s: %s names no program", what, variable)
	}
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("%s: %v", variable, err)
	}
	return path
}
