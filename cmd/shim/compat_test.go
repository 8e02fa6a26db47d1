package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// compatRun runs the command as main does and returns what it wrote and its status.
func compatRun(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	app := &cli.App{Name: "shim", Writer: &out, ErrWriter: &out, Commands: []*cli.Command{compatCommand},
		ExitErrHandler: func(*cli.Context, error) {}}
	err := app.Run(append([]string{"shim", "compat"}, args...))
	var exit cli.ExitCoder
	switch {
	case err == nil:
		return out.String(), 0
	case errors.As(err, &exit):
		return out.String() + exit.Error(), exit.ExitCode()
	}
	return out.String() + err.Error(), 1
}

func TestCompatCommand(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "rtsp://" + l.Addr().String() + "/x"
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "mine.rtsp")
	if err := os.WriteFile(mine, []byte("# My own.\ntags: own\n> OPTIONS *\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "broken.rtsp")
	if err := os.WriteFile(broken, []byte("\ndance\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{nil, 2, "want UPSTREAM_URL and SHIM_URL"},
		{[]string{"http://x/", "rtsp://y"}, 2, "want rtsp://host:port/path"},
		{[]string{"--credentials", "nocolon", nobody, nobody}, 2, "USER:PASSWORD"},
		{[]string{"--script", broken, nobody, nobody}, 2, "broken.rtsp:2"},
		{[]string{"--quiet", nobody, nobody}, 2, "connection refused"},
		{[]string{"--list", "--only", "pause-udp"}, 0, "Pause and go on over UDP"},
		{[]string{"--list", "--script", mine, "--only", "own"}, 0, "My own."},
		{[]string{"--show", "--only", "options"}, 0, "> OPTIONS *"},
	} {
		out, status := compatRun(t, c.args...)
		if status != c.status || !strings.Contains(out, c.want) {
			t.Errorf("%q: status %d, want %d, and %q in\n%s", c.args, status, c.status, c.want, out)
		}
	}
}
