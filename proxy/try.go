package proxy

import (
	"net"
	"slices"
	"syscall"
)

// trial is what a writer needs for writes that do not wait.
type trial struct {
	raw     syscall.RawConn // of the connection; nil where there is none
	asked   bool            // for raw
	attempt func(fd uintptr) bool
	data    net.Buffers // of the attempt
	n       int         // written by it
	owed    []byte      // the rest of frames that were begun
}

// TryFrames writes as much of whole interleaved frames to the client as its
// connection takes at once, and returns how much. It writes nothing where that
// would mean to wait for whoever writes, or for a body to be through, and where
// the connection is encrypted. The rest of frames that were begun is kept, and
// leaves before anything else does: with the next WriteFrames at the latest.
func (c *Conn) TryFrames(frames net.Buffers) int {
	w := &c.toClient
	if !w.mu.TryLock() {
		return 0
	}
	defer w.mu.Unlock()
	t := &w.try
	if !t.asked {
		t.ask(c)
	}
	if w.w == nil || w.closed || t.raw == nil || len(t.owed) > 0 {
		return 0
	}
	size := 0
	for _, p := range frames {
		size += len(p)
	}
	t.data, t.n = frames, 0
	if err := t.raw.Write(t.attempt); err != nil {
		t.n = 0
	}
	t.data = nil
	if t.n > 0 {
		t.owed = behind(frames, t.n)
		c.bytesDown.Add(int64(size))
	}
	return t.n
}

// behind is a copy of what lies behind the first n octets.
func behind(frames net.Buffers, n int) []byte {
	for i, p := range frames {
		if n < len(p) {
			return slices.Concat(append(net.Buffers{p[n:]}, frames[i+1:]...)...)
		}
		n -= len(p)
	}
	return nil
}

func (t *trial) ask(c *Conn) {
	t.asked = true
	tcp := below(c.client)
	if tcp == nil {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	t.raw = raw
	t.attempt = func(fd uintptr) bool {
		t.n = tryWrite(fd, t.data)
		return true // not to be repeated when the connection takes more
	}
}
