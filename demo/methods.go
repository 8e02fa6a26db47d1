package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
)

const (
	public   = "Public: DESCRIBE, SETUP, TEARDOWN, PLAY, PAUSE, OPTIONS, GET_PARAMETER, SET_PARAMETER"
	livePath = "live/"
)

// handle answers a request.
func (c *conn) handle(req *base.Request, now time.Time) {
	var s *session
	var named string
	if v := req.Header["Session"]; len(v) > 0 {
		id, _, _ := strings.Cut(v[0], ";")
		if s = c.srv.session(strings.TrimSpace(id)); s == nil {
			c.answer(req, 454)
			return
		}
		named = "Session: " + s.id
		s.request(c, string(req.Method), now)
	}
	switch req.Method {
	case base.Options:
		c.answer(req, 200, append(lines(named), public)...)
		return
	case base.GetParameter, base.SetParameter:
		c.answer(req, 200, lines(named)...)
		return
	case base.Describe, base.Setup, base.Play, base.Pause, base.Teardown:
	default:
		c.answer(req, 501, public)
		return
	}
	if req.URL == nil {
		c.answer(req, 400)
		return
	}
	switch req.Method {
	case base.Describe:
		c.describe(req, now)
	case base.Setup:
		c.setup(req, s, now)
	default:
		if s == nil {
			c.answer(req, 454)
			return
		}
		c.control(req, s, named, now)
	}
}

func lines(l string) []string {
	if l == "" {
		return nil
	}
	return []string{l}
}

// control serves the methods of a session.
func (c *conn) control(req *base.Request, s *session, named string, now time.Time) {
	_, track := splitTrack(cleanPath(req.URL))
	switch req.Method {
	case base.Play:
		c.play(req, s, named, track, now)
	case base.Pause:
		c.pause(req, s, named, track, now)
	case base.Teardown:
		s.lock()
		for _, st := range s.streams {
			if st.track.ID == track && len(s.streams) > 1 {
				s.drop(st)
				s.unlock()
				c.answer(req, 200, named)
				return
			}
		}
		s.unlock()
		s.end("teardown")
		c.answer(req, 200, named, "Connection: Close")
		c.finish()
	}
}

// place is what a URL names.
type place struct {
	path    string // of the movie: "live/a.mp4"
	name    string // in the folder
	live    bool
	control string // last part of the URL of a track
	track   uint32 // 0: the movie
	movie   *movie
}

func cleanPath(u *base.URL) string { return strings.Trim(u.Path, "/") }

var trackPart = regexp.MustCompile(`^[A-Za-z]*=?([0-9]{1,9})$`)

// splitTrack cuts the last part off a path when it names a track: trailing
// digits, as with Darwin.
func splitTrack(path string) (movie string, track uint32) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return path, 0
	}
	m := trackPart.FindStringSubmatch(path[i+1:])
	if m == nil {
		return path, 0
	}
	n, _ := strconv.ParseUint(m[1], 10, 32)
	return path[:i], uint32(n)
}

// find opens what a URL names. The movie is the caller's to close.
func (s *Server) find(u *base.URL) (*place, error) {
	p := &place{path: cleanPath(u)}
	err := p.open(s.cfg.Movies)
	if errors.Is(err, fs.ErrNotExist) {
		if path, track := splitTrack(p.path); track != 0 {
			p.control, p.track, p.path = p.path[len(path)+1:], track, path
			err = p.open(s.cfg.Movies)
		}
	}
	return p, err
}

func (p *place) open(folder fs.FS) (err error) {
	p.name, p.live = strings.CutPrefix(p.path, livePath)
	p.movie, err = openMovie(folder, p.name)
	return err
}

// refuse answers a request for what cannot be opened.
func (c *conn) refuse(req *base.Request, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.answer(req, 404)
	case errors.Is(err, errUnhinted):
		c.answer(req, 415)
	default:
		c.srv.log.Warn("demo: movie", "err", err)
		c.answer(req, 500)
	}
}

// httpDate is a time as headers have it (RFC 7231 §7.1.1.1).
func httpDate(t time.Time) string { return t.UTC().Format(http.TimeFormat) }

// cacheLines are the headers about a movie in answers to DESCRIBE and SETUP.
func cacheLines(m *movie, now time.Time) []string {
	return []string{"Last-Modified: " + httpDate(m.modified), "Cache-Control: must-revalidate",
		"Date: " + httpDate(now), "Expires: " + httpDate(now)}
}

func (c *conn) describe(req *base.Request, now time.Time) {
	p, err := c.srv.find(req.URL)
	if err != nil {
		c.refuse(req, err)
		return
	}
	defer p.movie.Close() //nolint:errcheck // only read from
	u := req.URL.CloneWithoutCredentials()
	u.RawQuery = ""
	sdp := p.movie.description(p.live)
	c.answer(req, 200, append(cacheLines(p.movie, now), "Content-length: "+strconv.Itoa(len(sdp)),
		"Content-Type: application/sdp", "Content-Base: "+strings.TrimSuffix(u.String(), "/")+"/", "", sdp)...)
}

// choose finds the first Transport that can be served (RFC 2326 §12.39).
func choose(req *base.Request, client netip.Addr) (choice string, t headers.Transport, status int) {
	for _, choice := range strings.Split(strings.Join(req.Header["Transport"], ","), ",") {
		choice = strings.TrimSpace(choice)
		var t headers.Transport
		if t.Unmarshal(base.HeaderValue{choice}) != nil || t.Profile != headers.TransportProfileAVP ||
			t.Delivery != nil && *t.Delivery != headers.TransportDeliveryUnicast ||
			t.Mode != nil && *t.Mode != headers.TransportModePlay {
			continue
		}
		if t.Protocol == headers.TransportProtocolUDP {
			if t.ClientPorts == nil || t.ClientPorts[0] <= 0 || t.ClientPorts[1] <= 0 ||
				t.ClientPorts[0] > 65535 || t.ClientPorts[1] > 65535 {
				continue
			}
			if a := t.Destination2; a != nil { // nobody gets what he did not ask for
				if to, err := netip.ParseAddr(*a); err != nil || to.Unmap() != client {
					return "", t, 400
				}
			}
		}
		return choice, t, 0
	}
	return "", t, 461
}

func (c *conn) setup(req *base.Request, s *session, now time.Time) {
	p, err := c.srv.find(req.URL)
	if err != nil {
		c.refuse(req, err)
		return
	}
	defer func() { _ = p.movie.Close() }()
	if p.track == 0 {
		c.answer(req, 459)
		return
	}
	track := p.movie.Track(p.track)
	if track == nil || !track.Hint() {
		c.answer(req, 404)
		return
	}
	choice, t, status := choose(req, c.peer.Addr())
	if status != 0 {
		c.answer(req, status)
		return
	}
	fresh := s == nil
	if fresh {
		if s, status = c.newSession(p, now); status != 0 {
			c.answer(req, status)
			return
		}
		s.request(c, string(req.Method), now)
	}
	s.lock()
	transport, status := c.addStream(s, p, choice, t)
	s.unlock()
	if status != 0 {
		if fresh {
			s.end("refused")
		}
		c.answer(req, status)
		return
	}
	c.answer(req, 200, append([]string{fmt.Sprintf("Session: %s;timeout=%d", s.id, max(1, int(c.srv.cfg.Timeout.Seconds())))},
		append(cacheLines(p.movie, now), transport)...)...)
}

// newSession makes a session for what a URL names.
func (c *conn) newSession(p *place, now time.Time) (*session, int) {
	s := &session{srv: c.srv, path: "/" + p.path, began: now, until: -1, requests: map[string]int{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		id: fmt.Sprintf("%019d", rand.Uint64()>>1)}
	var err error
	if p.live {
		s.live, err = c.srv.liveStream(p.name)
	} else {
		s.movie, err = openMovie(c.srv.cfg.Movies, p.name) // p's is for this one request
	}
	if err != nil || p.live && s.live == nil {
		return nil, 503
	}
	s.touch(now)
	s.control.Store(c)
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.srv.closed || len(c.srv.sessions) >= c.srv.cfg.MaxSessions {
		if s.movie != nil {
			_ = s.movie.Close()
		}
		return nil, 453
	}
	c.srv.opened++
	s.number = c.srv.opened
	c.srv.sessions[s.id] = s
	if !p.live {
		c.srv.work.Go(s.run)
	}
	return s, 0
}

// echoed is what of a Transport is given back as it came, which with Darwin is
// all but what the server itself has to say.
func echoed(choice string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(choice, ";"), func(param string) bool {
		name, _, _ := strings.Cut(strings.ToLower(param), "=")
		return slices.Contains([]string{"interleaved", "source", "server_port", "ssrc"}, strings.TrimSpace(name))
	}), ";")
}

// addStream adds a track to the locked session and returns the Transport line.
func (c *conn) addStream(s *session, p *place, choice string, t headers.Transport) (transport string, status int) {
	if s.over {
		return "", 454
	}
	if s.path != "/"+p.path || s.state.Load() == playing {
		return "", 455
	}
	for _, was := range s.streams {
		if was.track.ID == p.track {
			s.drop(was)
		}
	}
	st := &stream{session: s, control: p.control, ssrc: rand.Uint32()}
	if s.live != nil {
		lane := s.live.lane(p.track)
		if lane == nil { // the movie has been replaced
			return "", 404
		}
		st.track = lane.track
		if c.srv.cfg.LiveApart {
			st.seq, st.time = uint16(rand.Uint32()), rand.Uint32()
		} else {
			st.ssrc = lane.ssrc
		}
	} else {
		if st.track = s.movie.Track(p.track); st.track == nil || !st.track.Hint() {
			return "", 404
		}
		st.lane = &lane{movie: s.movie, track: st.track}
		st.last, st.time = uint16(rand.Uint32()), rand.Uint32()
		if s.state.Load() == paused {
			s.check(st.lane.seek(s.from)) // in time for a PLAY without a Range
			st.seq = st.last + 1 - st.lane.next.Seq
		}
	}
	line := "Transport: " + echoed(choice)
	if t.Protocol == headers.TransportProtocolTCP {
		channel, ok := c.interleave(st)
		if !ok {
			return "", 453
		}
		st.conn, st.channel = c, channel
		line += fmt.Sprintf(";interleaved=%d-%d", channel, channel+1)
	} else {
		st.rtpTo = netip.AddrPortFrom(c.peer.Addr(), uint16(t.ClientPorts[0]))
		st.rtcpTo = netip.AddrPortFrom(c.peer.Addr(), uint16(t.ClientPorts[1]))
		if !c.srv.register(st) {
			return "", 400
		}
		rtp := addrPortUDP(c.srv.rtp).Port()
		line += fmt.Sprintf(";source=%s;server_port=%d-%d", c.local.Addr(), rtp, addrPortUDP(c.srv.rtcp).Port())
	}
	s.look.Lock()
	s.streams = append(s.streams[:len(s.streams):len(s.streams)], st)
	s.look.Unlock()
	return line + fmt.Sprintf(";ssrc=%08X", st.ssrc), 0
}

// register notes where a stream's receiver reports will come from. Two streams
// cannot have the same place.
func (s *Server) register(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byRTCP[st.rtcpTo] != nil {
		return false
	}
	s.byRTCP[st.rtcpTo] = st
	return true
}

// controls says whether a URL may control the session: the movie's, or that of
// its only track. If not it returns the status to say so with, else 0.
func (s *session) controls(track uint32) int {
	switch {
	case s.over:
		return 454
	case len(s.streams) == 0:
		return 455
	case track != 0 && (len(s.streams) > 1 || s.streams[0].track.ID != track):
		return 460
	}
	return 0
}

// play answers a PLAY before the first packet goes out, or late.
func (c *conn) play(req *base.Request, s *session, named string, track uint32, now time.Time) {
	var late time.Duration
	if f := c.srv.cfg.Faults.Late; f != nil {
		late = f(req.URL.String())
	}
	response := c.started(req, s, named, track, now, late > 0)
	if late == 0 {
		return
	}
	select {
	case <-time.After(late):
		c.send(response, true)
	case <-c.gone:
	}
}

// started starts a session, and answers if the answer is not late.
func (c *conn) started(req *base.Request, s *session, named string, track uint32, now time.Time, late bool) []byte {
	s.lock()
	defer s.unlock()
	status := s.controls(track)
	answer := []string{named}
	if status == 0 {
		status, answer = 200, append(answer, s.started(req, track, now)...)
	}
	response := c.response(req, status, answer...)
	switch {
	case late:
		s.poke()
	case s.live == nil:
		c.send(response, true)
		s.poke()
	case !c.send(response, false): // nobody waits for one reader
		c.close()
	}
	return response
}

// started starts the locked session and returns the header lines that say so.
func (s *session) started(req *base.Request, track uint32, now time.Time) []string {
	wanted := req.Header["Range"]
	if s.state.Load() == playing && len(wanted) == 0 {
		return nil // a sign of life
	}
	u := req.URL.CloneWithoutCredentials()
	if track != 0 {
		u.Path, u.RawPath = u.Path[:strings.LastIndexByte(strings.TrimSuffix(u.Path, "/"), '/')], ""
	}
	if s.live != nil {
		s.live.readers[s] = s.srv.cfg.LiveBehind > 0
		s.state.Store(playing)
		return []string{"Range: npt=now-", s.rtpInfo(u.String())}
	}
	var from *time.Duration
	until := time.Duration(-1)
	if len(wanted) > 0 {
		var at time.Duration
		at, until = parseRange(wanted[0])
		from = &at
	}
	s.play(now, from, until)
	if until < 0 {
		until = s.movie.Duration
	}
	return []string{fmt.Sprintf("Range: npt=%.5f-%.5f", s.from.Seconds(), until.Seconds()), s.rtpInfo(u.String())}
}

func (c *conn) pause(req *base.Request, s *session, named string, track uint32, now time.Time) {
	s.lock()
	status := s.controls(track)
	if status == 0 {
		status = 200
		if s.state.Load() == playing && !c.srv.cfg.Faults.IgnorePause {
			s.halt(now)
		}
	}
	s.unlock()
	c.answer(req, status, named)
}

// parseRange reads a Range in npt (RFC 2326 §3.6) as Darwin does: what it
// cannot read is 0, and so is "now". Without an end, until is negative.
func parseRange(v string) (from, until time.Duration) {
	v, _, _ = strings.Cut(v, ";")
	_, v, _ = strings.Cut(v, "=")
	a, b, _ := strings.Cut(v, "-")
	return max(0, npt(a)), npt(b)
}

// npt reads a time, "12.5" or "1:02:03.5"; negative when there is none.
func npt(v string) time.Duration {
	var seconds float64
	for _, part := range strings.Split(strings.TrimSpace(v), ":") {
		x, err := strconv.ParseFloat(part, 64)
		if err != nil || !(x >= 0) { // NaN, too
			return -1
		}
		seconds = seconds*60 + x
	}
	return time.Duration(min(seconds, 1e9) * float64(time.Second))
}
