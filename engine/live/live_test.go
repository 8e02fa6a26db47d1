package live

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
)

// packet makes an RTP packet with another implementation.
func packet(t testing.TB, seq uint16, ts, ssrc uint32, marker bool, payload []byte) []byte {
	t.Helper()
	p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, SequenceNumber: seq, Timestamp: ts, SSRC: ssrc, Marker: marker}, Payload: payload}
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// client is a connection that takes frames when told to.
type client struct {
	mu     sync.Mutex
	open   chan struct{} // closed: takes all
	got    []rtp.Packet
	rtcp   [][]byte
	bytes  int
	owed   []byte // accepted by TryFrames
	tries  int
	writes int
	most   int
}

func (c *client) WriteFrames(frames net.Buffers) error {
	<-c.open
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.owed != nil {
		frames = append(net.Buffers{c.owed}, frames...)
		c.owed = nil
	}
	for _, b := range frames {
		c.most = max(c.most, len(b))
		for len(b) > 0 {
			if b[0] != '$' {
				return errors.New("no frame")
			}
			n := int(binary.BigEndian.Uint16(b[2:]))
			one := append([]byte(nil), b[4:4+n]...)
			if b[1]%2 == 1 {
				c.rtcp = append(c.rtcp, one)
			} else {
				var p rtp.Packet
				if err := p.Unmarshal(one); err != nil {
					return err
				}
				c.got = append(c.got, p)
			}
			c.bytes += n
			b = b[4+n:]
		}
	}
	return nil
}

// TryFrames takes part of what comes, now and then, if it takes anything.
func (c *client) TryFrames(frames net.Buffers) int {
	b := slices.Concat(frames...)
	select {
	case <-c.open:
	default:
		return 0
	}
	c.mu.Lock()
	n := len(b)
	if c.tries++; c.tries%7 == 0 {
		n /= 2
	}
	c.mu.Unlock()
	if n < len(b) {
		c.owed = append([]byte(nil), b...) // all are counted once the rest is there
		return n
	}
	if c.WriteFrames(net.Buffers{b}) != nil {
		return 0
	}
	return n
}

func group(t *testing.T, medias ...Media) *Group {
	var work sync.WaitGroup
	g := Open(Config{Medias: medias, Lanes: []func(){func() {}}, Go: func(run func()) { work.Go(run) }})
	t.Cleanup(func() { g.Close(); work.Wait() })
	return g
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("waited too long for %s", what)
}

// A connection that does not read for a while loses whole frames and goes on
// with a key frame; its sound is whole as far as the log reaches; another one
// has everything. The packets are a real packetizer's.
func TestSlowConnection(t *testing.T) {
	g := group(t, Media{"H264", 90000}, Media{"OPUS", 48000})
	src := g.NewSource(false)
	src.Lead(nil)
	slow, fast := &client{open: make(chan struct{})}, &client{open: make(chan struct{})}
	close(fast.open)
	release := sync.OnceFunc(func() { close(slow.open) })
	t.Cleanup(release) // before the group's end, which waits for it
	at := time.Now()
	seq := [2]uint16{65000, 7}
	key := map[uint32]bool{} // timestamps of key frames
	size := map[uint32]int{} // packets of a frame
	frame := func(n int) {
		ts := uint32(n) * 3600
		nal := byte(0x41)
		if n%10 == 0 {
			nal, key[ts] = 0x65, true
		}
		data := append([]byte{0, 0, 0, 1, nal}, make([]byte, 9000)...)
		for i := 5; i < len(data); i++ {
			data[i] = byte(1 + rand.IntN(255))
		}
		parts := (&codecs.H264Payloader{}).Payload(1400, data)
		size[ts] = len(parts)
		var all [][]byte
		for i, p := range parts {
			all = append(all, packet(t, seq[0], ts, 0xabcd, i == len(parts)-1, p))
			seq[0]++
		}
		src.Feed(0, all, false, at)
		src.Feed(1, [][]byte{packet(t, seq[1], uint32(n)*1920, 0xef, false, []byte{byte(n), 1, 2})}, false, at)
		seq[1]++
		at = at.Add(40 * time.Millisecond)
	}
	frame(0)
	spec := func(w Writer) MemberSpec {
		return MemberSpec{TCP: w, Medias: []MemberMedia{
			{Mapping: Mapping{SSRC: 1, Seq: 100, Time: 1000}, Last: seq[0] - 1 + 100, RTP: 0, RTCP: 1},
			{Mapping: Mapping{SSRC: 0xef}, Last: seq[1] - 1, RTP: 2, RTCP: 3}}}
	}
	a, b := g.Join(spec(slow)), g.Join(spec(fast))
	total := uint64(0)
	for n := 1; n <= 125; n++ {
		frame(n)
		total += uint64(size[uint32(n)*3600]) + 1
		wait(t, "the fast one", func() bool { return b.Stats().Packets >= total })
	}
	if dropped := b.Stats().Dropped; dropped != 0 {
		t.Errorf("the fast one lost %d packets", dropped)
	}
	release()
	wait(t, "the slow one", func() bool { s := a.Stats(); return s.Packets+s.Dropped == b.Stats().Packets })
	a.Leave()
	b.Leave()
	if a.Stats().Dropped == 0 {
		t.Error("nothing was dropped")
	}
	for name, c := range map[string]*client{"slow": slow, "fast": fast} {
		frames, before, sounds := map[uint32]int{}, uint32(0), 0
		var last *rtp.Packet
		for i := range c.got {
			p := &c.got[i]
			if p.SSRC == 0xef {
				sounds++
				continue
			}
			if p.SSRC != 1 {
				t.Fatalf("%s: SSRC %x", name, p.SSRC)
			}
			ts := p.Timestamp - 1000
			frames[ts]++
			if ts != before && last != nil && p.SequenceNumber != last.SequenceNumber+1 && !key[ts] {
				t.Errorf("%s: goes on at %d, which is no key frame", name, ts/3600)
			}
			before, last = ts, p
		}
		for ts, n := range frames {
			if n != size[ts] {
				t.Errorf("%s: %d of %d packets of frame %d", name, n, size[ts], ts/3600)
			}
		}
		if sounds != 125 {
			t.Errorf("%s: %d of 125 packets of sound", name, sounds)
		}
		if (len(frames) == 125) != (name == "fast") || len(frames) < 6 {
			t.Errorf("%s: %d frames of 125", name, len(frames))
		}
		if c.most > writeBytes+2*1500 {
			t.Errorf("%s: a write of %d octets", name, c.most)
		}
		t.Logf("%s: %d frames, %d writes, %+v", name, len(frames), c.writes, map[string]MemberStats{"slow": a.Stats(), "fast": b.Stats()}[name])
	}
}

// Sender reports reach a viewer in its own numbers and with its own counts, at
// the same NTP time; a goodbye only when it is passed on.
func TestReports(t *testing.T) {
	g := group(t, Media{"", 90000})
	src := g.NewSource(false)
	src.Lead(nil)
	c := &client{open: make(chan struct{})}
	close(c.open)
	src.Feed(0, [][]byte{packet(t, 1, 5000, 77, false, []byte("x"))}, false, time.Now())
	m := g.Join(MemberSpec{TCP: c, Medias: []MemberMedia{{Mapping: Mapping{SSRC: 99, Seq: 10, Time: 50}, Last: 11, Packets: 20, Octets: 300, RTP: 0, RTCP: 1}}})
	src.Feed(0, [][]byte{packet(t, 2, 5100, 77, false, []byte("yz"))}, false, time.Now())
	wait(t, "a packet", func() bool { return m.Stats().Packets == 1 })
	sr := func(last ...rtcp.Packet) []byte {
		b, err := rtcp.Marshal(append([]rtcp.Packet{
			&rtcp.SenderReport{SSRC: 77, NTPTime: 0x0102030405060708, RTPTime: 5050, PacketCount: 5, OctetCount: 6},
			&rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{Source: 77, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: "c"}}}}}}, last...))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	src.Feed(0, [][]byte{sr()}, true, time.Now())
	src.Feed(0, [][]byte{sr(&rtcp.Goodbye{Sources: []uint32{77}})}, true, time.Now())
	src.Feed(0, [][]byte{packet(t, 3, 5200, 77, false, []byte("a"))}, false, time.Now())
	wait(t, "two packets", func() bool { return m.Stats().Packets == 2 })
	g.Goodbye(nil)
	g.lanes[0].ring()
	wait(t, "the goodbye", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.rtcp) == 2 })
	for n, b := range c.rtcp {
		all, err := rtcp.Unmarshal(b)
		if err != nil {
			t.Fatal(err)
		}
		s := all[0].(*rtcp.SenderReport)
		if s.SSRC != 99 || s.NTPTime != 0x0102030405060708 || s.RTPTime != 5100 || s.PacketCount != uint32(21+n) || s.OctetCount != uint32(302+n) {
			t.Errorf("report %d: %+v", n, s)
		}
		if d := all[1].(*rtcp.SourceDescription); d.Chunks[0].Source != 99 || d.Chunks[0].Items[0].Text != "c" {
			t.Errorf("report %d: %+v", n, d)
		}
		if n == 1 && all[2].(*rtcp.Goodbye).Sources[0] != 99 {
			t.Errorf("goodbye: %+v", all[2])
		}
	}
}

// The one way in which packets fit is found; what fits in several ways, or
// differs anywhere, is not taken.
func TestMatch(t *testing.T) {
	random := func(n int) []byte {
		b := make([]byte, 50)
		r := rand.New(rand.NewPCG(uint64(n), 1))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for _, c := range []struct {
		name    string
		payload func(n int) []byte // of the group
		other   func(n int) []byte // of the session; nil: the same
		skip    func(n int) bool   // of the session
		shift   uint16
		why     string
	}{
		{name: "the same numbers", payload: random},
		{name: "other numbers", payload: random, shift: 40000},
		{name: "losses", payload: random, shift: 40000, skip: func(n int) bool { return n%3 == 1 }},
		{name: "silence, same numbers", payload: func(int) []byte { return []byte("silence") }},
		{name: "silence, other numbers", payload: func(int) []byte { return []byte("silence") }, shift: 3, why: "packets fit in several ways"},
		{name: "another stream", payload: random, other: func(n int) []byte { return random(n + 1000) }, why: "no packet is the same"},
		{name: "one octet", payload: random, other: func(n int) []byte {
			b := random(n)
			if n == 35 {
				b[3] ^= 1
			}
			return b
		}, why: "too few packets agree"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := group(t, Media{"", 90000})
			src := g.NewSource(false)
			src.Lead(nil)
			s := g.NewSource(false)
			for n := range 40 {
				seq := uint16(65530 + n)
				src.Feed(0, [][]byte{packet(t, seq, uint32(n)*90, 5, false, c.payload(n))}, false, time.Now())
				if n < 20 || c.skip != nil && c.skip(n) {
					continue
				}
				payload := c.payload(n)
				if c.other != nil {
					payload = c.other(n)
				}
				ssrc, ts := uint32(5), uint32(n)*90
				if c.shift != 0 {
					ssrc, ts = 6, ts+12345
				}
				s.Feed(0, [][]byte{packet(t, seq+c.shift, ts, ssrc, false, payload)}, false, time.Now())
			}
			maps, why := s.Match(8)
			if why != c.why {
				t.Fatalf("why %q, not %q", why, c.why)
			}
			if why == "" && (maps[0].Seq != -c.shift || maps[0].SSRC != 5 || c.shift != 0 && maps[0].Time != ^uint32(12345)+1) {
				t.Errorf("%+v", maps[0])
			}
		})
	}
}

// A second Source takes over while both bring packets, now one ahead, now the
// other: the viewer has each packet once.
func TestHandover(t *testing.T) {
	for _, lead := range []int{-7, 0, 7} {
		g := group(t, Media{"", 90000})
		a, b := g.NewSource(false), g.NewSource(true)
		a.Lead(nil)
		c := &client{open: make(chan struct{})}
		close(c.open)
		body := func(n int) []byte { return []byte{byte(n), byte(n >> 8), 9} }
		feed := func(s *Source, n int, to uint16, ssrc uint32) {
			s.Feed(0, [][]byte{packet(t, uint16(n)+to, uint32(n)*90+uint32(to), ssrc, false, body(n))}, false, time.Now())
		}
		feed(a, 0, 0, 1)
		m := g.Join(MemberSpec{TCP: c, Medias: []MemberMedia{{Mapping: Mapping{SSRC: 1}}}})
		for n := 1; n < 200; n++ {
			feed(a, n, 0, 1)
			if at := n + lead; at > 50 {
				feed(b, at, 333, 2)
			}
			if n == 100 {
				maps, why := b.Match(3)
				if why != "" {
					t.Fatal(why)
				}
				b.Lead(maps)
			}
		}
		wait(t, "all", func() bool { return m.Stats().Packets >= uint64(199+lead) })
		m.Leave()
		for i, p := range c.got {
			if int(p.SequenceNumber) != i+1 || int(p.Payload[0])|int(p.Payload[1])<<8 != i+1 || p.SSRC != 1 || p.Timestamp != uint32(i+1)*90 {
				t.Fatalf("lead %d: packet %d is %v", lead, i+1, p)
			}
		}
	}
}

// A Source that is back after a pause leads at once, by the numbers it was known
// to have, while one of its Medias is silent; not when they are others, or when
// a packet is missing that the Source before may bring.
func TestRecall(t *testing.T) {
	body := func(n int) []byte { return []byte{byte(n), 7, 9} }
	for _, c := range []struct {
		name   string
		first  int    // video packet that the Source brings first; the group has 50
		seq    uint16 // by which its numbers are others than known
		change byte   // in its payloads
		audio  uint16 // seq of its first packet of the silent Media, later; known: 51
		late   bool   // which the Source before brings after all
		leads  bool
		moved  bool
	}{
		{name: "in common", first: 48, audio: 51, leads: true},
		{name: "the very next", first: 51, audio: 51, leads: true},
		{name: "a last one of the silent one", first: 51, audio: 52, late: true, leads: true},
		{name: "one missing", first: 52},
		{name: "other numbers", first: 51, seq: 1},
		{name: "other payload", first: 48, change: 1},
		{name: "the silent one is another", first: 51, audio: 9051, leads: true, moved: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := group(t, Media{"", 90000}, Media{"", 8000})
			a, b := g.NewSource(false), g.NewSource(true)
			a.Lead(nil)
			view := &client{open: make(chan struct{})}
			close(view.open)
			now := time.Now()
			at := func(n int) time.Time { return now.Add(time.Duration(n) * time.Millisecond) }
			feed := func(s *Source, media, n int, seq uint16, payload []byte, ssrc uint32) {
				s.Feed(media, [][]byte{packet(t, seq, uint32(n)*[]uint32{90, 8}[media], ssrc, false, payload)}, false, at(n))
			}
			var m *Member
			for n := range 51 {
				feed(a, 0, n, uint16(n), body(n), 1)
				feed(a, 1, n, uint16(n), body(n), 2)
				if n == 0 {
					m = g.Join(MemberSpec{TCP: view, Medias: []MemberMedia{{Mapping: Mapping{SSRC: 1}}, {Mapping: Mapping{SSRC: 2}, RTP: 2, RTCP: 3}}})
				}
			}
			known := []Mapping{{SSRC: 1, Seq: 5}, {SSRC: 2, Seq: 5}} // its numbers are 5 less
			if b.Recall(known, at(1000)) {
				t.Fatal("leads before it has brought anything")
			}
			for n := c.first; n < 52; n++ {
				p := body(n)
				p[1] ^= c.change
				feed(b, 0, n, uint16(n)-5+c.seq, p, 3)
			}
			if b.Recall(known, at(c.first+5)) {
				t.Error("leads while older packets may be on their way")
			}
			if got := b.Recall(known, at(c.first+20)); got != c.leads {
				t.Fatalf("leads: %v", got)
			}
			if !c.leads {
				return
			}
			if c.late {
				feed(a, 0, 52, 52, body(99), 1) // of this one it brings nothing more
				feed(a, 1, 51, 51, body(51), 2)
			}
			feed(b, 1, int(min(c.audio, 52)), c.audio-5, body(int(min(c.audio, 52))), 4)
			feed(b, 0, 52, 52-5, body(52), 3)
			if b.Moved() != c.moved {
				t.Errorf("moved: %v", b.Moved())
			}
			if c.moved {
				return
			}
			want := uint64(103)
			if c.late {
				want++
			}
			wait(t, "all", func() bool { return m.Stats().Packets >= want })
			m.Leave()
			next := [2]int{1, 1}
			for _, p := range view.got {
				k := map[uint32]int{1: 0, 2: 1}[p.SSRC]
				if int(p.SequenceNumber) != next[k] || int(p.Payload[0]) != next[k] {
					t.Fatalf("media %d: packet %d is %v", k, next[k], p)
				}
				next[k]++
			}
		})
	}
}

// What a session is sent at once at its beginning is seen, and whether its
// packets come when the Group's do.
func TestRush(t *testing.T) {
	const frame = 40 * time.Millisecond
	for _, c := range []struct {
		name string
		from int // of the Group's 100 frames, which came in time, the one that the session begins with
		step time.Duration
		rush time.Duration
		in   bool
	}{
		{"in time", 50, frame, 0, true},
		{"all at once", 50, 0, 49 * frame, true},
		{"behind for good", 25, frame, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := group(t, Media{"", 90000}, Media{"", 0})
			src, s := g.NewSource(false), g.NewSource(false)
			src.Lead(nil)
			began := time.Now()
			for n := range 100 {
				p := packet(t, uint16(n), uint32(n)*3600, 5, false, []byte{byte(n)})
				at := began.Add(time.Duration(n) * frame)
				src.Feed(0, [][]byte{p}, false, at)
				src.Feed(1, [][]byte{p}, false, at) // of a rate that nobody knows
			}
			at := began.Add(99 * frame)
			if c.step > 0 {
				at = began.Add(50 * frame)
			}
			for n := c.from; n < c.from+50; n++ {
				p := packet(t, uint16(n), uint32(n)*3600, 5, false, []byte{byte(n)})
				s.Feed(0, [][]byte{p}, false, at)
				s.Feed(1, [][]byte{p}, false, at)
				at = at.Add(c.step)
			}
			maps, why := s.Match(8)
			if why != "" {
				t.Fatal(why)
			}
			rush, _ := s.Rush(at)
			if rush != c.rush || s.InStep(maps) != c.in {
				t.Errorf("rush %v, in step %v; not %v, %v", rush, s.InStep(maps), c.rush, c.in)
			}
		})
	}
}
