package movie

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/Eyevinn/mp4ff/bits"
	"github.com/Eyevinn/mp4ff/mp4"
)

// Boxes of the movie are carried over byte for byte, so they are handled raw.
// Only what is needed from one is decoded, by mp4ff.

type rawBox struct {
	kind string
	all  []byte // with its header
	body []byte
}

// split cuts a row of boxes apart.
func split(b []byte) ([]rawBox, error) {
	var all []rawBox
	for len(b) >= 8 && binary.BigEndian.Uint64(b) != 0 { // QuickTime ends udta with a zero word
		size, head := uint64(binary.BigEndian.Uint32(b)), uint64(8)
		switch {
		case size == 0:
			size = uint64(len(b))
		case size == 1 && len(b) >= 16:
			size, head = binary.BigEndian.Uint64(b[8:]), 16
		}
		if size < head || size > uint64(len(b)) {
			return nil, fmt.Errorf("box %q of %d bytes in %d", b[4:8], size, len(b))
		}
		all = append(all, rawBox{string(b[4:8]), b[:size], b[head:size]})
		b = b[size:]
	}
	return all, nil
}

// find returns the body of the first box along the path, nil when there is none.
func find(b []byte, path ...string) []byte {
	if c := findBox(b, path...); c != nil {
		return c.body
	}
	return nil
}

func findBox(b []byte, path ...string) *rawBox {
	boxes, err := split(b)
	if err != nil {
		return nil
	}
	for i := range boxes {
		if boxes[i].kind != path[0] {
			continue
		}
		if len(path) == 1 {
			return &boxes[i]
		}
		return findBox(boxes[i].body, path[1:]...)
	}
	return nil
}

// decode decodes one box with mp4ff; nil of the type wanted when it is not
// there.
func decode[T mp4.Box](b *rawBox) (t T, err error) {
	if b == nil {
		return t, nil
	}
	defer func() { // it does not check all it reads
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", b.kind, p)
		}
	}()
	box, err := mp4.DecodeBoxSR(0, bits.NewFixedSliceReader(b.all))
	if err != nil {
		return t, fmt.Errorf("%s: %w", b.kind, err)
	}
	t, ok := box.(T)
	if !ok {
		return t, fmt.Errorf("%s: decoded as %T", b.kind, box)
	}
	return t, nil
}

func u16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func u32(v int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }
func u64(v int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }

func cat(p ...[]byte) []byte { return bytes.Join(p, nil) }

func box(kind string, p ...[]byte) []byte {
	b := cat(p...)
	return cat(u32(8+len(b)), []byte(kind), b)
}

// full makes a full box of version 0 (ISO/IEC 14496-12, 4.2).
func full(kind string, flags int, p ...[]byte) []byte {
	return box(kind, append([][]byte{u32(flags)}, p...)...)
}

// offsets makes the box of chunk offsets, in 32 bits if they fit.
func offsets(at []int64) []byte {
	wide := false
	for _, o := range at {
		wide = wide || o >= 1<<32
	}
	rows := make([]byte, 0, 8*len(at))
	for _, o := range at {
		if wide {
			rows = binary.BigEndian.AppendUint64(rows, uint64(o))
		} else {
			rows = binary.BigEndian.AppendUint32(rows, uint32(o))
		}
	}
	kind := map[bool]string{false: "stco", true: "co64"}[wide]
	return full(kind, 0, u32(len(at)), rows)
}

// chunkRuns makes stsc from the number of samples in each chunk.
func chunkRuns(per []int) []byte {
	var rows []byte
	n, last := 0, -1
	for i, k := range per {
		if k != last {
			rows = words(rows, uint32(i+1), uint32(k), 1)
			n, last = n+1, k
		}
	}
	return full("stsc", 0, u32(n), rows)
}

// timeRuns makes stts from the duration of each sample.
func timeRuns(delta []int64) []byte {
	var rows []byte
	n := 0
	for i := 0; i < len(delta); n++ {
		k := i
		for k < len(delta) && delta[k] == delta[i] {
			k++
		}
		rows = words(rows, uint32(k-i), uint32(delta[i]))
		i = k
	}
	return full("stts", 0, u32(n), rows)
}

func words(b []byte, v ...uint32) []byte {
	for _, x := range v {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return b
}
