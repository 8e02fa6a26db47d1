//go:build e2e

package e2e

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"

	"rtspshim/internal/testbed"
)

// publishPackets offers a stream of packets of 1,400 octets at the path and
// writes rate of them a second until stop is called.
func publishPackets(tb testing.TB, lib *testbed.Gortsplib, path string, rate int) (stop func()) {
	tb.Helper()
	media := &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{&format.Generic{
		PayloadTyp: 96, RTPMa: "private/90000", ClockRat: 90000,
	}}}
	stream := lib.Publish(tb, path, &description.Session{Medias: []*description.Media{media}})
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		began, sent := time.Now(), 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-tick.C:
				for ; sent < int(now.Sub(began).Seconds()*float64(rate)); sent++ {
					payload := make([]byte, 1400) // not ours any more once written
					binary.BigEndian.PutUint64(payload, uint64(sent))
					packet := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, SSRC: 7,
						SequenceNumber: uint16(sent), Timestamp: uint32(sent * 90000 / rate)}, Payload: payload}
					if err := stream.WritePacketRTP(media, packet); err != nil {
						return
					}
				}
			}
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			close(end)
			<-done
			stream.Close()
		})
	}
}
