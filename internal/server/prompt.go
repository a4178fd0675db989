package server

import (
	"io"
	"net/http"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/conns"
	"holdfast/internal/problem"
)

// prompt bounds the time for which a slow client can hold a connection, and that
// time alone. When the request is there, the server itself lifts its ReadTimeout,
// which is timeout, from then on reading only to notice that the client leaves. Its
// WriteTimeout runs from the header on and would cut off whoever waits for a long
// answer, so each piece of a response gets one of its own instead.
func prompt(next http.Handler, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.ProtoAtLeast(1, 1) {
			conns.Old(r.Context())
		}
		now := time.Now()
		prompt := &promptWriter{ResponseWriter: w, request: r, by: now.Add(writeTimeout)}
		if r.Body != http.NoBody {
			prompt.bodyBy = now.Add(timeout)
		}
		defer prompt.extend()
		if !r.Close || r.Body == http.NoBody {
			next.ServeHTTP(prompt, r)
			return
		}
		body := &last{ReadCloser: r.Body, expected: r.Header["Expect"] != nil, left: r.ContentLength}
		r.Body = body
		next.ServeHTTP(prompt, r)
		body.settle(w)
	})
}

// A last is the body of the last request of a connection. If nobody reads that to its
// end, net/http closes the connection at once; see problem.Linger.
type last struct {
	io.ReadCloser
	expected bool  // the client waits until it is asked for the body
	left     int64 // that is unread; negative if the client has not said how much there is
	ended    bool
}

func (b *last) Read(p []byte) (int, error) {
	b.expected = false
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	b.ended = b.ended || err == io.EOF
	return n, err
}

// unreadSize is how much of a body net/http reads before the answer to keep a
// connection. So much of it is read here too.
const unreadSize = 256 << 10

// settle does for the body what net/http does for one that is not the last. What is
// left of a small one is read. Otherwise the connection stays open for a moment when
// the answer is sent.
func (b *last) settle(w http.ResponseWriter) {
	if !b.ended && !b.expected && b.left < unreadSize {
		io.Copy(io.Discard, io.LimitReader(b, unreadSize))
	}
	if !b.ended {
		problem.Linger(w)
	}
}

// promptWriter gives the client a time-out for each piece of a response, and one
// for all: that grows by what was written, and shrinks by the time that this took.
// What the handler takes is not the client's, so a response may be as long as it
// likes and come with any pauses.
type promptWriter struct {
	http.ResponseWriter
	request *http.Request
	by      time.Time // the present write deadline
	bodyBy  time.Time // when the request's body has to be there; zero: no body
	written int
	took    time.Duration // for that
	hold    budget.Hold
}

// heldBack is how much of a response the server does not send before the handler
// returns, unless it is flushed.
const heldBack = 2048

// pieceSize is how much a client has to take in within writeTimeout.
const pieceSize = 64 << 10

func (w *promptWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader ends the connection with a response to a request whose context has
// ended: that is the connection's own, see package conns.
func (w *promptWriter) WriteHeader(status int) {
	if w.request.Context().Err() != nil {
		w.Header().Set("Connection", "close")
		if status == http.StatusServiceUnavailable && w.Header().Get("Retry-After") == "" {
			w.Header().Set("Retry-After", "1")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *promptWriter) Write(p []byte) (n int, err error) {
	for len(p) > pieceSize && err == nil {
		var m int
		m, err = w.piece(p[:pieceSize])
		n, p = n+m, p[m:]
	}
	if err != nil {
		return n, err
	}
	m, err := w.piece(p)
	return n + m, err
}

func (w *promptWriter) piece(p []byte) (int, error) {
	if w.written += len(p); w.written < heldBack {
		return w.ResponseWriter.Write(p)
	}
	began := w.extend()
	n, err := w.ResponseWriter.Write(p)
	w.took += max(time.Since(began), 0)
	return n, err
}

func (w *promptWriter) WriteString(s string) (int, error) {
	if w.written+len(s) >= heldBack {
		return w.Write([]byte(s))
	}
	w.written += len(s)
	return io.WriteString(w.ResponseWriter, s)
}

// FlushError is what an http.ResponseController calls.
func (w *promptWriter) FlushError() error {
	began := w.extend()
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.took += max(time.Since(began), 0)
	return err
}

// extend lets the time for the next piece begin, and returns when that is: now, or
// if the body may not be there yet, when it has to be, since the server waits for
// it before it answers.
func (w *promptWriter) extend() (from time.Time) {
	from = time.Now()
	if _, arrived := w.request.Body.(*problem.Body); !arrived && w.bodyBy.After(from) {
		from = w.bodyBy
	}
	left := writeTimeout + time.Duration(w.written/rate)*time.Second - w.took
	by := from.Add(min(left, writeTimeout))
	if by.Sub(w.by).Abs() < writeTimeout/30 {
		return from // to the second is close enough, and setting a deadline is dear
	}
	w.by = by
	http.NewResponseController(w.ResponseWriter).SetWriteDeadline(by)
	return from
}

// Unhurried tells whoever waits that there is nothing to do about the deadline.
func (w *promptWriter) Unhurried() (hurry func()) { return func() {} }
