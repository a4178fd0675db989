package wrapped

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

type wrapper struct{ http.ResponseWriter }

func (w wrapper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type named struct {
	wrapper
	name string
}

func TestFind(t *testing.T) {
	inner := httptest.NewRecorder()
	w := wrapper{named{wrapper{named{wrapper{inner}, "far"}}, "near"}}
	if n, ok := Find[named](w); !ok || n.name != "near" {
		t.Errorf("found %q, %t; want the nearest", n.name, ok)
	}
	if r, ok := Find[*httptest.ResponseRecorder](w); !ok || r != inner {
		t.Error("the innermost was not found")
	}
	if _, ok := Find[http.Hijacker](w); ok {
		t.Error("found what is not there")
	}
	if Innermost(w) != http.ResponseWriter(inner) || Innermost(inner) != http.ResponseWriter(inner) {
		t.Error("the innermost is another one")
	}
}
