package intercept

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"rtspshim/demo"
	"rtspshim/engine"
	"rtspshim/internal/testbed"
)

// The stream becomes another one, under way: all viewers get that, and share
// one upstream session again.
func TestLiveOtherSSRC(t *testing.T) {
	t.Parallel()
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var other atomic.Bool
			up, addr, i := liveShim(t, func(c *demo.Config) {
				c.Faults.Packet = func(_ string, _ uint32, _ uint64, p []byte) []byte {
					if other.Load() {
						p[8] ^= 0x55
					}
					return p
				}
			})
			all := liveViewers(t, addr, 4, tcp)
			joined(t, i, 4)
			for _, v := range all {
				v.more(3)
				v.unbroken(start(v))
			}
			other.Store(true)
			for n, v := range all {
				v.await(fmt.Sprintf("viewer %d: another SSRC", n), func(got [][]seenPacket) bool {
					for _, list := range got {
						if len(list) == 0 || list[0].ssrc^list[len(list)-1].ssrc != 0x55000000 {
							return false
						}
					}
					return true
				})
			}
			joined(t, i, 4)
			playingUpstream(t, up, 1)
			for _, v := range all {
				first := start(v)
				for m, list := range v.recorded() {
					for first[m] < len(list) && list[first[m]].ssrc == list[0].ssrc {
						first[m]++
					}
				}
				v.more(5)
				v.unbroken(first)
			}
		})
	}
}

// The publisher goes, and another one brings another stream to the same path:
// viewers are told of the end, and the next ones share the new stream.
func TestLiveRepublished(t *testing.T) {
	t.Parallel()
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
			addr, i := shim(t, "rtsp://"+g.Addr, engine.Config{}, Config{Live: true})
			for _, movie := range []string{"h264-aac.mp4", "hevc-aac.mp4", "h264-aac.mp4"} {
				p := testbed.PublishFile(t, g.URL("/live"), testbed.Movie(t, movie), testbed.TCP)
				g.AwaitPublished(t, "/live")
				before := i.Status() // a datagram session may outlive its connection, as far as the shim knows
				var all []*viewer
				for range 3 {
					v := newViewer(t, addr, "/live", tcp)
					v.must("PLAY", v.url)
					all = append(all, v)
				}
				joinedBeside(t, i, 3, before)
				for _, v := range all {
					v.more(10)
					v.unbroken(start(v))
				}
				p.Stop()
				for _, v := range all { // as players do
					v.awaitEnd()
					_ = v.conn.Close()
				}
				g.AwaitSessions(t, 0)
			}
		})
	}
}

// The upstream says goodbye to all its readers: every viewer hears it once,
// behind the last packet, in its own numbers.
func TestLiveGoodbye(t *testing.T) {
	t.Parallel()
	for name, tcp := range map[string]bool{"udp": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
			media := &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{
				&format.H264{PayloadTyp: 96, PacketizationMode: 1}}}
			stream := g.Publish(t, "/live", &description.Session{Medias: []*description.Media{media}})
			addr, i := shim(t, "rtsp://"+g.Addr, engine.Config{}, Config{Live: true})
			over, written := make(chan struct{}), make(chan uint16)
			go func() {
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for n := uint16(0); ; n++ {
					payload := binary.BigEndian.AppendUint16([]byte{0x41, 1, 2, 3}, n)
					p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, SequenceNumber: n, Timestamp: uint32(n) * 900, SSRC: 7, Marker: true}, Payload: payload}
					if err := stream.WritePacketRTP(media, p); err != nil {
						t.Error(err)
					}
					select {
					case <-tick.C:
					case <-over:
						written <- n
						return
					}
				}
			}()
			var all []*viewer
			for range 3 {
				v := newViewer(t, addr, "/live", tcp)
				v.must("PLAY", v.url)
				all = append(all, v)
			}
			joined(t, i, 3)
			all[0].more(20)
			close(over)
			last := <-written
			for n, v := range all {
				v.await(fmt.Sprintf("viewer %d: the last packet", n), func(got [][]seenPacket) bool {
					return len(got[0]) > 0 && got[0][len(got[0])-1].seq == last
				})
			}
			ssrc := all[0].recorded()[0][0].ssrc
			if err := stream.WritePacketRTCP(media, &rtcp.Goodbye{Sources: []uint32{ssrc}}); err != nil {
				t.Fatal(err)
			}
			byes := func(v *viewer) (n int) {
				v.mu.Lock()
				defer v.mu.Unlock()
				for _, b := range v.rtcp[0] {
					all, err := rtcp.Unmarshal(b)
					if err != nil {
						t.Errorf("%x: %v", b, err)
					}
					for _, p := range all {
						if bye, is := p.(*rtcp.Goodbye); is && len(bye.Sources) == 1 && bye.Sources[0] == ssrc {
							n++
						}
					}
				}
				return n
			}
			for n, v := range all {
				v.await(fmt.Sprintf("viewer %d: the goodbye", n), func([][]seenPacket) bool {
					v.mu.Unlock()
					defer v.mu.Lock()
					return byes(v) > 0
				})
			}
			for n, v := range all {
				v.do("OPTIONS", v.url) // what was on its way has come
				if byes(v) != 1 {
					t.Errorf("viewer %d: %d goodbyes", n, byes(v))
				}
				v.unbroken(start(v))
			}
		})
	}
}
