package problem

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"holdfast/internal/budget"
	"holdfast/internal/wrapped"
)

// ReadBody returns the body of a request. It answers 413 if the body has more than limit
// bytes, 503 if the budget of w has no memory for it, and 400 if it cannot be read
// completely; ok is then false. ReadBody leaves the request with a body that can be read
// again, so that wrapped handlers can call it too.
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, ok bool) {
	return ReadBodyInto(budget.From(w), w, r, limit)
}

// ReadBodyInto is ReadBody with a Hold of the caller's, which counts the body until
// somebody else gets it.
func ReadBodyInto(hold *budget.Hold, w http.ResponseWriter, r *http.Request, limit int64) (body []byte, ok bool) {
	if r.ContentLength > limit { // refused before a client that waits for 100 Continue sends it
		if r.Close {
			Linger(w)
		}
		tooLarge(w, limit)
		return nil, false
	}
	if held, ok := r.Body.(*Body); ok && held.read == 0 {
		if int64(len(held.data)) > limit {
			tooLarge(w, limit)
			return nil, false
		}
		return held.data, true
	}
	from := r.Body
	if r.ContentLength < 0 || r.ContentLength > small {
		// Behind a body that is too large the server's own writer, and no other, closes the
		// connection, and gives a client that is still sending time to read its answer.
		from = http.MaxBytesReader(wrapped.Innermost(w), r.Body, limit)
	}
	body, paid, err := ReadAll(from, r.ContentLength, limit, hold)
	_, cut := errors.AsType[*http.MaxBytesError](err)
	switch {
	case cut || int64(len(body)) > limit:
		tooLarge(w, limit)
	case err == ErrNoMemory:
		if r.Close {
			Linger(w)
		}
		NoMemory(w, hold.Budget(), "no memory is left for the body")
	case err != nil:
		Write(w, http.StatusBadRequest, "the body could not be read completely")
	default:
		r.Body = &Body{data: body, hold: hold, paid: paid}
		return body, true
	}
	hold.Release(paid)
	return nil, false
}

func tooLarge(w http.ResponseWriter, limit int64) {
	Write(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is too large; want at most %d bytes", limit))
}

// ErrNoMemory is the error of whatever is larger than the memory that is left.
var ErrNoMemory = errors.New("no memory is left")

// NoMemory answers 503, and counts that in the budget.
func NoMemory(w http.ResponseWriter, b *budget.Budget, detail string) {
	b.Refuse()
	Retry(w, http.StatusServiceUnavailable, detail+"; try again later", b.Again)
}

// small is the greatest Content-Length for which a buffer is allocated at once. If
// longer bodies were trusted, clients that send nothing could hold memory.
const small = 4 << 10

// ReadAll reads a body to its end, or beyond limit. length is how long it is said to be,
// or -1. paid is what it takes of hold, also after an error; without memory for it the
// error is ErrNoMemory.
func ReadAll(from io.Reader, length, limit int64, hold *budget.Hold) (data []byte, paid int64, err error) {
	length = min(length, limit) // more is too large, and not needed
	if length > small {         // a shorter one is in what each request takes
		paid = length + 1
		if !hold.Reserve(paid) { // said before it is sent, too
			return nil, 0, ErrNoMemory
		}
	}
	return fill(from, length, limit, hold, paid)
}

// fill reads to the end, or beyond limit: before the end the server does not notice a
// client that leaves. The length is what the client has said, -1 if nothing; it need not
// be that of a body which somebody has put in the place of the client's. paid is what
// hold has for it, and fill returns what it has then.
func fill(from io.Reader, length, limit int64, hold *budget.Hold, paid int64) ([]byte, int64, error) {
	size := length + 1 // one more, to see the end
	if length < 0 || length > small {
		size = 512
	}
	data := make([]byte, 0, size)
	for int64(len(data)) <= limit {
		if len(data) == cap(data) {
			next := int64(len(data)) * 2
			if int64(len(data)) <= length {
				next = length + 1
			}
			// Both are there until the one has been copied.
			if next > small && next > paid {
				if !hold.Reserve(next) {
					return nil, paid, ErrNoMemory
				}
				hold.Release(paid)
				paid = next
			}
			data = append(make([]byte, 0, next), data...)
		}
		n, err := from.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err == io.EOF {
			return data, paid, nil
		}
		if err != nil {
			return nil, paid, err
		}
	}
	return data, paid, nil
}

// A Body is a request body in memory.
type Body struct {
	data []byte
	read int
	hold *budget.Hold // that counts it
	paid int64        // there
}

// NewBody returns a Body that reads data. The caller must not modify data afterward.
func NewBody(data []byte) *Body { return &Body{data: data} }

func (b *Body) Read(p []byte) (int, error) {
	if b.read == len(b.data) {
		return 0, io.EOF
	}
	n := copy(p, b.data[b.read:])
	b.read += n
	return n, nil
}

func (b *Body) Close() error { return nil }

// Give hands what the body of a request takes to another Hold, whose owner has the bytes.
func Give(r *http.Request, to *budget.Hold) {
	if b, ok := r.Body.(*Body); ok {
		b.hold.Move(b.paid, to)
		b.paid = 0
	}
}

// Forget lets go of the body of a request that nobody will read again.
func Forget(r *http.Request) {
	if b, ok := r.Body.(*Body); ok {
		b.hold.Release(b.paid)
		b.data, b.read, b.paid = nil, 0, 0
	}
}

// Linger lets the server end the connection a moment after the answer. Where it is to
// end anyway, net/http does not wait for a client that is still sending: that meets with
// a reset, which takes the answer with it. nginx, which sends each request on a
// connection of its own, then says 502.
func Linger(w http.ResponseWriter) {
	// The server does so behind a body that is too large, and behind nothing else.
	http.MaxBytesReader(wrapped.Innermost(w), io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}
