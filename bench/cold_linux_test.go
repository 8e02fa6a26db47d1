//go:build bench

package bench

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// writeCold writes a file and drops it from the page cache.
func writeCold(path string, b []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}
