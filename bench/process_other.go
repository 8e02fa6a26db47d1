//go:build !linux

package bench

import (
	"errors"
	"net/netip"
	"runtime"
	"time"
)

var errLinux = errors.New("known on Linux only")

func cpuTime(int) (time.Duration, error)           { return 0, errLinux }
func memory(int) (uint64, error)                   { return 0, errLinux }
func command(int) string                           { return "?" }
func machineTime() (busy, stolen time.Duration)    { return 0, 0 }
func listener(netip.AddrPort) (pid int, err error) { return 0, errLinux }
func machine() (cpu, kernel string)                { return runtime.GOARCH, runtime.GOOS }
