package resource

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"holdfast/internal/problem"
	"holdfast/internal/store"
)

// The numbers of jobs on a page. The most is what bounds the memory that a request
// takes.
const (
	usualLimit = 100
	mostLimit  = 1000
)

// An entry is a job in a list: also what it is, which its client knows.
type entry struct {
	representation
	Method string `json:"method"`
	Target string `json:"target"`
	Route  string `json:"route,omitempty"`
	Answer int    `json:"response_status,omitempty"`
}

// List answers with a page of all jobs, in the order and with the promise of
// store.List. Unlike ServeHTTP it asks for no id, and tells them all.
func (h *Handler) List(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		problem.NotAllowed(w, r, "GET, HEAD")
		return
	}
	state, after, limit, err := parseList(r)
	if err != nil {
		problem.Write(w, http.StatusBadRequest, err.Error())
		return
	}
	page, next, more := h.Store.List(state, after, limit)
	answer := struct {
		Jobs []entry `json:"jobs"`
		Next string  `json:"next,omitempty"`
	}{Jobs: make([]entry, 0, len(page))}
	for _, j := range page {
		answer.Jobs = append(answer.Jobs, entry{h.represent(j.ID, j.View), j.Request.Method, j.Request.Target, j.Request.Route, j.Answered()})
	}
	if more {
		answer.Next = next.String()
	}
	w.Header().Set("Cache-Control", "no-store")
	write(w, http.StatusOK, answer)
}

// parseList reads what the query asks for. A parameter without a value is as one that
// is not there: so a form sends it.
func parseList(r *http.Request) (state store.State, after store.Cursor, limit int, err error) {
	if r.ParseForm() != nil {
		return "", after, 0, errors.New("the query is malformed; want state, limit and after, as name=value, joined by &")
	}
	values := r.Form
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch n := len(values[name]); {
		case name != "state" && name != "limit" && name != "after":
			return "", after, 0, fmt.Errorf("the parameter %.40q is unknown; want state, limit and after alone", name)
		case n > 1:
			return "", after, 0, fmt.Errorf("the parameter %s is there %d times; want it once", name, n)
		}
	}
	switch state = store.State(values.Get("state")); state {
	case "", store.Queued, store.Running, store.Done, store.Failed, store.Canceled, store.Dropped:
	default:
		return "", after, 0, fmt.Errorf("state is %.40q; want queued, running, done, failed, canceled or dropped", state)
	}
	limit = usualLimit
	if text := values.Get("limit"); text != "" {
		limit, err = strconv.Atoi(text)
		if err != nil || limit < 1 || limit > mostLimit {
			return "", after, 0, fmt.Errorf("limit is %.40q; want a whole number from 1 to %d", text, mostLimit)
		}
	}
	after, ok := store.ParseCursor(values.Get("after"))
	if !ok {
		return "", after, 0, fmt.Errorf("after is %.40q; want the next of an earlier page", values.Get("after"))
	}
	return state, after, limit, nil
}
