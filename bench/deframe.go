package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
)

// maxText bounds an RTSP message among interleaved frames.
const maxText = 1 << 16

var errStream = errors.New("neither RTSP nor an interleaved frame")

// deframe cuts what is whole off the beginning of an RTSP connection's bytes:
// interleaved frames (RFC 2326 §10.12) go to frame, messages to message. It
// returns the rest, which is the beginning of something and at most 64 KiB.
func deframe(b []byte, frame func(channel uint8, payload []byte), message func(head []byte)) ([]byte, error) {
	for len(b) > 0 {
		if b[0] == '$' {
			if len(b) < 4 {
				return b, nil
			}
			n := 4 + int(binary.BigEndian.Uint16(b[2:]))
			if len(b) < n {
				return b, nil
			}
			frame(b[1], b[4:n])
			b = b[n:]
			continue
		}
		if b[0] == '\r' || b[0] == '\n' {
			b = b[1:]
			continue
		}
		if b[0] < 'A' || b[0] > 'Z' {
			return b, errStream
		}
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if end < 0 {
			if len(b) > maxText {
				return b, errStream
			}
			return b, nil
		}
		n := end + 4 + bodyLength(b[:end])
		if n > maxText {
			return b, errStream
		}
		if len(b) < n {
			return b, nil
		}
		message(b[:end])
		b = b[n:]
	}
	return b, nil
}

// bodyLength is the Content-Length of a message's head.
func bodyLength(head []byte) int {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if ok && bytes.EqualFold(bytes.TrimSpace(name), []byte("Content-Length")) {
			if n, err := strconv.Atoi(string(bytes.TrimSpace(value))); err == nil && n >= 0 {
				return n
			}
		}
	}
	return 0
}
