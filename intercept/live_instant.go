package intercept

import (
	"time"

	"rtspshim/engine"
	"rtspshim/engine/live"
	"rtspshim/proxy"
)

// instant is a viewer's start in the past: with the group's newest key frame.
// From its PLAY until the comparison is done nothing is passed on; then the group sends from the key frame on, in the numbers that the
// answer has told.
type instant struct {
	begin *live.Begin
	told  []rtpInfo
}

// instantWait is how long a viewer waits for its packets to be compared before
// it is sent what the upstream sends.
const instantWait = 2 * time.Second

// readyInstant holds back what follows a session's first PLAY, until its answer
// has come: packets may come before that. The caller has the session's turn.
func (i *Interceptor) readyInstant(s *session, url string) {
	if !i.cfg.Instant || !i.cfg.Live || s.now() != relayed || i.cfg.Movies.find(url) != "" {
		return
	}
	i.groups.mu.Lock()
	some := s.group == nil && len(i.groups.list) > 0
	i.groups.mu.Unlock()
	if !some {
		return
	}
	for _, m := range s.medias {
		if !m.watch.fresh() {
			return
		}
	}
	s.mu.Lock()
	s.start = new(instant)
	s.mu.Unlock()
	for _, m := range s.medias {
		m.watch.hold()
		if m.relay != nil {
			m.relay.Mute(true)
		}
	}
	s.keep(true)
}

// startInstant follows the upstream's answer to that PLAY: if the session's group
// has a key frame to begin with, the answer tells that, as far as it can, and
// packets stay held back.
func (i *Interceptor) startInstant(s *session, m *proxy.Message) {
	s.mu.Lock()
	start := s.start
	s.mu.Unlock()
	if start == nil {
		return
	}
	key := s.liveKey()
	i.groups.mu.Lock()
	var fan *live.Group
	alike := false
	if g := i.groups.list[key]; key != "" && g != nil && g.refused == "" && altered(m) == "" {
		fan, alike = g.fan, g.alike
	}
	i.groups.mu.Unlock()
	var begin *live.Begin
	if fan != nil {
		begin = fan.Begin()
	}
	if begin == nil {
		s.endInstant()
		return
	}
	if alike {
		var firsts []engine.TrackState
		for _, f := range begin.Firsts {
			firsts = append(firsts, engine.TrackState{NextSeq: f.Seq, NextTime: f.Time})
		}
		s.correct(m, firsts)
	}
	s.keep(false)
	s.mu.Lock()
	s.start = &instant{begin, infos(s, m)}
	s.mu.Unlock()
}

// fresh says that nothing has been passed on yet.
func (w *watch) fresh() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.passed
}

// endInstant passes on what the upstream sends, if that is held back for a start
// in the past that is not to be.
func (s *session) endInstant() {
	s.mu.Lock()
	start := s.start
	s.start = nil
	over := s.over
	s.mu.Unlock()
	if start != nil && !over {
		s.pass()
	}
}

// beginInstant numbers a session that begins in the past as the answer to its
// PLAY has told, all Medias moved by the same time. maps makes the upstream's
// numbers the group's. It returns where to begin; nil for a session that is to
// go on behind its last packet.
func (s *session) beginInstant(maps []live.Mapping) *live.Begin {
	s.mu.Lock()
	start := s.start
	s.start = nil
	s.mu.Unlock()
	if start == nil || start.begin == nil {
		return nil
	}
	medias, key, by := s.liveMedias(), start.begin.Key, int64(0)
	if told := start.told[key]; told.whole {
		by = int64(int32(told.rtptime - (start.begin.Firsts[key].Time - maps[key].Time)))
	}
	for n, m := range s.medias {
		first, told := start.begin.Firsts[n], start.told[n]
		sh := shift{time: uint32(by * int64(medias[n].Rate) / int64(medias[key].Rate))}
		if told.whole {
			sh.seq = told.seq - (first.Seq - maps[n].Seq)
		}
		m.watch.begin(sh, first.Seq-maps[n].Seq+sh.seq-1)
	}
	return start.begin
}

// begin has the client's numbers run ahead of the upstream's, and behind last.
func (w *watch) begin(sh shift, last uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shift, w.last, w.passed = sh, last, true
}
