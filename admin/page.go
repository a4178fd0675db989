package admin

import (
	"embed"
	"net/http"
	"strconv"
)

//go:embed page
var files embed.FS

// policy is all that the page needs: its own files, and to ask this listener.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// servePage adds the dashboard to mux.
func servePage(mux *http.ServeMux) {
	for _, file := range []struct{ route, name, kind string }{
		{"/{$}", "index.html", "text/html; charset=utf-8"},
		{"/page.css", "page.css", "text/css; charset=utf-8"},
		{"/page.js", "page.js", "text/javascript; charset=utf-8"},
		{"/icon.svg", "icon.svg", "image/svg+xml"},
	} {
		body, err := files.ReadFile("page/" + file.name)
		if err != nil {
			panic(err) // it was there when the program was built
		}
		mux.HandleFunc("GET "+file.route, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", file.kind)
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.Header().Set("Content-Security-Policy", policy)
			w.Header().Set("Cache-Control", "no-cache") // a new version of the server has a new page
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
			w.Header().Set("Referrer-Policy", "no-referrer")
			w.Write(body)
		})
	}
}
