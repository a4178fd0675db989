// Package resource shows jobs to clients: each is a resource that tells where the
// job stands, and, below it, the response.
package resource

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/header"
	"holdfast/internal/problem"
	"holdfast/internal/store"
	"holdfast/internal/wrapped"
)

// A Handler serves the jobs of a store. Whoever knows the id of a job may do with
// it what can be done; of all others it says nothing.
type Handler struct {
	Store      *store.Store
	Path       string          // that the paths of its requests begin with; ends in /
	Base       string          // that clients find before Path, as from ParseBase
	RetryAfter func() int      // seconds until the backlog is worked off
	Stop       <-chan struct{} // closed when nobody is to wait for jobs any more
}

// ParseBase returns a Base for the URL at which clients find the root of the server,
// such as https://host/queue. The error says what was expected.
func ParseBase(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return "", errors.New("want http://host or https://host, perhaps with a port and a path")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// ServeHTTP answers requests for Path{id} and Path{id}/response.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	j, nested, ok := h.find(w, r)
	if !ok {
		return
	}
	if r.Method == http.MethodDelete {
		h.cancel(w, r, j)
		return
	}
	if !nested && r.Method == http.MethodGet && header.AcceptsEvents(r.Header["Accept"]) {
		h.events(w, r, j)
		return
	}
	received := time.Now()
	w.Header().Add("Vary", "Prefer")
	wait := header.ParsePrefer(r.Header["Prefer"]).Wait
	if wait > 0 {
		h.Await(w, r, j, received.Add(wait))
	}
	if nested {
		h.response(w, r, j, Applied(false, wait))
		return
	}
	w.Header().Add("Vary", "Accept")
	setApplied(w, Applied(false, wait))
	v := h.Store.View(j)
	h.show(w, j, http.StatusOK, v)
	h.shown(r, j, v.State)
}

// shown notes that the client of r knows how the job has ended. Where there is a
// response, that is not all: a client that polls comes for it next.
func (h *Handler) shown(r *http.Request, j *store.Job, s store.State) {
	if s.Ended() && s != store.Done && h.Store.View(j).Answered() == 0 {
		h.read(r, j)
	}
}

// read notes that the client of r has what there is to read of the job, as far as
// that can be told. The server ends the context when it cannot write.
func (h *Handler) read(r *http.Request, j *store.Job) {
	if r.Method != http.MethodHead && r.Context().Err() == nil {
		h.Store.Read(j)
	}
}

// find returns the job that a request is for, and whether it is for the response
// below it, or answers the request and returns false.
func (h *Handler) find(w http.ResponseWriter, r *http.Request) (j *store.Job, nested, ok bool) {
	rest, ok := strings.CutPrefix(r.URL.Path, h.Path)
	id, below, nested := strings.Cut(rest, "/")
	if !ok || nested && below != "response" {
		notFound(w)
		return nil, false, false
	}
	// The method comes before the id: the answer to a wrong one must not depend
	// on whether there is such a job.
	methods := []string{"GET", "HEAD", "DELETE"}
	if nested {
		methods = methods[:2]
	}
	if !slices.Contains(methods, r.Method) {
		problem.NotAllowed(w, r, strings.Join(methods, ", "))
		return nil, false, false
	}
	if j, ok = h.Store.Lookup(id); !ok {
		notFound(w)
	}
	return j, nested, ok
}

func notFound(w http.ResponseWriter) {
	problem.Write(w, http.StatusNotFound, "there is no such job, or not any more")
}

// Applied returns what Preference-Applied is to say of the preferences that were
// honoured; wait is negative if it was not.
func Applied(respondAsync bool, wait time.Duration) string {
	var applied []string
	if respondAsync {
		applied = append(applied, "respond-async")
	}
	if wait >= 0 {
		applied = append(applied, fmt.Sprintf("wait=%d", int(wait.Seconds())))
	}
	return strings.Join(applied, ", ")
}

func setApplied(w http.ResponseWriter, applied string) {
	if applied != "" {
		w.Header().Set("Preference-Applied", applied)
	}
}

// Await waits until the job has ended, a time has come, the client has left, or
// nobody is to wait any more. It reports whether the job has ended before that time.
func (h *Handler) Await(w http.ResponseWriter, r *http.Request, j *store.Job, until time.Time) bool {
	left := time.Until(until)
	if left <= 0 {
		return false
	}
	late := time.NewTimer(left)
	defer late.Stop()
	defer Unhurried(w, r)()
	for {
		changed := h.Store.Changed(j)
		if h.Store.View(j).State.Ended() {
			return true
		}
		select {
		case <-changed:
		case <-late.C:
			return false
		case <-r.Context().Done():
			return false
		case <-h.Stop:
			return false
		}
	}
}

// Unhurried lifts the server's WriteTimeout, if there is one, and returns what lets
// it begin: the server itself lets it begin with the request, so that a wait would
// use it up. To set it after the wait is not enough, since in HTTP/2 the stream is
// reset when it has passed. A ResponseWriter that has such a method itself, or wraps one
// that does, sees to that by itself.
func Unhurried(w http.ResponseWriter, r *http.Request) (hurry func()) {
	if own, ok := wrapped.Find[interface{ Unhurried() func() }](w); ok {
		return own.Unhurried()
	}
	s, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || s.WriteTimeout <= 0 {
		return func() {}
	}
	c := http.NewResponseController(w)
	c.SetWriteDeadline(time.Time{})
	return func() { c.SetWriteDeadline(time.Now().Add(s.WriteTimeout)) }
}

// Accepted answers that the request has become a job. All such bodies have one
// length, and say queued; Job-State says where the job stands, which is another
// state if the request repeats an earlier one.
//
// Operation-Location and Content-Location are for clients that follow operations
// without knowing this server: some poll the one until its status is final, others
// the other until it is not 202.
func (h *Handler) Accepted(w http.ResponseWriter, j *store.Job, applied string) {
	// One string for the body and for the URLs.
	id := j.ID.String()
	text := h.Base + h.Path + id + `/response{"id":"` + id + `","state":"queued","url":"` + h.Base + h.Path + id + "\"}\n"
	url := text[:len(h.Base)+len(h.Path)+len(id)]
	response := text[:len(url)+len("/response")]
	answer := text[len(response):]

	// What Header.Set would do, with one object for all values.
	values := [...]string{"application/json", strconv.Itoa(len(answer)), string(h.Store.State(j)), url, response}
	header := w.Header()
	header["Content-Type"] = values[0:1:1]
	header["Content-Length"] = values[1:2:2]
	header["Job-State"] = values[2:3:3]
	header["Location"] = values[3:4:4]
	header["Operation-Location"] = values[3:4:4]
	header["Content-Location"] = values[4:5:5]
	setApplied(w, applied)
	w.WriteHeader(http.StatusAccepted)
	io.WriteString(w, answer)
}

// Result answers a request that has waited for its job with the job's response, or
// with the reason why it has none: a retry of the request makes sense, so it is what
// a handler that was called at once would have led to.
func (h *Handler) Result(w http.ResponseWriter, r *http.Request, j *store.Job, applied string) {
	v := h.Store.View(j)
	if v.State == store.Failed && v.Answered() == 0 || v.State == store.Dropped {
		setApplied(w, applied)
		setState(w, v.State)
		if v.State == store.Dropped {
			v.Status = http.StatusServiceUnavailable
		}
		problem.Retry(w, v.Status, v.Detail, h.RetryAfter)
		h.read(r, j)
		return
	}
	h.answer(w, r, j, applied, v)
}

// response answers with the job's response, with 202 if it has not ended, or with
// 410 if there is none: whoever asks again gets the same, and a status such as 500
// or 504 would have clients and proxies ask again.
func (h *Handler) response(w http.ResponseWriter, r *http.Request, j *store.Job, applied string) {
	h.answer(w, r, j, applied, h.Store.View(j))
}

func (h *Handler) answer(w http.ResponseWriter, r *http.Request, j *store.Job, applied string, v store.View) {
	switch {
	case !v.State.Ended():
		setApplied(w, applied)
		h.show(w, j, http.StatusAccepted, v)
	case v.Answered() != 0: // of a job that has failed, the response of its last attempt
		v.Response.Held().Hold()
		defer v.Response.Held().Release()
		v.Response.CopyHeader(w.Header())
		setApplied(w, applied)
		w.Header().Set("Job-State", string(v.State)) // after the handler's own, if it has one
		v.Response.Write(w, r.Method)
		h.read(r, j)
	default:
		setApplied(w, applied)
		setState(w, v.State)
		cause := 0
		if v.State == store.Failed {
			cause = v.Status
		}
		problem.Gone(w, v.Detail, cause)
		h.read(r, j)
	}
}

// setState sets what every answer about a job has. What it says may be different
// a moment later.
func setState(w http.ResponseWriter, s store.State) {
	w.Header().Set("Job-State", string(s))
	w.Header().Set("Cache-Control", "no-store")
}

// show answers with the job resource, and, while there is more to come, with the
// time after which to ask again: pollers of long-running operations wait for half a
// minute where nobody tells them.
func (h *Handler) show(w http.ResponseWriter, j *store.Job, status int, v store.View) {
	setState(w, v.State)
	if !v.State.Ended() {
		w.Header().Set("Retry-After", strconv.Itoa(h.retryAfter(v)))
	}
	write(w, status, h.represent(j.ID, v))
}

// retryAfter returns the seconds after which to ask again for a job that has not ended: not
// before its next attempt.
func (h *Handler) retryAfter(v store.View) int {
	after := h.RetryAfter()
	if !v.Next.IsZero() {
		after = max(after, int((time.Until(v.Next)+time.Second-1)/time.Second))
	}
	return after
}

// write answers with v as JSON.
func write(w http.ResponseWriter, status int, v any) {
	body := append(marshal(v), '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// A representation is the job resource.
type representation struct {
	ID          string      `json:"id"`
	State       store.State `json:"state"`
	AcceptedAt  time.Time   `json:"accepted_at"`
	StartedAt   time.Time   `json:"started_at,omitzero"`
	Attempts    int         `json:"attempts,omitempty"`
	NextAt      time.Time   `json:"next_attempt_at,omitzero"`
	LastStatus  int         `json:"last_status,omitempty"`
	EndedAt     time.Time   `json:"ended_at,omitzero"`
	ExpiresAt   time.Time   `json:"expires_at,omitzero"`
	Error       string      `json:"error,omitempty"`
	URL         string      `json:"url"`
	ResponseURL string      `json:"response_url"`

	// For pollers of long-running operations, which know no other names.
	Status           string `json:"status"`
	ResourceLocation string `json:"resourceLocation,omitempty"`
}

// statuses are what pollers of long-running operations call the states. Each of
// theirs that is not one of the last three, in any form, they take for a state that
// passes. Dropped is Failed, not Canceled: they report the latter as what their own
// caller wanted.
var statuses = map[store.State]string{
	store.Queued: "NotStarted", store.Running: "Running",
	store.Done: "Succeeded", store.Failed: "Failed", store.Canceled: "Canceled", store.Dropped: "Failed",
}

func (h *Handler) represent(id store.ID, v store.View) representation {
	url := h.Base + h.Path + id.String()
	r := representation{
		ID: id.String(), State: v.State,
		AcceptedAt: stamp(v.Accepted), StartedAt: stamp(v.Started), EndedAt: stamp(v.Ended), ExpiresAt: stamp(v.Expires),
		Error: v.Detail, URL: url, ResponseURL: url + "/response",
		Status: statuses[v.State],
	}
	if v.State == store.Done {
		r.ResourceLocation = r.ResponseURL
	}
	if r.NextAt, r.LastStatus = stamp(v.Next), v.LastStatus; v.Attempts > 1 || !v.Next.IsZero() {
		r.Attempts = v.Attempts // of most jobs the times tell it
	}
	return r
}

func marshal(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and the times of a clock can always be marshaled
	}
	return body
}

// stamp returns a time as it is shown: in UTC, to the millisecond.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// cancel answers where the job stands after it has been canceled.
func (h *Handler) cancel(w http.ResponseWriter, r *http.Request, j *store.Job) {
	switch v := h.Store.Cancel(j); v.State {
	case store.Canceled:
		h.show(w, j, http.StatusOK, v)
		h.shown(r, j, v.State)
	case store.Queued, store.Running: // its handler has yet to notice
		h.show(w, j, http.StatusAccepted, v)
	default:
		setState(w, v.State)
		problem.Write(w, http.StatusConflict, "the job has ended as "+string(v.State)+" and cannot be canceled any more")
	}
}

// keepAlive is how often a stream that has nothing to tell says so, for the
// proxies that would close it.
const keepAlive = 15 * time.Second

// ended is the number of the last event of a job.
const ended = 3

// rank is the number of an event: 1 when the job is queued and 2 when it runs, 4 and 5 the
// second time, and so on. States may be passed over, but the ranks of those that are told
// only grow, but for the last.
func rank(v store.View) int {
	switch v.State {
	case store.Queued:
		return 1 + 3*v.Attempts
	case store.Running:
		return 3*v.Attempts - 1
	}
	return ended
}

// later reports whether an event comes after another one.
func later(n, than int) bool { return than != ended && (n == ended || n > than) }

// events streams the changes of a job's state (Server-Sent Events), from the
// present one to the last. A client that comes back for more than the last one
// gets 204, which tells it to stay away.
func (h *Handler) events(w http.ResponseWriter, r *http.Request, j *store.Job) {
	v := h.Store.View(j)
	told, err := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	if err != nil || told < 0 || later(told, rank(v)) {
		told = 0
	}
	setState(w, v.State)
	w.Header().Add("Vary", "Accept")
	if v.State.Ended() && told == ended {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold the events back to the end
	w.WriteHeader(http.StatusOK)
	h.stream(w, r, j, told)
}

// stream sends the events of a job that come after the one that was told.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, j *store.Job, told int) {
	hurry := Unhurried(w, r)
	defer hurry()
	send := func(text string) error {
		hurry()
		err := sendNow(w, text)
		Unhurried(w, r)
		return err
	}
	quiet := time.NewTicker(keepAlive)
	defer quiet.Stop()
	for {
		changed, v := h.Store.Changed(j), h.Store.View(j)
		text := ""
		if n := rank(v); later(n, told) {
			told = n
			text = fmt.Sprintf("id: %d\nevent: state\ndata: %s\n\n", n, marshal(h.represent(j.ID, v)))
		}
		if err := send(text); err != nil {
			return
		}
		if v.State.Ended() {
			h.shown(r, j, v.State)
			return
		}
		select {
		case <-changed:
		case <-quiet.C:
			if send(": still "+string(v.State)+"\n\n") != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-h.Stop:
			return
		}
	}
}

// sendNow writes text past the server's buffer.
func sendNow(w http.ResponseWriter, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}
