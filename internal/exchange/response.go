package exchange

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// ErrTooLarge is the error of a response that is over its bound.
var ErrTooLarge = errors.New("the response is too large")

// errEnded is what a write gets that comes when the handler has returned.
var errEnded = errors.New("write to a response that has ended")

// A Recorder is the http.ResponseWriter of a handler that runs without a client.
//
// Flush is taken note of, since what is flushed has no Content-Length. An
// informational status is passed over. What needs a connection, that is Hijack
// and the other methods of an http.ResponseController, is not supported, and
// says so to whoever asks.
type Recorder struct {
	limit  int64
	head   bool
	header http.Header

	mu          sync.Mutex // protects the following fields from a handler that leaves goroutines behind
	ended       bool
	err         error
	wroteHeader bool
	length      int64 // as declared; -1: not
	written     int64
	response    Response
}

// NewRecorder returns a Recorder for a request with the given method. The body
// and the header of the response may have limit bytes together. The handler finds
// the header as preset, which it owns from here on.
func NewRecorder(method string, limit int64, preset http.Header) *Recorder {
	return &Recorder{limit: limit, head: method == http.MethodHead, header: preset, length: -1}
}

// Header returns the header, as the handler may change it until it is written.
func (r *Recorder) Header() http.Header { return r.header }

// WriteHeader takes the header as it is now for that of the response.
func (r *Recorder) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(status)
}

func (r *Recorder) writeHeaderLocked(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", status)) // as net/http does
	}
	if r.wroteHeader || r.ended || status < 200 && status != http.StatusSwitchingProtocols {
		return
	}
	r.wroteHeader = true
	if status == http.StatusSwitchingProtocols {
		r.err = errors.New("the handler switches protocols, which needs a connection")
	}
	r.response.status = status
	r.response.head = r.head
	r.response.header = fields(r.header)
	for _, f := range r.response.header {
		r.response.size += f.size()
	}
	if r.response.size > r.limit {
		r.err = ErrTooLarge
	}
	if v := r.header["Content-Length"]; len(v) > 0 {
		if n, err := strconv.ParseInt(v[0], 10, 64); err == nil && n >= 0 {
			r.length = n
		} else {
			// The server leaves out what is no length.
			r.response.header = slices.DeleteFunc(r.response.header, func(f field) bool { return f.name == "Content-Length" })
		}
	}
}

// Write appends to the body. It returns what the server's ResponseWriter would:
// http.ErrBodyNotAllowed for a status without a body, http.ErrContentLength for
// more than the handler has declared; and ErrTooLarge beyond the bound.
func (r *Recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wroteHeader {
		r.writeHeaderLocked(http.StatusOK)
	}
	switch {
	case r.ended:
		return 0, errEnded
	case r.err != nil:
		return 0, r.err
	case len(p) == 0:
		return 0, nil
	case !bodyAllowed(r.response.status):
		return 0, http.ErrBodyNotAllowed
	case r.length >= 0 && r.written+int64(len(p)) > r.length:
		return 0, http.ErrContentLength
	}
	r.written += int64(len(p))
	if r.head { // what the server would hold back is all that matters
		r.response.body = append(r.response.body, p[:min(len(p), buffered-len(r.response.body))]...)
		return len(p), nil
	}
	if r.response.size+int64(len(p)) > r.limit {
		r.err = ErrTooLarge
		return 0, r.err
	}
	if r.response.body == nil {
		r.response.body = make([]byte, 0, max(len(p), int(min(max(r.length, 0), 64<<10))))
	}
	r.response.body = append(r.response.body, p...)
	r.response.size += int64(len(p))
	return len(p), nil
}

// Flush takes note that the handler wants a client to see what is there.
func (r *Recorder) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wroteHeader {
		r.writeHeaderLocked(http.StatusOK)
	}
	r.response.sniff()
	r.response.flushed = true
}

// End returns the response when the handler has returned, or why there is none.
// From then on the recorder takes nothing any more.
func (r *Recorder) End() (*Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wroteHeader {
		r.writeHeaderLocked(http.StatusOK)
	}
	r.ended = true
	if r.err == nil && !r.head && r.length > r.written && bodyAllowed(r.response.status) {
		r.err = fmt.Errorf("the response breaks off after %d of the %d bytes that the handler declared", r.written, r.length)
	}
	if r.err != nil {
		return nil, r.err
	}
	p := &r.response
	p.sniff()
	p.trailer = trailer(p.header, r.header)
	for _, f := range p.trailer {
		p.size += f.size()
	}
	if p.size > r.limit {
		return nil, ErrTooLarge
	}
	switch {
	case r.head:
		if r.length < 0 && 0 < r.written && r.written <= buffered && !p.flushed {
			p.header = append(p.header, field{"Content-Length", []string{strconv.FormatInt(r.written, 10)}})
		}
		p.body = nil
	case cap(p.body) > len(p.body)+len(p.body)/4:
		p.body = slices.Clone(p.body) // what has grown by doubling is kept for long
	}
	kept := *p // without the recorder, which has the handler's header
	return &kept, nil
}

// buffered is how much of a body the server holds back. If the handler has
// returned before that, the server tells the length.
const buffered = 2048

// trailer returns the fields of the trailer: those that the header has declared,
// and those with http.TrailerPrefix, with their values at the end.
func trailer(declared []field, header http.Header) []field {
	var list []field
	for _, f := range declared {
		if f.name != "Trailer" {
			continue
		}
		for name := range strings.SplitSeq(strings.Join(f.values, ","), ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if values, ok := header[name]; ok {
				list = append(list, field{name, slices.Clone(values)})
			}
		}
	}
	for name, values := range header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			list = append(list, field{name, slices.Clone(values)})
		}
	}
	return list
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// A Response is what a handler has answered. It is not changed any more, so any
// number of goroutines may write it at once.
type Response struct {
	status  int
	head    bool // to a HEAD request
	flushed bool // before the end
	header  []field
	body    []byte
	trailer []field
	size    int64
}

// A field is one entry of a header. A slice of them takes a quarter of the memory
// of a map.
type field struct {
	name   string
	values []string // none: the server is not to add this one
}

func (f field) size() int64 {
	n := len(f.name)
	for _, v := range f.values {
		n += len(v)
	}
	return int64(n)
}

func fields(h http.Header) []field {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	all := make([]string, 0, n)
	list := make([]field, 0, len(h))
	for name, values := range h {
		begin := len(all)
		all = append(all, values...)
		list = append(list, field{name, all[begin:len(all):len(all)]})
	}
	return list
}

// sniff sets the Content-Type as the server does, by what is there when the
// header is sent: at the first flush, or at the end.
func (p *Response) sniff() {
	if p.flushed || len(p.body) == 0 {
		return
	}
	for _, f := range p.header {
		switch f.name {
		case "Content-Type", "Transfer-Encoding":
			return
		case "Content-Encoding":
			if len(f.values) > 0 && f.values[0] != "" {
				return
			}
		}
	}
	f := field{"Content-Type", []string{http.DetectContentType(p.body)}}
	p.header = append(p.header, f)
	p.size += f.size()
}

// Size returns the number of bytes of the response's header, body and trailer.
func (p *Response) Size() int64 { return p.size }

// CopyHeader sets the header of the response in h.
func (p *Response) CopyHeader(h http.Header) {
	for _, f := range p.header {
		if len(f.values) == 0 {
			h[f.name] = nil
			continue
		}
		h[f.name] = slices.Clone(f.values)
	}
}

// Write writes the response, whose header has been copied to w, as the answer to
// a request with the given method. To a HEAD request there is a Content-Length
// and no body; asked for by GET, the response loses it.
func (p *Response) Write(w http.ResponseWriter, method string) {
	if p.head && method != http.MethodHead {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(p.status)
	if p.flushed {
		http.NewResponseController(w).Flush() // where it can't, the length is told
	}
	if len(p.body) > 0 {
		w.Write(p.body)
	}
	for _, f := range p.trailer {
		w.Header()[f.name] = slices.Clone(f.values)
	}
}
