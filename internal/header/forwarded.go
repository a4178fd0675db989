package header

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Peer returns the address that a request comes from. It is invalid if the request has
// not come over TCP.
func Peer(r *http.Request) netip.Addr {
	from, _ := netip.ParseAddrPort(r.RemoteAddr) // zero with an error
	return from.Addr().Unmap()
}

// Within reports whether ip is of one of the networks.
func Within(ip netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(ip.WithZone("")) })
}

// Client returns the address of the client that a request comes from: the last one that
// is not a trusted proxy's, counted from the right, since what is left of it may be
// forged. It is invalid if the request has not come over TCP.
func Client(r *http.Request, trusted []netip.Prefix) netip.Addr {
	ip := Peer(r)
	before := strings.Join(r.Header["X-Forwarded-For"], ",")
	for before != "" && Within(ip, trusted) {
		comma := strings.LastIndexByte(before, ',')
		said := strings.TrimSpace(before[comma+1:])
		next, err := netip.ParseAddr(said)
		if err != nil {
			withPort, err := netip.ParseAddrPort(said)
			if err != nil {
				break // the proxy does not know either
			}
			next = withPort.Addr()
		}
		ip, before = next.Unmap(), before[:max(comma, 0)]
	}
	return ip
}
