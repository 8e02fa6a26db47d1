package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/pion/rtp"
)

// maxRecorded bounds the packets of one track a Player keeps.
const maxRecorded = 1 << 20

// Packet is an RTP packet as a Player received it.
type Packet struct {
	Seq    uint16
	Time   uint32
	SSRC   uint32
	Marker bool
	Type   uint8
	Hash   [sha256.Size]byte // of the payload
	At     time.Time         // of its arrival
}

// Recording is the packets a Player received, by track in the order of the SDP.
type Recording [][]Packet

// Packets is how many there are of all tracks.
func (r Recording) Packets() int {
	n := 0
	for _, t := range r {
		n += len(t)
	}
	return n
}

// Player is gortsplib's client that keeps what it receives.
type Player struct {
	client *gortsplib.Client

	mu      sync.Mutex
	session string
	got     Recording
	news    chan struct{} // closed and replaced with each packet
}

// OpenPlayer sets up all tracks of a URL, over TCP or over UDP.
func OpenPlayer(url string, tcp bool) (*Player, error) {
	u, err := base.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("play %s: %w", url, err)
	}
	protocol := gortsplib.ProtocolUDP
	if tcp {
		protocol = gortsplib.ProtocolTCP
	}
	p := &Player{news: make(chan struct{})}
	p.client = &gortsplib.Client{Scheme: u.Scheme, Host: u.Host, Protocol: &protocol,
		UDPReadBufferSize: 1 << 20, OnResponse: p.answered,
		OnDecodeError: func(error) {}, OnPacketsLost: func(uint64) {}} // it shows in the packets
	if err := p.client.Start(); err != nil {
		return nil, fmt.Errorf("play %s: %w", url, err)
	}
	desc, _, err := p.client.Describe(u)
	if err == nil {
		err = p.client.SetupAll(desc.BaseURL, desc.Medias)
	}
	if err != nil {
		p.client.Close()
		return nil, fmt.Errorf("play %s: %w", url, err)
	}
	p.got = make(Recording, len(desc.Medias))
	track := map[*description.Media]int{}
	for i, m := range desc.Medias {
		track[m] = i
	}
	p.client.OnPacketRTPAny(func(m *description.Media, _ format.Format, packet *rtp.Packet) {
		p.packet(track[m], packet)
	})
	return p, nil
}

// answered notes the session.
func (p *Player) answered(res *base.Response) {
	var h headers.Session
	if v, ok := res.Header["Session"]; ok && h.Unmarshal(v) == nil {
		p.mu.Lock()
		p.session = h.Session
		p.mu.Unlock()
	}
}

// packet keeps a packet.
func (p *Player) packet(track int, packet *rtp.Packet) {
	got := Packet{Seq: packet.SequenceNumber, Time: packet.Timestamp, SSRC: packet.SSRC, Marker: packet.Marker,
		Type: packet.PayloadType, Hash: sha256.Sum256(packet.Payload), At: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.got[track]) < maxRecorded {
		p.got[track] = append(p.got[track], got)
	}
	close(p.news)
	p.news = make(chan struct{})
}

// Play asks for the movie from a position on and returns the answer's RTP-Info.
func (p *Player) Play(from time.Duration) (headers.RTPInfo, error) {
	res, err := p.client.Play(&headers.Range{Value: &headers.RangeNPT{Start: from}})
	if err != nil {
		return nil, fmt.Errorf("PLAY: %w", err)
	}
	var info headers.RTPInfo
	if v, ok := res.Header["RTP-Info"]; ok {
		err = info.Unmarshal(v)
	}
	return info, err
}

// Pause asks for silence.
func (p *Player) Pause() error {
	if _, err := p.client.Pause(); err != nil {
		return fmt.Errorf("PAUSE: %w", err)
	}
	return nil
}

// Session is the session's ID.
func (p *Player) Session() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.session
}

// Recorded returns what was received so far.
func (p *Player) Recorded() Recording {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(Recording, len(p.got))
	for i, t := range p.got {
		all[i] = append([]Packet(nil), t...)
	}
	return all
}

// Await returns what was received once done says that it is enough.
func (p *Player) Await(ctx context.Context, done func(Recording) bool) (Recording, error) {
	for {
		p.mu.Lock()
		ok, news := done(p.got), p.news
		p.mu.Unlock()
		if ok {
			return p.Recorded(), nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return p.Recorded(), fmt.Errorf("%d packets received: %w", p.Recorded().Packets(), ctx.Err())
		}
	}
}

// Close ends the session.
func (p *Player) Close() { p.client.Close() }

// Same says whether two recordings, of which one may have begun or ended
// earlier, agree where they overlap, packet by packet: payload, marker, payload
// type, and the steps of sequence numbers and timestamps. Of each track half of
// the shorter one must overlap, and at least so many packets.
func (r Recording) Same(o Recording, least int) error {
	if len(r) != len(o) {
		return fmt.Errorf("%d and %d tracks", len(r), len(o))
	}
	for i := range r {
		if err := sameTrack(r[i], o[i], least); err != nil {
			return fmt.Errorf("track %d: %w", i+1, err)
		}
	}
	return nil
}

// sameTrack tries all places of one's first packet in the other.
func sameTrack(a, b []Packet, least int) error {
	if len(a) == 0 || len(b) == 0 {
		return fmt.Errorf("%d and %d packets", len(a), len(b))
	}
	err := errors.New("nothing in common")
	far := -1
	least = max(least, min(len(a), len(b))/2)
	for _, try := range []struct{ first, in []Packet }{{b, a}, {a, b}} {
		for i := range try.in {
			if try.in[i].Hash != try.first[0].Hash {
				continue
			}
			n, e := agree(try.in[i:], try.first)
			if e == nil && n >= least {
				return nil
			}
			if e == nil {
				e = fmt.Errorf("only %d packets overlap", n)
			}
			if n > far {
				far, err = n, e
			}
		}
	}
	return err
}

// agree compares packet by packet and returns how many are equal.
func agree(a, b []Packet) (int, error) {
	n := min(len(a), len(b))
	for i := range n {
		what := ""
		switch {
		case a[i].Seq-a[0].Seq != b[i].Seq-b[0].Seq:
			what = fmt.Sprintf("sequence numbers %d and %d after the first", a[i].Seq-a[0].Seq, b[i].Seq-b[0].Seq)
		case a[i].Time-a[0].Time != b[i].Time-b[0].Time:
			what = fmt.Sprintf("timestamps %d and %d after the first", a[i].Time-a[0].Time, b[i].Time-b[0].Time)
		case a[i].Hash != b[i].Hash:
			what = "payloads"
		case a[i].Marker != b[i].Marker || a[i].Type != b[i].Type:
			what = "markers or payload types"
		case a[i].SSRC != a[0].SSRC || b[i].SSRC != b[0].SSRC:
			what = "SSRCs within a play"
		default:
			continue
		}
		return i, fmt.Errorf("packet %d of %d: %s differ", i+1, n, what)
	}
	return n, nil
}
