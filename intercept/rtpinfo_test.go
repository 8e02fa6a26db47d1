package intercept

import (
	"math"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
)

func TestEditRTPInfo(t *testing.T) {
	for in, want := range map[string]string{
		"url=rtsp://h/a/trackID=3;seq=37581;rtptime=1605001350,url=rtsp://h/a/trackID=4;seq=65535;rtptime=4294967295": "url=rtsp://h/a/trackID=3;seq=37582;rtptime=1605001360,url=rtsp://h/a/trackID=4;seq=0;rtptime=9",
		"url=rtsp://h/a,b;c/s=0;seq=1;rtptime=2, url=rtsp://h/a,b;c/s=1;rtptime=5;seq=4":                              "url=rtsp://h/a,b;c/s=0;seq=2;rtptime=12, url=rtsp://h/a,b;c/s=1;rtptime=15;seq=5",
		"url=rtsp://h/a":                       "url=rtsp://h/a",
		"url=rtsp://h/a;seq=70000;rtptime=1":   "url=rtsp://h/a;seq=70000;rtptime=1",
		"url=rtsp://h/a;seq=7":                 "url=rtsp://h/a;seq=7",
		"":                                     "",
		`url="rtsp://h/a";seq=1;rtptime=1;x=y`: `url="rtsp://h/a";seq=2;rtptime=11;x=y`,
	} {
		if got := editRTPInfo(in, func(e *rtpInfo) { e.seq++; e.rtptime += 10 }); got != want {
			t.Errorf("%q\ngot  %q\nwant %q", in, got, want)
		}
		if got := editRTPInfo(in, func(*rtpInfo) {}); got != in {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func TestParseNPT(t *testing.T) {
	for in, want := range map[string]struct {
		start, end time.Duration
		now, ok    bool
	}{
		"npt=0.00000-20.00000":            {0, 20 * time.Second, false, true},
		"npt=5-":                          {5 * time.Second, 0, false, true},
		" NPT = 1.5 - 2 ;time=1997":       {1500 * time.Millisecond, 2 * time.Second, false, true},
		"npt=1:02:03.25-":                 {time.Hour + 2*time.Minute + 3250*time.Millisecond, 0, false, true},
		"npt=now-":                        {0, 0, true, true},
		"npt=-7":                          {0, 7 * time.Second, true, true},
		"npt=-":                           {},
		"npt=a-":                          {},
		"npt=1:2-":                        {},
		"npt=1e300-":                      {},
		"npt=99999999999999999999999999-": {},
		"clock=19961108T143720.25Z-":      {},
		"smpte=10:07:00-":                 {},
		"":                                {},
	} {
		start, end, now, ok := parseNPT(in)
		if start != want.start || end != want.end || now != want.now || ok != want.ok {
			t.Errorf("%q: %v %v %v %v", in, start, end, now, ok)
		}
	}
}

// FuzzRange: no input does harm, what gortsplib reads we read alike, and what
// we write we read back.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"npt=0-", "npt=1.5-2", "npt=0:00:01.5-", "npt=now-", "npt=-5", "clock=1-", "npt=1:-", "npt=.-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, now, ok := parseNPT(s)
		if start < 0 || end < 0 {
			t.Fatalf("%q: %v to %v", s, start, end)
		}
		var h headers.Range
		if err := h.Unmarshal(base.HeaderValue{s}); err == nil {
			if npt, is := h.Value.(*headers.RangeNPT); is && ok && !now {
				if math.Abs(npt.Start.Seconds()-start.Seconds()) > 1e-6*(1+start.Seconds()) {
					t.Fatalf("%q: starts at %v, gortsplib says %v", s, start, npt.Start)
				}
			}
		}
		if ok && !now && start < 1<<50 && end < 1<<50 {
			s2, e2, _, ok2 := parseNPT(formatNPT(start, end))
			if !ok2 || (s2-start).Abs() > time.Microsecond || (e2-end).Abs() > time.Microsecond && end >= time.Microsecond {
				t.Fatalf("%q: %v to %v came back as %v to %v", s, start, end, s2, e2)
			}
		}
	})
}
