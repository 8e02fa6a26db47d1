package engine

import (
	"fmt"
	"slices"
	"time"

	"rtspshim/engine/live"
)

// OpenGroup opens a live Group without Source or Members, which may spread big
// frames; Close it.
func (e *Engine) OpenGroup(medias []live.Media, smooth bool) (*live.Group, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("engine: open group: %w", ErrClosed)
	}
	var g *live.Group
	p := e.pick()
	first := slices.Index(e.pumps, p)
	lanes := make([]func(), len(e.pumps))
	for i := range lanes {
		p := e.pumps[(first+i)%len(e.pumps)]
		lanes[i] = func() { p.fan(g, i) }
	}
	g = live.Open(live.Config{
		Medias: medias, Smooth: smooth, Lanes: lanes,
		Go: func(run func()) {
			e.writers.Add(1)
			p.stayAwake(1) // else the writes wake Go's monitor again and again, for a millisecond or more
			go func() {
				defer e.writers.Done()
				defer p.stayAwake(-1)
				label("live over TCP")
				run()
			}()
		},
	})
	return g, nil
}

// fan is a lane of a Group that has something to send at a time, zero for at once.
type fan struct {
	group *live.Group
	lane  int
	at    time.Time
}

// fan has the pump send what is new in its lane of a Group: at the end of this
// tick, if it is in one.
func (p *pump) fan(g *live.Group, lane int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ticking {
		p.poller.Wake()
	}
	for i := range p.fans {
		if p.fans[i].group == g {
			p.fans[i].at = time.Time{}
			return
		}
	}
	p.fans = append(p.fans, fan{group: g, lane: lane})
}

// fanOut sends what is new in Groups.
func (p *pump) fanOut(now time.Time) {
	p.mu.Lock()
	p.ticking = false
	p.fanned, p.fans = p.fans, p.fanned[:0]
	p.mu.Unlock()
	for _, f := range p.fanned {
		if !f.at.After(now) {
			f.at = f.group.Send(f.lane, p.batch, now)
		}
		if !f.at.IsZero() {
			p.later(f)
		}
	}
	clear(p.fanned)
}

// stayAwake has the pump not sleep through as long as the sum is not zero.
func (p *pump) stayAwake(by int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awake.Add(by); !p.stopped {
		p.poller.Wake()
	}
}

// later keeps a Group for its time, unless it has been asked to come by anyway.
func (p *pump) later(f fan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.fans {
		if p.fans[i].group == f.group {
			return
		}
	}
	p.fans = append(p.fans, f)
}

// fanAt is when the first Group has something to send.
func (p *pump) fanAt() (at time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.fans {
		if !ok || f.at.Before(at) {
			at, ok = f.at, true
		}
	}
	return at, ok
}
