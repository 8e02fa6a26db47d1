package proxy

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"
)

// Exchange is one request on its way to the upstream and back.
type Exchange struct {
	Request *Message // as it goes upstream; a Tap may edit it in its Request
	Method  string   // as the client sent them
	URI     string
	Value   any    // the Tap's own, from its Request to its Response
	Then    func() // set by the Tap's Response: called once the answer is on its way to the client

	cseq   string
	since  time.Time
	answer []byte        // the shim's own answer, when it does not go upstream
	own    chan *Message // set for a request the shim inserted
}

// Answer makes the shim answer the request itself: it does not go upstream,
// and status ("461 Unsupported Transport") goes to the client in its turn.
func (ex *Exchange) Answer(status string) {
	ex.AnswerRaw([]byte("RTSP/1.0 " + status + "\r\nCSeq: " + ex.cseq + "\r\n\r\n"))
}

// AnswerRaw is Answer with a whole message, which is sent as it is.
func (ex *Exchange) AnswerRaw(message []byte) { ex.answer = message }

// CSeq is the client's number for the request, as it spelled it.
func (ex *Exchange) CSeq() string { return ex.cseq }

const (
	// maxPending requests may await their answers on one connection; with
	// more, the client is no longer read until one comes.
	maxPending = 256
	// unanswered requests are forgotten after this, when room is needed:
	// some servers stop answering on a connection that goes on playing.
	unansweredAfter = 30 * time.Second
)

// exchanges are a connection's requests that await their answers, in the
// order in which they were sent.
type exchanges struct {
	mu      sync.Mutex
	room    sync.Cond
	pending []*Exchange
	closed  bool
}

func (q *exchanges) init() { q.room.L = &q.mu }

// push appends ex, waiting for room; false when the connection has ended.
// Requests the shim inserted need no room.
func (q *exchanges) push(ex *Exchange, now func() time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && ex.own == nil && len(q.pending) >= maxPending {
		if now().Sub(q.pending[0].since) > unansweredAfter {
			q.pending = q.pending[1:]
			break
		}
		q.room.Wait()
	}
	ex.since = now()
	if q.closed {
		return false
	}
	q.pending = append(q.pending, ex)
	return true
}

// find returns the request that the response m answers: the one of its CSeq,
// or the oldest where it carries none (RFC 2326 §12.17 wants one; servers
// leave it out or empty when they could not read the request). It is nil when
// the response answers nothing that is known.
func (q *exchanges) find(m *Message) *Exchange {
	cseq := m.Get("CSeq")
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, ex := range q.pending {
		if ex.answer == nil && (ex.cseq == cseq || cseq == "" && ex.own == nil) {
			return ex
		}
	}
	return nil
}

// done takes ex out, with every request before it (answers come in order, so
// those will get none), and returns the shim's own answers whose turn has
// come: before are due before ex's answer, after behind it. A nil ex takes
// out none.
func (q *exchanges) done(ex *Exchange) (before, after []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	if ex != nil {
		for n < len(q.pending) && q.pending[n] != ex {
			before = append(before, q.pending[n].answer...)
			n++
		}
		n = min(n+1, len(q.pending))
	}
	for n < len(q.pending) && q.pending[n].answer != nil {
		after = append(after, q.pending[n].answer...)
		n++
	}
	clear(q.pending[:n])
	q.pending = q.pending[n:]
	q.room.Broadcast()
	return before, after
}

// close ends every wait: those for room, and those of inserted requests.
func (q *exchanges) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.closed = true
	for _, ex := range q.pending {
		if ex.own != nil {
			close(ex.own)
		}
	}
	q.pending = nil
	q.room.Broadcast()
}

// ErrEnded says that a connection has ended, or its stream can no longer be
// framed, so that no request can be inserted into it.
var ErrEnded = errors.New("connection has ended")

// Do inserts a request into the conversation with the upstream and returns
// the answer, which the client does not see. head is the request without its
// CSeq line and without the final blank line, every line ending in CRLF. The
// numbers used start at 10⁹, out of the clients' way.
//
// Do must not be called from a Tap's Response or UpstreamFrames: the answer
// comes in behind them.
func (c *Conn) Do(ctx context.Context, head string) (*Message, error) {
	cseq := strconv.FormatUint(uint64(c.inserted.Add(1))+1e9, 10)
	ex := &Exchange{cseq: cseq, own: make(chan *Message, 1)}
	if !c.exchanges.push(ex, time.Now) {
		return nil, ErrEnded
	}
	if err := c.toUpstream.insert([]byte(head + "CSeq: " + cseq + "\r\n\r\n")); err != nil {
		return nil, err
	}
	select {
	case m, ok := <-ex.own:
		if !ok {
			return nil, ErrEnded
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Alive says whether the upstream answers: a dying one may still take a
// connection.
func (s *Server) Alive(ctx context.Context) bool {
	_, err := s.Once(ctx, "OPTIONS * RTSP/1.0\r\n")
	return err == nil
}

// Once sends one request to the upstream on a connection of its own and
// returns the answer. head is as for Conn.Do.
func (s *Server) Once(ctx context.Context, head string) (*Message, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write([]byte(head + "CSeq: 1\r\n\r\n")); err != nil {
		return nil, err
	}
	for r := NewReader(conn, s.cfg.Limits, nil); ; {
		e, err := r.Next()
		if err != nil {
			return nil, err
		}
		if e.Kind == KindMessage && e.Message.IsResponse() {
			return e.Message, nil
		}
	}
}
