package talk

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"rtspshim/compat/script"
)

const (
	tick        = 20 * time.Millisecond
	reportEvery = time.Second
)

// listen lets packets come for d, or until every track has ended. Receiver
// reports go out meanwhile, as every player's do.
func (t *talk) listen(d time.Duration, untilEnd bool) {
	began := t.now()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	reported := began - reportEvery/2
	for t.now()-began < d {
		select {
		case <-ticker.C:
		case <-t.ctx.Done():
			return
		}
		for _, c := range t.conns {
			c.drain()
		}
		if t.reports && t.now()-reported >= reportEvery {
			reported = t.now()
			t.report()
		}
		if untilEnd && t.ended(began) {
			return
		}
	}
}

// ended says whether every track said BYE or fell silent since began.
func (t *talk) ended(began time.Duration) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for _, track := range t.recording.Tracks {
		last := began
		if n := len(track.Packets); n > 0 {
			last = max(last, track.Packets[n-1].At)
		}
		bye := slices.ContainsFunc(track.Reports, func(r Report) bool { return r.Bye && r.At >= began })
		if !bye && t.now()-last < t.bounds.Quiet {
			return false
		}
	}
	return true
}

// report sends a receiver report for every track that packets came on just
// now: a player that is paused has nothing to report, and gortsplib closes the
// connection of one that does so all the same.
func (t *talk) report() {
	t.mutex.Lock()
	type due struct {
		track *Track
		raw   []byte
	}
	var all []due
	for i, track := range t.recording.Tracks {
		own := t.ssrc + uint32(i)
		n := len(track.Packets)
		if n == 0 || !track.Known || t.now()-track.Packets[n-1].At > 10*tick {
			continue
		}
		p := track.Packets[n-1]
		raw, err := rtcp.Marshal([]rtcp.Packet{
			&rtcp.ReceiverReport{SSRC: own, Reports: []rtcp.ReceptionReport{{SSRC: p.SSRC, LastSequenceNumber: uint32(p.Seq)}}},
			rtcp.NewCNAMESourceDescription(own, "shim-compat"),
		})
		if err == nil {
			all = append(all, due{track, raw})
		}
	}
	t.mutex.Unlock()
	for _, d := range all {
		t.dispatch(d.track, 1, d.raw)
	}
}

// dispatch sends an RTP (0) or RTCP (1) packet of a track to the server.
func (t *talk) dispatch(track *Track, rtcp int, raw []byte) {
	c := t.conns[track.Conn]
	if c == nil || c.left {
		return
	}
	if ids := track.Transport.InterleavedIDs; ids != nil {
		if c.get == nil {
			head := []byte{'$', byte(ids[rtcp]), byte(len(raw) >> 8), byte(len(raw))}
			_ = c.put(append(head, raw...))
		}
		return
	}
	to, ok := t.to(track, rtcp)
	if p := c.udp[track.Media]; ok && p != nil {
		socket := p.rtp
		if rtcp == 1 {
			socket = p.rtcp
		}
		_, _ = socket.WriteToUDPAddrPort(raw, to)
	}
}

// tunnelled says whether the connection being opened runs over HTTP: the
// script's next verb is tunnel.
func (t *talk) tunnelled() bool { return t.nextVerb == script.Tunnel }

// publish sends synthetic media on every track set up to record: the same
// packets, and as many, in every run, so that a viewer of them can be compared.
func (t *talk) publish(d time.Duration) error {
	const interval = 20 * time.Millisecond
	t.recording.Synthetic = true
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for range d / interval {
		select {
		case <-ticker.C:
		case <-t.ctx.Done():
			return nil
		}
		for media, track := range t.on.sending {
			pt := uint8(96)
			if len(track.PTs) > 0 {
				pt = track.PTs[0]
			}
			p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: pt, Marker: true,
				SequenceNumber: uint16(1000*media + t.sent), Timestamp: uint32((t.sent) * track.Clock / 50),
				SSRC: uint32(0x5EED0000 + media)}, Payload: synthetic(track, media, t.sent)}
			raw, err := p.Marshal()
			if err != nil {
				return err
			}
			t.dispatch(track, 0, raw)
		}
		t.sent++
		for _, c := range t.conns {
			c.drain()
		}
	}
	return nil
}

// synthetic is a payload that servers which look inside accept: for video one
// H.264 slice (RFC 6184 5.6), key picture first, else noise of 160 bytes.
func synthetic(track *Track, media, n int) []byte {
	random := rand.New(rand.NewPCG(uint64(media), uint64(n)))
	size, first := 160, byte(random.Uint32())
	if strings.EqualFold(track.Kind, "video") {
		size, first = 700, 0x41
		if n%25 == 0 {
			first = 0x65
		}
	}
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(random.Uint32())
	}
	payload[0] = first
	return payload
}
