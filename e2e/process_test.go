package e2e

import (
	"testing"

	"holdfast/internal/proctest"
)

// patience is the longest time to wait for anything.
const patience = proctest.Patience

func TestMain(m *testing.M) { proctest.Main(m) }

// A process is a server that a test started. It ends with the test.
type process struct {
	*proctest.Process
	addr string
}

// start starts the server on a free port, and waits until it listens.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := proctest.Launch(t, nil, proctest.Build(t), append([]string{"-addr", "127.0.0.1:0", "-admin", ""}, args...)...)
	return &process{p, p.Addr()}
}
