package exchange

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

type captureKey struct{}

// captured returns a request as a handler gets it from a server, with everything
// that a mux and a middleware add.
func captured() *http.Request {
	r := httptest.NewRequest("POST", "https://user:secret@example.test/items/7?a=b", strings.NewReader("consumed"))
	r.Header = http.Header{"X-A": {"1", "2"}, "Cookie": {"c=d"}}
	r.RemoteAddr, r.Pattern, r.TransferEncoding, r.ContentLength = "192.0.2.1:5", "POST /items/{id}", []string{"chunked"}, -1
	r.TLS = &tls.ConnectionState{ServerName: "example.test"}
	r.SetPathValue("id", "7")
	r.Form, r.PostForm = url.Values{"a": {"b"}}, url.Values{"p": {"q"}}
	r.Trailer = http.Header{"X-T": {"t"}}
	return r
}

func TestCapture(t *testing.T) {
	for _, body := range []string{"", "body", strings.Repeat("x", 100_000)} {
		original := captured()
		var seen *http.Request
		var read, rest []byte
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = r
			var err error
			if read, err = io.ReadAll(r.Body); err != nil {
				t.Error(err)
			}
			rest, _ = io.ReadAll(r.Body)
			if err := r.Body.Close(); err != nil {
				t.Error(err)
			}
		})
		ctx := context.WithValue(t.Context(), captureKey{}, "value")
		var x Exchange
		x.Capture(h, original, []byte(body), ample)
		if seen != nil {
			t.Fatal("Capture called the handler")
		}
		if err := x.Serve(ctx); err != nil {
			t.Fatal(err)
		}
		x.Release()
		if string(read) != body || len(rest) > 0 {
			t.Errorf("body of %d bytes, then %q; want %d", len(read), rest, len(body))
		}
		if seen.Context() != ctx {
			t.Error("the copy has another context")
		}
		if seen == original || seen.URL == original.URL {
			t.Error("the handler got the original")
		}
		want := captured()
		for _, test := range []struct {
			name      string
			got, want any
		}{
			{"Method", seen.Method, want.Method},
			{"URL", seen.URL, want.URL},
			{"Header", seen.Header, want.Header},
			{"Host", seen.Host, want.Host},
			{"RequestURI", seen.RequestURI, want.RequestURI},
			{"RemoteAddr", seen.RemoteAddr, want.RemoteAddr},
			{"Proto", fmt.Sprint(seen.Proto, seen.ProtoMajor, seen.ProtoMinor), fmt.Sprint(want.Proto, want.ProtoMajor, want.ProtoMinor)},
			{"ContentLength", seen.ContentLength, want.ContentLength}, // as the client sent it
			{"TransferEncoding", seen.TransferEncoding, want.TransferEncoding},
			{"TLS", seen.TLS, want.TLS},
			{"Pattern", seen.Pattern, want.Pattern},
			{"path value", seen.PathValue("id"), "7"},
			{"Form", seen.Form, want.Form},
			{"PostForm", seen.PostForm, want.PostForm},
			{"Trailer", seen.Trailer, want.Trailer},
		} {
			if !reflect.DeepEqual(test.got, test.want) {
				t.Errorf("%s: %v, want %v", test.name, test.got, test.want)
			}
		}
		// The original is unchanged, except that its body was read.
		if original.ContentLength != -1 || !slices.Equal(original.TransferEncoding, []string{"chunked"}) || !reflect.DeepEqual(original.Header, want.Header) || original.Context() == ctx {
			t.Errorf("the original was changed: %+v", original)
		}
		if b, _ := io.ReadAll(original.Body); string(b) != "consumed" {
			t.Errorf("the original's body was read up to %q", b)
		}
	}
}

// The server and the handler each change their own request. The race detector would
// report anything they share.
func TestCaptureSharesNothing(t *testing.T) {
	for range 20 {
		original := captured()
		begin := make(chan struct{})
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-begin
			if r.Header.Get("X-A") != "1" || r.Header.Get("X-New") != "" || r.URL.Path != "/items/7" || r.URL.RawQuery != "a=b" || r.Host != "example.test" || r.Method != "POST" || r.Pattern == "" {
				t.Errorf("the handler sees changes to the original: %+v", r)
			}
			r.Header.Set("X-A", "handler")
			r.Header.Set("X-Handler", "h")
			r.URL.Path = "/handler"
			r.Form, r.Host = nil, ""
		})
		var x Exchange
		x.Capture(h, original, []byte("body"), ample)
		var wg sync.WaitGroup
		wg.Go(func() {
			<-begin
			original.Header.Set("X-A", "changed")
			original.Header.Set("X-New", "new")
			delete(original.Header, "Cookie")
			original.URL.Path, original.URL.RawQuery = "/changed", ""
			original.Host, original.Method, original.Pattern, original.Form, original.Body = "changed", "PUT", "", nil, nil
		})
		wg.Go(func() { x.Serve(t.Context()) })
		close(begin)
		wg.Wait()
		if original.Header.Get("X-A") != "changed" || original.Header.Get("X-Handler") != "" || original.URL.Path != "/changed" {
			t.Errorf("the handler changed the original: %+v", original)
		}
		x.Release()
	}
}

// The request comes over a connection and through a mux. StripPrefix and the like
// work on the copy.
func TestCaptureFromMux(t *testing.T) {
	inner := http.NewServeMux()
	inner.HandleFunc("PUT /{name}/{rest...}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s|%s|%s|%s|%s", r.PathValue("name"), r.PathValue("rest"), r.PathValue("outer"), r.Pattern, r.URL.Path)
	})
	echoed := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s|%s|%v|%v", r.PathValue("outer"), r.Pattern, r.RemoteAddr != "", r.TLS)
	})
	mux := http.NewServeMux()
	mux.Handle("/strip/{outer}/", recorded(http.StripPrefix("/strip/x", inner)))
	mux.Handle("/echo/{outer}", recorded(echoed))
	addr, _ := start(t, mux)
	for target, want := range map[string]string{
		"/strip/x/a/b/c": "a|b/c||PUT /{name}/{rest...}|/a/b/c",
		"/echo/y":        "y|/echo/{outer}|true|<nil>",
	} {
		answer := raw(t, addr, "HTTP/1.1", call{method: "PUT", target: target, body: "x"})
		if !strings.HasSuffix(answer, "\n"+want) {
			t.Errorf("%s gives %s, want %s at its end", target, answer, want)
		}
	}
}

// The captured bytes don't change, and each exchange reads them independently.
func TestCaptureBody(t *testing.T) {
	body := []byte("shared by two")
	var all []string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		all = append(all, string(b))
		b[0] = 'X' // must change only the reader's copy
	})
	for range 2 {
		r := httptest.NewRequest("POST", "/", nil)
		var x Exchange
		x.Capture(h, r, body, ample)
		x.Serve(t.Context())
		x.Release()
	}
	if !slices.Equal(all, []string{"shared by two", "shared by two"}) || !bytes.Equal(body, []byte("shared by two")) {
		t.Errorf("%q, then %q", all, body)
	}
}
