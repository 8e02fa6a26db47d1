package engine

import (
	"encoding/binary"
	"time"
)

// DefaultReport is the usual interval of reports (RFC 3550 §6.2).
const DefaultReport = 5 * time.Second

const (
	reportSize = 28 // of a sender report without report blocks
	ntpEpoch   = 2208988800
)

// putReport writes a sender report (RFC 3550 §6.4.1) over b, with the tail
// behind it. ntp is the wall clock it tells, time the RTP timestamp of then.
func putReport(b []byte, ssrc uint32, ntp time.Time, time uint32, packets, octets uint32, tail []byte) []byte {
	b = append(b[:0], 0x80, 200, 0, reportSize/4-1)
	b = binary.BigEndian.AppendUint32(b, ssrc)
	b = binary.BigEndian.AppendUint32(b, uint32(ntp.Unix()+ntpEpoch))
	b = binary.BigEndian.AppendUint32(b, uint32(uint64(ntp.Nanosecond())<<32/1e9))
	b = binary.BigEndian.AppendUint32(b, time)
	b = binary.BigEndian.AppendUint32(b, packets)
	b = binary.BigEndian.AppendUint32(b, octets)
	return append(b, tail...)
}

// report writes the line's sender report, if it is time for one.
func (s *Stream) report(l *line, now time.Duration, to sink) {
	if now < l.reportAt || l.sent == 0 {
		return
	}
	r := &l.Report
	l.reportAt = now + r.Interval
	rtp, packets, octets := s.counts(l, now)
	l.sr = putReport(l.sr, l.SSRC, s.e.start.Add(now+r.Clock), rtp, packets, octets, r.Tail)
	to.report(l)
}

// counts are what a report says at that time.
func (s *Stream) counts(l *line, now time.Duration) (rtp, packets, octets uint32) {
	r := &l.Report
	rtp = l.lastTime
	if !r.Still && !s.over {
		rtp = l.Time + l.track.RTPTime(now-s.base) + r.Lag
	}
	return rtp, r.Packets + uint32(l.sent), r.Octets + uint32(l.octets)
}

// Counts are what a sender report for a track would say now.
func (s *Stream) Counts(track int) (rtp, packets, octets uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts(&s.lines[track], time.Since(s.e.start))
}
