package exchange

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"holdfast/internal/budget"
)

// ErrTooLarge is the error of a response that is over its bound.
var ErrTooLarge = errors.New("the response is too large")

// errEnded is what a write gets that comes when the handler has returned.
var errEnded = errors.New("write to a response that has ended")

// A recorder is the http.ResponseWriter of a handler that runs without a client.
//
// Flush is taken note of, since what is flushed has no Content-Length. An
// informational status is passed over. What needs a connection, that is Hijack
// and the other methods of an http.ResponseController, is not supported, and
// says so to whoever asks.
type recorder struct {
	ctx    context.Context // the request's
	limit  int64
	head   bool // the request was a HEAD
	header http.Header

	mu      sync.Mutex // protects the following fields from a handler that leaves goroutines behind
	scratch *scratch
	hold    *budget.Hold
	paid    int64 // what hold has for the scratch
	ended   bool
	err     error    // why there is no response
	status  int      // 0: not written yet
	typed   bool     // the server would not look for a Content-Type
	trailer []string // declared
	length  int64    // declared; -1: not
	written int64
	flushed bool

	uncounted bool // the server would not tell the length by itself
	overrun   bool // there was more than the declared length
}

// A scratch has a response in the making. The handler never sees it, so it can be
// used again.
type scratch Response

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// reusable is the size up to which a scratch is not given to the garbage
// collector. It is more than most responses have.
const reusable = 64 << 10

// begin makes the recorder ready for a request with the given method. The body and
// the header of the response may have limit bytes together. The handler finds the
// header as preset, which it owns from here on.
func (r *recorder) begin(ctx context.Context, method string, limit int64, preset http.Header, hold *budget.Hold) {
	r.hold, r.paid = hold, included
	r.ctx, r.limit, r.head, r.header, r.length = ctx, limit, method == http.MethodHead, preset, -1
	r.scratch = scratches.Get().(*scratch)
	r.scratch.head = append(r.scratch.head, 0, 0, 0) // for the flags and the status
}

// Header returns the header, as the handler may change it until it is written.
func (r *recorder) Header() http.Header { return r.header }

// CloseNotify implements http.CloseNotifier, since handlers from before contexts ask
// for it, and some panic without. The channel gets a value when the request's context
// ends.
func (r *recorder) CloseNotify() <-chan bool {
	gone := make(chan bool, 1)
	context.AfterFunc(r.ctx, func() { gone <- true })
	return gone
}

// WriteHeader takes the header as it is now for that of the response.
func (r *recorder) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(status)
}

func (r *recorder) writeHeaderLocked(status int) {
	if r.status != 0 || r.ended {
		return
	}
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", status)) // as net/http does
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		return
	}
	r.status = status
	if status == http.StatusSwitchingProtocols {
		r.err = errors.New("the handler switches protocols, which needs a connection")
	}
	for name, values := range r.header {
		switch name {
		case "Content-Type":
			r.typed = true
		case "Content-Encoding":
			r.typed = r.typed || len(values) > 0 && values[0] != ""
		case "Transfer-Encoding":
			coded := len(values) > 0 && values[0] != ""
			r.typed, r.uncounted = r.typed || coded, r.uncounted || coded
		case "Content-Length":
			r.uncounted = true
			if len(values) > 0 {
				n, err := strconv.ParseUint(values[0], 10, 63)
				if err != nil {
					continue // the server leaves it out too
				}
				r.length = int64(n)
			}
		case "Trailer":
			r.trailer, r.uncounted = slices.Clone(values), true
		default:
			r.uncounted = r.uncounted || strings.HasPrefix(name, http.TrailerPrefix)
		}
		r.scratch.head = appendField(r.scratch.head, name, values)
	}
	r.checkSizeLocked()
}

// checkSizeLocked holds the response against its bound.
func (r *recorder) checkSizeLocked() bool {
	switch {
	case r.err != nil:
	case int64(len(r.scratch.head))+int64(len(r.scratch.body)) > r.limit:
		r.err = ErrTooLarge
	default:
		r.payLocked(0)
	}
	return r.err == nil
}

// Write appends to the body. It returns what the server's ResponseWriter would:
// http.ErrBodyNotAllowed for a status without a body, http.ErrContentLength for
// more than the handler has declared; and ErrTooLarge beyond the bound.
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(http.StatusOK) // unless it is written
	switch {
	case r.ended:
		return 0, errEnded
	case r.err != nil:
		return 0, r.err
	case len(p) == 0:
		return 0, nil
	case !bodyAllowed(r.status):
		return 0, http.ErrBodyNotAllowed
	case r.overrun || r.length >= 0 && r.written+int64(len(p)) > r.length:
		r.overrun = true // for good, or there would be a hole in the body
		return 0, http.ErrContentLength
	}
	r.written += int64(len(p))
	s, more := r.scratch, p
	if r.head { // what the server would hold back is all that matters
		more = p[:min(len(p), buffered-len(s.body))]
	}
	if !r.head && int64(len(s.head))+int64(len(s.body))+int64(len(more)) > r.limit {
		r.err = ErrTooLarge
		return 0, r.err
	}
	if !r.growLocked(len(more)) {
		return 0, r.err
	}
	s.body = append(s.body, more...)
	return len(p), nil
}

// Flush takes note that the handler wants a client to see what is there.
func (r *recorder) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(http.StatusOK) // unless it is written
	r.sniffLocked()
	r.flushed = true
}

// sniffLocked sets the Content-Type as the server does, by what is there when the
// header is sent: at the first flush, or at the end.
func (r *recorder) sniffLocked() {
	if r.flushed || r.typed || r.ended || len(r.scratch.body) == 0 {
		return
	}
	r.typed = true
	r.scratch.head = appendField(r.scratch.head, "Content-Type", []string{http.DetectContentType(r.scratch.body)})
}

// buffered is how much of a body the server holds back. If the handler has
// returned before that, the server tells the length.
const buffered = 2048

// end returns the response when the handler has returned, or why there is none.
// From then on the recorder takes nothing any more. The response is valid until
// release.
func (r *recorder) end() (Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return Response{}, r.err
	}
	r.writeHeaderLocked(http.StatusOK) // unless it is written
	if r.err == nil && !r.head && r.length > r.written && bodyAllowed(r.status) {
		r.err = fmt.Errorf("the response breaks off after %d of the %d bytes that the handler declared", r.written, r.length)
	}
	r.sniffLocked()
	r.ended = true
	s := r.scratch
	if r.flushed {
		s.head[0] |= wasFlushed
	}
	if r.head {
		s.head[0] |= wasHead
		if !r.uncounted && 0 < r.written && r.written <= buffered && !r.flushed {
			s.head = appendField(s.head, "Content-Length", []string{strconv.FormatInt(r.written, 10)})
		}
		s.body = s.body[:0]
	}
	binary.LittleEndian.PutUint16(s.head[1:], uint16(r.status))
	s.head = append(s.head, 0)
	r.appendTrailerLocked()
	s.head = append(s.head, 0)
	if !r.checkSizeLocked() {
		return Response{}, r.err
	}
	return Response(*s), nil
}

// keep returns the response so that it outlasts release, if it is too large to be copied
// once more. What it takes is a Shared then, with one holder.
func (r *recorder) keep(p Response) Response {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.scratch
	if s == nil || p.Size() <= Large {
		return p
	}
	if size := int64(len(s.body)); int64(cap(s.body)) > size+size/4 && r.hold.Reserve(size) {
		p.body = append(make([]byte, 0, size), s.body...)
		r.hold.Release(int64(cap(s.body)))
		r.paid += size - int64(cap(s.body))
	}
	p.held = r.hold.Share(r.paid)
	r.scratch, r.ended = nil, true
	return p
}

// release gives back the memory of the response.
func (r *recorder) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.scratch
	r.scratch, r.ended = nil, true
	if s != nil && cap(s.head)+cap(s.body) <= reusable {
		s.head, s.body = s.head[:0], s.body[:0]
		scratches.Put(s)
	}
}

// appendTrailerLocked appends the fields of the trailer, with their values at the
// end: those that the header has declared, and those with http.TrailerPrefix.
func (r *recorder) appendTrailerLocked() {
	for _, names := range r.trailer {
		for name := range strings.SplitSeq(names, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if values, ok := r.header[name]; ok {
				r.scratch.head = appendField(r.scratch.head, name, values)
			}
		}
	}
	for name, values := range r.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			r.scratch.head = appendField(r.scratch.head, name, values)
		}
	}
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// A Response is what a handler has answered, with status and header encoded: there
// may be a great many of them, and in this form they are no work for the garbage
// collector, and take a fifth of the memory of a map. It is only read, so any
// number of goroutines may write it at once.
//
// application/http would do as well, but for a handler that takes out a field that
// the server sets, or writes its name in its own way.
type Response struct {
	head []byte // flags, 2 bytes of status, the fields of the header and of the trailer
	body []byte
	held *budget.Shared // that counts it; nil if it is its maker's
}

// Held returns the Shared that counts the memory of the response. Whoever reads it for
// longer than a moment becomes a holder.
func (p Response) Held() *budget.Shared { return p.held }

// Size returns the number of bytes of Append, less 4.
func (p Response) Size() int { return len(p.head) + len(p.body) }

// Clone returns a copy in memory of its own, which b counts.
func (p Response) Clone(b *budget.Budget) Response {
	if p.head == nil {
		return p
	}
	size := 4 + p.Size()
	return CutHeld(p.Append(make([]byte, 0, size)), b.Share(int64(size)))
}

// Append appends the response to b.
func (p Response) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.head)))
	return append(append(b, p.head...), p.body...)
}

// Cut returns the Response that Append has made b of, without copying it.
func Cut(b []byte) Response { return CutHeld(b, nil) }

// CutHeld is Cut for memory that held counts.
func CutHeld(b []byte, held *budget.Shared) Response {
	if len(b) == 0 {
		return Response{}
	}
	head := 4 + binary.LittleEndian.Uint32(b)
	return Response{b[4:head:head], b[head:len(b):len(b)], held}
}

const (
	wasFlushed = 1 << iota // before its end
	wasHead                // the request was a HEAD
)

// appendField appends a field as its name and its values, each after its length.
// No name has the length 0: that ends a list of fields. The server sends no field
// without a name.
func appendField(b []byte, name string, values []string) []byte {
	if name == "" {
		return b
	}
	b = append(binary.AppendUvarint(b, uint64(len(name))), name...)
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, v := range values {
		b = append(binary.AppendUvarint(b, uint64(len(v))), v...)
	}
	return b
}

// cutFields sets the list of fields at the beginning of b in h, and returns what
// follows it. A field without values stands for one that the server is not to set.
func cutFields(b []byte, h http.Header) []byte {
	number := func() int {
		n, size := binary.Uvarint(b)
		b = b[size:]
		return int(n)
	}
	text := func(n int) string {
		s := string(b[:n])
		b = b[n:]
		return s
	}
	for n := number(); n > 0; n = number() {
		name := text(n)
		var values []string
		for range number() {
			values = append(values, text(number()))
		}
		if h != nil {
			h[name] = values
		}
	}
	return b
}

// Status returns the status of the response.
func (p Response) Status() int { return int(binary.LittleEndian.Uint16(p.head[1:])) }

// CopyHeader sets the header of the response in h. What h says already of how the
// answer depends on the request, and of other origins, stays: the response was made
// for a request that may have come from another origin.
func (p Response) CopyHeader(h http.Header) {
	vary, expose, origin := h["Vary"], h["Access-Control-Expose-Headers"], h["Access-Control-Allow-Origin"]
	cutFields(p.head[3:], h)
	join(h, "Vary", vary)
	join(h, "Access-Control-Expose-Headers", expose)
	if origin != nil {
		h["Access-Control-Allow-Origin"] = origin
	}
}

// join adds to the values of a list those that are not among them.
func join(h http.Header, name string, values []string) {
	for _, v := range values {
		if !slices.Contains(h[name], v) {
			h[name] = append(h[name], v)
		}
	}
}

// Write writes the response, whose header has been copied to w, as the answer to
// a request with the given method. To a HEAD request there may be a Content-Length
// without a body; asked for by GET, it is left out.
func (p Response) Write(w http.ResponseWriter, method string) {
	flags := p.head[0]
	trailer := make(http.Header)
	cutFields(cutFields(p.head[3:], nil), trailer)
	if flags&wasHead != 0 && method != http.MethodHead {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(p.Status())
	if flags&wasFlushed != 0 {
		http.NewResponseController(w).Flush() // where it can't, the length is told
	}
	if len(p.body) > 0 {
		w.Write(p.body)
	}
	for name, values := range trailer {
		w.Header()[name] = values
	}
}
