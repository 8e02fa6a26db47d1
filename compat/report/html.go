package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"

	"rtspshim/compat"
	"rtspshim/compat/judge"
)

//go:embed page.gohtml
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template shows.
type page struct {
	*compat.Result
	Title   string
	Groups  []group
	Counts  []count
	Rules   []judge.Rule
	Details []detail
}

// count is one part of the bar at the top.
type count struct {
	Verdict judge.Verdict
	Mark    string
	N       int
	Share   float64 // percent
}

// group is a row of the matrix.
type group struct {
	Name  string
	Tiles []tile
}

type tile struct {
	Name, Mark string
	Verdict    judge.Verdict
}

// detail is one point, opened up.
type detail struct {
	compat.Point
	Mark     string
	Remark   string
	Open     bool
	Findings []finding
	Talk     []exchange
	Pictures []picture
}

type finding struct {
	judge.Finding
	Places       []string // where the same was found
	Direct, Shim []span
}

var marks = map[judge.Verdict]string{judge.Same: "✓", judge.Allowed: "≈", judge.Different: "✗", judge.NotRun: "–"}

// HTML writes one page that needs nothing else: no network, no script to be
// readable.
func HTML(w io.Writer, r *compat.Result) error {
	p := page{Result: r, Title: headline(r)}
	total := float64(max(1, len(r.Points)))
	for _, v := range []judge.Verdict{judge.Different, judge.Allowed, judge.Same, judge.NotRun} {
		if n := r.Count(v); n > 0 {
			p.Counts = append(p.Counts, count{v, marks[v], n, 100 * float64(n) / total})
		}
	}
	p.Groups = groups(r)
	seen := map[string]bool{}
	for _, point := range r.Points {
		p.Details = append(p.Details, open(point))
		for _, f := range point.Findings {
			if f.Rule != nil && !seen[f.Rule.Name] {
				seen[f.Rule.Name] = true
				p.Rules = append(p.Rules, *f.Rule)
			}
		}
	}
	if err := pageTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("HTML: %w", err)
	}
	return nil
}

func headline(r *compat.Result) string {
	switch n := r.Count(judge.Different); {
	case !r.OK() && n == 0:
		return "Nothing could be compared"
	case n == 0:
		return "No client can tell them apart"
	case n == 1:
		return "One point is different"
	default:
		return fmt.Sprintf("%d points are different", n)
	}
}

// groups sorts points into rows by the first part of their names.
func groups(r *compat.Result) []group {
	var rows []group
	at := map[string]int{}
	count := map[string]int{}
	first := func(name string) string { word, _, _ := strings.Cut(name, "-"); return word }
	for _, p := range r.Points {
		count[first(p.Name)]++
	}
	for _, p := range r.Points {
		row := first(p.Name)
		if count[row] == 1 {
			row = "others"
		}
		i, ok := at[row]
		if !ok {
			i = len(rows)
			at[row] = i
			rows = append(rows, group{Name: row})
		}
		rows[i].Tiles = append(rows[i].Tiles, tile{p.Name, marks[p.Verdict], p.Verdict})
	}
	if i, ok := at["others"]; ok { // last
		others := rows[i]
		rows = append(append(rows[:i:i], rows[i+1:]...), others)
	}
	return rows
}

func open(p compat.Point) detail {
	d := detail{Point: p, Mark: marks[p.Verdict], Remark: remark(p), Open: p.Verdict == judge.Different}
	for _, f := range p.Findings {
		same := slices.IndexFunc(d.Findings, func(g finding) bool {
			return g.What == f.What && g.Verdict == f.Verdict && g.Finding.Direct == f.Direct && g.Finding.Shim == f.Shim
		})
		if same >= 0 {
			d.Findings[same].Places = append(d.Findings[same].Places, f.Where)
			continue
		}
		a, b := marked(f.Direct, f.Shim)
		d.Findings = append(d.Findings, finding{f, []string{f.Where}, a, b})
	}
	if p.Direct != nil && p.Shim != nil {
		d.Talk = conversation(p)
		d.Pictures = pictures(p)
	}
	return d
}
