package movie

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/Eyevinn/mp4ff/mp4"

	"rtspshim/engine/hint"
)

// ErrHinted is returned for a movie that has hint tracks already.
var ErrHinted = errors.New("already has hint tracks")

// HintConfig says how a movie is hinted. The zero HintConfig will do.
type HintConfig struct {
	// MTU is the largest IP datagram a packet may need; 0 is 1,500 bytes. An
	// IPv6 header, UDP and RTP take 60 of them.
	MTU int

	// Chunk is how much of a track lies together before the other tracks'
	// turn comes; 0 is half a second.
	Chunk time.Duration

	// Again drops hint tracks that are there, instead of ErrHinted.
	Again bool

	// Progress is told how many bytes of the movie were copied; may be nil.
	Progress func(done, total int64)
}

const (
	overhead   = 40 + 8 + 12            // IPv6, UDP, RTP
	maxSpread  = 200 * time.Millisecond // packets of one picture, at most
	maxSamples = 50_000_000             // of a track
	maxChunk   = 1 << 20                // bytes of a track together
	maxBatch   = 200 * time.Millisecond // sound in one packet, at most
)

// Hinted says what Hint did.
type Hinted struct {
	Tracks  []HintedTrack
	Skipped []string // tracks left without hints, and why
}

// HintedTrack is a hint track that was made.
type HintedTrack struct {
	ID, Media      uint32
	Packets, Bytes int64 // RTP, headers included
}

// Hint writes a copy of the movie in to out, with a hint track for every H.264,
// HEVC, MPEG-4 Visual and AAC track (RFC 6184, 7798, 6416, 3640), interleaved with
// the media. Other tracks and everything else in the movie's header are carried over as they are.
// The copy appears under its name when it is whole.
func Hint(in, out string, cfg HintConfig) (*Hinted, error) {
	cfg.MTU, cfg.Chunk = cmp.Or(cfg.MTU, 1500), cmp.Or(cfg.Chunk, 500*time.Millisecond)
	if cfg.MTU < 300 || cfg.MTU > 65535 {
		return nil, fmt.Errorf("MTU of %d bytes: not within 300 to 65,535", cfg.MTU)
	}
	f, err := hint.Open(in)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // was only read
	h := &hinter{in: f, cfg: cfg}
	if err := h.open(); err != nil {
		return nil, fmt.Errorf("hint %s: %w", in, err)
	}
	part := out + ".part"
	w, err := os.Create(part)
	if err != nil {
		return nil, err
	}
	err = errors.Join(h.write(w), w.Close())
	if err == nil {
		err = os.Rename(part, out)
	}
	if err != nil {
		return nil, fmt.Errorf("hint %s: %w", in, errors.Join(err, os.Remove(part)))
	}
	return h.done(), nil
}

// hinter makes one movie.
type hinter struct {
	in      *hint.File
	cfg     HintConfig
	moov    []byte
	tracks  []*track // as in the movie, but for hint tracks dropped
	skipped []string
	w       *bufio.Writer
	at      int64 // in the output
}

// track is a track of the movie.
type track struct {
	*hint.Track
	index   int // in the movie
	offsets []int64
	per     []int   // samples in each chunk; nil when chunks stay as they are
	src     *source // nil for those not hinted
}

// piece is what becomes a chunk of the copy.
type piece struct {
	t     *track
	size  int64 // bytes
	first int   // sample
	n     int
	time  time.Duration
	chunk int // its number, for tracks whose chunks stay as they are
}

func (h *hinter) open() error {
	h.moov = make([]byte, h.in.Moov.Len)
	if _, err := h.in.ReadAt(h.moov, h.in.Moov.Off); err != nil {
		return fmt.Errorf("read moov: %w", err)
	}
	top, err := split(h.moov)
	if err != nil {
		return err
	}
	h.moov = top[0].body
	if find(h.moov, "mvex") != nil {
		return errors.New("a fragmented movie cannot be hinted: make it whole first (ffmpeg -c copy)")
	}
	var traks []rawBox
	boxes, err := split(h.moov)
	if err != nil {
		return err
	}
	next := uint32(0)
	for _, b := range boxes {
		if b.kind == "trak" {
			traks = append(traks, b)
		}
	}
	for _, t := range h.in.Tracks {
		if t.Kind != "hint" {
			next = max(next, t.ID)
		}
	}
	payloadType := uint8(96)
	for i, t := range h.in.Tracks {
		if t.Kind == "hint" {
			if !h.cfg.Again {
				return fmt.Errorf("track %d: %w", t.ID, ErrHinted)
			}
			continue
		}
		if t.External() {
			return fmt.Errorf("track %d: its data are in another file: make the movie self-contained first (ffmpeg -c copy)", t.ID)
		}
		out := &track{Track: t, index: i}
		h.tracks = append(h.tracks, out)
		s, err := newSource(out, traks[i], payloadType, h.cfg)
		if errors.Is(err, errUnhintable) {
			h.skipped = append(h.skipped, fmt.Sprintf("track %d (%s): %v", t.ID, t.Kind, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("track %d: %w", t.ID, err)
		}
		next++
		payloadType++
		s.id, out.src = next, s
	}
	if payloadType == 96 {
		return fmt.Errorf("no track to hint: %v", h.skipped)
	}
	return nil
}

// pieces lists what is to be copied, in the order of its time. Tracks that are
// hinted are cut into chunks of their own; the others keep theirs.
func (h *hinter) pieces() ([]piece, error) {
	var all []piece
	for _, t := range h.tracks {
		if t.src == nil {
			for i := range t.Chunks() {
				e, first, n := t.Chunk(i)
				_, at := t.Sample(first)
				all = append(all, piece{t, e.Len, first, n, at, i})
			}
			t.offsets = make([]int64, t.Chunks())
			continue
		}
		var p *piece
		for i := range t.Samples() {
			e, at := t.Sample(i)
			if e.Off+e.Len > h.in.Size {
				return nil, fmt.Errorf("track %d sample %d at %d: beyond the end of the file", t.ID, i+1, e.Off)
			}
			if p == nil || at-p.time >= h.cfg.Chunk || p.size+e.Len > maxChunk {
				all = append(all, piece{t: t, first: i, time: at})
				p = &all[len(all)-1]
			}
			p.size += e.Len
			p.n++
		}
	}
	slices.SortStableFunc(all, func(a, b piece) int { return cmp.Compare(a.time, b.time) })
	return all, nil
}

// write writes the movie: the data first, since the hints are made as it goes.
func (h *hinter) write(f *os.File) error {
	all, err := h.pieces()
	if err != nil {
		return err
	}
	var total, done int64
	for _, p := range all {
		total += p.size
	}
	h.w = bufio.NewWriterSize(f, 1<<20)
	var first [16]byte
	if _, err := h.in.ReadAt(first[:], 0); err != nil {
		return err
	}
	if n := int64(binary.BigEndian.Uint32(first[:])); string(first[4:8]) == "ftyp" && n < 4096 {
		if err := h.copy(hint.Extent{Off: 0, Len: n}); err != nil {
			return err
		}
	}
	mdat := h.at
	if err := h.put(cat(u32(1), []byte("mdat"), u64(16))); err != nil {
		return err
	}
	for _, p := range all {
		if err := h.piece(p); err != nil {
			return fmt.Errorf("track %d: %w", p.t.ID, err)
		}
		if done += p.size; h.cfg.Progress != nil {
			h.cfg.Progress(done, total)
		}
	}
	for _, t := range h.tracks {
		if t.src != nil {
			err = t.src.flush()
			if err == nil {
				err = h.hints(t.src)
			}
			if err != nil {
				return fmt.Errorf("track %d: %w", t.ID, err)
			}
		}
	}
	size := h.at - mdat
	moov, err := h.header()
	if err != nil {
		return err
	}
	if err := errors.Join(h.put(moov), h.w.Flush()); err != nil {
		return err
	}
	_, err = f.WriteAt(u64(int(size)), mdat+8)
	return err
}

func (h *hinter) put(b []byte) error {
	h.at += int64(len(b))
	_, err := h.w.Write(b)
	return err
}

func (h *hinter) copy(e hint.Extent) error {
	h.at += e.Len
	n, err := io.Copy(h.w, io.NewSectionReader(h.in, e.Off, e.Len))
	if err == nil && n < e.Len {
		err = fmt.Errorf("%d bytes at %d: beyond the end of the file", e.Len, e.Off)
	}
	return err
}

// piece copies a piece, and writes the hints made of it.
func (h *hinter) piece(p piece) error {
	if p.t.src == nil {
		p.t.offsets[p.chunk] = h.at
		e, _, _ := p.t.Chunk(p.chunk)
		return h.copy(e)
	}
	p.t.offsets, p.t.per = append(p.t.offsets, h.at), append(p.t.per, p.n)
	for i := p.first; i < p.first+p.n; i++ {
		e, _ := p.t.Sample(i)
		b := make([]byte, e.Len)
		if _, err := h.in.ReadAt(b, e.Off); err != nil {
			return fmt.Errorf("sample %d: %w", i+1, err)
		}
		if err := errors.Join(h.put(b), p.t.src.add(unit{i, b})); err != nil {
			return err
		}
	}
	return h.hints(p.t.src)
}

// hints writes the hint samples made so far as a chunk.
func (h *hinter) hints(s *source) error {
	if s.chunk == 0 {
		return nil
	}
	s.offsets, s.per = append(s.offsets, h.at), append(s.per, s.chunk)
	err := h.put(s.out)
	s.out, s.chunk = s.out[:0], 0
	return err
}

// header makes moov.
func (h *hinter) header() ([]byte, error) {
	boxes, err := split(h.moov)
	if err != nil {
		return nil, err
	}
	mvhd, err := decode[*mp4.MvhdBox](findBox(h.moov, "mvhd"))
	if err != nil {
		return nil, err
	}
	var body []byte
	index, next := 0, uint32(0)
	kept := map[int]*track{}
	for _, t := range h.tracks {
		kept[t.index] = t
		next = max(next, t.ID)
		if t.src != nil {
			next = max(next, t.src.id)
		}
	}
	for _, b := range boxes {
		switch b.kind {
		case "mvhd": // its last field is the next track ID
			body = cat(body, b.all[:len(b.all)-4], u32(int(next)+1))
			continue
		case "trak":
			if t := kept[index]; t != nil {
				trak, err := t.rewrite(b)
				if err != nil {
					return nil, fmt.Errorf("track %d: %w", t.ID, err)
				}
				body = append(body, trak...)
			}
			index++
			continue
		}
		body = append(body, b.all...)
	}
	for _, t := range h.tracks {
		if t.src != nil {
			body = append(body, t.src.trak(int64(mvhd.Timescale))...)
		}
	}
	return box("moov", body), nil
}

// rewrite carries a track over with new chunks.
func (t *track) rewrite(b rawBox) ([]byte, error) {
	switch b.kind {
	case "trak", "mdia", "minf", "stbl":
		boxes, err := split(b.body)
		if err != nil {
			return nil, err
		}
		var body []byte
		for _, c := range boxes {
			r, err := t.rewrite(c)
			if err != nil {
				return nil, err
			}
			body = append(body, r...)
		}
		return box(b.kind, body), nil
	case "stco", "co64":
		return offsets(t.offsets), nil
	case "stsc":
		if t.per != nil {
			return chunkRuns(t.per), nil
		}
	}
	return b.all, nil
}

func (h *hinter) done() *Hinted {
	d := &Hinted{Skipped: h.skipped}
	for _, t := range h.tracks {
		if s := t.src; s != nil {
			d.Tracks = append(d.Tracks, HintedTrack{s.id, t.ID, s.packets, s.bytes})
		}
	}
	return d
}

// tables are a track's times, sample by sample.
type tables struct {
	due   []int64 // decoding times, in media time, and the end
	shift []int32 // composition offsets; nil for none
	sync  []bool  // key frames; nil when all are
	skip  int64   // media time at which the movie begins
	delay int64   // length of the empty edit before, in the movie's time units
}

// readTables spreads out a track's tables for its n samples.
func readTables(trak rawBox, n int) (t tables, err error) {
	stbl := find(trak.body, "mdia", "minf", "stbl")
	stts, err := decode[*mp4.SttsBox](findBox(stbl, "stts"))
	if err != nil {
		return t, err
	}
	if n > maxSamples || stts == nil {
		return t, fmt.Errorf("%d samples and no times, or more than %d", n, maxSamples)
	}
	t.due = make([]int64, 1, n+1)
	for i, count := range stts.SampleCount {
		for k := 0; k < int(count) && len(t.due) <= n; k++ {
			t.due = append(t.due, t.due[len(t.due)-1]+int64(stts.SampleTimeDelta[i]))
		}
	}
	if len(t.due) <= n {
		return t, fmt.Errorf("stts: times for %d of %d samples", len(t.due)-1, n)
	}
	ctts, err := decode[*mp4.CttsBox](findBox(stbl, "ctts"))
	if err != nil {
		return t, err
	}
	if ctts != nil {
		t.shift = make([]int32, 0, n)
		for i, off := range ctts.SampleOffset {
			for len(t.shift) < min(int(ctts.EndSampleNr[i+1]), n) {
				t.shift = append(t.shift, off)
			}
		}
		t.shift = append(t.shift, make([]int32, n-len(t.shift))...)
	}
	stss, err := decode[*mp4.StssBox](findBox(stbl, "stss"))
	if err != nil {
		return t, err
	}
	if stss != nil {
		t.sync = make([]bool, n)
		for _, k := range stss.SampleNumber {
			if k >= 1 && int64(k) <= int64(n) {
				t.sync[k-1] = true
			}
		}
	}
	return t, t.edits(trak)
}

func (t *tables) edits(trak rawBox) error {
	elst, err := decode[*mp4.ElstBox](findBox(trak.body, "edts", "elst"))
	if err != nil || elst == nil {
		return err
	}
	for _, e := range elst.Entries {
		if e.MediaTime >= 0 {
			t.skip = e.MediaTime
			break
		}
		if t.delay = int64(e.SegmentDuration); t.delay < 0 || t.delay > 1<<48 {
			return fmt.Errorf("elst: an empty edit of %d", t.delay)
		}
	}
	if t.skip > 1<<48 {
		return fmt.Errorf("elst: begins at %d", t.skip)
	}
	return nil
}
