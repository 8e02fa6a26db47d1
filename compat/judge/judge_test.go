package judge

import (
	"fmt"
	"testing"
	"time"

	"github.com/pion/rtcp"

	"rtspshim/compat/talk"
)

func TestNormal(t *testing.T) {
	n := newNormal(&talk.Recording{Authority: "10.0.0.1:554", Peer: "10.0.0.2:8554", Host: "10.0.0.1", Local: "10.0.0.9", Ports: []int{20000, 20010}})
	for _, c := range []struct{ name, value, want string }{
		{"Content-Base", "rtsp://10.0.0.1:554/a/", "rtsp://<server>/a/"},
		{"Content-Base", "rtsp://10.0.0.2:8554/a/", "rtsp://<server>/a/"},
		{"Content-Base", "rtsp://10.0.0.3:554/a/", "rtsp://10.0.0.3:554/a/"},
		{"Session", "abc;timeout=60", "<session 1>;timeout=60"},
		{"Session", "def", "<session 2>"},
		{"Session", "abc", "<session 1>"},
		{"Transport", "RTP/AVP;unicast;source=10.0.0.1;client_port=20010-20011;server_port=6970-6971;ssrc=3B0B435B",
			"RTP/AVP;unicast;source=<host>;client_port=<port 2+0>-<port 2+1>;server_port=<even port>-<+1>;ssrc=<ssrc>"},
		{"Transport", "RTP/AVP;client_port=1-2;server_port=6971-6973;destination=10.0.0.9", "RTP/AVP;client_port=1-2;server_port=<odd port>-<+2>;destination=<client>"},
		{"RTP-Info", "url=rtsp://10.0.0.1:554/a/1;seq=5;rtptime=77,url=b;seq=0;rtptime=0", "url=rtsp://<server>/a/1;seq=<n>;rtptime=<n>,url=b;seq=0;rtptime=0"},
		{"Date", "Sun, 22 Nov 2026 05:32:49 GMT", "<date>"},
		{"Date", "yesterday", "yesterday"},
		{"WWW-Authenticate", `Digest realm="x", nonce="abc", opaque="1"`, `Digest realm="x", nonce="<nonce>", opaque="<nonce>"`},
		{"Range", "npt=0.00000-20.5", "npt=#-#"},
		{"Server", "10.0.0.11", "10.0.0.11"},
	} {
		if got := n.field(&talk.Message{}, talk.Field{Name: c.name, Value: c.value}); got != c.want {
			t.Errorf("%s: %s\n got %s\nwant %s", c.name, c.value, got, c.want)
		}
	}
	if got := n.sdpLine("o=- 13672321427718687045 1 IN IP4 10.0.0.1"); got != "o=- <id> <version> IN IP4 <host>" {
		t.Error(got)
	}
}

func TestAlign(t *testing.T) {
	of := func(s string) (p []talk.Packet) {
		for _, c := range s {
			p = append(p, talk.Packet{Hash: uint64(c)})
		}
		return p
	}
	for _, c := range []struct {
		a, b                           string
		fixed                          bool
		pairs, missing, extra, changed int
		ok                             bool
	}{
		{"abcdefgh", "abcdefgh", true, 8, 0, 0, 0, true},
		{"abcdefgh", "abcdefghijk", true, 8, 0, 0, 0, true}, // heard longer
		{"abcdefgh", "abdefgh", true, 7, 1, 0, 0, true},
		{"abcdefgh", "bcdefgh", true, 7, 1, 0, 0, true},
		{"abcdefgh", "abXcdefgh", true, 8, 0, 1, 0, true},
		{"abcdefgh", "abXdefgh", true, 7, 0, 0, 1, true},
		{"abcdefgh", "abccdefgh", true, 8, 0, 1, 0, true},
		{"abcdefgh", "cdefghij", false, 6, 0, 0, 0, true}, // live: joined later
		{"cdefghij", "abcdefgh", false, 6, 0, 0, 0, true},
		{"abcdefgh", "cdeghijk", false, 5, 1, 0, 0, true},
		{"abcd", "wxyz", false, 0, 0, 0, 0, false},
	} {
		m, ok := align(of(c.a), of(c.b), c.fixed)
		if ok != c.ok || len(m.pairs) != c.pairs || m.missing != c.missing || m.extra != c.extra || m.changed != c.changed {
			t.Errorf("%s %s: %v %+v", c.a, c.b, ok, m)
		}
	}
}

// A number counts beyond its tolerance and beyond what the upstream varies by.
// A difference counts when it comes back: every time, or in more than a third of
// the rounds; more than three are held only where that is not clear yet.
func TestComesBack(t *testing.T) {
	held := func(name string) *talk.Recording {
		return &talk.Recording{Exchanges: []*talk.Exchange{{Title: "OPTIONS", Conn: "A", Method: "OPTIONS", Outcome: talk.Answered, Sent: []byte("OPTIONS * RTSP/1.0\r\n\r\n"),
			Answer: talk.ParseMessage([]byte("RTSP/1.0 200 OK\r\nPublic: " + name + "\r\n\r\n"))}}}
	}
	for _, c := range []struct {
		shim    string // a round each: d different, s the same
		verdict Verdict
		settled bool
	}{
		{"s", Same, true},
		{"d", Different, false},
		{"dd", Different, false},
		{"ddd", Different, true},
		{"dss", Allowed, true},
		{"dds", Different, false},
		{"ddssss", Allowed, true},
		{"ddsdss", Different, false},
	} {
		var rounds []Round
		for _, r := range c.shim {
			shim := held("OPTIONS")
			if r == 'd' {
				shim = held("PLAY")
			}
			rounds = append(rounds, Round{Direct: []*talk.Recording{held("OPTIONS"), held("OPTIONS")}, Shim: shim})
		}
		all := Judge(rounds)
		if v, settled := Worst(all), Settled(all, len(rounds)); v != c.verdict || settled != c.settled {
			t.Errorf("%s: %s, settled %v; want %s, %v", c.shim, v, settled, c.verdict, c.settled)
		}
	}
}

func TestWeigh(t *testing.T) {
	for _, c := range []struct {
		size, within, loose, spread float64
		rule                        *Rule
		want                        Verdict
		found                       bool
	}{
		{size: 1, want: Different, found: true},
		{size: 1, within: 1},
		{size: 1, spread: 1, want: Allowed, found: true},
		{size: 2, spread: 1, want: Different, found: true},
		{size: 2, spread: 1, loose: 3, want: Allowed, found: true},
		{size: 2, loose: 3, want: Different, found: true},
		{size: 2, rule: &Steady, want: Allowed, found: true},
	} {
		f, found := weigh(Difference{Size: c.size, Within: c.within, Loose: c.loose, Rule: c.rule}, c.spread)
		if found != c.found || found && f.Verdict != c.want {
			t.Errorf("%+v: %v %v", c, f.Verdict, found)
		}
	}
}

func TestFrames(t *testing.T) {
	of := func(s string) map[string][]uint64 {
		var h []uint64
		for _, c := range s {
			h = append(h, uint64(c))
		}
		return map[string][]uint64{"video": h}
	}
	one := func(shim string) Frames {
		return Frames{Direct: []map[string][]uint64{of("abcdefgh"), of("abcdefghi")}, Shim: of(shim)}
	}
	for shim, want := range map[string]Verdict{"abcdefgh": Same, "abcdefghij": Same, "abcXefgh": Different, "": Different} {
		if got := Worst(OfFrames([]Frames{one(shim)}, true)); got != want {
			t.Errorf("%q: %s", shim, got)
		}
	}
	if got := Worst(OfFrames([]Frames{one("abXdefgh"), one("abcdefgh"), one("abcdefgh")}, true)); got == Different {
		t.Error("what came once counts")
	}
}

// What is live is joined at any moment of its rhythm; what a viewer heard
// before it hung up is a matter of the moment, too. Neither is so for a movie
// or a stream that ends by itself.
func TestMoments(t *testing.T) {
	const frame = 40 * time.Millisecond
	play := func(duration float64, first time.Duration, packets int, left time.Duration) *talk.Recording {
		r := &talk.Recording{Took: 5 * time.Second, Duration: duration, Left: map[string]time.Duration{}}
		if left > 0 {
			r.Left["A"] = left
		}
		r.Exchanges = []*talk.Exchange{{Title: "PLAY", Conn: "A", Method: "PLAY", Outcome: talk.Answered, At: time.Second,
			Sent:   []byte("PLAY rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nSession: 1\r\n\r\n"),
			Answer: talk.ParseMessage([]byte("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1\r\n\r\n"))}}
		track := &talk.Track{Conn: "A", Session: "1", Media: 1, Kind: "video", Clock: 90000, UDP: true}
		for n := range packets {
			track.Packets = append(track.Packets, talk.Packet{At: time.Second + first + time.Duration(n)*frame, Hash: uint64(n), Seq: uint16(n), Timestamp: uint32(n * 3600)})
		}
		r.Tracks = []*talk.Track{track}
		return r
	}
	for _, c := range []struct {
		name             string
		duration         float64
		later            time.Duration
		packets          int // of the direct run's 50
		left             time.Duration
		first, untilDone bool
	}{
		{name: "live, a frame later", later: frame, packets: 50},
		{name: "live, two frames later", later: 2 * frame, packets: 50, first: true},
		{name: "movie, a frame later", duration: 60, later: frame, packets: 50, first: true},
		{name: "movie, hung up", duration: 60, packets: 49, left: 3 * time.Second},
		{name: "movie, ended a packet early", duration: 60, packets: 49, untilDone: true},
		{name: "movie, hung up and much is missing", duration: 60, packets: 40, left: 3 * time.Second, untilDone: true},
	} {
		seen := map[string]bool{}
		for _, x := range compare(play(c.duration, 0, 50, c.left), play(c.duration, c.later, c.packets, c.left), true) {
			if _, counts := weigh(x, 0); counts {
				seen[x.What] = true
			}
		}
		if seen["time to the first packet"] != c.first || seen["packets until its end"] != c.untilDone {
			t.Errorf("%s: %v", c.name, seen)
		}
	}
}

// An RTP-Info that should be exact may be off by a packet where the upstream's own
// is off for another track: it names one moment for all.
func TestOneMoment(t *testing.T) {
	play := func(video, audio int) *talk.Recording { // ticks by which the first packets are later than named
		info := fmt.Sprintf("RTP-Info: url=rtsp://h/a/1;seq=0;rtptime=%d,url=rtsp://h/a/2;seq=0;rtptime=%d\r\n", 10000-video, 10000-audio)
		r := &talk.Recording{Took: 5 * time.Second, Duration: 60, Exchanges: []*talk.Exchange{{Title: "PLAY", Conn: "A", Method: "PLAY", Outcome: talk.Answered, At: time.Second,
			Sent:   []byte("PLAY rtsp://h/a RTSP/1.0\r\nCSeq: 1\r\nSession: 1\r\n\r\n"),
			Answer: talk.ParseMessage([]byte("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1\r\n" + info + "\r\n"))}}}
		for i, c := range []struct {
			kind        string
			clock, step int
		}{{"video", 90000, 3600}, {"audio", 44100, 957}} {
			track := &talk.Track{Conn: "A", Session: "1", Control: fmt.Sprintf("rtsp://h/a/%d", i+1), Media: i + 1, Kind: c.kind, Clock: c.clock, UDP: true}
			for n := range 50 {
				track.Packets = append(track.Packets, talk.Packet{At: time.Second + time.Duration(n)*10*time.Millisecond, Hash: uint64(n), Seq: uint16(n), Timestamp: uint32(10000 + n*c.step)})
			}
			r.Tracks = append(r.Tracks, track)
		}
		return r
	}
	for _, c := range []struct {
		name         string
		direct, shim [2]int
		counts       bool
	}{
		{"another track's turn", [2]int{1650, 0}, [2]int{0, 957}, false},
		{"the upstream is exact", [2]int{0, 0}, [2]int{0, 957}, true},
		{"off by more than a packet", [2]int{1650, 0}, [2]int{0, 2 * 957}, true},
	} {
		different := false
		for _, x := range compare(play(c.direct[0], c.direct[1]), play(c.shim[0], c.shim[1]), true) {
			if f, counts := weigh(x, 0); counts && x.What == "first packet's time after RTP-Info's" {
				different = different || f.Verdict == Different
			}
		}
		if different != c.counts {
			t.Errorf("%s: different is %v", c.name, different)
		}
	}
}

// A sample that comes once more on resuming is set aside, once for each pause.
func TestOnce(t *testing.T) {
	track := &talk.Track{}
	var all []Section
	for _, s := range []struct{ method, packets string }{
		{"PLAY", "abc"}, {"PAUSE", ""}, {"PLAY", "cde"}, {"PAUSE", "f"}, {"PLAY", "fghi"}, {"PLAY", "xyz"}, {"PLAY", "xyzw"},
	} {
		from := len(track.Packets)
		for _, c := range s.packets {
			track.Packets = append(track.Packets, talk.Packet{Hash: uint64(c)})
		}
		all = append(all, Section{Method: s.method, From: from, To: len(track.Packets)})
	}
	out, sections, again := once(track, all)
	if again != 1+1+3 {
		t.Errorf("%d again", again)
	}
	got := ""
	for _, s := range sections {
		for _, p := range out.Packets[s.From:s.To] {
			got += string(rune(p.Hash))
		}
		got += " "
	}
	if want := "abc  de f ghi xyz w "; got != want {
		t.Errorf("left %q, want %q", got, want)
	}
	sections[2].Ranged = true
	if same, _, again := once(out, sections); again != 0 || same != out {
		t.Error("found more")
	}
}

// A connection that the upstream closes after a minute without requests may stay
// open through the shim; one that it closes sooner may not.
func TestKept(t *testing.T) {
	held := func(silence time.Duration, open bool) *talk.Recording {
		last := &talk.Exchange{Title: "TEARDOWN url", Conn: "A", SentAt: silence, Outcome: talk.Closed}
		end := talk.End{Conn: "A", State: "closed"}
		if open {
			last.Outcome, last.Answer, end.State = talk.Answered, talk.ParseMessage([]byte("RTSP/1.0 200 OK\r\n\r\n")), "open"
		}
		return &talk.Recording{Exchanges: []*talk.Exchange{{Title: "PLAY url", Conn: "A", Outcome: talk.Closed}, last}, Ends: []talk.End{end}}
	}
	for silence, want := range map[time.Duration]Verdict{time.Minute: Allowed, 20 * time.Second: Different} {
		closed := held(silence, false)
		found := Judge([]Round{{Direct: []*talk.Recording{closed, held(silence, false)}, Shim: held(silence, true)}})
		if Worst(found) != want || len(found) != 2 {
			t.Errorf("after %v: %+v", silence, found)
		}
	}
}

// A report that names a packet may come a moment before it, on another port, but
// not a packet earlier.
func TestOvertakes(t *testing.T) {
	for before, want := range map[time.Duration]float64{-time.Millisecond: 0, time.Millisecond: 0, 50 * time.Millisecond: 0.16} {
		track := &talk.Track{Clock: 1000}
		for n := range 20 {
			at := time.Duration(n) * 160 * time.Millisecond
			track.Packets = append(track.Packets, talk.Packet{At: at, Timestamp: uint32(n * 160)})
			if n%5 == 4 {
				track.Reports = append(track.Reports, talk.Report{At: at - before, SR: &rtcp.SenderReport{RTPTime: uint32(n * 160)}})
			}
		}
		if m, ok := mapping(&talk.Recording{}, track); !ok || m.media != want {
			t.Errorf("%v before its packet: %v, not %v", before, m.media, want)
		}
	}
}
