// Package exchange lets a handler run away from its client: the request is
// captured, and what the handler answers is kept, to be written to a client later
// or never. What it keeps differs from what httptest.ResponseRecorder does in that
// it has a bound, and is what the server of net/http would have sent: the same
// status, header, body and trailer.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// An Exchange is one call of a handler: first Capture, then Serve, then Release.
type Exchange struct {
	Hold budget.Hold // that counts the response; Release closes it

	handler  http.Handler
	request  *http.Request
	limit    int64
	recorder recorder
	response Response
	err      error // why there is none
}

// Capture keeps a request for h: a copy that shares nothing with whoever handles the
// original, and has body as its body. The response may have limit bytes.
func (x *Exchange) Capture(h http.Handler, r *http.Request, body []byte, limit int64) {
	x.handler, x.request, x.limit = h, r.Clone(context.Background()), limit
	x.request.Body = problem.NewBody(body)
}

// Serve calls the handler, once, with ctx as the request's context, and lets its
// panics pass. An error says why there is no response.
func (x *Exchange) Serve(ctx context.Context) error {
	x.request = x.request.WithContext(ctx)
	// The server does this for its own request; of this one it does not know.
	defer func() {
		if form := x.request.MultipartForm; form != nil {
			form.RemoveAll()
		}
	}()
	// As on what the same handler answers at once: it depends on what a client
	// prefers.
	x.recorder.begin(x.request.Context(), x.request.Method, x.limit, http.Header{"Vary": {"Prefer"}}, &x.Hold)
	x.handler.ServeHTTP(&x.recorder, x.request)
	x.response, x.err = x.recorder.end()
	return x.err
}

// Response returns the response, if Serve has returned nil. It is valid until
// Release.
func (x *Exchange) Response() Response { return x.response }

// Keep returns the response for whoever is to keep it: a large one outlasts Release, as
// an owner of its memory. It comes after Serve has returned nil.
func (x *Exchange) Keep() Response {
	x.response = x.recorder.keep(x.response)
	return x.response
}

// Release gives back the memory of request and response. It comes last.
func (x *Exchange) Release() {
	x.handler, x.request = nil, nil
	x.recorder.release()
	x.Hold.Close()
}

// Failure returns what a client learns if Serve was called and there is no response.
// err says how the call has ended: http.ErrAbortHandler if the handler panicked with
// that, otherwise what Serve has returned, or a deadline that has passed meanwhile.
func (x *Exchange) Failure(err error) (status int, detail string) {
	if err == http.ErrAbortHandler {
		// Perhaps since it could not write: a ReverseProxy does so.
		_, x.err = x.recorder.end()
		if x.err == nil {
			return http.StatusInternalServerError, Aborted
		}
	}
	switch {
	case x.err == problem.ErrNoMemory:
		x.Hold.Budget().Refuse()
		return http.StatusServiceUnavailable, "no memory is left for the response; try again later"
	case x.err == ErrTooLarge:
		return http.StatusInternalServerError, fmt.Sprintf("%v; at most %d bytes are kept", x.err, x.limit)
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout, "the handler ran for longer than a job may"
	case x.err != nil:
		return http.StatusInternalServerError, x.err.Error()
	}
	return http.StatusInternalServerError, "the handler did not return"
}

// Aborted is what a client is told of a handler that did not want to answer.
const Aborted = "the handler aborted its response"
