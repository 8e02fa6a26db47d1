package testbed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// GstFrames plays media's worth of url with GStreamer's rtspsrc and returns the frames.
func GstFrames(ctx context.Context, tb testing.TB, url string, transport Transport, media time.Duration) Frames {
	tb.Helper()
	protocols := map[Transport]string{UDP: "udp", TCP: "tcp", HTTP: "tcp", Multicast: "udp-mcast"}[transport]
	if transport == HTTP { // rtspsrc tunnels by the scheme
		url = strings.Replace(strings.Replace(url, "rtsp://", "rtsph://", 1), "rtsps://", "rtspsh://", 1)
	}
	args := []string{"-q", "rtspsrc", "name=s", "location=" + url, "protocols=" + protocols,
		"latency=500", "udp-buffer-size=4194304", "tls-validation-flags=0",
		// Each decoded frame goes down a pipe in a wrapper that keeps its length and time.
		"s.", "!", "application/x-rtp,media=video", "!", "decodebin", "!", "videoconvert", "!",
		"video/x-raw,format=I420", "!", "gdppay", "!", "fdsink", "fd=3", "sync=false", "async=false",
		"s.", "!", "application/x-rtp,media=audio", "!", "decodebin", "!", "audioconvert", "dithering=none", "!",
		"audio/x-raw,format=S16LE", "!", "gdppay", "!", "fdsink", "fd=4", "sync=false", "async=false"}
	program := Program(tb, "gst-launch-1.0", "gstreamer1.0-tools")
	for try := 1; ; try++ {
		f, err := gstPlay(ctx, program, args, media)
		// gst-launch links what it plays while the data is already coming, and now
		// and then loses that race: before the first frame, or for one medium.
		lost := err != nil && len(f.Video)+len(f.Audio) == 0 && strings.Contains(f.Said, "not-linked") && try < gstTries
		half := err == nil && (len(f.Video) == 0) != (len(f.Audio) == 0) && try == 1
		if lost || half {
			tb.Logf("gst-launch may have lost its race, try %d: %d video and %d audio frames of %s", try, len(f.Video), len(f.Audio), url)
			continue
		}
		if err != nil {
			tb.Fatal(err)
		}
		return f
	}
}

// gstPlay runs gst-launch once.
func gstPlay(ctx context.Context, program string, args []string, media time.Duration) (Frames, error) {
	ctx, cancel := context.WithTimeout(ctx, media+playSlack)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	// Interrupted, gst-launch says TEARDOWN and ends.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = endTimeout
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	f, err := gstRun(ctx, cancel, cmd, media)
	f.By, f.Said = strings.Join(cmd.Args, " "), said.String()
	if err != nil {
		err = runError(cmd, err, f.Said)
	}
	return f, err
}

const (
	gstTries = 3
	gstLate  = time.Second
)

// gstRun runs gst-launch until both its pipes have carried media's worth.
func gstRun(ctx context.Context, stop func(), cmd *exec.Cmd, media time.Duration) (Frames, error) {
	pipes := [2]*gdpReader{{media: media}, {media: media}}
	var mine [2]*os.File
	for i := range pipes {
		r, w, err := os.Pipe()
		if err != nil {
			return Frames{}, err
		}
		defer r.Close() //nolint:errcheck // only read from
		defer w.Close() //nolint:errcheck // the child's end
		mine[i], cmd.ExtraFiles = r, append(cmd.ExtraFiles, w)
	}
	if err := cmd.Start(); err != nil {
		return Frames{}, err
	}
	for _, w := range cmd.ExtraFiles {
		w.Close() //nolint:errcheck // the child has it now
	}
	var (
		mu       sync.Mutex
		readers  sync.WaitGroup
		finished bool // enough was seen, stop is called
		late     *time.Timer
		errs     [2]error
	)
	for i, g := range pipes {
		readers.Go(func() {
			errs[i] = g.read(mine[i], func() {
				mu.Lock()
				defer mu.Unlock()
				g.begun, g.reached = g.nextBegun, g.nextReached
				one, other := pipes[0], pipes[1]
				switch {
				case finished || !one.reached && !other.reached:
				case one.begun == one.reached && other.begun == other.reached && one.begun && other.begun:
					finished = true
					stop()
				case one.begun == one.reached && other.begun == other.reached && late == nil:
					// A medium that has not begun a while after the other was through is not there.
					late = time.AfterFunc(gstLate, func() {
						mu.Lock()
						defer mu.Unlock()
						finished = finished || !one.begun || !other.begun
						if finished {
							stop()
						}
					})
				}
			})
		})
	}
	readers.Wait()
	err := cmd.Wait()
	if late != nil {
		late.Stop()
	}
	mu.Lock()
	defer mu.Unlock()
	if finished {
		err = nil // interrupted by us
	} else if ctx.Err() != nil {
		err = fmt.Errorf("%w after %d video and %d audio frames", ctx.Err(), len(pipes[0].hashes), len(pipes[1].hashes))
	}
	for _, e := range errs {
		if err == nil {
			err = e
		}
	}
	return Frames{Video: pipes[0].hashes, Audio: pipes[1].hashes}, err
}

// gdpReader hashes the buffers of a GStreamer Data Protocol 1.0 stream.
type gdpReader struct {
	media                  time.Duration
	hashes                 []string
	last                   uint64        // time of the last buffer, ns
	seen                   time.Duration // length of all buffers
	nextBegun, nextReached bool
	begun, reached         bool // the same, as others may see them
}

const (
	gdpHeader = 62 // bytes
	gdpBuffer = 1  // payload type
	gdpMost   = 64 << 20
)

// read takes buffers until the stream ends, and tells when the first has come
// and when media's worth has. Later ones are read, for the writer must not
// block, and left out.
func (g *gdpReader) read(from io.Reader, news func()) error {
	in := bufio.NewReaderSize(from, 1<<20)
	header := make([]byte, gdpHeader)
	var payload []byte
	for {
		if _, err := io.ReadFull(in, header); err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil // cut off in mid-frame when interrupted
		} else if err != nil {
			return fmt.Errorf("gdp header: %w", err)
		}
		kind, size := binary.BigEndian.Uint16(header[4:]), binary.BigEndian.Uint32(header[6:])
		if header[0] != 1 || size > gdpMost {
			return fmt.Errorf("gdp header: cannot read % x", header)
		}
		if uint32(cap(payload)) < size {
			payload = make([]byte, size)
		}
		payload = payload[:size]
		if _, err := io.ReadFull(in, payload); err != nil {
			return nil //nolint:nilerr // cut off in mid-frame when interrupted
		}
		if kind == gdpBuffer && !g.nextReached {
			g.take(header, payload)
			news()
		}
	}
}

// take hashes a buffer until media's worth was seen. The lengths are added up,
// since rtspsrc's clock may jump when it learns the server's.
func (g *gdpReader) take(header, payload []byte) {
	at, length := binary.BigEndian.Uint64(header[10:]), binary.BigEndian.Uint64(header[18:])
	if length > uint64(time.Second) { // unknown: take the step from the last
		length = min(at-g.last, uint64(time.Second))
	}
	g.last = at
	if g.seen >= g.media {
		g.nextReached = true
		return
	}
	if g.nextBegun {
		g.seen += time.Duration(length)
	}
	g.nextBegun = true
	sum := md5.Sum(payload)
	g.hashes = append(g.hashes, hex.EncodeToString(sum[:]))
}
