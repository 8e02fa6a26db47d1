package hint

import "time"

// Rate returns how many bytes a second a viewer of the tracks needs at most,
// measured over the window: hint samples and the media they refer to. It goes
// through the tables once for each track and remembers.
func (f *File) Rate(tracks []uint32, window time.Duration) int64 {
	f.rates.Lock()
	defer f.rates.Unlock()
	if f.most == nil || f.window != window {
		f.most, f.window = map[*Track]int64{}, window
	}
	var sum int64
	for _, id := range tracks {
		t := f.Track(id)
		if t == nil {
			continue
		}
		for _, u := range append(t.refs[:len(t.refs):len(t.refs)], t) {
			if _, known := f.most[u]; !known && u != nil {
				f.most[u] = u.peak(window)
			}
			sum += f.most[u]
		}
	}
	return int64(float64(sum) / window.Seconds())
}

// peak returns the bytes of the fullest of the windows that the track is cut
// into. Time never goes back from one sample to the next.
func (t *Track) peak(window time.Duration) (most int64) {
	s := &t.samples
	units := max(int64(window.Seconds()*float64(t.TimeScale)), 1)
	end, sum := units, int64(0)
	for run := range s.timeSample.n {
		first, last := s.timeSample.at(run), int64(s.n)
		if run+1 < s.timeSample.n {
			last = s.timeSample.at(run + 1)
		}
		start, delta := s.timeStart.at(run), s.timeDelta.at(run)
		if s.sizes.n == 0 { // sound, perhaps with millions of samples
			n := last - first
			if delta > 0 {
				n = min(n, units/delta+1)
			}
			bytes := n * s.fixed
			if s.blockBytes > 0 {
				bytes = n / s.blockSamples * s.blockBytes
			}
			most = max(most, bytes)
			continue
		}
		for i := first; i < last && i < int64(s.n); i++ {
			if at := start + (i-first)*delta; at >= end {
				most, sum, end = max(most, sum), 0, at-at%units+units
			}
			sum += s.sizes.at(int(i))
		}
	}
	return max(most, sum)
}
