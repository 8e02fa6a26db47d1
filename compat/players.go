package compat

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"rtspshim/compat/judge"
	"rtspshim/compat/talk"
)

// playFor is how much of a stream a player plays, and playLimit how long it
// may take for it.
const (
	playFor   = 3 * time.Second
	playLimit = 30 * time.Second
	maxFrames = 10_000
)

// player is a real client: it plays a URL and returns a hash of every decoded
// frame, by medium.
type player struct {
	name     string
	programs []string
	tcp      bool
	play     func(ctx context.Context, url string, tcp bool) (map[string][]uint64, error)
}

var allPlayers = []player{
	{"ffmpeg", []string{"ffmpeg"}, false, playFFmpeg},
	{"ffmpeg", []string{"ffmpeg"}, true, playFFmpeg},
	{"gstreamer", []string{"gst-launch-1.0"}, false, playGStreamer},
	{"gstreamer", []string{"gst-launch-1.0"}, true, playGStreamer},
	{"vlc", []string{"vlc", "ffmpeg"}, false, playVLC},
}

// players makes a job of every real client that is to be used.
func (r *run) players() []job {
	var jobs []job
	for _, p := range allPlayers {
		over := map[bool]string{true: "tcp", false: "udp"}[p.tcp]
		point := Point{Name: "client-" + p.name + "-" + over, Tags: []string{"movie", "live", "client", p.name, over}, Verdict: judge.NotRun,
			About: fmt.Sprintf("%s plays %v through both; every decoded frame must be the same.", p.name, playFor)}
		if r.Clients != nil && !slices.Contains(r.Clients, p.name) || !r.Chosen(point.Name, point.Tags) {
			continue
		}
		j := job{point: point, alone: true, run: func(ctx context.Context, out *Point) { r.watch(ctx, p, out) }}
		for _, program := range p.programs {
			if _, err := exec.LookPath(program); err != nil {
				j.run, j.point.Note = nil, program+" is not installed"
			}
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// watch plays with the upstream twice and with the shim once, at the same time.
func (r *run) watch(ctx context.Context, p player, out *Point) {
	var rounds []judge.Frames
	for range 1 + max(0, r.Again) {
		round := [3]map[string][]uint64{}
		errs := [3]error{}
		var group sync.WaitGroup
		for i, t := range []talk.Target{r.upstream, r.shim, r.upstream} {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, playLimit)
				defer cancel()
				round[i], errs[i] = p.play(ctx, playURL(t), p.tcp)
			})
		}
		group.Wait()
		if err := errors.Join(errs[0], errs[2]); err != nil {
			out.Note = "with the upstream: " + err.Error()
			return
		}
		frames := judge.Frames{Direct: []map[string][]uint64{round[0], round[2]}, Shim: round[1]}
		if errs[1] != nil {
			frames.Failure = errs[1].Error()
		}
		rounds = append(rounds, frames)
		out.Rounds = len(rounds)
		out.Findings = judge.OfFrames(rounds, r.kind == "movie")
		if judge.Worst(out.Findings) != judge.Different {
			break
		}
	}
	out.Verdict = judge.Worst(out.Findings)
	other := slices.ContainsFunc(out.Findings, func(f judge.Finding) bool { return f.What == judge.NothingInCommon })
	if r.upstream.Connect != "" && other {
		// Players cannot name the shim to the upstream as scripts do (see sameName).
		out.Verdict, out.Findings = judge.NotRun, nil
		out.Note = "the upstream makes a live stream of its own for every host it is called by; compared by packets only"
	}
}

// playURL is the URL with credentials, as players want it.
func playURL(t talk.Target) string {
	u, err := url.Parse(t.URL)
	if err != nil {
		return t.URL
	}
	if t.Connect != "" {
		u.Host = t.Connect
	}
	u.User = t.User
	return u.String()
}

func playFFmpeg(ctx context.Context, url string, tcp bool) (map[string][]uint64, error) {
	over := map[bool]string{true: "tcp", false: "udp"}[tcp]
	return ffmpegFrames(ctx, "-rtsp_transport", over, "-i", url, "-t", fmt.Sprint(playFor.Seconds()))
}

// ffmpegFrames decodes an input and reads ffmpeg's list of frame hashes:
// "stream, dts, pts, duration, size, hash" a line.
func ffmpegFrames(ctx context.Context, input ...string) (map[string][]uint64, error) {
	args := append([]string{"-nostdin", "-v", "error"}, input...)
	cmd := exec.CommandContext(ctx, "ffmpeg", append(args, "-map", "0:v?", "-map", "0:a?", "-fps_mode", "passthrough", "-f", "framehash", "-hash", "md5", "-")...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	said := &tail{}
	cmd.Stderr = said
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	frames := map[string][]uint64{}
	kinds := map[string]string{}
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		line := lines.Text()
		if rest, ok := strings.CutPrefix(line, "#media_type "); ok {
			n, kind, _ := strings.Cut(rest, ": ")
			kinds[n] = kind
		}
		fields := strings.Split(line, ",")
		if strings.HasPrefix(line, "#") || len(fields) < 6 {
			continue
		}
		kind := kinds[strings.TrimSpace(fields[0])]
		if len(frames[kind]) < maxFrames {
			frames[kind] = append(frames[kind], hashOf([]byte(strings.TrimSpace(fields[5]))))
		}
	}
	err = cmd.Wait()
	return decoded(frames, err, "ffmpeg", said)
}

func hashOf(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

// decoded turns "nothing decoded" into an error that says why.
func decoded(frames map[string][]uint64, err error, who string, said *tail) (map[string][]uint64, error) {
	if len(frames) == 0 {
		return nil, fmt.Errorf("%s decoded nothing (%w): %s", who, cmp.Or(err, errors.New("no error")), said.text())
	}
	return frames, nil
}

// playGStreamer decodes the video to Y4M, which has a mark before each frame.
func playGStreamer(ctx context.Context, url string, tcp bool) (map[string][]uint64, error) {
	over := map[bool]string{true: "tcp", false: "udp"}[tcp]
	cmd := exec.CommandContext(ctx, "gst-launch-1.0", "-q", "rtspsrc", "location="+url, "protocols="+over, "latency=300",
		"!", "application/x-rtp,media=video", "!", "decodebin", "!", "videoconvert", "!", "video/x-raw,format=I420", "!", "y4menc",
		"!", "fdsink", "fd=1", "sync=false")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	said := &tail{}
	cmd.Stderr = said
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	hashes := readY4M(pipe, playFor)
	_ = cmd.Process.Signal(os.Interrupt)
	_, _ = io.Copy(io.Discard, pipe)
	err = cmd.Wait()
	frames := map[string][]uint64{}
	if len(hashes) > 0 {
		frames["video"] = hashes
	}
	return decoded(frames, err, "GStreamer", said)
}

// readY4M hashes frames until so much time has passed since the first.
func readY4M(from io.Reader, d time.Duration) []uint64 {
	r := bufio.NewReaderSize(from, 1<<20)
	head, err := r.ReadString('\n')
	var w, h int
	for _, field := range strings.Fields(head) {
		switch field[0] {
		case 'W':
			_, _ = fmt.Sscanf(field, "W%d", &w)
		case 'H':
			_, _ = fmt.Sscanf(field, "H%d", &h)
		}
	}
	size := w*h + 2*((w+1)/2)*((h+1)/2)
	if err != nil || w <= 0 || h <= 0 || size > 64<<20 {
		return nil
	}
	frame := make([]byte, size)
	var hashes []uint64
	var began time.Time
	for len(hashes) < maxFrames {
		if _, err := r.ReadString('\n'); err != nil {
			break
		}
		if _, err := io.ReadFull(r, frame); err != nil {
			break
		}
		if began.IsZero() {
			began = time.Now()
		}
		hashes = append(hashes, hashOf(frame))
		if time.Since(began) > d {
			break
		}
	}
	return hashes
}

// playVLC lets VLC write what it receives to a file, which ffmpeg decodes.
func playVLC(ctx context.Context, url string, _ bool) (map[string][]uint64, error) {
	dir, err := os.MkdirTemp("", "compat-vlc")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // VLC does not run as root
		return nil, err
	}
	video := filepath.Join(dir, "video")
	cmd := exec.CommandContext(ctx, "vlc", "-q", "-I", "dummy", "--no-media-library", "--no-sout-audio",
		fmt.Sprintf("--run-time=%.1f", playFor.Seconds()+1), "--sout", "#es{access-video=file,mux-video=dummy,dst-video="+video+"}", url, "vlc://quit")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "HOME="+dir)
	if os.Geteuid() == 0 {
		const nobody = 65534 // VLC refuses to be root
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("VLC: %w: %s", err, said.text())
	}
	if info, err := os.Stat(video); err != nil || info.Size() == 0 {
		return nil, fmt.Errorf("VLC received nothing (Debian builds it without RTSP, bug 981439): %s", said.text())
	}
	return ffmpegFrames(ctx, "-i", video)
}

// tail keeps the last of what a program said.
type tail struct {
	mutex sync.Mutex
	last  bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.last.Len() > 4096 {
		t.last.Reset()
	}
	t.last.Write(p[max(0, len(p)-4096):])
	return len(p), nil
}

func (t *tail) text() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	text := strings.TrimSpace(t.last.String())
	return text[max(0, len(text)-300):]
}
