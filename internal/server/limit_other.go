//go:build !unix

package server

// maxConns returns the greatest number of connections that is allowed, and how
// many to hold open by default.
func maxConns() (most, byDefault int) { return connsFor(1 << 20) }
