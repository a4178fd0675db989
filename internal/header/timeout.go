package header

import (
	"net/http"
	"strings"
	"time"
)

// maxTimeout is the longest time-out that is understood as such; a longer one is taken
// for it.
const maxTimeout = 24 * time.Hour

var grpcUnits = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second,
	'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}

// Timeout returns the time from its receipt in which a request expects its answer, as
// the proxy Envoy (X-Envoy-Expected-Rq-Timeout-Ms) or a gRPC client (Grpc-Timeout)
// says: the shorter of the two, or 0 if there is none. What is malformed, given twice
// or zero counts as absent.
func Timeout(h http.Header) time.Duration {
	envoy, _ := amount(only(h["X-Envoy-Expected-Rq-Timeout-Ms"]), time.Millisecond, maxTimeout)
	grpc := time.Duration(0)
	// TimeoutValue is of at most 8 digits.
	if v := only(h["Grpc-Timeout"]); len(v) >= 2 && len(v) <= 9 {
		grpc, _ = amount(v[:len(v)-1], grpcUnits[v[len(v)-1]], maxTimeout)
	}
	return Shorter(envoy, grpc)
}

// Shorter returns the shorter of two limits. One of 0 or less is none; if both are,
// Shorter returns 0.
func Shorter(a, b time.Duration) time.Duration {
	if a <= 0 || b > 0 && b < a {
		return max(b, 0)
	}
	return a
}

// only returns the value of a header that is given once, otherwise nothing.
func only(lines []string) string {
	if len(lines) != 1 {
		return ""
	}
	return strings.Trim(lines[0], " \t")
}
