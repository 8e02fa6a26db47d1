package bench

import (
	"net/url"
	"strconv"
	"strings"
	"time"
)

// media is what setting up a media and counting its packets needs of an SDP's
// m= section (RFC 8866).
type media struct {
	kind    string // "video"
	control string // URL
	rate    uint32 // Hz of the RTP clock, 0 if unknown
}

// sdpInfo is what a DESCRIBE tells.
type sdpInfo struct {
	control string // URL to PLAY
	medias  []media
	length  time.Duration // 0: live, or unknown
}

// staticRates are the RTP clocks of payload types that need no rtpmap (RFC 3551 §6).
var staticRates = map[string]uint32{"0": 8000, "3": 8000, "8": 8000, "9": 8000, "10": 44100, "11": 44100, "14": 90000,
	"26": 90000, "32": 90000, "33": 90000}

// parseSDP reads a description whose relative URLs stand on base. It is lenient:
// what it does not know it passes over.
func parseSDP(text, base string) sdpInfo {
	d := sdpInfo{control: base}
	var kind string // payload type of the m= line
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		var m *media
		if n := len(d.medias); n > 0 {
			m = &d.medias[n-1]
		}
		switch {
		case key == "m":
			f := strings.Fields(value)
			if len(f) < 4 {
				continue
			}
			kind = f[3]
			d.medias = append(d.medias, media{kind: f[0], control: base, rate: staticRates[kind]})
		case key != "a":
		case strings.HasPrefix(value, "control:") && m == nil:
			d.control = resolve(base, value[len("control:"):])
		case strings.HasPrefix(value, "control:"):
			m.control = resolve(base, value[len("control:"):])
		case strings.HasPrefix(value, "rtpmap:") && m != nil:
			pt, codec, _ := strings.Cut(value[len("rtpmap:"):], " ")
			if _, rate, ok := strings.Cut(codec, "/"); ok && pt == kind {
				rate, _, _ = strings.Cut(rate, "/")
				if n, err := strconv.ParseUint(strings.TrimSpace(rate), 10, 32); err == nil {
					m.rate = uint32(n)
				}
			}
		case strings.HasPrefix(value, "range:"):
			if l := rangeLength(value[len("range:"):]); l > 0 {
				d.length = l
			}
		}
	}
	return d
}

// rangeLength is the length of "npt=0-12.5" (RFC 2326 §C.1.5), 0 without an
// end. gst-rtsp-server writes a movie's as "npt=now-12.5".
func rangeLength(s string) time.Duration {
	s, ok := strings.CutPrefix(strings.TrimSpace(s), "npt=")
	if !ok {
		return 0
	}
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return 0
	}
	from = strings.TrimSpace(from)
	if from == "now" {
		from = "0"
	}
	a, err1 := strconv.ParseFloat(from, 64)
	b, err2 := strconv.ParseFloat(strings.TrimSpace(to), 64)
	if err1 != nil || err2 != nil || b <= a || b > 1e8 {
		return 0
	}
	return time.Duration((b - a) * float64(time.Second))
}

// resolve is the URL of a control attribute, as RTSP clients make it: what is
// not absolute is appended.
func resolve(base, control string) string {
	control = strings.TrimSpace(control)
	if control == "" || control == "*" {
		return base
	}
	if u, err := url.Parse(control); err == nil && u.IsAbs() {
		return control
	}
	if !strings.HasSuffix(base, "/") {
		base += "/"
	}
	return base + strings.TrimPrefix(control, "/")
}
