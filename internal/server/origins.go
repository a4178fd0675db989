package server

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"holdfast/internal/problem"
)

// crossOrigin says what pages of other origins may have a browser do. Without it a
// page anywhere could queue work in the name of whoever looks at it, though not see
// the answer. A page of an origin in c.CORSOrigins may do what one of the server's own
// could: send any request, with credentials, and read the answer. A page of any other
// may not send what changes something. Who is no browser is not concerned.
func crossOrigin(c Config, next http.Handler) http.Handler {
	listed := strings.FieldsFunc(c.CORSOrigins, func(r rune) bool { return r == ',' })
	protection := http.NewCrossOriginProtection()
	trust := func(origin string) {
		if err := protection.AddTrustedOrigin(origin); err != nil {
			panic(err) // the configuration was checked
		}
	}
	for _, origin := range listed {
		trust(origin)
	}
	if u, err := url.Parse(c.PublicURL); err == nil && u.Host != "" {
		trust(u.Scheme + "://" + u.Host) // a proxy may have sent its own Host
	}
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		problem.Write(w, http.StatusForbidden, "the request comes from a page of another site; want one that -cors-origins lists")
	}))
	next = protection.Handler(next)
	if len(listed) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		origin := r.Header.Get("Origin")
		if !slices.Contains(listed, origin) {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Credentials", "true")
		if method := r.Header.Get("Access-Control-Request-Method"); r.Method == http.MethodOptions && method != "" {
			// Not a list of our own: behind a gateway any method and header may be of use.
			h.Set("Access-Control-Allow-Methods", method)
			if names := r.Header["Access-Control-Request-Headers"]; names != nil {
				h["Access-Control-Allow-Headers"] = names
			}
			h.Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.Set("Access-Control-Expose-Headers", exposed)
		next.ServeHTTP(w, r)
	})
}

// exposed are the headers of answers that a page could not read otherwise.
const exposed = "Allow, Content-Location, Job-State, Location, Operation-Location, Preference-Applied, Retry-After"

// origins is set by a list of origins, which it keeps as browsers write them.
type origins string

func (v *origins) String() string { return string(*v) }

func (v *origins) Set(s string) error {
	var list []string
	for origin := range strings.SplitSeq(s, ",") {
		origin, ok := parseOrigin(strings.TrimSpace(origin))
		if !ok {
			return errors.New("want origins such as https://app.example or http://localhost:3000, joined by commas")
		}
		list = append(list, origin)
	}
	*v = origins(strings.Join(list, ","))
	return nil
}

// parseOrigin returns an origin in the form in which browsers send it, in lower case
// and without the port that the scheme implies.
func parseOrigin(s string) (origin string, ok bool) {
	u, err := url.Parse(strings.ToLower(s))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Scheme+"://"+u.Host != strings.ToLower(s) {
		return "", false
	}
	if strings.ContainsFunc(u.Host, func(r rune) bool { return r > '~' || r == '*' }) {
		return "", false // a browser sends another spelling, or no such origin at all
	}
	port := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	return u.Scheme + "://" + strings.TrimSuffix(strings.TrimSuffix(u.Host, ":"), port), true
}
