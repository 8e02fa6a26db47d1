package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"rtspshim/engine/wire"
)

const (
	inboxSlots = 256 // messages received before they must be sent on
	socketTurn = 8   // Recv calls for one socket before the others have their turn

	// yieldEvery keeps Go's monitor away: from a goroutine that has not gone
	// through the scheduler for 10 ms it takes the processor at the next system
	// call, and then looks every few dozen microseconds for more of the kind, which
	// costs a tenth of all that a busy pump does. It takes the help of an ordinary
	// thread, though: where that has to wait for a processor for longer than
	// yieldMost, being on time comes first for a while; and all the time where Go
	// has no processors to spare, as shim serve gives it.
	yieldEvery = 9 * time.Millisecond
	yieldMost  = 300 * time.Microsecond
	restAfter  = time.Second // without packets, before a pump sleeps for longer than yieldEvery
)

// PumpStats counts a pump's work. Out.Datagrams / Out.Messages is the mean run,
// Out.Messages / Out.Calls the mean number of runs in a system call.
type PumpStats struct {
	Name    string
	Sockets int    // attached now
	Ticks   uint64 // wake-ups with something to do
	Packets uint64 // received
	Bytes   uint64
	Bursts  uint64 // Recv calls that brought something
	Errors  uint64 // Recv calls that failed
	Out     wire.BatchStats
	CPU     time.Duration // used by the thread; 0 where the system does not tell

	// Late counts ticks by how much later than its Gather a pump woke:
	// Late[i] those of less than 2^i µs, the last one all others.
	Late [16]uint64

	Streams  int            // sent now
	Lateness wire.Histogram // of their packets
}

// pump is one thread that serves a set of sockets in ticks: it sleeps until one
// of them is readable, lets packets gather, then receives from all that are
// ready and sends everything that became of it, and what is due of Streams. It
// runs at its own pace: a flood of small arrivals makes fuller batches, not more
// wake-ups. With more to send than it can it still receives, since no tick sends
// for more than turnStreams Streams.
type pump struct {
	name   string
	poller wire.Poller
	gather time.Duration
	epoch  time.Time // of Streams' times
	log    *slog.Logger
	load   atomic.Int32 // sockets attached
	plays  atomic.Int32 // Streams opened
	awake  atomic.Int32 // goroutines for whose sake the pump does not sleep through

	inbox *wire.Inbox
	turns []socket // ready in this tick
	stats PumpStats
	udpSink

	mu      sync.Mutex
	sockets []socket // by token; conn is nil where free
	free    []int32
	tokens  map[wire.Conn]int32
	calls   []func() // to be run between ticks
	started []*Stream
	woken   []*Stream
	out     [2][]*Stream // started and woken, as run has taken them
	fans    []fan        // Groups with something to send
	fanned  []fan        // run's, of them
	ticking bool         // fans are looked at without a Wake
	stopped bool
	thread  wire.Thread
	shown   PumpStats // a copy for others to read

	done chan struct{} // closed when run has returned
}

// socket is a Conn and who handles what it receives.
type socket struct {
	conn    wire.Conn
	handler wire.Handler
	failed  bool // has ICMP errors to tell
}

func newPump(name string, n *wire.Net, c *Config, epoch time.Time) (*pump, error) {
	poller, err := n.NewPoller()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	inbox, err := n.NewInbox(inboxSlots)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), poller.Close())
	}
	p := &pump{
		name: name, poller: poller, gather: c.Gather, epoch: epoch, log: c.Logger,
		inbox:  inbox,
		tokens: map[wire.Conn]int32{}, stats: PumpStats{Name: name}, shown: PumpStats{Name: name},
		done: make(chan struct{}),
	}
	p.udpSink.init(n.NewBatch(), c.BurstLimit, c.Slot)
	return p, nil
}

// Attach implements relay.Pump.
func (p *pump) Attach(c wire.Conn, h wire.Handler) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return ErrClosed
	}
	var token int32
	if n := len(p.free); n > 0 {
		token, p.free = p.free[n-1], p.free[:n-1]
	} else {
		token = int32(len(p.sockets))
		p.sockets = append(p.sockets, socket{})
	}
	if err := p.poller.Add(c, token); err != nil {
		p.free = append(p.free, token)
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.sockets[token] = socket{conn: c, handler: h}
	p.tokens[c] = token
	p.load.Add(1)
	return nil
}

// Detach implements relay.Pump.
func (p *pump) Detach(conns ...wire.Conn) {
	p.between(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range conns {
			token, held := p.tokens[c]
			if !held {
				continue
			}
			if err := p.poller.Remove(c); err != nil {
				p.log.Error("engine: detach", "err", err)
			}
			delete(p.tokens, c)
			p.sockets[token] = socket{}
			p.free = append(p.free, token)
			p.load.Add(-1)
		}
	})
}

// Sync implements relay.Pump.
func (p *pump) Sync() { p.between(func() {}) }

// between has fn run on the pump's thread between two ticks, or here once the
// pump has stopped, and returns after that.
func (p *pump) between(fn func()) {
	ran := make(chan struct{})
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		<-p.done
		fn()
		return
	}
	p.calls = append(p.calls, func() { fn(); close(ran) })
	p.mu.Unlock()
	p.poller.Wake()
	<-ran
}

// halt stops the pump and waits for its end.
func (p *pump) halt() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	p.poller.Wake()
	<-p.done
}

// run is the pump's goroutine. It alone reads the clock.
func (p *pump) run() {
	label(p.name)
	thread := wire.LockThread(p.name) // and never unlock: the thread ends with the goroutine
	p.mu.Lock()
	p.thread = thread
	p.mu.Unlock()
	defer close(p.done)
	spare, yielded := runtime.GOMAXPROCS(0) > runtime.NumCPU(), time.Now()
	busy, ticked := yielded, time.Time{}
	for p.serve() {
		now := time.Now()
		if spare && now.Sub(yielded) >= yieldEvery {
			runtime.Gosched()
			if yielded = time.Now(); yielded.Sub(now) > yieldMost {
				yielded = yielded.Add(time.Second)
			}
		}
		most := min(max(yieldEvery-now.Sub(yielded), 0), yieldEvery)
		if !spare || now.Sub(busy) > restAfter && p.awake.Load() == 0 {
			most = wire.Forever
		}
		events, err := p.poller.Wait(p.wait(most, now))
		if len(events) > 0 {
			busy = now
		}
		if err == nil && len(events) > 0 && p.gather > 0 {
			now = time.Now()
			if most := p.wait(gathering(p.gather, now.Sub(ticked)), now); most > 0 {
				p.poller.Sleep(most)
				p.woke(time.Since(now) - most)
			}
			events, err = p.poller.Wait(0)
		}
		if err != nil {
			p.log.Error("engine: "+p.name, "err", err)
			wire.Sleep(time.Millisecond) // never a busy loop
		}
		now = time.Now()
		p.tick(events, now)
		p.streams(time.Since(p.epoch))
		if p.busy > 0 {
			busy = now
		}
		p.deliver(len(events) > 0)
		p.fanOut(now)
		if len(events) > 0 {
			ticked = time.Now()
		}
	}
	p.abandon()
}

// gathering is how long to let packets gather so long after the last tick: a
// frame that comes after a pause, as those of a live stream do, is there at once,
// and a flood is left to become as large batches as may be.
func gathering(most, since time.Duration) time.Duration {
	return max(most/4, most-since)
}

// wait is how long to wait at most for sockets: until a Stream or a Group has
// something to send.
func (p *pump) wait(most time.Duration, now time.Time) time.Duration {
	at, ok := p.wheel.next()
	next := p.epoch.Add(at)
	if fan, has := p.fanAt(); has && (!ok || fan.Before(next)) {
		next, ok = fan, true
	}
	if !ok {
		return most
	}
	left := max(0, next.Sub(now))
	if most == wire.Forever {
		return left
	}
	return min(most, left)
}

// label names the calling goroutine in profiles.
func label(name string) {
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("goroutine", name)))
}

// serve runs what waits between ticks and says whether to go on.
func (p *pump) serve() bool {
	p.mu.Lock()
	calls, stopped := p.calls, p.stopped
	p.calls = nil
	p.shown = p.stats
	p.shown.Sockets = len(p.tokens)
	p.shown.Out = p.batch.Stats
	p.shown.Streams, p.shown.Lateness = len(p.all), p.udpSink.late
	p.out[0], p.started = p.started, p.out[0][:0]
	p.out[1], p.woken = p.woken, p.out[1][:0]
	p.mu.Unlock()
	p.admit(p.out[0], p.out[1])
	clear(p.out[0])
	clear(p.out[1])
	for _, fn := range calls {
		fn()
	}
	return !stopped
}

// tick receives from all ready sockets.
func (p *pump) tick(events []wire.Event, now time.Time) {
	if len(events) == 0 {
		return
	}
	p.turns = p.turns[:0]
	p.mu.Lock()
	p.ticking = true
	for _, e := range events {
		if s := p.sockets[e.Token]; s.conn != nil {
			s.failed = e.Failed
			p.turns = append(p.turns, s)
		}
	}
	p.mu.Unlock()
	for i := range p.turns {
		p.receive(&p.turns[i], now)
	}
}

// deliver sends what the handlers of what was received have answered, and what
// Streams have added.
func (p *pump) deliver(received bool) {
	if received || p.busy > 0 {
		p.stats.Ticks++
		p.batch.Flush()
		p.inbox.Reset()
		p.settle()
	}
}

// receive takes what one socket has, within limits: what remains keeps it ready
// for the next tick.
func (p *pump) receive(s *socket, now time.Time) {
	if s.failed {
		s.conn.Failures(s.handler.Failed)
	}
	for range socketTurn {
		if p.inbox.Full() {
			p.batch.Flush()
			p.inbox.Reset()
		}
		msgs, err := s.conn.Recv(p.inbox)
		if err != nil {
			p.stats.Errors++
			return
		}
		if len(msgs) == 0 {
			return
		}
		p.stats.Bursts++
		for i := range msgs {
			p.stats.Packets += uint64(msgs[i].Count())
			p.stats.Bytes += uint64(len(msgs[i].Data))
		}
		s.handler.Receive(msgs, p.batch, now)
	}
}

func (p *pump) woke(by time.Duration) {
	i := 0
	for us := by.Microseconds(); us > 0 && i < len(p.stats.Late)-1; us >>= 1 {
		i++
	}
	p.stats.Late[i]++
}

func (p *pump) published() PumpStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shown
	s.CPU = p.thread.CPU()
	return s
}
