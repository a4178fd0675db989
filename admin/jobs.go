package admin

import (
	"net/http"
	"strings"

	"holdfast"
	"holdfast/internal/problem"
)

// addJobs adds the list of jobs and the jobs themselves to mux.
func (h *Handler) addJobs(mux *http.ServeMux) {
	mux.Handle("/jobs", h.config.Jobs.ListHandler())
	h.addFailed(mux)
	mux.Handle("/jobs/", contained(h.config.Jobs))
	mux.HandleFunc("GET /jobs/{id}/head", h.serveHead)
	mux.HandleFunc("DELETE /jobs/{id}", h.serveCancel)
}

// serveCancel discards a job that has failed. Any other it cancels as the public listener
// does, and logs it.
func (h *Handler) serveCancel(w http.ResponseWriter, r *http.Request) {
	if h.discard(w, r) {
		return
	}
	seen := &statusWriter{ResponseWriter: w}
	h.config.Jobs.ServeHTTP(seen, r)
	if seen.status == http.StatusOK || seen.status == http.StatusAccepted {
		h.config.Logger.Info("job canceled", "job", holdfast.ID(r.PathValue("id")), "by", r.RemoteAddr)
	}
}

// A statusWriter remembers the status of a response.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// serveHead answers with the status and the header of a job's response, as JSON. A
// page cannot ask for the response itself: the browser would follow its redirects,
// hide its cookies, and ask for a password if it is a 401.
func (h *Handler) serveHead(w http.ResponseWriter, r *http.Request) {
	ask := r.Clone(r.Context())
	ask.Method = http.MethodHead
	ask.URL.Path = strings.TrimSuffix(r.URL.Path, "head") + "response"
	ask.Header = make(http.Header) // without a Prefer: wait
	answer := problem.NewDiscard()
	h.config.Jobs.ServeHTTP(answer, ask)
	switch state := answer.Header().Get("Job-State"); {
	case state == "done", state == "failed" && answer.Status != http.StatusGone:
		writeJSON(w, http.StatusOK, struct {
			Status int         `json:"status"`
			Reason string      `json:"reason"`
			Header http.Header `json:"header"`
		}{answer.Status, http.StatusText(answer.Status), answer.Header()})
	case state == "":
		problem.Write(w, http.StatusNotFound, "there is no such job, or it is no longer kept")
	default:
		problem.Write(w, http.StatusConflict, "the job is "+state+"; want one that is done, which has a response")
	}
}

// contained keeps the responses of jobs from acting as part of this listener: they
// come from handlers and upstreams, which may pass on what a client has sent. On the
// public listener a script in one can do what any client can; here it could change
// the dispatcher and read every job.
func contained(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/response") {
			w = &containedWriter{w}
		}
		next.ServeHTTP(w, r)
	})
}

// A containedWriter is the ResponseWriter for a response that is not ours.
type containedWriter struct{ http.ResponseWriter }

// These fields would change what the browser does with this listener.
var ofTheOrigin = []string{
	"Alt-Svc", "Clear-Site-Data", "Refresh", "Service-Worker-Allowed", "Set-Cookie",
	"Strict-Transport-Security", "Www-Authenticate",
}

func (w *containedWriter) WriteHeader(status int) {
	header := w.Header()
	for _, name := range ofTheOrigin {
		header.Del(name)
	}
	header.Set("Content-Disposition", "attachment")
	header.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	header.Set("X-Content-Type-Options", "nosniff")
	w.ResponseWriter.WriteHeader(status)
}

func (w *containedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
