package proxy

import (
	"net"
	"sync"
	"syscall"
	"unsafe"
)

// tryPieces leave in one system call. A write has some tens.
const tryPieces = 256

// vectors are memory for a write; between writes they hold nothing.
var vectors = sync.Pool{New: func() any { return new([tryPieces]syscall.Iovec) }}

// tryWrite writes what the connection takes at once, from where it lies. The
// runtime does not hear of the system calls, which do not wait: it would take
// the processor away in some of the longer ones, and then look for more every
// few dozen microseconds, which was a fifth of what movies over TCP cost.
func tryWrite(fd uintptr, data net.Buffers) (written int) {
	iovs := vectors.Get().(*[tryPieces]syscall.Iovec)
	defer vectors.Put(iovs)
	for len(data) > 0 {
		n, size := 0, 0
		for ; n < len(data) && n < tryPieces; n++ {
			iovs[n].Base = unsafe.SliceData(data[n])
			iovs[n].SetLen(len(data[n]))
			size += len(data[n])
		}
		got, _, errno := syscall.RawSyscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(iovs)), uintptr(n))
		clear(iovs[:n])
		if errno != 0 {
			return written
		}
		if written += int(got); int(got) < size {
			return written
		}
		data = data[n:]
	}
	return written
}
