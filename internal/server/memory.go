package server

import (
	"net/http"

	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// Hold returns what is held for the request; see budget.From.
func (w *promptWriter) Hold() *budget.Hold { return &w.hold }

// usual is what the header of a request may take that is let in also if there is no
// memory: the health checks, and what shows or cancels jobs, are answered at once.
const usual = 8 << 10

// Count lets the server count in b what it holds for clients. It must be called before
// Run.
func (s *Server) Count(b *budget.Budget) { s.limits.Memory = b }

// held counts the header of a request until next has answered it. It is there already
// when the server has a handler, but its client has yet to be answered, and its body to
// be read.
func (s *Server) held(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hold := budget.From(w)
		defer hold.Close()
		size := budget.Header(r)
		hold.Open(s.limits.Memory, min(size, usual))
		if size > usual && !hold.Reserve(size-usual) {
			problem.NoMemory(w, s.limits.Memory, "no memory is left for a header of this size")
			return
		}
		next.ServeHTTP(w, r)
	})
}
