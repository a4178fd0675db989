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
	envoy, grpc := time.Duration(0), time.Duration(0)
	if v := only(h["X-Envoy-Expected-Rq-Timeout-Ms"]); v != "" {
		envoy = amount(v, time.Millisecond)
	}
	// TimeoutValue is of at most 8 digits.
	if v := only(h["Grpc-Timeout"]); len(v) >= 2 && len(v) <= 9 {
		grpc = amount(v[:len(v)-1], grpcUnits[v[len(v)-1]])
	}
	if envoy == 0 || grpc != 0 && grpc < envoy {
		return grpc
	}
	return envoy
}

// only returns the value of a header that is given once, otherwise nothing.
func only(lines []string) string {
	if len(lines) != 1 {
		return ""
	}
	return strings.Trim(lines[0], " \t")
}

// amount returns a whole number of units, or 0 if digits is not one.
func amount(digits string, unit time.Duration) time.Duration {
	n := time.Duration(0)
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0
		}
		n = min(n*10+time.Duration(c-'0')*unit, maxTimeout)
	}
	return n
}
