package server

import (
	_ "embed"
	"net/http"
	"strconv"
)

var (
	//go:embed guide.txt
	guide []byte

	//go:embed openapi.json
	openAPI []byte // the tests in e2e hold it against what the server answers
)

// Guide answers with what a newcomer can type.
func Guide(w http.ResponseWriter, r *http.Request) { send(w, "text/plain; charset=utf-8", guide) }

// OpenAPI answers with the OpenAPI description of the public routes.
func OpenAPI(w http.ResponseWriter, r *http.Request) { send(w, "application/json", openAPI) }

func send(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}
