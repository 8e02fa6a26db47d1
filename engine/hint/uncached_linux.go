package hint

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// uncached is a file whose reading leaves in the page cache what was there, and
// nothing else, where the kernel and the file system know how (RWF_DONTCACHE,
// Linux 6.14): the engine has memory of its own, this one is the upstream's.
type uncached struct {
	*os.File
	conn    syscall.RawConn
	refused atomic.Bool
}

func uncachedFile(f *os.File) io.ReaderAt {
	conn, err := f.SyscallConn()
	if err != nil {
		return f
	}
	_ = conn.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), 0, 0, unix.FADV_RANDOM) }) // nothing is read ahead
	return &uncached{File: f, conn: conn}
}

func (u *uncached) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) && !u.refused.Load() {
		var k int
		if closed := u.conn.Control(func(fd uintptr) {
			k, err = unix.Preadv2(int(fd), [][]byte{b[n:]}, off+int64(n), unix.RWF_DONTCACHE)
		}); closed != nil {
			err = closed
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // EOPNOTSUPP; any other one is had again below
			u.refused.Store(true)
		case k == 0:
			return n, io.EOF
		}
		n += max(k, 0)
	}
	if n == len(b) {
		return n, nil
	}
	k, err := u.File.ReadAt(b[n:], off+int64(n))
	return n + k, err
}
