// Package report tells people and programs what a comparison found: a table
// for the terminal, JSON, and a page of HTML that needs nothing else.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"rtspshim/compat"
	"rtspshim/compat/judge"
)

// JSON writes the result as one indented object: the fields of compat.Result.
func JSON(w io.Writer, r *compat.Result) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("JSON: %w", err)
	}
	return nil
}

var colours = map[judge.Verdict]string{judge.Same: "32", judge.Allowed: "36", judge.Different: "1;31", judge.NotRun: "2"}

// Table writes one line for each point and, below it, what differs; all: what
// is allowed, too. With colour, verdicts are coloured for a terminal.
func Table(w io.Writer, r *compat.Result, all, colour bool) error {
	paint := func(v judge.Verdict, text string) string {
		if !colour {
			return text
		}
		return "\x1b[" + colours[v] + "m" + text + "\x1b[0m"
	}
	out := &strings.Builder{}
	fmt.Fprintf(out, "upstream  %s  (%s%s)\nshim      %s\n\n", r.Upstream, r.Kind, named(r.Server), r.Shim)
	width := 0
	for _, p := range r.Points {
		width = max(width, len(p.Name))
	}
	for _, p := range r.Points {
		fmt.Fprintf(out, "%s  %-*s  %s\n", paint(p.Verdict, fmt.Sprintf("%-9s", p.Verdict)), width, p.Name, remark(p))
		for _, f := range p.Findings {
			if f.Verdict != judge.Different && !all {
				continue
			}
			fmt.Fprintf(out, "    %s\n", paint(f.Verdict, f.Where+": "+f.What))
			if f.Rule != nil {
				fmt.Fprintf(out, "        allowed   %s: %s\n", f.Rule.Name, f.Rule.Reason)
			}
			fmt.Fprintf(out, "        upstream  %s\n        shim      %s\n", indent(f.Direct), indent(f.Shim))
		}
	}
	fmt.Fprintf(out, "\n%d same, %d allowed, %s, %d not run, in %.0f s\n", r.Count(judge.Same), r.Count(judge.Allowed),
		paint(worst(r), fmt.Sprint(r.Count(judge.Different), " different")), r.Count(judge.NotRun), r.Seconds)
	_, err := io.WriteString(w, out.String())
	return err
}

func worst(r *compat.Result) judge.Verdict {
	if r.OK() {
		return judge.Same
	}
	return judge.Different
}

func named(server string) string {
	if server == "" {
		return ""
	}
	return ", " + server
}

// remark is what the table says behind a point's name.
func remark(p compat.Point) string {
	if p.Note != "" {
		return p.Note
	}
	rules := map[string]int{}
	var order []string
	n := 0
	for _, f := range p.Findings {
		if f.Verdict == judge.Different {
			n++
		} else if f.Rule != nil {
			if rules[f.Rule.Name]++; rules[f.Rule.Name] == 1 {
				order = append(order, f.Rule.Name)
			}
		}
	}
	var parts []string
	if n > 0 {
		parts = append(parts, fmt.Sprintf("%d different in %d rounds", n, p.Rounds))
	}
	for _, name := range order {
		parts = append(parts, fmt.Sprintf("%s (%d)", name, rules[name]))
	}
	return strings.Join(parts, ", ")
}

func indent(text string) string {
	return printable(strings.ReplaceAll(text, "\n", "\n                  "))
}

// printable shows bytes that a terminal must not be given.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r == 0x7F || r >= 0x80 && r < 0xA0) {
			return '·'
		}
		return r
	}, text)
}
