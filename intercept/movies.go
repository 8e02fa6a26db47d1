package intercept

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Movies says which file a URL names. The zero value knows none.
type Movies struct {
	// Dir is the folder the upstream serves: the URL's path below it.
	Dir string
	// Map are further rules, tried first, in order.
	Map []MovieRule
}

// MovieRule maps URLs to a file. Pattern is matched against the URL's path
// without its leading slash (path.Match); in File, "*" stands for the path.
type MovieRule struct{ Pattern, File string }

// ParseMovieRule reads "PATTERN=FILE".
func ParseMovieRule(s string) (MovieRule, error) {
	pattern, file, ok := strings.Cut(s, "=")
	if !ok || file == "" {
		return MovieRule{}, fmt.Errorf("%q: want PATTERN=FILE", s)
	}
	pattern = strings.TrimPrefix(pattern, "/")
	if _, err := path.Match(pattern, ""); err != nil {
		return MovieRule{}, fmt.Errorf("%q: %w", s, err)
	}
	return MovieRule{pattern, file}, nil
}

// Any says whether URLs can name movies at all.
func (m *Movies) Any() bool { return m.Dir != "" || len(m.Map) > 0 }

// find returns the file that a request-URI names, and "" when it names none.
// Servers let a track's name follow the movie's, so the last part of the path
// may be one too many. The file is a regular one; a path cannot leave Dir.
func (m *Movies) find(uri string) string {
	if !m.Any() {
		return ""
	}
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	name := strings.Trim(path.Clean("/"+u.Path), "/")
	for range 2 {
		if file := m.file(name); file != "" {
			return file
		}
		name, _ = path.Split(name)
		name = strings.TrimSuffix(name, "/")
	}
	return ""
}

func (m *Movies) file(name string) string {
	if name == "" {
		return ""
	}
	for _, r := range m.Map {
		if ok, _ := path.Match(r.Pattern, name); ok {
			return regular(strings.ReplaceAll(r.File, "*", name))
		}
	}
	local, err := filepath.Localize(name)
	if m.Dir == "" || err != nil {
		return ""
	}
	return regular(filepath.Join(m.Dir, local))
}

func regular(file string) string {
	if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	return file
}
