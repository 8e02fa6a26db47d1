package wire

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// enterNamespace gives the calling test a thread and a network namespace of its
// own, whose loopback device has that MTU. Both end with the test's goroutine.
func enterNamespace(t *testing.T, mtu uint32) {
	t.Helper()
	runtime.LockOSThread() // and never unlock
	err := unix.Unshare(unix.CLONE_NEWNET)
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs root, for a network namespace")
	}
	if err != nil {
		t.Fatal("unshare:", err)
	}
	if err := loopbackUp(mtu); err != nil {
		t.Fatal("loopback:", err)
	}
}

func loopbackUp(mtu uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request := func(op uint, value uint32) error {
		r, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		if op == unix.SIOCSIFFLAGS {
			r.SetUint16(uint16(value))
		} else {
			r.SetUint32(value)
		}
		return unix.IoctlIfreq(fd, op, r)
	}
	return errors.Join(request(unix.SIOCSIFMTU, mtu), request(unix.SIOCSIFFLAGS, unix.IFF_UP))
}
