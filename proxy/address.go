package proxy

import (
	"bytes"
	"net"
	"net/url"
	"strings"
)

// An upstream that writes its own address into an answer would lead the
// client past the shim; there, and only there, the address becomes the one
// the client used. Servers that echo the request's host need none of it.

// urlHeaders may hold the upstream's address in a URL.
var urlHeaders = []string{"Content-Base", "Content-Location", "Location", "RTP-Info"}

// ownAddress replaces the upstream's own address in m by the shim's, as the
// client wrote it in requestURI, or as the connection has it.
func (c *Conn) ownAddress(m *Message, requestURI string) {
	sdp := m.Whole() && bytes.Contains(m.body, []byte("a=control:rtsp"))
	if !sdp && !bytes.Contains(m.head, []byte("://")) && !m.Has("X-Server-IP-Address") {
		return
	}
	scheme, own := "rtsp", ""
	if c.secure {
		scheme = "rtsps"
	}
	if u, err := url.Parse(requestURI); err == nil && u.Host != "" {
		own = u.Host
	} else {
		own = c.ClientLocal().String()
	}
	edit := func(value string) string { return c.server.replaceOwn(value, c.Upstream().String(), scheme, own) }
	for _, name := range urlHeaders {
		m.Edit(name, edit)
	}
	m.Edit("X-Server-IP-Address", func(ip string) string {
		if ip == c.Upstream().Addr().String() {
			return c.ClientLocal().Addr().String()
		}
		return ip
	})
	if sdp {
		m.SetBody(editControls(m.body, edit))
	}
}

// editControls edits the absolute a=control lines of an SDP (RFC 2326 §C.1.1).
func editControls(sdp []byte, edit func(string) string) []byte {
	lines := bytes.SplitAfter(sdp, []byte("\n"))
	for i, line := range lines {
		if bytes.HasPrefix(line, []byte("a=control:rtsp")) {
			lines[i] = []byte(edit(string(line)))
		}
	}
	return bytes.Join(lines, nil)
}

// replaceOwn replaces scheme and authority of every RTSP URL in value whose
// authority is the upstream's: as configured, or as dialled.
func (s *Server) replaceOwn(value, dialled, scheme, own string) string {
	var out strings.Builder
	rest := value
	for {
		i := strings.Index(rest, "://")
		if i < 0 {
			break
		}
		start := i
		for start > 0 && isAlpha(rest[start-1]) {
			start--
		}
		was := strings.ToLower(rest[start:i])
		end := i + 3
		for end < len(rest) && !strings.ContainsRune("/?#;,\" \t\r\n", rune(rest[end])) {
			end++
		}
		authority := rest[i+3 : end]
		user := ""
		if at := strings.LastIndexByte(authority, '@'); at >= 0 {
			user, authority = authority[:at+1], authority[at+1:]
		}
		out.WriteString(rest[:start])
		if (was == "rtsp" || was == "rtsps") && s.isUpstream(authority, was, dialled) {
			out.WriteString(scheme + "://" + user + own)
		} else {
			out.WriteString(rest[start:end])
		}
		rest = rest[end:]
	}
	if out.Len() == 0 {
		return value
	}
	return out.String() + rest
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// isUpstream says whether a URL's authority is the upstream's address.
func (s *Server) isUpstream(authority, scheme, dialled string) bool {
	if _, _, err := net.SplitHostPort(authority); err != nil {
		authority = net.JoinHostPort(strings.Trim(authority, "[]"), defaultPort(scheme))
	}
	return strings.EqualFold(authority, s.upstream) || authority == dialled
}

// ownURI puts the upstream's scheme and address into a request-URI
// (Config.RewriteHost).
func (s *Server) ownURI(m *Message) {
	uri := m.URI()
	i := strings.Index(uri, "://")
	if i < 0 {
		return
	}
	path := ""
	if j := strings.IndexAny(uri[i+3:], "/?"); j >= 0 {
		path = uri[i+3+j:]
	}
	m.SetURI(s.cfg.Upstream.Scheme + "://" + s.cfg.Upstream.Host + path)
}
