package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FS opens files. Tests wrap it to let files fail, or be slow.
type FS interface {
	Open(name string) (Handle, error)
}

// Handle is an open file. ReadAt may be called by many goroutines at once; the
// scheduler reads whole blocks into page-aligned memory only. A Handle of OS
// can do more than this, and is read through io_uring for it; a wrapper that
// embeds the interface is read by ReadAt.
type Handle interface {
	io.ReaderAt
	io.Closer
	Identity() (Identity, error)
}

// Identity tells files apart: the same one has the same content, as far as
// anybody keeps time stamps right.
type Identity struct {
	Device, Inode uint64
	Size          int64 // bytes
	Modified      int64 // Unix time in nanoseconds
}

// IdentityOf returns the identity of the file that info is of.
func IdentityOf(info fs.FileInfo) Identity {
	id := Identity{Size: info.Size(), Modified: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.Device, id.Inode = uint64(st.Dev), st.Ino //nolint:unconvert // signed on other systems
	}
	return id
}

// OS returns the operating system's files, opened for O_DIRECT as mode says.
func OS(direct Mode) FS { return osFS{direct} }

type osFS struct{ direct Mode }

// osFile is a file read past the page cache (direct), or through it, leaving
// nothing there.
type osFile struct {
	f      *os.File
	fd     int
	direct bool
	why    error // not direct
}

func (o osFS) Open(name string) (Handle, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	h := &osFile{f: f, fd: int(f.Fd())}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err == nil && o.direct != Off {
		h.why = setDirect(h.fd)
		h.direct = h.why == nil
		if o.direct == On {
			err = h.why
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !h.direct {
		noReadAhead(h.fd)
	}
	return h, nil
}

func (h *osFile) Close() error { return h.f.Close() }

func (h *osFile) Identity() (Identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return Identity{}, os.NewSyscallError("fstat", err)
	}
	return Identity{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano()}, nil //nolint:unconvert // signed on other systems
}

func (h *osFile) ReadAt(b []byte, off int64) (int, error) {
	return h.readAt([][]byte{b}, off)
}

// readAt reads as ReadAt, into several pieces of memory.
func (h *osFile) readAt(to [][]byte, off int64) (n int, err error) {
	for {
		n, err = unix.Preadv(h.fd, to, off)
		if err != unix.EINTR {
			break
		}
	}
	h.forget(off, n)
	if err != nil {
		return 0, os.NewSyscallError("preadv", err)
	}
	want := 0
	for _, b := range to {
		want += len(b)
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// forget drops from the page cache what was read through it: blocks are kept
// in the pool, once is enough.
func (h *osFile) forget(off int64, n int) {
	if !h.direct && n > 0 {
		dropCache(h.fd, off, int64(n))
	}
}

// File is an open movie file, shared by its streams.
type File struct {
	name  string
	id    uint64 // of this File in the pool; never used again
	ident Identity
	gone  atomic.Bool // changed while open

	// Guarded by files.mu.
	users  int    // opened, streams, and the watch
	handle Handle // nil when there are no users

	// Belong to Scheduler.run, under its mu.
	share    share
	lanes    [lanes]lane
	inQueue  [lanes]bool
	under    [lanes]int // reads under way, without those that are stuck
	stuck    int        // reads that take too long: no others are begun
	blocks   int        // in the pool
	pinned   int        // of them, those that are held or being read
	owed     int        // more that its streams may come to want
	promised int        // of them, those that are kept for them
	readers  []*Stream  // playing, by phase
	moved    bool       // they came, went or sought: the keys of blocks are out of date
	unused   bool       // perhaps to be closed when nothing is under way
	reg      int32      // place among the ring's registered files, none when it has not
	tried    bool       // to get one
	late     int        // underruns in this cycle
	worst    time.Duration

	os *osFile // the handle, nil when it is of another kind
	s  *Scheduler
}

// Name is the name the file was opened under first.
func (f *File) Name() string { return f.name }

// Identity is that of the file at the time it was opened.
func (f *File) Identity() Identity { return f.ident }

// Size is in bytes.
func (f *File) Size() int64 { return f.ident.Size }

// Direct reports whether the file is read past the page cache.
func (f *File) Direct() bool { return f.os != nil && f.os.direct }

// Err returns ErrChanged when the file was written to since it was opened: what
// was read in the last cycle may be of either version. It is looked at four
// times a cycle.
func (f *File) Err() error {
	if f.gone.Load() {
		return fmt.Errorf("%s: %w", f.name, ErrChanged)
	}
	return nil
}

// Close ends one use. The streams of the file go on to their own end.
func (f *File) Close() error {
	f.s.files.letGo(f.s, f)
	return nil
}

// files are all that are open, or have blocks in the pool.
type files struct {
	mu     sync.Mutex
	all    map[Identity]*File
	next   uint64
	said   bool // that O_DIRECT is refused
	closed bool
}

func (fs *files) init() { fs.all = map[Identity]*File{} }

func (fs *files) open(s *Scheduler, name string) (*File, error) {
	h, err := s.cfg.FS.Open(name)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	ident, err := h.Identity()
	if err == nil && ident.Size <= 0 {
		err = errors.New("empty file")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("disk: %s: %w", name, err), h.Close())
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return nil, errors.Join(ErrClosed, h.Close())
	}
	f := fs.all[ident]
	if f == nil {
		fs.next++
		f = &File{name: name, id: fs.next, ident: ident, s: s, reg: none}
		f.share.init(&s.cfg, ident.Size)
		for l := range f.lanes {
			f.lanes[l] = lane{none, none}
		}
		fs.all[ident] = f
	}
	f.users++
	if f.handle != nil {
		return f, h.Close()
	}
	f.handle = h
	f.os, _ = h.(*osFile)
	if f.os != nil && f.os.why != nil && !fs.said {
		fs.said = true
		s.log.Warn("disk: read through the page cache", "file", name, "err", f.os.why)
	}
	return f, nil
}

func (fs *files) hold(f *File) {
	fs.mu.Lock()
	f.users++
	fs.mu.Unlock()
}

// letGo ends one use; run closes the file after the last.
func (fs *files) letGo(s *Scheduler, f *File) {
	fs.mu.Lock()
	f.users--
	last := f.users == 0
	fs.mu.Unlock()
	if last {
		s.post.put(letter{op: opIdle, file: f}) // when closed: closed by now
	}
}

// retire closes a file nobody uses, and forgets it when nothing of it is in the
// pool either: who comes back soon finds its blocks.
func (fs *files) retire(s *Scheduler, f *File) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.users > 0 {
		f.unused = false
		return
	}
	if f.under[urgent]+f.under[batch]+f.stuck > 0 {
		return
	}
	f.unused = false
	if f.handle != nil {
		if f.reg != none {
			s.ring.unregister(f.reg)
		}
		if err := f.handle.Close(); err != nil {
			s.log.Error("disk: close", "file", f.name, "err", err)
		}
		f.handle, f.os, f.reg, f.tried = nil, nil, none, false
	}
	if f.blocks == 0 && fs.all[f.ident] == f {
		delete(fs.all, f.ident)
	}
}

func (fs *files) close() (err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for _, f := range fs.all {
		if f.handle != nil && f.under[urgent]+f.under[batch]+f.stuck == 0 {
			err = errors.Join(err, f.handle.Close())
			f.handle = nil
		}
	}
	return err
}

// watch looks for files that were written to while open. It has a goroutine of
// its own because a file system may take its time to answer.
func (s *Scheduler) watch() {
	defer close(s.watched)
	t := time.NewTicker(s.cfg.Cycle / 4)
	defer t.Stop()
	var open []*File
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		s.files.mu.Lock()
		open = open[:0]
		for _, f := range s.files.all {
			if f.handle != nil && !f.gone.Load() {
				f.users++
				open = append(open, f)
			}
		}
		s.files.mu.Unlock()
		for _, f := range open {
			if now, err := f.handle.Identity(); err == nil && now != f.ident {
				f.gone.Store(true)
				s.log.Warn("disk: file changed while open", "file", f.name, "size", now.Size, "was", f.ident.Size)
			}
			s.files.letGo(s, f)
		}
		clear(open)
	}
}

// seat finds a stream's place among the readers: those furthest on come first.
func (f *File) seat(st *Stream) (int, bool) {
	return slices.BinarySearchFunc(f.readers, st, func(a, b *Stream) int {
		return cmp.Or(cmp.Compare(a.phase, b.phase), cmp.Compare(a.age, b.age))
	})
}

// nextUse returns when the part of the movie at the time at is needed again:
// by the stream that is the least behind it. Of streams that go on playing.
func (f *File) nextUse(at, now time.Duration) (time.Duration, bool) {
	lo, hi := 0, len(f.readers)
	for lo < hi {
		if mid := (lo + hi) / 2; f.readers[mid].phase < now-at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(f.readers) {
		return 0, false
	}
	return at + f.readers[lo].phase, true
}
