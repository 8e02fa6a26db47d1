package engine

import (
	"fmt"
	"time"

	"rtspshim/engine/hint"
)

// OpenMovie opens a hinted movie, shared with all who have the same file open.
// Its Close gives it back.
func (e *Engine) OpenMovie(path string) (*hint.File, error) {
	f, err := e.shelf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("engine: open movie: %w", err)
	}
	return f, nil
}

// First is the first packet of a track after a seek, as hinted.
type First struct {
	Place
	Time uint32 // RTP timestamp
	OK   bool   // false where nothing is left
}

// Firsts returns for each of the hint tracks the first packet that a Darwin
// server sends after a seek. It reads a second of the movie on its own.
func (e *Engine) Firsts(f *hint.File, tracks []uint32, at time.Duration) ([]First, error) {
	firsts := make([]First, len(tracks))
	for i, id := range tracks {
		var err error
		if firsts[i], err = behind(f, id, true, at, nil); err != nil {
			return nil, fmt.Errorf("engine: first packet at %v: %w", at, err)
		}
	}
	return firsts, nil
}

// behind returns the packet of a track that comes right behind a Place, or the
// first one from a time on.
func behind(f *hint.File, track uint32, asHinted bool, at time.Duration, last *Place) (First, error) {
	if t := f.Track(track); last != nil && t != nil {
		_, begun := t.Sample(last.Sample) // which may be before the packet is due
		at = min(begun, last.Due)
	}
	scan, err := f.Scan(f, hint.Config{Tracks: []uint32{track}, AsHinted: asHinted}, at)
	if err != nil {
		return First{}, err
	}
	for p := (hint.Packet{}); scan.Next(&p); {
		if last == nil || last.before(&p) {
			return First{placeOf(&p), p.Time, true}, nil
		}
	}
	return First{}, scan.Err()
}

func placeOf(p *hint.Packet) Place { return Place{p.Sample, p.Seq, p.Due} }

// before says whether a packet of the same track comes behind the Place. Within
// a sample the sequence numbers, as hinted, tell.
func (a *Place) before(p *hint.Packet) bool {
	return p.Sample > a.Sample || p.Sample == a.Sample && int16(p.Seq-a.Seq) > 0
}
