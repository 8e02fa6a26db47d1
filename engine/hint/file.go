package hint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// File is an open movie with its file. Close gives it back.
type File struct {
	*Movie
	io.ReaderAt

	info  os.FileInfo
	file  *os.File
	shelf *Shelf // nil when opened alone
	users int

	rates  sync.Mutex
	window time.Duration
	most   map[*Track]int64 // bytes in a window
}

// Open opens a movie file and reads its tables.
func Open(name string) (*File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err == nil {
		r := uncachedFile(f)
		var m *Movie
		if m, err = Read(r, st.Size(), name); err == nil {
			return &File{Movie: m, ReaderAt: r, info: st, file: f}, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// Info describes the file as it was when it was opened.
func (f *File) Info() os.FileInfo { return f.info }

// Identity is a text that is the same as long as the file is: its path, size,
// modification time and, where the system has them, device and inode.
func (f *File) Identity() string {
	id := fmt.Sprintf("%s %d %d", f.Name, f.info.Size(), f.info.ModTime().UnixNano())
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok {
		id += fmt.Sprintf(" %d:%d", st.Dev, st.Ino)
	}
	return id
}

// Close ends one use of the file; the last one closes it.
func (f *File) Close() error {
	if s := f.shelf; s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.users--; f.users > 0 {
			return nil
		}
		if s.files[f.Name] == f {
			delete(s.files, f.Name)
		}
	}
	return f.file.Close()
}

// Shelf keeps the movies in use open, so that all viewers of a movie share its
// tables. The zero Shelf is ready to use.
type Shelf struct {
	mu    sync.Mutex
	files map[string]*File
}

// Open returns the movie file, shared with whoever has it open already unless
// the file has changed since. Each Open needs a Close of what it returned.
func (s *Shelf) Open(name string) (*File, error) {
	if f := s.take(name); f != nil {
		return f, nil
	}
	// Opened without the lock: a slow disk holds up only who waits for it. Of
	// two that open a movie at once one gives up its own.
	f, err := Open(name)
	if err != nil {
		return nil, err
	}
	if g := s.take(name); g != nil {
		return g, f.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]*File{}
	}
	f.shelf, f.users = s, 1
	s.files[name] = f // who has an older one plays that to its end
	return f, nil
}

// take returns the movie if it is open and still the file of that name.
func (s *Shelf) take(name string) *File {
	st, err := os.Stat(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[name]
	if err != nil || f == nil || !os.SameFile(st, f.info) ||
		st.Size() != f.info.Size() || !st.ModTime().Equal(f.info.ModTime()) {
		return nil
	}
	f.users++
	return f
}
