package testbed

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
)

// Shim is a running `shim serve`.
type Shim struct {
	Addr string // host:port clients connect to
	p    *process
}

var shimReady = regexp.MustCompile(`msg=serving listen=(\S+)`)

// StartShim builds the shim and starts it in front of up, on the same IP
// address, with these further flags. It must end cleanly with the test.
func StartShim(tb testing.TB, up Upstream, flags ...string) *Shim {
	tb.Helper()
	host, _, err := net.SplitHostPort(up.Addr)
	if err != nil {
		tb.Fatalf("upstream: %v", err)
	}
	scheme := "rtsp://"
	if up.TLS {
		scheme = "rtsps://"
	}
	args := append([]string{"serve", "--upstream", scheme + up.Addr, "--listen", net.JoinHostPort(host, "0")}, flags...)
	s := &Shim{p: startProcess(tb, exec.Command(shimBinary(tb), args...), shimReady)}
	s.Addr = s.p.awaitReady(tb)[1]
	return s
}

// Stop ends the shim as SIGTERM does and fails the test if it does not end
// cleanly. It returns what the shim logged.
func (s *Shim) Stop(tb testing.TB) string {
	tb.Helper()
	s.p.stop()
	if s.p.err != nil {
		tb.Errorf("shim: %v\n%s", s.p.err, s.p.said.last())
	}
	return s.p.said.String()
}

// Log is what the shim has logged so far.
func (s *Shim) Log() string { return s.p.said.String() }

// Pid is the shim's process id.
func (s *Shim) Pid() int { return s.p.cmd.Process.Pid }

var shimBuild struct {
	sync.Once
	path string
	out  []byte
	err  error
}

// shimBinary returns the path of the shim, built once a test run, with the
// race detector if the environment names SHIM_TEST_RACE.
func shimBinary(tb testing.TB) string {
	tb.Helper()
	root := Root(tb)
	shimBuild.Do(func() {
		shimBuild.path = filepath.Join(root, "build", "shim")
		args := []string{"build", "-o", shimBuild.path}
		if os.Getenv("SHIM_TEST_RACE") != "" {
			shimBuild.path += "-race"
			args = []string{"build", "-race", "-o", shimBuild.path}
		}
		cmd := exec.Command("go", append(args, "./cmd/shim")...)
		cmd.Dir = root
		shimBuild.out, shimBuild.err = cmd.CombinedOutput()
	})
	if shimBuild.err != nil {
		tb.Fatalf("go build ./cmd/shim: %v\n%s", shimBuild.err, shimBuild.out)
	}
	return shimBuild.path
}
