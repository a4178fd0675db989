// Package problem answers HTTP requests with problem details (RFC 9457). Unlike
// the text that http.Error writes, a program can parse them.
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

// Write answers with a problem of type about:blank, whose title is the status
// phrase. detail says what happened and what was expected. The client sees it, so
// it must not reveal internals.
func Write(w http.ResponseWriter, status int, detail string) { write(w, status, detail, 0) }

// Retry is Write that, with 429 and 503, says after how many seconds it makes sense to
// try again.
func Retry(w http.ResponseWriter, status int, detail string, after func() int) {
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", strconv.Itoa(after()))
	}
	Write(w, status, detail)
}

// Gone answers with 410: what was asked for will never exist. If cause is not 0, it
// is the status that answered the request that waited for it.
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

// NotAllowed answers a request whose method is not in allow.
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

// Unmarshal parses body as one JSON object and stores the value of each name in the
// variable that fields points to. Unlike json.Unmarshal, it rejects names that are
// unknown, differ in case or occur twice, null, and data after the object: all of
// these are mistakes of the client. The error says what is wrong.
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
		if err := decodeField(dec, name, field); err != nil {
			return err
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

func decodeField(dec *json.Decoder, name string, field any) error {
	var value json.RawMessage
	if err := dec.Decode(&value); err != nil {
		return errors.New("the body is not JSON")
	}
	if string(value) == "null" || json.Unmarshal(value, field) != nil {
		return fmt.Errorf("%s cannot be %.40s", name, value)
	}
	return nil
}

// Mux returns a handler that serves with mux, and answers with a problem if mux has
// no route: 405 with Allow if there is a route for another method, else 404.
func Mux(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" && !matches(r.URL.Path, pattern) {
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
		// mux answers into a Discard, for the status and the Allow header.
		d := NewDiscard()
		h.ServeHTTP(d, r)
		if d.Status == http.StatusMethodNotAllowed {
			NotAllowed(w, r, d.Header().Get("Allow"))
			return
		}
		Write(w, http.StatusNotFound, "nothing is served at this path; GET / tells what is")
	})
}

// matches reports whether urlPath itself matches pattern. If only its cleaned form
// does, mux would redirect, and clients repeat a redirected POST as a GET.
func matches(urlPath, pattern string) bool {
	_, route, _ := strings.Cut(pattern, "/")
	fixed, _, _ := strings.Cut(route, "{")
	clean := path.Clean(urlPath)
	return strings.HasPrefix(urlPath, "/"+fixed) && (urlPath == clean || urlPath == clean+"/")
}

// A Discard is a ResponseWriter that keeps the status and the header, and discards
// the body.
type Discard struct {
	Status int // 200 until WriteHeader is called
	header http.Header
}

// NewDiscard returns an empty Discard.
func NewDiscard() *Discard {
	return &Discard{Status: http.StatusOK, header: make(http.Header)}
}

func (d *Discard) Header() http.Header         { return d.header }
func (d *Discard) WriteHeader(status int)      { d.Status = status }
func (d *Discard) Write(p []byte) (int, error) { return len(p), nil }
