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
// in a network namespace of its own, with an interface that multicasts.
func TestMulticast(t *testing.T) {
	const inside, host = "SHIM_TEST_NETNS", "10.9.0.1"
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
		if strings.Contains(string(out), "--- SKIP") {
			t.Skipf("%s", out)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	for _, args := range []string{
		"link set lo up", "link add v0 type veth peer name v1", "addr add " + host + "/24 dev v0",
		"link set v0 up", "link set v1 up", "route add 224.0.0.0/4 dev v0",
	} {
		if out, err := exec.Command(os.Getenv(inside), strings.Fields(args)...).CombinedOutput(); strings.Contains(string(out), "not supported") {
			t.Skipf("ip %s: %s", args, out)
		} else if err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{Host: host, Multicast: true})
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
	t.Logf("%d packets directly, %d through the shim; %s; %s", len(plays[0].Video), len(plays[1].Video), plays[0].Said, plays[1].Said)
	if log := shim.Stop(t); !strings.Contains(log, "multicast") {
		t.Errorf("the shim says: %s", log)
	}
}
