package engine

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"rtspshim/engine/disk"
	"rtspshim/engine/hint"
)

const maxPlaces = 8 // of a file that a Stream reads from at a time

// admit makes room for a Stream at the disk, in memory and on the network, for
// its whole length, or says what is short.
func (e *Engine) admit(s *Stream) error {
	d, err := e.openDisk()
	if err != nil {
		return err
	}
	id := disk.IdentityOf(s.spec.File.Info())
	f := d.Opened(id)
	if f == nil {
		f, err = d.OpenFile(s.spec.File.Name)
	}
	if errors.Is(err, disk.ErrClosed) {
		return ErrClosed
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if f.Identity() != id {
		return fmt.Errorf("%s: %w", s.spec.File.Name, disk.ErrChanged)
	}
	demand, err := e.demand(s)
	if err != nil {
		return err
	}
	s.bits = 8 * demand.Rate
	demand.Rate = int64(float64(demand.Rate) * (1 + s.spec.Ahead.Growth))
	s.source.file, err = d.OpenStream(f, demand, (*receiver)(s))
	if errors.Is(err, disk.ErrDisk) || errors.Is(err, disk.ErrMemory) {
		return fmt.Errorf("%w: %w", ErrAdmission, err)
	}
	if err != nil {
		return err
	}
	if err := e.enter(s); err != nil {
		s.source.file.Close()
		return err
	}
	return nil
}

// demand is what a Stream needs of the disk: the most that it reads in a cycle,
// and from how many places of the file at a time.
func (e *Engine) demand(s *Stream) (disk.Demand, error) {
	config := hint.Config{Gap: 256 << 10}
	for _, t := range s.spec.Tracks {
		config.Tracks = append(config.Tracks, t.Track)
	}
	r, err := s.spec.File.Reader(config)
	if err != nil {
		return disk.Demand{}, err
	}
	var c hint.Cycle
	r.Seek(s.spec.From)
	if err := r.Plan(&c, s.spec.From+e.config.CycleTime); err != nil {
		return disk.Demand{}, err
	}
	return disk.Demand{
		Rate:   s.spec.File.Rate(config.Tracks, e.config.CycleTime),
		Places: min(len(c.Extents), maxPlaces),
	}, nil
}

// enter takes an admitted Stream in.
func (e *Engine) enter(s *Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	if b := e.config.Bandwidth; b > 0 && e.used+s.bits > b {
		return fmt.Errorf("%w: network: %d bit/s in use, %d more wanted, of %d", ErrAdmission, e.used, s.bits, b)
	}
	e.used += s.bits
	s.pump = slices.MinFunc(e.pumps, func(a, b *pump) int { return cmp.Compare(a.plays.Load(), b.plays.Load()) })
	s.pump.plays.Add(1)
	e.streams[s] = struct{}{}
	return nil
}

// release gives a Stream's room back.
func (e *Engine) release(s *Stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.pump.plays.Add(-1)
	e.used -= s.bits
	e.underruns += s.underruns
	delete(e.streams, s)
}

// OpenDisk takes the memory of the block pool, which may last some tenths of a
// second. Without it the first Stream does, and its viewer waits for that.
func (e *Engine) OpenDisk() error {
	_, err := e.openDisk()
	return err
}

func (e *Engine) openDisk() (*disk.Scheduler, error) {
	e.library.Lock()
	defer e.library.Unlock()
	if e.disk != nil {
		return e.disk, nil
	}
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	c := &e.config
	d, err := disk.Open(disk.Config{
		Memory: c.Memory, Cycle: c.CycleTime, Uring: c.Uring, Direct: c.Direct, Logger: e.log,
		Speed: disk.Speed{Bandwidth: c.DiskBandwidth, Overhead: c.DiskOverhead},
	})
	if err != nil {
		return nil, err
	}
	e.disk = d
	return d, nil
}

// DiskStats tells what the disk has done; zero as long as there was no Stream.
func (e *Engine) DiskStats() disk.Stats {
	e.library.Lock()
	defer e.library.Unlock()
	if e.disk == nil {
		return disk.Stats{}
	}
	return e.disk.Stats()
}

func (e *Engine) closeDisk() error {
	e.library.Lock()
	defer e.library.Unlock()
	if e.disk == nil {
		return nil
	}
	return e.disk.Close()
}

// MeasureDisk reads here and there in the files of a folder for a moment, and
// returns what admission may count on: four fifths of the bandwidth reached, in
// bytes a second, and the overhead of a read.
func MeasureDisk(dir string) (bandwidth int64, overhead time.Duration, err error) {
	const most, limit = 64, 300 * time.Millisecond
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("measure the disk: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && len(names) < most {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	if len(names) == 0 {
		return 0, 0, fmt.Errorf("measure the disk: no files in %q", dir)
	}
	speed, err := disk.Calibrate(disk.OS(disk.Auto), names, limit)
	return speed.Bandwidth / 5 * 4, speed.Overhead, err
}
