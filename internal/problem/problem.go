// Package problem answers HTTP requests with problem details (RFC 9457). It
// differs from http.Error in that a program can read the answer.
package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// Write answers with a problem of the type about:blank, so that its title is the
// status phrase. detail says what happened and what was expected; it goes to the
// client and must not tell of internals.
func Write(w http.ResponseWriter, status int, detail string) {
	body, err := json.Marshal(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{http.StatusText(status), status, detail})
	if err != nil {
		panic(err) // strings and a number can always be marshaled
	}
	body = append(body, '\n')
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(body)
}

// WriteUnread answers a request whose body could not be read because of err: 413
// if it is larger than an http.MaxBytesReader allows, else 400.
func WriteUnread(w http.ResponseWriter, err error) {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		Write(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is too large; want at most %d bytes", tooLarge.Limit))
		return
	}
	Write(w, http.StatusBadRequest, "the body could not be read to its end")
}

// Mux returns a handler that serves with mux and answers with a problem where
// mux has no route: 405 with Allow if the path has one for another method, else
// 404.
func Mux(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// What mux would say is asked for its status and its Allow header.
		said := &answer{header: make(http.Header)}
		h.ServeHTTP(said, r)
		if said.status == http.StatusMethodNotAllowed {
			allow := said.header.Get("Allow")
			w.Header().Set("Allow", allow)
			Write(w, said.status, r.Method+" is not allowed here; want "+allow)
			return
		}
		Write(w, http.StatusNotFound, "nothing is served at this path; GET / tells what is")
	})
}

type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return len(p), nil }
