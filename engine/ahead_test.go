package engine

import (
	"testing"
	"time"
)

// When a packet leaves and how far ahead of its time what leaves then is are two
// sides of one line.
func TestAhead(t *testing.T) {
	e := &Engine{start: time.Now()}
	for name, a := range map[string]Ahead{
		"real time":  {},
		"a second":   {Lead: time.Second, Most: 25 * time.Second},
		"growing":    {Began: e.start.Add(3 * time.Second), Lead: time.Second, Growth: 1.3, Most: 25 * time.Second},
		"no most":    {Began: e.start, Lead: 2 * time.Second, Growth: 0.2},
		"from start": {Began: e.start, Growth: 0.5, Most: 5 * time.Second},
	} {
		s := &Stream{e: e, spec: StreamSpec{Ahead: a}, base: 3 * time.Second, tcp: &tcpSink{}}
		was := time.Duration(-1 << 62)
		for at := 5 * time.Second; at < 90*time.Second; at += 37 * time.Millisecond {
			leaves := s.due(at)
			if due := leaves + s.lead(leaves); (due - s.base - at).Abs() > time.Microsecond {
				t.Fatalf("%s: what is due at %v leaves at %v, when what is due at %v does", name, s.base+at, leaves, due)
			}
			if leaves <= was {
				t.Fatalf("%s: %v is not behind what was due before", name, leaves)
			}
			was = leaves
		}
	}
}
