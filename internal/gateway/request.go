package gateway

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
)

// ours are the headers by which an upstream learns whom a request comes from. What a
// client says in them it could have made up. X-Forwarded-* is in too, and Proxy, which a
// CGI program takes for the address of its proxy.
var ours = map[string]bool{"forwarded": true, "x-forwarded": true, "x-real-ip": true, "proxy": true}

// hops are the headers that are for the next hop alone (RFC 9110, 7.6.1), besides those
// that Connection lists, and those that the gateway has dealt with: it has read the
// body, so it expects nothing, and says itself how long it is.
var hops = map[string]bool{
	"connection": true, "proxy-connection": true, "keep-alive": true, "te": true,
	"transfer-encoding": true, "trailer": true, "upgrade": true, "http2-settings": true,
	"proxy-authorization": true, "proxy-authenticate": true, "proxy-authentication-info": true,
	"expect": true, "content-length": true, "host": true,
}

// plain returns a header's name as a CGI program sees it, to which _ and - are the same.
func plain(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// listed adds to set the headers that Connection lists.
func listed(h http.Header) map[string]bool {
	set := make(map[string]bool)
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			set[plain(strings.Trim(name, " \t"))] = true
		}
	}
	return set
}

// passable returns the fields of a request's header or trailer that are for the
// upstream. A field is known by its plain name, so X_Forwarded_For is no way in; and
// where both spellings are there, the one with _ is dropped, since the other may be what
// a proxy has set.
func passable(fields http.Header, own map[string]bool) http.Header {
	out := make(http.Header, len(fields)+4)
	for name, values := range fields {
		p := plain(name)
		switch {
		case hops[p], own[p], ours[p], strings.HasPrefix(p, "x-forwarded-"):
		case strings.Contains(name, "_") && fields[http.CanonicalHeaderKey(p)] != nil:
		case values != nil: // a trailer that was declared and has not come has none
			out[name] = values
		}
	}
	return out
}

// outgoing returns the request for the upstream, with body as its body.
func (p *route) outgoing(r *http.Request, body []byte, prefix string) *http.Request {
	own := listed(r.Header)
	target := *r.URL
	out := &http.Request{Method: r.Method, URL: &target, Header: passable(r.Header, own)}
	(&httputil.ProxyRequest{In: r, Out: out}).SetURL(p.Upstream)
	p.introduce(r, out.Header, prefix)

	for _, line := range r.Header["Te"] {
		for coding := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.Trim(coding, " \t"), "trailers") {
				out.Header.Set("Te", "trailers") // of the codings the Transport knows none
			}
		}
	}
	if hops, limited := maxForwards(r); limited && r.Method == http.MethodOptions {
		out.Header.Set("Max-Forwards", strconv.Itoa(hops-1))
	}
	if out.Header["User-Agent"] == nil {
		out.Header["User-Agent"] = []string{""} // not the Transport's own
	}

	// Of a body that can be had again the Transport sends a request again where that is
	// safe: where the upstream has not seen it, or says that it has not begun.
	out.ContentLength = int64(len(body))
	if trailer := passable(r.Trailer, own); len(trailer) > 0 {
		out.Trailer, out.ContentLength = trailer, -1 // only chunks have a trailer
	}
	if out.ContentLength != 0 {
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		out.Body, _ = out.GetBody()
	}
	return out
}

// maxForwards returns how often the request may be passed on, if it says so.
func maxForwards(r *http.Request) (hops int, limited bool) {
	lines := r.Header["Max-Forwards"]
	if len(lines) != 1 {
		return 0, false
	}
	n, err := strconv.ParseUint(lines[0], 10, 31)
	return int(n), err == nil
}

// via returns the Via header with the gateway at its end.
func (g *Gateway) via(r *http.Request) string {
	own := fmt.Sprintf("%d.%d %s", r.ProtoMajor, r.ProtoMinor, g.name)
	return strings.Join(append(r.Header["Via"][:len(r.Header["Via"]):len(r.Header["Via"])], own), ", ")
}

// passedBy reports whether the request was here before.
func (g *Gateway) passedBy(r *http.Request) bool {
	for _, line := range r.Header["Via"] {
		for hop := range strings.SplitSeq(line, ",") {
			if words := strings.Fields(hop); len(words) > 1 && words[1] == g.name {
				return true
			}
		}
	}
	return false
}
