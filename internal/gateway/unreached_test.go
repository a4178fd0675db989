package gateway

import (
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"

	"holdfast/internal/server"
)

// Unreached is told of an upstream to which there is no connection, and not of one that
// hangs up on a request, which it may have acted on.
func TestUnreached(t *testing.T) {
	for _, test := range []struct {
		name   string
		target string // instead of the upstream that hangs up
		want   int64
	}{{"nobody listens", "http://127.0.0.1:1", 1}, {"hangs up", "", 0}} {
		t.Run(test.name, func(t *testing.T) {
			var told atomic.Int64
			c := Config{Unreached: func(http.ResponseWriter) { told.Add(1) }}
			if test.target != "" {
				c.Upstream, _ = url.Parse(test.target)
			}
			f := through(t, server.Config{Workers: 1}, c, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			resp, err := http.Post(f.front+"/sync/x", "text/plain", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadGateway || told.Load() != test.want {
				t.Errorf("%d, and Unreached was told %d times; want 502 and %d", resp.StatusCode, told.Load(), test.want)
			}
		})
	}
}
