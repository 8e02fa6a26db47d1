package wire

// message is one send: a datagram, or a run of them for one destination.
type message struct {
	conn    Conn
	dest    *Dest
	segment int  // bytes of every datagram but the last
	count   int  // datagrams
	size    int  // bytes in all
	first   int  // its pieces are Batch.pieces[first:first+pieces]
	pieces  int  //
	open    bool // the last datagram is a whole segment, so another may follow
}

// BatchStats counts the work of one Batch. Divide to get means.
type BatchStats struct {
	Flushes   uint64 // Flush calls that had something to send
	Calls     uint64 // system calls that sent something
	Messages  uint64 // messages sent, a run being one
	Supers    uint64 // of those, runs of two datagrams and more
	Datagrams uint64
	Bytes     uint64
	Dropped   uint64 // datagrams refused for good
	Refused   uint64 // runs that had to be sent one by one
}

// Batch collects datagrams for many destinations and sends them in few system
// calls. For one Conn and destination they leave in the order they were added.
// It has room for 512 messages and flushes by itself when that is used up.
//
// What is added stays where it is: the memory is on loan until Flush returns.
// A Batch is for one goroutine.
type Batch struct {
	Stats BatchStats

	net    *Net
	msgs   []message
	pieces [][]byte
	send   sender
}

// sender sends all messages of a batch and returns when that is done.
type sender interface {
	flush(b *Batch)

	// fan sends what SendFan is given, of one send, to the first destinations that
	// the kernel takes it for, and returns how many they are.
	fan(b *Batch, f *Fan, from, to int, data []byte, segment int) int
}

const (
	batchMessages = 512
	batchPieces   = 4 * maxPieces
)

// NewBatch allocates a Batch.
func (n *Net) NewBatch() *Batch {
	b := &Batch{net: n, msgs: make([]message, 0, batchMessages), pieces: make([][]byte, 0, batchPieces)}
	if n.Plain {
		b.send = new(plainSender)
	} else {
		b.send = newFastSender()
	}
	return b
}

// Add adds one datagram made of pieces, at most 1024 of them and 65,507 bytes
// in all; the kernel refuses a larger one, which counts as dropped.
func (b *Batch) Add(c Conn, d *Dest, pieces ...[]byte) {
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	if len(pieces) > maxPieces || size > maxDatagram {
		b.drop(d, 1)
		return
	}
	b.reserve(len(pieces))
	if !b.join(c, d, size, size, 1, len(pieces)) {
		b.start(c, d, size, size, 1, len(pieces))
	}
	b.pieces = append(b.pieces, pieces...)
}

// AddPacket adds one datagram of a head and the pieces behind it, size bytes in
// all.
func (b *Batch) AddPacket(c Conn, d *Dest, head []byte, pieces [][]byte, size int) {
	n := 1 + len(pieces)
	if n > maxPieces || size > maxDatagram {
		b.drop(d, 1)
		return
	}
	b.reserve(n)
	if !b.join(c, d, size, size, 1, n) {
		b.start(c, d, size, size, 1, n)
	}
	b.pieces = append(append(b.pieces, head), pieces...)
}

// AddRun adds the datagrams that lie back to back in data, each of segment
// bytes, the last of what remains; a segment of 0 means a single one.
func (b *Batch) AddRun(c Conn, d *Dest, data []byte, segment int) {
	if segment <= 0 || segment >= len(data) {
		b.Add(c, d, data)
		return
	}
	most := 1
	if b.net.GSO && segment <= int(d.maxSegment.Load()) {
		most = max(1, min(maxSegments, maxDatagram/segment))
	}
	for len(data) > 0 {
		part := data[:min(len(data), most*segment)]
		data = data[len(part):]
		if len(part) <= segment {
			b.Add(c, d, part)
			continue
		}
		b.reserve(1)
		count := segments(part, segment)
		if !b.join(c, d, len(part), segment, count, 1) {
			b.start(c, d, len(part), segment, count, 1)
		}
		b.pieces = append(b.pieces, part)
	}
}

// join makes datagrams part of the message added last, if the kernel can take
// them as one run: same socket and destination, all segments equal but the
// last, and within its limits.
func (b *Batch) join(c Conn, d *Dest, size, segment, count, pieces int) bool {
	if !b.net.GSO || len(b.msgs) == 0 {
		return false
	}
	m := &b.msgs[len(b.msgs)-1]
	if !m.open || m.conn != c || m.dest != d || segment > m.segment || count > 1 && segment != m.segment ||
		size == 0 || m.count+count > maxSegments || m.size+size > maxDatagram || m.pieces+pieces > maxPieces ||
		m.segment > int(d.maxSegment.Load()) {
		return false
	}
	m.count += count
	m.size += size
	m.pieces += pieces
	m.open = size == count*m.segment
	return true
}

func (b *Batch) start(c Conn, d *Dest, size, segment, count, pieces int) {
	b.msgs = append(b.msgs, message{
		conn: c, dest: d, segment: segment, count: count, size: size,
		first: len(b.pieces), pieces: pieces, open: size > 0 && size == count*segment,
	})
}

// reserve makes room for one message of that many pieces.
func (b *Batch) reserve(pieces int) {
	if len(b.msgs) == cap(b.msgs) || len(b.pieces)+pieces > cap(b.pieces) {
		b.Flush()
	}
}

// Flush sends everything that was added. Datagrams the kernel refuses are
// counted as dropped, in Stats and in their Dest's Tally, and hold up no others.
func (b *Batch) Flush() {
	if len(b.msgs) == 0 {
		return
	}
	b.Stats.Flushes++
	b.send.flush(b)
	b.msgs = b.msgs[:0]
	b.pieces = b.pieces[:0]
}

func (b *Batch) sent(d *Dest, count, size int) {
	d.Sent(count, size)
	b.Stats.sent(1, count, size)
}

// sent counts messages of so many datagrams, and bytes, each.
func (s *BatchStats) sent(messages, count, size int) {
	s.Messages += uint64(messages)
	s.Datagrams += uint64(messages * count)
	s.Bytes += uint64(messages * size)
	if count > 1 {
		s.Supers += uint64(messages)
	}
}

func (b *Batch) drop(d *Dest, count int) {
	d.tally.Dropped.Add(uint64(count))
	b.Stats.Dropped += uint64(count)
}

// cursor walks over the bytes of a message.
type cursor struct {
	pieces [][]byte
	offset int // into pieces[0]
}

// take appends to dst the next n bytes, as pieces; fewer at the end.
func (c *cursor) take(n int, dst [][]byte) [][]byte {
	for n > 0 && len(c.pieces) > 0 {
		rest := c.pieces[0][c.offset:]
		part := rest[:min(n, len(rest))]
		if len(part) > 0 {
			dst = append(dst, part)
		}
		n -= len(part)
		c.offset += len(part)
		if c.offset == len(c.pieces[0]) {
			c.pieces, c.offset = c.pieces[1:], 0
		}
	}
	return dst
}
