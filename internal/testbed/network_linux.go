package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Network is two hosts on this machine, each a network namespace, and the link
// between them: servers run on one, and the test process is the other. A send
// ends at the link's device, as with a network card that cuts runs of datagrams
// itself; the receiving half of the network stack is a kernel thread's, and on
// nobody's account. Where there are processors enough, each host has its own.
type Network struct {
	Server, Client netip.Addr
	there          int         // the server's namespace
	theirs         unix.CPUSet // its processors; none: any
}

// InNetwork has cmd, which must be a test of this program's that begins with
// EnterNetwork, run in namespaces of its own. That needs root.
func InNetwork(cmd *exec.Cmd) {
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
}

// EnterNetwork makes the other host and the link to it.
func EnterNetwork(tb testing.TB) *Network {
	tb.Helper()
	n := &Network{Server: netip.MustParseAddr("198.18.0.1"), Client: netip.MustParseAddr("198.18.0.2")} // RFC 2544, appendix C
	// The namespace's own devices, which /sys shows as of whoever mounts it.
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	}
	if err != nil {
		tb.Fatalf("network: /sys: %v", err)
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.there, err = ownNamespace()
		}
		made <- err
	}()
	if err := <-made; err != nil {
		tb.Fatalf("network: another host: %v", err)
	}
	tb.Cleanup(func() { _ = unix.Close(n.there) })
	run := func(commands string) {
		tb.Helper()
		for line := range strings.Lines(commands) {
			words := strings.Fields(line)
			if out, err := exec.Command(Program(tb, words[0], words[0]), words[1:]...).CombinedOutput(); err != nil {
				tb.Fatalf("network: %s: %v\n%s", line, err, out)
			}
		}
	}
	here, err := ownNamespace()
	if err != nil {
		tb.Fatalf("network: %v", err)
	}
	defer func() { _ = unix.Close(here) }()
	n.There(tb, func() {
		run(fmt.Sprintf(`ip link set lo up
ip link add server type veth peer name client
ip link set client netns /proc/%d/fd/%d
ip address add %v/24 dev server
ip link set server up
tc qdisc add dev server root pfifo limit 10000`, os.Getpid(), here, n.Server))
	})
	// What has been received waits for a thread of its own where the device has
	// "NAPI", which such a device has for datagrams if it may gather them.
	run(fmt.Sprintf(`ip link set lo up
ethtool -K client gro on rx-udp-gro-forwarding on
ip address add %v/24 dev client
ip link set client up`, n.Client))
	if err := os.WriteFile("/sys/class/net/client/threaded", []byte("1"), 0); err != nil {
		tb.Fatalf("network: %v", err)
	}
	n.divide(tb)
	return n
}

// divide gives the last processor to this host, and the others to the other one:
// neither takes the processor from the other, as a receiver that is woken by each
// send would.
func (n *Network) divide(tb testing.TB) {
	tb.Helper()
	var mine unix.CPUSet
	if err := unix.SchedGetaffinity(0, &mine); err != nil {
		tb.Fatalf("network: processors: %v", err)
	}
	if mine.Count() < 2 {
		return
	}
	last := len(mine)*64 - 1
	for !mine.IsSet(last) {
		last--
	}
	n.theirs = mine
	n.theirs.Clear(last)
	mine.Zero()
	mine.Set(last)
	pin := func(tid string) {
		if id, err := strconv.Atoi(tid); err == nil {
			_ = unix.SchedSetaffinity(id, &mine) // it may have ended
		}
	}
	threads, _ := filepath.Glob("/proc/self/task/*")
	for _, t := range threads {
		pin(filepath.Base(t))
	}
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), "napi/client-") {
			pin(filepath.Base(filepath.Dir(name)))
		}
	}
}

// There runs fn on the other host: sockets that it opens and programs that it
// starts are there, and stay.
func (n *Network) There(tb testing.TB, fn func()) {
	tb.Helper()
	if err := n.Away(func() error { fn(); return nil }); err != nil {
		tb.Fatalf("network: %v", err)
	}
}

// Away is There for whoever has no test.
func (n *Network) Away(fn func() error) error {
	runtime.LockOSThread()
	var mine unix.CPUSet
	here, err := ownNamespace()
	if err == nil && n.theirs.Count() > 0 {
		err = errors.Join(unix.SchedGetaffinity(0, &mine), unix.SchedSetaffinity(0, &n.theirs))
	}
	if err == nil {
		err = unix.Setns(n.there, unix.CLONE_NEWNET)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		// A thread that cannot come back stays locked, and ends with its goroutine.
		err := unix.Setns(here, unix.CLONE_NEWNET)
		if err == nil && n.theirs.Count() > 0 {
			err = unix.SchedSetaffinity(0, &mine)
		}
		if err == nil {
			runtime.UnlockOSThread()
		}
		_ = unix.Close(here)
	}()
	return fn()
}

func ownNamespace() (int, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("open", err)
}
