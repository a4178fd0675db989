// Package exchange runs a handler without its client: it captures the request, and
// records the response, which can be written to a client later. Unlike
// httptest.ResponseRecorder it bounds the size of the response, and records what
// the net/http server would have sent: the same status, header, body and trailer.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// An Exchange is one call of a handler, or one after the other. Call Capture first, then
// Serve, then Again and Serve any number of times, then Release.
type Exchange struct {
	Hold budget.Hold // that counts the response; Release closes it

	handler  http.Handler
	request  *http.Request // which no handler gets if it is kept
	body     []byte        // of it
	kept     bool
	limit    int64
	first    recorder
	recorder *recorder // goroutines of an earlier call may hold an earlier one
	response Response
	err      error // why there is no response
}

// Capture copies a request for h. The copy shares nothing that a handler of the
// original could change, and its body is body. The response may have at most limit
// bytes.
func (x *Exchange) Capture(h http.Handler, r *http.Request, body []byte, limit int64) {
	x.handler, x.request, x.limit = h, r.Clone(context.Background()), limit
	x.request.Body, x.body, x.recorder = problem.NewBody(body), body, &x.first
}

// Keep keeps the request as it was captured, for another call, or for AppendRequest after
// the last. Handlers then get copies: many a middleware changes a header in place.
func (x *Exchange) Keep() { x.kept = true }

// Serve calls the handler, with ctx as the request's context. It does not recover from
// panics of the handler. An error says why there is no response.
func (x *Exchange) Serve(ctx context.Context) error {
	r := x.forHandler(ctx)
	// The server does this only for its own request.
	defer func() {
		if r.MultipartForm != nil {
			r.MultipartForm.RemoveAll()
		}
	}()
	// The same handler also answers synchronously, depending on Prefer, so its
	// responses carry the same Vary in both cases.
	x.recorder.begin(ctx, r.Method, x.limit, http.Header{"Vary": {"Prefer"}}, &x.Hold)
	x.handler.ServeHTTP(x.recorder, r)
	x.response, x.err = x.recorder.end()
	return x.err
}

// forHandler returns the request that the next call gets.
func (x *Exchange) forHandler(ctx context.Context) *http.Request {
	if x.kept {
		r := x.request.Clone(ctx)
		r.Body = problem.NewBody(x.body)
		return r
	}
	x.request, x.body = x.request.WithContext(ctx), nil
	return x.request
}

// Again lets go of what the last call has left, before another one. It comes after Keep.
func (x *Exchange) Again() {
	x.recorder.giveBack()
	x.recorder, x.response, x.err = new(recorder), Response{}, nil
}

// Response returns the response if Serve returned nil. It is valid until Release.
func (x *Exchange) Response() Response { return x.response }

// Retain returns the response for whoever is to keep it: a large one outlasts Release, as
// an owner of its memory. It comes after Serve has returned nil.
func (x *Exchange) Retain() Response {
	x.response = x.recorder.keep(x.response)
	return x.response
}

// Release releases the memory of request and response.
func (x *Exchange) Release() {
	x.handler, x.request, x.body = nil, nil, nil
	if x.recorder != nil {
		x.recorder.release()
	}
	x.Hold.Close()
}

// Failure returns the status and the problem detail for a client if Serve was
// called and there is no response. err is http.ErrAbortHandler if the handler
// panicked with that. Otherwise it is the error that Serve returned, or that of a
// deadline that has passed since.
func (x *Exchange) Failure(err error) (status int, detail string) {
	if err == http.ErrAbortHandler {
		// A ReverseProxy panics like this when it could not write the response. The
		// recorder then has the reason.
		_, x.err = x.recorder.end()
		if x.err == nil {
			return http.StatusInternalServerError, Aborted
		}
	}
	if elsewhere, ok := x.err.(*NoResponse); ok {
		return elsewhere.Status, elsewhere.Detail
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

// A NoResponse says why a handler that ran elsewhere has no response: what Failure has
// returned there. The ResponseWriter of an Exchange takes it:
//
//	interface{ Fail(*exchange.NoResponse) }
type NoResponse struct {
	Status int
	Detail string
}

func (e *NoResponse) Error() string { return e.Detail }

// Aborted is the detail for a handler that panicked with http.ErrAbortHandler.
const Aborted = "the handler aborted its response"
