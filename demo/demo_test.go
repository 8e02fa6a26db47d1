package demo_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"rtspshim/demo"
	"rtspshim/internal/testbed"
)

// What players decode from the server are the movie's own frames: from the
// start, after a seek, and, of a live stream, over and over.
func TestFrames(t *testing.T) {
	t.Parallel()
	s := start(t, demo.Config{})
	const length = 1500 * time.Millisecond
	cases := []struct {
		path string
		by   string
		over testbed.Transport
		from time.Duration
	}{
		{"/h264-bframes-aac.mp4", "ffmpeg", testbed.UDP, 0},
		{"/h264-aac.mov", "ffmpeg", testbed.TCP, 0},
		{"/hevc-aac.mp4", "ffmpeg", testbed.UDP, 0},
		{"/mpeg4-aac.mp4", "ffmpeg", testbed.TCP, 0},
		{"/aac.mp4", "ffmpeg", testbed.UDP, 0},
		{"/h264-aac.mp4", "gst", testbed.UDP, 0},
		{"/h264-bframes-aac.mp4", "gst", testbed.TCP, 0},
		{"/h264-aac.mp4", "ffmpeg", testbed.UDP, 8 * time.Second},
		{"/h264-aac.mp4", "ffmpeg", testbed.TCP, 5 * time.Second},
		{"/live/h264-aac.mp4", "ffmpeg", testbed.UDP, 0},
		{"/live/hevc-aac.mp4", "ffmpeg", testbed.TCP, 0},
	}
	var plays []func() testbed.Frames
	for _, c := range cases {
		plays = append(plays, func() testbed.Frames {
			length := length
			if strings.HasPrefix(c.path, "/live/") {
				length += time.Second // for a key frame to come
			}
			if c.by == "gst" {
				return testbed.GstFrames(t.Context(), t, s.URL(c.path), c.over, length)
			}
			return testbed.FFmpegFramesFrom(t.Context(), t, s.URL(c.path), c.over, c.from, length)
		})
	}
	for i, got := range testbed.Together(plays...) {
		c := cases[i]
		whole := time.Duration(0)
		if c.from == 0 && !strings.HasPrefix(c.path, "/live/") {
			whole = 2 * length // is enough
		}
		want := testbed.FileFrames(t.Context(), t, testbed.Movie(t, filepath.Base(c.path)), whole)
		if c.by == "gst" || c.from > 0 {
			// GStreamer rounds sound differently, and within a packet of sound
			// there is no seeking.
			want.Audio, got.Audio = nil, nil
		}
		var err error
		if strings.HasPrefix(c.path, "/live/") {
			err = testbed.CompareLoop(want, got, 30)
		} else {
			want.Video = want.Video[min(len(want.Video), int(c.from/(40*time.Millisecond))):]
			err = testbed.CompareStart(want, got, 30)
		}
		if err != nil {
			t.Errorf("%s by %s over %s: %v", c.path, c.by, c.over, err)
		}
	}
}

// RTP-Info names the next packet of each track, whatever was asked for, and
// Range says what.
func TestPlay(t *testing.T) {
	t.Parallel()
	s := start(t, demo.Config{})
	url := s.URL("/h264-aac.mp4")
	c := dial(t, s)
	tracks := []*udpTrack{c.setup(url + "/streamid=3"), c.setup(url + "/streamid=4")}
	rates := []float64{90000, 44100}
	var zero, seq [2]uint32 // timestamp of the movie's start; last sequence number
	slack := 0.001          // s; a Range that has ended is a pause
	for i, step := range []struct {
		asked, said string
		from        float64 // s
		quiet       bool    // nothing comes
	}{
		{asked: "npt=0-", said: "npt=0.00000-12.00000"},
		{asked: "npt=5-", said: "npt=5.00000-12.00000", from: 5},
		{asked: "npt=2.52-7.5", said: "npt=2.52000-7.50000", from: 2.52},
		{asked: "npt=0:00:03.5-", said: "npt=3.50000-12.00000", from: 3.5},
		{asked: "npt=-9", said: "npt=0.00000-9.00000"},
		{asked: "npt=now-", said: "npt=0.00000-12.00000"},
		{asked: "npt=9-4", said: "npt=9.00000-4.00000", from: 9, quiet: true},
		{asked: "npt=11.5-", said: "npt=11.50000-12.00000", from: 11.5},
		{asked: "npt=600-", said: "npt=600.00000-12.00000", quiet: true},
		{asked: "smpte=none", said: "npt=0.00000-12.00000"},
	} {
		asked := time.Now()
		res := c.ok("PLAY", url, "Range: "+step.asked)
		if got := res.Header["Range"]; len(got) != 1 || got[0] != step.said {
			t.Errorf("%s: Range %v, want %s", step.asked, got, step.said)
		}
		info := c.info(res)
		if len(info) != 2 {
			t.Fatalf("%s: RTP-Info of %d tracks", step.asked, len(info))
		}
		for k, track := range tracks {
			if want := fmt.Sprintf("%s/streamid=%d", url, 3+k); info[k].URL != want {
				t.Errorf("%s: RTP-Info of %s, want %s", step.asked, info[k].URL, want)
			}
			if strings.HasPrefix(step.asked, "npt=600") {
				if *info[k].SequenceNumber != 0 || *info[k].Timestamp != 0 {
					t.Errorf("%s: RTP-Info %v", step.asked, info[k])
				}
				continue
			}
			if i == 0 {
				zero[k] = *info[k].Timestamp
			} else if *info[k].SequenceNumber == 0 && !step.quiet {
				t.Logf("sequence number 0: by chance, one time in 65,536")
			}
			// A hint sample that is due at the position, or began before it.
			at := float64(int32(*info[k].Timestamp-zero[k])) / rates[k]
			if at > step.from+slack || at < step.from-0.2 {
				t.Errorf("%s: track %d begins at %.3f s", step.asked, k, at)
			}
			if step.quiet {
				continue
			}
			// Packets of before may still be on their way: the first that is named.
			p := track.next()
			for p.SequenceNumber != *info[k].SequenceNumber {
				if int16(p.SequenceNumber-*info[k].SequenceNumber) > 0 {
					t.Fatalf("%s: track %d: packet %d, RTP-Info %d", step.asked, k, p.SequenceNumber, *info[k].SequenceNumber)
				}
				seq[k] = uint32(p.SequenceNumber)
				p = track.next()
			}
			is(t, step.asked, p, info[k])
			if i > 0 && p.SequenceNumber != uint16(seq[k])+1 {
				t.Errorf("%s: track %d goes on with %d after %d", step.asked, k, p.SequenceNumber, seq[k])
			}
			seq[k] = uint32(p.SequenceNumber)
		}
		if step.quiet {
			for k, track := range tracks {
				if last := track.drain(); last != nil {
					seq[k] = uint32(last.SequenceNumber)
				}
				if p := track.within(150 * time.Millisecond); p != nil {
					t.Errorf("%s: a packet at %d", step.asked, p.Timestamp-zero[k])
				}
			}
			slack += time.Since(asked).Seconds()
		}
	}
	if got := s.Sessions(); len(got) != 1 || got[0].Requests["PLAY"] != 10 {
		t.Errorf("sessions: %+v", got)
	}
}

// A pause is silence, and after it every packet comes, later by as much.
func TestPauseResume(t *testing.T) {
	t.Parallel()
	s := start(t, demo.Config{})
	url := s.URL("/h264-aac.mp4")
	c := dial(t, s)
	track := c.setup(url + "/3")
	res := c.ok("PLAY", url)
	first := track.next()
	is(t, "first", first, c.info(res)[0])
	var last *rtp.Packet
	for range 10 {
		last = track.next()
	}
	if res := c.ok("PLAY", url); res.Header["Range"] != nil || res.Header["RTP-Info"] != nil {
		t.Errorf("PLAY while playing: %v", res.Header)
	}
	c.ok("PAUSE", url)
	paused := time.Now()
	sent := s.Sent()
	if p := track.drain(); p != nil {
		last = p
	}
	if p := track.within(300 * time.Millisecond); p != nil || s.Sent() != sent {
		t.Errorf("%d packets after PAUSE", s.Sent()-sent)
	}
	if got := s.Sessions()[0]; got.State != "paused" || got.Packets != sent || got.Tracks[0].Packets != sent {
		t.Errorf("paused: %+v", got)
	}
	res = c.ok("PLAY", url)
	gap := time.Since(paused)
	info := c.info(res)[0]
	again := track.next()
	is(t, "resumed", again, info)
	if again.SequenceNumber != last.SequenceNumber+1 {
		t.Errorf("resumed with %d after %d", again.SequenceNumber, last.SequenceNumber)
	}
	// 40 ms a frame, or the same frame: the rest of the step is the pause.
	step := time.Duration(again.Timestamp-last.Timestamp) * time.Second / 90000
	if step < gap-20*time.Millisecond || step > gap+60*time.Millisecond {
		t.Errorf("paused for %v, timestamps went on by %v", gap, step)
	}
	// Range says where the packet belongs: timestamps less the pause.
	var r headers.Range
	if err := r.Unmarshal(res.Header["Range"]); err != nil {
		t.Fatal(err)
	}
	if at := r.Value.(*headers.RangeNPT).Start; at%(40*time.Millisecond) != 0 || at < 80*time.Millisecond {
		t.Errorf("resumed at %v", at)
	}
	// The same payloads as without a pause, over TCP and as fast as that goes.
	whole := play(t, s.URL("/h264-aac.mp4"), true, 0, 6)[0]
	at := slices.IndexFunc(whole, func(p demo.Packet) bool { return p.Seq-whole[0].Seq == again.SequenceNumber-first.SequenceNumber })
	if at < 0 || whole[at].Hash != hash(again.Payload) {
		t.Errorf("resumed with another packet than number %d", again.SequenceNumber-first.SequenceNumber)
	}
	c.ok("TEARDOWN", url)
	if _, err := c.nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after TEARDOWN: %v", err)
	}
	waitFor(t, "the end of both sessions", func() bool { return len(s.Sessions()) == 0 })
}

// play plays with gortsplib until every track has so many packets.
func play(t *testing.T, url string, tcp bool, from time.Duration, least int) demo.Recording {
	t.Helper()
	p, err := demo.OpenPlayer(url, tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Play(from); err != nil {
		t.Fatal(err)
	}
	return await(t, p, least)
}

func await(t *testing.T, p *demo.Player, least int) demo.Recording {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := p.Await(ctx, func(r demo.Recording) bool {
		return !slices.ContainsFunc(r, func(t []demo.Packet) bool { return len(t) < least })
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// gortsplib's client sees the same packets over UDP and TCP, after seeks and
// pauses too.
func TestPlayer(t *testing.T) {
	t.Parallel()
	s := start(t, demo.Config{})
	url := s.URL("/h264-bframes-aac.mp4")
	tcp := play(t, url, true, 4*time.Second, 10)
	p, err := demo.OpenPlayer(url, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Play(0); err != nil {
		t.Fatal(err)
	}
	await(t, p, 3)
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	before := p.Recorded()
	if _, err := p.Play(4 * time.Second); err != nil {
		t.Fatal(err)
	}
	udp := await(t, p, 12)
	for i := range udp {
		last, next := before[i][len(before[i])-1], udp[i][len(before[i])]
		if next.Seq != last.Seq+1 || next.SSRC != last.SSRC {
			t.Errorf("track %d: %d of %08X after %d of %08X", i, next.Seq, next.SSRC, last.Seq, last.SSRC)
		}
		udp[i] = udp[i][len(before[i]):]
		if udp[i][0].SSRC == tcp[i][0].SSRC || udp[i][0].Time == tcp[i][0].Time {
			t.Errorf("track %d: two sessions with the same numbers", i)
		}
	}
	if err := tcp.Same(udp, 5); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	folder := fstest.MapFS{"unhinted.mp4": {Data: []byte("not a movie")}, "a/b.mp4": {Data: mustRead(t, "aac.mp4")}}
	s := start(t, demo.Config{Movies: folder, MaxSessions: 1})
	const udp = "Transport: RTP/AVP;unicast;client_port=41000-41001"
	ask := func(status base.StatusCode, method, path string, lines ...string) {
		t.Helper()
		if res := dial(t, s).do(method, s.URL(path), lines...); res.StatusCode != status {
			t.Errorf("%s %s %v: %d, want %d", method, path, lines, res.StatusCode, status)
		}
	}
	ask(404, "DESCRIBE", "/none.mp4")
	ask(404, "DESCRIBE", "/../a/b.mp4")
	ask(404, "DESCRIBE", "/live/none.mp4")
	ask(415, "DESCRIBE", "/unhinted.mp4")
	ask(415, "DESCRIBE", "/")
	ask(200, "DESCRIBE", "/a/b.mp4")
	ask(459, "SETUP", "/a/b.mp4", udp)
	ask(404, "SETUP", "/a/b.mp4/streamid=7", udp)
	ask(404, "SETUP", "/a/b.mp4/streamid=1", udp) // the sound itself
	ask(461, "SETUP", "/a/b.mp4/streamid=2")
	ask(461, "SETUP", "/a/b.mp4/streamid=2", "Transport: RTP/AVP;multicast")
	ask(461, "SETUP", "/a/b.mp4/streamid=2", "Transport: RTP/SAVP;unicast;client_port=41000-41001")
	ask(461, "SETUP", "/a/b.mp4/streamid=2", "Transport: RTP/AVP;unicast;client_port=0-70000")
	ask(400, "SETUP", "/a/b.mp4/streamid=2", udp+";destination=192.0.2.1")
	ask(454, "SETUP", "/a/b.mp4/streamid=2", udp, "Session: 1")
	ask(454, "PLAY", "/a/b.mp4")
	ask(454, "PAUSE", "/a/b.mp4", "Session: 1")
	ask(454, "TEARDOWN", "/a/b.mp4", "Session: 1")
	ask(454, "GET_PARAMETER", "/a/b.mp4", "Session: 1")
	ask(200, "GET_PARAMETER", "/a/b.mp4")
	ask(200, "OPTIONS", "/a/b.mp4")
	ask(501, "RECORD", "/a/b.mp4")
	if n := s.Opened(); n != 0 {
		t.Fatalf("%d sessions opened", n)
	}

	c := dial(t, s)
	url := s.URL("/a/b.mp4")
	c.ok("OPTIONS", "*")
	track := c.setup(url + "/trackID=2")
	ask(453, "SETUP", "/a/b.mp4/streamid=2", "Transport: RTP/AVP/TCP;unicast")
	c.ok("SET_PARAMETER", url)
	c.ok("PLAY", url+"/trackID=2") // the only one
	track.next()
	if res := c.do("SETUP", url+"/2", "Transport: RTP/AVP/TCP;unicast"); res.StatusCode != 455 {
		t.Errorf("SETUP while playing: %d", res.StatusCode)
	}
	// A request that cannot be read is answered, and closes the connection alone.
	if _, err := c.nc.Write([]byte("PAUSE nowhere RTSP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if res, ok := c.read().(*base.Response); !ok || res.StatusCode != base.StatusBadRequest {
		t.Errorf("bad request: %v", res)
	}
	// The session can be controlled from another.
	other := dial(t, s)
	other.session = c.session
	other.ok("PAUSE", url)
	track.drain()
	other.ok("PLAY", url)
	track.next()
	other.ok("TEARDOWN", url+"/2")
}

func mustRead(t *testing.T, movie string) []byte {
	t.Helper()
	b, err := os.ReadFile(testbed.Movie(t, movie))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TEARDOWN of one track leaves the other.
func TestTracks(t *testing.T) {
	t.Parallel()
	s := start(t, demo.Config{})
	url := s.URL("/h264-aac.mp4")
	c := dial(t, s)
	video, audio := c.setup(url+"/streamid=3"), c.setup(url+"/streamid=4")
	if res := c.do("PLAY", url+"/streamid=3"); res.StatusCode != 460 {
		t.Errorf("PLAY of one of two: %d", res.StatusCode)
	}
	c.ok("PLAY", url+"/") // as from Content-Base
	video.next()
	c.ok("TEARDOWN", url+"/streamid=3")
	audio.drain()
	audio.next()
	video.drain()
	if p := video.within(100 * time.Millisecond); p != nil {
		t.Error("video goes on")
	}
	if got := s.Sessions()[0]; len(got.Tracks) != 1 || got.Tracks[0].ID != 4 || got.State != "playing" {
		t.Errorf("%+v", got)
	}
}

// Over TCP the channels are the server's choice, the answer to PLAY comes
// before the first packet, and packets run ahead.
func TestInterleaved(t *testing.T) {
	t.Parallel()
	for _, lead := range []time.Duration{0, -1} {
		s := start(t, demo.Config{TCPLead: lead})
		url := s.URL("/h264-aac.mp4")
		c := dial(t, s)
		for i, track := range []string{"/3", "/4"} {
			res := c.ok("SETUP", url+track, "Transport: RTP/AVP/TCP;unicast;interleaved=8-9;ssrc=1;layers=1")
			if got := res.Header["Transport"][0]; strings.Count(got, "ssrc=") != 1 || !strings.Contains(got, ";layers=1;") {
				t.Errorf("Transport: %s", got)
			}
			var h headers.Transport
			if err := h.Unmarshal(res.Header["Transport"]); err != nil || h.InterleavedIDs == nil || h.InterleavedIDs[0] != 2*i {
				t.Fatalf("channels %v: %v", res.Header["Transport"], err)
			}
			c.join(res)
		}
		began := time.Now()
		first := *c.info(c.ok("PLAY", url))[0].Timestamp
		if len(c.frames) > 0 {
			t.Error("packets before the answer")
		}
		for ahead := time.Duration(0); ahead < 900*time.Millisecond; {
			f := c.read().(*base.InterleavedFrame)
			if f.Channel == 0 {
				at := uint32(f.Payload[4])<<24 | uint32(f.Payload[5])<<16 | uint32(f.Payload[6])<<8 | uint32(f.Payload[7])
				ahead = time.Duration(at-first) * time.Second / 90000
			}
		}
		took := time.Since(began)
		if ahead := took < 700*time.Millisecond; ahead != (lead == 0) {
			t.Errorf("lead %v: 900 ms of movie in %v", lead, took)
		}
		_ = c.nc.Close()
		waitFor(t, "the session to end with its connection", func() bool { return len(s.Sessions()) == 0 })
	}
}

// waitFor waits for what the server does by itself.
func waitFor(t *testing.T, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(patience); !met(); <-tick.C {
		if time.Now().After(until) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// Sessions without a sign of life end with a BYE; RTCP and RTSP are such signs.
func TestTimeout(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	s := start(t, demo.Config{Timeout: timeout, PausedNeedsRTSP: true})
	url := s.URL("/aac.mp4")
	type viewer struct {
		*client
		*udpTrack
	}
	open := func() viewer {
		c := dial(t, s)
		v := viewer{c, c.setup(url + "/2")}
		c.ok("PLAY", url)
		return v
	}
	silent, reports, asks, pauses := open(), open(), open(), open()
	pauses.next() // without any there is no goodbye
	pauses.ok("PAUSE", url)
	until := time.Now().Add(timeout + patience)
	tick := time.NewTicker(timeout / 10)
	defer tick.Stop()
	want := []string{reports.session, asks.session}
	var alive []string
	// Until the two are alone, and then for as long again.
	for alone := 0; alone < 12; {
		<-tick.C
		reports.sendReport()
		pauses.sendReport() // is not enough
		asks.ok("OPTIONS", url)
		alive = alive[:0]
		for _, x := range s.Sessions() {
			alive = append(alive, x.ID)
		}
		if slices.Equal(alive, want) {
			alone++
		} else if alone > 0 || time.Now().After(until) {
			t.Fatalf("alive: %v, want %v", alive, want)
		}
	}
	for _, v := range []viewer{silent, pauses} {
		v.bye(t)
		if _, err := v.nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection of a session that timed out: %v", err)
		}
	}
}

// bye receives RTCP up to a BYE and checks what comes before.
func (u *udpTrack) bye(t *testing.T) {
	t.Helper()
	for {
		all := u.report()
		sr, ok := all[0].(*rtcp.SenderReport)
		if !ok || sr.SSRC != *u.transport.SSRC {
			t.Fatalf("RTCP begins with %v", all[0])
		}
		if _, ok := all[1].(*rtcp.SourceDescription); !ok {
			t.Fatalf("RTCP goes on with %v", all[1])
		}
		if len(all) > 2 {
			if b, ok := all[2].(*rtcp.Goodbye); !ok || b.Sources[0] != *u.transport.SSRC {
				t.Errorf("RTCP ends with %v", all[2])
			}
			return
		}
	}
}

// Sender reports come after the first packet and then at intervals, and put
// both tracks on one clock.
func TestSenderReports(t *testing.T) {
	t.Parallel()
	s := start(t, demo.Config{ReportInterval: 500 * time.Millisecond})
	url := s.URL("/h264-aac.mp4")
	c := dial(t, s)
	tracks := []*udpTrack{c.setup(url + "/3"), c.setup(url + "/4")}
	info := c.info(c.ok("PLAY", url))
	var start [2]float64 // wall clock at the start of the movie, s
	for k, rate := range []float64{90000, 44100} {
		first := tracks[k].report()[0].(*rtcp.SenderReport)
		second := tracks[k].report()[0].(*rtcp.SenderReport)
		if first.PacketCount != 1 || second.PacketCount < 3 {
			t.Errorf("reports after %d and %d packets", first.PacketCount, second.PacketCount)
		}
		if d := second.NTPTime - first.NTPTime; d < 500<<32/1000 || d > 900<<32/1000 {
			t.Errorf("reports %.3f s apart", float64(d)/(1<<32))
		}
		for _, r := range []*rtcp.SenderReport{first, second} {
			at := float64(r.NTPTime)/(1<<32) - float64(r.RTPTime-*info[k].Timestamp)/rate
			if start[k] != 0 && (at-start[k] > 0.05 || start[k]-at > 0.05) {
				t.Errorf("track %d: the clock moves by %.3f s", k, at-start[k])
			}
			start[k] = at
		}
	}
	if d := start[1] - start[0]; d > 0.1 || d < -0.1 {
		t.Errorf("tracks %.3f s apart", d)
	}
}

// At its end a movie falls silent, or says BYE; the session stays.
func TestEnd(t *testing.T) {
	t.Parallel()
	for _, bye := range []bool{false, true} {
		s := start(t, demo.Config{ByeAtEnd: bye})
		url := s.URL("/aac.mp4")
		c := dial(t, s)
		track := c.setup(url + "/2")
		begin := c.info(c.ok("PLAY", url))[0]
		c.ok("PLAY", url, "Range: npt=11.4-")
		var last uint32
		for p := track.within(400 * time.Millisecond); p != nil; p = track.within(400 * time.Millisecond) {
			last = p.Timestamp
		}
		if at := float64(last-*begin.Timestamp) / 44100; at < 11.5 || at > 12 {
			t.Errorf("the last packet is at %.3f s", at)
		}
		if bye {
			track.bye(t)
		}
		if res := c.ok("PLAY", url); res.Header["RTP-Info"] != nil {
			t.Error("PLAY at the end is more than a sign of life")
		}
		c.ok("PAUSE", url)
		res := c.ok("PLAY", url)
		if got := res.Header["Range"][0]; got != "npt=0.00000-12.00000" {
			t.Errorf("after the end: %s", got)
		}
		is(t, "anew", track.next(), c.info(res)[0])
		c.ok("TEARDOWN", url)
	}
}

// The numbers of a live stream go on when the movie begins anew, and its
// readers see the same packets.
func TestLiveLoop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cut := exec.Command(testbed.Program(t, "ffmpeg", "ffmpeg"), "-v", "error", "-i", testbed.Movie(t, "h264-aac.mp4"),
		"-t", "1", "-c", "copy", "-movflags", "rtphint", filepath.Join(dir, "short.mp4"))
	if out, err := cut.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, apart := range []bool{false, true} {
		t.Run(fmt.Sprintf("apart=%v", apart), func(t *testing.T) {
			t.Parallel()
			s := start(t, demo.Config{Movies: os.DirFS(dir), LiveApart: apart})
			var players []*demo.Player
			for _, tcp := range []bool{false, true} {
				p, err := demo.OpenPlayer(s.URL("/live/short.mp4"), tcp)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if _, err := p.Play(0); err != nil {
					t.Fatal(err)
				}
				players = append(players, p)
			}
			udp, tcp := await(t, players[0], 12), await(t, players[1], 12)
			if err := udp.Same(tcp, 10); err != nil {
				t.Error(err)
			}
			if alike := udp[0][0].SSRC == tcp[0][0].SSRC; alike == apart {
				t.Errorf("the same SSRC: %v", alike)
			}
			for i, rate := range []uint32{90000, 44100} {
				checkLoop(t, udp[i], rate)
			}
			if err := players[0].Pause(); err != nil {
				t.Fatal(err)
			}
			sent := s.Sessions()[0].Packets
			await(t, players[1], len(players[1].Recorded()[1])+3)
			if got := s.Sessions()[0].Packets; got != sent {
				t.Errorf("%d packets to a paused reader", got-sent)
			}
		})
	}
}

// checkLoop wants a track's packets to be numbered without a gap and to come
// back a second later.
func checkLoop(t *testing.T, packets []demo.Packet, rate uint32) {
	t.Helper()
	back := 0
	seen := map[[32]byte]demo.Packet{}
	for i, p := range packets {
		if i > 0 && p.Seq != packets[i-1].Seq+1 {
			t.Errorf("packet %d after %d", p.Seq, packets[i-1].Seq)
		}
		if was, ok := seen[p.Hash]; ok {
			back++
			length := p.Time - was.Time
			if length < rate || length > rate+rate/10 {
				t.Errorf("the same packet after %d of %d ticks", length, rate)
			}
		}
		seen[p.Hash] = p
	}
	if back == 0 {
		t.Errorf("%d packets, none came back", len(packets))
	}
}

// The server does wrong what it is asked to.
func TestFaults(t *testing.T) {
	t.Parallel()
	var refuse atomic.Bool
	good := play(t, start(t, demo.Config{}).URL("/aac.mp4"), true, 0, 7)[0]
	s := start(t, demo.Config{Faults: demo.Faults{
		Packet:      demo.FlipAfter(3),
		IgnorePause: true,
		Refuse: func(method, _ string) int {
			if refuse.Load() && method == "PAUSE" {
				return 455
			}
			return 0
		},
		Answer: func(method string, b []byte) []byte {
			return []byte(strings.Replace(string(b), "RTP-Info", "x-Nothing", 1))
		},
		Delay: func(method, _ string) time.Duration {
			if method == "GET_PARAMETER" {
				return 50 * time.Millisecond
			}
			return 0
		},
	}})
	url := s.URL("/aac.mp4")
	c := dial(t, s)
	track := c.setup(url + "/2")
	if res := c.ok("PLAY", url); res.Header["X-Nothing"] == nil || res.Header["RTP-Info"] != nil {
		t.Errorf("%v", res.Header)
	}
	for i := range 5 {
		if i == 2 {
			c.ok("PAUSE", url) // in vain
		}
		same := hash(track.next().Payload) == good[i].Hash
		if same != (i < 3) {
			t.Errorf("packet %d is as it should be: %v", i, same)
		}
	}
	began := time.Now()
	c.ok("GET_PARAMETER", url)
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("answered in %v", took)
	}
	refuse.Store(true)
	if res := c.do("PAUSE", url); res.StatusCode != 455 {
		t.Errorf("PAUSE: %d", res.StatusCode)
	}
}

// Same finds what differs, and sees past a late beginning and an early end.
func TestSame(t *testing.T) {
	t.Parallel()
	make20 := func(seq uint16, ts uint32) demo.Recording {
		var all []demo.Packet
		for i := range 20 {
			all = append(all, demo.Packet{Seq: seq + uint16(i), Time: ts + uint32(i*90), SSRC: uint32(seq), Hash: [32]byte{byte(i)}})
		}
		return demo.Recording{all}
	}
	a := make20(65530, 1<<32-300) // both wrap around
	for _, c := range []struct {
		name string
		edit func(demo.Recording) demo.Recording
		want string // in the error, "" for none
	}{
		{"same", func(r demo.Recording) demo.Recording { return r }, ""},
		{"late", func(r demo.Recording) demo.Recording { r[0] = r[0][8:]; return r }, ""},
		{"early end", func(r demo.Recording) demo.Recording { r[0] = r[0][:12]; return r }, ""},
		{"too short", func(r demo.Recording) demo.Recording { r[0] = r[0][18:]; return r }, "only 2"},
		{"payload", func(r demo.Recording) demo.Recording { r[0][7].Hash[0]++; return r }, "packet 8 of 20: payloads"},
		{"lost", func(r demo.Recording) demo.Recording { r[0] = slices.Delete(r[0], 5, 6); return r }, "packet 6 of 19: sequence"},
		{"time", func(r demo.Recording) demo.Recording { r[0][3].Time++; return r }, "packet 4 of 20: timestamps"},
		{"marker", func(r demo.Recording) demo.Recording { r[0][3].Marker = true; return r }, "packet 4 of 20: markers"},
		{"SSRC", func(r demo.Recording) demo.Recording { r[0][9].SSRC++; return r }, "packet 10 of 20: SSRCs"},
		{"other", func(r demo.Recording) demo.Recording {
			for i := range r[0] {
				r[0][i].Hash[1] = 1
			}
			return r
		}, "nothing in common"},
		{"none", func(r demo.Recording) demo.Recording { r[0] = nil; return r }, "20 and 0"},
		{"tracks", func(r demo.Recording) demo.Recording { return append(r, nil) }, "1 and 2 tracks"},
	} {
		err := a.Same(c.edit(make20(7, 100)), 5)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
