// Package wrapped looks into http.ResponseWriters that wrap others and have a method Unwrap,
// as http.ResponseController does.
package wrapped

import "net/http"

// Find returns w if it is a T, or else the nearest T that it wraps, and whether there is one.
func Find[T any](w http.ResponseWriter) (found T, ok bool) {
	for {
		if found, ok := w.(T); ok {
			return found, true
		}
		inner, ok := unwrap(w)
		if !ok {
			return found, false
		}
		w = inner
	}
}

// Innermost returns the ResponseWriter in the middle, which wraps no other: mostly the
// server's own.
func Innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		inner, ok := unwrap(w)
		if !ok {
			return w
		}
		w = inner
	}
}

func unwrap(w http.ResponseWriter) (http.ResponseWriter, bool) {
	outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
	if !ok {
		return nil, false
	}
	return outer.Unwrap(), true
}
