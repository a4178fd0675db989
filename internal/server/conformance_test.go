//go:build unix

package server

import (
	"testing"

	"holdfast/conformance"
)

// The server as it is shipped keeps the contract that any other is to keep, with
// many workers and with as few as conformance asks for.
func TestConformance(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"defaults": nil,
		"small":    {"-workers", "4", "-queue", "20"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conformance.Run(t, "http://"+start(t, args...).addr)
		})
	}
}
