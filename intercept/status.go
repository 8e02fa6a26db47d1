package intercept

import (
	"time"

	"rtspshim/engine"
	"rtspshim/engine/live"
)

// Status is what the shim knows of a session, as it is now.
type Status struct {
	ID         string             // as the upstream named it
	URL        string             // of the last PLAY or RECORD
	Client     string             // its IP address
	Path       string             // who sends to the client: "relay", the upstream through us, or "movie", the engine
	Why        string             // the reason for the path, where there is one to tell
	Transports []string           // "udp", "tcp" or "multicast", of each Media set up
	Packets    uint64             // RTP and RTCP, to the client; those of multicast are not seen
	Octets     uint64             //
	Movie      engine.StreamStats // what of it came from the engine
	Live       live.MemberStats   // what of it came from the session's group
	Took       time.Duration      // from the answer to PLAY to the engine's first packet; 0 if none
}

// Status returns the sessions now known, in no order.
func (i *Interceptor) Status() []Status {
	var all []Status
	for _, s := range i.all() {
		s.mu.Lock()
		all = append(all, s.status())
		s.mu.Unlock()
	}
	return all
}

// status is a snapshot; s.mu is held.
func (s *session) status() Status {
	st := Status{ID: s.id, URL: s.url, Client: s.client.String(), Path: s.stage.String(), Why: s.why, Movie: s.total, Took: s.took}
	fan := s.fed.sent
	if s.member != nil {
		fan.Add(s.member.Stats())
	}
	if s.stream != nil {
		st.Movie.Add(s.stream.Stats())
	}
	for _, m := range s.medias {
		st.Transports = append(st.Transports, m.path)
		if m.relay != nil {
			flow := m.relay.Stats().FromUpstream
			st.Packets, st.Octets = st.Packets+flow.Sent, st.Octets+flow.SentBytes
		}
		if m.channels != nil {
			st.Packets, st.Octets = st.Packets+m.channels.packets.Load(), st.Octets+m.channels.octets.Load()
		}
	}
	st.Packets, st.Octets = st.Packets+st.Movie.Packets+fan.Packets, st.Octets+st.Movie.Octets+fan.Octets
	st.Live = fan
	return st
}

// Report logs a line about every session, and one about the engine.
func (i *Interceptor) Report() {
	now := time.Now()
	for _, s := range i.all() {
		s.mu.Lock()
		attrs := s.attrs(now)
		s.mu.Unlock()
		i.log.Info("session", attrs...)
	}
	i.log.Info("engine", i.cfg.Engine.Attrs()...)
}

// attrs tell of a session in the log; s.mu is held.
func (s *session) attrs(now time.Time) []any {
	st := s.status()
	var up, dropped uint64
	for _, m := range s.medias {
		if m.relay != nil {
			r := m.relay.Stats()
			up += r.FromClient.Sent
			dropped += r.FromUpstream.Dropped + r.FromUpstream.Lost + r.FromClient.Dropped
		}
	}
	attrs := []any{"session", s.short(), "client", st.Client, "url", st.URL, "path", st.Path, "medias", st.Transports,
		"record", s.record, "seconds", int(now.Sub(s.began).Seconds()), "packets_down", st.Packets,
		"octets_down", st.Octets, "packets_up", up, "dropped", dropped}
	if st.Why != "" {
		attrs = append(attrs, "path_why", st.Why)
	}
	if m := st.Movie; m.Packets > 0 {
		attrs = append(attrs, "movie_packets", m.Packets, "movie_octets", m.Octets, "late_p50", m.LateP50,
			"late_p99", m.LateP99, "late_max", m.LateMax, "underruns", m.Underruns, "took", st.Took)
	}
	return attrs
}
