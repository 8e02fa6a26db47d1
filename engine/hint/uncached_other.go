//go:build !linux

package hint

import (
	"io"
	"os"
)

func uncachedFile(f *os.File) io.ReaderAt { return f }
