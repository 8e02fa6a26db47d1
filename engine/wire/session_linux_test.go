package wire

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// A process that leads a session has that go before others', if it may; one that
// does not leaves it alone.
func TestRaiseSession(t *testing.T) {
	const child, own = "SHIM_TEST_SESSION", "/proc/self/autogroup"
	group := func() string { // "/autogroup-7 nice 0"; nothing in the session a machine starts in
		b, err := os.ReadFile(own)
		if errors.Is(err, os.ErrNotExist) {
			t.Skip("this kernel groups no sessions (CONFIG_SCHED_AUTOGROUP)")
		} else if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	before := group()
	if os.Getenv(child) != "" {
		if err := RaiseSession(); errors.Is(err, os.ErrPermission) {
			t.Skip("not permitted")
		} else if err != nil {
			t.Fatal(err)
		}
		t.Logf("from %q to %q", before, group())
		return
	}
	for leads, want := range map[bool]string{true: ` nice -15"`, false: `to "` + before + `"`} {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestRaiseSession$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: leads}
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "not permitted") {
			t.Skip("needs CAP_SYS_NICE")
		}
		if leads && strings.Contains(string(out), `from "" to ""`) {
			t.Skip("sessions are not grouped here (kernel.sched_autogroup_enabled)")
		}
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("leads a session: %v: want %q: %v\n%s", leads, want, err, out)
		}
	}
}
