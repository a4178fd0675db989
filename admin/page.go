package admin

import (
	"embed"
	"net/http"
	"strconv"
)

//go:embed page
var files embed.FS

// policy allows a page its own files and requests to this listener, nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// A file is one that a browser asks for.
type file struct{ route, name, kind string }

var (
	dashboard = []file{
		{"/{$}", "index.html", "text/html; charset=utf-8"},
		{"/page.css", "page.css", "text/css; charset=utf-8"},
		{"/common.js", "common.js", "text/javascript; charset=utf-8"},
		{"/page.js", "page.js", "text/javascript; charset=utf-8"},
		{"/icon.svg", "icon.svg", "image/svg+xml"},
	}
	jobsPage = []file{ // besides what it shares with the dashboard
		{"/jobs.html", "jobs.html", "text/html; charset=utf-8"},
		{"/jobs.js", "jobs.js", "text/javascript; charset=utf-8"},
	}
)

// addFiles adds files to mux.
func addFiles(mux *http.ServeMux, list []file) {
	for _, file := range list {
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
