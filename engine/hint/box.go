package hint

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The boxes are walked here and not by a general parser, for three reasons:
// an error must name the box and its offset in the file, the sample tables
// must go straight from the file's bytes into their compact form (a general
// parser's []uint32 and []uint64 would cost several times the memory of an open
// movie), and QuickTime's own forms (udta ended by a zero word, gmhd instead
// of hmhd, sound descriptions of version 1) must pass.

const (
	maxTopBoxes = 10_000    // boxes looked at before moov is found
	maxBoxes    = 100_000   // boxes looked at inside moov
	maxMoov     = 256 << 20 // bytes of moov
	maxTracks   = 256
	maxSDP      = 64 << 10 // bytes of one hnti text
)

// FormatError says what is wrong with a movie file, and where.
type FormatError struct {
	File string // as given to Read or Open
	Box  string // path of the box, or the hint sample and packet
	Off  int64  // offset in the file, in bytes
	Msg  string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s: %s at %d: %s", e.File, e.Box, e.Off, e.Msg)
}

// box is one box of moov, which is held in memory while it is read.
type box struct {
	kind string
	path string
	off  int64  // of the box in the file
	body []byte // without the header
	at   int64  // offset of body in the file
}

func (p *parser) errorf(b box, format string, a ...any) error {
	return &FormatError{p.name, b.path, b.off, fmt.Sprintf(format, a...)}
}

// header decodes a box header (ISO/IEC 14496-12, 4.2) from b, which holds at
// least 8 bytes or all that is left; left is what remains of the enclosing box.
func header(b []byte, left int64) (kind string, head, size int64, err error) {
	size, head = int64(binary.BigEndian.Uint32(b)), 8
	kind = string(b[4:8])
	switch size {
	case 0: // to the end of what encloses it
		size = left
	case 1:
		if len(b) < 16 {
			return kind, head, size, fmt.Errorf("64-bit size cut off")
		}
		if u := binary.BigEndian.Uint64(b[8:]); u < 1<<62 {
			size, head = int64(u), 16
		} else {
			return kind, head, size, fmt.Errorf("size %d", u)
		}
	}
	if size < head {
		return kind, head, size, fmt.Errorf("size %d is less than its header", size)
	}
	if size > left {
		return kind, head, size, fmt.Errorf("size %d, but only %d bytes are left", size, left)
	}
	return kind, head, size, nil
}

type parser struct {
	name  string
	boxes int // seen inside moov
}

// each calls f for every box inside b. A rest of less than a header, or a
// zero word (QuickTime ends udta so), ends it.
func (p *parser) each(b box, f func(box) error) error {
	for o := int64(0); o+8 <= int64(len(b.body)); {
		rest := b.body[o:]
		if binary.BigEndian.Uint64(rest) == 0 {
			return nil
		}
		kind, head, size, err := header(rest, int64(len(rest)))
		c := box{kind: kind, path: b.path + "/" + kind, off: b.at + o}
		if err != nil {
			return p.errorf(c, "%v", err)
		}
		if p.boxes++; p.boxes > maxBoxes {
			return p.errorf(c, "more than %d boxes", maxBoxes)
		}
		c.body, c.at = rest[head:size], c.off+head
		if err := f(c); err != nil {
			return err
		}
		o += size
	}
	return nil
}

// need checks that the body has n bytes.
func (p *parser) need(b box, n int) error {
	if len(b.body) < n {
		return p.errorf(b, "%d bytes, needs %d", len(b.body), n)
	}
	return nil
}

// table checks that a full box holds the count at offset o and count entries
// of size bytes each after it, and returns the entries.
func (p *parser) table(b box, o, size int) ([]byte, int, error) {
	if err := p.need(b, o+4); err != nil {
		return nil, 0, err
	}
	n := int64(binary.BigEndian.Uint32(b.body[o:]))
	rest := b.body[o+4:]
	if n*int64(size) > int64(len(rest)) {
		return nil, 0, p.errorf(b, "%d entries of %d bytes in %d bytes", n, size, len(rest))
	}
	return rest[:n*int64(size)], int(n), nil
}

// findMoov reads the movie box of a file of size bytes.
func (p *parser) findMoov(r io.ReaderAt, size int64) (box, error) {
	var h [16]byte
	b := box{kind: "file", path: "file"}
	for n := 0; b.off+8 <= size; n++ {
		if n == maxTopBoxes {
			return b, p.errorf(b, "no moov among the first %d boxes", n)
		}
		hb := h[:min(16, size-b.off)]
		if _, err := r.ReadAt(hb, b.off); err != nil {
			return b, fmt.Errorf("%s: read box header at %d: %w", p.name, b.off, err)
		}
		kind, head, n, err := header(hb, size-b.off)
		b.kind, b.path = kind, kind
		if kind != "moov" && err == nil {
			b.off += n
			continue
		}
		if kind == "mdat" {
			// cut short: whatever follows it is not there
			return b, p.errorf(b, "%v, and no moov before it", err)
		}
		if err != nil {
			return b, p.errorf(b, "%v", err)
		}
		if n > maxMoov {
			return b, p.errorf(b, "%d bytes, at most %d are read", n, maxMoov)
		}
		b.body, b.at = make([]byte, n-head), b.off+head
		if _, err := r.ReadAt(b.body, b.at); err != nil {
			return b, fmt.Errorf("%s: read moov at %d: %w", p.name, b.off, err)
		}
		return b, nil
	}
	return box{}, &FormatError{p.name, "file", b.off, "no moov box: not a movie, or cut short"}
}
