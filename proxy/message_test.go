package proxy

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
)

func TestMessageEdits(t *testing.T) {
	const in = "SETUP rtsp://h/a RTSP/1.0\r\nCSeq:7\r\nx-ODD :  v a l \r\nTransport:\r\n RTP/AVP;unicast\r\nTransport: b\r\n\r\nbody"
	for name, c := range map[string]struct {
		edit func(*Message)
		want string
	}{
		"none":         {func(*Message) {}, in},
		"same":         {func(m *Message) { m.Edit("CSEQ", func(v string) string { return v }) }, in},
		"value":        {func(m *Message) { m.Set("cseq", "12") }, strings.Replace(in, "CSeq:7", "CSeq:12", 1)},
		"odd name":     {func(m *Message) { m.Set("X-Odd", "w") }, strings.Replace(in, "v a l", "w", 1)},
		"folded":       {func(m *Message) { m.Set("Transport", "c") }, strings.Replace(in, "RTP/AVP;unicast", "c", 1)},
		"each":         {func(m *Message) { m.Edit("transport", strings.ToUpper) }, strings.NewReplacer("RTP/AVP;unicast", "RTP/AVP;UNICAST", ": b", ": B").Replace(in)},
		"URI":          {func(m *Message) { m.SetURI("*") }, strings.Replace(in, "rtsp://h/a", "*", 1)},
		"no injection": {func(m *Message) { m.Set("CSeq", "1\r\nEvil: 1") }, strings.Replace(in, "CSeq:7", "CSeq:1Evil: 1", 1)},
		"added":        {func(m *Message) { m.Add("Range", "npt=1-") }, strings.Replace(in, "\r\n\r\nbody", "\r\nRange: npt=1-\r\n\r\nbody", 1)},
		"absent":       {func(m *Message) { m.Set("Session", "1") }, in},
	} {
		t.Run(name, func(t *testing.T) {
			m := ParseMessage([]byte(in))
			c.edit(m)
			if got := string(m.Bytes()); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
	bare := ParseMessage([]byte("PLAY a RTSP/1.0\n\n"))
	bare.Add("Range", "npt=1-\r\nEvil: 1")
	if got := string(bare.Bytes()); got != "PLAY a RTSP/1.0\nRange: npt=1-Evil: 1\n\n" {
		t.Errorf("added to LF lines: %q", got)
	}
	m := ParseMessage([]byte(in))
	if m.Method() != "SETUP" || m.URI() != "rtsp://h/a" || m.Version() != "RTSP/1.0" || m.Get("X-odd") != "v a l" {
		t.Errorf("read %q %q %q %q", m.Method(), m.URI(), m.Version(), m.Get("x-odd"))
	}
	if got := m.Get("Transport"); got != "RTP/AVP;unicast" {
		t.Errorf("folded header read as %q", got)
	}
}

func TestOwnAddress(t *testing.T) {
	up, _ := url.Parse("rtsp://media.example:554")
	s := &Server{cfg: Config{Upstream: up}, upstream: "media.example:554"}
	for in, want := range map[string]string{
		"rtsp://media.example/a/":                           "rtsp://shim:8554/a/",
		"rtsp://MEDIA.example:554/a":                        "rtsp://shim:8554/a",
		"rtsp://127.0.0.1:1554/a":                           "rtsp://shim:8554/a",
		"rtsp://u:p@media.example/a":                        "rtsp://u:p@shim:8554/a",
		"rtsp://media.example:8554/a":                       "rtsp://media.example:8554/a",
		"rtsp://other/a?x=rtsp://media.example/b":           "rtsp://other/a?x=rtsp://shim:8554/b",
		"url=rtsp://media.example/a/1;seq=1,url=rtsp://o/2": "url=rtsp://shim:8554/a/1;seq=1,url=rtsp://o/2",
		"http://media.example/a":                            "http://media.example/a",
		"trackID=1":                                         "trackID=1",
		"://":                                               "://",
		"rtsp://":                                           "rtsp://",
	} {
		if got := s.replaceOwn(in, "127.0.0.1:1554", "rtsp", "shim:8554"); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestEditControls(t *testing.T) {
	in := []byte("v=0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\na=control:rtsp://up/a\r\na=x:rtsp://up/a\r\n")
	got := editControls(in, func(s string) string { return strings.ReplaceAll(s, "//up/", "//shim/") })
	if want := bytes.Replace(in, []byte("control:rtsp://up"), []byte("control:rtsp://shim"), 1); !bytes.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestSetBodyKeepsLengthTrue(t *testing.T) {
	m := ParseMessage([]byte("RTSP/1.0 200 OK\r\nContent-length: 3\r\nA: b\r\n\r\nabc"))
	m.SetBody([]byte("abcdefghij"))
	if got, want := string(m.Bytes()), "RTSP/1.0 200 OK\r\nContent-length: 10\r\nA: b\r\n\r\nabcdefghij"; got != want {
		t.Errorf("got %q", got)
	}
}
