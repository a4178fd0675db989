package server

import (
	_ "embed"
	"net/http"
	"strconv"
)

// The tests in e2e hold it against what the server answers.
//
//go:embed openapi.json
var openAPI []byte

// OpenAPI answers with the OpenAPI description of the public routes.
func OpenAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(openAPI)))
	w.Write(openAPI)
}
