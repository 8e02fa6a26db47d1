package hint

import (
	"fmt"
	"io"
	"slices"
	"time"
)

const (
	scanStep   = time.Second
	scanRounds = 8 // times a cycle may ask for more
)

// Scanner yields the packets of a movie one after the other: a Reader with
// buffers of its own over an io.ReaderAt.
type Scanner struct {
	r       io.ReaderAt
	rd      *Reader
	c       Cycle
	extents []Extent
	data    Pieces
	memory  []byte // of the data
	err     error
}

// Scan reads the movie from the time on, out of the file r it was read from.
func (m *Movie) Scan(r io.ReaderAt, cfg Config, from time.Duration) (*Scanner, error) {
	rd, err := m.Reader(cfg)
	if err != nil {
		return nil, err
	}
	rd.Seek(from)
	return &Scanner{r: r, rd: rd}, nil
}

// Next takes the next packet, false at the end of the movie or on an error.
// The payload is valid until the next call to Next.
func (s *Scanner) Next(p *Packet) bool {
	for !s.c.Next(p) {
		if s.err != nil || !s.rd.More() {
			return false
		}
		if s.err = s.cycle(); s.err != nil {
			return false
		}
	}
	return true
}

// Err returns what ended the scan, nil at the end of the movie.
func (s *Scanner) Err() error { return s.err }

func (s *Scanner) cycle() error {
	to := max(s.rd.From(), s.rd.Upcoming()) // nothing is due in a gap
	if err := s.rd.Plan(&s.c, to+min(scanStep, 1<<63-1-to)); err != nil {
		return err
	}
	s.extents = s.extents[:0]
	for range scanRounds {
		if err := s.read(s.c.Extents); err != nil {
			return err
		}
		if ok, err := s.rd.Load(&s.c, s.data); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: the hints of %v to %v ask for ever more data", s.rd.m.Name, s.c.From, s.c.To)
}

// read adds the extents to the data. It reads all of it again, rather than
// piece the old and the new together: more is seldom asked for.
func (s *Scanner) read(more []Extent) error {
	s.extents = merge(append(s.extents, more...), s.rd.cfg.Gap)
	s.data = s.data[:0]
	size := int64(0)
	for _, e := range s.extents {
		size += e.Len
	}
	s.memory = slices.Grow(s.memory[:0], int(size))
	for _, e := range s.extents {
		at := len(s.memory)
		s.memory = s.memory[:at+int(e.Len)]
		b := s.memory[at:]
		if _, err := s.r.ReadAt(b, e.Off); err != nil {
			return fmt.Errorf("%s: read %d bytes at %d: %w", s.rd.m.Name, e.Len, e.Off, err)
		}
		s.data = append(s.data, Piece{e.Off, b})
	}
	return nil
}
