package disk

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setDirect makes an open file bypass the page cache, and tries it: some file
// systems take the flag and refuse the read.
func setDirect(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	if err != nil {
		return os.NewSyscallError("O_DIRECT", err)
	}
	b := make([]byte, 2*minBlock)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % minBlock
	if _, err = unix.Pread(fd, b[skip:skip+minBlock], 0); err != nil {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
		return os.NewSyscallError("O_DIRECT pread", err)
	}
	return nil
}

func noReadAhead(fd int) { _ = unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM) }

func dropCache(fd int, off, n int64) { _ = unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) }

// populate takes the memory's pages now rather than at the first read into
// each, huge ones where there are some.
func populate(memory []byte) error {
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE)
	if err := unix.Madvise(memory, unix.MADV_POPULATE_WRITE); err != unix.EINVAL { // Linux before 5.14
		return err
	}
	return nil
}
