// Package engine is the media data path: it owns the sockets, the threads that
// serve them and the clock they run by.
//
//	e, err := engine.Open(engine.Config{Logger: log})
//	r, err := e.OpenRelay(engine.RelaySpec{...})   // at SETUP
//	… ask the upstream for client_port=r.UpstreamPort(), tell the client r.ServerPorts() …
//	r.Connect(upstreamRTP, upstreamRTCP)           // after the upstream's answer
//	r.Close(); e.Close()
package engine

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"rtspshim/engine/disk"
	"rtspshim/engine/hint"
	"rtspshim/engine/relay"
	"rtspshim/engine/wire"
)

// DefaultGather is a good Config.Gather: a millisecond makes bursts of what
// arrives, and nobody watching notices it.
const DefaultGather = time.Millisecond

// DefaultSlot is a good Config.Slot: with frames at 25 or 50 a second all of a
// Stream's leave equally early, and longer slots save little more.
const DefaultSlot = 2 * time.Millisecond

// Config sets up an Engine. The zero Config works.
type Config struct {
	// UDPPort is the first port of the server port pair that clients share; it
	// must be even (RFC 3550 §11). 0 means any free pair. Where a client
	// address is taken already a second pair serves it, two ports higher.
	UDPPort int

	// MinPort and MaxPort bound all other ports the engine opens, both
	// included; 0 means 10000 and 65535.
	MinPort, MaxPort int

	// Pumps is the number of threads that move packets; 0 means one less than
	// the processors, so that signalling has one, but at least one.
	Pumps int

	// Gather is how long a pump lets packets arrive, from when it last moved some,
	// before it moves all of them on in large batches; from the first readable one
	// it waits for a quarter of that at least. It is the most the engine adds to a
	// packet's way. 0 moves packets at once, one by one if they come so.
	Gather time.Duration

	GSO, GRO wire.Mode // UDP segmentation offload out, receive offload in
	Plain    bool      // one datagram a system call, as on systems other than Linux

	// SocketBuffer is asked for as receive and send buffer of every socket, in
	// bytes; 0 means 4 MiB. The system may grant less (net.core.rmem_max).
	SocketBuffer int

	// Movies. What the disk reads in one cycle is sent in the next.
	CycleTime     time.Duration // 0 means 1 s
	Memory        int64         // of the block pool, bytes; 0 means 256 MiB. Taken by OpenDisk, or when the first Stream opens.
	DiskBandwidth int64         // for admission, bytes a second; 0 means no limit
	DiskOverhead  time.Duration // likewise, of one read
	Uring, Direct disk.Mode     // io_uring; O_DIRECT
	Bandwidth     int64         // of the network, for admission, bits a second; 0 means no limit
	BurstLimit    int           // packets of a track that leave back to back; 0 means 16
	Slot          time.Duration // of the network's cycle: what is due in one leaves at its beginning; 0 means DefaultSlot

	Logger *slog.Logger // nil means slog.Default
}

// ErrClosed is returned by an Engine after Close.
var ErrClosed = errors.New("engine is closed")

const (
	openFiles = 1 << 16 // sockets wanted, four for every Session with two Medias
	maxPairs  = 256     // server port pairs on one local address
)

// Engine moves packets. Its methods may be called from anywhere.
type Engine struct {
	config Config
	log    *slog.Logger
	net    *wire.Net
	ports  wire.PortPairs
	start  time.Time
	pumps  []*pump
	own    relay.Own

	shelf     hint.Shelf
	passages  *passages
	library   sync.Mutex      // held to open disk
	disk      *disk.Scheduler // nil before OpenDisk
	used      int64           // bits a second of Streams; guarded by mu
	underruns uint64          // of Streams that are no more; likewise
	feeder    *feeder
	writers   sync.WaitGroup // Streams over TCP
	ends      sync.WaitGroup // calls of Done

	mu      sync.Mutex
	closed  bool
	streams map[*Stream]struct{}
	first   int // first port of the shared pair; 0 until known
	pairs   map[netip.Addr][]*relay.Pair
	relays  map[*relay.Relay]struct{}
}

// Open starts an Engine.
func Open(c Config) (*Engine, error) {
	if c.UDPPort < 0 || c.UDPPort > 65534 || c.UDPPort%2 != 0 {
		return nil, fmt.Errorf("engine: server port %d: not an even port number", c.UDPPort)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Pumps == 0 {
		c.Pumps = max(1, runtime.GOMAXPROCS(0)-1)
	}
	c.CycleTime = cmp.Or(c.CycleTime, time.Second)
	c.Memory = cmp.Or(c.Memory, 256<<20)
	c.BurstLimit, c.Slot = cmp.Or(c.BurstLimit, 16), max(wheelTick, cmp.Or(c.Slot, DefaultSlot).Round(wheelTick))
	e := &Engine{
		feeder: newFeeder(), passages: newPassages(), streams: map[*Stream]struct{}{},
		config: c, log: c.Logger, start: time.Now(), first: c.UDPPort,
		pairs: map[netip.Addr][]*relay.Pair{}, relays: map[*relay.Relay]struct{}{},
	}
	go e.feeder.run()
	files, err := wire.RaiseFileLimit(openFiles)
	if err != nil {
		e.log.Warn("engine: open files not raised", "limit", files, "err", err)
	}
	if err := wire.RaiseSession(); err != nil {
		e.log.Debug("engine: others may take the processors", "err", err)
	}
	e.net, err = wire.Open(wire.Options{
		GSO: c.GSO, GRO: c.GRO, Plain: c.Plain, SocketBuffer: c.SocketBuffer,
		Notify: func(err error) { e.log.Warn("engine: not batched", "err", err) },
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("engine: %w", err), e.Close())
	}
	e.ports = wire.PortPairs{Net: e.net, Min: c.MinPort, Max: c.MaxPort}
	for i := range c.Pumps {
		p, err := newPump(fmt.Sprintf("pump-%d", i), e.net, &e.config, e.start)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("engine: %w", err), e.Close())
		}
		e.pumps = append(e.pumps, p)
		go p.run()
	}
	e.log.Info("engine open", "pumps", c.Pumps, "gso", e.net.GSO, "gro", e.net.GRO, "plain", e.net.Plain,
		"gather", c.Gather, "files", files)
	return e, nil
}

// Close ends all Streams where they are, closes all Relays and stops the pumps, and returns when the last one
// has ended. It waits for FrameWriters that write.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	relays, pairs, streams := e.relays, e.pairs, slices.Collect(maps.Keys(e.streams))
	e.relays = nil
	e.mu.Unlock()

	// Pumps first: then nobody has to wait for their ticks any more.
	var errs []error
	for _, p := range e.pumps {
		p.halt()
	}
	e.closeStreams(streams)
	errs = append(errs, e.closeDisk())
	for r := range relays {
		errs = append(errs, r.Close())
	}
	for _, list := range pairs {
		for _, p := range list {
			errs = append(errs, p.Close())
		}
	}
	for _, p := range e.pumps {
		errs = append(errs, p.poller.Close(), p.inbox.Close())
	}
	return errors.Join(errs...)
}

// PumpStats returns the counters of every pump.
func (e *Engine) PumpStats() []PumpStats {
	all := make([]PumpStats, len(e.pumps))
	for i, p := range e.pumps {
		all[i] = p.published()
	}
	return all
}

// Attrs tell of all Streams so far, and of the disk, in the log. Late are
// packets over UDP.
func (e *Engine) Attrs() []any {
	var late wire.Histogram
	for _, p := range e.PumpStats() {
		late.Merge(&p.Lateness)
	}
	d := e.DiskStats()
	e.mu.Lock()
	defer e.mu.Unlock()
	underruns := e.underruns
	for s := range e.streams {
		s.mu.Lock()
		underruns += s.underruns
		s.mu.Unlock()
	}
	return []any{"streams", len(e.streams), "packets", late.N(), "late_p50", late.Quantile(0.5), "late_p99", late.Quantile(0.99),
		"late_p999", late.Quantile(0.999), "late_max", late.Max(), "underruns", underruns, "mbit/s", e.used / 1e6,
		"disk_reads", d.Reads, "disk_bytes", d.Bytes, "blocks_read", d.Blocks, "blocks_shared", d.Hits, "cycles", d.Cycles,
		"overruns", d.Overruns, "blocks", d.PoolBlocks, "blocks_in_use", d.InUse}
}

// ServerStats counts what the server port pairs had to let go.
type ServerStats struct {
	Pairs   int
	Unknown uint64 // packets from addresses that belong to no Relay
	Lost    uint64 // datagrams lost in full receive buffers
}

// ServerStats sums up all server port pairs.
func (e *Engine) ServerStats() (s ServerStats) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, list := range e.pairs {
		for _, p := range list {
			s.Pairs++
			s.Unknown += p.Unknown()
			s.Lost += p.Lost()
		}
	}
	return s
}

// pick returns the pump that serves the fewest sockets.
func (e *Engine) pick() *pump {
	best := e.pumps[0]
	for _, p := range e.pumps[1:] {
		if p.load.Load() < best.load.Load() {
			best = p
		}
	}
	return best
}
