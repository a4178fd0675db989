//go:build unix

package durable

import (
	"testing"

	"holdfast/conformance"
	"holdfast/internal/proctest"
)

func TestMain(m *testing.M) { proctest.Main(m) }

// launch starts the command on a folder, on a free port.
func launch(t *testing.T, dir string, args ...string) *proctest.Process {
	t.Helper()
	return proctest.Launch(t, nil, proctest.BuildPackage(t, "./cmd/holdfast"), append([]string{"-addr", "127.0.0.1:0", "-admin", "", "-data", dir}, args...)...)
}

// The HTTP contract is the same, whether jobs outlive the process or not.
func TestConformance(t *testing.T) {
	conformance.Run(t, "http://"+launch(t, t.TempDir()).Addr())
}
