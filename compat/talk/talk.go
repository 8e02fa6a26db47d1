package talk

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"

	"rtspshim/compat/script"
)

type duration = time.Duration

// Target is a server to talk to.
type Target struct {
	URL     string        // rtsp:// or rtsps://; named in every request
	Connect string        // host:port to connect to, "" for the URL's own
	User    *url.Userinfo // nil: no credentials
	Publish string        // URL that may be published to, "" for none
	Late    time.Duration // how long every request is on its way
}

// Bounds keep a conversation finite whatever the server does. Zeros are useful.
type Bounds struct {
	Answer time.Duration // wait for an answer; 3 s
	Point  time.Duration // whole conversation, listening not counted; 60 s
	Settle time.Duration // wait for a close at the end; 400 ms
	Quiet  time.Duration // silence that counts as the end of a stream; 1.5 s
}

func (b Bounds) orDefault() Bounds {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&b.Answer, 3*time.Second)
	set(&b.Point, time.Minute)
	set(&b.Settle, 400*time.Millisecond)
	set(&b.Quiet, 1500*time.Millisecond)
	return b
}

// talk is a conversation under way.
type talk struct {
	ctx       context.Context
	target    Target
	url       *url.URL
	peer      string // connected to
	server    netip.Addr
	bounds    Bounds
	recording *Recording
	conns     map[string]*conn
	order     []string
	on        *conn
	reports   bool
	step      int
	nextVerb  script.Verb // of the step after this one
	sent      int         // packets published so far
	ssrc      uint32      // of the first track's receiver reports; clients that share one look like a collision

	mutex sync.Mutex // recording.Tracks and what hangs on them, conn.channels
}

func (t *talk) now() time.Duration { return time.Since(t.recording.Began) }

// Run holds the conversation of s with the target and returns what was seen.
// A server that cannot be reached, or a script that makes no sense, is
// reported in Recording.Failure.
func Run(ctx context.Context, s *script.Script, target Target, bounds Bounds) *Recording {
	t := &talk{target: target, bounds: bounds.orDefault(), ssrc: rand.Uint32(), conns: map[string]*conn{}, reports: true,
		recording: &Recording{Began: time.Now(), Left: map[string]time.Duration{}}}
	limit := t.bounds.Point
	for _, step := range s.Steps {
		limit += step.For
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t.ctx = ctx
	if err := t.run(s); err != nil {
		t.recording.Failure = err.Error()
	}
	t.finish()
	return t.recording
}

func (t *talk) run(s *script.Script) error {
	u, err := url.Parse(t.target.URL)
	if err != nil {
		return fmt.Errorf("URL: %w", err)
	}
	u.User = nil
	if u.Port() == "" {
		u.Host += map[bool]string{true: ":322", false: ":554"}[u.Scheme == "rtsps"]
	}
	t.url, t.recording.Authority, t.recording.Host, t.peer = u, u.Host, u.Hostname(), u.Host
	if t.target.Connect != "" {
		t.peer = t.target.Connect
		t.recording.Peer = t.peer
	}
	t.nextVerb = s.Steps[0].Verb
	if t.nextVerb != script.Connection {
		if err := t.connection("A"); err != nil {
			return err
		}
	}
	for i, step := range s.Steps {
		t.step, t.nextVerb = i, ""
		if i+1 < len(s.Steps) {
			t.nextVerb = s.Steps[i+1].Verb
		}
		if err := t.ctx.Err(); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, step.Title(), err)
		}
		if err := t.do(step); err != nil {
			return fmt.Errorf("line %d, %s: %w", step.Line, step.Title(), err)
		}
	}
	return nil
}

func (t *talk) do(step script.Step) error {
	c := t.on
	switch step.Verb {
	case script.Say:
		return c.sayAll(step)
	case script.Listen:
		t.listen(step.For, step.End)
	case script.Send:
		return t.publish(step.For)
	case script.Connection:
		return t.connection(step.Arg)
	case script.Close:
		c.drain()
		_ = c.socket.Close()
		if c.get != nil {
			_ = c.get.Close()
		}
		c.left = true
		<-c.gone
		t.recording.Left[c.name] = t.now()
	case script.Hold:
		c.holding = true
	case script.Release:
		c.release()
	case script.Raw:
		text, _, err := c.expand(step.Arg)
		if err != nil {
			return err
		}
		e := &Exchange{Title: step.Title(), Sent: []byte(text), Method: "raw"}
		c.exchange(e)
	case script.Answer:
		c.answer(step.Arg)
	case script.Auth:
		c.authorise, c.sender = step.Arg, nil
	case script.Reports:
		t.reports = step.Arg == "on"
	case script.Tunnel:
		return nil // done when the connection was made
	}
	return nil
}

// connection goes on as the client of that name.
func (t *talk) connection(name string) error {
	if c := t.conns[name]; c != nil {
		t.on = c
		return nil
	}
	c, err := t.newConn(t.ctx, name)
	if err != nil {
		return err
	}
	t.conns[name], t.on = c, c
	t.order = append(t.order, name)
	if addr, err := netip.ParseAddrPort(c.socket.RemoteAddr().String()); err == nil {
		t.mutex.Lock() // ports opened before are being read
		t.server = addr.Addr().Unmap()
		t.mutex.Unlock()
	}
	if addr, err := netip.ParseAddrPort(c.socket.LocalAddr().String()); err == nil {
		t.recording.Local = addr.Addr().Unmap().String()
	}
	if t.tunnelled() {
		return c.tunnel(t.ctx)
	}
	c.startReader()
	return nil
}

// sayAll says a request once, or once for every media.
func (c *conn) sayAll(step script.Step) error {
	text := strings.Join(step.Head, "\n")
	if !strings.Contains(text, " *}") {
		return c.say(step, 0)
	}
	for n := range max(1, len(c.medias)) {
		one := step
		one.Head = strings.Split(strings.ReplaceAll(text, " *}", fmt.Sprintf(" %d}", n+1)), "\n")
		if err := c.say(one, n+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) say(step script.Step, media int) error {
	e := &Exchange{Title: title(step.Head[0]), Media: media}
	if m := variable.FindStringSubmatch(step.Head[0]); m != nil && m[1] == "track" {
		e.Media, _ = strconv.Atoi(m[2])
	}
	head, missing, err := c.head(step.Head)
	if err != nil {
		return err
	}
	e.Method, _, _ = strings.Cut(head, " ")
	if missing != "" {
		e.Outcome, e.Note = Skipped, missing+" has no value"
		c.talk.record(e, c)
		return nil
	}
	body, _, err := c.expand(string(step.Body))
	if err != nil {
		return err
	}
	e.Ranged = strings.Contains(strings.ToLower(head), "\nrange:")
	e.Sent = c.request(head, body)
	if c.holding {
		c.held = append(c.held, e)
		return nil
	}
	c.exchange(e)
	if e.Status() == 401 && c.authorise == "auto" && c.challenge(e.Answer) {
		again := *e
		again.Title += " (authorised)"
		again.Sent = c.request(head, body)
		again.Answer, again.Outcome = nil, ""
		c.exchange(&again)
	}
	return nil
}

// title is a request line as the report shows it: {url} spelt out short.
func title(line string) string {
	line = strings.TrimSuffix(strings.Join(strings.Fields(line), " "), " RTSP/1.0")
	return strings.NewReplacer("{", "", "}", "").Replace(line)
}

// head expands the request line and header lines. missing names a variable of
// the request line that has no value.
func (c *conn) head(lines []string) (head, missing string, err error) {
	var out []string
	for i, line := range lines {
		text, ok, err := c.expand(line)
		if err != nil {
			return "", "", err
		}
		if !ok && i == 0 {
			return text, variable.FindString(line), nil
		}
		if !ok {
			continue
		}
		if i == 0 && len(strings.Fields(text)) == 2 {
			text += " RTSP/1.0"
		}
		out = append(out, text)
	}
	return strings.Join(out, "\r\n"), "", nil
}

// request completes the header with CSeq, Authorization and Content-Length.
func (c *conn) request(head, body string) []byte {
	lines := strings.Split(head, "\r\n")
	has := func(name string) int {
		return slices.IndexFunc(lines, func(l string) bool {
			return strings.HasPrefix(strings.ToLower(l), strings.ToLower(name)+":")
		})
	}
	if i := has("CSeq"); i < 0 {
		c.cseq++
		lines = slices.Insert(lines, 1, fmt.Sprintf("CSeq: %d", c.cseq))
	} else if lines[i] == "CSeq: none" {
		lines = slices.Delete(lines, i, i+1)
	}
	if c.sender != nil {
		words := strings.Fields(lines[0])
		req := base.Request{Method: base.Method(words[0]), URL: &base.URL{Path: words[1]}}
		if u, err := base.ParseURL(words[1]); err == nil {
			req.URL = u
		}
		c.sender.AddAuthorization(&req)
		lines = append(lines, "Authorization: "+req.Header["Authorization"][0])
	}
	if body != "" && has("Content-Length") < 0 {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	return []byte(strings.Join(lines, "\r\n") + "\r\n\r\n" + body)
}

// challenge prepares to answer a 401; false if there is nothing to answer with.
func (c *conn) challenge(m *Message) bool {
	user := c.talk.target.User
	if user == nil {
		return false
	}
	password, _ := user.Password()
	s := &auth.Sender{WWWAuth: m.Values("WWW-Authenticate"), User: user.Username(), Pass: password}
	if s.Initialize() != nil {
		return false
	}
	c.sender = s
	return true
}

// exchange sends one request and learns from the answer.
func (c *conn) exchange(e *Exchange) {
	c.drain()
	e.SentAt = c.talk.now()
	time.Sleep(c.talk.target.Late)
	if err := c.put(e.Sent); err != nil {
		e.Note = "write: " + err.Error()
	}
	c.await(e)
	c.talk.record(e, c)
	c.learn(e)
	if c.authorise == "wrong" && e.Status() == 401 && c.sender == nil && c.challenge(e.Answer) {
		c.sender.Pass += "-wrong"
	}
}

// release sends what was held in one write and awaits every answer.
func (c *conn) release() {
	c.holding = false
	c.drain()
	var all []byte
	for _, e := range c.held {
		all = append(all, e.Sent...)
	}
	sent := c.talk.now()
	time.Sleep(c.talk.target.Late)
	err := c.put(all)
	for _, e := range c.held {
		e.SentAt = sent
		if err != nil {
			e.Note = "write: " + err.Error()
		}
		c.await(e)
		c.talk.record(e, c)
		c.learn(e)
	}
	c.held = nil
}

// answer replies to the server's own request, if there is one.
func (c *conn) answer(code string) {
	if c.last == nil {
		return
	}
	text := "RTSP/1.0 " + code + " OK\r\n"
	for _, name := range []string{"CSeq", "Session"} {
		if v := c.last.Value(name); v != "" {
			text += name + ": " + v + "\r\n"
		}
	}
	c.last = nil
	_ = c.put([]byte(text + "\r\n"))
}

// learn takes from an answer what later requests need.
func (c *conn) learn(e *Exchange) {
	if e.Answer == nil {
		return
	}
	if id, _, _ := strings.Cut(e.Answer.Value("Session"), ";"); id != "" {
		c.session = strings.TrimSpace(id)
	}
	if e.Status() != 200 {
		return
	}
	switch e.Method {
	case "DESCRIBE":
		words := strings.Fields(string(e.Sent))
		c.describe(e.Answer, words[1])
	case "ANNOUNCE":
		_, body, _ := strings.Cut(string(e.Sent), "\r\n\r\n")
		c.readSDP([]byte(body), strings.Fields(string(e.Sent))[1])
	case "SETUP":
		c.setup(e)
	}
}

// setup makes the track whose packets will come.
func (c *conn) setup(e *Exchange) {
	track := &Track{Conn: c.name, Session: c.session, Media: e.Media}
	if e.Media > 0 && e.Media <= len(c.medias) {
		m := c.medias[e.Media-1]
		track.Kind, track.Clock, track.PTs, track.Control = m.kind, m.clock, m.pts, m.control
	}
	value := e.Answer.Value("Transport")
	track.Known = track.Transport.Unmarshal(base.HeaderValue{value}) == nil
	asked := ParseMessage(e.Sent).Value("Transport")
	record := strings.Contains(strings.ToLower(asked), "mode=record") || strings.Contains(strings.ToLower(asked), `mode="record"`)
	c.talk.mutex.Lock()
	var p *pair
	if track.Known && track.Transport.InterleavedIDs != nil {
		id := track.Transport.InterleavedIDs[0]
		if old := c.channels[id]; old != nil && old.Media == 0 { // came before the answer
			old.Media, old.Kind, old.Clock, old.PTs = track.Media, track.Kind, track.Clock, track.PTs
			old.Transport, old.Known, old.Session = track.Transport, true, c.session
			c.talk.mutex.Unlock()
			return
		}
		c.channels[id] = track
	} else {
		p = c.udp[e.Media]
		track.UDP = track.Transport.Protocol == headers.TransportProtocolUDP
	}
	if record {
		c.sending[e.Media] = track
	}
	c.talk.recording.Tracks = append(c.talk.recording.Tracks, track)
	c.talk.mutex.Unlock()
	if p != nil {
		p.give(c.talk, track)
	}
}

func (t *talk) record(e *Exchange, c *conn) {
	e.Step, e.Conn = t.step, c.name
	t.recording.Exchanges = append(t.recording.Exchanges, e)
}

// lastWords is how long datagrams are waited for at the end.
const lastWords = 150 * time.Millisecond

// finish waits a moment for connections to close, notes their state and ends
// everything that was started.
func (t *talk) finish() {
	began := t.now()
	deadline := time.After(t.bounds.Settle)
	for _, name := range t.order {
		select {
		case <-t.conns[name].gone:
		case <-deadline:
			deadline = time.After(0)
		}
	}
	// Datagrams may come after the connection that ended them: Darwin's BYE.
	time.Sleep(min(lastWords, t.bounds.Settle) - (t.now() - began))
	for _, name := range t.order {
		c := t.conns[name]
		c.drain()
		t.recording.Ends = append(t.recording.Ends, c.state())
	}
	for _, name := range t.order {
		t.conns[name].close()
	}
	t.recording.Took = t.now()
}
