// Package disk reads movie files for many streams in cycles: the disk half of
// the external I/O engine (Takeuchi, Le Moal, Bandoh, IPSJ 2003).
//
// Time is divided into cycles. What the streams send in cycle k+1 is read in
// cycle k: all they want is rounded to blocks, blocks in memory or wanted by
// another stream are not read again, the rest is sorted by file and place,
// joined into larger reads and handed to the disk a bounded number at a time.
// Blocks live in a fixed pool and are shared by all streams of a file.
//
//	s, err := disk.Open(disk.Config{Memory: 1 << 30})
//	f, err := s.OpenFile("movie.mp4")
//	st, err := s.OpenStream(f, disk.Demand{Rate: 250_000}, source) // or ErrDisk, ErrMemory
//	set := st.NewSet()                  // one interval of the movie
//	for each extent: set.Want(off, n)
//	err = set.Read(from, s.NextCycle(now))
//	// later source.Ready(set):         lent until Release
//	b := set.At(off, n)
//	set.Release()
//	st.Close(); f.Close(); s.Close()
//
// On Linux reads go through io_uring with O_DIRECT, past the page cache; where
// either is refused, and elsewhere, through goroutines and through the cache.
package disk

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"time"
)

// Errors of streams and sets; to be found with errors.Is.
var (
	ErrClosed  = errors.New("disk: closed")
	ErrDisk    = errors.New("disk: not enough disk bandwidth")
	ErrMemory  = errors.New("disk: not enough memory")
	ErrChanged = errors.New("disk: file changed while open")
	ErrBusy    = errors.New("disk: set is being read")
)

// ReadError says that a part of a file could not be read.
type ReadError struct {
	Name string
	Off  int64
	Err  error // io.ErrUnexpectedEOF where the file ends too early
}

func (e *ReadError) Error() string { return fmt.Sprintf("read %s at %d: %v", e.Name, e.Off, e.Err) }

func (e *ReadError) Unwrap() error { return e.Err }

// Mode says whether an optional feature of the system is used.
type Mode uint8

// The settings of a Mode.
const (
	Auto Mode = iota // where the system has it
	On               // Open or OpenFile fails where the system has it not
	Off              // never
)

// UnmarshalText reads "auto", "on" or "off".
func (m *Mode) UnmarshalText(text []byte) error {
	for _, v := range []Mode{Auto, On, Off} {
		if v.String() == string(text) {
			*m = v
			return nil
		}
	}
	return fmt.Errorf("mode %q: not auto, on or off", text)
}

func (m Mode) String() string { return [...]string{"auto", "on", "off"}[m%3] }

// Config sets up a Scheduler. The zero Config works.
type Config struct {
	// Memory is the size of the pool in bytes, all of it taken at Open, and
	// locked where io_uring is in use and permits; 0 is 256 MiB.
	Memory int64

	// BlockSize is the unit of reading and caching in bytes, a power of two
	// from 4 KiB to 1 MiB; 0 is 256 KiB.
	BlockSize int

	// MaxRead is the most one read fetches, in bytes; 0 is 1 MiB.
	MaxRead int

	// Cycle is the length of a cycle; 0 is 1 s.
	Cycle time.Duration

	// Depth is the number of reads the disk is given at once; 0 is 16. Half as
	// many more are allowed for streams that start.
	Depth int

	Uring  Mode // io_uring rather than a goroutine a read
	Direct Mode // O_DIRECT rather than reading through the page cache

	// Speed of the disk, for admission. A zero Bandwidth admits streams as long
	// as there is memory.
	Speed Speed

	FS     FS           // nil means the operating system's files
	Logger *slog.Logger // nil means slog.Default
}

const (
	minBlock = 4 << 10
	maxBlock = 1 << 20
	maxStuck = 64 // reads beyond the depth, while as many do not come back
)

func (c *Config) check() error {
	c.Memory = cmp.Or(c.Memory, 256<<20)
	c.BlockSize = cmp.Or(c.BlockSize, 256<<10)
	c.MaxRead = max(cmp.Or(c.MaxRead, 1<<20), c.BlockSize)
	c.Cycle = cmp.Or(c.Cycle, time.Second)
	c.Depth = cmp.Or(c.Depth, 16)
	switch {
	case bits.OnesCount(uint(c.BlockSize)) != 1 || c.BlockSize < minBlock || c.BlockSize > maxBlock:
		return fmt.Errorf("disk: block size %d: not a power of two from %d to %d", c.BlockSize, minBlock, maxBlock)
	case c.Memory < 4*int64(c.BlockSize) || c.Memory/int64(c.BlockSize) > 1<<30:
		return fmt.Errorf("disk: %d bytes of memory for blocks of %d", c.Memory, c.BlockSize)
	case c.Cycle < 10*time.Millisecond || c.Cycle > time.Minute:
		return fmt.Errorf("disk: cycle of %v: not from 10ms to 1m", c.Cycle)
	case c.Depth < 1 || c.Depth > 1024:
		return fmt.Errorf("disk: depth %d: not from 1 to 1024", c.Depth)
	case c.MaxRead > 16<<20:
		return fmt.Errorf("disk: reads of %d bytes: more than 16 MiB", c.MaxRead)
	}
	if c.FS == nil {
		c.FS = OS(c.Direct)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// Scheduler reads for all streams. Its methods may be called from anywhere.
type Scheduler struct {
	cfg    Config
	log    *slog.Logger
	epoch  time.Time // start of cycle 0
	mapped []byte    // the pool's memory
	files  files
	ring   *ring // nil when io_uring is not in use
	reads  preads

	post mailbox

	mu    sync.Mutex // held by run while it works
	core             // what run works on
	stats Stats
	times histogram // of reads

	stop    chan struct{}
	ended   chan struct{} // closed by run
	watched chan struct{} // closed by watch
	once    sync.Once
	closed  error // of Close
}

// Open takes the memory and starts a Scheduler.
func Open(c Config) (*Scheduler, error) {
	s, err := newScheduler(c)
	if err != nil {
		return nil, err
	}
	begun := make(chan error)
	go s.run(begun)
	if err := <-begun; err != nil { // the ring cannot be used after all
		err = errors.Join(fmt.Errorf("disk: io_uring: %w", err), s.ring.close(), unmapMemory(s.mapped))
		if c.Uring == On {
			return nil, err
		}
		s.log.Warn("disk: without io_uring", "err", err)
		c.Uring = Off
		return Open(c)
	}
	go s.watch()
	return s, nil
}

func newScheduler(c Config) (*Scheduler, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	memory, mapped, err := mapMemory(int(c.Memory / int64(c.BlockSize) * int64(c.BlockSize)))
	if err != nil {
		return nil, fmt.Errorf("disk: %d bytes of memory: %w", c.Memory, err)
	}
	s := &Scheduler{
		cfg: c, log: c.Logger, epoch: time.Now(), mapped: mapped,
		stop: make(chan struct{}), ended: make(chan struct{}), watched: make(chan struct{}),
	}
	s.files.init()
	slots := c.Depth + urgentDepth(c.Depth) + maxStuck
	uring := "off"
	if c.Uring != Off {
		if s.ring, err = openRing(memory, slots, c.MaxRead/c.BlockSize); err == nil {
			uring = s.ring.String()
		} else if uring = err.Error(); c.Uring == On {
			return nil, errors.Join(fmt.Errorf("disk: io_uring: %w", err), unmapMemory(mapped))
		}
	}
	s.reads.init(&s.post, slots)
	s.init(memory, slots)
	s.post.init(s.ring)
	s.log.Info("disk open", "memory", len(memory), "block", c.BlockSize, "cycle", c.Cycle, "depth", c.Depth,
		"io_uring", uring, "o_direct", c.Direct, "bandwidth", c.Speed.Bandwidth, "overhead", c.Speed.Overhead)
	return s, nil
}

// Close ends reading and gives everything back. All streams must be closed and
// all sets released; sets still lent, and reads that do not come back within
// two seconds, keep the pool in memory and are named in the error.
func (s *Scheduler) Close() error {
	s.once.Do(func() {
		close(s.stop)
		<-s.watched
		s.post.close()
		<-s.ended
		s.closed = s.free()
	})
	return s.closed
}

func (s *Scheduler) free() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := len(s.slots) - len(s.idle)
	lent := len(s.blocks) - len(s.heap)
	s.reads.close(lost == 0)
	err := s.files.close()
	if s.ring != nil {
		err = errors.Join(err, s.ring.close())
	}
	if lost > 0 || lent > 0 {
		return errors.Join(err, fmt.Errorf("disk: closed with %d reads under way and %d blocks in use", lost, lent))
	}
	return errors.Join(err, unmapMemory(s.mapped))
}

// NextCycle returns the start of the first cycle after t.
func (s *Scheduler) NextCycle(t time.Time) time.Time {
	return s.epoch.Add((t.Sub(s.epoch)/s.cfg.Cycle + 1) * s.cfg.Cycle)
}

// Cycle returns the length of a cycle.
func (s *Scheduler) Cycle() time.Duration { return s.cfg.Cycle }

// OpenFile opens a movie file for reading, shared with all who have the same
// one open: that is same device, inode, size and modification time. A file
// that replaces it under its name is another file.
func (s *Scheduler) OpenFile(name string) (*File, error) {
	return s.files.open(s, name)
}

// Opened is a file that somebody has open, opened once more, as OpenFile would,
// without asking the disk; nil if nobody has.
func (s *Scheduler) Opened(id Identity) *File {
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	f := s.files.all[id]
	if f == nil || f.handle == nil || s.files.closed {
		return nil
	}
	f.users++
	return f
}

// OpenStream admits one reader of f, for as long as it is open. Sets it has
// asked for are handed to to.Ready.
func (s *Scheduler) OpenStream(f *File, d Demand, to Receiver) (*Stream, error) {
	s.mu.Lock()
	err := s.ledger.admit(&f.share, d)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	st := &Stream{s: s, file: f, to: to, demand: d}
	st.quota = s.ledger.Blocks(d)
	s.files.hold(f)
	if !s.post.put(letter{op: opOpen, stream: st}) {
		s.files.letGo(s, f)
		return nil, ErrClosed
	}
	return st, nil
}
