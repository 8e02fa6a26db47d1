package intercept

import (
	"strings"
	"testing"
	"time"

	"rtspshim/engine"
)

// What the log says of a session that the engine carries: the path and why,
// packets and octets, lateness, underruns, and how long it took to take over.
func TestReport(t *testing.T) {
	t.Parallel()
	up := upstream(t, nil)
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Movies: Movies{Dir: hinted}})
	v := newViewer(t, addr, "/h264-aac.mp4", false)
	v.must("PLAY", v.url)
	takenOver(t, i)
	v.more(30)
	s := i.session(v.session)
	s.mu.Lock()
	said := pairs(s.attrs(time.Now()))
	s.mu.Unlock()
	n := v.count()
	late := func(name string) time.Duration { return said[name].(time.Duration) }
	if said["path"] != "movie" || !strings.Contains(said["path_why"].(string), "h264-aac.mp4") || late("took") <= 0 ||
		said["underruns"] != uint64(0) || late("late_p50") > late("late_p99") || late("late_p99") > late("late_max") {
		t.Errorf("%v", said)
	}
	if sent := said["movie_packets"].(uint64); sent < 50 || said["packets_down"].(uint64) <= sent || said["movie_octets"].(uint64) < 10*sent {
		t.Errorf("%d packets received: %v", n, said)
	}
	total := pairs(i.cfg.Engine.Attrs())
	for n := 0; n < 100 && total["packets"].(uint64) < said["movie_packets"].(uint64); n++ { // a pump tells between two ticks
		time.Sleep(10 * time.Millisecond)
		total = pairs(i.cfg.Engine.Attrs())
	}
	if total["streams"] != 1 || total["packets"].(uint64) < said["movie_packets"].(uint64) || total["blocks_in_use"].(int) == 0 {
		t.Errorf("%v", total)
	}
}

func pairs(attrs []any) map[string]any {
	m := map[string]any{}
	for k := 0; k+1 < len(attrs); k += 2 {
		m[attrs[k].(string)] = attrs[k+1]
	}
	return m
}
