package gateway

import (
	"net/http"
	"regexp"
	"strings"

	"holdfast/internal/header"
)

// introduce tells the upstream whom the request comes from and where it came in. What a
// trusted proxy says about its own client goes on; anyone else's word was dropped.
func (p *route) introduce(r *http.Request, h http.Header, prefix string) {
	addr, trusted := p.sender(r)
	host, proto := r.Host, "http"
	if r.TLS != nil {
		proto = "https"
	}
	chain := addr
	if trusted {
		said := func(name string) string { return strings.Join(r.Header[name], ", ") }
		if before := said("X-Forwarded-For"); before != "" {
			chain = before + ", " + addr
		}
		if s := said("X-Forwarded-Host"); s != "" {
			host = s
		}
		if s := said("X-Forwarded-Proto"); s != "" {
			proto = s
		}
	}
	if addr != "" {
		h.Set("X-Forwarded-For", chain)
	}
	h.Set("X-Forwarded-Host", host)
	h.Set("X-Forwarded-Proto", proto)
	h.Set("X-Forwarded-Prefix", prefix)
	h.Set("Via", p.via(r))
}

// sender returns the address that the request comes from, and whether it is that of a
// trusted proxy.
func (g *Gateway) sender(r *http.Request) (addr string, trusted bool) {
	ip := header.Peer(r)
	if !ip.IsValid() {
		return "", false
	}
	return ip.String(), header.Within(ip, g.Trusted)
}

// path is what a prefix may look like. It goes into Location, where //host would be
// another server.
var path = regexp.MustCompile(`^(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+$`)

// outerPrefix returns the prefix below which a client sees the upstream: that of the
// route, behind that of a trusted proxy, or if it says none, behind that of the public
// URL.
func (p *route) outerPrefix(r *http.Request) string {
	if _, trusted := p.sender(r); trusted && len(r.Header["X-Forwarded-Prefix"]) == 1 {
		return publicPath(r.Header["X-Forwarded-Prefix"][0]) + p.prefix
	}
	return p.outer + p.prefix
}

// publicPath returns a path as the beginning of a Location, or "" if it is none.
func publicPath(s string) string {
	if s = strings.TrimRight(s, "/"); path.MatchString(s) {
		return s
	}
	return ""
}
