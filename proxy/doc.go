// Package proxy carries RTSP conversations between clients and an upstream
// server and loses nothing of them.
//
// One upstream connection is made for each client connection. Each direction
// is cut into Elements by a Reader: messages, interleaved frames, line ends,
// and whatever has no frame we know. Every Element is passed on with the
// bytes it arrived with, in order. A Tap, one for each conversation, looks at
// messages and frames before they go on; it may edit a message in place, keep
// a frame back, answer a request itself (Exchange.Answer) or insert requests
// of its own (Conn.Do), which the client never sees.
//
// The one edit the proxy makes by itself: where an answer names the
// upstream's own address, the client is given the shim's (address.go).
//
// RTSP over HTTP (QuickTime's GET and POST pair) is mirrored to the upstream
// and read inside (tunnel.go). What is not RTSP at all is spliced through.
package proxy
