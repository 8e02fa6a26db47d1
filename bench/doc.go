// Package bench measures RTSP servers from outside: many cheap clients in one
// process, which count what comes and when, beside what it costs the server.
//
//	report, err := bench.Measure(ctx, bench.Config{
//		Servers:  []bench.Server{{Name: "shim", URL: "rtsp://127.0.0.1:8554/a.mp4"}},
//		Sessions: []int{1, 100, 500},
//	})
//	report.WriteText(os.Stdout)
//
// With two servers they take turns, load by load and round by round, so that
// what changes on the machine meanwhile touches both; compare only ratios
// within one report.
//
// # What is measured
//
// A session has a settling time first; then everything is counted whose kernel
// receive time stamp falls into the window. Loss, order and duplicates come
// from the sequence numbers (RFC 3550 §A.1). What the bench's own sockets
// dropped is told apart: then the bench was too slow, not the server.
//
// Lateness is that of a frame's first packet (a frame is what has one RTP time)
// against the RTP clock, from the session's most punctual frame on. A movie over
// TCP, which may run ahead, is measured from its first packet instead, as its
// viewer's clock began then; ahead is by how much it was, at most. Frames
// whose RTP time lies before one already seen (B-frames) are left out: RTP time
// is when they are shown, not when they are due. Spread is the time between a
// frame's first packet and its last.
//
// Skew is how long after the first reader of a live stream the last one gets
// the same frame. The delay added is how much later than one reader at the server
// behind, of the same stream, each gets each packet; beside it stands what
// a raw loop would take that sends as fast as the one of [Limits], and begins
// without waiting for more. A burst is a run of packets of one media each less than 1 ms
// behind the one before.
//
// CPU time is what the kernel's scheduler accounts to the named processes, to
// the nanosecond. On loopback that includes the receiving half of the network
// stack, up to the receiver's socket. GiB are of RTP packets, headers included.
//
// [Limits] measures what the kernel alone takes for the same: raw loops that
// send from memory, and raw reads.
package bench
