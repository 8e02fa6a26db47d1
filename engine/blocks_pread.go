package engine

import (
	"io"
	"time"

	"rtspshim/engine/hint"
)

// preadBlocks reads by plain preads, at once.
type preadBlocks struct {
	s      *Stream
	wants  []hint.Extent
	pieces hint.Pieces
	err    error
}

func (e *Engine) newBlocks(s *Stream) blocks { return &preadBlocks{s: s} }

func (b *preadBlocks) At(off int64, n int) []byte { return b.pieces.At(off, n) }
func (b *preadBlocks) Want(off, n int64)          { b.wants = append(b.wants, hint.Extent{Off: off, Len: n}) }
func (b *preadBlocks) Err() error                 { return b.err }
func (b *preadBlocks) Release()                   {}

func (b *preadBlocks) Read(time.Duration, time.Time) error {
	const block = 256 << 10
	var all hint.Pieces
	seen := map[int64]bool{}
	for _, p := range b.pieces {
		seen[p.Off] = true
		all = append(all, p)
	}
	for _, w := range b.wants {
		for off := w.Off / block * block; off < w.Off+w.Len; off += block {
			if seen[off] {
				continue
			}
			seen[off] = true
			buf := make([]byte, block)
			n, err := b.s.spec.File.ReadAt(buf, off)
			if err != nil && err != io.EOF {
				b.err = err
			}
			all = append(all, hint.Piece{Off: off, Bytes: buf[:n]})
		}
	}
	for i := range all {
		for k := i; k > 0 && all[k].Off < all[k-1].Off; k-- {
			all[k], all[k-1] = all[k-1], all[k]
		}
	}
	b.pieces, b.wants = all, nil
	b.s.fed()
	return nil
}
