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
	"holdfast/internal/wrapped"
)

// ErrTooLarge is the error for a response above its limit.
var ErrTooLarge = errors.New("the response is too large")

// errEnded is the error of a write after the handler returned.
var errEnded = errors.New("write to a response that has ended")

// A recorder is the http.ResponseWriter of a handler that runs without a client.
//
// It records a Flush, since a flushed response has no Content-Length. It ignores
// informational statuses. It lacks the methods that need a connection, such as Hijack,
// so that an http.ResponseController returns http.ErrNotSupported for them.
type recorder struct {
	ctx    context.Context // the request's
	limit  int64
	head   bool // the request was a HEAD
	header http.Header

	mu      sync.Mutex // protects the following fields: goroutines of the handler may outlive it
	scratch *scratch
	hold    *budget.Hold
	paid    int64 // what hold has for the scratch
	ended   bool
	err     error    // why there is no response
	status  int      // 0 until the header is written
	typed   bool     // the server would not detect a Content-Type
	trailer []string // the values of Trailer
	length  int64    // the declared Content-Length; -1 if there is none
	written int64
	flushed bool

	uncounted bool // the server would not add a Content-Length
	overrun   bool // the handler wrote more than the declared length

	verdict Verdict
}

// A scratch holds a response that is being recorded. The handler has no reference
// to it, so it can be pooled.
type scratch Response

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// maxReusable is the size above which a scratch is not pooled. Most responses are
// smaller.
const maxReusable = 64 << 10

// begin prepares the recorder for a request with the given method. Header and body
// of the response may have limit bytes in total. preset is the header that the
// handler starts with; begin takes ownership of it. ctx is the request's context.
// hold counts the memory of the response.
func (r *recorder) begin(ctx context.Context, method string, limit int64, preset http.Header, hold *budget.Hold) {
	r.hold, r.paid = hold, included
	r.ctx, r.limit, r.head, r.header, r.length = ctx, limit, method == http.MethodHead, preset, -1
	r.scratch = scratches.Get().(*scratch)
	r.scratch.head = append(r.scratch.head, 0, 0, 0) // room for the flags and the status
}

// Header returns the header map that the handler can change.
func (r *recorder) Header() http.Header { return r.header }

// CloseNotify implements http.CloseNotifier. Handlers that are older than contexts
// ask for it, and some panic without it. The channel gets a value when the request's
// context ends.
func (r *recorder) CloseNotify() <-chan bool {
	gone := make(chan bool, 1)
	context.AfterFunc(r.ctx, func() { gone <- true })
	return gone
}

// WriteHeader records the status and the current header.
func (r *recorder) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(status)
}

// writeHeaderLocked does nothing if the header is written already.
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
		if r.noteFieldLocked(name, values) {
			r.scratch.head = appendField(r.scratch.head, name, values)
		}
	}
	r.checkSizeLocked()
}

// noteFieldLocked notes what a field of the header means for the response, and
// reports whether the server would send it.
func (r *recorder) noteFieldLocked(name string, values []string) bool {
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
				return false
			}
			r.length = int64(n)
		}
	case "Job-Retry": // it is for us, and not for the client
		r.verdict.Never = slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(strings.TrimSpace(v), "never") })
		return false
	case "Retry-After":
		if len(values) > 0 {
			r.verdict.After = values[0]
		}
	case "Trailer":
		r.trailer, r.uncounted = slices.Clone(values), true
	default:
		r.uncounted = r.uncounted || strings.HasPrefix(name, http.TrailerPrefix)
	}
	return true
}

// checkSizeLocked reports whether there is still a response, and sets ErrTooLarge
// if it is above its limit.
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

// Write appends to the body. It returns the errors of the server's ResponseWriter:
// http.ErrBodyNotAllowed for a status without a body, and http.ErrContentLength
// for more than the declared length. Above the limit it returns ErrTooLarge.
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(http.StatusOK)
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
		r.overrun = true // later writes fail too, or the body would have a hole
		return 0, http.ErrContentLength
	}
	r.written += int64(len(p))
	s, more := r.scratch, p
	if r.head { // only what the server would sniff matters
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

// Flush records that the handler flushed its response.
func (r *recorder) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeaderLocked(http.StatusOK)
	r.sniffLocked()
	r.flushed = true
}

// Fail says that there is no response, and why. What was written is void.
func (r *recorder) Fail(why *NoResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.err = why
	}
}

// sniffLocked sets the Content-Type as the server does when it sends the header, at
// the first flush or at the end.
func (r *recorder) sniffLocked() {
	if r.flushed || r.typed || r.ended || len(r.scratch.body) == 0 {
		return
	}
	r.typed = true
	r.scratch.head = appendField(r.scratch.head, "Content-Type", []string{http.DetectContentType(r.scratch.body)})
}

// buffered is how much of a body the server buffers. If the handler returns before
// the buffer is full, the server adds a Content-Length.
const buffered = 2048

// end returns the response after the handler returned, or the reason why there is
// none. Later writes to the recorder fail. The response is valid until release.
func (r *recorder) end() (Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return Response{}, r.err
	}
	r.writeHeaderLocked(http.StatusOK)
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

// A Verdict is what a response says of another attempt.
type Verdict struct {
	Never  bool   // Job-Retry: never
	Failed bool   // what it was asked of could not be reached; see Unreached
	After  string // Retry-After
}

// Verdict returns what the last call's response says of another attempt.
func (x *Exchange) Verdict() Verdict {
	x.recorder.mu.Lock()
	defer x.recorder.mu.Unlock()
	return x.recorder.verdict
}

// Unreached says that the handler that answers with w has not reached what it is for, and
// that nothing has been done for the request. If w records no response, it does nothing.
func Unreached(w http.ResponseWriter) {
	if r, ok := wrapped.Find[*recorder](w); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.verdict.Failed = !r.ended
	}
}

// giveBack is release for a recorder whose Hold goes on.
func (r *recorder) giveBack() {
	r.release()
	r.mu.Lock()
	defer r.mu.Unlock()
	if more := r.paid - included; more > 0 {
		r.hold.Release(more)
		r.paid = included
	}
}

// release returns the memory of the response to the pool.
func (r *recorder) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.scratch
	r.scratch, r.ended = nil, true
	if s != nil && cap(s.head)+cap(s.body) <= maxReusable {
		s.head, s.body = s.head[:0], s.body[:0]
		scratches.Put(s)
	}
}

// appendTrailerLocked appends the fields of the trailer with their final values:
// those declared in the header, and those with http.TrailerPrefix.
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

// A Response is the response of a handler, with status and header encoded. There
// can be very many of them: encoded, they cost the garbage collector nothing, and
// need a fifth of the memory of a map. A Response is immutable, so it is safe for
// concurrent use.
//
// The encoding is not application/http, which cannot express a field that the
// handler removed so that the server does not set it, and which normalizes names.
type Response struct {
	head []byte // flags, 2 bytes of status, the fields of the header and of the trailer
	body []byte
	held *budget.Shared // that counts it; nil if it is its maker's
}

// Held returns the Shared that counts the memory of the response. Whoever reads it for
// longer than a moment becomes a holder.
func (p Response) Held() *budget.Shared { return p.held }

// Size returns the number of bytes that Append appends, minus 4.
func (p Response) Size() int { return len(p.head) + len(p.body) }

// Clone returns a copy that does not share memory with p. b counts it.
func (p Response) Clone(b *budget.Budget) Response {
	if p.head == nil {
		return p
	}
	size := 4 + p.Size()
	return Cut(p.Append(make([]byte, 0, size)), b.Share(int64(size)))
}

// Append appends the encoded response to b.
func (p Response) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.head)))
	return append(append(b, p.head...), p.body...)
}

// Cut returns the Response that Append encoded in b, whose memory held counts. It does
// not copy b.
func Cut(b []byte, held *budget.Shared) Response {
	if len(b) == 0 {
		return Response{}
	}
	head := 4 + binary.LittleEndian.Uint32(b)
	return Response{b[4:head:head], b[head:len(b):len(b)], held}
}

const (
	wasFlushed = 1 << iota // the handler flushed it
	wasHead                // the request was a HEAD
)

// appendField appends the name of a field, the number of its values and the values,
// each string preceded by its length. A length of 0 in place of a name ends a list
// of fields, so appendField skips an empty name. The server would not send it.
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

// cutFields sets the fields at the beginning of b in h, and returns the rest of b.
// A field without values keeps the server from setting that field.
func cutFields(b []byte, h http.Header) []byte {
	number := func() (n int) {
		n, b = cutNumber(b)
		return n
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

// cutNumber returns the number at the beginning of b, and the rest of b. It panics if there is
// none: without that, the end of b would be any number of zeros.
func cutNumber(b []byte) (int, []byte) {
	n, size := binary.Uvarint(b)
	if size <= 0 {
		panic("exchange: no number")
	}
	return int(n), b[size:]
}

// Status returns the status of the response.
func (p Response) Status() int { return int(binary.LittleEndian.Uint16(p.head[1:])) }

// CopyHeader copies the header of the response to h. What h already says about how
// the answer depends on the request, and about other origins, stays: the response
// was made for a request that may have come from another origin.
func (p Response) CopyHeader(h http.Header) { CopyFields(p.head[3:], h) }

// CopyFields copies the fields at the beginning of b, which AppendFields encoded, to h as
// CopyHeader does, and returns the rest of b.
func CopyFields(b []byte, h http.Header) []byte {
	vary, expose, origin := h["Vary"], h["Access-Control-Expose-Headers"], h["Access-Control-Allow-Origin"]
	b = cutFields(b, h)
	join(h, "Vary", vary)
	join(h, "Access-Control-Expose-Headers", expose)
	if origin != nil {
		h["Access-Control-Allow-Origin"] = origin
	}
	return b
}

// AppendFields appends the fields of h. A field without values, which keeps the server
// from setting that field, is one of them.
func AppendFields(b []byte, h http.Header) []byte {
	for name, values := range h {
		b = appendField(b, name, values)
	}
	return append(b, 0)
}

// join adds those values to a list that it does not contain.
func join(h http.Header, name string, values []string) {
	for _, v := range values {
		if !slices.Contains(h[name], v) {
			h[name] = append(h[name], v)
		}
	}
}

// Write writes the response to w as the answer to a request with the given method.
// Call CopyHeader with w's header first. A response to HEAD can have a
// Content-Length without a body; Write leaves it out of the answer to any other
// method.
func (p Response) Write(w http.ResponseWriter, method string) {
	flags := p.head[0]
	trailer := make(http.Header)
	cutFields(cutFields(p.head[3:], nil), trailer)
	if flags&wasHead != 0 && method != http.MethodHead {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(p.Status())
	if flags&wasFlushed != 0 {
		http.NewResponseController(w).Flush() // if w can't flush, the server adds a Content-Length
	}
	if len(p.body) > 0 {
		w.Write(p.body)
	}
	for name, values := range trailer {
		w.Header()[name] = values
	}
}
