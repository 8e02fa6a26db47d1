package testbed

import (
	"os/exec"
	"regexp"
	"testing"
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
	cmd := exec.Command(Program(tb, "ffmpeg", "ffmpeg"),
		"-hide_banner", "-nostdin", "-nostats", "-loglevel", "info",
		"-re", "-stream_loop", "-1", "-i", file,
		"-map", "0:v?", "-map", "0:a?", "-c", "copy",
		"-f", "rtsp", "-rtsp_transport", string(transport), url)
	p := startProcess(tb, cmd, publishReady)
	p.awaitReady(tb)
	return &Publisher{p}
}

// Stop ends the publisher as its user would and returns when it has gone.
func (p *Publisher) Stop() { p.p.stop() }

// Done is closed when the publisher has ended, whoever ended it.
func (p *Publisher) Done() <-chan struct{} { return p.p.done }
