package judge

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"rtspshim/compat/talk"
)

// idle is how long a connection goes without requests before servers may take
// it for dead: 60 s is what RFC 2326 12.37 gives a session.
const idle = 55 * time.Second

// answerSlack is by how much an answer may come later than the upstream's: a
// hop through user space on a busy machine.
const answerSlack = 0.040

// Labelled gives every exchange a name that is the same in every run.
func Labelled(r *talk.Recording) (order []string, by map[string]*talk.Exchange) {
	by = map[string]*talk.Exchange{}
	count := map[string]int{}
	for _, e := range r.Exchanges {
		base := fmt.Sprintf("%d %s", e.Step+1, e.Title)
		if e.Outcome == talk.Unasked {
			base = "from the server on " + e.Conn
		}
		count[base]++
		label := base
		if count[base] > 1 || e.Outcome == talk.Unasked {
			label = fmt.Sprintf("%s #%d", base, count[base])
		}
		order = append(order, label)
		by[label] = e
	}
	return order, by
}

func (d *differ) exchanges() {
	orderA, a := Labelled(d.a)
	orderB, b := Labelled(d.b)
	na, nb := newNormal(d.a), newNormal(d.b)
	for _, label := range orderA {
		if b[label] == nil {
			d.text(Signalling, label, "message", first(a[label]), "nothing of the kind")
			continue
		}
		d.exchange(label, a[label], b[label], na, nb)
	}
	for _, label := range orderB {
		if a[label] == nil {
			d.text(Signalling, label, "message", "nothing of the kind", first(b[label]))
		}
	}
}

func first(e *talk.Exchange) string {
	if e.Answer != nil {
		return e.Answer.First
	}
	return string(e.Outcome)
}

func (d *differ) exchange(label string, a, b *talk.Exchange, na, nb *normal) {
	if a.Outcome != b.Outcome {
		x := Difference{Where: label, What: "outcome", Class: Signalling, A: outcome(a), B: outcome(b), Size: 1}
		if d.a.Idle(a) >= idle && a.Outcome == talk.Closed && b.Status()/100 == 2 {
			x.Rule = &Kept
			d.kept = append(d.kept, a.Conn)
		}
		d.add(x)
		return
	}
	if a.Answer == nil || b.Answer == nil {
		return
	}
	d.message(label, a.Answer, b.Answer, na, nb, a.Method == "PLAY" && !a.Ranged)
	if a.Outcome == talk.Answered {
		d.more(Timing, label, "time to the answer", (a.At - a.SentAt).Seconds(), (b.At - b.SentAt).Seconds(),
			answerSlack, "s", &Sooner)
	}
}

func outcome(e *talk.Exchange) string {
	if e.Answer != nil {
		return e.Answer.First
	}
	return strings.TrimSpace(string(e.Outcome) + " " + e.Note)
}

func (d *differ) message(label string, a, b *talk.Message, na, nb *normal, moment bool) {
	d.text(Signalling, label, "status line", na.text(a.First), nb.text(b.First))
	d.text(Signalling, label, "whole", fmt.Sprint("cut short: ", a.Cut), fmt.Sprint("cut short: ", b.Cut))
	d.text(Signalling, label, "line ends", ends(a), ends(b))
	d.text(Signalling, label, "gortsplib reads it", yes(a.Read), yes(b.Read))
	d.fields(label, a, b, na, nb, moment)
	d.body(label, a, b, na, nb)
}

func ends(m *talk.Message) string {
	if m.Bare {
		return "LF"
	}
	return "CRLF"
}

func yes(err string) string {
	if err == "" {
		return "yes"
	}
	return "no: " + err
}

// fields compares header lines: which there are, in which order, how spelt,
// and what they say.
func (d *differ) fields(label string, a, b *talk.Message, na, nb *normal, moment bool) {
	namesA, namesB := names(a), names(b)
	sortedA, sortedB := slices.Sorted(slices.Values(namesA)), slices.Sorted(slices.Values(namesB))
	if !slices.Equal(sortedA, sortedB) {
		d.text(Signalling, label, "header set", lacking(namesB, namesA), lacking(namesA, namesB))
	} else {
		d.text(Signalling, label, "header order", quoteList(namesA), quoteList(namesB))
	}
	nth := map[string]int{}
	for _, f := range a.Fields {
		name := strings.ToLower(f.Name)
		nth[name]++
		g, ok := find(b, name, nth[name])
		if !ok {
			na.field(a, f) // numbers its session
			continue
		}
		d.text(Signalling, label, "spelling of "+name, form(f), form(g))
		va, vb := na.field(a, f), nb.field(b, g)
		if va != vb {
			// Shown as they stood, compared without the moving parts.
			d.add(Difference{Where: label, What: "header " + f.Name, Class: Signalling, A: f.Value, B: g.Value, Size: 1})
		}
		if name == "range" && va == vb {
			d.ranges(label, f.Value, g.Value, moment)
		}
	}
}

func names(m *talk.Message) []string {
	var all []string
	for _, f := range m.Fields {
		all = append(all, strings.ToLower(f.Name))
	}
	return all
}

// lacking describes names from the view of one side: "has no x" for what only
// the other has.
func lacking(other, mine []string) string {
	var extra []string
	rest := slices.Clone(other)
	for _, n := range mine {
		if i := slices.Index(rest, n); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			extra = append(extra, n)
		}
	}
	switch {
	case len(extra) > 0 && len(rest) > 0:
		return "has " + quoteList(extra) + ", lacks " + quoteList(rest)
	case len(extra) > 0:
		return "has " + quoteList(extra)
	}
	return "lacks " + quoteList(rest)
}

func find(m *talk.Message, name string, nth int) (talk.Field, bool) {
	for _, f := range m.Fields {
		if strings.ToLower(f.Name) == name {
			if nth--; nth == 0 {
				return f, true
			}
		}
	}
	return talk.Field{}, false
}

// form is a header line's name and the blanks around its value.
func form(f talk.Field) string {
	rest := strings.TrimPrefix(f.Line, f.Name)
	if f.Value == "" {
		return f.Name + rest
	}
	before, after, _ := strings.Cut(rest, f.Value)
	return f.Name + before + "…" + after
}

// ranges compares the numbers of two Range headers of the same form. Where a
// stream stopped depends on the moment, so a quarter of a second is allowed
// after a PLAY that named no position, or if direct runs vary at all; whether
// it fits what was heard is compared with the media.
func (d *differ) ranges(label, a, b string, moment bool) {
	na, nb := number.FindAllString(a, -1), number.FindAllString(b, -1)
	widest := 0.0
	for i := range na {
		x, _ := strconv.ParseFloat(na[i], 64)
		y, _ := strconv.ParseFloat(nb[i], 64)
		widest = max(widest, math.Abs(x-y))
		if !moment {
			d.text(Signalling, label, "digits of Range", digits(na), digits(nb))
		}
	}
	if widest > 0 {
		x := Difference{Where: label, What: "times in Range", Class: Signalling, A: a, B: b, Size: widest, Loose: 0.25}
		if moment {
			x.Within = 0.25
		}
		d.add(x)
	}
}

func digits(numbers []string) string {
	out := ""
	for _, n := range numbers {
		_, decimals, _ := strings.Cut(n, ".")
		out += fmt.Sprint(len(decimals), " ")
	}
	return out + "decimals"
}

func (d *differ) body(label string, a, b *talk.Message, na, nb *normal) {
	linesA, linesB := bodyLines(a, na), bodyLines(b, nb)
	if !slices.Equal(linesA, linesB) {
		d.lines(label, linesA, linesB)
	}
	if len(a.Body) == 0 != (len(b.Body) == 0) {
		d.text(Signalling, label, "body", fmt.Sprint(len(a.Body), " bytes"), fmt.Sprint(len(b.Body), " bytes"))
	}
}

func bodyLines(m *talk.Message, n *normal) []string {
	var out []string
	sdp := bytes.HasPrefix(m.Body, []byte("v="))
	for line := range strings.Lines(string(m.Body)) {
		end := strings.TrimRight(line, "\r\n")
		if sdp {
			end = n.sdpLine(end)
		} else {
			end = n.text(end)
		}
		out = append(out, end+strings.TrimLeft(line[len(strings.TrimRight(line, "\r\n")):], " "))
	}
	return out
}

// lines names what differs between two bodies: line by line if they have as
// many, else what only one of them has.
func (d *differ) lines(label string, a, b []string) {
	if len(a) == len(b) {
		for i := range a {
			d.text(Signalling, label, fmt.Sprintf("body line %d", i+1), trimmed(a[i]), trimmed(b[i]))
		}
		return
	}
	only := func(x, y []string) string {
		var out []string
		for _, line := range x {
			if !slices.Contains(y, line) {
				out = append(out, trimmed(line))
			}
		}
		return strings.Join(out, "\n")
	}
	d.add(Difference{Where: label, What: "body lines", Class: Signalling, Size: 1,
		A: fmt.Sprintf("%d lines, only here:\n%s", len(a), only(a, b)),
		B: fmt.Sprintf("%d lines, only here:\n%s", len(b), only(b, a))})
}

func trimmed(line string) string {
	text := strings.TrimSuffix(line, "\r\n")
	if text == line {
		return strconv.Quote(line) // another line end than CRLF
	}
	return text
}

// ends compares how each connection was left.
func (d *differ) ends() {
	for i, a := range d.a.Ends {
		if i >= len(d.b.Ends) || a.State == d.b.Ends[i].State {
			continue
		}
		x := Difference{Where: "at the end", What: "connection " + a.Conn, Class: Signalling, A: a.State, B: d.b.Ends[i].State, Size: 1}
		if slices.Contains(d.kept, a.Conn) {
			x.Rule = &Kept
		}
		d.add(x)
	}
}
