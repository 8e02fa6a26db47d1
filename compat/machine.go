package compat

import (
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
)

// machine describes where the comparison ran.
func machine() []string {
	all := []string{
		fmt.Sprintf("%s/%s, %d CPUs, %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version()),
	}
	if text, err := os.ReadFile("/proc/version"); err == nil {
		words := strings.Fields(string(text))
		all = append(all, strings.Join(words[:min(3, len(words))], " "))
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		words := strings.Fields(string(text))
		all = append(all, "load at start "+strings.Join(words[:min(3, len(words))], " "))
	}
	return all
}

// matches is path.Match where a bad pattern matches nothing but itself.
func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil || pattern == name
}
