package proxy

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// elements reads all of r and returns what the Elements hold, each marked
// with its kind, and all their bytes in order.
func elements(t testing.TB, r *Reader) (list []string, all []byte) {
	t.Helper()
	for {
		e, err := r.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatalf("Next: %v", err)
			}
			return list, all
		}
		b := e.Bytes
		if e.Kind == KindMessage {
			b = e.Message.Bytes()
		}
		list = append(list, [...]string{"message", "frames", "blank", "body", "opaque"}[e.Kind]+" "+string(b))
		all = append(all, b...)
		if e.Kind == KindOpaque {
			rest, _ := io.ReadAll(io.MultiReader(bytes.NewReader(bytes.Clone(r.Buffered())), r.src))
			all = append(all, rest...)
			return list, all
		}
	}
}

func TestReaderCuts(t *testing.T) {
	small := Limits{MaxHead: 64, MaxBody: 8}
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"pipelined":       {"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\nPLAY x RTSP/1.0\n\n", []string{"message OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", "message PLAY x RTSP/1.0\n\n"}},
		"body":            {"A b RTSP/1.0\ncontent-LENGTH : 3\n\nabcX y z\n\n", []string{"message A b RTSP/1.0\ncontent-LENGTH : 3\n\nabc", "message X y z\n\n"}},
		"large body":      {"A b RTSP/1.0\nContent-Length: 9\n\n123456789B c d\n\n", []string{"message A b RTSP/1.0\nContent-Length: 9\n\n", "body 123456789", "message B c d\n\n"}},
		"frames":          {"$\x00\x00\x02ab$\x01\x00\x00RTSP/1.0 200 OK\r\n\r\n", []string{"frames $\x00\x00\x02ab$\x01\x00\x00", "message RTSP/1.0 200 OK\r\n\r\n"}},
		"blank lines":     {"\r\n\n\rA b c\r\n\r\n", []string{"blank \r\n\n\r", "message A b c\r\n\r\n"}},
		"mixed line ends": {"A b c\r\nX: y\n\r\nB d e\r\n\n", []string{"message A b c\r\nX: y\n\r\n", "message B d e\r\n\n"}},
		"endless head":    {"A b c\r\nX: " + strings.Repeat("y", 100), []string{"opaque A b c\r\nX: " + strings.Repeat("y", 100)}},
		"negative length": {"A b c\r\nContent-Length: -1\r\n\r\nB", []string{"opaque A b c\r\nContent-Length: -1\r\n\r\nB"}},
		"two lengths":     {"A b c\nContent-Length: 1\nContent-Length: 2\n\nxx", []string{"opaque A b c\nContent-Length: 1\nContent-Length: 2\n\nxx"}},
		"NUL first":       {"\x00A b c\r\n\r\n", []string{"opaque \x00A b c\r\n\r\n"}},
		"NUL in a value":  {"A b c\r\nX: \x00\r\n\r\n", []string{"message A b c\r\nX: \x00\r\n\r\n"}},
		"half a head":     {"A b c\r\nX:", []string{"opaque A b c\r\nX:"}},
		"half a frame":    {"$\x00\x00\x04ab", []string{"opaque $\x00\x00\x04ab"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, all := elements(t, NewReader(strings.NewReader(c.in), small, nil))
			if strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if string(all) != c.in {
				t.Errorf("bytes lost: %q", all)
			}
		})
	}
}

// A stream that dribbles in octet by octet is cut as one that comes at once.
func TestReaderDribble(t *testing.T) {
	in := "SETUP rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 4\r\n\r\nbody$\x00\x00\x01x\r\nRTSP/1.0 200 OK\n\n"
	want, _ := elements(t, NewReader(strings.NewReader(in), Limits{}, nil))
	got, _ := elements(t, NewReader(iotest.OneByteReader(strings.NewReader(in)), Limits{}, nil))
	// Line ends and frames come in smaller runs, messages are the same.
	if strings.Join(got, "") != strings.ReplaceAll(strings.Join(want, ""), "blank \r\n", "blank \rblank \n") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReaderLargestFrame(t *testing.T) {
	frame := append([]byte{'$', 3, 0xff, 0xff}, bytes.Repeat([]byte{7}, 0xffff)...)
	e, err := NewReader(bytes.NewReader(append(frame, frame...)), Limits{}, nil).Next()
	if err != nil || e.Kind != KindFrames || len(e.Bytes) < len(frame) {
		t.Fatalf("kind %d, %d octets, %v", e.Kind, len(e.Bytes), err)
	}
}

// Half a head that waits too long is passed on for the upstream to judge.
func TestReaderPartialTimeout(t *testing.T) {
	var deadline time.Time
	src := &stalling{first: "DESCRIBE rtsp://h/a RTSP/1.0\r\nCS"}
	r := NewReader(src, Limits{PartialTimeout: time.Minute}, func(at time.Time) error { deadline = at; src.armed = !at.IsZero(); return nil })
	e, err := r.Next()
	if err != nil || e.Kind != KindOpaque || string(e.Bytes) != src.first {
		t.Fatalf("%v %q %v", e.Kind, e.Bytes, err)
	}
	if !deadline.IsZero() {
		t.Error("the deadline still stands")
	}
}

// stalling yields first, then times out once a deadline is set.
type stalling struct {
	first string
	done  bool
	armed bool
}

func (s *stalling) Read(b []byte) (int, error) {
	if !s.done {
		s.done = true
		return copy(b, s.first), nil
	}
	if !s.armed {
		return 0, errors.New("read without a deadline")
	}
	return 0, timeoutError{}
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }
func (timeoutError) Is(err error) bool {
	return err.Error() == "i/o timeout"
}

// FuzzReader: whatever comes in, in whatever pieces, goes out: no octet is
// lost, changed or added, and memory is bounded.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", "RTSP/1.0 200 OK\r\nCseq: \r\nContent-length: 3\r\n\r\nabc",
		"$\x00\x00\x02ab", "\r\n\r\nA b c\n\n", "A b c\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"A b c\r\n folded\r\nX:y\r\n\tz\r\n\r\n", "\x16\x03\x01", "GET / HTTP/1.0\r\nX-SessionCookie: a\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	limits := Limits{MaxHead: 256, MaxBody: 64}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		r := NewReader(&pieces{in, int(piece)%17 + 1}, limits, nil)
		_, all := elements(t, r)
		if !bytes.Equal(all, in) {
			t.Fatalf("%q became %q", in, all)
		}
		if len(r.buf) > 2*(0xffff+4)+firstBuffer {
			t.Fatalf("buffer of %d octets", len(r.buf))
		}
	})
}

// pieces reads n octets at a time.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.b)
	p.b = p.b[n:]
	return n, nil
}
