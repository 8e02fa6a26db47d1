package intercept

import (
	"net/url"
	"strconv"
	"strings"

	"rtspshim/engine/live"
)

// liveKey names the stream that a session plays: the URL's path and query, the
// Medias set up, and the SDP but for what differs from one DESCRIBE to another.
// It is empty when that is not known, or no live stream.
func (s *session) liveKey() string {
	u, err := url.Parse(s.url)
	if err != nil || s.sdp == "" || s.relayOnly != "" || s.record || !s.onePath() {
		return ""
	}
	var key strings.Builder
	key.WriteString(strings.TrimSuffix(u.EscapedPath(), "/") + "?" + u.RawQuery)
	for _, m := range s.medias {
		key.WriteString("\n" + lastPart(m.url))
	}
	for line := range strings.Lines(s.sdp) {
		switch {
		case strings.HasPrefix(line, "o="), strings.HasPrefix(line, "c="):
			continue
		case strings.HasPrefix(line, "a=range:"):
			_, end, ok := strings.Cut(strings.TrimSpace(line), "-")
			if !strings.HasPrefix(line, "a=range:npt=") || !ok || end != "" {
				return "" // it has an end, or a clock's time
			}
			continue
		}
		key.WriteString("\n" + strings.TrimSpace(line))
	}
	return key.String()
}

// liveMedias are the session's Medias as their SDP describes them.
func (s *session) liveMedias() []live.Media {
	medias := make([]live.Media, len(s.medias))
	sections := strings.Split("\n"+strings.ReplaceAll(s.sdp, "\r", ""), "\nm=")
	for n, m := range s.medias {
		medias[n].Rate = 90000
		for _, section := range sections[1:] {
			if _, control, ok := strings.Cut(section, "\na=control:"); !ok ||
				lastPart(strings.SplitN(control, "\n", 2)[0]) != lastPart(m.url) && len(sections) > 2 {
				continue
			}
			_, rtpmap, _ := strings.Cut(section, "\na=rtpmap:")
			_, coding, _ := strings.Cut(strings.SplitN(rtpmap, "\n", 2)[0], " ")
			name, rate, _ := strings.Cut(coding, "/")
			rate, _, _ = strings.Cut(rate, "/")
			medias[n].Codec = strings.ToUpper(name)
			if r, err := strconv.ParseUint(strings.TrimSpace(rate), 10, 32); err == nil {
				medias[n].Rate = uint32(r)
			}
		}
	}
	return medias
}
