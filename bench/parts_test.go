package bench

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/conn"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/pion/rtcp"
	"github.com/pion/sdp/v3"
)

// sdps are as real servers write them.
var sdps = map[string]string{
	"gst": "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\na=control:*\r\na=range:npt=now-60\r\nm=video 0 RTP/AVP 96\r\nc=IN IP4 0.0.0.0\r\n" +
		"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets=Z0LAHtoCgL/lwEQAAAMABAAAAwDJiIAD0JAAehOCSAHixdQ=,aM48gA==\r\na=control:stream=0\r\n" +
		"m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/44100/2\r\na=fmtp:97 streamtype=5;profile-level-id=2;mode=AAC-hbr;config=1210;sizelength=13;indexlength=3;indexdeltalength=3\r\na=control:stream=1\r\n",
	"live": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=Stream\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=audio 0 RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\na=control:trackID=0\r\n",
	"absolute": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=Stream\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=range:npt=0-  70.00000\r\nm=video 0 RTP/AVP 96\r\n" +
		"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:rtsp://host:554/path/track?x=1\r\n",
}

// Control URLs and clocks are those that gortsplib's client finds.
func TestSDPAsGortsplib(t *testing.T) {
	for name, text := range sdps {
		var parsed sdp.SessionDescription
		var want description.Session
		if err := errors.Join(parsed.Unmarshal([]byte(text)), want.Unmarshal2(&parsed)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		const at = "rtsp://host:554/dir/movie.mp4/"
		u, err := base.ParseURL(at)
		if err != nil {
			t.Fatal(err)
		}
		got := parseSDP(text, at)
		if len(got.medias) != len(want.Medias) || got.control != at {
			t.Fatalf("%s: %+v", name, got)
		}
		for i, m := range want.Medias {
			c, err := m.URL(u)
			if err != nil {
				t.Fatal(err)
			}
			if got.medias[i].control != c.String() || int(got.medias[i].rate) != m.Formats[0].ClockRate() || got.medias[i].kind != string(m.Type) {
				t.Errorf("%s: %+v, want %s at %d Hz", name, got.medias[i], c, m.Formats[0].ClockRate())
			}
		}
	}
	for name, want := range map[string]time.Duration{"gst": time.Minute, "live": 0, "absolute": 70 * time.Second} {
		if got := parseSDP(sdps[name], "x").length; got != want {
			t.Errorf("%s is %v long, want %v", name, got, want)
		}
	}
}

// mixed is a connection's bytes: frames with answers among them.
func mixed() []byte {
	var b []byte
	for i := range 20 {
		if i%7 == 3 {
			b = append(b, "RTSP/1.0 200 OK\r\nCSeq: 4\r\nContent-Length: 5\r\n\r\n$\x00\x00\x01x"...)
		}
		n := i * 37 % 1400
		b = append(b, '$', byte(i%4))
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		b = append(b, bytes.Repeat([]byte{byte(i)}, n)...)
	}
	return b
}

// However a connection's bytes are cut, the frames are those that gortsplib reads.
func TestDeframeAsGortsplib(t *testing.T) {
	var want []string
	c := conn.NewConn(bufio.NewReader(bytes.NewReader(mixed())), nil)
	for {
		v, err := c.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		switch v := v.(type) {
		case *base.InterleavedFrame:
			want = append(want, fmt.Sprintf("%d %x", v.Channel, v.Payload))
		case *base.Response:
			want = append(want, fmt.Sprintf("message %s", v.Header["CSeq"][0]))
		default:
			t.Fatalf("%T, %v", v, err)
		}
	}
	for _, size := range []int{1, 2, 3, 5, 100, 1403, 1 << 20} {
		var got []string
		var rest []byte
		for in := mixed(); len(in) > 0; {
			n := min(size, len(in))
			b := append(append([]byte(nil), rest...), in[:n]...)
			in = in[n:]
			var err error
			rest, err = deframe(b, func(ch uint8, p []byte) { got = append(got, fmt.Sprintf("%d %x", ch, p)) },
				func([]byte) { got = append(got, "message 4") })
			if err != nil {
				t.Fatal(err)
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") || len(rest) != 0 {
			t.Errorf("in pieces of %d: %d elements and %d octets left, want %d", size, len(got), len(rest), len(want))
		}
	}
}

func TestDeframeRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"noise":           "\x00\x01\x02",
		"an endless head": "RTSP/1.0 200 OK\r\n" + strings.Repeat("A: b\r\n", 1<<14),
		"a huge body":     "RTSP/1.0 200 OK\r\nContent-Length: 999999999\r\n\r\n",
	} {
		if _, err := deframe([]byte(in), func(uint8, []byte) {}, func([]byte) {}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzDeframe(f *testing.F) {
	f.Add(mixed())
	f.Add([]byte("$\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		used := 0
		rest, _ := deframe(b, func(_ uint8, p []byte) { used += 4 + len(p) }, func([]byte) {})
		if len(rest)+used > len(b) || !bytes.HasSuffix(b, rest) {
			t.Errorf("%d octets of %d used, %d left", used, len(b), len(rest))
		}
	})
}

// The CPU time of a process is what wait4 says of it in the end.
func TestProcessFigures(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("known on Linux only")
	}
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo; read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	got, err := cpuTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if name := command(cmd.Process.Pid); name != "sh" {
		t.Errorf("command %q", name)
	}
	_ = in.Close()
	_ = cmd.Wait()
	want := cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
	if d := (got - want).Abs(); d > 30*time.Millisecond+want/10 || want < 20*time.Millisecond {
		t.Errorf("CPU time %v, wait4 says %v", got, want)
	}
	if _, err := cpuTime(cmd.Process.Pid); err == nil {
		t.Error("a process that is gone has CPU time")
	}

	before, err := memory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	after, err := memory(os.Getpid())
	if err != nil || after < before+48<<20 {
		t.Errorf("%d octets after %d and 64 MiB more, %v", after, before, err)
	}
	runtime.KeepAlive(b)
}

func TestListener(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("known on Linux only")
	}
	for _, at := range []string{"127.0.0.1:0", "[::]:0"} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ln.Addr().(*net.TCPAddr).AddrPort().Port())
		if pid, err := listener(addr); pid != os.Getpid() || err != nil {
			t.Errorf("%s: %d, %v; want %d", at, pid, err, os.Getpid())
		}
		_ = ln.Close()
		if pid, err := listener(addr); err == nil {
			t.Errorf("%s, closed: %d", at, pid)
		}
	}
}

// The raw loops reach their receivers, in order, and cost something.
func TestLimits(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("measured on Linux only")
	}
	cfg := LimitConfig{Duration: 50 * time.Millisecond, Destinations: 10, Dir: t.TempDir(), FileSize: 16 << 20}
	all, err := Limits(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{LimitPacket, LimitGathered, LimitShared, LimitPaced, LimitFanned, LimitTCP, LimitDisk}
	if len(all) != len(want) {
		t.Fatalf("%+v", all)
	}
	for i, l := range all {
		if l.Name != want[i] || l.Cost <= 0 || l.Cost > 100 || l.Gbps <= 0 || l.Lost < 0 || l.Lost > .5 {
			t.Errorf("%+v", l)
		}
		if (l.Name == LimitPaced || l.Name == LimitFanned) && (l.Gbps < .5 || l.Gbps > 1.2) {
			t.Errorf("paced to 1 Gbit/s: %+v", l)
		}
	}
	if left, _ := os.ReadDir(cfg.Dir); len(left) != 0 {
		t.Errorf("%d files left", len(left))
	}
	for _, bad := range []LimitConfig{{Packet: 5}, {Segments: 65}, {Packet: 9000, Segments: 10}, {Destinations: -1}} {
		if _, err := Limits(t.Context(), bad); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	good := Server{URL: "rtsp://127.0.0.1:1/x"}
	for name, c := range map[string]Config{
		"no server":    {Sessions: []int{1}},
		"three":        {Servers: []Server{good, good, good}, Sessions: []int{1}},
		"no sessions":  {Servers: []Server{good}},
		"zero":         {Servers: []Server{good}, Sessions: []int{0}},
		"http":         {Servers: []Server{{URL: "http://x/"}}, Sessions: []int{1}},
		"no process":   {Servers: []Server{{URL: good.URL, Pids: []int{1 << 30}}}, Sessions: []int{1}},
		"negative":     {Servers: []Server{good}, Sessions: []int{1}, Duration: -1},
		"no reference": {Servers: []Server{good}, Sessions: []int{1}, Reference: "x"},
	} {
		if _, err := Measure(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A goodbye counts when it is of the track's own SSRC, and before we leave.
func TestGoodbye(t *testing.T) {
	compound := func(ssrc uint32) []byte {
		b, err := rtcp.Marshal([]rtcp.Packet{&rtcp.SenderReport{SSRC: ssrc},
			&rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{Source: ssrc, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: "x"}}}}},
			&rtcp.ApplicationDefined{SSRC: ssrc, Name: "qtsi", Data: []byte("1234")}, &rtcp.Goodbye{Sources: []uint32{ssrc}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tr := &track{}
	p := rtpPacket(1, 1, 77, true, 0)
	tr.packet(p, len(p), 1, &window{})
	s := &session{tracks: []*track{tr}}
	s.rtcp(tr, compound(78))
	s.rtcp(tr, compound(77)[:20])
	if s.broken {
		t.Error("another's goodbye, or none")
	}
	s.rtcp(tr, compound(77))
	if !s.broken {
		t.Error("the goodbye was not seen")
	}
	s.broken, s.leaving = false, true
	s.rtcp(tr, compound(77))
	if s.broken {
		t.Error("the answer to our own leave")
	}
}

func TestCapacity(t *testing.T) {
	run := func(server string, load int, lost uint64, late float64) Run {
		return Run{Server: server, Load: load, Sessions: load, Packets: 1000, Lost: lost, Late: Quantiles{N: 1, P999: late}}
	}
	short := run("short", 10, 0, 1)
	short.Sessions = 9
	r := Report{MaxLate: 20, Runs: []Run{run("a", 1, 0, 1), run("b", 1, 1, 1), run("a", 10, 0, 19), run("b", 10, 0, 1), run("a", 100, 0, 21), run("a", 1000, 0, 1), short}}
	for server, want := range map[string]int{"a": 10, "b": 0, "short": 0, "nobody": 0} {
		if got := r.Capacity(server); got != want {
			t.Errorf("%s: %d, want %d", server, got, want)
		}
	}
}

// checkPlots reads the pictures of a report of two servers at two loads.
func checkPlots(t *testing.T, r *Report) {
	t.Helper()
	plots := r.Plots()
	if len(plots) < 4 {
		t.Errorf("%d plots", len(plots))
	}
	for _, p := range plots {
		var b bytes.Buffer
		if err := p.WriteSVG(&b); err != nil {
			t.Fatal(err)
		}
		circles := 0
		for d := xml.NewDecoder(&b); ; {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", p.Name, err)
			}
			if e, ok := tok.(xml.StartElement); ok {
				if e.Name.Local == "circle" {
					circles++
				}
				for _, a := range e.Attr {
					if strings.Contains(a.Value, "%!") || strings.Contains(a.Value, "NaN") {
						t.Errorf("%s: %s=%q", p.Name, a.Name.Local, a.Value)
					}
				}
			}
		}
		if circles != 4 {
			t.Errorf("%s: %d points, want 4", p.Name, circles)
		}
	}
}
