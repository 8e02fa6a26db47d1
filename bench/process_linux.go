package bench

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is what a process has used of the CPUs so far, all its threads, past
// ones too.
func cpuTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	// clock_getcpuclockid(3): the clock of a process is ~pid<<3 | CPUCLOCK_SCHED.
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is what a process has resident, in octets.
func memory(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, fmt.Errorf("/proc/%d/statm: %.40q", pid, b)
	}
	pages, err := strconv.ParseUint(f[1], 10, 64)
	return pages * uint64(os.Getpagesize()), err
}

// command is a process's name.
func command(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// machineTime is how long all CPUs together were busy and, of a virtual
// machine, held back (proc(5), /proc/stat).
func machineTime() (busy, stolen time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line))
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	for i, v := range f {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			continue
		}
		switch i {
		case 1, 2, 3, 6, 7: // user, nice, system, irq, softirq
			busy += time.Duration(n) * tick
		case 8:
			stolen += time.Duration(n) * tick
		}
	}
	return busy, stolen
}

// listener is the process on this machine that listens on a TCP address.
func listener(addr netip.AddrPort) (pid int, err error) {
	inodes := map[string]bool{}
	for _, name := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		if err := listening(name, addr, inodes); err != nil {
			return 0, err
		}
	}
	if len(inodes) == 0 {
		return 0, fmt.Errorf("nobody on this machine listens on %v", addr)
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && inodes[to] {
			return strconv.Atoi(strings.Split(l, "/")[2])
		}
	}
	return 0, fmt.Errorf("who listens on %v cannot be seen", addr)
}

// listening notes the sockets of a table that listen on addr, as "socket:[n]".
func listening(name string, addr netip.AddrPort, into map[string]bool) error {
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return nil // no IPv6
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		c := strings.Fields(lines.Text())
		if len(c) < 10 || c[3] != "0A" { // TCP_LISTEN
			continue
		}
		host, port, _ := strings.Cut(c[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		if err != nil || uint16(n) != addr.Port() {
			continue
		}
		ip, ok := hexAddr(host)
		if ok && (ip == addr.Addr() || ip.IsUnspecified()) {
			into["socket:["+c[9]+"]"] = true
		}
	}
	return nil
}

// hexAddr reads an address of /proc/net/tcp: 32-bit words in the byte order of
// the machine.
func hexAddr(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	ip, ok := netip.AddrFromSlice(b)
	return ip.Unmap(), ok
}

// machine is the machine in words.
func machine() (cpu, kernel string) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value), kernel
		}
	}
	return "", kernel
}
