package proxy

import "syscall"

// trial is what a writer needs for writes that do not wait.
type trial struct {
	raw     syscall.RawConn // of the connection; nil where there is none
	asked   bool            // for raw
	attempt func(fd uintptr) bool
	data    []byte // of the attempt
	n       int    // written by it
	owed    []byte // the rest of frames that were begun
}

// TryFrames writes as much of whole interleaved frames to the client as its
// connection takes at once, and returns how much. It writes nothing where that
// would mean to wait for whoever writes, or for a body to be through, and where
// the connection is encrypted. The rest of frames that were begun is kept, and
// leaves before anything else does: with the next WriteFrames at the latest.
func (c *Conn) TryFrames(frames []byte) int {
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
	t.data, t.n = frames, 0
	if err := t.raw.Write(t.attempt); err != nil {
		t.n = 0
	}
	t.data = nil
	if t.n > 0 && t.n < len(frames) {
		t.owed = append([]byte(nil), frames[t.n:]...)
	}
	if t.n > 0 {
		c.bytesDown.Add(int64(len(frames)))
	}
	return t.n
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
		n, err := syscall.Write(int(fd), t.data)
		if err == nil {
			t.n = n
		}
		return true // not to be repeated when the connection takes more
	}
}
