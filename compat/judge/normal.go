package judge

import (
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"rtspshim/compat/talk"
)

// normal replaces the moving parts of one recording by names, so that what is
// left must agree between two runs: the address spoken to, session ids, port
// numbers, SSRCs, nonces, dates. Identity is kept: the first session seen is
// <session 1> wherever it comes again.
type normal struct {
	recording *talk.Recording
	sessions  map[string]string
}

func newNormal(r *talk.Recording) *normal {
	return &normal{recording: r, sessions: map[string]string{}}
}

func (n *normal) session(value string) string {
	id, params, more := strings.Cut(value, ";")
	name := n.sessions[id]
	if name == "" {
		name = fmt.Sprintf("<session %d>", len(n.sessions)+1)
		n.sessions[id] = name
	}
	if more {
		name += ";" + params
	}
	return name
}

// text replaces addresses, ours and the server's.
func (n *normal) text(s string) string {
	r := n.recording
	s = strings.ReplaceAll(s, r.Authority, "<server>")
	if r.Peer != "" {
		s = strings.ReplaceAll(s, r.Peer, "<server>")
		if host, _, err := net.SplitHostPort(r.Peer); err == nil && host != r.Host {
			s = replaceWord(s, host, "<host>")
		}
	}
	if r.Host != "" {
		s = replaceWord(s, r.Host, "<host>")
	}
	if r.Local != "" && r.Local != r.Host {
		s = replaceWord(s, r.Local, "<client>")
	}
	return s
}

// replaceWord replaces old where it is not part of a longer address.
func replaceWord(s, old, with string) string {
	var out strings.Builder
	for {
		i := strings.Index(s, old)
		if i < 0 {
			return out.String() + s
		}
		after := i + len(old)
		part := i > 0 && addressByte(s[i-1]) || after < len(s) && addressByte(s[after]) && s[after] != '.'
		out.WriteString(s[:i])
		if part {
			out.WriteString(old)
		} else {
			out.WriteString(with)
		}
		s = s[after:]
	}
}

func addressByte(b byte) bool {
	return b == '.' || b == '-' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

var (
	infoNumber = regexp.MustCompile(`\b(seq|rtptime)=([0-9]+)`)
	nonce      = regexp.MustCompile(`\b(nonce|opaque)="[^"]*"`)
	ssrcLine   = regexp.MustCompile(`^a=ssrc:[0-9]+`)
	cname      = regexp.MustCompile(`cname:\S+`)
	number     = regexp.MustCompile(`[0-9]+(\.[0-9]*)?`)
)

// field is the value of a header line without its moving parts.
func (n *normal) field(m *talk.Message, f talk.Field) string {
	switch strings.ToLower(f.Name) {
	case "session":
		return n.session(f.Value)
	case "date", "expires":
		return date(f.Value, m.Value("Date"))
	case "transport":
		return n.transport(f.Value)
	case "rtp-info":
		return n.text(infoNumber.ReplaceAllStringFunc(f.Value, func(s string) string {
			if strings.HasSuffix(s, "=0") {
				return s
			}
			return s[:strings.Index(s, "=")+1] + "<n>"
		}))
	case "www-authenticate":
		return nonce.ReplaceAllString(f.Value, `$1="<nonce>"`)
	case "content-length":
		if v, err := strconv.Atoi(f.Value); err == nil && v == len(m.Body) {
			return "<length of the body>"
		}
	case "range":
		return number.ReplaceAllString(f.Value, "#")
	}
	return n.text(f.Value)
}

// date keeps the form of a date and its distance from the message's own Date.
func date(value, now string) string {
	at, err := http.ParseTime(value)
	if err != nil {
		return value
	}
	if base, err := http.ParseTime(now); err == nil && base != at {
		return fmt.Sprintf("<Date%+.0fs>", at.Sub(base).Round(time.Second).Seconds())
	}
	return "<date>"
}

func (n *normal) transport(value string) string {
	parts := strings.Split(value, ";")
	for i, part := range parts {
		name, v, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		switch strings.ToLower(name) {
		case "client_port":
			v = n.clientPorts(v)
		case "server_port":
			v = pairShape(v)
		case "ssrc":
			if len(v) == 8 {
				v = "<ssrc>"
			}
		default:
			v = n.text(v)
		}
		parts[i] = name + "=" + v
	}
	return strings.Join(parts, ";")
}

// clientPorts names our own ports; others stay as they are.
func (n *normal) clientPorts(v string) string {
	parts := strings.Split(v, "-")
	for i, text := range parts {
		port, _ := strconv.Atoi(text)
		for k, own := range n.recording.Ports {
			if port >= own && port < own+10 {
				parts[i] = fmt.Sprintf("<port %d%+d>", k+1, port-own)
			}
		}
	}
	return strings.Join(parts, "-")
}

// pairShape is what must hold of a server's port pair (RFC 3550 11).
func pairShape(v string) string {
	a, b, two := strings.Cut(v, "-")
	first, err1 := strconv.Atoi(a)
	second, err2 := strconv.Atoi(b)
	if !two || err1 != nil || err2 != nil {
		return map[bool]string{true: "<port>", false: v}[err1 == nil && !two]
	}
	if first == 0 {
		return v
	}
	kind := map[bool]string{true: "<even port>", false: "<odd port>"}[first%2 == 0]
	return fmt.Sprintf("%s-<%+d>", kind, second-first)
}

// sdpLine is a line of a session description without its moving parts.
func (n *normal) sdpLine(line string) string {
	switch {
	case strings.HasPrefix(line, "o="):
		if w := strings.Fields(line); len(w) == 6 {
			return n.text(fmt.Sprintf("%s <id> <version> %s %s %s", w[0], w[3], w[4], w[5]))
		}
	case ssrcLine.MatchString(line):
		return cname.ReplaceAllString(ssrcLine.ReplaceAllString(line, "a=ssrc:<ssrc>"), "cname:<cname>")
	}
	return n.text(line)
}
