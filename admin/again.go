package admin

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"holdfast"
	"holdfast/internal/httpjob"
	"holdfast/internal/problem"
	"holdfast/internal/store"
)

// addFailed adds to mux what the operator does with jobs that have failed.
func (h *Handler) addFailed(mux *http.ServeMux) {
	h.core = httpjob.Of(h.config.Jobs.Async(http.NotFoundHandler()))
	mux.HandleFunc("POST /jobs/{id}/retry", h.serveAgain)
	mux.HandleFunc("POST /jobs/retry", h.serveAllAgain)
	mux.HandleFunc("DELETE /jobs", h.serveDiscardAll)
}

// discard forgets a job if it has failed, and reports whether it has answered that.
func (h *Handler) discard(w http.ResponseWriter, r *http.Request) bool {
	id, ok := store.ParseID(r.PathValue("id"))
	if !ok || !h.core.Discard(id) {
		return false
	}
	h.config.Logger.Info("job discarded", "job", holdfast.ID(r.PathValue("id")), "by", r.RemoteAddr)
	writeJSON(w, http.StatusOK, map[string]int{"discarded": 1})
	return true
}

// serveAgain runs a job again that has failed, and answers with 202 and the job's URL.
func (h *Handler) serveAgain(w http.ResponseWriter, r *http.Request) {
	text := r.PathValue("id")
	id, ok := store.ParseID(text)
	if _, known := h.config.Jobs.Lookup(holdfast.ID(text)); !ok || !known {
		problem.Write(w, http.StatusNotFound, "there is no such job, or not any more")
		return
	}
	if err := h.core.Again(id); err != nil {
		h.refuseAgain(w, err, "")
		return
	}
	h.config.Logger.Info("job runs again", "job", holdfast.ID(text), "by", r.RemoteAddr)
	w.Header().Set("Location", "../"+text)
	writeJSON(w, http.StatusAccepted, struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}{text, "queued"})
}

// refuseAgain answers that a job cannot run again because of err. What was done before that
// stands in front.
func (h *Handler) refuseAgain(w http.ResponseWriter, err error, before string) {
	switch {
	case err == httpjob.ErrNotFailed:
		problem.Write(w, http.StatusConflict, "the job has not failed, or its request was not kept; want a failed one")
	case errors.Is(err, holdfast.ErrQueueFull), errors.Is(err, holdfast.ErrShare):
		problem.Retry(w, http.StatusServiceUnavailable, before+"the queue is full; try again later", h.core.RetryAfter)
	case errors.Is(err, holdfast.ErrClosed):
		problem.Write(w, http.StatusServiceUnavailable, before+"the server is shutting down")
	default:
		problem.Retry(w, http.StatusServiceUnavailable, before+"the job could not be stored; try again later", h.core.RetryAfter)
	}
}

// serveAllAgain runs all jobs again that have failed and match the query, those that ended
// first before the others, up to the one that finds the queue full.
func (h *Handler) serveAllAgain(w http.ResponseWriter, r *http.Request) {
	ids, ok := h.failed(w, r)
	if !ok {
		return
	}
	n := 0
	for _, id := range ids {
		err := h.core.Again(id)
		if err != nil && err != httpjob.ErrNotFailed { // or somebody else was faster
			h.logAll(r, "jobs run again", n)
			h.refuseAgain(w, err, fmt.Sprintf("%d of %d jobs run again; then ", n, len(ids)))
			return
		}
		if err == nil {
			n++
		}
	}
	h.logAll(r, "jobs run again", n)
	writeJSON(w, http.StatusOK, map[string]int{"retried": n})
}

// serveDiscardAll forgets all jobs that have failed and match the query.
func (h *Handler) serveDiscardAll(w http.ResponseWriter, r *http.Request) {
	ids, ok := h.failed(w, r)
	if !ok {
		return
	}
	n := 0
	for _, id := range ids {
		if h.core.Discard(id) {
			n++
		}
	}
	h.logAll(r, "jobs discarded", n)
	writeJSON(w, http.StatusOK, map[string]int{"discarded": n})
}

func (h *Handler) logAll(r *http.Request, what string, n int) {
	h.config.Logger.Info(what, "jobs", n, "query", fmt.Sprintf("%.200s", r.URL.RawQuery), "by", r.RemoteAddr)
}

// failed returns the jobs that match the query, those that ended first before the others, or
// answers what is wrong with it.
func (h *Handler) failed(w http.ResponseWriter, r *http.Request) (ids []store.ID, ok bool) {
	match, err := parseMatch(r)
	if err != nil {
		problem.Write(w, http.StatusBadRequest, err.Error())
		return nil, false
	}
	for at, more := (store.Cursor{}), true; more; {
		var page []store.Listed
		page, at, more = h.core.Store.List(store.Failed, at, 1000)
		for _, j := range page {
			if match(&j) {
				ids = append(ids, j.ID)
			}
		}
	}
	slices.Reverse(ids)
	return ids, true
}

// parseMatch reads which jobs a query is about: state=failed, which must be there, so that
// none is meant by mistake, and perhaps a route and the status of the response.
func parseMatch(r *http.Request) (func(*store.Listed) bool, error) {
	const want = "want state=failed, and perhaps route and status"
	values := r.URL.Query()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name != "state" && name != "route" && name != "status" || len(values[name]) != 1 {
			return nil, fmt.Errorf("the parameter %.40q is unknown, or there more than once; "+want, name)
		}
	}
	if values.Get("state") != "failed" {
		return nil, fmt.Errorf("state is %.40q; "+want, values.Get("state"))
	}
	status := 0
	if text := values.Get("status"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 || n > 999 {
			return nil, fmt.Errorf("status is %.40q; want 100 to 999", text)
		}
		status = n
	}
	route := values.Get("route")
	return func(j *store.Listed) bool {
		return (route == "" || j.Request.Route == route) && (status == 0 || j.Status == status)
	}, nil
}
