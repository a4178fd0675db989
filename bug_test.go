package holdfast

import (
	"context"
	"testing"
)

// A typedNil is the usual mistake: a nil pointer in an error.
type typedNil struct{ inner error }

func (e *typedNil) Error() string { return "typed nil" }
func (e *typedNil) Unwrap() error { return e.inner } // panics on nil

// What a function returns is foreign code: looked into by finish, outside of run's
// recover and with the job locked, an Unwrap or Is that panics takes the process
// with it. Only a job that was canceled or is late gets there.
func TestBugReturnedErrorCrashesTheProcess(t *testing.T) {
	d := build(t, sized(0, 1))
	j := mustSubmit(t, d, nop)
	// As a worker would call it; there the panic could not be recovered.
	running := &Job{d: d, parent: bg, stamp: j.stamp, state: Running, cause: context.Canceled}
	defer func() {
		if v := recover(); v != nil {
			t.Errorf("finish panics: %v", v)
		}
	}()
	if state := running.finish(Failed, (*typedNil)(nil), 1); state != Canceled {
		t.Errorf("ended as %v", state)
	}
}
