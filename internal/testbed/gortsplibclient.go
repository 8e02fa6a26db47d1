package testbed

import (
	"context"
	"crypto/md5"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"
)

// GortsplibFrames plays url with gortsplib's client for as long as media and
// returns what came, undecoded: a frame is here an RTP packet, its hash that of
// payload type, marker and payload. It is the strictest of the clients, and the
// only one that knows Digest with SHA-256.
func GortsplibFrames(ctx context.Context, tb testing.TB, rawURL string, transport Transport, media time.Duration) Frames {
	tb.Helper()
	f, err := gortsplibPlay(ctx, rawURL, transport, media)
	if err != nil {
		tb.Fatalf("gortsplib's client, %s over %s: %v", rawURL, transport, err)
	}
	return f
}

func gortsplibPlay(ctx context.Context, rawURL string, transport Transport, media time.Duration) (Frames, error) {
	u, err := base.ParseURL(rawURL)
	if err != nil {
		return Frames{}, err
	}
	protocol := map[Transport]gortsplib.Protocol{
		UDP: gortsplib.ProtocolUDP, TCP: gortsplib.ProtocolTCP,
		HTTP: gortsplib.ProtocolTCP, Multicast: gortsplib.ProtocolUDPMulticast,
	}[transport]
	c := &gortsplib.Client{
		Scheme: u.Scheme, Host: u.Host, Protocol: &protocol, UDPReadBufferSize: 1 << 20,
		TLSConfig: &tls.Config{InsecureSkipVerify: true},
	}
	if transport == HTTP {
		c.Tunnel = gortsplib.TunnelHTTP
	}
	if err := c.Start(); err != nil {
		return Frames{}, err
	}
	defer c.Close()
	desc, _, err := c.Describe(u)
	if err != nil {
		return Frames{}, fmt.Errorf("DESCRIBE: %w", err)
	}
	if err := c.SetupAll(desc.BaseURL, desc.Medias); err != nil {
		return Frames{}, fmt.Errorf("SETUP: %w", err)
	}
	f := Frames{By: "gortsplib's client, " + rawURL + " over " + string(transport)}
	var mu sync.Mutex
	c.OnPacketRTPAny(func(m *description.Media, _ format.Format, p *rtp.Packet) {
		sum := md5.Sum(append([]byte{p.PayloadType, boolByte(p.Marker)}, p.Payload...))
		mu.Lock()
		defer mu.Unlock()
		if m.Type == description.MediaTypeVideo {
			f.Video = append(f.Video, hex.EncodeToString(sum[:]))
		} else {
			f.Audio = append(f.Audio, hex.EncodeToString(sum[:]))
		}
	})
	if _, err := c.Play(nil); err != nil {
		return Frames{}, fmt.Errorf("PLAY: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }() // ends with c.Close
	length := time.NewTimer(media)
	defer length.Stop()
	select {
	case <-length.C:
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-ended:
		// The server may have closed at the end of its movie: not for us to judge.
		f.Said, err = err.Error(), nil
	}
	c.Close()
	mu.Lock()
	defer mu.Unlock()
	return f, err
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}
