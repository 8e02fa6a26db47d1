package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A transcript is a recorded conversation with a real server. Two formats are
// read: blocks headed by "---- C->S" and "---- S->C" (Darwin's), and lines that
// begin with "> " and "< " and spell their line ends out (the others').

// step is one thing that happened, in order.
type step struct {
	line int    // of the transcript
	kind byte   // as below
	data []byte // sent
}

const (
	opens     = 'o' // the client opens a connection and uses that from now on
	opensPost = 'p' // the same, the POST of a tunnel; answers go on coming on its GET
	sends     = '>' // the client sends
	answers   = '<' // the server sends
	closes    = 'x' // the server closes
)

// maker collects steps and guesses the connections, which transcripts only hint at.
type maker struct {
	steps  []step
	used   bool // the open connection has carried a request
	open   bool
	tunnel bool // the open one is a tunnel's
	fresh  bool // a title came since the last request
}

var (
	cseqOne   = regexp.MustCompile(`(?i)\ncseq: *1\r?\n`)
	anyCSeq   = regexp.MustCompile(`(?i)\ncseq:`)
	httpFirst = regexp.MustCompile(`^(GET|POST) \S+ HTTP/`)
	cookie    = regexp.MustCompile(`(?i)\nx-sessioncookie:`)
)

func (m *maker) send(line int, data []byte) {
	if len(data) == 0 {
		return
	}
	http, tunnel := httpFirst.Find(data), cookie.Match(data)
	if head := bytes.Index(data, []byte("\r\n\r\n")) + 4; http != nil && tunnel && head >= 4 && head < len(data) {
		m.send(line, data[:head])
		m.send(line, data[head:])
		return
	}
	switch {
	case http != nil && tunnel && bytes.HasPrefix(http, []byte("POST")):
		m.connect(line, opensPost)
		m.tunnel = true
	case http != nil:
		m.connect(line, opens)
		m.tunnel = tunnel
	case m.tunnel && m.open:
	case m.open && bytes.HasPrefix(data, []byte("RTSP/")): // to a request of the server's
	case !m.open, m.used && cseqOne.Match(data), m.used && m.fresh && !anyCSeq.Match(data):
		m.connect(line, opens)
		m.tunnel = false
	}
	m.used, m.fresh = true, false
	m.add(line, sends, data)
}

func (m *maker) connect(line int, how byte) {
	m.add(line, how, nil)
	m.open, m.used = true, false
}

func (m *maker) add(line int, kind byte, data []byte) {
	m.steps = append(m.steps, step{line, kind, data})
}

func (m *maker) close(line int) {
	if m.open {
		m.add(line, closes, nil)
	}
	m.open, m.tunnel = false, false
}

// parseLines reads the format with "> " and "< ".
func parseLines(text string) ([]step, error) {
	var m maker
	var data []byte
	var from byte
	var at int
	flush := func() {
		switch from {
		case '>':
			m.send(at, data)
		case '<':
			m.add(at, answers, data)
		}
		data, from = nil, 0
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "> ") || strings.HasPrefix(line, "< "):
			if line[0] != from {
				flush()
				from, at = line[0], i+1
			}
			b, err := unescape(line[2:])
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			data = append(data, b...)
			if len(b) > 0 && !bytes.HasSuffix(b, []byte("\n")) && b[0] >= ' ' && line[0] == '>' {
				data = append(data, '\n') // a bare line end is shown as one
				if !strings.HasPrefix(next(lines, i), "> ") {
					data = append(data, '\n')
				}
			}
		case strings.HasPrefix(line, "# "):
			flush()
			m.fresh = true
			if strings.Contains(line, "closed by server") || strings.Contains(line, "connection after TEARDOWN: closed") {
				m.close(i + 1)
			}
			if strings.Contains(line, "] plain GET") || strings.Contains(line, "] WebSocket") {
				m.open = false
			}
		default: // a blank line, or the rest of a comment
			flush()
		}
	}
	flush()
	return m.steps, nil
}

func next(lines []string, i int) string {
	if i+1 < len(lines) {
		return lines[i+1]
	}
	return ""
}

// unescape reads \r, \n, \t, \\ and \xNN.
func unescape(s string) ([]byte, error) {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		i++
		if i == len(s) {
			return nil, fmt.Errorf("unfinished escape in %q", s)
		}
		switch s[i] {
		case 'r':
			out = append(out, '\r')
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case '\\', '\'', '"':
			out = append(out, s[i])
		case 'x':
			if i+2 >= len(s) {
				return nil, fmt.Errorf("unfinished escape in %q", s)
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return nil, err
			}
			out = append(out, byte(v))
			i += 2
		default:
			return nil, fmt.Errorf("unknown escape in %q", s)
		}
	}
	return out, nil
}

var (
	blockMark = regexp.MustCompile(`^(---- |={4,} )`)
	toldOnly  = regexp.MustCompile(`^C->S (\w+) with (?:one )?(\d+)-(byte header|char path)`)
)

// parseBlocks reads the format with "---- C->S". CRLF is shown as LF there, so
// heads and text bodies are given theirs back.
func parseBlocks(text string) ([]step, error) {
	var m maker
	lines := strings.Split(text, "\n")
	authority := ""
	for i := 0; i < len(lines); {
		mark, at := lines[i], i+1
		i++
		block := []string{}
		for i < len(lines) && !blockMark.MatchString(lines[i]) {
			block = append(block, lines[i])
			i++
		}
		if authority == "" {
			authority = mainAuthority(strings.Join(block, "\n"))
		}
		switch {
		case strings.HasPrefix(mark, "---- C->S"):
			m.blockSent(at, block)
		case strings.HasPrefix(mark, "---- S->C"):
			m.blockAnswered(at, block)
		case strings.HasPrefix(mark, "---- connection"):
			if len(block) > 0 && strings.HasPrefix(block[0], "closed by server") {
				m.close(at)
			}
		default: // a title
			m.fresh = true
			if len(block) > 0 {
				if told := toldOnly.FindStringSubmatch(block[0]); told != nil {
					m.blockTold(at, told, authority)
				}
			}
		}
	}
	return m.steps, nil
}

// blockSent takes a request; one line and one more behind it are the format's.
func (m *maker) blockSent(at int, block []string) {
	text := strings.Join(block, "\n")
	if m.tunnel && m.open && !httpFirst.MatchString(text) {
		if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text)); err == nil {
			m.send(at, b)
		} // what is no base64 is told apart from what is: see replay's list
		return
	}
	if n := contentLength.FindStringSubmatch(text); n != nil {
		head, rest, _ := strings.Cut(text, "\n\n")
		want, _ := strconv.Atoi(n[1])
		if !httpFirst.MatchString(text) { // a tunnel's POST announces more than it brings
			body, _ := takeBody(rest, want)
			m.send(at, append([]byte(strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"), body...))
			return
		}
	}
	if strings.HasSuffix(text, "\n\n") {
		text = strings.TrimRight(text, "\n") + "\n\n"
	}
	m.send(at, []byte(strings.ReplaceAll(text, "\n", "\r\n")))
}

// blockTold makes the request that a transcript only describes.
func (m *maker) blockTold(at int, told []string, authority string) {
	n, _ := strconv.Atoi(told[2])
	uri, header := "rtsp://"+authority+"/h264_20.mp4", ""
	if told[3] == "char path" {
		uri = "rtsp://" + authority + "/" + strings.Repeat("a", n)
	} else {
		header = "X-Big: " + strings.Repeat("a", n) + "\r\n"
	}
	m.open = false
	m.send(at, []byte(told[1]+" "+uri+" RTSP/1.0\r\nCSeq: 1\r\n"+header+"\r\n"))
}

var contentLength = regexp.MustCompile(`(?i)\nContent-Length: *(\d+)`)

// blockAnswered takes the messages at the start of an answer's block; what
// follows them is the recorder's.
func (m *maker) blockAnswered(at int, block []string) {
	text := strings.Join(block, "\n")
	if strings.HasPrefix(text, "<connection closed by server") {
		m.close(at)
		return
	}
	var data []byte
	for strings.HasPrefix(text, "RTSP/") || strings.HasPrefix(text, "HTTP/") || strings.HasPrefix(text, "OPTIONS ") {
		head, rest, ok := strings.Cut(text, "\n\n")
		if !ok {
			break
		}
		data = append(data, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"...)
		if n := contentLength.FindStringSubmatch(head); n != nil {
			want, _ := strconv.Atoi(n[1])
			var body []byte
			body, rest = takeBody(rest, want)
			data = append(data, body...)
		}
		text = strings.TrimLeft(rest, "\n")
	}
	if strings.HasPrefix(text, "b'") {
		body, err := unescape(strings.TrimSuffix(strings.TrimSpace(text)[2:], "'"))
		if err == nil {
			data = append(data, body...)
		}
	}
	if len(data) > 0 {
		m.add(at, answers, data)
	}
}

// takeBody takes n octets of a body that is shown with LF for CRLF, or, when it
// is not text, as far as that can be told, with each octet as a character.
func takeBody(shown string, n int) (body []byte, rest string) {
	text := true
	for i, r := range shown {
		if len(body) >= n {
			return body, shown[i:]
		}
		switch {
		case r == '\n' && text:
			body = append(body, '\r', '\n')
		case r > 0xff:
			text = false
			body = append(body, '?')
		default:
			text = text && r < 0x80
			body = append(body, byte(r))
		}
	}
	for len(body) < n { // the recorder's eye lost some
		body = append(body, '?')
	}
	return body[:n], ""
}

var urlAuthority = regexp.MustCompile(`rtsps?://([0-9.]+:[0-9]+)`)

// mainAuthority is the address the conversation is with: the first one named.
func mainAuthority(text string) string {
	if found := urlAuthority.FindStringSubmatch(text); found != nil {
		return found[1]
	}
	return ""
}
