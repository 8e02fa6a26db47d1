package demo

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"rtspshim/engine/hint"
)

// movie is an open movie.
type movie struct {
	*hint.Movie
	io.ReaderAt
	io.Closer
	modified time.Time
}

// errUnhinted is returned for what is there but cannot be played.
var errUnhinted = errors.New("not a hinted movie")

// openMovie opens a movie by its name in the folder. The error is fs.ErrNotExist or
// errUnhinted, both wrapped.
func openMovie(folder fs.FS, name string) (*movie, error) {
	f, err := folder.Open(cmp.Or(name, "."))
	if err != nil { // also for "..", and a folder's name that is a file's
		return nil, fmt.Errorf("open movie: %w: %w", fs.ErrNotExist, err)
	}
	m := &movie{Closer: f}
	if m.read(f, name); m.Movie == nil || len(m.HintTracks()) == 0 {
		_ = f.Close()
		return nil, fmt.Errorf("movie %q: %w", name, errUnhinted)
	}
	return m, nil
}

func (m *movie) read(f fs.File, name string) {
	st, err := f.Stat()
	r, ok := f.(io.ReaderAt)
	if err != nil || !st.Mode().IsRegular() || !ok {
		return
	}
	m.ReaderAt, m.modified = r, st.ModTime()
	m.Movie, _ = hint.Read(r, st.Size(), name)
}

// description is the SDP (RFC 8866); a live stream has no length.
func (m *movie) description(live bool) string {
	sdp := m.SDP()
	if live {
		if before, after, ok := strings.Cut(sdp, "a=range:npt=0-"); ok {
			_, after, _ = strings.Cut(after, "\r\n")
			sdp = before + "a=range:npt=now-\r\n" + after
		}
	}
	return sdp
}

// lane is the packets of one track, always one ahead.
type lane struct {
	movie *movie
	track *hint.Track
	scan  *hint.Scanner
	next  hint.Packet
	more  bool // next is one; false at the end of the track
}

// seek makes the lane go on with what is due at that time, or a little before.
// The packets keep the times of their hints, as with Darwin.
func (l *lane) seek(at time.Duration) error {
	var err error
	cfg := hint.Config{Tracks: []uint32{l.track.ID}, AsHinted: true}
	if l.scan, err = l.movie.Scan(l.movie, cfg, at); err != nil {
		l.more = false
		return err
	}
	return l.advance()
}

// advance goes on to the next packet.
func (l *lane) advance() error {
	l.more = l.scan.Next(&l.next)
	return l.scan.Err()
}
