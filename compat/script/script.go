// Package script reads the points of a comparison: small conversations, one
// file each, written in the notation of a transcript.
//
//	# What a viewer hears around a pause: silence at once, and on resuming
//	# the very next packet. (RFC 2326 10.5, 10.6)
//	tags: movie udp
//
//	> DESCRIBE {url}
//	> Accept: application/sdp
//
//	> SETUP {track *}
//	> Transport: RTP/AVP;unicast;client_port={ports *}
//	> Session: {session}
//
//	> PLAY {base}
//	> Session: {session}
//
//	listen 2s
//
//	> PAUSE {base}
//	> Session: {session}
//
//	listen 500ms
//
// Lines that begin with ">" are what the client says; they follow each other
// without a gap to make one request, and an empty ">" line parts its header
// from its body. CSeq and Content-Length are added where they are not
// written; "CSeq: none" sends none. A header line whose variable has no value
// yet is left out, so one text serves the first SETUP and the second. A
// request with a star in a variable is said once for every media.
//
// Everything else is one verb a line:
//
//	listen D                 hear media and anything else for D
//	listen D until end       ... until every track said BYE or fell silent
//	connection NAME          go on as another client (the first is A)
//	close                    drop the TCP connection without a word
//	hold / release           gather requests, then send them in one write
//	raw "BYTES"              send exactly these (a Go string), await an answer
//	answer CODE              reply to the request the server sent
//	auth auto|none|wrong     how requests are authorised from here on
//	reports on|off           receiver reports while listening (on)
//	tunnel                   this connection runs over HTTP GET and POST
//	send D                   publish synthetic media on the tracks set up
//	again N                  repeat the steps up to "done" N times
//
// Variables: {url} {base} {track N} {ports N} {port N} {odd N} and {far N} (port
// pairs that are none) {channels N} {session} {session NAME} {authority} {path} {modified} {time F} (F of the duration,
// in seconds) {duration} {publish} {n} (the round of "again").
package script

import (
	"bufio"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Verb is what a step does.
type Verb string

// The verbs, as they are written.
const (
	Say        Verb = ">" // a request
	Listen     Verb = "listen"
	Connection Verb = "connection"
	Close      Verb = "close"
	Hold       Verb = "hold"
	Release    Verb = "release"
	Raw        Verb = "raw"
	Answer     Verb = "answer"
	Auth       Verb = "auth"
	Reports    Verb = "reports"
	Tunnel     Verb = "tunnel"
	Send       Verb = "send"
	again      Verb = "again" // unrolled by Parse
	done       Verb = "done"
)

// Limits on a script, so that a mistaken file fails instead of filling memory.
const (
	maxSteps  = 1000
	maxListen = 10 * time.Minute
)

// Step is one line, or one request, of a script.
type Step struct {
	Line int // in the file, from 1
	Verb Verb
	Arg  string // of the verb: a name, a code, the bytes of raw
	For  time.Duration
	End  bool // listen until end

	// Of a request: the request line and header lines with variables still in
	// place, and the body (nil for none, CRLF between lines).
	Head []string
	Body []byte
}

// Title names the step as a reader of the report would.
func (s Step) Title() string {
	switch s.Verb {
	case Say:
		return strings.Join(strings.Fields(s.Head[0]), " ")
	case Raw:
		line, _, _ := strings.Cut(s.Arg, "\r\n")
		if len(line) > 40 {
			line = line[:40] + "…"
		}
		return fmt.Sprintf("raw %q", line)
	case Listen, Send:
		return string(s.Verb) + " " + s.For.String()
	}
	return strings.TrimSpace(string(s.Verb) + " " + s.Arg)
}

// Script is one point of the comparison.
type Script struct {
	Name  string   // the file's name without its ending
	About string   // the comment at the top
	Tags  []string // what it is for, and when it is left out; see README.md
	Steps []Step
	Text  string // as read
}

// Has says whether the script carries the tag.
func (s *Script) Has(tag string) bool { return slices.Contains(s.Tags, tag) }

//go:embed points/*.rtsp
var points embed.FS

// Points returns the scripts that come with the program, by name.
func Points() ([]*Script, error) {
	names, err := fs.Glob(points, "points/*.rtsp")
	if err != nil {
		return nil, err
	}
	var all []*Script
	for _, name := range names {
		text, err := points.ReadFile(name)
		if err != nil {
			return nil, err
		}
		s, err := Parse(name, text)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Parse reads one script. The name is a file name; errors say file and line.
func Parse(name string, text []byte) (*Script, error) {
	s := &Script{Name: strings.TrimSuffix(path.Base(name), ".rtsp"), Text: string(text)}
	p := parser{script: s}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		if err := p.line(n, strings.TrimRight(lines.Text(), " \t\r")); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path.Base(name), n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path.Base(name), err)
	}
	p.flush()
	steps, err := unroll(s.Steps)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Base(name), err)
	}
	s.Steps = steps
	if len(s.Steps) == 0 {
		return nil, fmt.Errorf("%s: no steps", path.Base(name))
	}
	return s, nil
}

type parser struct {
	script *Script
	said   []string // lines of the request being read
	at     int
}

func (p *parser) line(n int, line string) error {
	if rest, ok := strings.CutPrefix(line, ">"); ok {
		if len(p.said) == 0 {
			p.at = n
		}
		p.said = append(p.said, strings.TrimPrefix(rest, " "))
		if strings.TrimSpace(p.said[0]) == "" {
			return fmt.Errorf("a request begins with its request line")
		}
		return nil
	}
	p.flush()
	if line == "" {
		return nil
	}
	if about, ok := strings.CutPrefix(line, "#"); ok {
		if len(p.script.Steps) == 0 {
			p.script.About = strings.TrimSpace(p.script.About + " " + strings.TrimSpace(about))
		}
		return nil
	}
	if tags, ok := strings.CutPrefix(line, "tags:"); ok {
		p.script.Tags = append(p.script.Tags, strings.Fields(tags)...)
		return nil
	}
	step, err := verb(line)
	if err != nil {
		return err
	}
	step.Line = n
	p.script.Steps = append(p.script.Steps, step)
	return nil
}

// flush ends the request being read.
func (p *parser) flush() {
	if len(p.said) == 0 {
		return
	}
	step := Step{Line: p.at, Verb: Say}
	if gap := slices.Index(p.said, ""); gap >= 0 {
		step.Head = p.said[:gap]
		step.Body = []byte(strings.Join(p.said[gap+1:], "\r\n") + "\r\n")
	} else {
		step.Head = p.said
	}
	p.said = nil
	p.script.Steps = append(p.script.Steps, step)
}

func verb(line string) (Step, error) {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	step := Step{Verb: Verb(word), Arg: rest}
	var err error
	switch step.Verb {
	case Listen:
		step.Arg, step.End = strings.CutSuffix(rest, " until end")
		step.For, err = duration(step.Arg)
	case Send:
		step.For, err = duration(rest)
	case Raw:
		step.Arg, err = strconv.Unquote(rest)
	case Answer, again:
		_, err = strconv.ParseUint(rest, 10, 16)
	case Auth:
		err = oneOf(rest, "auto", "none", "wrong")
	case Reports:
		err = oneOf(rest, "on", "off")
	case Connection:
		if rest == "" {
			err = fmt.Errorf("which one?")
		}
	case Close, Hold, Release, Tunnel, done:
		err = oneOf(rest, "")
	default:
		return step, fmt.Errorf("unknown verb %q", word)
	}
	if err != nil {
		return step, fmt.Errorf("%s: %w", word, err)
	}
	return step, nil
}

func duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, err
	}
	if d <= 0 || d > maxListen {
		return 0, fmt.Errorf("%v is not within 0 and %v", d, maxListen)
	}
	return d, nil
}

func oneOf(word string, words ...string) error {
	if slices.Contains(words, word) {
		return nil
	}
	return fmt.Errorf("%q is none of %q", word, words)
}

// unroll writes out every "again N ... done".
func unroll(steps []Step) ([]Step, error) {
	var out []Step
	for i := 0; i < len(steps); i++ {
		if steps[i].Verb == done {
			return nil, fmt.Errorf("line %d: done without again", steps[i].Line)
		}
		if steps[i].Verb != again {
			out = append(out, steps[i])
			continue
		}
		end := slices.IndexFunc(steps[i:], func(s Step) bool { return s.Verb == done })
		if end < 0 {
			return nil, fmt.Errorf("line %d: again without done", steps[i].Line)
		}
		rounds, _ := strconv.Atoi(steps[i].Arg)
		if rounds*end > maxSteps {
			return nil, fmt.Errorf("line %d: more than %d steps", steps[i].Line, maxSteps)
		}
		for n := range rounds {
			for _, s := range steps[i+1 : i+end] {
				s.Head = slices.Clone(s.Head)
				for k := range s.Head {
					s.Head[k] = strings.ReplaceAll(s.Head[k], "{n}", strconv.Itoa(n+1))
				}
				out = append(out, s)
			}
		}
		i += end
	}
	if len(out) > maxSteps {
		return nil, fmt.Errorf("more than %d steps", maxSteps)
	}
	return out, nil
}
