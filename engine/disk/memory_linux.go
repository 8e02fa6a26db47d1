package disk

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// mapMemory maps memory outside of the Go heap, on huge pages where the system
// gives them for the asking: fewer pages for the kernel to look up a read.
func mapMemory(size int) ([]byte, error) {
	// Over-long, so that it can start on a huge page.
	whole, err := unix.MmapPtr(-1, 0, nil, uintptr(size+hugePage), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	before := -uintptr(whole) & (hugePage - 1)
	if before > 0 {
		_ = unix.MunmapPtr(whole, before)
	}
	start := unsafe.Add(whole, before)
	_ = unix.MunmapPtr(unsafe.Add(start, size), hugePage-before)
	memory := unsafe.Slice((*byte)(start), size)
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE)
	// Now rather than at the first read of each page; Linux before 5.14 does
	// not know how (EINVAL).
	if err := unix.Madvise(memory, unix.MADV_POPULATE_WRITE); err != nil && err != unix.EINVAL {
		return nil, errors.Join(err, unmapMemory(memory))
	}
	return memory, nil
}

func unmapMemory(memory []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(memory)), uintptr(len(memory)))
}
