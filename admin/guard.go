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

// Guard returns a handler that passes on to next what a [Handler] with this Config would
// let through. It is for a process in which another one's Handler answers; see
// [Handler.Unguarded].
func Guard(c Config, next http.Handler) http.Handler {
	c = c.withDefaults()
	return (&Handler{config: c, tries: newTries(c.Logger)}).guard(next)
}

// Unguarded returns the routes of h without its guard. Whoever serves them has to ask who
// it is that comes, as [Guard] does.
func (h *Handler) Unguarded() http.Handler { return h.routes }

// guard passes on the operator's requests, and none that another page in the
// operator's browser has sent. To listen on the loopback address is not enough for
// that: every page that the operator has open can send requests there.
func (h *Handler) guard(next http.Handler) http.Handler {
	token := sha256.Sum256([]byte(h.config.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // a stranger must not keep one of the few connections
		switch {
		case !h.ownHost(r.Host):
			// If an attacker has made the name of a page resolve to this address, the
			// browser takes the page and this listener for one origin. Only the name
			// gives it away.
			problem.Write(w, http.StatusMisdirectedRequest, "the Host header does not name this listener; want an IP address, localhost or the host of -admin")
		case !ownSite(r):
			problem.Write(w, http.StatusForbidden, "the request comes from another site's page; open this listener's own page instead")
		case h.config.Token != "" && !isHealth(r) && !h.authorize(w, r, token):
		default:
			w.Header().Del("Connection")
			if h.config.Token == "" || !isHealth(r) {
				h.config.Admitted(r)
			}
			next.ServeHTTP(w, r)
		}
	})
}

// ownHost reports whether a Host header names this listener in a way that no one else
// can control. An IP address does: it needs no lookup.
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

// ownSite reports whether a request comes from one of our own pages, or from no page
// at all. CrossOriginProtection allows every read, since another site cannot see the
// answer. But starting a profile alone is costly, and browsers may hide less than they
// should. So a read is checked as if it were a change.
func ownSite(r *http.Request) bool {
	change := *r
	change.Method = http.MethodPost
	own := crossOrigin.Check(&change) == nil
	opens := r.Header.Get("Sec-Fetch-Dest") == "document"
	if r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == "" {
		// For a read over plain HTTP from another machine, a browser sends neither. It
		// sends only the URL of the page, unless the page forbids that.
		referer, err := url.Parse(r.Header.Get("Referer"))
		own = err == nil && (referer.Host == "" || referer.Host == r.Host)
		opens = true
	}
	// A link to the page is harmless: it opens in a window of its own.
	return own || opens && r.URL.Path == "/" && r.Method == http.MethodGet
}

// isHealth reports whether a request is a health check. Those who probe have no
// token, and the public listener answers them as well.
func isHealth(r *http.Request) bool {
	return r.URL.Path == "/healthz" || r.URL.Path == "/readyz"
}

// authorize reports whether a request has the token, or answers it. A request without
// any is no try: a browser sends one before it asks for the password.
func (h *Handler) authorize(w http.ResponseWriter, r *http.Request, token [sha256.Size]byte) bool {
	if r.Header.Get("Authorization") != "" {
		from := network(r.RemoteAddr)
		if !h.tries.wait(r.Context(), from) {
			w.Header().Set("Retry-After", "1")
			problem.Write(w, http.StatusTooManyRequests, "too many wrong tokens came from this address; try again later")
			return false
		}
		if authorized(r, token) {
			h.tries.succeeded(from)
			return true
		}
		h.tries.failed(from, r.RemoteAddr)
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="Holdfast", charset="UTF-8"`)
	problem.Write(w, http.StatusUnauthorized, "want the token, as Bearer or as the password of HTTP Basic")
	return false
}

func authorized(r *http.Request, token [sha256.Size]byte) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	ok := strings.EqualFold(scheme, "Bearer")
	if _, password, basic := r.BasicAuth(); basic {
		given, ok = password, true
	}
	sum := sha256.Sum256([]byte(given)) // so that the time reveals nothing, not even the length
	return ok && subtle.ConstantTimeCompare(sum[:], token[:]) == 1
}
