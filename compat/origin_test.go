package compat_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"rtspshim/internal/testbed"
)

// origin is an upstream to compare with: gortsplib's server, given a movie or
// a live stream to serve. The movie can be paused and sought, names itself in
// RTP-Info and Range, reports each second and says BYE at its end.
type origin struct {
	server *gortsplib.Server
	movie  bool
	user   string

	mutex   sync.Mutex
	viewers map[*gortsplib.ServerSession]*viewer
	waiting map[string]*viewer // PLAY answered next, by the mark in the answer
	live    *viewer
	publish *gortsplib.ServerStream
	group   sync.WaitGroup
}

const (
	movieSeconds   = 5.0
	frameTime      = 20 * time.Millisecond
	packetsOfFrame = 8
)

// viewer is one playing of the movie, or the live stream.
type viewer struct {
	origin *origin
	stream *gortsplib.ServerStream
	desc   *description.Session
	tracks [2]struct {
		seq            uint16
		base           uint32 // timestamp of media time 0, pauses included
		ssrc           uint32
		packets, bytes uint32
	}
	name   int
	frame  int
	end    int // frame
	paused time.Time
	stop   chan struct{}
	done   chan struct{}
}

// startOrigin runs an origin in a process of its own, since gortsplib's server
// has races that must not count as ours, and returns its URL.
func startOrigin(t *testing.T, movie bool, user string) string {
	t.Helper()
	return testbed.StartChild(t, fmt.Sprintf("%v %s", movie, user))
}

func TestChild(t *testing.T) {
	testbed.BeChild(t, func(t *testing.T, what string) string {
		movie, user, _ := strings.Cut(what, " ")
		return serveOrigin(t, movie == "true", user)
	})
}

// serveOrigin serves until the test ends, and returns its URL.
func serveOrigin(t *testing.T, movie bool, user string) string {
	o := &origin{movie: movie, user: user, viewers: map[*gortsplib.ServerSession]*viewer{}, waiting: map[string]*viewer{}}
	var err error
	for range 50 {
		port := 10000 + 2*rand.IntN(5000)
		o.server = &gortsplib.Server{Handler: o, RTSPAddress: fmt.Sprintf("127.0.0.1:%d", port+2),
			UDPRTPAddress: fmt.Sprintf("127.0.0.1:%d", port), UDPRTCPAddress: fmt.Sprintf("127.0.0.1:%d", port+1),
			DisableRTCPSenderReports: true, WriteQueueSize: 4096}
		if err = o.server.Start(); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if !movie {
		v, err := o.newViewer()
		if err != nil {
			t.Fatal(err)
		}
		o.live = v
		v.end = 1 << 30
		v.start()
	}
	t.Cleanup(func() {
		o.server.Close()
		if o.live != nil {
			o.live.halt()
		}
		o.group.Wait()
	})
	return "rtsp://" + o.server.RTSPAddress + "/stream"
}

func (o *origin) newViewer() (*viewer, error) {
	v := &viewer{origin: o, name: rand.IntN(1e6), desc: &description.Session{Medias: []*description.Media{
		{Type: description.MediaTypeVideo, Formats: []format.Format{&format.H264{PayloadTyp: 96, PacketizationMode: 1}}},
		{Type: description.MediaTypeAudio, Formats: []format.Format{&format.G711{PayloadTyp: 8, MULaw: false, SampleRate: 8000, ChannelCount: 1}}},
	}}}
	v.stream = &gortsplib.ServerStream{Server: o.server, Desc: v.desc}
	if err := v.stream.Initialize(); err != nil {
		return nil, err
	}
	for i := range v.tracks {
		v.tracks[i].seq = uint16(rand.Uint32())
		v.tracks[i].base = rand.Uint32()
	}
	return v, nil
}

func (o *origin) allowed(conn *gortsplib.ServerConn, req *base.Request) (*base.Response, error) {
	if o.user == "" || conn.VerifyCredentials(req, o.user, "secret") {
		return nil, nil
	}
	return &base.Response{StatusCode: base.StatusUnauthorized}, liberrors.ErrServerAuth{}
}

func (o *origin) OnDescribe(ctx *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if res, err := o.allowed(ctx.Conn, ctx.Request); res != nil {
		return res, nil, err
	}
	if ctx.Path == "/published" && o.publish != nil {
		return &base.Response{StatusCode: base.StatusOK}, o.publish, nil
	}
	if strings.TrimSuffix(ctx.Path, "/") != "/stream" {
		return &base.Response{StatusCode: base.StatusNotFound}, nil, nil
	}
	if o.live != nil {
		return &base.Response{StatusCode: base.StatusOK}, o.live.stream, nil
	}
	v, err := o.newViewer()
	return &base.Response{StatusCode: base.StatusOK}, v.stream, err
}

func (o *origin) OnSetup(ctx *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if res, err := o.allowed(ctx.Conn, ctx.Request); res != nil {
		return res, nil, err
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	ok := &base.Response{StatusCode: base.StatusOK}
	switch {
	case ctx.Session.State() == gortsplib.ServerSessionStatePreRecord:
		return ok, nil, nil
	case ctx.Path == "/published" && o.publish != nil:
		return ok, o.publish, nil
	case ctx.Path != "/stream":
		return &base.Response{StatusCode: base.StatusNotFound}, nil, nil
	case o.live != nil:
		return ok, o.live.stream, nil
	}
	v := o.viewers[ctx.Session]
	if v == nil {
		var err error
		if v, err = o.newViewer(); err != nil {
			return &base.Response{StatusCode: base.StatusInternalServerError}, nil, err
		}
		o.viewers[ctx.Session] = v
	}
	return ok, v.stream, nil
}

func (o *origin) OnPlay(ctx *gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	if res, err := o.allowed(ctx.Conn, ctx.Request); res != nil {
		return res, err
	}
	res := &base.Response{StatusCode: base.StatusOK, Header: base.Header{}}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	v := o.viewers[ctx.Session]
	if v == nil {
		return res, nil
	}
	v.halt()
	begin, end := -1.0, movieSeconds
	var r headers.Range
	if value := ctx.Request.Header["Range"]; value != nil && r.Unmarshal(value) == nil {
		if npt, ok := r.Value.(*headers.RangeNPT); ok {
			begin = npt.Start.Seconds()
			if npt.End != nil {
				end = min(end, npt.End.Seconds())
			}
		}
	}
	v.seek(begin, end)
	res.Header["Range"] = base.HeaderValue{fmt.Sprintf("npt=%.5f-%.5f", float64(v.frame)*frameTime.Seconds(), end)}
	mark := fmt.Sprint(rand.Uint64())
	res.Header["X-Mark"] = base.HeaderValue{mark}
	o.waiting[mark] = v
	return res, nil
}

// seek sets the next frame; a negative begin goes on where it stopped.
// Timestamps grow by the time spent paused, as Darwin's do.
func (v *viewer) seek(begin, end float64) {
	frames := int(begin / frameTime.Seconds())
	if begin < 0 {
		frames = v.frame
	}
	for i, clock := range []uint32{90000, 8000} {
		rest := uint32(0)
		if !v.paused.IsZero() {
			rest = uint32(time.Since(v.paused).Seconds() * float64(clock))
		}
		v.tracks[i].base += uint32((v.frame-frames)*int(clock)/50) + rest
	}
	v.frame, v.end, v.paused = frames, int(end/frameTime.Seconds()), time.Time{}
}

func (o *origin) OnPause(ctx *gortsplib.ServerHandlerOnPauseCtx) (*base.Response, error) {
	o.mutex.Lock()
	v := o.viewers[ctx.Session]
	if v != nil {
		v.halt()
		v.paused = time.Now()
	}
	o.mutex.Unlock()
	if v != nil {
		time.Sleep(frameTime) // gortsplib throws away what is still queued
	}
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func (o *origin) OnSessionClose(ctx *gortsplib.ServerHandlerOnSessionCloseCtx) {
	o.mutex.Lock()
	v := o.viewers[ctx.Session]
	delete(o.viewers, ctx.Session)
	if v != nil {
		v.halt()
	}
	o.mutex.Unlock()
	if v != nil {
		v.stream.Close()
	}
}

func (o *origin) OnAnnounce(ctx *gortsplib.ServerHandlerOnAnnounceCtx) (*base.Response, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.publish != nil {
		o.publish.Close()
	}
	o.publish = &gortsplib.ServerStream{Server: o.server, Desc: ctx.Description}
	if err := o.publish.Initialize(); err != nil {
		return &base.Response{StatusCode: base.StatusBadRequest}, err
	}
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func (o *origin) OnRecord(ctx *gortsplib.ServerHandlerOnRecordCtx) (*base.Response, error) {
	o.mutex.Lock()
	stream := o.publish
	o.mutex.Unlock()
	ctx.Session.OnPacketRTPAny(func(m *description.Media, _ format.Format, p *rtp.Packet) {
		_ = stream.WritePacketRTP(m, p)
	})
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func (o *origin) OnGetParameter(*gortsplib.ServerHandlerOnGetParameterCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK, Header: base.Header{"Content-Type": {"text/parameters"}}, Body: []byte{}}, nil
}

// OnResponse completes what gortsplib leaves to others: the movie's length,
// and RTP-Info and the first packets of a PLAY.
func (o *origin) OnResponse(_ *gortsplib.ServerConn, res *base.Response) {
	if o.movie && len(res.Body) > 0 && res.Header["Content-Base"] != nil {
		res.Body = []byte(strings.Replace(string(res.Body), "t=0 0\r\n", fmt.Sprintf("t=0 0\r\na=range:npt=0-%.1f\r\n", movieSeconds), 1))
	}
	if res.StatusCode == base.StatusOK {
		res.Header["Date"] = base.HeaderValue{time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")}
	}
	mark := res.Header["X-Mark"]
	if mark == nil {
		return
	}
	delete(res.Header, "X-Mark")
	o.mutex.Lock()
	defer o.mutex.Unlock()
	v := o.waiting[mark[0]]
	delete(o.waiting, mark[0])
	var info headers.RTPInfo
	if len(res.Header["RTP-Info"]) == 0 || info.Unmarshal(res.Header["RTP-Info"]) != nil {
		v.start() // a PLAY while playing has none
		return
	}
	for _, entry := range info {
		n, _ := strconv.Atoi(entry.URL[len(entry.URL)-1:])
		seq, ts := v.tracks[n].seq, v.timestamp(n)
		entry.SequenceNumber, entry.Timestamp = &seq, &ts
	}
	res.Header["RTP-Info"] = info.Marshal()
	v.start()
}

func (v *viewer) timestamp(track int) uint32 {
	return v.tracks[track].base + uint32(v.frame*[]int{90000, 8000}[track]/50)
}

func (v *viewer) start() {
	v.stop, v.done = make(chan struct{}), make(chan struct{})
	v.origin.group.Add(1)
	go v.play(v.stop, v.done)
}

// halt stops the player; origin.mutex is held, or nobody else is left.
func (v *viewer) halt() {
	if v.stop != nil {
		close(v.stop)
		<-v.done
		v.stop = nil
	}
}

func (v *viewer) play(stop, done chan struct{}) {
	defer v.origin.group.Done()
	defer close(done)
	ticker := time.NewTicker(frameTime)
	defer ticker.Stop()
	began, first := time.Now(), v.frame
	for v.frame < v.end {
		// A tick missed on a busy machine is made up for.
		for due := first + int(time.Since(began)/frameTime); v.frame <= due && v.frame < v.end; v.frame++ {
			v.send()
			if (v.frame-first)%50 == 5 {
				v.report()
			}
		}
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
	for i, m := range v.desc.Medias {
		_ = v.stream.WritePacketRTCP(m, &rtcp.Goodbye{Sources: []uint32{v.tracks[i].ssrc}})
	}
}

// send writes one frame of video and 20 ms of sound, their content a function
// of the frame number alone.
func (v *viewer) send() {
	for i, m := range v.desc.Medias {
		t := &v.tracks[i]
		count, pt := packetsOfFrame, uint8(96)
		if i == 1 {
			count, pt = 1, 8
		}
		for k := range count {
			random := rand.New(rand.NewPCG(uint64(v.frame), uint64(i*100+k)))
			payload := make([]byte, 160+20*k)
			for b := range payload {
				payload[b] = byte(random.Uint32())
			}
			payload[0] = 0x41
			p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: pt, SequenceNumber: t.seq, Timestamp: v.timestamp(i),
				SSRC: t.ssrc, Marker: k == count-1}, Payload: payload}
			_ = v.stream.WritePacketRTP(m, p)
			t.ssrc = p.SSRC
			t.seq++
			t.packets++
			t.bytes += uint32(len(payload))
		}
	}
}

func (v *viewer) report() {
	for i, m := range v.desc.Medias {
		t, now := &v.tracks[i], time.Now()
		ntp := uint64(now.Unix()+2208988800)<<32 | uint64(now.Nanosecond())<<32/1e9
		_ = v.stream.WritePacketRTCP(m, &rtcp.CompoundPacket{
			&rtcp.SenderReport{SSRC: t.ssrc, NTPTime: ntp, RTPTime: v.timestamp(i), PacketCount: t.packets, OctetCount: t.bytes},
			rtcp.NewCNAMESourceDescription(t.ssrc, fmt.Sprintf("origin%d", v.name)),
		})
	}
}
