// Package problem answers HTTP requests with problem details (RFC 9457). It
// differs from http.Error in that a program can read the answer.
package problem

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// Write answers with a problem of the type about:blank, so that its title is the
// status phrase. detail says what happened and what was expected; it goes to the
// client and must not tell of internals.
func Write(w http.ResponseWriter, status int, detail string) { write(w, status, detail, 0) }

// Gone answers with 410 that there never will be what was asked for. If cause is
// not 0, it is the status that told so to whoever waited for it.
func Gone(w http.ResponseWriter, detail string, cause int) { write(w, http.StatusGone, detail, cause) }

func write(w http.ResponseWriter, status int, detail string, cause int) {
	body, err := json.Marshal(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Cause  int    `json:"cause_status,omitempty"`
	}{http.StatusText(status), status, detail, cause})
	if err != nil {
		panic(err) // strings and a number can always be marshaled
	}
	body = append(body, '\n')
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(body)
}

// NotAllowed answers a request whose method is none of those in allow.
func NotAllowed(w http.ResponseWriter, r *http.Request, allow string) {
	w.Header().Set("Allow", allow)
	Write(w, http.StatusMethodNotAllowed, r.Method+" is not allowed here; want "+allow)
}

// Unless returns a handler that answers 503 while stopping reports true, and
// otherwise passes the request on to next.
func Unless(stopping func() bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stopping() {
			Write(w, http.StatusServiceUnavailable, "the server is shutting down")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ReadBody returns the body of a request, or answers it and returns false: with
// 413 if the body has more than limit bytes, and with 400 if it breaks off. It
// leaves the request with a body that can be read again, so that handlers behind
// each other need no request of their own.
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, ok bool) {
	tooLarge := r.ContentLength > limit // said before a client that expects 100 Continue sends it
	var err error
	switch held, ok := r.Body.(*Body); {
	case tooLarge:
	case ok && held.read == 0:
		body, tooLarge = held.data, int64(len(held.data)) > limit
	case r.ContentLength >= 0 && r.ContentLength <= small:
		body, err = readShort(r.Body, int(r.ContentLength), limit)
		tooLarge = int64(len(body)) > limit
	default:
		body, err = io.ReadAll(http.MaxBytesReader(unwrap(w), r.Body, limit))
		_, tooLarge = errors.AsType[*http.MaxBytesError](err)
	}
	switch {
	case tooLarge:
		Write(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is too large; want at most %d bytes", limit))
	case err != nil:
		Write(w, http.StatusBadRequest, "the body could not be read to its end")
	default:
		r.Body = NewBody(body)
		return body, true
	}
	return nil, false
}

// Unmarshal reads body as one JSON object and stores the value of each name where
// fields says. Names that are not in fields, in other capitals or given twice, null,
// and whatever follows the object are errors: json.Unmarshal takes them, and nobody
// means them. The error says what is wrong.
func Unmarshal(body []byte, fields map[string]any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return errors.New("the body is empty")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if open, err := dec.Token(); err != nil {
		return errors.New("the body is not JSON")
	} else if open != json.Delim('{') {
		return errors.New("the body is not a JSON object")
	}
	given := make(map[string]bool)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return errors.New("the body is not JSON")
		}
		name := token.(string)
		field, known := fields[name]
		switch {
		case !known:
			return fmt.Errorf("%.40q is not known", name)
		case given[name]:
			return fmt.Errorf("%s is given twice", name)
		}
		given[name] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return errors.New("the body is not JSON")
		}
		if string(value) == "null" || json.Unmarshal(value, field) != nil {
			return fmt.Errorf("%s cannot be %.40s", name, value)
		}
	}
	if _, err := dec.Token(); err != nil {
		return errors.New("the body is not JSON")
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the object")
	}
	return nil
}

// small is the length up to which a request's word for its length is taken. To
// allocate more before it has come would let clients that send nothing hold
// memory.
const small = 4 << 10

// readShort reads to the end, or beyond limit: before the end the server does not
// notice a client that leaves. The length is what the client has said. It need not
// be that of a body which somebody has put in the place of the client's.
func readShort(from io.Reader, length int, limit int64) ([]byte, error) {
	data := make([]byte, 0, length+1) // one more, to see the end
	for int64(len(data)) <= limit {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := from.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if err == io.EOF {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return data, nil
}

// A Body is the body of a request in memory.
type Body struct {
	data []byte
	read int
}

// NewBody returns a Body that has data, which must not be changed any more.
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

// unwrap returns the server's own ResponseWriter. To no other does a
// MaxBytesReader tell that the connection is to be closed, so that the server
// gives a client that is still sending the time to read its answer.
func unwrap(w http.ResponseWriter) http.ResponseWriter {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = outer.Unwrap()
	}
}

// Mux returns a handler that serves with mux and answers with a problem where
// mux has no route: 405 with Allow if the path has one for another method, else
// 404.
func Mux(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" && !asked(r.URL.Path, pattern) {
			h, pattern = http.NotFoundHandler(), ""
		}
		switch {
		case strings.Contains(pattern, "{"): // only mux itself can set path values
			mux.ServeHTTP(w, r)
			return
		case pattern != "":
			r.Pattern = pattern
			h.ServeHTTP(w, r)
			return
		}
		// What mux would say is asked for its status and its Allow header.
		said := NewDiscard()
		h.ServeHTTP(said, r)
		if said.Status == http.StatusMethodNotAllowed {
			NotAllowed(w, r, said.Header().Get("Allow"))
			return
		}
		Write(w, http.StatusNotFound, "nothing is served at this path; GET / tells what is")
	})
}

// asked reports whether path is what pattern stands for. For a path that only could
// be made so, mux would redirect, and a POST would come back as something else.
func asked(asked, pattern string) bool {
	_, route, _ := strings.Cut(pattern, "/")
	fixed, _, _ := strings.Cut(route, "{")
	clean := path.Clean(asked)
	return strings.HasPrefix(asked, "/"+fixed) && (asked == clean || asked == clean+"/")
}

// A Discard is a ResponseWriter that keeps the status and the header alone.
type Discard struct {
	Status int // 200 until another one is written
	header http.Header
}

// NewDiscard returns a Discard to which nothing was written.
func NewDiscard() *Discard {
	return &Discard{Status: http.StatusOK, header: make(http.Header)}
}

func (d *Discard) Header() http.Header         { return d.header }
func (d *Discard) WriteHeader(status int)      { d.Status = status }
func (d *Discard) Write(p []byte) (int, error) { return len(p), nil }
