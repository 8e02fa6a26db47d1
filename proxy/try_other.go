//go:build !linux

package proxy

import (
	"net"
	"slices"
	"syscall"
)

// tryWrite writes what the connection takes at once.
func tryWrite(fd uintptr, data net.Buffers) int {
	n, err := syscall.Write(int(fd), slices.Concat(data...))
	if err != nil {
		return 0
	}
	return n
}
