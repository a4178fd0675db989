package cluster

import (
	"errors"
	"net/http"
)

// Reads returns a handler for what tells of jobs: next answers, but only while this node is
// sure that it leads. A leader that was stopped would otherwise tell what has long been
// different. That is looked at when the answer is ready, not before it: in between the
// process can be stopped for any time.
func (t *Term) Reads(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&sureWriter{ResponseWriter: w, term: t}, r)
	})
}

var errUnsure = errors.New("cluster: this node cannot be sure any more that it leads")

// A sureWriter answers 503 in place of what it cannot be sure of.
type sureWriter struct {
	http.ResponseWriter
	term   *Term
	headed bool
	unsure bool
}

func (w *sureWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *sureWriter) WriteHeader(status int) {
	if w.headed {
		return
	}
	w.headed = true
	if w.unsure = !w.term.Sure(); w.unsure {
		clear(w.Header())
		noLeader(w.ResponseWriter)
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write fails once the node is unsure, if more is to come: a stream of events ends. What a
// response was does not change.
func (w *sureWriter) Write(p []byte) (int, error) {
	if !w.headed {
		w.WriteHeader(http.StatusOK)
	}
	if w.unsure || isEvents(w) && !w.term.Sure() {
		return 0, errUnsure
	}
	return w.ResponseWriter.Write(p)
}
