package talk

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/sdpunmarshaler"
)

var variable = regexp.MustCompile(`\{([a-z]+)(?: ([^{}]*))?\}`)

// maxMedias bounds "once for every media".
const maxMedias = 8

// media is an m= section as far as the conversation needs it.
type media struct {
	control string // absolute
	kind    string
	clock   int
	pts     []uint8
}

// expand puts values in place of variables. ok is false if one has none.
func (c *conn) expand(text string) (out string, ok bool, err error) {
	ok = true
	out = variable.ReplaceAllStringFunc(text, func(v string) string {
		m := variable.FindStringSubmatch(v)
		value, e := c.value(m[1], m[2])
		if e != nil && err == nil {
			err = e
		}
		ok = ok && value != ""
		return value
	})
	return out, ok, err
}

// value of a variable, "" if it has none.
func (c *conn) value(name, arg string) (string, error) {
	t := c.talk
	switch name {
	case "url":
		return t.url.String(), nil
	case "authority":
		return t.url.Host, nil
	case "path":
		return t.url.RequestURI(), nil
	case "publish":
		return t.target.Publish, nil
	case "base":
		if c.base == "" {
			return t.url.String(), nil
		}
		return c.base, nil
	case "modified":
		return c.modified, nil
	case "session":
		if other := t.conns[arg]; arg != "" && other != nil {
			return other.session, nil
		}
		return c.session, nil
	case "duration", "time":
		return c.time(arg)
	case "track", "ports", "port", "odd", "far", "channels":
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n > maxMedias {
			return "", fmt.Errorf("{%s %s}: no such media", name, arg)
		}
		return c.ofMedia(name, n)
	}
	return "", fmt.Errorf("unknown variable {%s}", name)
}

func (c *conn) time(arg string) (string, error) {
	share := 1.0
	if arg != "" {
		var err error
		if share, err = strconv.ParseFloat(arg, 64); err != nil {
			return "", fmt.Errorf("{time %s}: %w", arg, err)
		}
	}
	if c.talk.recording.Duration == 0 {
		return "", nil
	}
	return strconv.FormatFloat(c.talk.recording.Duration*share, 'f', 3, 64), nil
}

func (c *conn) ofMedia(name string, n int) (string, error) {
	switch name {
	case "track":
		if n > len(c.medias) {
			return "", nil
		}
		return c.medias[n-1].control, nil
	case "channels":
		return fmt.Sprintf("%d-%d", 2*n-2, 2*n-1), nil
	}
	p := c.udp[n]
	if p == nil {
		local, _, _ := net.SplitHostPort(c.socket.LocalAddr().String())
		var err error
		if p, err = c.talk.newPair(net.ParseIP(local)); err != nil {
			return "", err
		}
		c.udp[n] = p
	}
	switch name {
	case "port":
		return strconv.Itoa(p.port), nil
	case "odd":
		return fmt.Sprintf("%d-%d", p.port+1, p.port+2), nil
	case "far":
		return fmt.Sprintf("%d-%d", p.port, p.port+5), nil
	}
	return fmt.Sprintf("%d-%d", p.port, p.port+1), nil
}

// describe takes from an SDP what later requests need.
func (c *conn) describe(m *Message, url string) {
	if base := m.Value("Content-Base"); base != "" {
		url = base
	}
	c.modified = m.Value("Last-Modified")
	c.readSDP(m.Body, url)
}

func (c *conn) readSDP(body []byte, url string) {
	c.base, c.medias = url, nil
	d, err := sdpunmarshaler.Unmarshal(body)
	if err != nil {
		return // whoever compares says so
	}
	if control, ok := d.Attribute("control"); ok && strings.Contains(control, "://") {
		c.base = control
	}
	if r, ok := d.Attribute("range"); ok {
		c.talk.recording.Duration = nptEnd(r)
	}
	for _, md := range d.MediaDescriptions {
		if len(c.medias) == maxMedias {
			return
		}
		one := media{kind: md.MediaName.Media, control: url}
		if control, ok := md.Attribute("control"); ok && control != "*" {
			one.control = join(url, control)
		}
		for _, text := range md.MediaName.Formats {
			if pt, err := strconv.ParseUint(text, 10, 7); err == nil {
				one.pts = append(one.pts, uint8(pt))
			}
		}
		one.clock = staticClock(one.pts)
		if rtpmap, ok := md.Attribute("rtpmap"); ok {
			if parts := strings.Split(rtpmap, "/"); len(parts) > 1 {
				one.clock, _ = strconv.Atoi(strings.TrimSpace(parts[1]))
			}
		}
		c.medias = append(c.medias, one)
	}
}

// staticClock is the clock rate of payload types that need no rtpmap (RFC 3551 6).
func staticClock(pts []uint8) int {
	if len(pts) == 0 || pts[0] >= 96 {
		return 0
	}
	switch {
	case pts[0] >= 25:
		return 90000
	case pts[0] == 10 || pts[0] == 11:
		return 44100
	}
	return 8000
}

// join resolves a control attribute as RFC 2326 C.1.1 and common clients do.
func join(base, control string) string {
	if strings.Contains(control, "://") {
		return control
	}
	if control == "" || strings.HasSuffix(base, "/") || control[0] == '?' || control[0] == '/' {
		return base + control
	}
	return base + "/" + control
}

// nptEnd is the end of "npt=0-12.5" in seconds, 0 if it is open.
func nptEnd(r string) float64 {
	_, span, _ := strings.Cut(r, "=")
	_, end, _ := strings.Cut(span, "-")
	d, err := strconv.ParseFloat(strings.TrimSpace(end), 64)
	if err != nil || d < 0 || d > 1e9 {
		return 0
	}
	return d
}
