package testbed

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"testing"
	"time"
)

// Publisher is an ffmpeg that sends a movie to a server, in a loop and at its
// own pace.
type Publisher struct{ p *process }

// ffmpeg describes its output once ANNOUNCE, SETUP and RECORD were accepted.
var publishReady = regexp.MustCompile(`^Output #0, rtsp`)

// PublishFile publishes a movie's video and audio at url over UDP or TCP, and
// returns once the server has accepted RECORD. It goes on until Stop or the end
// of the test.
func PublishFile(tb testing.TB, url, file string, transport Transport) *Publisher {
	tb.Helper()
	p := startProcess(tb, publishCommand(tb, url, file, transport, "-stream_loop", "-1"), publishReady)
	p.awaitReady(tb)
	return &Publisher{p}
}

// PublishOnce publishes the first media's worth of a movie as PublishFile does,
// and returns when it is over and the server has accepted TEARDOWN.
func PublishOnce(tb testing.TB, url, file string, transport Transport, media time.Duration) {
	tb.Helper()
	p := startProcess(tb, publishCommand(tb, url, file, transport, "-t", fmt.Sprintf("%.3f", media.Seconds())), publishReady)
	timeout := time.NewTimer(media + playSlack)
	defer timeout.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			tb.Fatal(runError(p.cmd, p.err, p.said.last()))
		}
	case <-timeout.C:
		tb.Fatal(runError(p.cmd, errors.New("does not end"), p.said.last()))
	}
}

func publishCommand(tb testing.TB, url, file string, transport Transport, input ...string) *exec.Cmd {
	tb.Helper()
	args := append([]string{"-hide_banner", "-nostdin", "-nostats", "-loglevel", "info", "-re"}, input...)
	return exec.Command(Program(tb, "ffmpeg", "ffmpeg"), append(args, "-i", file,
		"-map", "0:v?", "-map", "0:a?", "-c", "copy",
		"-f", "rtsp", "-rtsp_transport", string(transport), url)...)
}

// Stop ends the publisher as its user would and returns when it has gone.
func (p *Publisher) Stop() { p.p.stop() }

// Done is closed when the publisher has ended, whoever ended it.
func (p *Publisher) Done() <-chan struct{} { return p.p.done }
