// Package wire moves datagrams between the kernel and the pumps of the engine.
//
// A Conn is one bound UDP socket. A pump waits in a Poller for Conns with
// something to read, receives into an Inbox, and answers through a Batch:
//
//	for each ready Conn:  msgs := conn.Recv(inbox)    // memory on loan …
//	                      batch.AddRun(out, dest, m.Data, m.Segment)
//	batch.Flush(); inbox.Reset()                       // … until here
//
// On Linux a Message may be a whole run of equal-sized datagrams from one
// sender (UDP_GRO), and a run for one destination leaves as one UDP_SEGMENT
// super-datagram, 64 of them in a sendmmsg call: the payload crosses the
// kernel's network stack once a run, not once a datagram. Everywhere else, and
// with Options.Plain, the same calls use package net, one datagram at a time.
package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	maxSegments  = 64    // datagrams in one UDP_SEGMENT send (UDP_MAX_SEGMENTS of Linux before 6.10)
	maxDatagram  = 65507 // payload bytes of the largest IPv4 UDP datagram, super-datagrams included
	maxPieces    = 1024  // iovecs in one message (IOV_MAX)
	recvMessages = 32    // messages asked for in one Recv
	sendMessages = 64    // messages in one sendmmsg
)

// DefaultSocketBuffer is what Options.SocketBuffer = 0 means, in bytes.
const DefaultSocketBuffer = 4 << 20

// Mode says whether an optional kernel feature is used.
type Mode uint8

// The settings of a Mode.
const (
	Auto Mode = iota // use it where the kernel has it
	On               // Open fails where the kernel has it not
	Off              // never
)

// UnmarshalText reads "auto", "on" or "off".
func (m *Mode) UnmarshalText(text []byte) error {
	for _, v := range []Mode{Auto, On, Off} {
		if v.String() == string(text) {
			*m = v
			return nil
		}
	}
	return fmt.Errorf("mode %q: not auto, on or off", text)
}

func (m Mode) String() string { return [...]string{"auto", "on", "off"}[m%3] }

// Options choose how a Net talks to the kernel.
type Options struct {
	GSO   Mode // UDP_SEGMENT: send runs of equal-sized datagrams as one
	GRO   Mode // UDP_GRO: receive them as one
	Plain bool // package net, one datagram a call: what other systems than Linux always do

	// SocketBuffer is asked for as SO_RCVBUF and SO_SNDBUF of every Conn, in
	// bytes; 0 means DefaultSocketBuffer. The kernel may grant less.
	SocketBuffer int

	// Notify, if set, is told what had to be done differently: once a Net for
	// each kind of trouble, from the thread that met it.
	Notify func(error)
}

// SegmentError says that the kernel or a device refused a run of datagrams as
// one send. The datagrams were sent one a message instead, and those to To with
// at least Segment bytes will be from now on.
type SegmentError struct {
	To      netip.AddrPort
	Segment int // payload bytes of each datagram of the run
	Err     error
}

func (e *SegmentError) Error() string {
	return fmt.Sprintf("send to %v in segments of %d bytes: %v (sending them one by one)", e.To, e.Segment, e.Err)
}

func (e *SegmentError) Unwrap() error { return e.Err }

// Net opens Conns, Batches, Inboxes and Pollers that work together. It holds no
// resource of its own.
type Net struct {
	GSO, GRO, Plain bool // what is in use, after probing

	buffer   int
	notify   func(error)
	notified atomic.Bool
}

var errNoFeature = errors.New("not offered by this kernel")

// Open probes the kernel and settles what the Conns of this Net use.
func Open(o Options) (*Net, error) {
	n := &Net{Plain: o.Plain || !fastSystem, buffer: o.SocketBuffer, notify: o.Notify}
	if n.buffer == 0 {
		n.buffer = DefaultSocketBuffer
	}
	gso, gro := false, false
	if !n.Plain {
		gso, gro = probe()
	}
	for _, f := range []struct {
		name string
		mode Mode
		has  bool
		use  *bool
	}{{"GSO", o.GSO, gso, &n.GSO}, {"GRO", o.GRO, gro, &n.GRO}} {
		if f.mode == On && !f.has {
			return nil, fmt.Errorf("UDP %s: %w", f.name, errNoFeature)
		}
		*f.use = f.has && f.mode != Off
	}
	return n, nil
}

func (n *Net) refused(e *SegmentError) {
	if n.notify != nil && n.notified.CompareAndSwap(false, true) {
		n.notify(e)
	}
}

// Conn is one bound UDP socket. Recv and Failures belong to the pump that
// polls it; anybody may send through it.
type Conn interface {
	// Local is the bound address.
	Local() netip.AddrPort

	// Recv reads what waits on the socket, without waiting itself, into free
	// slots of in: up to 32 Messages, none if nothing waits. They stay valid
	// until in.Reset.
	Recv(in *Inbox) ([]Message, error)

	// Send sends one datagram at once; a Batch is for many. One that the kernel
	// does not take counts as dropped.
	Send(d *Dest, packet []byte)

	// Failures calls fn for every ICMP error that came back for a datagram
	// sent through this Conn, with the destination it was sent to.
	Failures(fn func(to netip.AddrPort, err error))

	// Lost is the number of datagrams the kernel dropped because the receive
	// buffer was full, as far as it told us.
	Lost() uint64

	// Close closes the socket. No Poller may hold it any more, and no Batch
	// may hold a datagram for it.
	Close() error
}

// Handler gets what a Conn received. Both methods run on the pump's thread.
type Handler interface {
	// Receive handles messages of one Recv; datagrams added to out are sent
	// at the end of the pump's tick at the latest, and until then the
	// messages' memory is valid.
	Receive(msgs []Message, out *Batch, now time.Time)

	// Failed reports an ICMP error for a datagram sent earlier.
	Failed(to netip.AddrPort, err error)
}

// Poller waits for Conns that are ready. Add, Remove and Wake may be called
// from anywhere, Wait from one goroutine.
type Poller interface {
	// Add watches c under the caller's token.
	Add(c Conn, token int32) error

	// Remove stops watching c. A Wait under way may still report it.
	Remove(c Conn) error

	// Wait returns the ready Conns, at most a thousand, valid until the next
	// Wait. It waits for one, for Wake, or as long as it is told, exactly:
	// Forever, or 0 to look once. A Conn that was not emptied is reported again.
	Wait(most time.Duration) ([]Event, error)

	// Sleep waits for nothing.
	Sleep(d time.Duration)

	// Wake makes a blocked Wait, or the next one that would block, return.
	Wake()

	Close() error
}

// Forever is for Poller.Wait.
const Forever = time.Duration(-1)

// Event names a Conn that is ready.
type Event struct {
	Token  int32
	Failed bool // Conn.Failures has something to tell
}

// Message is one received datagram, or several of the same sender in a row.
type Message struct {
	Data    []byte // the datagrams back to back
	Segment int    // bytes of each datagram but the last, which may be shorter; len(Data) if there is one
	From    netip.AddrPort
}

// Count is the number of datagrams.
func (m *Message) Count() int {
	if m.Segment == 0 {
		return 1 // one empty datagram
	}
	return (len(m.Data) + m.Segment - 1) / m.Segment
}

// slotBytes holds the largest datagram. Two KiB more than a power of two keep
// the first lines of the slots out of each other's cache sets; pages never
// written to cost no memory.
const slotBytes = 64<<10 + 2<<10

// Inbox is the receive memory of one pump: a fixed number of slots of 66 KiB
// address space, one for each Message. Where it can it lies beside Go's memory, of
// which it would be the largest part: the collector would let as much more garbage lie.
type Inbox struct {
	memory []byte
	msgs   []Message
	next   int // first free slot
	sys    inboxSys
}

// NewInbox allocates an Inbox for that many Messages.
func (n *Net) NewInbox(slots int) (*Inbox, error) {
	in := &Inbox{msgs: make([]Message, slots)}
	if n.Plain {
		in.memory = make([]byte, slots*slotBytes)
		return in, nil
	}
	return in, in.init(slots * slotBytes)
}

// Full says that no slot is free: Recv would return nothing.
func (in *Inbox) Full() bool { return in.next == len(in.msgs) }

// Reset frees all slots; Messages received before are no longer valid.
func (in *Inbox) Reset() { in.next = 0 }

func (in *Inbox) slot(i int) []byte { return in.memory[i*slotBytes : i*slotBytes+64<<10] }
