package server

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"regexp"
	"strings"

	"holdfast"
	"holdfast/internal/header"
)

// byAddress is the client key of those that are told apart by their address.
const byAddress = "address"

// classifier returns how requests are told apart, or nil if they are all alike.
func classifier(c Config) func(*http.Request) holdfast.Class {
	if !c.TrustPriority && c.ClientKey == "" {
		return nil
	}
	trusted := c.Proxies()
	return func(r *http.Request) (class holdfast.Class) {
		if c.TrustPriority {
			class.Urgency = holdfast.Priority(r.Header)
		}
		switch c.ClientKey {
		case "":
		case byAddress:
			class.Client = network(header.Client(r, trusted))
		default:
			// To leave the header out must not free a client of its limits.
			if class.Client = hashed(r.Header.Get(c.ClientKey)); class.Client == "" {
				class.Client = network(header.Client(r, trusted))
			}
		}
		return class
	}
}

// A clientKey is the flag's value. Its Set takes what a header may be named.
type clientKey string

var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")

func (v *clientKey) String() string { return string(*v) }

func (v *clientKey) Set(s string) error {
	if !token.MatchString(s) || strings.EqualFold(s, "Host") { // which net/http takes out of the header
		return errors.New("want the name of a header, such as X-Api-Key, or address")
	}
	*v = clientKey(s)
	return nil
}

// network returns what stands for a client's address: of IPv6 the /64, since whoever has
// one address has all of them.
func network(ip netip.Addr) string {
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

// hashed returns what stands for a header, which may be a password and is shown to the
// operator.
func hashed(value string) string {
	if value == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:8])
}
