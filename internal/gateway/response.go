package gateway

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"holdfast/internal/budget"
	"holdfast/internal/problem"
)

// An answer is a response that is there to its end.
type answer struct {
	*http.Response
	body []byte
	hold budget.Hold // that counts the body; whoever has the answer closes it
}

// fetch sends a request and returns the answer, or why there is none. Read to its end
// here, a response that breaks off is told from one that does not. memory counts its
// body.
func (l *lane) fetch(r *http.Request, limit int64, memory *budget.Budget) (*answer, error) {
	r, conn := traced(r)
	response, err := l.roundTrip(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch status := response.StatusCode; {
	case status == http.StatusSwitchingProtocols:
		return nil, unusable("the upstream switches protocols, which nobody has asked for")
	case status < 200 || status > 999:
		return nil, unusable(fmt.Sprintf("the upstream has answered with the status %d; want 200 to 999", status))
	}
	a := &answer{Response: response}
	a.hold.Open(memory, 0)
	if err := a.read(r, limit); err != nil {
		a.hold.Close()
		return nil, err
	}
	if response.Close {
		response.Body.Close()
		conn.settle(r.Context())
	}
	return a, nil
}

// read reads the body of the answer to r.
func (a *answer) read(r *http.Request, limit int64) (err error) {
	length := a.ContentLength
	if r.Method == http.MethodHead || a.StatusCode == http.StatusNotModified {
		length = -1 // that of another response
	}
	a.body, _, err = problem.ReadAll(a.Body, length, limit, &a.hold)
	switch {
	case err != nil:
		return err
	case r.Context().Err() != nil:
		// An upstream that is hung up on may end its response in good form.
		return r.Context().Err()
	case int64(len(a.body)) > limit:
		return tooLarge(limit)
	}
	return nil
}

// ownHop reports whether a field of a response is not for the client: it is about the
// connection to the upstream, or, as Alt-Svc, about the upstream's address.
func ownHop(name string, own map[string]bool) bool {
	p := plain(name)
	return p != "content-length" && hops[p] || own[p] || p == "alt-svc"
}

// write writes the answer to a request with the given method.
func (a *answer) write(w http.ResponseWriter, method string) {
	h, own := w.Header(), listed(a.Header)
	for name, values := range a.Header {
		if !ownHop(name, own) {
			h[name] = append(h[name], values...)
		}
	}
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // it is not for us to guess one
	}
	var names []string
	for name := range a.Trailer {
		if !ownHop(name, own) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		h.Set("Trailer", strings.Join(names, ", "))
		h.Del("Content-Length") // only chunks have a trailer
	}
	w.WriteHeader(a.StatusCode)
	if len(a.body) > 0 {
		w.Write(a.body)
	}
	if a.ContentLength < 0 && method != http.MethodHead {
		http.NewResponseController(w).Flush() // it came without a length, and goes so
	}
	for _, name := range names {
		h[name] = a.Trailer[name]
	}
}

// relocate makes the URLs by which the upstream sends a client elsewhere lead there
// through the gateway. asked is the request as the upstream got it.
func (g *Gateway) relocate(h http.Header, asked *http.Request, prefix string) {
	for _, name := range []string{"Location", "Content-Location"} {
		for i, value := range h[name] {
			h[name][i] = g.below(prefix, value, asked)
		}
	}
}

// below returns where a client finds what the upstream has at ref: below the prefix, if
// ref is a path, or a URL of the upstream's origin or of that which X-Forwarded-* told
// it. A relative path becomes an absolute one, since a kept response is not read where
// its request was sent. The gateway does not lead anywhere else, nor beside the path of
// the upstream's own URL, so such a ref stays as it is. So does what begins with the
// prefix: an upstream that reads X-Forwarded-Prefix writes it itself.
func (g *Gateway) below(prefix, ref string, asked *http.Request) string {
	u, err := url.Parse(ref)
	if err != nil || ref == "" || u.Opaque != "" {
		return ref
	}
	target := asked.URL.ResolveReference(u)
	told := &url.URL{Scheme: asked.Header.Get("X-Forwarded-Proto"), Host: asked.Header.Get("X-Forwarded-Host")}
	public := sameOrigin(target, told)
	if !public && !sameOrigin(target, g.Upstream) {
		return ref
	}
	if under(prefix, u.EscapedPath()) {
		if public || u.Host == "" {
			return ref
		}
		return local(target, target.EscapedPath())
	}
	rest, ok := strings.CutPrefix(target.EscapedPath(), strings.TrimSuffix(g.Upstream.EscapedPath(), "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return ref
	}
	return local(target, prefix+cmp.Or(rest, "/"))
}

// under reports whether path is prefix or below it.
func under(prefix, path string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// local returns a reference to path on the origin of whoever reads it, with the query
// and the fragment of u.
func local(u *url.URL, path string) string {
	if u.RawQuery != "" || u.ForceQuery {
		path += "?" + u.RawQuery
	}
	if u.Fragment != "" {
		path += "#" + u.EscapedFragment()
	}
	return path
}

func sameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string {
		return cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[strings.ToLower(u.Scheme)])
	}
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}
