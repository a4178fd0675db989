package exchange

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
)

// What a handler can see of a request is there again after a restart.
func TestRequestRoundTrip(t *testing.T) {
	r := httptest.NewRequest("PUT", "http://example.com/a%2Fb/c?x=1&y=%20", nil)
	r.RequestURI = "/prefix/a%2Fb/c?x=1&y=%20"
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	r.Header = http.Header{"X-Many": {"1", "", "3"}, "Content-Type": {"text/plain"}, "X-None": {}}
	r.Trailer = http.Header{"X-Sum": {"abc"}}
	r.RemoteAddr, r.Host, r.Pattern = "192.0.2.1:99", "host.example", "PUT /prefix/"
	r.TLS = &tls.ConnectionState{HandshakeComplete: true}
	r.URL.ForceQuery = true

	var x Exchange
	x.Capture(http.NotFoundHandler(), r, []byte("the body"), 100)
	x.SetHeader("Job-Attempt", "2")
	got, body, err := DecodeRequest(x.AppendRequest(nil))
	if err != nil {
		t.Fatal(err)
	}
	var y Exchange
	y.Restore(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read, _ := io.ReadAll(r.Body)
		if string(read) != "the body" || r.ContentLength != int64(len(read)) {
			t.Errorf("the body is %q, its length %d", read, r.ContentLength)
		}
	}), got, body, 100)
	if err := y.Serve(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Job-Attempt", "2")
	for name, pair := range map[string][2]any{
		"method": {got.Method, r.Method}, "URL": {*got.URL, *r.URL}, "target": {got.RequestURI, r.RequestURI}, "host": {got.Host, r.Host},
		"protocol": {[]any{got.Proto, got.ProtoMajor, got.ProtoMinor}, []any{r.Proto, r.ProtoMajor, r.ProtoMinor}}, "address": {got.RemoteAddr, r.RemoteAddr},
		"trailer": {got.Trailer, r.Trailer}, "pattern": {got.Pattern, r.Pattern}, "TLS": {got.TLS != nil, true},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s is %#v, want %#v", name, pair[0], pair[1])
		}
	}
	if len(got.Header) != len(r.Header) {
		t.Errorf("the header is %v, want %v", got.Header, r.Header)
	}
	for name, values := range r.Header {
		if len(values) != len(got.Header[name]) || len(values) > 0 && !reflect.DeepEqual(values, got.Header[name]) {
			t.Errorf("%s is %q, want %q", name, got.Header[name], values)
		}
	}
}

// A journal that somebody has changed is refused, without a panic.
func FuzzDecodeRequest(f *testing.F) {
	var x Exchange
	x.Capture(http.NotFoundHandler(), httptest.NewRequest("POST", "/a?b", nil), nil, 100)
	f.Add(x.AppendRequest(nil))
	f.Add([]byte{})
	f.Add([]byte("000\x040000\x00\x00\x0200\x0200\x0200\x0200\x0200\x0200\x0200\x0200\x0200\x020\xf2\xf2\xf2\xf2\xf2\xf2\xf2\xf20")) // a field with 2^60 values
	f.Fuzz(func(t *testing.T, b []byte) {
		r, body, err := DecodeRequest(b)
		if err == nil && (r == nil || r.URL == nil || len(body) > len(b)) {
			t.Error("no request and no error")
		}
	})
}
