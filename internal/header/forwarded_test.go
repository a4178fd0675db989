package header

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestClient(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, test := range []struct {
		from      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:5", nil, "192.0.2.1"},
		{"192.0.2.1:5", []string{"198.51.100.1"}, "192.0.2.1"}, // it is no proxy of ours
		{"10.0.0.1:5", nil, "10.0.0.1"},
		{"10.0.0.1:5", []string{"198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:5", []string{"203.0.113.9, 198.51.100.1"}, "198.51.100.1"}, // the first one is forged
		{"10.0.0.1:5", []string{"203.0.113.9, 198.51.100.1 , 10.9.9.9"}, "198.51.100.1"},
		{"10.0.0.1:5", []string{"203.0.113.9", "198.51.100.1", "10.9.9.9"}, "198.51.100.1"},
		{"10.0.0.1:5", []string{"198.51.100.1:80"}, "198.51.100.1"},
		{"[::1]:5", []string{"[2001:db8::1]:80"}, "2001:db8::1"},
		{"[::ffff:10.0.0.1]:5", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:5", []string{"198.51.100.1, unknown"}, "10.0.0.1"},
		{"10.0.0.1:5", []string{"198.51.100.1,"}, "10.0.0.1"},
		{"10.0.0.1:5", []string{strings.Repeat("10.0.0.2,", 10_000) + "10.0.0.3"}, "10.0.0.2"},
		{"@", []string{"198.51.100.1"}, "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: test.from, Header: http.Header{"X-Forwarded-For": test.forwarded}}
		if got := Client(r, trusted).String(); got != test.want {
			t.Errorf("%s forwarded for %.50q: %s, want %s", test.from, test.forwarded, got, test.want)
		}
	}
}
