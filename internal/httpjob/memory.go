package httpjob

import (
	"net/http"

	"holdfast/internal/budget"
	"holdfast/internal/exchange"
	"holdfast/internal/header"
	"holdfast/internal/problem"
)

const noMemory = "no memory is left for the request"

// An answer answers a request, for which it may hold memory until it returns.
type answer func(w http.ResponseWriter, r *http.Request, p header.Prefer, hold *budget.Hold)

// An entrance is a handler of requests that become jobs, or may.
type entrance struct {
	jobs   *Jobs
	answer answer
}

// Budget lets a server in front count in the same Budget; see budget.Of.
func (h *entrance) Budget() *budget.Budget { return h.jobs.Memory }

// ServeHTTP counts what the request takes for as long as it is answered. A server in
// front may have counted its header before.
func (h *entrance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Prefer")
	hold, take := budget.From(w), int64(budget.Request)
	if hold.Budget() != h.jobs.Memory {
		hold = new(budget.Hold)
		hold.Open(h.jobs.Memory, 0)
		defer hold.Close()
		take += budget.Conn + budget.Header(r)
	}
	if !hold.Reserve(take) {
		problem.NoMemory(w, h.jobs.Memory, noMemory)
		return
	}
	h.answer(w, r, header.ParsePrefer(r.Header["Prefer"]), hold)
}

// hold reserves what a job takes besides its body: a copy of the header, and what belongs
// to the job itself.
func (j *Jobs) hold(x *exchange.Exchange, r *http.Request) bool {
	x.Hold.Open(j.Memory, 0)
	return x.Hold.Reserve(budget.Job + budget.Copy(r.Header))
}
