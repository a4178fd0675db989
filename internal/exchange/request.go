package exchange

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net/http"
	"net/url"
	"slices"

	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// Size returns about how long the request is when it is encoded.
func (x *Exchange) Size() int { return 512 + int(budget.Copy(x.request.Header)) + len(x.body) }

// SetHeader sets a field of the captured request. It comes before Serve.
func (x *Exchange) SetHeader(name, value string) { x.request.Header.Set(name, value) }

// DelHeader removes a field of the captured request. It comes before Serve.
func (x *Exchange) DelHeader(name string) { x.request.Header.Del(name) }

// AppendRequest appends the captured request encoded as DecodeRequest reads it. It comes
// before Serve, or before Release if the request is kept.
//
// The encoding is not application/http, which cannot express all that a handler may look
// at, such as the target before a prefix was stripped from it. Neither the values of the
// context are in it, nor those of the path: they belong to a process and to the routes
// that were asked before.
func (x *Exchange) AppendRequest(b []byte) []byte { return AppendRequest(b, x.request, x.body) }

// AppendRequest appends r, whose body is body, encoded as DecodeRequest reads it.
func AppendRequest(b []byte, r *http.Request, body []byte) []byte {
	marks := byte(0)
	if r.TLS != nil {
		marks |= overTLS
	}
	if r.URL.ForceQuery {
		marks |= forcesQuery
	}
	b = append(b, marks, byte(r.ProtoMajor), byte(r.ProtoMinor))
	for _, s := range [...]string{r.Method, r.Host, r.RequestURI, r.RemoteAddr, r.Proto, r.Pattern, r.URL.Scheme, r.URL.Opaque, r.URL.Host, r.URL.Path, r.URL.RawPath, r.URL.RawQuery} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return append(AppendFields(AppendFields(b, r.Header), r.Trailer), body...)
}

const (
	overTLS = 1 << iota
	forcesQuery
)

// ErrRequest is the error for bytes that are not an encoded request.
var ErrRequest = errors.New("not an encoded request")

// DecodeRequest returns the request that AppendRequest encoded in b, and its body, which
// is a part of b.
func DecodeRequest(b []byte) (r *http.Request, body []byte, err error) {
	// What was written whole is read whole: anything else is another version's, or was
	// changed by somebody, and its lengths lead outside.
	defer func() {
		if recover() != nil {
			r, body, err = nil, nil, ErrRequest
		}
	}()
	marks := b[0]
	r = &http.Request{ProtoMajor: int(b[1]), ProtoMinor: int(b[2]), URL: new(url.URL), Header: make(http.Header), Trailer: make(http.Header)}
	b = b[3:]
	for _, s := range [...]*string{&r.Method, &r.Host, &r.RequestURI, &r.RemoteAddr, &r.Proto, &r.Pattern, &r.URL.Scheme, &r.URL.Opaque, &r.URL.Host, &r.URL.Path, &r.URL.RawPath, &r.URL.RawQuery} {
		var n int
		n, b = cutNumber(b)
		*s, b = string(b[:n]), b[n:]
	}
	b = cutFields(cutFields(b, r.Header), r.Trailer)
	if len(r.Trailer) == 0 {
		r.Trailer = nil
	}
	if r.URL.ForceQuery = marks&forcesQuery != 0; marks&overTLS != 0 {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
	}
	r.ContentLength = int64(len(b))
	return r, slices.Clip(b), nil
}

// Restore makes x the exchange of a request that DecodeRequest has returned.
func (x *Exchange) Restore(h http.Handler, r *http.Request, body []byte, limit int64) {
	x.handler, x.request, x.limit = h, r, limit
	x.request.Body, x.body, x.recorder = problem.NewBody(body), body, &x.first
}
