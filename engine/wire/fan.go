package wire

import "slices"

// Fan is destinations behind one Conn that are sent the same. What a send reads of
// each lies side by side: between two sends to a viewer all others' memory has been
// read, and what lies by itself is in none of the processor's caches any more.
type Fan struct {
	conn  Conn
	dests []*Dest
	sys   fanSys
}

// NewFan makes a Fan without destinations.
func NewFan(c Conn) *Fan { return &Fan{conn: c} }

// Add adds a destination, as the last one.
func (f *Fan) Add(d *Dest) {
	f.dests = append(f.dests, d)
	f.sys.add(d)
}

// Remove takes out the i-th destination; those behind it move up.
func (f *Fan) Remove(i int) {
	f.dests = slices.Delete(f.dests, i, i+1)
	f.sys.remove(i)
}

// SendFan sends the datagrams that lie back to back in data, each of segment
// bytes, the last of what remains, to the destinations [from, to) of a Fan, behind
// all that was added before. Those whom the kernel has taken it for at once are not
// counted in their Tally: Sent does so, when there is time. What it did not take is
// added to the Batch.
func (b *Batch) SendFan(f *Fan, from, to int, data []byte, segment int) {
	most := maxDatagram / segment * segment
	if b.net.GSO {
		most = min(most, maxSegments*segment)
	}
	for len(data) > 0 {
		part := data[:min(len(data), max(most, segment))]
		data = data[len(part):]
		b.Flush()
		n := from
		if b.net.GSO || len(part) <= segment {
			n += b.send.fan(b, f, from, to, part, segment)
		}
		for _, d := range f.dests[n:to] {
			d.tally.Packets.Add(-uint64(segments(part, segment))) // Sent will count them
			d.tally.Bytes.Add(-uint64(len(part)))
			b.AddRun(f.conn, d, part, segment)
		}
	}
}

// segments is how many datagrams lie in data.
func segments(data []byte, segment int) int { return (len(data) + segment - 1) / segment }

// Sent counts datagrams that SendFan has sent to d, size bytes in all.
func (d *Dest) Sent(count, size int) {
	d.tally.Packets.Add(uint64(count))
	d.tally.Bytes.Add(uint64(size))
}

// Limited says that the kernel has refused a run to d: it is not for a Fan, whose
// others it would hold up.
func (d *Dest) Limited() bool { return d.maxSegment.Load() < maxDatagram }
