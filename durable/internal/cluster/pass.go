package cluster

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"

	"holdfast/internal/budget"
	"holdfast/internal/exchange"
	"holdfast/internal/problem"
)

// A Kind says which of the leader's listeners a request is for.
type Kind string

const (
	Public Kind = "public"
	Admin  Kind = "admin"
)

// A request that is passed on is not sent as one of HTTP, but encoded as the request of a
// job is: the leader sees the target, the host, the client's address and the fields of the
// header as the client has sent them, which no proxy could give it. The answer comes as
// frames, which the door plays to its own server. So net/http adds there what it would have
// added at the leader.

// The kinds of frames. A frame is its kind, the length of what follows, and that.
const (
	frameHead  = 'h' // status and fields of the header
	frameData  = 'd' // of the body
	frameFlush = 'f'
	frameEnd   = 'e' // fields of the trailer
	frameAbort = 'a' // the handler has aborted its response
)

// maxHead bounds the frames that are read whole.
const maxHead = 16 << 20

// notLeading is how a node answers that does not lead either. It never passes on what was
// passed on: two nodes that take each other for the leader would do so for ever.
const notLeading = http.StatusMisdirectedRequest

func retrySoon() int { return 1 }

// noLeader answers while there is no leader.
func noLeader(w http.ResponseWriter) {
	problem.Retry(w, http.StatusServiceUnavailable, "the cluster has no leader at present; try again later", retrySoon)
}

// Pass passes a request on to the leader, and answers as that does. The body is read first.
func (n *Node) Pass(w http.ResponseWriter, r *http.Request, kind Kind) {
	hold := budget.From(w)
	if hold == nil {
		hold = new(budget.Hold)
		hold.Open(n.Memory, 0)
		defer hold.Close()
	}
	body, ok := problem.ReadBodyInto(hold, w, r, n.MaxRequest)
	if !ok {
		return
	}
	_, leader := n.members.leads()
	if leader == nil || leader.name == n.Node {
		noLeader(w)
		return
	}
	ctx, cancel := n.while(r.Context(), leader)
	defer cancel()
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	resp, err := n.post(traced, leader.addr, "/pass", http.Header{headKind: {string(kind)}}, exchange.AppendRequest(nil, r, body))
	switch {
	case err != nil && sent.Load():
		problem.Retry(w, http.StatusServiceUnavailable, "the leader has not answered; it may have done what was asked, so repeat the request under its Idempotency-Key if it has one", retrySoon)
		return
	case err != nil:
		noLeader(w)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		noLeader(w)
		return
	}
	n.play(w, bufio.NewReader(resp.Body))
}

// while returns a context that also ends when the leader is gone, or this node is.
func (n *Node) while(ctx context.Context, leader *peer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-leader.gone:
		case <-n.gone.Done():
		case <-ctx.Done():
		}
		cancel()
	}()
	return ctx, cancel
}

// play answers with what the leader has answered.
func (n *Node) play(w http.ResponseWriter, in *bufio.Reader) {
	for headed := false; ; {
		kind, size, err := readFrame(in)
		switch {
		case err != nil && !headed:
			problem.Retry(w, http.StatusServiceUnavailable, "the leader has not answered; it may have done what was asked", retrySoon)
			return
		case err != nil && isEvents(w): // which its client takes up again
			return
		case err != nil || kind == frameAbort:
			panic(http.ErrAbortHandler)
		case kind == frameHead:
			headed = true
			err = playHead(w, in, size)
		case kind == frameData:
			_, err = io.CopyN(w, in, size)
			if errors.Is(err, http.ErrBodyNotAllowed) {
				_, err = io.CopyN(io.Discard, in, size)
			}
		case kind == frameFlush:
			http.NewResponseController(w).Flush()
		case kind == frameEnd:
			playTrailer(w, in, size)
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

func isEvents(w http.ResponseWriter) bool {
	return strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream")
}

func readFrame(in io.Reader) (kind byte, size int64, err error) {
	var head [5]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, 0, err
	}
	kind, size = head[0], int64(binary.LittleEndian.Uint32(head[1:]))
	if kind != frameData && size > maxHead {
		return 0, 0, fmt.Errorf("cluster: a frame of kind %c has %d bytes; want at most %d", kind, size, maxHead)
	}
	return kind, size, nil
}

func playHead(w http.ResponseWriter, in io.Reader, size int64) error {
	b := make([]byte, size)
	if _, err := io.ReadFull(in, b); err != nil || size < 3 {
		return io.ErrUnexpectedEOF
	}
	exchange.CopyFields(b[2:], w.Header())
	w.WriteHeader(int(binary.LittleEndian.Uint16(b)))
	return nil
}

func playTrailer(w http.ResponseWriter, in io.Reader, size int64) {
	b := make([]byte, size)
	if _, err := io.ReadFull(in, b); err == nil && size > 0 {
		trailer := make(http.Header)
		exchange.CopyFields(b, trailer)
		for name, values := range trailer {
			w.Header()[name] = values
		}
	}
}

// alone hides the server of a context: what handlers ask of it, the door's server knows.
type alone struct{ context.Context }

func (c alone) Value(key any) any {
	if key == http.ServerContextKey {
		return nil
	}
	return c.Context.Value(key)
}

// servePass serves a request that another node has passed on.
func (n *Node) servePass(w http.ResponseWriter, r *http.Request) {
	h := n.Local(Kind(r.Header.Get(headKind)))
	if h == nil {
		w.WriteHeader(notLeading)
		return
	}
	encoded, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWire+n.MaxRequest))
	if err != nil {
		return // the other node has left
	}
	request, body, err := exchange.DecodeRequest(encoded)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	request = request.WithContext(alone{r.Context()})
	if request.Body = problem.NewBody(body); len(body) == 0 {
		request.Body = http.NoBody
	}
	out := &passWriter{out: w, header: make(http.Header)}
	defer out.end(n)
	h.ServeHTTP(out, request)
	out.returned = true
}

// A passWriter is the http.ResponseWriter of a request that was passed on.
type passWriter struct {
	out      http.ResponseWriter
	header   http.Header
	status   int // 0 until the head is sent
	returned bool
}

func (w *passWriter) Header() http.Header { return w.header }

func (w *passWriter) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return // informational answers are not passed on
	}
	w.status = status
	w.frame(frameHead, exchange.AppendFields(binary.LittleEndian.AppendUint16(nil, uint16(status)), w.header))
}

func (w *passWriter) frame(kind byte, data []byte) error {
	var head [5]byte
	head[0] = kind
	binary.LittleEndian.PutUint32(head[1:], uint32(len(data)))
	if _, err := w.out.Write(head[:]); err != nil {
		return err
	}
	_, err := w.out.Write(data)
	return err
}

func (w *passWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.frame(frameData, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// FlushError is what an http.ResponseController calls.
func (w *passWriter) FlushError() error {
	w.WriteHeader(http.StatusOK)
	if err := w.frame(frameFlush, nil); err != nil {
		return err
	}
	return http.NewResponseController(w.out).Flush()
}

// Flush implements http.Flusher.
func (w *passWriter) Flush() { w.FlushError() }

// Unhurried tells whoever waits that there is nothing to do about deadlines: the door has
// them.
func (w *passWriter) Unhurried() (hurry func()) { return func() {} }

// end is deferred: it also ends the response of a handler that has panicked.
func (w *passWriter) end(n *Node) {
	if !w.returned {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			n.Logger.Error("a handler panicked", "panic", fmt.Sprintf("%T: %.200v", v, v))
		}
		w.frame(frameAbort, nil)
		return
	}
	w.WriteHeader(http.StatusOK)
	w.frame(frameEnd, exchange.AppendFields(nil, w.trailer()))
}

// trailer returns the fields of the trailer with their final values, under names that
// net/http takes for such fields.
func (w *passWriter) trailer() http.Header {
	fields := make(http.Header)
	for _, names := range w.header["Trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if values, ok := w.header[name]; ok {
				fields[name] = values
			}
		}
	}
	for name, values := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			fields[name] = values
		}
	}
	return fields
}
