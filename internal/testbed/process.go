package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	readyTimeout = 20 * time.Second // a server to listen, a publisher to be accepted
	endTimeout   = 5 * time.Second  // a program to end when asked
	logLines     = 10_000           // kept of what a program says
	shownLines   = 200              // of those, shown where a test has failed
)

// transcript keeps the last lines a program wrote and tells who waits for one.
type transcript struct {
	mu    sync.Mutex
	rest  []byte
	lines []string
	news  chan struct{} // closed and replaced when lines or arrive
	found []string      // of the line awaited
	await *regexp.Regexp
}

// Write takes the output of a program. A line ends at CR or LF.
func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexAny(l.rest, "\r\n")
		if i < 0 {
			break
		}
		if line := string(l.rest[:i]); line != "" {
			l.add(line)
		}
		l.rest = l.rest[i+1:]
	}
	if len(l.rest) > 1<<16 {
		l.rest = l.rest[:0]
	}
	return len(p), nil
}

func (l *transcript) add(line string) {
	if len(l.lines) == logLines {
		l.lines = l.lines[1:]
	}
	l.lines = append(l.lines, line)
	if l.await != nil && l.found == nil {
		if l.found = l.await.FindStringSubmatch(line); l.found != nil {
			close(l.news)
		}
	}
}

// last is the end of it.
func (l *transcript) last() string {
	lines := strings.SplitAfter(l.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-shownLines):], "")
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n") + "\n" + string(l.rest)
}

// process is a program that runs beside the test.
type process struct {
	cmd  *exec.Cmd
	said *transcript
	done chan struct{} // closed after err is set
	err  error
	in   io.Closer // its stdin, nil if it has none
}

// startProcess starts cmd; ready is the line, on stdout or stderr, by which it
// says that it is (nil: there is none). The program is ended with the test.
func startProcess(tb testing.TB, cmd *exec.Cmd, ready *regexp.Regexp) *process {
	tb.Helper()
	p := &process{
		cmd:  cmd,
		said: &transcript{await: ready, news: make(chan struct{})},
		done: make(chan struct{}),
	}
	if cmd.Stdout == nil {
		cmd.Stdout = p.said
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.said
	}
	if cmd.Stdin == nil {
		in, err := cmd.StdinPipe()
		if err != nil {
			tb.Fatalf("%s: stdin: %v", cmd.Path, err)
		}
		p.in = in
	}
	cmd.WaitDelay = endTimeout
	if err := cmd.Start(); err != nil {
		tb.Fatalf("%s: %v", cmd.Path, err)
	}
	go p.wait()
	tb.Cleanup(func() {
		p.stop()
		if tb.Failed() {
			tb.Logf("%s\n%s", strings.Join(cmd.Args, " "), p.said.last())
		}
	})
	return p
}

func (p *process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// awaitReady returns the submatches of the ready line.
func (p *process) awaitReady(tb testing.TB) []string {
	tb.Helper()
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	select {
	case <-p.said.news:
		return p.said.found
	case <-p.done:
		tb.Fatalf("%s ended before it was ready: %v\n%s", p.cmd.Path, p.err, p.said.last())
	case <-timeout.C:
		tb.Fatalf("%s was not ready in %v\n%s", p.cmd.Path, readyTimeout, p.said.last())
	}
	return nil
}

// stop asks the program to end, then makes it, and returns when it has.
func (p *process) stop() {
	if p.in != nil {
		p.in.Close() //nolint:errcheck // it may have ended already
	}
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p.cmd.Process.Signal(sig) //nolint:errcheck // it may have ended already
		timeout := time.NewTimer(endTimeout)
		select {
		case <-p.done:
			timeout.Stop()
			return
		case <-timeout.C:
		}
	}
	<-p.done
}

// runError describes how a program ended, with the last of what it said.
func runError(cmd *exec.Cmd, err error, said string) error {
	const most = 4000
	if len(said) > most {
		said = "…" + said[len(said)-most:]
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = errors.New("did not end when asked")
	}
	return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, said)
}
