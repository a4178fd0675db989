package exchange

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What stands in the header of the answer already stays as far as it says who may
// read the answer, and by what it varies: an outer handler has set it for this request.
func TestCopyHeaderKeeps(t *testing.T) {
	var x Exchange
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept")
		w.Header().Set("Access-Control-Allow-Origin", "https://then.example")
		w.Header().Set("Access-Control-Expose-Headers", "X-Own")
		w.Header().Set("X-Own", "1")
	})
	x.Capture(h, httptest.NewRequest("POST", "/", nil), nil, ample)
	if err := x.Serve(t.Context()); err != nil {
		t.Fatal(err)
	}
	into := http.Header{"Vary": {"Origin", "Prefer"}, "X-Own": {"0"}}
	x.Response().CopyHeader(into)
	for name, want := range map[string]string{"Vary": "Prefer|Accept|Origin", "X-Own": "1", "Access-Control-Allow-Origin": "https://then.example", "Access-Control-Expose-Headers": "X-Own"} {
		if got := strings.Join(into[name], "|"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	into = http.Header{"Access-Control-Allow-Origin": {"https://now.example"}, "Access-Control-Expose-Headers": {"Location"}}
	x.Response().CopyHeader(into)
	for name, want := range map[string]string{"Vary": "Prefer|Accept", "Access-Control-Allow-Origin": "https://now.example", "Access-Control-Expose-Headers": "X-Own|Location"} {
		if got := strings.Join(into[name], "|"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// Handlers from before contexts ask for a CloseNotifier, and panic if there is none.
func TestCloseNotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gone := w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
			select {
			case <-gone:
				t.Error("gone before it has left")
			case <-time.After(time.Second):
			}
			leave()
			if !<-gone {
				t.Error("want a true")
			}
		})
		var x Exchange
		x.Capture(h, httptest.NewRequest("POST", "/", nil), nil, ample)
		if err := x.Serve(ctx); err != nil {
			t.Fatal(err)
		}
		x.Release()
	})
}

func TestCut(t *testing.T) {
	if p := Cut(nil, nil); p.Size() != 0 {
		t.Errorf("Cut of nothing has %d bytes", p.Size())
	}
	x, err := serve(set(write("body"), "X-A", "b"), "GET", ample)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Release()
	before := []byte("before")
	b := x.Response().Append(before)
	if !bytes.HasPrefix(b, before) || len(b) != len(before)+4+x.Response().Size() {
		t.Fatalf("%q", b)
	}
	p := Cut(b[len(before):], nil)
	if &p.body[0] != &b[len(b)-len("body")] {
		t.Error("Cut copies the body")
	}
	if cap(p.head) != len(p.head) || cap(p.body) != len(p.body) {
		t.Error("an append to one part would overwrite the next")
	}
}

// A script describes what a handler does. Any bytes are a valid script.
type script []byte

func (p *script) byte() byte {
	if len(*p) == 0 {
		return 0
	}
	c := (*p)[0]
	*p = (*p)[1:]
	return c
}

func (p *script) text() string {
	n := min(int(p.byte()), len(*p))
	s := string((*p)[:n])
	*p = (*p)[n:]
	return s
}

func (p *script) values() []string {
	var values []string
	for range p.byte() % 4 {
		values = append(values, p.text())
	}
	return values
}

// run applies the script to w.
func (p script) run(w http.ResponseWriter, status int) {
	for len(p) > 0 {
		switch p.byte() % 8 {
		case 0:
			w.Header()[p.text()] = p.values()
		case 1:
			w.Header()[http.CanonicalHeaderKey(p.text())] = p.values()
		case 2:
			w.Header()[http.TrailerPrefix+p.text()] = p.values()
		case 3:
			w.Header()["Trailer"] = p.values()
		case 4:
			w.Header()[[]string{"Content-Type", "Content-Encoding", "Date", "Vary"}[p.byte()%4]] = p.values()
		case 5:
			w.Write([]byte(p.text()))
		case 6:
			w.WriteHeader(status)
		case 7:
			w.(http.Flusher).Flush()
		}
	}
}

// A model is a plain ResponseWriter that records the expected result of a script. It
// follows the documentation of the server.
type model struct {
	header, sent http.Header
	status       int
	body         []byte
	flushed      bool
}

func (w *model) Header() http.Header { return w.header }

func (w *model) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *model) Write(p []byte) (int, error) {
	w.WriteHeader(200)
	if w.status != 204 && w.status != 304 {
		w.body = append(w.body, p...)
	}
	return len(p), nil
}

func (w *model) Flush() {
	w.WriteHeader(200)
	w.sniff()
	w.flushed = true
}

func (w *model) sniff() {
	_, typed := w.sent["Content-Type"]
	if !w.flushed && !typed && w.sent.Get("Content-Encoding") == "" && w.sent.Get("Transfer-Encoding") == "" && len(w.body) > 0 {
		w.sent["Content-Type"] = []string{http.DetectContentType(w.body)}
	}
}

// trailer returns the fields that are sent after the body.
func (w *model) trailer() http.Header {
	trailer := make(http.Header)
	for _, line := range w.sent["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if values, ok := w.header[name]; ok && name != "" {
				trailer[name] = values
			}
		}
	}
	for name, values := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			trailer[name] = values
		}
	}
	return trailer
}

func FuzzResponse(f *testing.F) {
	for _, seed := range []string{
		"",
		"\x05\x04text",
		"\x00\x03x-a\x02\x01b\x00\x05\x04text",
		"\x01\x03x-a\x01\x01b\x06\x01\x03x-a\x01\x01c\x05\x06<html>",
		"\x07\x05\x06<html>",
		"\x05\x06<html>\x07\x05\x02\x00\x01",
		"\x03\x01\x03X-A\x05\x01x\x01\x03X-A\x02\x011\x012",
		"\x03\x02\x08X-A, x-b\x00\x05\x01x\x01\x03X-B\x01\x01y\x02\x03X-C\x01\x01z",
		"\x02\x03X-A\x01\x01b\x05\x01x\x07",
		"\x04\x00\x00\x05\x06<html>", "\x04\x01\x01\x04gzip\x05\x02\x1f\x8b", "\x04\x02\x00\x05\x01x", "\x04\x03\x00",
		"\x00\x00\x01\x01x\x05\x01y", // a field without a name
		"\x00\x11Transfer-Encoding\x01\x08identity\x05\x01x",
	} {
		f.Add(uint16(200), false, []byte(seed))
		f.Add(uint16(204), false, []byte(seed))
		f.Add(uint16(999), true, []byte(seed))
		f.Add(uint16(103), true, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, status uint16, head bool, data []byte) {
		code := 100 + int(status)%900
		if code == http.StatusSwitchingProtocols || bytes.Contains(bytes.ToLower(data), []byte("content-length")) {
			return // covered by other tests
		}
		method := "GET"
		if head {
			method = "HEAD"
		}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { script(data).run(w, code) })
		x, err := serve(h, method, ample)
		if err != nil {
			t.Fatal(err)
		}
		response := x.Response()
		b := response.Append(nil)
		if len(b) != 4+response.Size() {
			t.Errorf("size %d, %d bytes", response.Size(), len(b))
		}
		response = Cut(b, nil)
		x.Release()
		if again := response.Append(nil); !bytes.Equal(again, b) {
			t.Errorf("%q becomes %q", b, again)
		}

		want := &model{header: http.Header{"Vary": {"Prefer"}}}
		script(data).run(want, code)
		want.WriteHeader(200)
		if _, ok := want.sent["Transfer-Encoding"]; ok && want.sent.Get("Transfer-Encoding") == "" {
			return // servers and recorders may differ in sniffing if it is empty
		}
		want.sniff()
		rec := httptest.NewRecorder()
		response.CopyHeader(rec.Header())
		response.Write(rec, method)
		res := rec.Result()
		if head {
			want.body = nil
			delete(res.Header, "Content-Length") // tested against the server
		}
		if rec.Code != want.status || !bytes.Equal(rec.Body.Bytes(), want.body) || rec.Flushed != want.flushed {
			t.Errorf("%d %q, flushed %v; want %d %q, %v", rec.Code, rec.Body, rec.Flushed, want.status, want.body, want.flushed)
		}
		delete(want.sent, "") // no server sends it
		if !maps.EqualFunc(res.Header, want.sent, slices.Equal) {
			t.Errorf("header %q, want %q", res.Header, want.sent)
		}
		for name, values := range want.trailer() {
			if got := rec.Header()[name]; !slices.Equal(got, values) {
				t.Errorf("trailer %q: %q, want %q", name, got, values)
			}
		}
		// Nothing else is set after the body.
		for name, values := range rec.Header() {
			if _, ok := want.trailer()[name]; !ok && !slices.Equal(values, want.sent[name]) && name != "Content-Length" {
				t.Errorf("%q is %q after the body, and was %q before", name, values, want.sent[name])
			}
		}
	})
}
