package engine

import (
	"fmt"

	"rtspshim/engine/live"
)

// OpenGroup opens a live Group without Source or Members; Close it.
func (e *Engine) OpenGroup(medias []live.Media) (*live.Group, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("engine: open group: %w", ErrClosed)
	}
	var g *live.Group
	p := e.pick()
	g = live.Open(live.Config{
		Medias: medias,
		Wake:   func() { p.fan(g) },
		Go: func(run func()) {
			e.writers.Add(1)
			go func() {
				defer e.writers.Done()
				label("live over TCP")
				run()
			}()
		},
	})
	return g, nil
}

// fan has the pump send what is new in a Group: at the end of this tick, if it
// is in one.
func (p *pump) fan(g *live.Group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, has := range p.fans {
		if has == g {
			return
		}
	}
	p.fans = append(p.fans, g)
	if !p.ticking {
		p.poller.Wake()
	}
}

// fanOut sends what is new in Groups.
func (p *pump) fanOut() {
	p.mu.Lock()
	p.ticking = false
	p.fanned, p.fans = p.fans, p.fanned[:0]
	p.mu.Unlock()
	for _, g := range p.fanned {
		g.Send(p.batch)
	}
	clear(p.fanned)
}
