package intercept

// Status is what the shim knows of a session, as it is now.
type Status struct {
	ID         string   // as the upstream named it
	URL        string   // of the last PLAY or RECORD
	Path       string   // who sends to the client: "relay", the upstream through us
	Transports []string // "udp", "tcp" or "multicast", of each Media set up
	Packets    uint64   // RTP and RTCP, to the client; those of multicast are not seen
}

// Status returns the sessions now known, in no order.
func (i *Interceptor) Status() []Status {
	var all []Status
	for _, s := range i.all() {
		all = append(all, s.status())
	}
	return all
}

func (s *session) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{ID: s.id, URL: s.url, Path: "relay"}
	for _, m := range s.medias {
		st.Transports = append(st.Transports, m.path)
		if m.relay != nil {
			st.Packets += m.relay.Stats().FromUpstream.Sent
		}
		if m.channels != nil {
			st.Packets += m.channels.packets.Load()
		}
	}
	return st
}
