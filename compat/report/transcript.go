package report

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"rtspshim/compat"
	"rtspshim/compat/judge"
	"rtspshim/compat/talk"
)

// Limits on what a page shows of what a server said.
const (
	maxLines = 120 // of a message
	maxLine  = 300 // bytes
)

// span is a piece of text, marked if it is not the same on the other side.
type span struct {
	Text string
	Mark bool
}

// row is a line of both transcripts, side by side. Class says how a
// difference in it was judged: "", "moving", "allowed" or "different".
type row struct {
	A, B  []span
	Class string
	Sent  bool
}

// exchange is a request with both answers.
type exchange struct {
	Title string
	Class judge.Verdict // worst of its findings
	A, B  string        // outcome and time
	Rows  []row
}

// marked parts two texts into what they share at both ends and what differs
// between, in whole numbers.
func marked(a, b string) (x, y []span) {
	a, b = printable(a), printable(b)
	if a == b {
		return []span{{Text: a}}, []span{{Text: b}}
	}
	from := 0
	for from < len(a) && from < len(b) && a[from] == b[from] {
		from++
	}
	for from > 0 && inNumber(a[from-1]) {
		from--
	}
	to := 0
	for to < len(a)-from && to < len(b)-from && a[len(a)-1-to] == b[len(b)-1-to] {
		to++
	}
	for to > 0 && inNumber(a[len(a)-to]) {
		to--
	}
	cut := func(s string) []span {
		parts := []span{{Text: s[:from]}, {Text: s[from : len(s)-to], Mark: true}, {Text: s[len(s)-to:]}}
		var out []span
		for _, p := range parts {
			if p.Text != "" {
				p.Text = strings.ToValidUTF8(p.Text, "·")
				out = append(out, p)
			}
		}
		return out
	}
	return cut(a), cut(b)
}

func inNumber(b byte) bool { return b == '.' || b >= '0' && b <= '9' }

// conversation aligns what was said with the upstream and with the shim.
func conversation(p compat.Point) []exchange {
	orderA, a := judge.Labelled(p.Direct)
	orderB, b := judge.Labelled(p.Shim)
	var out []exchange
	for _, label := range orderA {
		out = append(out, both(label, a[label], b[label], p.Findings))
	}
	for _, label := range orderB {
		if a[label] == nil {
			out = append(out, both(label, nil, b[label], p.Findings))
		}
	}
	return out
}

func both(label string, a, b *talk.Exchange, findings []judge.Finding) exchange {
	x := exchange{Title: label, A: outcome(a), B: outcome(b), Class: judge.Same}
	var mine []judge.Finding
	for _, f := range findings {
		if f.Where == label || strings.HasPrefix(f.Where, label+", ") {
			mine = append(mine, f)
		}
	}
	x.Class = judge.Worst(mine)
	for _, pair := range align(lines(sent(a)), lines(sent(b))) {
		r := line(pair, nil)
		r.Sent = true
		x.Rows = append(x.Rows, r)
	}
	for _, pair := range align(lines(answer(a)), lines(answer(b))) {
		x.Rows = append(x.Rows, line(pair, mine))
	}
	return x
}

func outcome(e *talk.Exchange) string {
	if e == nil {
		return "nothing of the kind"
	}
	if e.Answer == nil {
		return strings.TrimSpace(string(e.Outcome) + " " + e.Note)
	}
	if e.Outcome == talk.Unasked {
		return "at " + e.At.Round(time.Millisecond).String()
	}
	return fmt.Sprintf("answered in %.1f ms", float64(e.At-e.SentAt)/float64(time.Millisecond))
}

func sent(e *talk.Exchange) []byte {
	if e == nil {
		return nil
	}
	return e.Sent
}

func answer(e *talk.Exchange) []byte {
	if e == nil || e.Answer == nil {
		return nil
	}
	return e.Answer.Raw
}

var secret = regexp.MustCompile(`(?i)^(authorization: *\S+).*`)

// lines of a message, without credentials.
func lines(raw []byte) []string {
	var out []string
	for text := range strings.Lines(string(raw)) {
		if len(out) == maxLines {
			return append(out, "…")
		}
		end := "" // CRLF goes without saying
		if !strings.HasSuffix(text, "\r\n") {
			end = map[bool]string{true: " ␊", false: ""}[strings.HasSuffix(text, "\n")]
		}
		text = secret.ReplaceAllString(strings.TrimRight(text, "\r\n"), "$1 …")
		if len(text) > maxLine {
			text = fmt.Sprintf("%s… (%d bytes)", text[:maxLine], len(text))
		}
		out = append(out, printable(strings.ToValidUTF8(text, "·"))+end)
	}
	for len(out) > 0 && out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	return out
}

// key is by what lines of two messages are brought together: header lines by
// name, others by what they begin with.
func key(line string) string {
	name, _, ok := strings.Cut(line, ":")
	if ok && len(name) < 40 {
		return strings.ToLower(name)
	}
	if len(line) > 2 {
		return line[:2]
	}
	return line
}

// align brings lines together by their longest common sequence of keys; a
// missing partner is nil.
func align(a, b []string) [][2]*string {
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	score := func(i, j int) int {
		switch {
		case a[i] == b[j]:
			return 3
		case key(a[i]) == key(b[j]):
			return 2
		}
		return 0
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			if s := score(i, j); s > 0 {
				longest[i][j] = max(longest[i][j], longest[i+1][j+1]+s)
			}
		}
	}
	var out [][2]*string
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && score(i, j) > 0 && longest[i][j] == longest[i+1][j+1]+score(i, j):
			out = append(out, [2]*string{&a[i], &b[j]})
			i, j = i+1, j+1
		case j >= len(b) || i < len(a) && longest[i+1][j] >= longest[i][j+1]:
			out = append(out, [2]*string{&a[i], nil})
			i++
		default:
			out = append(out, [2]*string{nil, &b[j]})
			j++
		}
	}
	return out
}

// line makes a row of two lines and says how their difference was judged.
func line(pair [2]*string, findings []judge.Finding) row {
	switch {
	case pair[1] == nil:
		return row{A: []span{{Text: *pair[0], Mark: true}}, Class: judged(*pair[0], "header set", findings)}
	case pair[0] == nil:
		return row{B: []span{{Text: *pair[1], Mark: true}}, Class: judged(*pair[1], "header set", findings)}
	case *pair[0] == *pair[1]:
		return row{A: []span{{Text: *pair[0]}}, B: []span{{Text: *pair[1]}}}
	}
	a, b := marked(*pair[0], *pair[1])
	return row{A: a, B: b, Class: judged(*pair[0], "", findings)}
}

// judged finds the verdict on a line among the findings of its exchange. A
// line that differs without a finding holds moving parts only.
func judged(text, what string, findings []judge.Finding) string {
	name := key(text)
	class := "moving"
	for _, f := range findings {
		on := strings.ToLower(f.What)
		hit := what != "" && (on == what || on == "body lines" || on == "message" || on == "header order") ||
			strings.HasSuffix(on, " "+name) || on == "status line" && strings.HasPrefix(text, "RTSP/") ||
			name == "range" && strings.Contains(on, "range") || name == "rtp-info" && strings.Contains(on, "rtp-info") ||
			strings.HasPrefix(on, "body line ") && strings.Contains(f.Direct, text)
		if hit && (f.Verdict == judge.Different || class == "moving") {
			class = string(f.Verdict)
		}
	}
	return class
}
