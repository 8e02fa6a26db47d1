package bench

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"
	"time"
)

// LimitConfig says how to measure what the kernel alone takes.
type LimitConfig struct {
	Duration     time.Duration // of each loop; 1 s when zero
	Destinations int           // sockets, or connections; 100 when zero
	Packet       int           // octets of an RTP packet; 1,412 when zero
	Segments     int           // of a GSO send; 14 when zero
	GRO          bool          // UDP receive offload on the sockets that receive

	// Host is the address of the sockets that receive, 127.0.0.1 when zero. Away
	// runs the function that opens those that send, and later the one that does, if
	// that is to be in another network namespace, or on other processors.
	Host netip.Addr
	Away func(func() error) error

	// Pace is what the paced loop sends, in Gbit/s; 1 when zero. Every Slot, 1 ms
	// when zero, it sends what is due by then, in runs of PacedRun packets, 7 when
	// zero: a frame of 2 Mbit/s.
	Pace     float64
	Slot     time.Duration
	PacedRun int

	// Dir is where the file for the disk reads is made, and removed; on a file
	// system that knows O_DIRECT. "" reads no disk.
	Dir      string
	FileSize int64 // octets; 512 MiB when zero
}

// Limit is what one raw loop reached.
type Limit struct {
	Name string  `json:"name"`
	What string  `json:"what"`
	Cost float64 `json:"cpu_s_per_gib"`
	Gbps float64 `json:"gbps"`
	Lost float64 `json:"lost"` // share that the receivers had no room for
}

// The names of the limits.
const (
	LimitPacket   = "udp-packet"
	LimitGathered = "udp-gathered"
	LimitShared   = "udp-shared"
	LimitPaced    = "udp-paced"
	LimitFanned   = "udp-fanned"
	LimitTCP      = "tcp"
	LimitDisk     = "disk"
)

// Limits measures raw loops: sending RTP packets from memory, flat out, to
// sockets of our own that are read as the sessions' are; and O_DIRECT reads. The
// cost is the CPU time of the thread that sends or reads. The paced loop sends
// no more than a server has to, in short runs and with pauses in which caches go
// cold: that is what a server which keeps time cannot do better than. The fanned
// one does so with a live stream's frames, which are longer and further apart.
func Limits(ctx context.Context, cfg LimitConfig) ([]Limit, error) {
	if cfg.Duration == 0 {
		cfg.Duration = time.Second
	}
	if cfg.Destinations == 0 {
		cfg.Destinations = 100
	}
	if cfg.Packet == 0 {
		cfg.Packet = 1412
	}
	if cfg.Segments == 0 {
		cfg.Segments = 14
	}
	cfg.Pace, cfg.Slot, cfg.PacedRun = cmp.Or(cfg.Pace, 1), cmp.Or(cfg.Slot, time.Millisecond), cmp.Or(cfg.PacedRun, 7)
	cfg.FileSize = cmp.Or(cfg.FileSize, 512<<20)
	cfg.Host = cmp.Or(cfg.Host, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	if cfg.Away == nil {
		cfg.Away = func(fn func() error) error { return fn() }
	}
	if !cfg.Host.Is4() {
		return nil, fmt.Errorf("%v: an IPv4 address is wanted", cfg.Host)
	}
	if cfg.Packet < 13 || cfg.Packet > 1<<15 || cfg.Segments < 1 || cfg.Segments > 64 || cfg.Packet*max(cfg.Segments, cfg.PacedRun) > 65_000 {
		return nil, fmt.Errorf("%d segments of %d octets do not fit into a GSO send", cfg.Segments, cfg.Packet)
	}
	if cfg.Pace < 0 || cfg.Slot < 0 || cfg.PacedRun < 1 || cfg.PacedRun > 64 {
		return nil, fmt.Errorf("%g Gbit/s every %v in runs of %d", cfg.Pace, cfg.Slot, cfg.PacedRun)
	}
	if cfg.Destinations < 1 || cfg.Destinations > maxSessions || cfg.Duration < 0 || cfg.FileSize < 16<<20 {
		return nil, fmt.Errorf("%d destinations, %v, %d octets of file", cfg.Destinations, cfg.Duration, cfg.FileSize)
	}
	return limits(ctx, cfg)
}

// limitOf is the name of the limit a run is measured by.
func limitOf(tcp, live bool) string {
	switch {
	case tcp:
		return LimitTCP
	case live:
		return LimitShared
	}
	return LimitGathered
}

// pacedOf is the name of the limit of who keeps time.
func pacedOf(live bool) string {
	if live {
		return LimitFanned
	}
	return LimitPaced
}

// WriteLimits writes a table.
func WriteLimits(w io.Writer, all []Limit) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "limit\tCPU-s/GiB\tGbit/s\tlost\t")
	for _, l := range all {
		fmt.Fprintf(tw, "%s\t%.3f\t%.2f\t%.2f %%\t%s\n", l.Name, l.Cost, l.Gbps, 100*l.Lost, l.What)
	}
	return tw.Flush()
}
