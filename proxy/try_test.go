package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
)

// A connection that takes only part of the frames it is given gets the rest
// before anything else, whoever writes next.
func TestTryFrames(t *testing.T) {
	ln := listen(t)
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = far.Close(), near.Close() })
	_ = near.(*net.TCPConn).SetWriteBuffer(16 << 10)
	c := &Conn{client: near}
	c.toClient.use(near)
	_ = far.(*net.TCPConn).SetReadBuffer(16 << 10)
	frames, seen := 0, 0
	next := func() (b []byte) {
		for range 40 {
			b = append(b, '$', 0, 1000>>8, 1000&0xff)
			b = binary.BigEndian.AppendUint32(b, uint32(frames))
			b = append(b, make([]byte, 996)...)
			frames++
		}
		return b
	}
	r := bufio.NewReader(far)
	read := func() error { // up to the next answer
		for {
			first, err := r.ReadByte()
			if err != nil {
				return err
			}
			if first == 'R' {
				if line, err := r.ReadString('\n'); line != "TSP\n" {
					return fmt.Errorf("a torn answer %q: %w", line, err)
				}
				return nil
			}
			b := make([]byte, 1003)
			if _, err := io.ReadFull(r, b); err != nil || first != '$' || int(binary.BigEndian.Uint32(b[3:])) != seen || len(bytes.Trim(b[7:], "\x00")) > 0 {
				return fmt.Errorf("frame %d: %x %w", seen, b[:8], err)
			}
			seen++
		}
	}
	partial := 0
	for range 20 {
		lost := 0
		for { // nobody reads: it comes to an end
			b := next()
			if n := c.TryFrames(cutUp(b)); n == 0 {
				lost = 40
				break
			} else if n < len(b) {
				partial++
				break
			}
		}
		frames -= lost
		if c.TryFrames(net.Buffers{[]byte("$\x00\x00\x00")}) != 0 {
			t.Fatal("more was taken before the rest")
		}
		done := make(chan error)
		go func() { done <- read() }()
		if err := c.toClient.insert([]byte("RTSP\n")); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if seen != frames {
			t.Fatalf("%d of %d frames came before the answer", seen, frames)
		}
	}
	if partial == 0 {
		t.Error("nothing was taken in part")
	}
}

// cutUp is b in pieces: what a system call takes, and more.
func cutUp(b []byte) (all net.Buffers) {
	for len(b) > 0 {
		n := min(1+len(all)%150, len(b))
		all = append(all, b[:n])
		b = b[n:]
	}
	return all
}
