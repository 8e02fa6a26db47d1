// Package demo is a small RTSP server that plays hinted movies, on demand and
// as endless live streams: the upstream of `shim demo`, and one whose every
// turn a test can see and spoil.
//
//	s, err := demo.Start(demo.Config{Movies: os.DirFS("movies")})
//	// play s.URL("/h264-aac.mp4"), or s.URL("/live/h264-aac.mp4")
//	sent := s.Sessions()[0].Packets
//	s.Close()
//
// It behaves as Darwin Streaming Server does where that costs little: each
// session has its own random SSRC, sequence and timestamp offsets; RTP-Info
// names exactly the next packet of every track; sequence numbers go on over
// pause and seek, and timestamps advance by the time spent paused; PLAY while
// playing is a sign of life; a movie ends in silence; over TCP packets run
// ahead of their time; a UDP session outlives its connection and may be
// controlled from any. Unlike Darwin it answers GET_PARAMETER.
//
// gortsplib's own server is not used, since it hands out streams that others
// write: the same SSRC and numbers for every reader, no Range, no seek, and an
// RTP-Info of the last packet. Its packages read the requests and the values
// of their headers; pion makes the RTCP.
package demo
