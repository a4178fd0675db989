package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"holdfast/internal/problem"
)

// guard lets through what the operator asks, and nothing that another page in the
// operator's browser does. Being on the loopback address is not enough for that:
// every page that the operator has open can send requests there.
func (h *Handler) guard(next http.Handler) http.Handler {
	token := sha256.Sum256([]byte(h.config.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // a stranger is not to keep one of the few
		switch {
		case !h.ownHost(r.Host):
			// A page whose name has been made to lead here is of the same origin as
			// what it asks for. Only the name tells.
			problem.Write(w, http.StatusMisdirectedRequest, "the Host header does not name this listener; want an IP address, localhost or the host of -admin")
		case !ownSite(r):
			problem.Write(w, http.StatusForbidden, "the request comes from another site's page; open this listener's own page instead")
		case h.config.Token != "" && !isHealth(r) && !h.authorized(r, token):
			w.Header().Set("WWW-Authenticate", `Basic realm="Holdfast", charset="UTF-8"`)
			problem.Write(w, http.StatusUnauthorized, "want the token, as Bearer or as the password of HTTP Basic")
		default:
			w.Header().Del("Connection")
			if h.config.Token == "" || !isHealth(r) {
				h.config.Admitted(r)
			}
			next.ServeHTTP(w, r)
		}
	})
}

// ownHost reports whether a Host header can only have been sent by who meant this
// listener. An IP address is such: no name had to be looked up for it.
func (h *Handler) ownHost(hostport string) bool {
	host := hostport
	if name, _, err := net.SplitHostPort(hostport); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return strings.EqualFold(host, "localhost") || h.config.Host != "" && strings.EqualFold(host, h.config.Host)
}

var crossOrigin http.CrossOriginProtection

// ownSite reports whether a request comes from our own page, or from no page at
// all. CrossOriginProtection lets every read pass, since its answer cannot be seen
// by another site; but a profile that it can start is cost enough, and what a
// browser does not hide today it may tomorrow. So it is asked about a read as if it
// were a change.
func ownSite(r *http.Request) bool {
	change := *r
	change.Method = http.MethodPost
	own := crossOrigin.Check(&change) == nil
	opens := r.Header.Get("Sec-Fetch-Dest") == "document"
	if r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == "" {
		// Over plain HTTP to another machine a browser tells of a read neither, only
		// the page that it comes from, unless that forbids it.
		referer, err := url.Parse(r.Header.Get("Referer"))
		own = err == nil && (referer.Host == "" || referer.Host == r.Host)
		opens = true
	}
	// A link to the page is no danger: who follows it sees it in a window of its own.
	return own || opens && r.URL.Path == "/" && r.Method == http.MethodGet
}

// isHealth reports whether a request asks only what the public listener tells
// everybody: those who probe have no token.
func isHealth(r *http.Request) bool {
	return r.URL.Path == "/healthz" || r.URL.Path == "/readyz"
}

func (h *Handler) authorized(r *http.Request, token [sha256.Size]byte) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	ok := strings.EqualFold(scheme, "Bearer")
	if _, password, basic := r.BasicAuth(); basic {
		given, ok = password, true
	}
	sum := sha256.Sum256([]byte(given)) // so that the time tells nothing, not even the length
	return ok && subtle.ConstantTimeCompare(sum[:], token[:]) == 1
}
