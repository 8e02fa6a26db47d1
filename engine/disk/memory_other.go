//go:build !linux

package disk

import "golang.org/x/sys/unix"

// mapMemory maps memory outside of the Go heap.
func mapMemory(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

func unmapMemory(memory []byte) error { return unix.Munmap(memory) }
