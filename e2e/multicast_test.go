//go:build e2e && linux

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"rtspshim/internal/testbed"
)

// TestMulticast plays a multicast stream directly and through the shim, which
// must leave it alone: the packets go from the upstream to the group. It does so
// in a network namespace of its own, where loopback can be made to multicast.
func TestMulticast(t *testing.T) {
	const inside = "SHIM_TEST_NETNS"
	if os.Getenv(inside) == "" {
		if os.Geteuid() != 0 {
			t.Skip("a network namespace needs root")
		}
		ip := testbed.Program(t, "ip", "iproute2")
		testbed.StartShim(t, testbed.Upstream{Addr: "127.0.0.1:554"}).Stop(t) // built before the network is gone
		cmd := exec.Command(os.Args[0], "-test.run=^TestMulticast$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"="+ip)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		if err != nil && strings.Contains(err.Error(), "operation not permitted") {
			t.Skipf("no network namespace here: %v", err)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	for _, args := range []string{"link set lo up multicast on", "route add 224.0.0.0/4 dev lo"} {
		if out, err := exec.Command(os.Getenv(inside), strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{Multicast: true})
	t.Cleanup(publishPackets(t, lib, "/live", 50))
	shim := testbed.StartShim(t, lib.Upstream)
	plays := testbed.Together(
		func() testbed.Frames {
			return testbed.GortsplibFrames(t.Context(), t, lib.URL("/live"), testbed.Multicast, length)
		},
		func() testbed.Frames {
			return testbed.GortsplibFrames(t.Context(), t, lib.At(shim.Addr).URL("/live"), testbed.Multicast, length)
		})
	if err := testbed.CompareLive(plays[0], plays[1], 100); err != nil {
		t.Error(err)
	}
	t.Logf("%d packets directly, %d through the shim", len(plays[0].Video), len(plays[1].Video))
	if log := shim.Stop(t); !strings.Contains(log, "multicast") {
		t.Errorf("the shim says: %s", log)
	}
}
