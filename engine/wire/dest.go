package wire

import (
	"net/netip"
	"sync/atomic"
)

// Tally counts what became of datagrams. Several Dests may share one.
type Tally struct {
	Packets atomic.Uint64 // handed to the kernel
	Bytes   atomic.Uint64 // their payload
	Dropped atomic.Uint64 // refused by the kernel, for whatever reason, after bounded retries
}

// Dest is where datagrams go, with its memory of what the path there can take.
type Dest struct {
	addr  netip.AddrPort
	tally *Tally

	// maxSegment is the largest datagram that may go in a run, in bytes:
	// lowered when the kernel refuses, which depends on the route's MTU and
	// the device's checksum offload, so on the destination.
	maxSegment atomic.Int32

	sys destSys
}

// NewDest makes a Dest; its sends are counted in t, which may be nil.
func NewDest(to netip.AddrPort, t *Tally) *Dest {
	if t == nil {
		t = new(Tally)
	}
	d := &Dest{addr: netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), tally: t}
	d.maxSegment.Store(maxDatagram)
	d.init()
	return d
}

// Addr is the destination's address, never an IPv4-mapped one.
func (d *Dest) Addr() netip.AddrPort { return d.addr }

// count notes what became of one datagram.
func (d *Dest) count(size int, err error) {
	if err != nil {
		d.tally.Dropped.Add(1)
		return
	}
	d.tally.Packets.Add(1)
	d.tally.Bytes.Add(uint64(size))
}
